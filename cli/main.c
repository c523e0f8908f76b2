/* Reads the command line and hands over to one file a subcommand.
 *
 * Compiled twice: into capsule-build, and (with CB_PROGRAM_JOB) into capsule-build-job, the part
 * that reads images and talks to registries. The command line is the same for both, and people see
 * one command: capsule-build becomes the other program for the subcommands that live there. */
#include "cli/cli.h"

#include "schemas/reader.h"
#include "support/cleanup.h"
#include "support/file.h"
#include "support/mem.h"

#include <errno.h>
#include <getopt.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    OPT_CONFIG = 256,
    OPT_MIRROR,
    OPT_KERNEL,
    OPT_ISOLATION,
    OPT_PULL,
    OPT_PROGRESS,
    OPT_FORCE,
    OPT_CLEAN,
    OPT_NO_BOOT_CHECK,
    OPT_ALLOW_UNKNOWN,
    OPT_ALLOW_HOST_NETWORK,
    OPT_BOOT_TIMEOUT,
    OPT_JSON,
    OPT_ONCE,
    OPT_WARM,
    OPT_KEEP_DRIVES,
    OPT_FORWARD,
    OPT_EXEC,
    OPT_VERSION,
    OPT_EXPLAIN,
    OPT_LOCKED,
    OPT_REFRESH,
    OPT_MAX_BYTES,
    OPT_KEEP,
    OPT_MIN_AGE,
    OPT_DRY_RUN,
    OPT_REPAIR,
    OPT_FORMAT,
    OPT_SIZE,
    OPT_COMPRESS,
    OPT_KEEP_ZSTD,
    OPT_WITH_KERNEL,
    OPT_DRIVE,
    OPT_STAT,
    OPT_SIZES,
    OPT_DEPTH,
    OPT_TOP,
    OPT_SBOM,
    OPT_PROVENANCE,
    OPT_VERIFY_SIGNATURE,
};

#define SETTINGS_OPTIONS                                                                           \
    {"config", required_argument, NULL, OPT_CONFIG},                                               \
        {"registry-mirror", required_argument, NULL, OPT_MIRROR},                                  \
        {"kernel", required_argument, NULL, OPT_KERNEL},                                           \
        {"allow-host-network", no_argument, NULL, OPT_ALLOW_HOST_NETWORK},                         \
    {                                                                                              \
        "help", no_argument, NULL, 'h'                                                             \
    }
#define END_OPTIONS                                                                                \
    {                                                                                              \
        NULL, 0, NULL, 0                                                                           \
    }

static const struct option build_options[] = {
    SETTINGS_OPTIONS,
    {"isolation", required_argument, NULL, OPT_ISOLATION},
    {"pull", required_argument, NULL, OPT_PULL},
    {"progress", required_argument, NULL, OPT_PROGRESS},
    {"force", no_argument, NULL, OPT_FORCE},
    {"clean", no_argument, NULL, OPT_CLEAN},
    {"no-boot-check", no_argument, NULL, OPT_NO_BOOT_CHECK},
    {"boot-timeout", required_argument, NULL, OPT_BOOT_TIMEOUT},
    {"allow-unknown", no_argument, NULL, OPT_ALLOW_UNKNOWN},
    {"locked", no_argument, NULL, OPT_LOCKED},
    {"refresh", required_argument, NULL, OPT_REFRESH},
    END_OPTIONS,
};
static const struct option resume_options[] = {
    SETTINGS_OPTIONS,
    {"isolation", required_argument, NULL, OPT_ISOLATION},
    {"no-boot-check", no_argument, NULL, OPT_NO_BOOT_CHECK},
    {"progress", required_argument, NULL, OPT_PROGRESS},
    END_OPTIONS,
};
static const struct option plan_options[] = {
    SETTINGS_OPTIONS,
    {"isolation", required_argument, NULL, OPT_ISOLATION},
    {"pull", required_argument, NULL, OPT_PULL},
    {"allow-unknown", no_argument, NULL, OPT_ALLOW_UNKNOWN},
    {"locked", no_argument, NULL, OPT_LOCKED},
    {"refresh", required_argument, NULL, OPT_REFRESH},
    {"force", no_argument, NULL, OPT_FORCE},
    {"clean", no_argument, NULL, OPT_CLEAN},
    {"no-boot-check", no_argument, NULL, OPT_NO_BOOT_CHECK},
    {"explain", no_argument, NULL, OPT_EXPLAIN},
    {"json", no_argument, NULL, OPT_JSON},
    END_OPTIONS,
};
static const struct option validate_options[] = {
    SETTINGS_OPTIONS, {"allow-unknown", no_argument, NULL, OPT_ALLOW_UNKNOWN}, END_OPTIONS};
