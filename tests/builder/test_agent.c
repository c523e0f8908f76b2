/* The agent's parsers and small rules, natively. */
#include "builder/agent/agent.h"
#include "builder/boot_conf.h"
#include "check.h"
#include "support/proc.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>

static const char passwd[] = "root:x:0:0:root:/root:/bin/bash\n"
                             "app:x:1000:1001:App,,,:/srv/app:/bin/sh\n"
                             "broken line\n:x:1:1::/:\nodd:x:nan:1:::\n"
                             "1234:x:50:50::/numeric:\n"
                             "nohome:x:60:60::relative:\n"
                             "last:x:70:70";
static const char group[] = "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nvideo:x:44:other,app\n"
                            "broken\nnearly:x:45:apps,ap\n1001:x:77:";

static void test_users_resolve(void **state)
{
    (void)state;
    static const struct {
        const char *spec;
        uid_t uid;
        gid_t gid;
        size_t n_groups;
        const char *name, *home;
    } table[] = {
        {"", 0, 0, 1, "root", "/root"},
        {"root", 0, 0, 1, "root", "/root"},
        {"app", 1000, 1001, 2, "app", "/srv/app"},
        {"1000", 1000, 1001, 2, "app", "/srv/app"},
        {"app:wheel", 1000, 10, 0, "app", "/srv/app"},
        {"app:55", 1000, 55, 0, "app", "/srv/app"},
        {"4000000000", 4000000000u, 0, 0, "4000000000", "/"},
        {"9:9", 9, 9, 0, "9", "/"},
        {"9:app", 9, 1001, 0, "9", "/"},
        {"1234", 50, 50, 0, "1234", "/numeric"},
        {"app:1001", 1000, 77, 0, "app", "/srv/app"},
        {"nohome", 60, 60, 0, "nohome", "/"},
        {"last", 70, 70, 0, "last", "/"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct ident who;
        struct fail f;
        if (ident_resolve(table[i].spec, passwd, group, &who, &f) < 0)
            fail_msg("%s: %s", table[i].spec, f.text);
        assert_int_equal(who.uid, table[i].uid);
        assert_int_equal(who.gid, table[i].gid);
        assert_int_equal(who.n_groups, table[i].n_groups);
        assert_string_equal(who.name, table[i].name);
        assert_string_equal(who.home, table[i].home);
    }
}

static void test_unknown_users_are_named(void **state)
{
    (void)state;
    static const char *const bad[][2] = {
        {"nobody-here", "user \"nobody-here\" is not in the image's /etc/passwd"},
        {"app:nogroup", "group \"nogroup\" is not in the image's /etc/group"},
        {"4294967295", "user \"4294967295\" is not in the image's /etc/passwd"},
        {"-1", "user \"-1\" is not in the image's /etc/passwd"},
        {"odd", "user \"odd\" is not in the image's /etc/passwd"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct ident who;
        struct fail f;
        assert_int_equal(ident_resolve(bad[i][0], passwd, group, &who, &f), -1);
        assert_int_equal(f.kind, FAIL_COMMAND);
        assert_string_equal(f.text, bad[i][1]);
    }
    struct ident who;
    struct fail f;
    assert_int_equal(ident_resolve("root", NULL, NULL, &who, &f), 0); /* an image without files */
    assert_int_equal(who.uid, 0);
    assert_string_equal(who.home, "/root");
}

static void test_user_names_are_checked(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "runner", "_x", "A.b-9"};
    static const char *const bad[] = {"",     "1a",       "a:b",
                                      "a\nb", "-a",       "a b",
                                      "a/b",  "\xc3\xa9", "a23456789012345678901234567890123"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(user_name_ok(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(user_name_ok(bad[i]));
}

static void test_environment_keeps_the_last(void **state)
{
    (void)state;
    struct words env = {0};
    env_set(&env, "A=1");
    env_set(&env, "AB=2");
    env_set(&env, "A=3=4");
    env_set(&env, "=x");
    env_set(&env, "novalue");
    env_default(&env, "AB", "9");
    env_default(&env, "C", "");
    assert_int_equal(env.n, 3);
    assert_string_equal(env_get(&env, "A"), "3=4");
    assert_string_equal(env_get(&env, "AB"), "2");
    assert_string_equal(env_get(&env, "C"), "");
    assert_null(env_get(&env, "D"));
    words_release(&env);
}

/* What a login profile left of PATH, what the image declared, and what the script then sees. */
static void test_login_script_puts_path_back(void **state)
{
    (void)state;
    static const struct {
        const char *after_profile, *declared, *want;
    } table[] = {
        {"/usr/bin:/bin", "/opt/go/bin:/usr/bin:/bin", "/opt/go/bin:/usr/bin:/bin"},
        {"/usr/bin:/bin", "/a:/usr/bin:/b", "/a:/b:/usr/bin:/bin"},
        {"/usr/bin:/bin", "/bin:/usr/bin", "/usr/bin:/bin"},
        {"/usr/bin:/bin", "/it's $HOME/*:/x y", "/it's $HOME/*:/x y:/usr/bin:/bin"},
        {"/usr/bin:/bin", "::/a::", "/a:/usr/bin:/bin"},
        {"/usr/bin:/bin", "", "/usr/bin:/bin"},
        {"/usr/bin:/bin", NULL, "/usr/bin:/bin"},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        CB_AUTO_FREE char *script = login_script(
            table[i].declared, "set -u; printf '%s %s' \"$PATH\" \"${_cb_add-none}${_cb_dir-}\"");
        CB_AUTO_FREE char *env = cb_xasprintf("PATH=%s", table[i].after_profile);
        CB_AUTO_FREE char *want = cb_xasprintf("%s none", table[i].want);
        const struct cb_proc_spec spec = {
            .argv = (const char *const[]){"/bin/sh", "-euc", script, NULL},
            .env = (const char *const[]){env, NULL}};
        struct cb_proc_result r = {0};
        assert_ok(cb_proc_run(&spec, NULL, 4096, 10000, &r, &err), &err);
        assert_ok(cb_proc_check(&r, "sh", &err), &err);
        assert_string_equal(r.out.data, want);
        cb_proc_result_release(&r);
    }
}

static void test_only_login_shells_are_mended(void **state)
{
    (void)state;
    static const struct {
        const char *argv[4];
        bool mended;
    } table[] = {{{"bash", "-lc", "x"}, true},
                 {{"/bin/sh", "-lc", "x"}, true},
                 {{"bash", "-c", "x"}, false},
                 {{"python", "-lc", "x"}, false},
                 {{"bash", "-lc", NULL}, false}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        struct words w = {0};
        for (size_t k = 0; table[i].argv[k]; k++)
            words_add(&w, table[i].argv[k]);
        mend_login_argv(&w, "/opt/bin");
        assert_int_equal(w.n == 3 && strcmp(w.v[2], "x") != 0, table[i].mended);
        words_release(&w);
    }
}

static void test_boot_file_comes_back(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(BOOT_CONF_MAX);
    struct config_pair env[] = {{(char[]){"PATH"}, (char[]){"/bin"}},
                                {(char[]){"MULTI"}, (char[]){"a\nb\\n c"}}};
    char *argv[] = {(char[]){"serve"}, (char[]){""}, (char[]){"two words\n"}, NULL};
    struct command commands[] = {{.type = COMMAND_SHELL, .script = (char[]){"echo a\necho b"}},
                                 {.type = COMMAND_EXEC,
                                  .args = {.v = argv, .n = 3},
                                  .run_as_root = true,
                                  .timeout_ms = 1500}};
    const struct config_pairs pairs = {.v = env, .n = 2};
    const struct boot_info info = {.start_argv = {.v = argv, .n = 3},
                                   .start_env = {.v = env + 1, .n = 1},
                                   .start_user = (char[]){""},
                                   .start_workdir = (char[]){"/srv"},
                                   .port = 8080,
                                   .health_path = (char[]){"/health?a=b c"},
                                   .hostname = (char[]){"demo"},
                                   .init = (char[]){"systemd"},
                                   .boot_commands = {.v = commands, .n = 2}};
    assert_ok(boot_conf_dump(&info, &pairs, "app", "/w", &text, &err), &err);
    struct boot_conf b;
    struct fail f;
    assert_int_equal(boot_conf_parse(text.data, text.len, &b, &f), 0);
    assert_string_equal(b.hostname, "demo");
    assert_string_equal(b.init, "systemd");
    assert_string_equal(b.health, "/health?a=b c");
    assert_string_equal(b.user, "0");
    assert_string_equal(b.workdir, "/srv");
    assert_string_equal(b.default_user, "app");
    assert_string_equal(b.default_workdir, "/w");
    assert_int_equal(b.port, 8080);
    assert_string_equal(env_get(&b.env, "MULTI"), "a\nb\\n c");
    assert_string_equal(env_get(&b.start_env, "MULTI"), "a\nb\\n c");
    assert_int_equal(b.start_argv.n, 3);
    assert_string_equal(b.start_argv.v[1], "");
    assert_string_equal(b.start_argv.v[2], "two words\n");
    assert_int_equal(b.n_commands, 2);
    assert_string_equal(b.commands[0].script, "echo a\necho b");
    assert_false(b.commands[0].root);
    assert_int_equal(b.commands[1].argv.n, 3);
    assert_true(b.commands[1].root);
    assert_int_equal(b.commands[1].timeout_ms, 1500);
    boot_conf_release(&b);

    commands[0].type = COMMAND_COPY;
    cb_buf_clear(&text);
    assert_fails(boot_conf_dump(&info, &pairs, "app", "/w", &text, &err), &err, CB_E_CONFIG,
                 "a command of type copy does not run at boot");
}

static void test_another_init(void **state)
{
    (void)state;
    char how[128] = "";
    struct fail f;
    assert_true(init_is_ours(NULL));
    assert_true(init_is_ours("agent"));
    assert_false(init_is_ours("systemd"));
    assert_true(init_up_is_asked("systemd"));
    assert_false(init_up_is_asked("openrc"));
    assert_false(init_up_is_asked(NULL));
    assert_int_equal(init_become("runit", &f), -1);
    assert_int_equal(f.kind, FAIL_IMAGE);
    static const char *const not_yet[] = {"", "initializing", "starting", "unknown"};
    for (size_t i = 0; i < ARRAY_LEN(not_yet); i++)
        assert_false(init_up_word(not_yet[i], how, sizeof how));
    assert_true(init_up_word("degraded", how, sizeof how));
    assert_string_equal(how, "booted, no start command; systemd: degraded");
    assert_true(init_up_word("running", how, sizeof how));
}

static void test_drives_are_in_the_boot_file(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_BUF text = CB_BUF_INIT(BOOT_CONF_MAX);
    struct command fill = {.type = COMMAND_SHELL};
    struct drive drives[] = {
        {.drive_id = (char[]){"a-very-long-name"},
         .read_only = true,
         .commands = {.v = &fill, .n = 1}},
        {.drive_id = (char[]){"b"}, .label = (char[]){"B"}, .mount_path = (char[]){"/a b"}}};
    struct layer layer = {.drives = drives, .n_drives = 2};
    struct workload_config c = {.layers = &layer, .n_layers = 1};
    struct boot_conf b;
    struct fail f;
    assert_ok(boot_conf_drives(&c, &text, &err), &err);
    assert_int_equal(boot_conf_parse(text.data, text.len, &b, &f), 0);
    assert_int_equal(b.n_drives, 2);
    assert_string_equal(b.drives[0].label, "cb-a-very-long-n");
    assert_string_equal(b.drives[0].path, "/drives/a-very-long-name");
    assert_true(b.drives[0].read_only && !b.drives[0].own);
    assert_string_equal(b.drives[1].label, "B");
    assert_string_equal(b.drives[1].path, "/a b");
    assert_true(!b.drives[1].read_only && b.drives[1].own);
    boot_conf_release(&b);
    c.n_layers = 0;
    cb_buf_clear(&text);
    assert_ok(boot_conf_drives(&c, &text, &err), &err);
    assert_int_equal(boot_conf_parse(text.data, text.len, &b, &f), 0);
    assert_int_equal(b.n_drives, 1);
    assert_string_equal(b.drives[0].label, "workspace");
    assert_string_equal(b.drives[0].path, "/workspace");
    assert_true(b.drives[0].own);
    boot_conf_release(&b);
}

static void test_drives_are_found_by_label(void **state)
{
    (void)state;
    uint8_t super[256] = {0};
    assert_false(drive_has_label(super, ""));
    memcpy(super + 120, "sixteen-letters!", 16);
    assert_false(drive_has_label(super, "sixteen-letters!"));
    super[56] = 0x53;
    super[57] = 0xef;
    assert_true(drive_has_label(super, "sixteen-letters!"));
    assert_false(drive_has_label(super, "sixteen-letters"));
    memset(super + 120, 0, 16);
    assert_false(drive_has_label(super, ""));
}

/* A request with the fields of @words: a number is a DRIVE, a text that begins with '/' its path,
 * any other the user. */
static int parse_drives(const char *const *words, struct layer_spec *l, struct fail *f)
{
    uint8_t frame[4096];
    struct frame_out o;
    frame_begin(&o, frame, sizeof frame, FRAME_DRIVES, 0);
    for (size_t i = 0; words[i]; i++) {
        if (words[i][0] >= '0' && words[i][0] <= '9')
            frame_put_number(&o, TAG_DRIVE, strtoul(words[i], NULL, 10));
        else
            frame_put_text(&o, words[i][0] == '/' ? TAG_DRIVE_PATH : TAG_USER, words[i]);
    }
    assert_false(o.over);
    return drives_parse(l, frame + FRAME_HEAD, o.len - FRAME_HEAD, f);
}

static void test_drives_of_a_layer_are_checked(void **state)
{
    (void)state;
    struct layer_spec l = {0};
    struct fail f = {0};
    static const char *const good[] = {"3", "/data", "15", "/b/c", "app", NULL};
    assert_int_equal(parse_drives(good, &l, &f), 0);
    assert_int_equal(l.n_drives, 2);
    assert_int_equal(l.drives[1].disk, 15);
    assert_string_equal(l.drives[1].path, "/b/c");
    assert_string_equal(l.drives_user, "app");
    static const char *const bad[][5] = {{"3"},        {"/data"},  {"1", "2", "/a"},
                                         {"16", "/a"}, {"1", "/"}, {"1", "/a", "/b"}};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        assert_int_equal(parse_drives(bad[i], &l, &f), -1);
        assert_int_equal(f.kind, FAIL_PROTOCOL);
    }
    layer_spec_release(&l);
}

static void test_who_listens_is_seen(void **state)
{
    (void)state;
    static const char sockets[] =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid\n"
        "   0: 0100007F:1F90 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0\n"
        "   1: 0F05000A:01BB 0205000A:1F91 01 00000000:00000000 00:00000000 00000000     0\n"
        "  12: 00000000000000000000000000000000:0050 "
        "00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000\n"
        "  broken\n";
    assert_true(probe_listens_in(sockets, 8080));
    assert_true(probe_listens_in(sockets, 80));
    assert_false(probe_listens_in(sockets, 443));  /* a connection */
    assert_false(probe_listens_in(sockets, 8081)); /* its other end */
    assert_false(probe_listens_in(sockets, 0));
    assert_false(probe_listens_in("", 80));
}

static void test_it_is_asked_when_somebody_listens(void **state)
{
    (void)state;
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&a, &len), 0);
    uint16_t port = ntohs(a.sin_port);
    struct probe p = {.started = 5000, .connected_at = 5000};
    assert_false(probe_is_due(&p, port, 5000)); /* bound, and nobody listens */
    assert_false(probe_is_due(&p, port, 5010));
    assert_int_equal(p.next_at, 5020);
    assert_int_equal(listen(fd, 1), 0);
    assert_true(probe_is_due(&p, port, 5020));
    p.pid = 1; /* one is asking */
    assert_false(probe_is_due(&p, port, 9000));
    p.pid = 0;
    assert_int_equal(close(fd), 0);
    p.next_at = 0;
    assert_false(probe_is_due(&p, port, 6019));
    p.next_at = 0;
    assert_true(probe_is_due(&p, port, 6020)); /* a second later, all the same */
}

static void test_bad_boot_files_are_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"port 70000",    "port x",  "command-arg x",
                                      "drive-path /x", "drive a", "drive a\ndrive-path b"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct boot_conf b;
        struct fail f;
        assert_int_equal(boot_conf_parse(bad[i], strlen(bad[i]), &b, &f), -1);
        assert_int_equal(f.kind, FAIL_IMAGE);
        boot_conf_release(&b);
    }
}

