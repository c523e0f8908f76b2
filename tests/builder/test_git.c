/* Repositories as sources: mirrors, and trees that no git would have written. */
#include "builder/git_call.h"
#include "builder/git_tree.h"
#include "builder/sweep.h"
#include "check.h"

#include <fcntl.h>
#include <git2.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/stat.h>

static struct settings settings;

/* libgit2 1.5 loses what each match of a regular expression took (it reads a config file with
 * them). The name is the sanitizer's. */
const char *__lsan_default_suppressions(void); // NOLINT(bugprone-reserved-identifier,cert-dcl37-c)
const char *__lsan_default_suppressions(void)  // NOLINT(bugprone-reserved-identifier,cert-dcl37-c)
{
    return "leak:libpcre2-8\n";
}

/* ---- making repositories ---- */

static git_repository *make_repo(const char *dir, const char *name)
{
    CB_AUTO_FREE char *path = cb_xasprintf("%s/%s", dir, name);
    git_repository *repo = NULL;
    assert_int_equal(git_repository_init(&repo, path, 1), 0);
    return repo;
}

static git_oid blob(git_repository *repo, const char *text)
{
    git_oid id;
    assert_int_equal(git_blob_create_from_buffer(&id, repo, text, strlen(text)), 0);
    return id;
}

/* A tree as it is written in the object database, whatever its names are. */
struct raw_tree {
    char data[4096];
    size_t n;
};

static void add(struct raw_tree *t, const char *mode, const char *name, git_oid id)
{
    int n = snprintf(t->data + t->n, sizeof(t->data) - t->n, "%s %s", mode, name);
    t->n += (size_t)n + 1;
    memcpy(t->data + t->n, id.id, GIT_OID_RAWSZ);
    t->n += GIT_OID_RAWSZ;
}

static git_oid write_tree(git_repository *repo, const struct raw_tree *t)
{
    git_odb *odb = NULL;
    git_oid id;
    assert_int_equal(git_repository_odb(&odb, repo), 0);
    assert_int_equal(git_odb_write(&id, odb, t->data, t->n, GIT_OBJECT_TREE), 0);
    git_odb_free(odb);
    return id;
}

static void commit_tree(git_repository *repo, git_oid tree_id, const char *ref, char *commit)
{
    git_odb *odb = NULL;
    git_oid id;
    char tree[GIT_COMMIT_LEN + 1];
    (void)git_oid_tostr(tree, sizeof(tree), &tree_id);
    CB_AUTO_FREE char *text = cb_xasprintf("tree %s\nauthor a <a@b> 1700000000 +0000\n"
                                           "committer a <a@b> 1700000000 +0000\n\nm\n",
                                           tree);
    assert_int_equal(git_repository_odb(&odb, repo), 0);
    assert_int_equal(git_odb_write(&id, odb, text, strlen(text), GIT_OBJECT_COMMIT), 0);
    git_odb_free(odb);
    (void)git_oid_tostr(commit, GIT_COMMIT_LEN + 1, &id);
    git_reference *r = NULL;
    if (ref)
        assert_int_equal(git_reference_create(&r, repo, ref, &id, 1, "m"), 0);
    git_reference_free(r);
}

static int pack(git_repository *repo, const char *url, const char *commit, const char *path,
                struct pack_sum *sum, struct cb_error *err)
{
    struct context_place place = {.folder = false};
    struct git_tree_request r = {
        .settings = &settings, .url = url, .commit = commit, .path = path, .fetch = true};
    struct pack *p = pack_new(-1);
    int rc = git_tree_pack(&r, repo, p, &place, err);
    if (rc >= 0)
        rc = pack_end(p, sum, err);
    pack_free(p);
    return rc;
}

/* ---- trees ---- */