static const struct option logs_options[] = {SETTINGS_OPTIONS,
                                             {"follow", no_argument, NULL, 'f'},
                                             {"progress", required_argument, NULL, OPT_PROGRESS},
                                             END_OPTIONS};
static const struct option list_options[] = {
    SETTINGS_OPTIONS, {"json", no_argument, NULL, OPT_JSON}, END_OPTIONS};
static const struct option show_options[] = {
    SETTINGS_OPTIONS,
    {"json", no_argument, NULL, OPT_JSON},
    {"sizes", no_argument, NULL, OPT_SIZES},
    {"depth", required_argument, NULL, OPT_DEPTH},
    {"top", required_argument, NULL, OPT_TOP},
    {"sbom", no_argument, NULL, OPT_SBOM},
    {"provenance", no_argument, NULL, OPT_PROVENANCE},
    {"verify-signature", required_argument, NULL, OPT_VERIFY_SIGNATURE},
    {"version", required_argument, NULL, OPT_VERSION},
    END_OPTIONS};
static const struct option boot_options[] = {
    SETTINGS_OPTIONS,
    {"forward", required_argument, NULL, OPT_FORWARD},
    {"exec", no_argument, NULL, OPT_EXEC},
    {"once", no_argument, NULL, OPT_ONCE},
    {"warm", no_argument, NULL, OPT_WARM},
    {"keep-drives", required_argument, NULL, OPT_KEEP_DRIVES},
    {"boot-timeout", required_argument, NULL, OPT_BOOT_TIMEOUT},
    {"version", required_argument, NULL, OPT_VERSION},
    END_OPTIONS,
};
static const struct option gc_options[] = {
    SETTINGS_OPTIONS,
    {"max-bytes", required_argument, NULL, OPT_MAX_BYTES},
    {"keep", required_argument, NULL, OPT_KEEP},
    {"min-age", required_argument, NULL, OPT_MIN_AGE},
    {"dry-run", no_argument, NULL, OPT_DRY_RUN},
    {"json", no_argument, NULL, OPT_JSON},
    END_OPTIONS,
};
static const struct option verify_options[] = {SETTINGS_OPTIONS,
                                               {"repair", no_argument, NULL, OPT_REPAIR},
                                               {"json", no_argument, NULL, OPT_JSON},
                                               END_OPTIONS};
static const struct option export_options[] = {
    SETTINGS_OPTIONS,
    {"format", required_argument, NULL, OPT_FORMAT},
    {"output", required_argument, NULL, 'o'},
    {"size", required_argument, NULL, OPT_SIZE},
    {"compress", no_argument, NULL, OPT_COMPRESS},
    {"keep-zstd", no_argument, NULL, OPT_KEEP_ZSTD},
    {"with-kernel", required_argument, NULL, OPT_WITH_KERNEL},
    {"drive", required_argument, NULL, OPT_DRIVE},
    {"version", required_argument, NULL, OPT_VERSION},
    END_OPTIONS,
};
static const struct option push_options[] = {
    SETTINGS_OPTIONS, {"version", required_argument, NULL, OPT_VERSION}, END_OPTIONS};
static const struct option diff_options[] = {SETTINGS_OPTIONS,
                                             {"json", no_argument, NULL, OPT_JSON},
                                             {"stat", no_argument, NULL, OPT_STAT},
                                             END_OPTIONS};
static const struct option settings_options[] = {SETTINGS_OPTIONS, END_OPTIONS};

/* A subcommand lives in one of the two programs and the table says in which: FRONT(cmd_x) in
 * capsule-build (cli/x.c), JOB(cmd_x) in capsule-build-job (cli/job/x.c). What parses an image, an
 * archive or a stranger's answer is a JOB. */
