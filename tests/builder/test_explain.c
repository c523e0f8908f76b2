/* What differs between two builds of one config, in the words of the log. */
#include "check.h"

#include "builder/explain.h"

#include <jansson.h>

#define A "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define B "sha256:bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

#define BASE(ref, digest)                                                                          \
    "{'base_image':'" ref "','base':{'architecture':'amd64','base':'" digest                       \
    "','platform_version':1},'layers':["
#define LAYER(name, parent, rest)                                                                  \
    "{'name':'" name "','inputs':{'parent':'" parent "','platform_version':1," rest "}}"
#define END "],'template':{}}"
#define TEMPLATE(t) "],'template':{" t "}}"

#define ONE "'commands':[{'script':'one'}]"
#define TWO "'commands':[{'script':'one'},{'script':'two'}]"

/* Single quotes stand for double ones. */
static json_t *record(const char *text)
{
    CB_AUTO_FREE char *copy = cb_xstrdup(text);
    for (char *p = copy; *p; p++)
        if (*p == '\'')
            *p = '"';
    json_error_t je;
    json_t *o = json_loads(copy, 0, &je);
    if (!o)
        fail_msg("%s: %s", je.text, copy);
    return o;
}

static void check_text(char *got, const char *want, const char *what)
{
    if ((got && want) ? strcmp(got, want) != 0 : got != want)
        fail_msg("%s: found %s, expected %s", what, got ? got : "(nothing)",
                 want ? want : "(nothing)");
    free(got);
}