static void test_kernel_command_line_is_read(void **state)
{
    (void)state;
    struct cmdline c;
    cmdline_parse("quiet capsule.mode=boot  capsule.ip=10.0.5.15/16 capsule.gw=10.0.5.2 "
                  "capsule.dns=10.0.2.3\tcapsule.hostname=web capsule.poweroff=reboot\n",
                  &c);
    assert_string_equal(c.mode, "boot");
    assert_string_equal(c.ip, "10.0.5.15");
    assert_int_equal(c.prefix, 16);
    assert_string_equal(c.gw, "10.0.5.2");
    assert_string_equal(c.dns, "10.0.2.3");
    assert_string_equal(c.hostname, "web");
    assert_true(c.reboot_ends);
    assert_false(c.no_shell);
    assert_string_equal(c.root, "");
    cmdline_parse("capsule.mode=0123456789012345678901234567890 capsule.shell=0 capsule.modes=x"
                  " root=PARTLABEL=capsule-1",
                  &c);
    assert_string_equal(c.root, "PARTLABEL=capsule-1");
    assert_string_equal(c.mode, "");
    assert_true(c.no_shell);
}

/* An ACK as a server sends it. Returns its length. */
static size_t make_ack(uint8_t *p)
{
    static const uint8_t options[] = {
        53, 1, 5, 1,  4, 255, 255, 255, 255, 3, 4, 10, 0,  0, 1,  6, 8,   8,   8,   8,   8,  1,
        1,  1, 1, 26, 2, 5,   180, 51,  4,   0, 0, 14, 16, 0, 54, 4, 169, 254, 169, 254, 255};
    size_t n = 20 + 8 + 240 + sizeof options;
    memset(p, 0, n);
    p[0] = 0x45;
    p[2] = (uint8_t)(n >> 8);
    p[3] = (uint8_t)n;
    p[9] = 17;
    p[21] = 67;
    p[23] = 68;
    p[24] = (uint8_t)((n - 20) >> 8);
    p[25] = (uint8_t)(n - 20);
    uint8_t *b = p + 28;
    memcpy(b, "\2\1\6\0\1\2\3\4", 8);
    memcpy(b + 16, "\12\0\0\5", 4);
    memcpy(b + 28, "\xaa\xbb\xcc\xdd\xee\xff", 6);
    memcpy(b + 236, "\x63\x82\x53\x63", 4);
    memcpy(b + 240, options, sizeof options);
    return n;
}

