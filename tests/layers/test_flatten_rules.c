/* The rules of applying layers, one small case a row. Layers are written as lines: D folder, F file
 * with its name as content (or the word after it), S symbolic link, H hard link. */
#include "flatten_check.h"

#define MAX_EXPECT 8

struct expect {
    const char *path;
    const char *content; /* NULL: not there; "/": a folder */
};

struct rule {
    const char *name;
    const char *layers[4];
    struct expect expect[MAX_EXPECT];
};

static const struct rule rules[] = {
    {"a later layer replaces a file", {"F a one", "F a two"}, {{"/a", "two"}}},
    {"the last of two in one layer wins", {"F a one\nF a two"}, {{"/a", "two"}}},
    {"a folder over a folder keeps its names",
     {"D d\nF d/x x", "D d\nF d/y y"},
     {{"/d/x", "x"}, {"/d/y", "y"}}},
    {"a file over a folder removes what is below",
     {"D d\nF d/x x", "F d file"},
     {{"/d", "file"}, {"/d/x", NULL}}},
    {"a folder over a file", {"F d x", "D d\nF d/x y"}, {{"/d", "/"}, {"/d/x", "y"}}},
    {"a folder over a symbolic link replaces the link",
     {"D t\nF t/x x\nS d t", "D d\nF d/y y"},
     {{"/d", "/"}, {"/d/y", "y"}, {"/d/x", NULL}, {"/t/x", "x"}, {"/t/y", NULL}}},
    {"a file below a link lands where the link points", {"D t\nS d t", "F d/y y"}, {{"/t/y", "y"}}},
    {"an absolute link is inside the image", {"D t\nS d /t", "F d/y y"}, {{"/t/y", "y"}}},
    {"a link cannot climb out of the root", {"D t\nS d ../../../t", "F d/y y"}, {{"/t/y", "y"}}},
    {"a dangling link's target is made", {"S d t/u", "F d/y y"}, {{"/t/u/y", "y"}}},
    {"links to links", {"D t\nS d e\nS e ./f/../g\nD f\nS g t", "F d/y y"}, {{"/t/y", "y"}}},
    {"absolute names and double slashes", {"F /a x\nF .//b///c y"}, {{"/a", "x"}, {"/b/c", "y"}}},
    {"a whiteout removes from below", {"F a x\nF b y", "F .wh.a"}, {{"/a", NULL}, {"/b", "y"}}},
    {"a whiteout removes a folder with all in it",
     {"D d\nD d/e\nF d/e/f x", "F .wh.d"},
     {{"/d", NULL}}},
    {"a whiteout of nothing",
     {"F a x", "F .wh.b\nF no/.wh.b\nF a/.wh.b"},
     {{"/a", "x"}, {"/no", NULL}}},
    {"a whiteout in the middle layer, a file in the last",
     {"F a x", "F .wh.a", "F a y"},
     {{"/a", "y"}}},
    {"a whiteout before the new file", {"F a x", "F .wh.a\nF a y"}, {{"/a", "y"}}},
    {"a whiteout after the new file", {"F a x", "F a y\nF .wh.a"}, {{"/a", "y"}}},
    {"a whiteout before the new folder",
     {"D d\nF d/x x", "F .wh.d\nD d\nF d/y y"},
     {{"/d/x", NULL}, {"/d/y", "y"}}},
    {"a whiteout after the new folder",
     {"D d\nF d/x x", "D d\nF d/y y\nF .wh.d"},
     {{"/d/x", NULL}, {"/d/y", "y"}}},
    {"a whiteout through a link", {"D t\nF t/x x\nS d t", "F d/.wh.x"}, {{"/t/x", NULL}}},
    {"a whiteout of a link spares its target",
     {"D t\nF t/x x\nS d t", "F .wh.d"},
     {{"/d", NULL}, {"/t/x", "x"}}},
    {"a whiteout is never a file, whatever its type",
     {"D d\nF e x", "D .wh.d\nS .wh.e x"},
     {{"/d", NULL}, {"/e", NULL}, {"/.wh.d", NULL}, {"/.wh.e", NULL}}},
    {"only the last component is a whiteout", {"D .wh.d\nF .wh.e/f x"}, {{"/.wh.e/f", "x"}}},
    {"opaque before",
     {"D d\nF d/x x\nD d/s\nF d/s/x x", "D d\nF d/.wh..wh..opq\nF d/y y"},
     {{"/d/x", NULL}, {"/d/s", NULL}, {"/d/y", "y"}}},
    {"opaque after",
     {"D d\nF d/x x\nD d/s\nF d/s/x x", "D d\nF d/y y\nF d/.wh..wh..opq"},
     {{"/d/x", NULL}, {"/d/s", NULL}, {"/d/y", "y"}}},
    {"opaque hides below what the layer passed through",
     {"D d\nD d/s\nF d/s/x x", "F d/s/y y\nF d/.wh..wh..opq"},
     {{"/d/s/x", NULL}, {"/d/s/y", "y"}}},
    {"opaque of the root",
     {"F a x\nD d\nF d/x x", "F .wh..wh..opq\nF b y"},
     {{"/a", NULL}, {"/d", NULL}, {"/b", "y"}, {"/lost+found", "/"}}},
    {"opaque of nothing", {"F a x", "F no/.wh..wh..opq"}, {{"/a", "x"}, {"/no", NULL}}},
    {"bookkeeping of AUFS",
     {"F .wh..wh.aufs x\nD .wh..wh.plnk\nF .wh..wh.plnk/1.2 x\nF a x"},
     {{"/a", "x"}, {"/.wh..wh.plnk", NULL}, {"/.wh..wh.aufs", NULL}}},
    {"bookkeeping of lazy pulling",
     {"F stargz.index.json x\nF .no.prefetch.landmark x\n"
      "F d/stargz.index.json y"},
     {{"/stargz.index.json", NULL},
      {"/.no.prefetch.landmark", NULL},
      {"/d/stargz.index.json", "y"}}},
    {"a hard link to a lower layer", {"F a x", "H b a"}, {{"/a", "x"}, {"/b", "x"}}},
    {"the target is named from the root", {"D d\nF d/a x\nF a y\nH d/b a"}, {{"/d/b", "y"}}},
    {"the target is found through links", {"D t\nF t/a x\nS d /t", "H b d/a"}, {{"/b", "x"}}},
    {"replacing one name leaves the others",
     {"F a x\nH b a\nH c a", "F a y"},
     {{"/a", "y"}, {"/b", "x"}, {"/c", "x"}}},
    {"a whiteout of one name leaves the others",
     {"F a x\nH b a", "F .wh.a"},
     {{"/a", NULL}, {"/b", "x"}}},
    {"a target replaced later in the layer", {"F a x\nH b a\nF a y"}, {{"/a", "y"}, {"/b", "x"}}},
    {"a hard link to itself", {"F a x", "H a a"}, {{"/a", "x"}}},
    {"a hard link over its target's folder", {"D d\nF d/a x\nH d d/a"}, {{"/d", "x"}}},
    {"a hard link of a symbolic link", {"F a x\nS l a\nH m l"}, {{"/a", "x"}}},
    {"lost+found can be described, not removed",
     {"D lost+found\nF lost+found/x x", "F .wh.lost+found"},
     {{"/lost+found", "/"}, {"/lost+found/x", NULL}}},
};

