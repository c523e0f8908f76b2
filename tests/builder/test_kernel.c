#include "check.h"

#include "builder/debian.h"
#include "builder/machine.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>

#define HEX "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

static const char release_text[] = "Origin: Debian\nCodename:  bookworm\nMD5Sum:\n"
                                   " aaaa 12 main/binary-amd64/Packages.xz\nSHA256:\n"
                                   " " HEX " 99 main/binary-amd64/Packages\n"
                                   " " HEX "     1234 main/binary-amd64/Packages.xz\n"
                                   " beef 7 main/binary-amd64/Bad\n"
                                   "Other: x\n " HEX " 5 after/the/section\n";

static void test_release_file_gives_field_and_digest(void **state)
{
    (void)state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *codename = debian_release_field(release_text, "Codename");
    assert_string_equal(codename, "bookworm");
    assert_null(debian_release_field(release_text, "Code"));
    uint64_t size = 0;
    struct cb_digest d;
    char hex[CB_HEX_LEN + 1];
    assert_ok(debian_release_file(release_text, "main/binary-amd64/Packages.xz", &size, &d, &err),
              &err);
    assert_int_equal(size, 1234);
    cb_digest_hex(&d, hex);
    assert_string_equal(hex, HEX);
    assert_fails(debian_release_file(release_text, "main/binary-amd64/Bad", &size, &d, &err), &err,
                 CB_E_CORRUPT, "the entry for main/binary-amd64/Bad cannot be read");
    assert_fails(debian_release_file(release_text, "after/the/section", &size, &d, &err), &err,
                 CB_E_CORRUPT, "no SHA-256 for after/the/section");
}

#define STANZA(name, version, rest) "Package: " name "\nVersion: " version "\n" rest "\n"
#define FILE_FIELDS(name) "Filename: pool/" name ".deb\nSize: 42\nSHA256: " HEX "\n"

static const struct {
    const char *list, *found, *error;
} lists[] = {
    {STANZA("bash", "5", FILE_FIELDS("bash"))
         STANZA("linux-image-6.1-cloud-amd64", "1.2", FILE_FIELDS("a"))
             STANZA("linux-image-6.2-cloud-amd64", "1.3", FILE_FIELDS("b"))
                 STANZA("linux-image-cloud-amd64", "9",
                        "Depends: linux-image-6.2-cloud-amd64 (= 1.3), kmod\n"),
     "pool/b.deb", NULL},
    {STANZA("linux-image-cloud-amd64", "9",
            "Description: x\n Depends: no\nDepends: linux-image-7-cloud-amd64 (= 1)\n"),
     NULL, "depends on linux-image-7-cloud-amd64, which is not there"},
    {STANZA("linux-image-7-cloud-amd64", "2", FILE_FIELDS("c"))
         STANZA("linux-image-cloud-amd64", "9", "Depends: linux-image-7-cloud-amd64 (= 1)\n"),
     NULL, "which is not there"},
    {STANZA("linux-image-7-cloud-amd64", "1", "Filename: pool/c.deb\nSize: 42\n")
         STANZA("linux-image-cloud-amd64", "9", "Depends: linux-image-7-cloud-amd64 (= 1)\n"),
     NULL, "is incomplete"},
    {STANZA("linux-image-7-cloud-amd64", "1", FILE_FIELDS("../../c"))
         STANZA("linux-image-cloud-amd64", "9", "Depends: linux-image-7-cloud-amd64 (= 1)\n"),
     NULL, "is incomplete"},
    {STANZA("linux-image-cloud-amd64", "9", "Depends: linux-image-cloud-amd64, kmod\n"), NULL,
     "depends on no kernel"},
    {STANZA("bash", "5", FILE_FIELDS("bash")), NULL, "no linux-image-cloud-amd64"},
    {"", NULL, "no linux-image-cloud-amd64"},
};

static void test_package_list_leads_to_one_kernel(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(lists) / sizeof(lists[0]); i++)
        for (size_t piece = 1; piece < 200; piece += 50) { /* however it is cut */
            CB_AUTO_ERROR err = CB_ERROR_INIT;
            struct debian_list l;
            const struct debian_package *p = NULL;
            debian_list_init(&l, "linux-image-", "cloud-amd64");
            size_t n = strlen(lists[i].list);
            for (size_t at = 0; at < n; at += piece)
                assert_ok(
                    debian_list_feed(&l, lists[i].list + at, n - at < piece ? n - at : piece, &err),
                    &err);
            assert_ok(debian_list_end(&l, &err), &err);
            int rc = debian_list_resolve(&l, "linux-image-cloud-amd64", &p, &err);
            if (lists[i].found) {
                assert_ok(rc, &err);
                assert_string_equal(p->filename, lists[i].found);
            } else {
                assert_fails(rc, &err, CB_E_CORRUPT, lists[i].error);
            }
            debian_list_release(&l);
        }
}

/* A mirror of one answer. */
struct mirror {
    int fd;
    char url[64];
    const char *status, *body;
    pthread_t thread;
};

static void *serve(void *arg)
{
    const struct mirror *m = arg;
    CB_AUTO_FD c = accept(m->fd, NULL, NULL);
    char request[2048];
    if (read(c, request, sizeof(request)) > 0)
        (void)dprintf(c, "HTTP/1.1 %s\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n%s",
                      m->status, strlen(m->body), m->body);
    return NULL;
}

static void mirror_start(struct mirror *m)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t n = sizeof(a);
    m->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(m->fd, (const struct sockaddr *)&a, sizeof(a)), 0);
    assert_int_equal(listen(m->fd, 4), 0);
    assert_int_equal(getsockname(m->fd, (struct sockaddr *)&a, &n), 0);
    (void)snprintf(m->url, sizeof(m->url), "http://127.0.0.1:%u/debian/", ntohs(a.sin_port));
    assert_int_equal(pthread_create(&m->thread, NULL, serve, m), 0);
}