static void test_names_that_git_would_not_check_out(void **state)
{
    static const struct {
        const char *mode, *name;
        enum cb_code code;
        const char *says;
    } cases[] = {
        {"100644", "..", CB_E_UNTRUSTED, "would not check out"},
        {"100644", ".", CB_E_UNTRUSTED, "would not check out"},
        {"100644", "a/b", CB_E_UNTRUSTED, "would not check out"},
        {"100644", "/etc/passwd", CB_E_UNTRUSTED, "would not check out"},
        {"100644", "../up", CB_E_UNTRUSTED, "would not check out"},
        {"40000", ".git", CB_E_UNTRUSTED, "would not check out"},
        {"40000", ".GIT", CB_E_UNTRUSTED, "would not check out"},
        {"40000", "GIT~1", CB_E_UNTRUSTED, "would not check out"},
        {"160000", "mod", CB_E_CORRUPT, "a submodule that .gitmodules says nothing about"},
    };
    git_repository *repo = make_repo(*state, "r");
    git_oid content = blob(repo, "x");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct raw_tree t = {.n = 0};
        char commit[GIT_COMMIT_LEN + 1];
        struct pack_sum sum;
        add(&t, cases[i].mode, cases[i].name, content);
        commit_tree(repo, write_tree(repo, &t), NULL, commit);
        assert_fails(pack(repo, "https://h/r", commit, NULL, &sum, &err), &err, cases[i].code,
                     cases[i].says);
    }
    git_repository_free(repo);
}

static void test_a_link_whose_target_is_no_path(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    git_repository *repo = make_repo(*state, "r");
    CB_AUTO_FREE char *big = cb_xcalloc(1, FRAME_PATH_MAX + 2);
    memset(big, 'a', FRAME_PATH_MAX + 1);
    struct raw_tree t = {.n = 0};
    char commit[GIT_COMMIT_LEN + 1];
    struct pack_sum sum;
    add(&t, "120000", "link", blob(repo, big));
    commit_tree(repo, write_tree(repo, &t), NULL, commit);
    assert_fails(pack(repo, "https://h/r", commit, NULL, &sum, &err), &err, CB_E_UNTRUSTED,
                 "link: a link whose target is no path");
    git_repository_free(repo);
}

/* A few trees that name each other twice are more files than there are. */
static void test_a_tree_that_multiplies(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    git_repository *repo = make_repo(*state, "r");
    struct raw_tree t = {.n = 0};
    char commit[GIT_COMMIT_LEN + 1];
    struct pack_sum sum;
    add(&t, "100644", "f", blob(repo, "x"));
    git_oid id = write_tree(repo, &t);
    for (int i = 0; i < 40; i++) {
        t.n = 0;
        add(&t, "40000", "a", id);
        add(&t, "40000", "b", id);
        id = write_tree(repo, &t);
    }
    commit_tree(repo, id, NULL, commit);
    assert_fails(pack(repo, "https://h/r", commit, NULL, &sum, &err), &err, CB_E_LIMIT,
                 "more than 1000000 files");
    for (int i = 0; i < 200; i++) {
        t.n = 0;
        add(&t, "40000", "a", id);
        id = write_tree(repo, &t);
    }
    commit_tree(repo, id, NULL, commit);
    assert_fails(pack(repo, "https://h/r", commit, NULL, &sum, &err), &err, CB_E_LIMIT,
                 "too many folders in folders");
    git_repository_free(repo);
}

/* One that has itself as a submodule, and one that reaches for this machine's files. */
static void test_submodules_that_are_not_followed(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    git_repository *repo = make_repo(*state, "r");
    CB_AUTO_FREE char *url = cb_xasprintf("file://%s/r", (char *)*state);
    char commit[GIT_COMMIT_LEN + 1];
    git_oid id = {{1}};
    struct raw_tree t = {.n = 0};
    struct pack_sum sum;
    add(&t, "100644", ".gitmodules",
        blob(repo, "[submodule \"a\"]\npath = mod\nurl = file:///etc\n"));
    add(&t, "160000", "mod", id);
    commit_tree(repo, write_tree(repo, &t), "refs/heads/main", commit);
    assert_fails(pack(repo, "https://h/r", commit, NULL, &sum, &err), &err, CB_E_UNTRUSTED,
                 "leads to this machine's files");
    assert_fails(pack(repo, url, commit, NULL, &sum, &err), &err, CB_E_NET, "submodule mod: ");
    t.n = 0;
    add(&t, "100644", ".gitmodules", blob(repo, "[submodule \"a\""));
    commit_tree(repo, write_tree(repo, &t), NULL, commit);
    assert_fails(pack(repo, url, commit, NULL, &sum, &err), &err, CB_E_CORRUPT, ".gitmodules:1");
    git_repository_free(repo);
}

