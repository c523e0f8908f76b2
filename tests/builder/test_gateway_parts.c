/* What the gateway decides, and what it reads from strangers: greetings, requests, names. */
#include "check.h"

#include "builder/gateway_dns.h"
#include "builder/gateway_peek.h"

#include <arpa/inet.h>

static uint32_t ip(const char *text)
{
    struct in_addr a;
    assert_int_equal(inet_pton(AF_INET, text, &a), 1);
    return ntohl(a.s_addr);
}

static void parse(const char *text, struct network_policy *out)
{
    struct config_problems p = {0};
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(network_policy_parse(text, strlen(text), "p", out, &p, &err), &err);
    config_problems_release(&p);
}

/* ---- policies ---- */

static void test_first_rule_that_fits_decides(void **state)
{
    (void)state;
    struct network_policy rules;
    parse("default: deny\n"
          "egress:\n"
          "  - {host: bad.example.com, action: deny}\n"
          "  - {host: '*.example.com', ports: [443, 8000-8100]}\n"
          "  - {cidr: 10.9.0.0/16, ports: [22], action: deny}\n"
          "  - {cidr: 10.0.0.0/8, protocol: tcp}\n"
          "  - {host: time.example, ports: [123], protocol: udp}\n"
          "  - {host: 192.0.2.7}\n",
          &rules);
    const struct gateway_policy p = {.rules = &rules};
    static const struct {
        const char *address, *name;
        uint16_t port;
        bool udp, vouched;
        enum gateway_verdict verdict;
    } table[] = {
        {"192.0.2.1", "a.example.com", 443, false, true, GATEWAY_ALLOWED},
        {"192.0.2.1", "a.b.example.com", 8050, false, true, GATEWAY_ALLOWED},
        {"192.0.2.1", "example.com", 443, false, true, REFUSED_BY_RULES},
        {"192.0.2.1", "xexample.com", 443, false, true, REFUSED_BY_RULES},
        {"192.0.2.1", "a.example.com", 80, false, true, REFUSED_BY_RULES},
        {"192.0.2.1", "a.example.com", 443, false, false, REFUSED_ADDRESS},
        {"192.0.2.1", "bad.example.com", 443, false, false, REFUSED_BY_RULES},
        {"192.0.2.1", NULL, 443, false, false, REFUSED_BY_RULES},
        {"10.1.2.3", NULL, 5432, false, false, GATEWAY_ALLOWED},
        {"10.1.2.3", "any.name", 5432, false, false, GATEWAY_ALLOWED},
        {"10.1.2.3", NULL, 5432, true, false, REFUSED_BY_RULES},
        {"10.9.2.3", NULL, 22, false, false, REFUSED_BY_RULES},
        {"10.9.2.3", NULL, 23, false, false, GATEWAY_ALLOWED},
        {"192.0.2.9", "time.example", 123, true, true, GATEWAY_ALLOWED},
        {"192.0.2.9", "time.example", 123, false, true, REFUSED_BY_RULES},
        {"192.0.2.7", NULL, 1, true, false, GATEWAY_ALLOWED},
        {"192.0.2.8", NULL, 1, true, false, REFUSED_BY_RULES},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        const struct gateway_question q = {.protocol = table[i].udp ? POLICY_UDP : POLICY_TCP,
                                           .address = ip(table[i].address),
                                           .port = table[i].port,
                                           .name = table[i].name,
                                           .vouched = table[i].vouched};
        if (gateway_decide(&p, &q) != table[i].verdict)
            fail_msg("question %zu: %d", i, (int)gateway_decide(&p, &q));
    }
    /* names: a rule with ports or a range leaves a port or an address on which it may be right */
    assert_int_equal(gateway_decide_name(&p, "a.example.com", NULL), GATEWAY_ALLOWED);
    assert_int_equal(gateway_decide_name(&p, "bad.example.com", NULL), REFUSED_BY_RULES);
    const uint32_t in = ip("10.1.2.3"), out = ip("192.0.2.1"), self = ip("127.0.0.1");
    assert_int_equal(gateway_decide_name(&p, "inside.example", NULL), GATEWAY_ALLOWED);
    assert_int_equal(gateway_decide_name(&p, "inside.example", &in), GATEWAY_ALLOWED);
    assert_int_equal(gateway_decide_name(&p, "inside.example", &out), REFUSED_BY_RULES);
    assert_int_equal(gateway_decide_name(&p, "a.example.com", &out), GATEWAY_ALLOWED);
    assert_int_equal(gateway_decide_name(&p, "a.example.com", &self), REFUSED_ALWAYS);
    network_policy_release(&rules);
}