static int get_from(const char *dir, char *url, struct kernel *k, struct cb_error *err)
{
    CB_AUTO_FREE char *home = cb_xasprintf("%s/home", dir);
    struct settings s = {.home = home, .debian_mirror = url};
    return kernel_get(&s, NULL, NULL, k, err);
}

static void test_kernel_from_a_mirror_that_lies_is_refused(void **state)
{
    static const struct {
        const char *status, *body;
        enum cb_code code;
        const char *text;
    } cases[] = {
        {"200 OK", release_text, CB_E_UNTRUSTED, "is not signed by Debian's archive keys"},
        {"200 OK",
         "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\nCodename: bookworm\n"
         "-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----\n",
         CB_E_UNTRUSTED, "is not signed by Debian's archive keys"},
        {"404 Not Found", "", CB_E_ENV, "no kernel to boot: download Debian's release file: "},
        {"500 No", "", CB_E_ENV, "answered 500"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        CB_AUTO_ERROR err = CB_ERROR_INIT;
        struct kernel k = {0};
        struct mirror m = {.status = cases[i].status, .body = cases[i].body};
        mirror_start(&m);
        assert_fails(get_from(*state, m.url, &k, &err), &err, cases[i].code, cases[i].text);
        assert_int_equal(pthread_join(m.thread, NULL), 0);
        cb_close(m.fd);
        CB_AUTO_FREE char *tmp = cb_xasprintf("%s/home/kernels/.tmp", (char *)*state);
        assert_false(cb_path_exists(tmp));
    }
}

static void test_kernel_offline_says_what_to_do(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct kernel k = {0};
    char url[] = "http://127.0.0.1:1";
    assert_int_equal(get_from(*state, url, &k, &err), -CB_E_ENV);
    assert_non_null(strstr(err.hint, "--kernel FILE"));
    assert_fails(err.code ? -CB_E_ENV : 0, &err, CB_E_ENV, "no kernel to boot");
}

static void test_kernel_that_is_pinned_needs_no_network(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    CB_AUTO_FREE char *dir =
        cb_xasprintf("%s/home/kernels/6.9-x/lib/modules/6.9-x", (char *)*state);
    assert_ok(cb_mkdir_p(dir, 0755, &err), &err);
    CB_AUTO_FREE char *image = cb_xasprintf("%s/home/kernels/6.9-x/vmlinuz", (char *)*state);
    assert_ok(cb_write_file(image, "k", 1, 0644, &err), &err);
    CB_AUTO_FREE char *pin = cb_xasprintf("%s/home/kernels/current.json", (char *)*state);
    static const char text[] = "{\"release\": \"6.9-x\"}";
    assert_ok(cb_write_file(pin, text, strlen(text), 0644, &err), &err);
    struct kernel k = {0};
    char url[] = "http://127.0.0.1:1";
    assert_ok(get_from(*state, url, &k, &err), &err);
    assert_string_equal(k.release, "6.9-x");
    assert_string_equal(k.image, image);
    assert_string_equal(k.modules, dir);
    kernel_release(&k);
    static const char evil[] = "{\"release\": \"../../etc\"}";
    assert_ok(cb_write_file(pin, evil, strlen(evil), 0644, &err), &err);
    assert_fails(get_from(*state, url, &k, &err), &err, CB_E_ENV, "no kernel to boot");
}

static void test_kernel_of_the_settings_must_be_a_bzimage(void **state)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct kernel k = {0};
    unsigned char image[0x400] = {0};
    memcpy(image + 0x202, "HdrS", 4);
    image[0x20f] = 1; /* the version text at 0x300 */
    memcpy(image + 0x300, "6.8.1-mine (me@here) #1", 24);
    CB_AUTO_FREE char *path = cb_xasprintf("%s/bzImage", (char *)*state);
    assert_ok(cb_write_file(path, image, sizeof(image), 0644, &err), &err);
    CB_AUTO_FREE char *modules = cb_xasprintf("%s/lib/modules/6.8.1-mine", (char *)*state);
    assert_ok(cb_mkdir_p(modules, 0755, &err), &err);
    struct settings s = {.kernel = path};
    assert_ok(kernel_get(&s, NULL, NULL, &k, &err), &err);
    assert_string_equal(k.release, "6.8.1-mine");
    assert_string_equal(k.modules, modules);
    kernel_release(&k);
    memcpy(image + 0x300, "../evil", 8);
    assert_ok(cb_write_file(path, image, sizeof(image), 0644, &err), &err);
    assert_fails(kernel_get(&s, NULL, NULL, &k, &err), &err, CB_E_ENV, "is not a Linux bzImage");
    assert_ok(cb_write_file(path, "short", 5, 0644, &err), &err);
    assert_fails(kernel_get(&s, NULL, NULL, &k, &err), &err, CB_E_ENV, "is not a Linux bzImage");
    char nowhere[] = "/nowhere/bzImage";
    s.kernel = nowhere;
    assert_fails(kernel_get(&s, NULL, NULL, &k, &err), &err, CB_E_ENV,
                 "no kernel to boot: /nowhere/bzImage: No such file");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_release_file_gives_field_and_digest),
        cmocka_unit_test(test_package_list_leads_to_one_kernel),
        test_in_dir(test_kernel_from_a_mirror_that_lies_is_refused),
        test_in_dir(test_kernel_offline_says_what_to_do),
        test_in_dir(test_kernel_that_is_pinned_needs_no_network),
        test_in_dir(test_kernel_of_the_settings_must_be_a_bzimage),
    };
    return cmocka_run_group_tests_name("kernel", tests, NULL, NULL);
}