#ifdef CB_PROGRAM_JOB
#define FRONT(function) NULL
#define JOB(function) function
#else
#define FRONT(function) function
#define JOB(function) NULL
#endif

static const struct subcommand {
    const char *name;
    int (*run)(struct cli_args *); /* NULL: in the other program */
    const struct option *options;
    int min_words, max_words;
    const char *usage; /* NULL: not for people */
    const char *help;
} subcommands[] = {
    {"build", FRONT(cmd_build), build_options, 1, 1, "build FILE",
     "build FILE and publish it as a template (the default)"},
    {"validate", FRONT(cmd_validate), validate_options, 1, 1, "validate FILE",
     "check FILE, build nothing"},
    {"shell", JOB(cmd_shell), settings_options, 1, 1, "shell BUILD",
     "a shell in what the failed command of a build left"},
    {"resume", FRONT(cmd_resume), resume_options, 1, 1, "resume BUILD",
     "go on with a failed build, from the command that failed"},
    {"plan", JOB(cmd_plan), plan_options, 1, 1, "plan FILE [--explain]",
     "what building FILE would do, and why"},
    {"logs", FRONT(cmd_logs), logs_options, 0, 1, "logs [-f] [BUILD]",
     "what a build said; -f follows it until it is over"},
    {"builds", FRONT(cmd_builds), list_options, 0, 1, "builds [NAME]", "builds, newest first"},
    {"templates", FRONT(cmd_templates), list_options, 0, 2, "templates [rm NAME[:VERSION]]",
     "published templates; rm removes one"},
    {"show", FRONT(cmd_show), show_options, 1, 1, "show NAME[:VERSION]",
     "what a template is made of"},
    {"show-sizes", JOB(cmd_show_sizes), show_options, 1, 1, NULL, NULL}, /* show --sizes */
    {"diff", JOB(cmd_diff), diff_options, 2, 2, "diff A B [--stat]",
     "files that differ; A, B: NAME[:VERSION][/LAYER]"},
    {"boot", JOB(cmd_boot), boot_options, 1, 1, "boot NAME[:VERSION] [--exec CMD]",
     "boot a template on a throwaway disk"},
    {"gc", FRONT(cmd_gc), gc_options, 0, 0, "gc [--max-bytes SIZE] [--keep N]",
     "remove what nothing needs, and more until the store fits"},
    {"df", FRONT(cmd_df), list_options, 0, 0, "df", "what takes how much of the store"},
    {"verify", JOB(cmd_verify), verify_options, 0, 0, "verify [--repair]",
     "compare everything in the store with its digest"},
    {"export", JOB(cmd_export), export_options, 1, 1, "export NAME[:VERSION] --format F",
     "a template as a file for others"},
    {"push", JOB(cmd_push), push_options, 2, 2, "push NAME[:VERSION] REFERENCE",
     "a template into a registry, as an OCI image"},
    {"doctor", JOB(cmd_doctor), settings_options, 0, 0, "doctor",
     "check this machine and say what to install"},
    {"run-job", JOB(cmd_run_job), settings_options, 0, 0, NULL, NULL},
};
enum { N_SUBCOMMANDS = sizeof(subcommands) / sizeof(*subcommands) };