static enum gateway_verdict decide_name(const struct gateway_policy *p, const char *name)
{
    const struct gateway_question q = {
        .protocol = POLICY_TCP, .address = 0xc0000201, .port = 443, .name = name, .vouched = true};
    enum gateway_verdict v = gateway_decide(p, &q);
    assert_int_equal(gateway_decide_name(p, name, NULL), v);
    return v;
}

static void test_presets_hold_where_no_rule_does(void **state)
{
    (void)state;
    struct network_policy rules, deny;
    CB_AUTO_STRV packages = {0};
    cb_strv_add(&packages, "pkg.example");
    cb_strv_add(&packages, "*.pkg.example");
    parse("egress: [{host: a.example}, {host: b.pkg.example, action: deny}]", &rules);
    parse("default: deny", &deny);
    struct gateway_policy p = {.rules = &rules, .preset = PRESET_PACKAGES, .packages = &packages};
    assert_int_equal(decide_name(&p, "a.example"), GATEWAY_ALLOWED);
    assert_int_equal(decide_name(&p, "pkg.example"), GATEWAY_ALLOWED);
    assert_int_equal(decide_name(&p, "a.pkg.example"), GATEWAY_ALLOWED);
    assert_int_equal(decide_name(&p, "b.pkg.example"), REFUSED_BY_RULES);
    assert_int_equal(decide_name(&p, "c.example"), REFUSED_BY_PRESET);
    p.preset = PRESET_NONE;
    assert_int_equal(decide_name(&p, "a.example"), GATEWAY_ALLOWED);
    assert_int_equal(decide_name(&p, "pkg.example"), REFUSED_BY_PRESET);
    p.preset = PRESET_OPEN;
    assert_int_equal(decide_name(&p, "c.example"), GATEWAY_ALLOWED);
    assert_false(gateway_policy_open(&p));
    p.rules = &deny; /* `default` is said: the preset is not asked */
    assert_int_equal(decide_name(&p, "c.example"), REFUSED_BY_RULES);
    assert_false(gateway_policy_open(&p));
    p.rules = NULL;
    assert_true(gateway_policy_open(&p));
    assert_int_equal(decide_name(&p, "c.example"), GATEWAY_ALLOWED);
    network_policy_release(&rules);
    network_policy_release(&deny);
}

static void test_a_commands_hosts_are_the_only_ones(void **state)
{
    (void)state;
    struct network_policy rules;
    CB_AUTO_STRV only = {0};
    CB_AUTO_STRV all = {0};
    cb_strv_add(&only, "*.one.example");
    cb_strv_add(&only, "bad.example");
    cb_strv_add(&only, "192.0.2.7");
    cb_strv_add(&all, "*");
    parse("egress: [{host: two.example}, {host: bad.example, action: deny}]", &rules);
    struct gateway_policy p = {.rules = &rules, .preset = PRESET_NONE, .only = &only};
    assert_int_equal(decide_name(&p, "a.one.example"), GATEWAY_ALLOWED);
    assert_int_equal(decide_name(&p, "two.example"), REFUSED_BY_COMMAND);
    assert_int_equal(decide_name(&p, "bad.example"), REFUSED_BY_RULES);
    struct gateway_question q = {.protocol = POLICY_UDP, .address = ip("192.0.2.7"), .port = 1};
    assert_int_equal(gateway_decide(&p, &q), GATEWAY_ALLOWED);
    q.address = ip("192.0.2.8");
    assert_int_equal(gateway_decide(&p, &q), REFUSED_BY_COMMAND);
    p.only = &all;
    assert_int_equal(gateway_decide(&p, &q), GATEWAY_ALLOWED);
    assert_int_equal(decide_name(&p, "bad.example"), REFUSED_BY_RULES);
    network_policy_release(&rules);
}

