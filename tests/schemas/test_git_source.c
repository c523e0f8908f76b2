/* URLs of repositories, and what .gitmodules files say. */
#include "check.h"
#include "schemas/git_source.h"

static void test_urls(void **state)
{
    static const struct {
        const char *url;
        bool valid, password;
    } urls[] = {
        {"https://h.example/a.git", true, false},
        {"http://h/a", true, false},
        {"ssh://git@h/a", true, false},
        {"git://h/a", true, false},
        {"file:///a/b", true, false},
        {"git@h:a/b", true, false},
        {"https://u:p@h/a", true, true},
        {"https://u@h/a:b", true, false},
        {"https://h:8080/a@b", true, false},
        {"file://h/a", false, false},
        {"ftp://h/a", false, false},
        {"/a/b", false, false},
        {"h:a", false, false},
        {"@h:a", false, false},
        {"git@h:", false, false},
        {"-oProxy@h:a", false, false},
        {"https://", false, false},
        {"https://h/a b", false, false},
        {"ext::sh -c x", false, false},
        {"", false, false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(urls) / sizeof(urls[0]); i++) {
        if (git_url_valid(urls[i].url) != urls[i].valid ||
            git_url_has_password(urls[i].url) != urls[i].password)
            fail_msg("%s", urls[i].url);
    }
}

static void test_urls_of_submodules(void **state)
{
    static const struct {
        const char *parent, *url, *want; /* NULL: refused, with what `says` */
        const char *says;
    } cases[] = {
        {"https://h/o/a.git", "../b.git", "https://h/o/b.git", NULL},
        {"https://h/o/a/", "../b", "https://h/o/b", NULL},
        {"https://h/o/a", "../../p/b", "https://h/p/b", NULL},
        {"https://h/o/a", "./b", "https://h/o/a/b", NULL},
        {"https://h/o/a", "../../../b", NULL, "leads above https://h/o/a"},
        {"git@h:o/a.git", "../b.git", "git@h:o/b.git", NULL},
        {"git@h:o/a.git", "../../b.git", "git@h:b.git", NULL},
        {"git@h:o/a.git", "../../../b", NULL, "leads above"},
        {"file:///x/a", "../b", "file:///x/b", NULL},
        {"file:///a", "../b", "file:///b", NULL},
        {"file:///a", "../../b", NULL, "leads above"},
        {"file:///a", "https://h/b", "https://h/b", NULL},
        {"ssh://git@h:22/a", "../b", "ssh://git@h:22/b", NULL},
        {"https://h/a", "git@h:b", "git@h:b", NULL},
        {"https://h/a", "/etc", NULL, "is none that is fetched"},
        {"https://h/a", "file:///etc", NULL, "leads to this machine's files"},
        {"https://h/a", "https://u:p@h/b", NULL, "is none that is fetched"},
        {"https://h/a", "-u", NULL, "is none that is fetched"},
        {"https://h/a", "ext::sh", NULL, "is none that is fetched"},
        {"https://h/a", "", NULL, "is none that is fetched"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *got = NULL;
        int rc = git_module_url(cases[i].parent, cases[i].url, &got, &err);
        if (!cases[i].want) {
            assert_fails(rc, &err, CB_E_UNTRUSTED, cases[i].says);
            continue;
        }
        assert_ok(rc, &err);
        assert_string_equal(got, cases[i].want);
    }
}

static void test_modules(void **state)
{
    (void)state;
    static const char text[] = "# a comment\n"
                               "[submodule \"one\"]\n"
                               "\tpath = a/b\n"
                               "\turl = ../b.git ; here\n"
                               "\n"
                               "[core]\n\tpath = not\n[submodule]\n\turl = not\n"
                               "[include]\n\tpath = /etc/passwd\n"
                               "[Submodule \"t \\\" wo\"]\r\n"
                               "  URL=\"https://h/x y\" \r\n"
                               "  branch\n"
                               "  Path = with \"  blanks\" \\\n  and more  \n"
                               "[submodule \"three\"] path = c\n"
                               "url = a\\\\b\\tc\\n\\\"\\b # end";
    struct git_modules m;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(git_modules_parse(text, sizeof(text) - 1, &m, &err), &err);
    assert_int_equal(m.n, 3);
    assert_string_equal(m.v[0].path, "a/b");
    assert_string_equal(git_modules_url(&m, "a/b"), "../b.git");
    assert_string_equal(m.v[1].url, "https://h/x y");
    assert_string_equal(m.v[1].path, "with   blanks   and more");
    assert_string_equal(git_modules_url(&m, "c"), "a\\b\tc\n\"\b");
    assert_null(git_modules_url(&m, "not"));
    git_modules_release(&m);
    assert_ok(git_modules_parse("", 0, &m, &err), &err);
    assert_int_equal(m.n, 0);
}

static void test_what_is_no_gitmodules(void **state)
{
    static const char *const bad[] = {
        "[submodule \"a\n",
        "[submodule \"a\"",
        "[submodule \"a\" x]",
        "[",
        "= x",
        "1 = x",
        "a b",
        "a = \"b",
        "a = \\x",
        "a = \\",
        "[submodule \"a\\",
    };
    (void)state;
    struct git_modules m;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++)
        assert_fails(git_modules_parse(bad[i], strlen(bad[i]), &m, &err), &err, CB_E_CORRUPT,
                     ".gitmodules:1: not as git writes it");
    assert_fails(git_modules_parse("\n\na = b\0c", 8, &m, &err), &err, CB_E_CORRUPT,
                 ".gitmodules:3: ");
    CB_AUTO_BUF many = CB_BUF_INIT(1 << 20);
    for (int i = 0; i <= GIT_MODULES_MAX; i++)
        (void)cb_buf_adds(&many, "[submodule \"a\"]\n");
    assert_fails(git_modules_parse(many.data, many.len, &m, &err), &err, CB_E_LIMIT,
                 ".gitmodules: more than 1000 submodules");
}

static void test_logins(void **state)
{
    static const char text[] = "https://u:p@h.example\r\n"
                               "nonsense\n"
                               "https://nobody@h2.example\n"
                               "https://a%40b:p%3a%25s@H2.example:8443\n"
                               "https://x:y@h3.example/o/r.git\n"
                               "https://bad:%zz@h4.example\n"
                               "https://cut:%4@h4.example\n"
                               "https://nul:a%00b@h4.example\n"
                               "https://first:1@h5.example\nhttps://second:2@h5.example";
    static const struct {
        const char *url, *user, *password; /* NULL: none */
    } cases[] = {
        {"https://h.example/o/r", "u", "p"},
        {"http://h.example/o/r", NULL, NULL},
        {"https://h.example:444/o/r", NULL, NULL},
        {"https://h.example.evil/o/r", NULL, NULL},
        {"https://evil/@h.example", NULL, NULL},
        {"https://h2.example:8443/r", "a@b", "p:%s"},
        {"https://h2.example/r", NULL, NULL},
        {"https://h3.example/o/r.git/", "x", "y"},
        {"https://h3.example/o/other.git", NULL, NULL},
        {"https://h4.example/r", NULL, NULL},
        {"https://h5.example/r", "first", "1"},
        {"https://second@h5.example/r", "second", "2"},
        {"https://third@h5.example/r", NULL, NULL},
        {"git@h.example:o", NULL, NULL},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char *user = NULL, *password = NULL;
        bool got = git_credentials_find(text, cases[i].url, &user, &password);
        if (got != (cases[i].user != NULL))
            fail_msg("%s", cases[i].url);
        if (!got)
            continue;
        assert_string_equal(user, cases[i].user);
        assert_string_equal(password, cases[i].password);
        free(user);
        free(password);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_urls),
        cmocka_unit_test(test_urls_of_submodules),
        cmocka_unit_test(test_modules),
        cmocka_unit_test(test_logins),
        cmocka_unit_test(test_what_is_no_gitmodules),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