static void print_help(FILE *out)
{
    fputs("usage: capsule-build FILE [options]\n"
          "       capsule-build COMMAND ...\n\n"
          "Turns an onboard.yaml into a bootable image and publishes it as a template.\n\n"
          "Commands:\n",
          out);
    for (size_t i = 0; i < N_SUBCOMMANDS; i++)
        if (subcommands[i].usage)
            fprintf(out, "  %-32s %s\n", subcommands[i].usage, subcommands[i].help);
    fputs(
        "\nBuilding:\n"
        "  --isolation vm|container|auto    where commands run (auto)\n"
        "  --pull always|missing|never      when a registry is asked what a tag is (always)\n"
        "  --refresh LAYER                  run its refresh_commands on what it left (may be "
        "repeated)\n"
        "  --force                          run all layers, whatever is cached\n"
        "  --clean                          the same, and make the base image anew\n"
        "  --no-boot-check                  publish without booting it once\n"
        "  --boot-timeout SECONDS           until it must be ready (60; 300 emulated)\n"
        "  --progress auto|plain|tty|json   how it is shown (auto)\n"
        "  --allow-unknown                  unknown keys are warnings\n"
        "  --locked                         the base image that the version in use was built on\n"
        "  --explain                        (plan) why what is not cached is not\n"
        "\nBooting:\n"
        "  --forward HOST:GUEST             a port of this machine's loopback leads there\n"
        "  --exec CMD ARGS...               run one command; its exit code is ours\n"
        "  --once                           say when it is ready, then power off\n"
        "  --keep-drives DIR                (boot) keep there what is written to drives, for the "
        "next\n"
        "                                   boot with it\n"
        "  --warm                           from the machine that the build saved (snapshot: "
        "warm)\n"
        "  --version N                      a version other than the current one\n"
        "\nThe store:\n"
        "  --max-bytes SIZE                 (gc) it shall not take more, such as 20G\n"
        "  --keep N                         (gc) old versions of a template that stay\n"
        "  --min-age SECONDS                (gc) leave what is younger and not in use (3600)\n"
        "  --dry-run                        (gc) only say what would go\n"
        "  --repair                         (verify) put aside what is bad, make anew what can be\n"
        "\nExporting:\n"
        "  --format ext4                    the file system, for Firecracker and its like\n"
        "  --format raw|qcow2               a disk that boots anywhere with UEFI\n"
        "  --format gce                     the same as Compute Engine imports it\n"
        "  --format oci                     a container image: a folder, or -o FILE.tar\n"
        "  --format dir-tar                 one tar of the root file system\n"
        "  -o, --output FILE                where to (NAME-VERSION.*); - is standard output\n"
        "  --size SIZE                      of the disk or file system, as in 10G\n"
        "  --compress                       (qcow2) smaller, slower\n"
        "  --keep-zstd                      (oci) layers as they are, not all in gzip\n"
        "  --with-kernel DIR                (ext4) kernel, initramfs and command line beside it\n"
        "  --drive ID                       (ext4) a drive of the template, not its root\n"
        "\nShowing (show NAME):\n"
        "  --sizes [--depth N] [--top N]    where its bytes are, by layer and by folder\n"
        "  --sbom                           its packages, as SPDX 2.3 JSON\n"
        "  --provenance                     how it was made, as an in-toto statement (SLSA)\n"
        "  --verify-signature KEY           are both signed by this public key, and about it\n"
        "\nEverywhere:\n"
        "  --config FILE                    a settings file\n"
        "  --registry-mirror HOST=URL       images of HOST come from URL\n"
        "  --kernel FILE                    boot this kernel, not the distribution's\n"
        "  --allow-host-network             build although the network cannot be closed off\n"
        "  --json                           lists, `show` and `plan` as JSON\n"
        "\nExit status: 0 done, 1 the build failed, 2 the input is wrong, 3 this machine lacks\n"
        "something, 130 interrupted. State: $CAPSULE_BUILD_HOME. `capsule-build doctor` helps.\n",
        out);
}

__attribute__((format(printf, 1, 2))) static int bad_usage(const char *fmt, ...)
{
    va_list ap;
    va_start(ap, fmt);
    fputs("capsule-build: ", stderr);
    vfprintf(stderr, fmt, ap);
    fputs("\n  `capsule-build --help` says what is accepted\n", stderr);
    va_end(ap);
    return EXIT_BAD_INPUT;
}

/* The same, with the one of @words (ending with NULL) that was probably meant, behind @before. */
__attribute__((format(printf, 4, 5))) static int
bad_word(const char *given, const char *const *words, const char *before, const char *fmt, ...)
{
    const char *near = nearest_word(given, words);
    va_list ap;
    va_start(ap, fmt);
    CB_AUTO_FREE char *what = cb_xvasprintf(fmt, ap);
    va_end(ap);
    return near ? bad_usage("%s; did you mean `%s%s`?", what, before, near) : bad_usage("%s", what);
}

/* A whole decimal number in [min, max], nothing before or behind it. */
static bool parse_number(const char *text, uint64_t min, uint64_t max, uint64_t *out)
{
    if (text[0] < '0' || text[0] > '9')
        return false;
    char *end;
    errno = 0;
    unsigned long long v = strtoull(text, &end, 10);
    if (errno || *end || v < min || v > max)
        return false;
    *out = v;
    return true;
}

