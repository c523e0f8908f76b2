/* .dockerignore rules and names with wildcards, as Docker reads them. */
#include "check.h"
#include "schemas/ignore.h"
#include "schemas/pattern.h"

#include <time.h>

static const struct {
    const char *pattern, *name;
    bool deep, fits;
} matches[] = {
    /* as in Go's filepath.Match */
    {"abc", "abc", false, true},
    {"*", "abc", false, true},
    {"*c", "abc", false, true},
    {"a*", "a", false, true},
    {"a*", "ab/c", false, false},
    {"a*/b", "abc/b", false, true},
    {"a*/b", "a/c/b", false, false},
    {"a*b*c*d*e*/f", "axbxcxdxe/f", false, true},
    {"a*b*c*d*e*/f", "axbxcxdxexxx/fff", false, false},
    {"a*b?c*x", "abxbbxdbxebxczzx", false, true},
    {"a*b?c*x", "abxbbxdbxebxczzy", false, false},
    {"ab[c]", "abc", false, true},
    {"ab[b-d]", "abc", false, true},
    {"ab[e-g]", "abc", false, false},
    {"ab[^c]", "abc", false, false},
    {"ab[^b-d]", "abc", false, false},
    {"ab[^e-g]", "abc", false, true},
    {"a\\*b", "a*b", false, true},
    {"a\\*b", "ab", false, false},
    {"a?b",
     "a\xe2\x98\xba"
     "b",
     false, true},
    {"a[^a]b",
     "a\xe2\x98\xba"
     "b",
     false, true},
    {"a???b",
     "a\xe2\x98\xba"
     "b",
     false, false},
    {"[a-\xce\xb6]*", "\xce\xb1", false, true},
    {"*[a-\xce\xb6]", "A", false, false},
    {"a?b", "a/b", false, false},
    {"a*b", "a/b", false, false},
    {"[^x]", "/", false, false},
    {"[\\]a]", "]", false, true},
    {"[\\-]", "-", false, true},
    {"[x\\-]", "x", false, true},
    {"[\\-x]", "a", false, false},
    {"*x", "xxx", false, true},
    {"a**b", "axyb", false, true},
    {"?", "\xff", false, true},
    {"", "", false, true},
    {"", "x", false, false},
    /* with `**`, as in moby's patternmatcher */
    {"**", "file", true, true},
    {"**", "dir/file", true, true},
    {"**/", "dir/file", true, true},
    {"**/**", "dir/file", true, true},
    {"dir/**", "dir/file", true, true},
    {"dir/**", "dir/dir2/file", true, true},
    {"dir/**", "dir", true, false},
    {"**/dir2/*", "dir/dir2/file", true, true},
    {"**/dir2/*", "dir/dir2/dir3/file", true, false},
    {"**file", "file", true, true},
    {"**file", "dir/file", true, true},
    {"**file", "dir/dirfile", true, false},
    {"**/file", "dir/dir/file", true, true},
    {"**/file*", "dir/dir/file.txt", true, true},
    {"**/file*txt*", "dir/dir/file.txt", true, true},
    {"**/**/*.txt", "dir/dir/file.txt", true, true},
    {"**/*.txt2", "dir/dir/file.txt", true, false},
    {"a**/*.txt", "a/file.txt", true, true},
    {"a**/*.txt", "a/dir/file/.txt", true, true},
    {"a**/*.txt", "a/dir/dir/file.txt", true, true},
    {"a[b-d]e", "ae", true, false},
    {"abc.def", "abcZdef", true, false},
    {"a(b)c/def", "a(b)c/xyz", true, false},
    {"a.|)$(}+{bc", "a.|)$(}+{bc", true, true},
    {"foo/**/bar", "foo/bar", true, true},
    {"foo/**/bar", "foo/a/b/bar", true, true},
    {"foo/**/bar", "fooa/bar", true, false},
};

