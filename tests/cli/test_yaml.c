#include "check.h"

#include "cli/yaml.h"

static void test_values(void **state)
{
    (void)state;
    static const struct {
        const char *json, *yaml;
    } cases[] = {
        {"{}", "{}\n"},
        {"[]", "[]\n"},
        {"{\"a\": 1, \"b\": true, \"c\": null, \"d\": {}, \"e\": []}",
         "a: 1\nb: true\nc: null\nd: {}\ne: []\n"},
        {"{\"a\": {\"b\": [1, {\"c\": \"x\", \"d\": [\"y\"]}]}}",
         "a:\n  b:\n    - 1\n    - c: x\n      d:\n        - \"y\"\n"},
        {"[[1, 2], [[]]]", "- - 1\n  - 2\n- - []\n"},
        /* what a reader would take for something else is quoted */
        {"[\"true\", \"No\", \"12\", \"-c\", \"\", \"a: b\", \"a #b\", \"a:\", \"x \", "
         "\"2026-01-02\"]",
         "- \"true\"\n- \"No\"\n- \"12\"\n- \"-c\"\n- \"\"\n- \"a: b\"\n- \"a #b\"\n- \"a:\"\n- "
         "\"x \"\n"
         "- \"2026-01-02\"\n"},
        {"[\"debian:bookworm\", \"apt-get install -y curl\", \"/srv/a,b\"]",
         "- debian:bookworm\n- apt-get install -y curl\n- /srv/a,b\n"},
        {"[\"say \\\"hi\\\" \\\\\", \"*x\", \"&x\", \"{x}\"]",
         "- \"say \\\"hi\\\" \\\\\"\n- \"*x\"\n- \"&x\"\n- \"{x}\"\n"},
        {"{\"a b: c\": 1, \"3\": 2}", "\"a b: c\": 1\n\"3\": 2\n"},
        /* lines */
        {"{\"s\": \"a\\n  b\\n\\nc\"}", "s: |-\n  a\n    b\n\n  c\n"},
        {"{\"s\": \"a\\nb\\n\"}", "s: |\n  a\n  b\n"},
        {"{\"s\": \"a\\nb\\n\\n\"}", "s: |+\n  a\n  b\n\n"},
        {"[\"a\\nb\\n\"]", "- |\n  a\n  b\n"},
        {"{\"s\": \" a\\nb\"}", "s: \" a\\nb\"\n"},
        {"{\"s\": \"a\\tb\\nc\"}", "s: \"a\\tb\\nc\"\n"},
        /* nothing moves a cursor or hides text */
        {"[\"\\u001b[2J\", \"a\\rb\", \"\\u007f\", \"\\u009b1m\", \"\\u202e\", \"\\u2066\", "
         "\"\\ufeff\"]",
         "- \"\\u001b[2J\"\n- \"a\\u000db\"\n- \"\\u007f\"\n- \"\\u009b1m\"\n- \"\\u202e\"\n- "
         "\"\\u2066\"\n"
         "- \"\\ufeff\"\n"},
        {"[\"gr\\u00fc\\u00df \\u6f22\"]", "- \"gr\xc3\xbc\xc3\x9f \xe6\xbc\xa2\"\n"},
        {"{\"s\": \"a\\n\\u001b[2J\"}", "s: \"a\\n\\u001b[2J\"\n"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        json_auto_t *v = json_loads(cases[i].json, 0, NULL);
        assert_non_null(v);
        CB_AUTO_BUF out = CB_BUF_INIT(1 << 16);
        yaml_write(v, &out);
        assert_string_equal(out.data, cases[i].yaml);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_values)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
