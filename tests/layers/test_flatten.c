#include "flatten_check.h"

static void test_flatten_makes_a_clean_image_of_nothing(void **state)
{
    struct image_fixture *f = *state;
    flatten_clean(f);
    assert_int_equal(f->result.entries, 1); /* lost+found */
    assert_true(f->result.size >= (uint64_t)512 << 20);
    assert_true(f->result.allocated < (uint64_t)4 << 20);
}

static void test_flatten_writes_every_kind_of_entry(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    t.mode = 0701;
    tb_dir(&t, "./");
    t.mode = 0;
    tb_dir(&t, "etc/");
    t.uid = 70000;
    t.gid = 4000000000u;
    t.mode = 04755;
    tb_file(&t, "etc/passwd", "root\n");
    t.uid = t.gid = 0;
    t.mode = 0;
    tb_link(&t, '1', "etc/again", "etc/passwd");
    tb_link(&t, '2', "etc/fast", "../passwd");
    tb_link(&t, '2', "etc/slow",
            "0123456789012345678901234567890123456789012345678901234567890123456789");
    tb_file(&t, "/implicit/parent/file", "deep");
    t.major = 1;
    t.minor = 3;
    tb_raw(&t, '3', "dev-null", NULL, NULL, 0);
    t.major = 259;
    t.minor = 70000;
    tb_raw(&t, '4', "dev-big", NULL, NULL, 0);
    tb_raw(&t, '6', "pipe", NULL, NULL, 0);
    add_layer(f, &t);
    flatten_clean(f);

    assert_stat(f, "/", "Mode:  0701");
    assert_content(f, "/etc/passwd", "root");
    assert_content(f, "/etc/again", "root");
    assert_stat(f, "/etc/again", "Links: 2");
    assert_stat(f, "/etc/passwd", "Mode:  04755");
    assert_stat(f, "/etc/passwd", "User: 70000   Group: -294967296");
    assert_stat(f, "/etc/fast", "Fast link dest: \"../passwd\"");
    assert_content(f, "/etc/slow",
                   "0123456789012345678901234567890123456789012345678901234567890123456789");
    assert_stat(f, "/implicit", "Mode:  0755");
    assert_content(f, "/implicit/parent/file", "deep");
    assert_stat(f, "/dev-null", "Device major/minor number: 01:03");
    assert_stat(f, "/dev-big", "(New-style) Device major/minor number: 259:70000");
    assert_stat(f, "/pipe", "Type: FIFO");
}

static void test_flatten_gives_the_same_bytes_for_the_same_layers(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    for (int layer = 0; layer < 3; layer++) {
        tb_init(&t);
        for (int i = 0; i < 50; i++) {
            char name[40];
            (void)snprintf(name, sizeof(name), "d%d/f%d", i % 7, i + layer);
            tb_file(&t, name, name);
        }
        add_layer(f, &t);
    }
    flatten_clean(f);
    struct cb_digest first = f->result.digest;
    flatten_clean(f);
    assert_true(cb_digest_eq(&first, &f->result.digest));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_flatten_makes_a_clean_image_of_nothing),
        test_image(test_flatten_writes_every_kind_of_entry),
        test_image(test_flatten_gives_the_same_bytes_for_the_same_layers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