static void test_some_addresses_are_always_refused(void **state)
{
    (void)state;
    static const char *const never[] = {
        "0.0.0.0",   "127.0.0.1", "127.255.255.255", "10.0.2.2",      "169.254.169.254",
        "224.0.0.1", "10.0.2.3",  "255.255.255.255", "168.63.129.16", "100.100.100.200"};
    static const char *const fine[] = {"1.1.1.1", "10.0.3.1", "169.253.0.1", "223.255.255.255",
                                       "168.63.129.17"};
    const struct gateway_policy open = {.preset = PRESET_OPEN};
    for (size_t i = 0; i < sizeof(never) / sizeof(never[0]); i++) {
        const struct gateway_question q = {.protocol = POLICY_TCP, .address = ip(never[i])};
        assert_int_equal(gateway_decide(&open, &q), REFUSED_ALWAYS);
    }
    for (size_t i = 0; i < sizeof(fine) / sizeof(fine[0]); i++)
        assert_false(gateway_forbidden(ip(fine[i])));
}

static void test_the_proxy_is_reached_and_what_it_is_asked_for_is_judged(void **state)
{
    (void)state;
    const struct gateway_policy p = {
        .preset = PRESET_NONE, .proxy = "proxy.example", .proxy_port = 3128};
    struct gateway_question q = {.protocol = POLICY_TCP,
                                 .address = ip("192.0.2.5"),
                                 .port = 3128,
                                 .name = "proxy.example",
                                 .vouched = true};
    assert_int_equal(gateway_decide(&p, &q), GATEWAY_ALLOWED);
    assert_int_equal(gateway_decide_name(&p, "proxy.example", NULL), GATEWAY_ALLOWED);
    q.port = 22;
    assert_int_equal(gateway_decide(&p, &q), REFUSED_BY_PRESET);
    q.port = 3128;
    q.no_address = true; /* the proxy, asked for itself */
    assert_int_equal(gateway_decide(&p, &q), REFUSED_BY_PRESET);
}

/* ---- greetings ---- */

/* A TLS greeting with these server names, in records of at most @piece bytes. */
static size_t hello(const char *const *names, size_t n, size_t piece, uint8_t *out)
{
    uint8_t b[2048];
    size_t at = 4;
    memset(b + at, 3, 34); /* version, random */
    at += 34;
    memcpy(b + at, "\0\0\2\x13\x01\1\0", 7); /* session, ciphers, compression */
    at += 7;
    size_t extensions = at;
    at += 2;
    memcpy(b + at, "\0\x17\0\0", 4);
    at += 4;
    if (n) {
        size_t ext = at;
        at += 6;
        for (size_t i = 0; i < n; i++) {
            size_t len = strlen(names[i]);
            b[at] = 0;
            b[at + 1] = (uint8_t)(len >> 8);
            b[at + 2] = (uint8_t)len;
            memcpy(b + at + 3, names[i], len);
            at += 3 + len;
        }
        memset(b + ext, 0, 6);
        b[ext + 2] = (uint8_t)((at - ext - 4) >> 8);
        b[ext + 3] = (uint8_t)(at - ext - 4);
        b[ext + 4] = (uint8_t)((at - ext - 6) >> 8);
        b[ext + 5] = (uint8_t)(at - ext - 6);
    }
    b[extensions] = (uint8_t)((at - extensions - 2) >> 8);
    b[extensions + 1] = (uint8_t)(at - extensions - 2);
    b[0] = 1;
    b[1] = 0;
    b[2] = (uint8_t)((at - 4) >> 8);
    b[3] = (uint8_t)(at - 4);
    size_t len = 0;
    for (size_t from = 0; from < at; from += piece) {
        size_t here = at - from < piece ? at - from : piece;
        const uint8_t head[] = {22, 3, 1, (uint8_t)(here >> 8), (uint8_t)here};
        memcpy(out + len, head, sizeof(head));
        memcpy(out + len + sizeof(head), b + from, here);
        len += sizeof(head) + here;
    }
    return len;
}