static void test_dhcp_takes_what_is_for_it(void **state)
{
    (void)state;
    static const uint8_t mac[6] = {0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff};
    uint8_t p[600];
    struct dhcp_lease l;
    size_t n = make_ack(p);
    assert_true(dhcp_parse(p, n, 0x01020304, mac, &l));
    assert_string_equal(l.ip, "10.0.0.5");
    assert_string_equal(l.gw, "10.0.0.1");
    assert_string_equal(l.dns, "8.8.8.8");
    assert_int_equal(l.prefix, 32);
    assert_int_equal(l.mtu, 1460);
    assert_int_equal(l.seconds, 3600);
    assert_int_equal(l.type, 5);
    assert_false(dhcp_parse(p, n, 0x01020305, mac, &l)); /* somebody else's */
    for (size_t cut = 0; cut < n; cut++)
        assert_false(dhcp_parse(p, cut, 0x01020304, mac, &l));
    static const struct {
        size_t at;
        uint8_t v;
    } wrong[] = {{0, 0x65},
                 {0, 0x44},
                 {2, 0xff},
                 {6, 0x20},
                 {9, 6},
                 {21, 66},
                 {23, 67},
                 {24, 0xff},
                 {28, 1},
                 {30, 7},
                 {28 + 28, 1},
                 {28 + 236, 0},
                 {28 + 240 + 4, 200},
                 {28 + 240 + 6, 254}};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        (void)make_ack(p);
        p[wrong[i].at] = wrong[i].v;
        assert_false(dhcp_parse(p, n, 0x01020304, mac, &l));
    }
}

