#include "builder/image_init.h"

#include "layers/ext4_read.h"
#include "support/cleanup.h"

#include <string.h>
#include <sys/stat.h>

#define NEEDED_MAX 3

CB_DEFINE_CLEANUP(ext4_image, struct ext4_image *, ext4_image_close);

/* After what a start command may well need, and not after everything: the unit of one that needs
 * more is ordered by a drop-in of the image's. */
static const char systemd_unit[] =
    "[Unit]\n"
    "Description=capsule-build: boot commands, start command, and the talk with the host\n"
    "After=network.target local-fs.target systemd-user-sessions.service\n"
    "RefuseManualStop=yes\n"
    "\n"
    "[Service]\n"
    "ExecStart=/.capsule/agent service\n"
    "StandardOutput=journal+console\n"
    "StandardError=inherit\n"
    "KillMode=mixed\n"
    "TimeoutStopSec=30\n"
    "OOMScoreAdjust=-1000\n";

static const struct image_init_file systemd_files[] = {
    {"etc/systemd/system/capsule-agent.service", 0644, systemd_unit, NULL},
    {"etc/systemd/system/multi-user.target.wants/capsule-agent.service", 0777, NULL,
     "../capsule-agent.service"},
    /* empty: each machine makes one of its own, and it is no first boot */
    {"etc/machine-id", 0444, "", NULL},
};

/* The last of its runlevel, so that what it starts finds the others. The options are those that
 * OpenRC's start-stop-daemon and Debian's have in common. */
static const char openrc_script[] =
    "#!/sbin/openrc-run\n"
    "description=\"capsule-build: boot commands, start command, and the talk with the host\"\n"
    "pid=/run/capsule-agent.pid\n"
    "\n"
    "depend()\n"
    "{\n"
    "\tafter *\n"
    "}\n"
    "\n"
    "start()\n"
    "{\n"
    "\tebegin \"Starting the capsule agent\"\n"
    "\tstart-stop-daemon --start --background --make-pidfile --pidfile $pid "
    "--exec /.capsule/agent -- service\n"
    "\teend $?\n"
    "}\n"
    "\n"
    "stop()\n"
    "{\n"
    "\tebegin \"Stopping the capsule agent\"\n"
    "\tstart-stop-daemon --stop --pidfile $pid --retry TERM/20/KILL/5\n"
    "\teend $?\n"
    "}\n";

static const struct image_init_file openrc_files[] = {
    {"etc/init.d/capsule-agent", 0755, openrc_script, NULL},
    {"etc/runlevels/default/capsule-agent", 0777, NULL, "/etc/init.d/capsule-agent"},
};

/* Programs, of which one in each row has to be there. The agent has the list of those that become
 * process 1 (builder/agent/init.c). */
static const struct image_init {
    const char *name;
    const struct image_init_file *files;
    size_t n_files;
    const char *needs[NEEDED_MAX][3];
    const char *hint;
} inits[] = {
    {"systemd",
     systemd_files,
     sizeof(systemd_files) / sizeof(systemd_files[0]),
     {{"/usr/lib/systemd/systemd", "/lib/systemd/systemd", NULL},
      {"/usr/bin/systemctl", "/bin/systemctl", NULL}},
     "install it in a layer (Debian: `apt-get install -y --no-install-recommends systemd-sysv`), "
     "or leave `init` out: the agent needs no other init"},
    {"openrc",
     openrc_files,
     sizeof(openrc_files) / sizeof(openrc_files[0]),
     {{"/sbin/openrc-run", NULL},
      {"/sbin/init", "/sbin/openrc-init", NULL},
      {"/sbin/start-stop-daemon", "/usr/bin/start-stop-daemon", NULL}},
     "install it in a layer (Debian: `apt-get install -y --no-install-recommends openrc`), or "
     "leave "
     "`init` out: the agent needs no other init"},
};

static const struct image_init *find_init(const char *name)
{
    for (size_t i = 0; name && i < sizeof(inits) / sizeof(inits[0]); i++)
        if (strcmp(inits[i].name, name) == 0)
            return &inits[i];
    return NULL;
}

bool image_init_is_agent(const char *init)
{
    return !init || strcmp(init, "agent") == 0;
}

const struct image_init_file *image_init_files(const char *init, size_t *n)
{
    const struct image_init *i = find_init(init);
    *n = i ? i->n_files : 0;
    return i ? i->files : NULL;
}

/* 1 when @path is a program there, links followed; 0 when not. */
static int has_program(struct ext4_image *im, const char *path, struct cb_error *err)
{
    struct ext4_entry e;
    int rc = ext4_image_find(im, path, &e, err);
    return rc > 0 ? S_ISREG(e.mode) && (e.mode & 0111) : rc;
}

static int has_one_of(struct ext4_image *im, const char *const *paths, struct cb_error *err)
{
    int rc = 0;
    for (size_t i = 0; rc == 0 && paths[i]; i++)
        rc = has_program(im, paths[i], err);
    return rc;
}

int image_init_check(const char *image, const char *init, struct cb_error *err)
{
    if (image_init_is_agent(init))
        return 0;
    const struct image_init *k = find_init(init);
    if (!k)
        return cb_fail(err, CB_E_BUG, "init: %s", init);
    CB_AUTO(ext4_image) im = NULL;
    int rc = ext4_image_open(image, 0, &im, err);
    for (size_t i = 0; rc >= 0 && i < NEEDED_MAX && k->needs[i][0]; i++) {
        rc = has_one_of(im, k->needs[i], err);
        if (rc != 0)
            continue;
        cb_fail(err, CB_E_CONFIG, "init: %s: the image has no %s", init, k->needs[i][0]);
        return cb_hint(err, "%s", k->hint);
    }
    return rc < 0 ? rc : 0;
}