static void test_server_name_of_a_tls_greeting(void **state)
{
    (void)state;
    uint8_t b[65536];
    struct peeked p;
    const char *const name[] = {"Some.Host-1.example", "other.example"};
    static const size_t pieces[] = {4096, 60, 7, 1};
    for (size_t i = 0; i < sizeof(pieces) / sizeof(pieces[0]); i++) {
        size_t n = hello(name, 1, pieces[i], b);
        for (size_t k = 0; k < n; k++) { /* as it arrives, byte by byte */
            gateway_peek(b, k, &p);
            assert_int_equal(p.kind, PEEK_MORE);
        }
        gateway_peek(b, n, &p);
        assert_int_equal(p.kind, PEEK_TLS);
        assert_string_equal(p.name, "some.host-1.example");
        assert_true(p.length == PEEK_ALL);
    }
    size_t n = hello(name, 0, 4096, b);
    gateway_peek(b, n, &p);
    assert_int_equal(p.kind, PEEK_TLS);
    assert_string_equal(p.name, "");
    n = hello(name, 2, 4096, b); /* two names: which one a server takes nobody knows */
    gateway_peek(b, n, &p);
    assert_int_equal(p.kind, PEEK_BROKEN);
    const char *const odd[] = {"a b"};
    n = hello(odd, 1, 4096, b);
    gateway_peek(b, n, &p);
    assert_int_equal(p.kind, PEEK_BROKEN);
    n = hello(name, 1, 4096, b);
    b[5] = 2; /* another message first */
    gateway_peek(b, n, &p);
    assert_int_equal(p.kind, PEEK_BROKEN);
    n = hello(name, 1, 4096, b);
    b[9 + 34] = 200; /* a session that is longer than the greeting */
    gateway_peek(b, n, &p);
    assert_int_equal(p.kind, PEEK_BROKEN);
}

static void test_host_of_a_request(void **state)
{
    (void)state;
    static const struct {
        const char *text;
        enum peek_kind kind;
        const char *name;
        uint16_t port;
        int64_t length; /* -1: PEEK_ALL; -2: the whole text */
    } table[] = {
        {"GET / HTTP/1.1\r\nHost: A.example\r\n\r\n", PEEK_HTTP, "a.example", 0, -2},
        {"\r\nGET / HTTP/1.0\nhost:a.example:8080 \n\n", PEEK_HTTP, "a.example", 8080, -2},
        {"GET / HTTP/1.0\r\n\r\n", PEEK_HTTP, "", 0, -2},
        {"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET", PEEK_HTTP, "a", 0, 50},
        {"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", PEEK_HTTP, "a", 0, -1},
        {"GET / HTTP/1.1\r\nHost: [::1]:80\r\n\r\n", PEEK_HTTP, "", 0, -2},
        {"CONNECT b.example:22 HTTP/1.1\r\nHost: a\r\n\r\n", PEEK_PROXY, "b.example", 22, -2},
        {"GET http://u@b.example:81/x HTTP/1.1\r\nHost: a\r\n\r\n", PEEK_PROXY, "b.example", 81,
         -2},
        {"GET http://b.example?x HTTP/1.1\r\n\r\n", PEEK_PROXY, "b.example", 80, -2},
        {"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", PEEK_BROKEN, "", 0, -1},
        {"GET / HTTP/1.1\r\nHost : a\r\n\r\n", PEEK_BROKEN, "", 0, -1},
        {"GET / HTTP/1.1\r\nX: y\r\n Host: a\r\n\r\n", PEEK_BROKEN, "", 0, -1},
        {"GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", PEEK_BROKEN, "", 0, -1},
        {"POST / HTTP/1.1\r\nContent-Length: 3\r\nContent-Length: 4\r\n\r\n", PEEK_BROKEN, "", 0,
         -1},
        {"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: x\r\n\r\n", PEEK_BROKEN, "", 0,
         -1},
        {"CONNECT b.example:99999 HTTP/1.1\r\n\r\n", PEEK_BROKEN, "", 0, -1},
        {"GET / HTTP/1.1\r\nHost: a\r\n", PEEK_MORE, "", 0, -1},
        {"GE", PEEK_MORE, "", 0, -1},
        {"GET key\r\n", PEEK_OTHER, "", 0, -1},
        {"GETX / HTTP/1.1\r\n", PEEK_OTHER, "", 0, -1},
        {"SSH-2.0-OpenSSH_9\r\n", PEEK_OTHER, "", 0, -1},
        {"EHLO a\r\n", PEEK_OTHER, "", 0, -1},
        {"\x16\x01", PEEK_OTHER, "", 0, -1},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct peeked p;
        size_t n = strlen(table[i].text);
        gateway_peek((const uint8_t *)table[i].text, n, &p);
        uint64_t length = table[i].length == -1   ? PEEK_ALL
                          : table[i].length == -2 ? n
                                                  : (uint64_t)table[i].length;
        if (p.kind != table[i].kind || strcmp(p.name, table[i].name) != 0 || p.length != length)
            fail_msg("%s: kind %d, name %s, length %llu", table[i].text, (int)p.kind, p.name,
                     (unsigned long long)p.length);
        if (table[i].port)
            assert_int_equal(p.port, table[i].port);
    }
}