static void test_http_status_is_strict(void **state)
{
    (void)state;
    static const struct {
        const char *line;
        unsigned status;
    } table[] = {{"HTTP/1.1 200 OK\r\n", 200}, {"HTTP/1.0 503", 503},  {"HTTP/1.1 20", 0},
                 {"HTTP/2 200 OK\r\n", 0},     {"SSH-2.0-OpenSSH", 0}, {"", 0}};
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++)
        assert_int_equal(http_status(table[i].line, strlen(table[i].line)), table[i].status);
}

/* A server in a child that answers every connection with @answer. */
static pid_t serve(const char *answer, uint16_t *port)
{
    struct sockaddr_in in = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t len = sizeof in;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (const struct sockaddr *)&in, len), 0);
    assert_int_equal(listen(fd, 8), 0);
    assert_int_equal(getsockname(fd, (struct sockaddr *)&in, &len), 0);
    *port = ntohs(in.sin_port);
    pid_t pid = fork();
    if (pid == 0) {
        char buf[1024];
        for (int c; (c = accept(fd, NULL, NULL)) >= 0; cb_close(c))
            if (read(c, buf, sizeof buf) > 0)
                (void)!write(c, answer, strlen(answer));
        _exit(0);
    }
    cb_close(fd);
    return pid;
}

