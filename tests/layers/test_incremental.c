/* The recursive definition: an image of layers 1 to n has the same bytes whether it is made from
 * nothing, or from an image of layers 1 to k of any size. On random stacks of layers (fixed seeds),
 * so that rules meet that nobody thought of together. */
#include "random_layers.h"

#ifdef __SANITIZE_ADDRESS__ /* minutes otherwise */
#define STACKS 3
#else
#define STACKS 8
#endif

static uint64_t random_size(void)
{
    static const uint32_t mib[] = {0, 600, 777, 2048, 2100, 5000, 8192};
    return (uint64_t)mib[rnd(sizeof(mib) / sizeof(*mib))] << 20;
}

/* From each prefix, of another size; then layer by layer. */
static void check_stack(struct image_fixture *f)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    uint64_t size = random_size();
    struct flatten_result want, got, below;
    CB_AUTO_FREE char *last = cb_xasprintf("%s.last", f->path);
    CB_AUTO_FREE char *next = cb_xasprintf("%s.next", f->path);
    (void)unlink(f->path);
    assert_ok(try_stack(f, f->n, size, f->path, NULL, NULL, &want, &err), &err);
    for (int stepwise = 0; stepwise < 2; stepwise++) {
        CB_AUTO_CHUNK_MAP map = {0};
        for (size_t k = 1; k <= f->n; k++) {
            CB_AUTO_FD from = stepwise && k > 1 ? open(last, O_RDONLY | O_CLOEXEC) : -1;
            const struct flatten_parent up = {from, k - 1, &map};
            CB_AUTO_CHUNK_MAP now = {0};
            assert_ok(
                try_stack(f, k, random_size(), next, from >= 0 ? &up : NULL, &now, &below, &err),
                &err);
            assert_int_equal(below.inherited, from >= 0 ? k - 1 : 0);
            chunk_map_release(&map);
            map = now;
            now = (struct chunk_map){0};
            assert_int_equal(rename(next, last), 0);
            CB_AUTO_FD fd = open(last, O_RDONLY | O_CLOEXEC);
            const struct flatten_parent parent = {fd, k, &map};
            assert_ok(try_stack(f, f->n, size, next, &parent, NULL, &got, &err), &err);
            assert_int_equal(got.inherited, k);
            assert_true(cb_digest_eq(&got.digest, &want.digest));
            assert_int_equal(got.entries, want.entries);
            struct cb_digest all; /* of the file, not of what was inherited */
            CB_AUTO_FD made = open(next, O_RDONLY | O_CLOEXEC);
            assert_ok(image_digest(made, &all, NULL, &err), &err);
            assert_true(cb_digest_eq(&all, &want.digest));
            assert_int_equal(unlink(next), 0);
        }
    }
    assert_clean(f->path);
    (void)unlink(last);
}

static void test_random_stacks_are_the_same_by_every_way(void **state)
{
    struct image_fixture *f = *state;
    for (uint32_t seed = 1; seed <= STACKS; seed++) {
        state_of_random = seed * 2654435761u;
        f->n = 0;
        for (size_t n = 2 + rnd(4); f->n < n;)
            add_random_layer(f);
        check_stack(f);
    }
}

static void test_a_parent_that_is_no_image_is_left_aside(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct flatten_result want, got;
    state_of_random = 7;
    add_random_layer(f);
    add_random_layer(f);
    CB_AUTO_FREE char *parent = cb_xasprintf("%s.parent", f->path);
    (void)unlink(f->path);
    assert_ok(try_stack(f, 1, 0, parent, NULL, NULL, &want, &err), &err);
    assert_ok(try_stack(f, 2, 0, f->path, NULL, NULL, &want, &err), &err);
    static const off_t places[] = {1024 + 0x38, 4096, 4096 * 513, 4096 * 529, 4096 * 545 + 256};
    for (size_t i = 0; i < sizeof(places) / sizeof(*places); i++) {
        CB_AUTO_FD fd = open(parent, O_RDWR | O_CLOEXEC);
        unsigned char keep[64], bad[64];
        assert_int_equal(pread(fd, keep, sizeof(keep), places[i]), sizeof(keep));
        for (size_t b = 0; b < sizeof(bad); b++)
            bad[b] = keep[b] ^ 0x5a;
        assert_int_equal(pwrite(fd, bad, sizeof(bad), places[i]), sizeof(bad));
        const struct flatten_parent p = {fd, 1, NULL};
        (void)unlink(f->path);
        assert_ok(try_stack(f, 2, 0, f->path, &p, NULL, &got, &err), &err);
        assert_true(cb_digest_eq(&got.digest, &want.digest));
        assert_int_equal(got.inherited, 0);
        assert_int_equal(pwrite(fd, keep, sizeof(keep), places[i]), sizeof(keep));
    }
    assert_int_equal(unlink(parent), 0);
}

static void test_a_size_that_is_too_small_for_the_parent_is_refused(void **state)
{
    struct image_fixture *f = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct tar_build t;
    static char data[8 << 20];
    memset(data, 'x', sizeof(data));
    tb_init(&t);
    for (int i = 0; i < 6; i++) {
        char name[8];
        (void)snprintf(name, sizeof(name), "%d", i);
        tb_raw(&t, '0', name, NULL, data, sizeof(data));
    }
    add_layer(f, &t);
    CB_AUTO_FREE char *parent = cb_xasprintf("%s.parent", f->path);
    assert_ok(try_stack(f, 1, 0, parent, NULL, NULL, &f->result, &err), &err);
    CB_AUTO_FD fd = open(parent, O_RDONLY | O_CLOEXEC);
    const struct flatten_parent p = {fd, 1, NULL};
    assert_int_equal(try_stack(f, 1, (uint64_t)120 << 20, f->path, &p, NULL, &f->result, &err),
                     -CB_E_LIMIT);
    assert_non_null(strstr(err.msg, "120"));
    assert_non_null(err.hint);
    assert_int_not_equal(access(f->path, F_OK), 0);
    assert_int_equal(unlink(parent), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_random_stacks_are_the_same_by_every_way),
        test_image(test_a_parent_that_is_no_image_is_left_aside),
        test_image(test_a_size_that_is_too_small_for_the_parent_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
