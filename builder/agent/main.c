#include "builder/agent/agent.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int usage(void)
{
    static const char text[] = "usage: capsule-agent build --lower DIR --scratch DIR --output FILE "
                               "--fd N [--groups DIR]\n       capsule-agent init\n"
                               "       capsule-agent service\n";
    (void)write_all(2, text, sizeof text - 1);
    return 64;
}

static int build_main(int argc, char **argv)
{
    struct build_mode m = {
        .lower = "/lower", .scratch = "/scratch", .output = "/output", .drives = "/drives"};
    uint64_t fd = 3;
    for (int i = 0; i < argc; i += 2) {
        if (i + 1 >= argc)
            return usage();
        if (strcmp(argv[i], "--lower") == 0)
            m.lower = argv[i + 1];
        else if (strcmp(argv[i], "--scratch") == 0)
            m.scratch = argv[i + 1];
        else if (strcmp(argv[i], "--output") == 0)
            m.output = argv[i + 1];
        else if (strcmp(argv[i], "--groups") == 0)
            m.groups = argv[i + 1];
        else if (strcmp(argv[i], "--fd") != 0 || !parse_number(argv[i + 1], 1023, &fd))
            return usage();
    }
    struct chan c;
    chan_init(&c, (int)fd, FRAME_REQUEST_MAX);
    int rc = build_loop(&m, &c);
    chan_release(&c);
    return rc;
}

int main(int argc, char **argv)
{
    if (argc >= 2 && strcmp(argv[1], "build") == 0)
        return build_main(argc - 2, argv + 2);
    if (getpid() == 1 && argc >= 2 && strcmp(argv[1], "init") == 0)
        boot_main();
    if (getpid() != 1 && argc >= 2 && strcmp(argv[1], "service") == 0)
        boot_service();
    if (getpid() == 1) {
        if (access(BOOT_CONF_PATH, F_OK) == 0)
            boot_main(); /* init=/.capsule/agent, without an initramfs */
        guest_main();
    }
    return usage();
}