static void test_probe_says_what_it_found(void **state)
{
    (void)state;
    static const struct {
        const char *answer, *path, *text;
        bool ready;
    } table[] = {
        {"HTTP/1.1 204 No Content\r\n\r\n", "/health", "GET /health on port %u answered 204", true},
        {"HTTP/1.1 302 Found\r\n\r\n", "/", "GET / on port %u answered 302", false},
        {"hello\n", "/", "GET / on port %u: no HTTP answer", false},
        {"", NULL, "port %u accepts connections", true},
    };
    for (size_t i = 0; i < sizeof table / sizeof table[0]; i++) {
        uint16_t port;
        char text[256];
        pid_t pid = serve(table[i].answer, &port);
        bool ready = probe_once(port, table[i].path, text, sizeof text);
        cb_proc_stop(pid, false, 0);
        CB_AUTO_FREE char *number = cb_xasprintf("%u", port);
        const char *at = strstr(table[i].text, "%u");
        CB_AUTO_FREE char *want =
            cb_xasprintf("%.*s%s%s", (int)(at - table[i].text), table[i].text, number, at + 2);
        assert_string_equal(text, want);
        assert_int_equal(ready, table[i].ready);
        if (i == 0) {
            want[0] = 0;
            assert_false(probe_once(port, "/", text, sizeof text)); /* it is gone */
            assert_non_null(strstr(text, "Connection refused"));
        }
    }
}

