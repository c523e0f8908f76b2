#include "machine_check.h"
#include "machine_net.h"

#include "builder/session.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <signal.h>
#include <sys/syscall.h>
#include <sys/wait.h>

enum { DISK = 8 << 20 };

struct place {
    char *dir, *lower, *scratch, *output, *work;
    struct settings settings;
    struct machine *m;
};

static int place_setup(void **state)
{
    void *dir;
    if (check_dir_setup(&dir) < 0)
        return -1;
    struct place *p = cb_xcalloc(1, sizeof(*p));
    p->dir = dir;
    p->lower = machine_disk_file(dir, "lower, with a comma", DISK);
    p->scratch = machine_disk_file(dir, "scratch", 2 * DISK);
    p->output = machine_disk_file(dir, "output", 3 * DISK);
    p->work = cb_xasprintf("%s/work", p->dir);
    p->settings = machine_settings();
    *state = p;
    return 0;
}

static int place_teardown(void **state)
{
    struct place *p = *state;
    machine_vm.stop(p->m, 0);
    void *dir = p->dir;
    free(p->lower);
    free(p->scratch);
    free(p->output);
    free(p->work);
    machine_settings_release(&p->settings);
    free(p);
    return check_dir_teardown(&dir);
}

static void start(struct place *p, struct machine_spec *spec)
{
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    spec->work_dir = p->work;
    spec->agent_path = STUB_AGENT;
    spec->lower = p->lower;
    spec->scratch = p->scratch;
    spec->output = p->output;
    spec->memory_mib = 256;
    spec->console_fd = -1;
    spec->note = machine_say;
    assert_ok(machine_vm.start(&p->settings, spec, &p->m, &err), &err);
    CB_AUTO_FREE char *hello = machine_line(p->m->stream);
    CB_AUTO_FREE char *console = machine_console_tail(p->m, 20);
    if (strcmp(hello, "hello") != 0)
        fail_msg("no hello but \"%s\"; console:\n%s", hello, console);
}

static void check_disks(struct place *p)
{
    char node[4] = "";
    CB_AUTO_FREE char *first = machine_ask(p->m->stream, "disks");
    char *line = cb_xstrdup(first);
    unsigned seen = 0;
    while (strcmp(line, "end") != 0 && *line) {
        char serial[32];
        unsigned long sectors;
        int ro;
        assert_int_equal(sscanf(line, "disk %*s %31s sectors %lu ro %d", serial, &sectors, &ro), 3);
        if (strcmp(serial, "lower") == 0) {
            assert_int_equal(sectors, DISK / 512);
            assert_int_equal(ro, 1);
            seen |= 1;
        } else if (strcmp(serial, "scratch") == 0) {
            assert_int_equal(sectors, 2 * DISK / 512);
            assert_int_equal(ro, 0);
            seen |= 2;
        } else if (strcmp(serial, "output") == 0) {
            assert_int_equal(sectors, 3 * DISK / 512);
            assert_int_equal(ro, 0);
            assert_int_equal(sscanf(line, "disk %3s", node), 1);
            seen |= 4;
        }
        free(line);
        line = machine_line(p->m->stream);
    }
    free(line);
    assert_int_equal(seen, 7);
    CB_AUTO_FREE char *write = cb_xasprintf("write /dev/%s here I am", node);
    assert_answer(p->m->stream, write, "ok");
    char text[10] = "";
    CB_AUTO_FD fd = open(p->output, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, text, 9, 0), 9);
    assert_string_equal(text, "here I am");
}

static void test_build_guest_has_its_disks_and_a_sandboxed_network(void **state)
{
    struct place *p = *state;
    struct machine_spec spec = {.mode = MACHINE_BUILD, .network = true, .hostname = "builder-1"};
    start(p, &spec);
    assert_string_equal(p->m->dns, "10.0.2.3");
    check_disks(p);
    machine_check_network(p->m->stream, &p->settings, p->m->dns, true);
    CB_AUTO_FREE char *words = machine_ask(p->m->stream, "cmdline");
    assert_non_null(strstr(words, "capsule.mode=build"));
    assert_non_null(strstr(words, "capsule.hostname=builder-1"));
    assert_null(machine_end_text(p->m));
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    assert_ok(cb_write_all(p->m->stream, "bye\n", 4, &err), &err);
    char c;
    while (read(p->m->stream, &c, 1) == 1) { /* until QEMU closes it */
    }
    CB_AUTO_FREE char *end = NULL;
    for (int64_t limit = cb_monotonic_ms() + 10000; !end && cb_monotonic_ms() < limit;)
        end = machine_end_text(p->m);
    assert_non_null(end);
    assert_string_equal(end, "QEMU: powered off");
    CB_AUTO_FREE char *console = machine_console_tail(p->m, 200);
    assert_non_null(strstr(console, "stub: up in mode build"));
}