/* Each commit has the one before it as a submodule of its own repository. */
static void test_submodules_in_submodules_end(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    git_repository *repo = make_repo(*state, "r");
    CB_AUTO_FREE char *url = cb_xasprintf("file://%s/r", (char *)*state);
    CB_AUTO_FREE char *modules = cb_xasprintf("[submodule \"a\"]\npath = mod\nurl = %s\n", url);
    char commit[GIT_COMMIT_LEN + 1];
    struct raw_tree t = {.n = 0};
    struct pack_sum sum;
    add(&t, "100644", "f", blob(repo, "x"));
    commit_tree(repo, write_tree(repo, &t), "refs/heads/main", commit);
    for (int i = 1; i <= 9; i++) {
        CB_AUTO_FREE char *ref = cb_xasprintf("refs/heads/b%d", i);
        git_oid id;
        assert_int_equal(git_oid_fromstr(&id, commit), 0);
        t.n = 0;
        add(&t, "100644", ".gitmodules", blob(repo, modules));
        add(&t, "160000", "mod", id);
        commit_tree(repo, write_tree(repo, &t), ref, commit);
        if (i == 9)
            break;
        assert_ok(pack(repo, url, commit, NULL, &sum, &err), &err);
        assert_int_equal(sum.entries, 2 * i + 1);
    }
    assert_fails(pack(repo, url, commit, NULL, &sum, &err), &err, CB_E_LIMIT,
                 "too many submodules in submodules");
    git_repository_free(repo);
}

/* ---- mirrors ---- */

/* A server that takes the question and never answers is given up. */
static void test_silence_ends(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof(at);
    CB_AUTO_FD fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&at, len), 0);
    assert_int_equal(listen(fd, 4), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&at, &len), 0);
    CB_AUTO_FREE char *url = cb_xasprintf("git://127.0.0.1:%u/r", ntohs(at.sin_port));
    struct git_found found = {.commit = ""};
    git_repository *mirror = NULL;
    uint64_t bytes;
    assert_fails(git_ref_resolve(&settings, url, "main", 200, &found, &err), &err, CB_E_TIMEOUT,
                 "no answer within 0 s");
    /* the other end of the connection ends with @fd, and so does the thread */
    cb_close(cb_take_fd(&fd));
    memset(found.commit, 'a', GIT_COMMIT_LEN);
    assert_fails(git_mirror_fetch(&settings, url, &found, &bytes, &mirror, &err), &err, CB_E_NET,
                 "git://127.0.0.1:");
}