/* A number of bytes from 1, or of K, M, G or T of them, by 1024. */
static bool parse_size(const char *text, uint64_t *out)
{
    static const char units[] = "KMGT";
    size_t n = strlen(text);
    const char *unit = n ? strchr(units, text[n - 1]) : NULL;
    CB_AUTO_FREE char *digits = cb_xstrndup(text, unit ? n - 1 : n);
    unsigned shift = unit ? 10 * (unsigned)(unit - units + 1) : 0;
    if (!parse_number(digits, 1, UINT64_MAX >> (shift + 1), out))
        return false;
    *out <<= shift;
    return true;
}

static int add_forward(struct cli_args *a, const char *text)
{
    uint64_t host = 0, guest = 0;
    const char *colon = strchr(text, ':');
    CB_AUTO_FREE char *left = colon ? cb_xstrndup(text, (size_t)(colon - text)) : NULL;
    if (!colon || !parse_number(left, 0, 65535, &host) ||
        !parse_number(colon + 1, 1, 65535, &guest))
        return bad_usage("--forward %s: not HOST:GUEST, two port numbers (HOST 0: any free one)",
                         text);
    if (a->n_forwards == sizeof(a->forwards) / sizeof(*a->forwards))
        return bad_usage("--forward: at most 32 ports");
    a->forwards[a->n_forwards][0] = (uint16_t)host;
    a->forwards[a->n_forwards++][1] = (uint16_t)guest;
    return 0;
}

static int set_progress(struct cli_args *a, const char *text)
{
    static const char *const names[] = {"auto", "plain", "tty", "json"};
    for (size_t i = 0; i < 4; i++) {
        if (strcmp(text, names[i]) == 0) {
            a->progress = (enum progress_mode)i;
            return 0;
        }
    }
    return bad_usage("--progress %s: accepted are auto, plain, tty, json", text);
}

/* 0, or an exit status after printing. */
static int set_option(struct cli_args *a, int opt, const char *value)
{
    uint64_t n;
    switch (opt) {
    case OPT_CONFIG: a->config_file = value; return 0;
    case OPT_MIRROR: cb_strv_add(&a->mirrors, value); return 0;
    case OPT_KERNEL: a->kernel = value; return 0;
    case OPT_ISOLATION:
        if (isolation_from_name(value) < 0)
            return bad_usage("--isolation %s: accepted are vm, container, auto", value);
        a->isolation = value;
        return 0;
    case OPT_PULL:
        if (pull_from_name(value) < 0)
            return bad_usage("--pull %s: accepted are always, missing, never", value);
        a->pull = value;
        return 0;
    case OPT_PROGRESS: return set_progress(a, value);
    case OPT_FORCE: a->force = true; return 0;
    case OPT_CLEAN: a->clean = true; return 0;
    case OPT_NO_BOOT_CHECK: a->no_boot_check = true; return 0;
    case OPT_ALLOW_UNKNOWN: a->allow_unknown = true; return 0;
    case OPT_ALLOW_HOST_NETWORK: a->allow_host_network = true; return 0;
    case OPT_BOOT_TIMEOUT:
        if (!parse_number(value, 1, 86400, &n))
            return bad_usage("--boot-timeout %s: not a number of seconds from 1 to 86400", value);
        a->boot_timeout_ms = (int64_t)n * 1000;
        return 0;
    case OPT_VERSION:
        if (!parse_number(value, 1, UINT32_MAX, &a->version))
            return bad_usage("--version %s: not a version number", value);
        return 0;
    case OPT_MAX_BYTES:
        if (!parse_size(value, &a->max_bytes))
            return bad_usage("--max-bytes %s: not a size such as 500M or 20G", value);
        return 0;
    case OPT_KEEP:
        if (!parse_number(value, 1, UINT32_MAX, &a->keep))
            return bad_usage("--keep %s: not a number of versions from 1", value);
        return 0;
    case OPT_MIN_AGE:
        if (!parse_number(value, 0, UINT32_MAX, &n))
            return bad_usage("--min-age %s: not a number of seconds", value);
        a->min_age_s = (int64_t)n;
        return 0;
    case OPT_DRY_RUN: a->dry_run = true; return 0;
    case OPT_REPAIR: a->repair = true; return 0;
    case OPT_JSON: a->json = true; return 0;
    case OPT_SIZES: a->sizes = true; return 0;
    case OPT_DEPTH:
    case OPT_TOP:
        if (!parse_number(value, 1, 1000, &n))
            return bad_usage("%s: not a number from 1 to 1000", value);
        *(opt == OPT_TOP ? &a->top : &a->depth) = (unsigned)n;
        return 0;
    case OPT_STAT: a->stat = true; return 0;
    case OPT_SBOM: a->sbom = true; return 0;
    case OPT_PROVENANCE: a->provenance = true; return 0;
    case OPT_VERIFY_SIGNATURE: a->verify_key = value; return 0;
    case OPT_EXPLAIN: a->explain = true; return 0;
    case OPT_LOCKED: a->locked = true; return 0;
    case OPT_REFRESH: cb_strv_add(&a->refresh, value); return 0;
    case OPT_ONCE: a->once = true; return 0;
    case OPT_WARM: a->warm = true; return 0;
    case OPT_KEEP_DRIVES: a->keep_drives = value; return 0;
    case OPT_FORWARD: return add_forward(a, value);
    case OPT_FORMAT: a->format = value; return 0;
    case 'o': a->output = value; return 0;
    case OPT_SIZE:
        if (!parse_size(value, &a->size) || a->size > UINT64_C(4) << 40)
            return bad_usage("--size %s: not a size such as 10G, at most 4T", value);
        return 0;
    case OPT_COMPRESS: a->compress = true; return 0;
    case OPT_KEEP_ZSTD: a->keep_zstd = true; return 0;
    case OPT_WITH_KERNEL: a->with_kernel = value; return 0;
    case OPT_DRIVE: a->drive = value; return 0;
    case 'f': a->follow = true; return 0;
    default: return EXIT_BAD_INPUT;
    }
}

