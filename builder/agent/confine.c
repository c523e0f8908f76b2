/* confine: a command that may open only what it names. The kernel keeps it to that (Landlock), and
 * all that it starts. What every program needs to run stays readable. */
#include "builder/agent/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

/* linux/landlock.h, which musl does not carry. */
#define CREATE_RULESET 444
#define ADD_RULE 445
#define RESTRICT_SELF 446
#define VERSION_FLAG 1u
#define PATH_BENEATH 1
#define EXECUTE (1u << 0)
#define WRITE_FILE (1u << 1)
#define READ_FILE (1u << 2)
#define READ_DIR (1u << 3)
#define MAKE_CHAR (1u << 6)
#define MAKE_BLOCK (1u << 11)
#define RIGHTS_V1 ((1u << 13) - 1)
#define REFER (1u << 13)    /* version 2 */
#define TRUNCATE (1u << 14) /* version 3 */
#define OF_FILES (EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE)

struct ruleset_attr {
    uint64_t handled;
};
struct path_attr {
    uint64_t allowed;
    int32_t parent;
} __attribute__((packed));

static const char *const read_only[] = {"/bin",    "/sbin",    "/lib", "/lib32", "/lib64", "/usr",
                                        "/libx32", "/libexec", "/etc", "/opt",   "/sys",   "/nix"};
static const char *const writable[] = {"/dev", "/proc"};

static int64_t version(void)
{
    return syscall(CREATE_RULESET, NULL, 0UL, VERSION_FLAG);
}

bool confine_works(void)
{
    return version() > 0;
}

/* @path and what lies below it. One that is not there is -1 with ENOENT. */
static int allow(int rules, const char *path, uint64_t rights)
{
    struct stat st;
    int fd = open(path, O_PATH | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st) < 0) {
        int saved = errno;
        if (fd >= 0)
            (void)close(fd);
        errno = saved;
        return -1;
    }
    struct path_attr a = {.allowed = S_ISDIR(st.st_mode) ? rights : rights & OF_FILES,
                          .parent = fd};
    long rc = syscall(ADD_RULE, rules, PATH_BENEATH, &a, 0UL);
    int saved = errno;
    (void)close(fd);
    errno = saved;
    return rc < 0 ? -1 : 0;
}

int confine(const struct words *files, const char **what)
{
    int64_t v = version();
    uint64_t all = RIGHTS_V1 | (v >= 2 ? REFER : 0) | (v >= 3 ? TRUNCATE : 0);
    const struct ruleset_attr attr = {.handled = all};
    all &= ~(uint64_t)(MAKE_CHAR | MAKE_BLOCK); /* in a machine of its own: the disks, all files */
    *what = "Landlock";
    int rules = (int)syscall(CREATE_RULESET, &attr, sizeof attr, 0UL);
    if (rules < 0)
        return -1;
    int rc = 0;
    for (size_t i = 0; i < ARRAY_LEN(read_only); i++)
        (void)allow(rules, read_only[i], EXECUTE | READ_FILE | READ_DIR); /* where there is one */
    for (size_t i = 0; i < ARRAY_LEN(writable); i++)
        (void)allow(rules, writable[i], all);
    for (size_t i = 0; rc == 0 && i < files->n; i++) {
        *what = files->v[i];
        rc = allow(rules, files->v[i], all);
    }
    if (rc == 0) {
        rc = (int)syscall(RESTRICT_SELF, rules, 0UL);
        if (rc < 0)
            *what = "Landlock";
    }
    int saved = errno;
    (void)close(rules);
    errno = saved;
    return rc;
}