static void add_lines(struct image_fixture *f, const char *text)
{
    struct tar_build t;
    tb_init(&t);
    while (*text) {
        char line[256], kind, path[128], word[128] = "";
        size_t n = strcspn(text, "\n");
        assert_true(n < sizeof(line));
        memcpy(line, text, n);
        line[n] = '\0';
        assert_true(sscanf(line, "%c %127s %127s", &kind, path, word) >= 2);
        if (kind == 'D')
            tb_dir(&t, path);
        else if (kind == 'F')
            tb_file(&t, path, word);
        else
            tb_link(&t, kind == 'S' ? '2' : '1', path, word);
        text += n + (text[n] == '\n');
    }
    add_layer(f, &t);
}

static void check_expect(struct image_fixture *f, const char *rule, const struct expect *e)
{
    bool there = in_image(f, e->path);
    if (there != (e->content != NULL))
        fail_msg("%s: %s is %s", rule, e->path, there ? "there" : "missing");
    if (!there)
        return;
    CB_AUTO_FREE char *command =
        cb_xasprintf("%s %s", strcmp(e->content, "/") == 0 ? "stat" : "cat", e->path);
    CB_AUTO_FREE char *got = debugfs(f, command);
    if (strcmp(e->content, "/") == 0 ? !strstr(got, "Type: directory")
                                     : strcmp(got, e->content) != 0)
        fail_msg("%s: %s is \"%s\"", rule, e->path, got);
}