static void test_layers(void **state)
{
    (void)state;
    static const struct {
        const char *last, *now;
        size_t layer;
        const char *want;
    } cases[] = {
        {BASE("debian", A) LAYER("a", "p", ONE) END, BASE("debian", A) LAYER("a", "p", ONE) END, 0,
         NULL},
        {NULL, BASE("debian", A) LAYER("a", "p", ONE) END, 0, "not built before"},
        /* commands */
        {BASE("debian", A) LAYER("a", "p", TWO) END,
         BASE("debian", A) LAYER("a", "p", "'commands':[{'script':'one'},{'script':'zwei'}]") END,
         0, "command 2 changed"},
        {BASE("debian", A) LAYER("a", "p", ONE) END, BASE("debian", A) LAYER("a", "p", TWO) END, 0,
         "command 2 is new"},
        {BASE("debian", A) LAYER("a", "p", TWO) END, BASE("debian", A) LAYER("a", "p", ONE) END, 0,
         "command 2 was removed"},
        {BASE("debian", A) LAYER("a", "p", TWO) END,
         BASE("debian", A) LAYER("a", "p", "'commands':[{'script':'two'},{'script':'one'}]") END, 0,
         "command 1 changed"},
        {BASE("debian", A) LAYER("a", "p", ONE) END,
         BASE("debian", A) LAYER("a", "p", "'commands':[{'script':'one','run_as_root':true}]") END,
         0, "command 1 changed"},
        /* the first difference wins, in our order */
        {BASE("debian", A) LAYER("a", "p", ONE ",'user':'x','env':{'K':'1'}") END,
         BASE("debian", A) LAYER("a", "p", TWO ",'user':'y','env':{'K':'2'}") END, 0,
         "command 2 is new"},
        {BASE("debian", A) LAYER("a", "p", ONE ",'user':'x','env':{'K':'1'}") END,
         BASE("debian", A) LAYER("a", "p", ONE ",'user':'y','env':{'K':'2'}") END, 0,
         "env K changed"},
        /* maps, scalars, lists */
        {BASE("debian", A) LAYER("a", "p", ONE) END,
         BASE("debian", A) LAYER("a", "p", ONE ",'env':{'K':'1'}") END, 0, "env K is new"},
        {BASE("debian", A) LAYER("a", "p", ONE ",'env':{'J':'1','K':'1'}") END,
         BASE("debian", A) LAYER("a", "p", ONE ",'env':{'J':'1'}") END, 0, "env K was removed"},
        {BASE("debian", A) LAYER("a", "p", ONE ",'runner_user':'a'") END,
         BASE("debian", A) LAYER("a", "p", ONE ",'runner_user':'b'") END, 0,
         "runner_user changed from a to b"},
        {BASE("debian", A) LAYER("a", "p", ONE) END,
         BASE("debian", A) LAYER("a", "p", ONE ",'runner_user':'b'") END, 0,
         "runner_user is b now and was not set"},
        {BASE("debian", A) LAYER("a", "p", ONE ",'workdir':'/srv'") END,
         BASE("debian", A) LAYER("a", "p", ONE) END, 0, "workdir is not set now and was /srv"},
        {BASE("debian", A) LAYER("a", "p", ONE ",'user':'x'") END,
         BASE("debian", A) LAYER("a", "p", ONE ",'user':'a\\nb'") END, 0, "user changed"},
        {BASE("debian", A) LAYER("a", "p", ONE ",'secret_versions':{'t':'1'}") END,
         BASE("debian", A) LAYER("a", "p", ONE ",'secret_versions':{'t':'2'}") END, 0,
         "version of secret t changed"},
        {BASE("debian", A) LAYER("a", "p", ONE ",'drives':[{'drive_id':'d'}]") END,
         BASE("debian", A) LAYER("a", "p", ONE ",'drives':[{'drive_id':'e'}]") END, 0,
         "drive 1 changed"},
        {BASE("debian", A) LAYER("a", "p", ONE) END,
         BASE("debian", A) LAYER("a", "p", ONE ",'context':[{'src':'d'}]") END, 0,
         "context 1 is new"},
        {BASE("debian", A) LAYER("a", "p", ONE ",'later':{'x':1}") END,
         BASE("debian", A) LAYER("a", "p", ONE ",'later':{'x':2}") END, 0, "later x changed"},
        /* the platform version is in every key: it is the reason, not what it changes below */
        {BASE("debian", A) "{'name':'a','inputs':{'platform_version':1,'parent':'p'}}" END,
         BASE("debian", A) "{'name':'a','inputs':{'platform_version':2,'parent':'q'}}" END, 0,
         "platform version changed from 1 to 2"},
        /* what is below */
        {BASE("debian:bookworm", A) LAYER("a", "p", ONE) END,
         BASE("debian:bookworm", B) LAYER("a", "q", ONE) END, 0,
         "base image: debian:bookworm moved from " A " to " B},
        {BASE("debian:bookworm", A) LAYER("a", "p", ONE) END,
         BASE("alpine:3", B) LAYER("a", "q", ONE) END, 0,
         "base image: alpine:3 (" B ") in place of debian:bookworm (" A ")"},
        {BASE("debian:bookworm", A) LAYER("a", "p", ONE) "," LAYER("b", "p1", ONE) END,
         BASE("debian:bookworm", B) LAYER("a", "q", ONE) "," LAYER("b", "q1", ONE) END, 1,
         "base image: debian:bookworm moved from " A " to " B},
        {BASE("debian", A) LAYER("a", "p", ONE) "," LAYER("b", "p1", ONE) END,
         BASE("debian", A) LAYER("a", "p", TWO) "," LAYER("b", "q1", ONE) END, 1,
         "layer a below it: command 2 is new"},
        {BASE("debian", A) LAYER("a", "p", ONE) "," LAYER("b", "p1", ONE) "," LAYER("c", "p2", ONE)
             END,
         BASE("debian", A) LAYER("a", "p", TWO) "," LAYER("b", "q1", ONE) "," LAYER("c", "q2", ONE)
             END,
         2, "layer a below it: command 2 is new"},
        {BASE("debian", A) LAYER("b", "p", ONE) END,
         BASE("debian", A) LAYER("a", "p", ONE) "," LAYER("b", "q", ONE) END, 0, "new"},
        {BASE("debian", A) LAYER("b", "p", ONE) END,
         BASE("debian", A) LAYER("a", "p", ONE) "," LAYER("b", "q", ONE) END, 1,
         "layer a below it is new"},
        {BASE("debian", A) LAYER("a", "p", ONE) "," LAYER("b", "q", ONE) END,
         BASE("debian", A) LAYER("b", "p", ONE) END, 0, "layer a below it was removed"},
        {BASE("debian", A) LAYER("a", "p", ONE) "," LAYER("b", "q", ONE) END,
         BASE("debian", A) LAYER("b", "p", ONE) "," LAYER("a", "q", ONE) END, 0,
         "the order changed: it stood on layer a"},
        {BASE("debian", A) LAYER("a", "p", ONE) "," LAYER("b", "q", ONE) END,
         BASE("debian", A) LAYER("b", "p", ONE) "," LAYER("a", "q", ONE) END, 1,
         "the order changed: layer b is below it now"},
        /* damaged records */
        {"{}", BASE("debian", A) LAYER("a", "p", ONE) END, 0, "new"},
        {"{'layers':{'a':1}}", BASE("debian", A) LAYER("a", "p", ONE) END, 0, "new"},
        {"{'layers':[1,null,{'name':2}]}", BASE("debian", A) LAYER("a", "p", ONE) END, 0, "new"},
        {"{'layers':[{'name':'a'}]}", BASE("debian", A) LAYER("a", "p", ONE) END, 0,
         "platform version is 1 now and was not set"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        json_auto_t *last = cases[i].last ? record(cases[i].last) : NULL;
        json_auto_t *now = record(cases[i].now);
        check_text(explain_layer(last, now, cases[i].layer), cases[i].want, cases[i].now);
    }
}

static void test_base_and_template(void **state)
{
    (void)state;
    static const struct {
        const char *last, *now, *base, *template;
    } cases[] = {
        {NULL, BASE("debian", A) END, "not built before", "not built before"},
        {BASE("debian", A) END, BASE("debian", A) END, NULL, NULL},
        {BASE("debian", A) TEMPLATE("'last_cache':'1'"),
         BASE("debian", B) TEMPLATE("'last_cache':'2'"),
         "base image: debian moved from " A " to " B, "base image: debian moved from " A " to " B},
        {BASE("debian", A) LAYER("a", "p", ONE) TEMPLATE("'last_cache':'1','tier':'s'"),
         BASE("debian", A) LAYER("a", "p", TWO) TEMPLATE("'last_cache':'2','tier':'m'"), NULL,
         "layer a: command 2 is new"},
        {BASE("debian", A) LAYER("a", "p", ONE) TEMPLATE("'last_cache':'1'"),
         BASE("debian", A) TEMPLATE("'last_cache':'2'"), NULL, "layer a was removed"},
        {BASE("debian", A) TEMPLATE("'tier':'s'"), BASE("debian", A) TEMPLATE("'tier':'m'"), NULL,
         "tier changed from s to m"},
        {BASE("debian", A) TEMPLATE("'agent':'" A "'"),
         BASE("debian", A) TEMPLATE("'agent':'" B "'"), NULL, "agent changed from " A " to " B},
        {BASE("debian", A) TEMPLATE("'start_command':{'port':80,'command':['x']}"),
         BASE("debian", A) TEMPLATE("'start_command':{'port':81,'command':['x']}"), NULL,
         "start_command: port changed"},
        {BASE("debian", A) TEMPLATE("'x':1"),
         BASE("debian", A) TEMPLATE("'boot_commands':['mkdir /run/x'],'x':1"), NULL,
         "init command 1 is new"},
        {BASE("debian", A) TEMPLATE("'start_command':'image'"),
         BASE("debian", A) TEMPLATE("'start_command':{'command':['x']}"), NULL,
         "start_command changed"},
        {"{'base':{'architecture':'amd64','base':'" A "','platform_version':1},'base_image':'x'}",
         "{'base':{'architecture':'arm64','base':'" A "','platform_version':1},'base_image':'x'}",
         "architecture changed from amd64 to arm64", NULL},
        {"{'base':{'base':'" A "','platform_version':1},'base_image':'x'}",
         "{'base':{'base':'" B "','platform_version':2},'base_image':'x'}",
         "platform version changed from 1 to 2", NULL},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(*cases); i++) {
        json_auto_t *last = cases[i].last ? record(cases[i].last) : NULL;
        json_auto_t *now = record(cases[i].now);
        check_text(explain_base(last, now), cases[i].base, cases[i].now);
        check_text(explain_template(last, now), cases[i].template, cases[i].now);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_layers),
        cmocka_unit_test(test_base_and_template),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