/* A connection through the forwarded port, from a thread, because the guest serves it only while it
 * is asked to. */
static void *call_port(void *arg)
{
    uint16_t port = *(const uint16_t *)arg;
    char text[64] = "";
    size_t n = 0;
    struct sockaddr_in a = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    CB_AUTO_FD s = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(s, (const struct sockaddr *)&a, sizeof(a)) == 0)
        for (ssize_t got; n + 1 < sizeof(text) && (got = read(s, text + n, 63 - n)) > 0;)
            n += (size_t)got;
    return cb_xstrdup(text);
}

static void test_boot_guest_writes_to_an_overlay_and_answers_on_forwarded_ports(void **state)
{
    struct place *p = *state;
    uint16_t port;
    cb_close(machine_listen(&port)); /* a port that is free */
    const uint16_t forwards[][2] = {{port, 8080}};
    struct machine_spec spec = {
        .mode = MACHINE_BOOT, .network = true, .forwards = forwards, .n_forwards = 1};
    start(p, &spec);
    CB_AUTO_FREE char *disk = machine_ask(p->m->stream, "disks");
    CB_AUTO_FREE char *expected = cb_xasprintf("disk vda root sectors %d ro 0", DISK / 512);
    assert_string_equal(disk, expected);
    CB_AUTO_FREE char *end = machine_line(p->m->stream);
    assert_string_equal(end, "end");
    assert_answer(p->m->stream, "write /dev/vda scribble", "ok");
    assert_answer(p->m->stream, "read /dev/vda", "scribble");
    char text[8] = "";
    CB_AUTO_FD fd = open(p->lower, O_RDONLY | O_CLOEXEC);
    assert_int_equal(pread(fd, text, 8, 0), 8);
    assert_memory_equal(text, "\0\0\0\0\0\0\0\0", 8);
    assert_answer(p->m->stream, "serve 8080", "listening");
    pthread_t thread;
    void *got = NULL;
    assert_int_equal(pthread_create(&thread, NULL, call_port, &port), 0);
    assert_int_equal(pthread_join(thread, &got), 0);
    CB_AUTO_FREE char *greeting = got;
    assert_string_equal(greeting, "hi from the guest\n");
}

static void test_guest_without_network_has_none(void **state)
{
    struct place *p = *state;
    struct machine_spec spec = {.mode = MACHINE_BUILD};
    start(p, &spec);
    assert_string_equal(p->m->dns, "");
    assert_answer(p->m->stream, "read /sys/class/net/eth0/address",
                  "errno 2 No such file or directory");
}

static void test_start_reports_what_qemu_says(void **state)
{
    struct place *p = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct machine_spec spec = {.mode = MACHINE_BOOT,
                                .work_dir = p->work,
                                .agent_path = STUB_AGENT,
                                .lower = p->lower,
                                .kernel = "/nowhere/vmlinuz",
                                .initramfs = STUB_AGENT,
                                .console_fd = -1};
    assert_fails(machine_vm.start(&p->settings, &spec, &p->m, &err), &err, CB_E_ENV,
                 "start the virtual machine: QEMU did not start: exit status 1: "
                 "qemu: could not open kernel file '/nowhere/vmlinuz'");
    spec.lower = "/nowhere/at/all";
    assert_fails(machine_vm.start(&p->settings, &spec, &p->m, &err), &err, CB_E_SYS,
                 "/nowhere/at/all: No such file or directory");
}

static void test_guest_that_never_speaks_is_given_up(void **state)
{
    struct place *p = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct session *s = NULL;
    struct session_callbacks cb = {0};
    struct machine_spec spec = {.mode = MACHINE_BUILD,
                                .work_dir = p->work,
                                .agent_path = STUB_AGENT,
                                .lower = p->lower,
                                .scratch = p->scratch,
                                .output = p->output,
                                .memory_mib = 256,
                                .cmdline_extra = "stub.mute",
                                .console_fd = -1};
    assert_ok(machine_vm.start(&p->settings, &spec, &p->m, &err), &err);
    assert_fails(session_with(p->m, 300, &cb, &s, &err), &err, CB_E_TIMEOUT,
                 "wait for the agent: the builder did not answer in time");
    assert_null(machine_end_text(p->m)); /* it would be there still */
}