static void test_flatten_follows_the_rule(void **state)
{
    struct image_fixture *f = *state;
    for (size_t i = 0; i < sizeof(rules) / sizeof(*rules); i++) {
        const struct rule *r = &rules[i];
        f->n = 0;
        for (size_t k = 0; k < 4 && r->layers[k]; k++)
            add_lines(f, r->layers[k]);
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        (void)unlink(f->path);
        if (try_flatten(f, 0, &err) < 0)
            fail_msg("%s: %s", r->name, err.msg);
        assert_clean(f->path);
        for (size_t k = 0; k < MAX_EXPECT && r->expect[k].path; k++)
            check_expect(f, r->name, &r->expect[k]);
    }
}

/* What a whiteout hid must not show through in the attributes of a folder that is made again. */
static void test_flatten_gives_a_hidden_parent_default_attributes(void **state)
{
    struct image_fixture *f = *state;
    static const char *const upper[] = {"F .wh.d\nF d/y y", "F d/y y\nF .wh.d",
                                        "F .wh..wh..opq\nF d/y y", "F d/y y\nF .wh..wh..opq"};
    for (size_t i = 0; i < sizeof(upper) / sizeof(*upper); i++) {
        f->n = 0;
        struct tar_build t;
        tb_init(&t);
        t.mode = 02700;
        t.uid = 5;
        tb_pax_text(&t, "SCHILY.xattr.user.k", "v");
        tb_dir(&t, "d");
        add_layer(f, &t);
        add_lines(f, upper[i]);
        flatten_clean(f);
        assert_stat(f, "/d", "Mode:  0755");
        assert_stat(f, "/d", "User:     0");
        CB_AUTO_FREE char *attrs = debugfs(f, "ea_list /d");
        assert_null(strstr(attrs, "user.k"));
    }
}

static void test_flatten_replaces_all_attributes_of_a_folder(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    t.mode = 02770;
    t.uid = 5;
    tb_pax_text(&t, "SCHILY.xattr.user.old", "v");
    tb_dir(&t, "d");
    tb_file(&t, "d/x", "x");
    add_layer(f, &t);
    tb_init(&t);
    t.mode = 0701;
    tb_pax_text(&t, "SCHILY.xattr.user.new", "v");
    tb_dir(&t, "d");
    add_layer(f, &t);
    flatten_clean(f);
    assert_stat(f, "/d", "Mode:  0701");
    assert_stat(f, "/d", "User:     0");
    CB_AUTO_FREE char *attrs = debugfs(f, "ea_list /d");
    assert_non_null(strstr(attrs, "user.new"));
    assert_null(strstr(attrs, "user.old"));
    assert_content(f, "/d/x", "x");
}

/* An entry for a folder in a lower layer decides its time, not what later layers put into it. */
static void test_flatten_keeps_the_time_of_a_folder_that_only_changes(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    t.mtime = 1000000000;
    tb_dir(&t, "d");
    add_layer(f, &t);
    add_lines(f, "F d/x x");
    flatten_clean(f);
    assert_stat(f, "/d", "mtime: 0x3b9aca00:00000000");
}

/* What a later layer changes does not move what lies before: the data of the first layer stays. */
static void test_flatten_keeps_lower_layers_in_place(void **state)
{
    struct image_fixture *f = *state;
    struct tar_build t;
    tb_init(&t);
    for (int i = 0; i < 30; i++) {
        char name[16];
        (void)snprintf(name, sizeof(name), "f%d", i);
        tb_file(&t, name, name);
    }
    add_layer(f, &t);
    flatten_clean(f);
    CB_AUTO_FREE char *before = debugfs(f, "blocks /f20");
    CB_AUTO_FREE char *inode = debugfs(f, "ncheck 20");
    add_lines(f, "F .wh.f3\nF f4 changed\nF new new");
    flatten_clean(f);
    CB_AUTO_FREE char *after = debugfs(f, "blocks /f20");
    CB_AUTO_FREE char *inode_after = debugfs(f, "ncheck 20");
    assert_string_equal(before, after);
    assert_string_equal(inode, inode_after);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_image(test_flatten_follows_the_rule),
        test_image(test_flatten_gives_a_hidden_parent_default_attributes),
        test_image(test_flatten_replaces_all_attributes_of_a_folder),
        test_image(test_flatten_keeps_the_time_of_a_folder_that_only_changes),
        test_image(test_flatten_keeps_lower_layers_in_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