static void test_a_mirror_brings_what_is_new(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    git_repository *repo = make_repo(*state, "r"), *mirror = NULL;
    CB_AUTO_FREE char *url = cb_xasprintf("file://%s/r", (char *)*state);
    struct raw_tree t = {.n = 0};
    struct git_found one = {.commit = ""}, two = {.commit = ""}, asked;
    uint64_t bytes = 0;
    add(&t, "100644", "f", blob(repo, "first"));
    commit_tree(repo, write_tree(repo, &t), "refs/heads/dir", one.commit);
    assert_fails(git_mirror_open(&settings, url, one.commit, &mirror, &err), &err, CB_E_NOTFOUND,
                 "was not fetched yet");
    assert_ok(git_ref_resolve(&settings, url, "dir", 20000, &asked, &err), &err);
    assert_string_equal(asked.commit, one.commit);
    assert_string_equal(asked.name, "refs/heads/dir");
    assert_int_equal(git_mirror_fetch(&settings, url, &asked, &bytes, &mirror, &err), 1);
    git_repository_free(mirror);
    assert_int_equal(git_mirror_fetch(&settings, url, &asked, &bytes, &mirror, &err), 0);
    assert_int_equal(bytes, 0);
    git_repository_free(mirror);
    /* what was a branch is a folder of branches now */
    t.n = 0;
    add(&t, "100644", "f", blob(repo, "second"));
    git_reference *r = NULL;
    assert_int_equal(git_reference_lookup(&r, repo, "refs/heads/dir"), 0);
    assert_int_equal(git_reference_delete(r), 0);
    git_reference_free(r);
    commit_tree(repo, write_tree(repo, &t), "refs/heads/dir/two", two.commit);
    assert_ok(git_ref_resolve(&settings, url, "dir/two", 20000, &asked, &err), &err);
    assert_int_equal(git_mirror_fetch(&settings, url, &asked, &bytes, &mirror, &err), 1);
    git_repository_free(mirror);
    /* one that nobody has used for long goes */
    uint64_t n = 0, taken = 0;
    CB_AUTO_FREE char *old = cb_xasprintf("%s/git/old", settings.home);
    CB_AUTO_FREE char *old_lock = cb_xasprintf("%s.lock", old);
    assert_ok(cb_mkdir_p(old, 0700, &err), &err);
    assert_ok(cb_write_file(old_lock, "", 0, 0600, &err), &err);
    git_mirrors(settings.home, &n, &taken);
    assert_int_equal(n, 2);
    assert_true(taken > 0);
    const struct timespec long_ago[2] = {{.tv_sec = 1}, {.tv_sec = 1}};
    assert_int_equal(utimensat(AT_FDCWD, old_lock, long_ago, 0), 0);
    t.n = 0;
    add(&t, "100644", "f", blob(repo, "third"));
    commit_tree(repo, write_tree(repo, &t), "refs/heads/third", asked.commit);
    (void)snprintf(asked.name, sizeof(asked.name), "refs/heads/third");
    assert_int_equal(git_mirror_fetch(&settings, url, &asked, &bytes, &mirror, &err), 1);
    git_repository_free(mirror);
    assert_false(cb_path_exists(old));
    git_mirrors(settings.home, &n, &taken);
    assert_int_equal(n, 1);
    /* by the commit alone, into a mirror that is new */
    CB_AUTO_FREE char *dir = cb_xasprintf("%s/git", settings.home);
    assert_ok(cb_remove_tree(dir, &err), &err);
    memset(&asked, 0, sizeof(asked));
    memcpy(asked.commit, two.commit, sizeof(asked.commit));
    assert_int_equal(git_mirror_fetch(&settings, url, &asked, &bytes, &mirror, &err), 1);
    git_repository_free(mirror);
    memset(asked.commit, 'e', GIT_COMMIT_LEN);
    assert_fails(git_mirror_fetch(&settings, url, &asked, &bytes, &mirror, &err), &err,
                 CB_E_NOTFOUND, "no branch or tag of it leads to commit eeee");
    git_repository_free(repo);
}

static int setup(void **state)
{
    int rc = check_dir_setup(state);
    CB_AUTO_FREE char *home = cb_xasprintf("%s/home", (char *)*state);
    settings.home = cb_xstrdup(home);
    git_prepare(&settings);
    return rc;
}

static int teardown(void **state)
{
    free(settings.home);
    return check_dir_teardown(state);
}

#define test_with_home(f) cmocka_unit_test_setup_teardown(f, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test_with_home(test_names_that_git_would_not_check_out),
        test_with_home(test_a_link_whose_target_is_no_path),
        test_with_home(test_a_tree_that_multiplies),
        test_with_home(test_submodules_that_are_not_followed),
        test_with_home(test_submodules_in_submodules_end),
        test_with_home(test_silence_ends),
        test_with_home(test_a_mirror_brings_what_is_new),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