/* The host's end of park(): what it says is there before the agent listens. */
static int park_with(const void *said, size_t n, bool close_it, struct resume *r, struct fail *f,
                     uint16_t *first)
{
    int pair[2];
    struct chan c;
    uint8_t head[FRAME_HEAD];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    if (n)
        assert_int_equal(write(pair[1], said, n), (ssize_t)n);
    if (close_it)
        assert_int_equal(shutdown(pair[1], SHUT_WR), 0);
    chan_init(&c, pair[0], FRAME_REQUEST_MAX);
    int rc = park(&c, r, f);
    assert_int_equal(read(pair[1], head, sizeof head), sizeof head);
    *first = (uint16_t)frame_load(head + 4, 2);
    if (rc == 0) { /* nothing between PARKED and the hello, which gives the nonce back */
        uint8_t hello[256];
        assert_int_equal(chan_send_hello(&c, "boot", r), 0);
        assert_true(read(pair[1], hello, sizeof hello) > FRAME_HEAD);
        assert_int_equal(frame_load(hello + 4, 2), FRAME_HELLO);
        assert_non_null(memmem(hello, sizeof hello, r->nonce, sizeof r->nonce));
    }
    chan_release(&c);
    (void)close(pair[1]);
    return rc;
}

static void test_a_parked_agent_waits_for_resume_alone(void **state)
{
    (void)state;
    uint8_t buf[512], nonce[FRAME_NONCE_LEN], entropy[FRAME_ENTROPY_LEN];
    struct frame_out o;
    struct resume r;
    struct fail f;
    uint16_t first;
    memset(nonce, 'n', sizeof nonce);
    memset(entropy, 'e', sizeof entropy);
    frame_begin(&o, buf, sizeof buf, FRAME_RESUME, 0);
    frame_put(&o, TAG_NONCE, nonce, sizeof nonce);
    frame_put(&o, TAG_ENTROPY, entropy, sizeof entropy);
    frame_put_number(&o, TAG_TIME, 1234567);
    if (park_with(o.p, o.len, false, &r, &f, &first) < 0)
        fail_msg("%s", f.text);
    assert_int_equal(first, FRAME_PARKED);
    assert_memory_equal(r.nonce, nonce, sizeof nonce);
    assert_memory_equal(r.entropy, entropy, sizeof entropy);
    assert_int_equal(r.time_ms, 1234567);

    static const struct {
        enum frame_type type;
        size_t nonce, entropy; /* bytes of each; 0: it is not there */
        uint64_t time;
        const char *why;
    } bad[] = {
        {FRAME_SETUP, FRAME_NONCE_LEN, FRAME_ENTROPY_LEN, 1, "not RESUME but something else"},
        {FRAME_RESUME, 0, FRAME_ENTROPY_LEN, 1, "a broken RESUME"},
        {FRAME_RESUME, FRAME_NONCE_LEN, 0, 1, "a broken RESUME"},
        {FRAME_RESUME, FRAME_NONCE_LEN - 1, FRAME_ENTROPY_LEN, 1, "a broken RESUME"},
        {FRAME_RESUME, FRAME_NONCE_LEN, FRAME_ENTROPY_LEN - 1, 1, "a broken RESUME"},
        {FRAME_RESUME, FRAME_NONCE_LEN, FRAME_ENTROPY_LEN, UINT64_MAX, "a broken RESUME"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        frame_begin(&o, buf, sizeof buf, bad[i].type, 0);
        if (bad[i].nonce)
            frame_put(&o, TAG_NONCE, nonce, bad[i].nonce);
        if (bad[i].entropy)
            frame_put(&o, TAG_ENTROPY, entropy, bad[i].entropy);
        frame_put_number(&o, TAG_TIME, bad[i].time);
        assert_int_equal(park_with(o.p, o.len, false, &r, &f, &first), -1);
        assert_string_equal(f.text, bad[i].why);
    }
    assert_int_equal(park_with("garbage that is no frame", 24, false, &r, &f, &first), -1);
    assert_string_equal(f.text, "not RESUME but something else");
    assert_int_equal(park_with(NULL, 0, true, &r, &f, &first), -1);
    assert_string_equal(f.text, "the host is gone");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_users_resolve),
        cmocka_unit_test(test_unknown_users_are_named),
        cmocka_unit_test(test_user_names_are_checked),
        cmocka_unit_test(test_environment_keeps_the_last),
        cmocka_unit_test(test_login_script_puts_path_back),
        cmocka_unit_test(test_only_login_shells_are_mended),
        cmocka_unit_test(test_boot_file_comes_back),
        cmocka_unit_test(test_another_init),
        cmocka_unit_test(test_who_listens_is_seen),
        cmocka_unit_test(test_it_is_asked_when_somebody_listens),
        cmocka_unit_test(test_drives_are_in_the_boot_file),
        cmocka_unit_test(test_drives_are_found_by_label),
        cmocka_unit_test(test_drives_of_a_layer_are_checked),
        cmocka_unit_test(test_bad_boot_files_are_refused),
        cmocka_unit_test(test_kernel_command_line_is_read),
        cmocka_unit_test(test_dhcp_takes_what_is_for_it),
        cmocka_unit_test(test_http_status_is_strict),
        cmocka_unit_test(test_probe_says_what_it_found),
        cmocka_unit_test(test_a_parked_agent_waits_for_resume_alone),
    };
    return cmocka_run_group_tests_name("agent", tests, NULL, NULL);
}