static const struct subcommand *find_subcommand(const char *name)
{
    for (size_t i = 0; i < N_SUBCOMMANDS; i++)
        if (strcmp(subcommands[i].name, name) == 0)
            return &subcommands[i];
    return NULL;
}

static bool takes(const struct subcommand *sc, int opt)
{
    const struct option *o = sc->options;
    while (o->name && o->val != opt)
        o++;
    return o->name != NULL;
}

static int unknown_option(const struct subcommand *sc, const char *given)
{
    const char *words[64] = {NULL};
    size_t n = 0;
    for (const struct option *o = sc->options; o->name && n + 1 < sizeof(words) / sizeof(*words);
         o++)
        words[n++] = o->name;
    size_t len = strcspn(given + strspn(given, "-"), "=");
    CB_AUTO_FREE char *name = cb_xstrndup(given + strspn(given, "-"), len);
    return bad_word(name, words, "--", "%s: no such option of `%s`", given, sc->name);
}

/* Reads options and words from argv[1..]. 0, or an exit status; -1: help was asked for. */
static int parse(struct cli_args *a, const struct subcommand *sc, int argc, char **argv)
{
    opterr = 0;
    optind = 1;
    int opt;
    /* "-": words come as option 1, in place, so that --exec can end the options wherever it stands
     */
    while ((opt = getopt_long(argc, argv, "-:fho:", sc->options, NULL)) != -1) {
        if (opt == 'h')
            return -1;
        if (opt == 1) {
            cb_strv_add(&a->words, optarg);
            continue;
        }
        if (opt == OPT_EXEC) {
            if (optind >= argc)
                return bad_usage("--exec: the command is missing");
            a->exec_argv = argv + optind;
            return 0;
        }
        if (opt == ':')
            return bad_usage("%s: its value is missing", argv[optind - 1]);
        if (opt == '?' || !takes(sc, opt))
            return unknown_option(sc, argv[optind - 1]);
        int rc = set_option(a, opt, optarg);
        if (rc)
            return rc;
    }
    for (; optind < argc; optind++)
        cb_strv_add(&a->words, argv[optind]);
    return 0;
}