static void test_matches(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(matches) / sizeof(matches[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct pattern *p = NULL;
        assert_ok(pattern_compile(matches[i].pattern, matches[i].deep ? PATTERN_DEEP : 0, &p, &err),
                  &err);
        if (pattern_match(p, matches[i].name) != matches[i].fits)
            fail_msg("%s and %s: expected %d", matches[i].pattern, matches[i].name,
                     matches[i].fits);
        pattern_free(p);
    }
    assert_true(pattern_is_wild("a[b]") && pattern_is_wild("a\\b") && !pattern_is_wild("a.b"));
}

static void test_what_is_no_pattern(void **state)
{
    static const struct {
        const char *text, *what;
    } bad[] = {
        {"[", "a bracket that is not closed"},   {"[^", "a bracket that is not closed"},
        {"[]a]", "or has nothing in it"},        {"[a", "a bracket that is not closed"},
        {"[-x]", "a bracket that is not"},       {"[a-]", "a range in brackets that has no end"},
        {"[a-b-c]", "a bracket that is not"},    {"a\\", "a backslash with nothing behind it"},
        {"[b-a]", "that ends before it begins"}, {"[a\\", "a bracket that is not closed"},
    };
    (void)state;
    struct pattern *p = NULL;
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        assert_fails(pattern_compile(bad[i].text, 0, &p, &err), &err, CB_E_CONFIG, bad[i].what);
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *longest = cb_xcalloc(1, PATTERN_MAX + 2);
    memset(longest, 'a', PATTERN_MAX + 1);
    assert_fails(pattern_compile(longest, 0, &p, &err), &err, CB_E_CONFIG,
                 "a pattern of more than 4096 bytes");
    assert_ok(pattern_compile("*", 0, &p, &err), &err);
    assert_false(pattern_match(p, longest));
    pattern_free(p);
}

/* Stars that could each take anything: what a matcher that tries them all never ends at. */
static void test_stars_take_no_longer(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct pattern *p = NULL;
    char text[1001], stars[1001];
    for (size_t i = 0; i < 1000; i++) {
        text[i] = 'a';
        stars[i] = i % 2 ? '*' : 'a';
    }
    text[1000] = stars[1000] = '\0';
    stars[998] = 'b';
    clock_t before = clock();
    assert_ok(pattern_compile(stars, PATTERN_DEEP, &p, &err), &err);
    assert_false(pattern_match(p, text));
    assert_true(clock() - before < 5 * CLOCKS_PER_SEC);
    pattern_free(p);
}

static void test_clean(void **state)
{
    static const char *const paths[][2] = {
        {"", "."},
        {".", "."},
        {"a", "a"},
        {"a//b/./c/", "a/b/c"},
        {"a/..", "."},
        {"a/../b", "b"},
        {"../a", "../a"},
        {"../../a/..", "../.."},
        {"/", "/"},
        {"/..", "/"},
        {"/../a//b", "/a/b"},
        {"/a/b/../..", "/"},
        {"a/../../b", "../b"},
        {"...", "..."},
        {"a/..b/..", "a"},
    };
    (void)state;
    for (size_t i = 0; i < sizeof(paths) / sizeof(paths[0]); i++) {
        CB_AUTO_FREE char *got = path_clean(paths[i][0]);
        assert_string_equal(got, paths[i][1]);
    }
}

static const struct {
    const char *rules, *path;
    bool out;
} ignored[] = {
    {"", "a", false},
    {"# a comment\n\n  \na", "a", true},
    {"#a", "#a", false},
    {" #a", "#a", true}, /* Docker looks for it in the first column */
    {"\xef\xbb\xbf"
     "a",
     "a", true},
    {"a\r\nb\r\n", "b", true},
    {"/a", "a", true},
    {"./a/", "a", true},
    {"  a  ", "a", true},
    {"a", "a/b/c", true},
    {"a", "b/a", false},
    {"**/a", "b/a", true},
    {"*.o", "x.o", true},
    {"*.o", "d/x.o", false},
    {"**/*.o", "d/x.o", true},
    {"*\n!README.md", "README.md", false},
    {"*\n!README.md", "other", true},
    {"*.md\n!README*.md\nREADME-secret.md", "README-secret.md", true},
    {"*.md\nREADME-secret.md\n!README*.md", "README-secret.md", false},
    {"a\n!a/b", "a/b", false},
    {"a\n!a/b", "a/b/c", false},
    {"a\n!a/b", "a/c", true},
    {"a\n!a/b\na/b/c", "a/b/c/d", true},
    {"! a", "a", false},
    {"a\n!/a", "a", false},
    {"docs\n!docs/**/keep", "docs/x/y/keep", false},
    {"**\n!src/**", "src/a/b", false},
    {"**\n!src/**", "src", true},
    {".", "a", false},
    {"../a", "a", false},
    {"/", "a", false},
    {"node_modules\n", "node_modules/x", true},
    {"no newline at the end", "no newline at the end", true},
};

static void test_rules(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(ignored) / sizeof(ignored[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct ignore *ig = NULL;
        assert_ok(ignore_parse(ignored[i].rules, strlen(ignored[i].rules), "x", &ig, &err), &err);
        if (ignore_match_path(ig, ignored[i].path) != ignored[i].out)
            fail_msg("rules \"%s\" and %s: expected %d", ignored[i].rules, ignored[i].path,
                     ignored[i].out);
        ignore_free(ig);
    }
    assert_false(ignore_match_path(NULL, "a"));
    assert_false(ignore_takes_back(NULL));
}

static void test_what_is_no_rule(void **state)
{
    (void)state;
    struct ignore *ig = NULL;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_fails(ignore_parse("a\n\n!\n", 5, "f", &ig, &err), &err, CB_E_CONFIG,
                 "f:3: !: \"!\" without a pattern");
    assert_fails(ignore_parse("a\n[\n", 4, "f", &ig, &err), &err, CB_E_CONFIG,
                 "f:2: [: a bracket that is not closed");
    assert_fails(ignore_parse("a\0b", 3, "f", &ig, &err), &err, CB_E_CONFIG, "f:1: a NUL byte");
    CB_AUTO_FREE char *many = cb_xcalloc(1, 2 * (IGNORE_RULES_MAX + 1));
    for (size_t i = 0; i <= IGNORE_RULES_MAX; i++)
        memcpy(many + 2 * i, "a\n", 2);
    assert_fails(ignore_parse(many, 2 * (IGNORE_RULES_MAX + 1), "f", &ig, &err), &err, CB_E_CONFIG,
                 "f:10001: more than 10000 rules");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_matches),
        cmocka_unit_test(test_what_is_no_pattern),
        cmocka_unit_test(test_stars_take_no_longer),
        cmocka_unit_test(test_clean),
        cmocka_unit_test(test_rules),
        cmocka_unit_test(test_what_is_no_rule),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