static void test_a_head_without_an_end_is_broken(void **state)
{
    (void)state;
    struct peeked p;
    CB_AUTO_FREE uint8_t *b = cb_xmalloc(PEEK_MAX);
    memset(b, 'a', PEEK_MAX);
    memcpy(b, "GET / HTTP/1.1\r\nX: ", 19);
    gateway_peek(b, PEEK_MAX - 1, &p);
    assert_int_equal(p.kind, PEEK_MORE);
    gateway_peek(b, PEEK_MAX, &p);
    assert_int_equal(p.kind, PEEK_BROKEN);
    memset(b, '\n', PEEK_MAX);
    gateway_peek(b, PEEK_MAX, &p);
    assert_int_equal(p.kind, PEEK_BROKEN);
}

/* ---- names ---- */

static const uint8_t query[] = "\x12\x34\x01\0\0\1\0\0\0\0\0\0\3wWw\7example\0\0\1\0\1";
enum { QUERY = sizeof(query) - 1 };

static void test_a_question_is_read_and_answered(void **state)
{
    (void)state;
    struct dns_question q;
    uint8_t out[512];
    assert_int_equal(dns_read_question(query, QUERY, &q), 0);
    assert_int_equal(q.id, 0x1234);
    assert_int_equal(q.type, DNS_A);
    assert_string_equal(q.name, "www.example");
    assert_int_equal(q.end, QUERY);
    assert_int_equal(dns_write_code(query, &q, DNS_NXDOMAIN, out, sizeof(out)), QUERY);
    assert_memory_equal(out, "\x12\x34\x81\x83\0\1\0\0\0\0\0\0\3wWw", 16);
    const uint32_t a[] = {0x01020304, 0x05060708};
    size_t n = dns_write_addresses(query, &q, a, 2, 60, out, sizeof(out));
    assert_int_equal(n, QUERY + 32);
    assert_memory_equal(out + QUERY, "\xc0\x0c\0\1\0\1\0\0\0\x3c\0\4\1\2\3\4", 16);
    struct dns_reply r;
    assert_true(dns_read_reply(out, n, 0x1234, &q, &r));
    assert_int_equal(r.n, 2);
    assert_int_equal(r.addresses[1], 0x05060708);
    assert_int_equal(r.ttl, 60);
    assert_false(dns_read_reply(out, n, 0x1235, &q, &r));
    for (size_t k = 0; k < n; k++) /* cut short: fewer records, never more */
        if (dns_read_reply(out, k, 0x1234, &q, &r))
            assert_true(r.n <= 1);
    n = dns_write_query(query, &q, 7, out, sizeof(out));
    assert_int_equal(dns_read_question(out, n, &q), 0);
    assert_int_equal(q.id, 7);
    assert_string_equal(q.name, "www.example");
}