/* Reads the rest of the command line and does what it says. */
static int run(const struct subcommand *sc, int argc, char **argv)
{
    struct cli_args a = {.program = argv[0], .min_age_s = -1, .command = sc->name};
    int rc = parse(&a, sc, argc, argv);
    if (rc == -1) {
        print_help(stdout);
        rc = EXIT_DONE;
    } else if (rc == 0 && (int)a.words.n < sc->min_words) {
        rc = bad_usage("usage: capsule-build %s", sc->usage);
    } else if (rc == 0 && (int)a.words.n > sc->max_words) {
        rc = bad_usage("%s: one word too many; usage: capsule-build %s", a.words.v[sc->max_words],
                       sc->usage ? sc->usage : sc->name);
    } else if (rc == 0) {
        rc = sc->run(&a);
    }
    cb_strv_release(&a.words);
    cb_strv_release(&a.mirrors);
    cb_strv_release(&a.refresh);
    return rc;
}

#ifdef CB_PROGRAM_JOB

/* Only started by capsule-build, and only by the one that it was made with: the two share the words
 * of the queue and the store. */
int main(int argc, char **argv)
{
    (void)signal(SIGPIPE, SIG_IGN);
    const char *front = getenv(CLI_BUILD_ID_VARIABLE);
    const struct subcommand *sc = argc > 1 ? find_subcommand(argv[1]) : NULL;
    if (!front || !sc || !sc->run) {
        fputs("capsule-build-job is a part of capsule-build, which starts it: see `capsule-build "
              "--help`\n",
              stderr);
        return EXIT_BAD_INPUT;
    }
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    if (strcmp(front, cli_build_id) != 0) {
        cb_fail(&err, CB_E_ENV,
                "capsule-build is %s and its capsule-build-job is %s: they must be of one build",
                front, cli_build_id);
        cb_hint(&err, "install both anew from the same build; `./dev build` makes both");
    }
    (void)unsetenv(CLI_BUILD_ID_VARIABLE);
    if (err.code == CB_OK)
        return run(sc, argc - 1, argv + 1);
    return sc->run == cmd_run_job ? run_job_refuse(&err) : cli_fail(&err);
}

#else

/* Becomes capsule-build-job, with the same command line. Returns only when that fails. */
static int become_job(char **argv)
{
    CB_AUTO_FREE char *path = cli_job_program();
    if (!path)
        return EXIT_ENVIRONMENT;
    argv[0] = path;
    execv(path, argv);
    CB_AUTO_ERROR err = CB_ERROR_INIT;
    cb_fail(&err, CB_E_ENV, "start %s: %s", path, strerror(errno));
    return cli_fail(&err);
}

/* The first word is no command: that a file was meant is plain when it looks like one or is one. */
static bool is_file(const char *word)
{
    return word[0] == '-' || strpbrk(word, "./") || cb_path_exists(word);
}

static int unknown_command(const char *given)
{
    const char *words[N_SUBCOMMANDS + 1] = {NULL};
    size_t n = 0;
    for (size_t i = 0; i < N_SUBCOMMANDS; i++)
        if (subcommands[i].usage)
            words[n++] = subcommands[i].name;
    return bad_word(given, words, "capsule-build ",
                    "%s: there is no such command, and no such file", given);
}

int main(int argc, char **argv)
{
    (void)signal(SIGPIPE, SIG_IGN);
    if (argc < 2) {
        print_help(stderr);
        return EXIT_BAD_INPUT;
    }
    if (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0 ||
        strcmp(argv[1], "help") == 0) {
        print_help(stdout);
        return EXIT_DONE;
    }
    if (strcmp(argv[1], "--version") == 0) {
        printf("capsule-build %s\n", cli_version);
        return EXIT_DONE;
    }
    const struct subcommand *sc = find_subcommand(argv[1]);
    if (!sc)
        return is_file(argv[1]) ? run(&subcommands[0], argc, argv) : unknown_command(argv[1]);
    static char sizes[] = "show-sizes"; /* the one way to `show` that looks into an image */
    for (int i = 2; i < argc && strcmp(sc->name, "show") == 0; i++) {
        if (strncmp(argv[i], "--si", 4) == 0) {
            argv[1] = sizes;
            return become_job(argv);
        }
    }
    return sc->run ? run(sc, argc - 1, argv + 1) : become_job(argv);
}

#endif