static int refuse(void *arg, struct cb_error *err)
{
    (void)arg;
    return cb_fail(err, CB_E_CORRUPT, "not this one");
}

/* What a program held in memory and had written to its disk is there in every copy that goes on;
 * what one copy writes is its own. A machine of another size, or one whose state is refused, does
 * not. */
static void test_saved_guest_goes_on_where_it_was(void **state)
{
    struct place *p = *state;
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    struct machine_spec spec = {.mode = MACHINE_BOOT, .network = true};
    start(p, &spec);
    assert_answer(p->m->stream, "write /memory in memory", "ok");
    assert_answer(p->m->stream, "write /dev/vda on disk", "ok");
    CB_AUTO_FD state_fd = open(p->dir, O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    assert_ok(machine_vm_save(p->m, state_fd, &err), &err);
    CB_AUTO_FREE char *kept = cb_xasprintf("%s/kept.qcow2", p->dir);
    assert_int_equal(rename(machine_vm_overlay(p->m), kept), 0);
    const struct machine_identity *was = machine_vm_identity(p->m);
    struct machine_identity id = *was;
    id.qemu = cb_xstrdup(was->qemu);
    id.machine = cb_xstrdup(was->machine);
    id.cpu = cb_xstrdup(was->cpu);
    id.network = cb_xstrdup(was->network);
    machine_vm.stop(p->m, 0);
    p->m = NULL;
    CB_AUTO_FREE char *copy = cb_xasprintf("%s/copy.qcow2", p->dir);
    struct machine_saved saved = {.id = &id, .state = state_fd, .overlay = copy};
    for (int i = 0; i < 2; i++) {
        CB_AUTO_FD from = open(kept, O_RDONLY | O_CLOEXEC);
        CB_AUTO_FD to = open(copy, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
        assert_ok(cb_clone_file(from, to, &err), &err);
        assert_int_equal(lseek(state_fd, 0, SEEK_SET), 0);
        spec.resume = &saved;
        assert_ok(machine_vm.start(&p->settings, &spec, &p->m, &err), &err);
        assert_true(p->m->resumed);
        assert_answer(p->m->stream, "read /memory", "in memory");
        assert_answer(p->m->stream, "read /dev/vda", "on disk");
        assert_answer(p->m->stream, "write /memory another", "ok");
        assert_answer(p->m->stream, "write /dev/vda another", "ok");
        machine_vm.stop(p->m, 0);
        p->m = NULL;
    }
    CB_AUTO_ERROR refused = CB_ERROR_INIT;
    assert_int_equal(lseek(state_fd, 0, SEEK_SET), 0);
    saved.check = refuse;
    assert_fails(machine_vm.start(&p->settings, &spec, &p->m, &refused), &refused, CB_E_CORRUPT,
                 "start the virtual machine: not this one");
    CB_AUTO_ERROR differs = CB_ERROR_INIT;
    id.memory_mib = 512;
    assert_fails(machine_vm.start(&p->settings, &spec, &p->m, &differs), &differs, CB_E_CONFLICT,
                 "start the virtual machine: it has 256 MiB here, it was saved with 512");
    id.memory_mib = 256;
    saved.check = NULL;
    CB_AUTO_ERROR cut = CB_ERROR_INIT;
    assert_int_equal(ftruncate(state_fd, 100000), 0);
    assert_int_equal(lseek(state_fd, 0, SEEK_SET), 0);
    assert_true(machine_vm.start(&p->settings, &spec, &p->m, &cut) < 0);
    assert_non_null(strstr(cut.msg, "start the virtual machine: "));
    assert_null(p->m);
    machine_identity_release(&id);
}

static void test_identities_differ_in_what_they_name(void **state)
{
    (void)state;
    struct machine_identity here = {.qemu = (char *)(uintptr_t) "7.2.22",
                                    .machine = (char *)(uintptr_t) "microvm",
                                    .cpu = (char *)(uintptr_t) "max, emulated",
                                    .network = (char *)(uintptr_t) "sandboxed",
                                    .vcpus = 2,
                                    .memory_mib = 512,
                                    .tsc_khz = 2000000};
    assert_null(machine_identity_differs(&here, &here));
    const struct {
        size_t text; /* offset of a text that is another, or 0 */
        uint32_t vcpus, tsc;
        const char *says;
    } table[] = {
        {offsetof(struct machine_identity, qemu), 2, 2000000,
         "QEMU is 7.2.22 here, it was saved with other"},
        {offsetof(struct machine_identity, cpu), 2, 2000000,
         "the CPU is max, emulated here, it was saved with other"},
        {offsetof(struct machine_identity, network), 2, 2000000,
         "the network is sandboxed here, it was saved with other"},
        {offsetof(struct machine_identity, machine), 2, 2000000,
         "the machine type is microvm here, it was saved with other"},
        {SIZE_MAX, 4, 2000000, "it has 2 CPUs here, it was saved with 4"},
        {SIZE_MAX, 2, 2010000, NULL}, /* two measurements of one clock */
        {SIZE_MAX, 2, 2500000, "the CPU counts at 2000000 kHz here, it was saved at 2500000"},
        {SIZE_MAX, 2, 0, "the CPU counts at 2000000 kHz here, it was saved at 0"},
    };
    for (size_t i = 0; i < sizeof(table) / sizeof(table[0]); i++) {
        struct machine_identity saved = here;
        if (table[i].text != SIZE_MAX)
            *(const char **)((char *)&saved + table[i].text) = "other";
        saved.vcpus = table[i].vcpus;
        saved.tsc_khz = table[i].tsc;
        CB_AUTO_FREE char *differs = machine_identity_differs(&saved, &here);
        if (table[i].says)
            assert_string_equal(differs, table[i].says);
        else
            assert_null(differs);
    }
}

/* kill -9 of the process that started it: QEMU and slirp4netns go too. */
static void test_guest_dies_with_who_started_it(void **state)
{
    struct place *p = *state;
    int pipe_fds[2], answer[2];
    assert_int_equal(pipe2(pipe_fds, O_CLOEXEC), 0);
    assert_int_equal(pipe2(answer, O_CLOEXEC), 0);
    pid_t pid = fork();
    if (pid == 0) {
        struct machine_spec spec = {.mode = MACHINE_BUILD, .network = true};
        start(p, &spec);
        if (write(answer[1], &p->m->pid, sizeof(p->m->pid)) < 0)
            _exit(1);
        char c;
        (void)!read(pipe_fds[0], &c, 1);
        _exit(0);
    }
    cb_close(answer[1]);
    pid_t qemu = 0;
    assert_int_equal(read(answer[0], &qemu, sizeof(qemu)), sizeof(qemu));
    assert_true(qemu > 0);
    int pidfd = (int)syscall(SYS_pidfd_open, qemu, 0);
    assert_true(pidfd >= 0);
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    struct pollfd w = {.fd = pidfd, .events = POLLIN};
    assert_int_equal(poll(&w, 1, 10000), 1);
    cb_close(pidfd);
    cb_close(answer[0]);
    cb_close(pipe_fds[0]);
    cb_close(pipe_fds[1]);
}

int main(void)
{
    if (!machine_have_kernel())
        return 77;
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_build_guest_has_its_disks_and_a_sandboxed_network,
                                        place_setup, place_teardown),
        cmocka_unit_test_setup_teardown(
            test_boot_guest_writes_to_an_overlay_and_answers_on_forwarded_ports, place_setup,
            place_teardown),
        cmocka_unit_test_setup_teardown(test_guest_without_network_has_none, place_setup,
                                        place_teardown),
        cmocka_unit_test_setup_teardown(test_start_reports_what_qemu_says, place_setup,
                                        place_teardown),
        cmocka_unit_test_setup_teardown(test_guest_that_never_speaks_is_given_up, place_setup,
                                        place_teardown),
        cmocka_unit_test_setup_teardown(test_saved_guest_goes_on_where_it_was, place_setup,
                                        place_teardown),
        cmocka_unit_test(test_identities_differ_in_what_they_name),
        cmocka_unit_test_setup_teardown(test_guest_dies_with_who_started_it, place_setup,
                                        place_teardown),
    };
    return cmocka_run_group_tests_name("vm_boot", tests, NULL, NULL);
}