static void test_aliases_are_followed_and_nothing_else(void **state)
{
    (void)state;
    struct dns_question q;
    struct dns_reply r;
    static const uint8_t more[] = /* an address of another name, the alias, its address */
        "\1x\xc0\x10\0\1\0\1\0\0\0\1\0\4\x0a\0\0\1"
        "\xc0\x0c\0\5\0\1\0\0\0\x14\0\4\1y\xc0\x10"
        "\1y\xc0\x10\0\1\0\1\0\0\0\x1e\0\4\x0a\0\0\2";
    uint8_t b[256];
    assert_int_equal(dns_read_question(query, QUERY, &q), 0);
    memcpy(b, query, QUERY);
    b[2] = 0x81;
    b[7] = 3;
    memcpy(b + QUERY, more, sizeof(more) - 1);
    assert_true(dns_read_reply(b, QUERY + sizeof(more) - 1, 0x1234, &q, &r));
    assert_int_equal(r.n, 1);
    assert_int_equal(r.addresses[0], 0x0a000002);
    assert_int_equal(r.ttl, 20);
    b[QUERY + 33] = 0xc0; /* an alias of itself ends */
    b[QUERY + 30] = 0xc0;
    b[QUERY + 31] = 0x0c;
    (void)dns_read_reply(b, QUERY + sizeof(more) - 1, 0x1234, &q, &r);
}

static void test_odd_questions_are_refused(void **state)
{
    (void)state;
    struct dns_question q;
    uint8_t b[QUERY];
    assert_int_equal(dns_read_question(query, 11, &q), -1);
    memcpy(b, query, QUERY);
    b[2] |= 0x80; /* an answer is no question */
    assert_int_equal(dns_read_question(b, QUERY, &q), -1);
    memcpy(b, query, QUERY);
    b[2] |= 0x28;
    assert_int_equal(dns_read_question(b, QUERY, &q), DNS_NOTIMP);
    memcpy(b, query, QUERY);
    b[5] = 2;
    assert_int_equal(dns_read_question(b, QUERY, &q), DNS_FORMERR);
    memcpy(b, query, QUERY);
    b[QUERY - 1] = 3; /* class CHAOS */
    assert_int_equal(dns_read_question(b, QUERY, &q), DNS_NOTIMP);
    for (size_t n = 12; n < QUERY; n++)
        assert_int_equal(dns_read_question(query, n, &q), DNS_FORMERR);
    memcpy(b, query, QUERY);
    b[14] = '.'; /* "w.w" as one label */
    assert_int_equal(dns_read_question(b, QUERY, &q), DNS_NXDOMAIN);
    memcpy(b, query, QUERY);
    b[12] = 0xc0; /* a pointer to itself */
    b[13] = 12;
    assert_int_equal(dns_read_question(b, QUERY, &q), DNS_FORMERR);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_first_rule_that_fits_decides),
        cmocka_unit_test(test_presets_hold_where_no_rule_does),
        cmocka_unit_test(test_a_commands_hosts_are_the_only_ones),
        cmocka_unit_test(test_some_addresses_are_always_refused),
        cmocka_unit_test(test_the_proxy_is_reached_and_what_it_is_asked_for_is_judged),
        cmocka_unit_test(test_server_name_of_a_tls_greeting),
        cmocka_unit_test(test_host_of_a_request),
        cmocka_unit_test(test_a_head_without_an_end_is_broken),
        cmocka_unit_test(test_a_question_is_read_and_answered),
        cmocka_unit_test(test_aliases_are_followed_and_nothing_else),
        cmocka_unit_test(test_odd_questions_are_refused),
    };
    return cmocka_run_group_tests_name("gateway_parts", tests, NULL, NULL);
}
