/* watch: what a running command takes. It looks a few times a second; a command that reached a
 * limit is ended with all that it started, and its end says which limit it was. */
#include "builder/agent/agent.h"

#include <string.h>
#include <sys/statvfs.h>

#define LOOK_MS 250
#define MANY_PROCESSES 8 /* who leaves more running is looked at until that is settled */
#define SETTLE_MS 60000
#define DISK_FULL_BYTES (UINT64_C(8) << 20)

int watch_begin(struct watch *w, struct groups *g, const struct step_spec *s, struct fail *f)
{
    *w = (struct watch){.groups = g, .look_at = now_ms() + LOOK_MS, .disk_low = UINT64_MAX};
    if (!g->open)
        return 0;
    if (group_make(g, s->memory, (unsigned)s->cpu_percent, &w->group, f) < 0)
        return -1;
    w->has_group = true;
    return 0;
}

static void look_at_disk(struct watch *w)
{
    struct statvfs v;
    if (statvfs("/", &v) < 0)
        return;
    uint64_t room = (uint64_t)v.f_bavail * v.f_frsize;
    w->disk_low = room < w->disk_low ? room : w->disk_low;
    w->disk_size = (uint64_t)v.f_blocks * v.f_frsize;
}

static void look(struct watch *w)
{
    struct group_use u;
    look_at_disk(w);
    if (!w->has_group)
        return;
    group_look(&w->group, &u);
    w->memory_peak = u.memory > w->memory_peak ? u.memory : w->memory_peak;
    w->cpu_ms = u.cpu_ms > w->cpu_ms ? u.cpu_ms : w->cpu_ms;
    w->growing = u.processes > MANY_PROCESSES && u.processes > w->processes;
    w->processes = u.processes;
    if (w->limit == LIMIT_NONE && u.killed) {
        w->limit = LIMIT_MEMORY;
        w->limit_value = w->group.memory;
    } else if (w->limit == LIMIT_NONE && u.refused_processes) {
        w->limit = LIMIT_PROCESSES;
        w->limit_value = w->group.processes;
    } else {
        return;
    }
    group_kill(&w->group);
}

int64_t watch_due(const struct watch *w)
{
    return w->groups ? w->look_at : -1;
}

void watch_look(struct watch *w, int64_t now)
{
    if (!w->groups || now < w->look_at)
        return;
    w->look_at = now + LOOK_MS;
    look(w);
}

bool watch_settled(struct watch *w, int64_t now)
{
    if (!w->groups)
        return true;
    if (!w->ending_until) {
        w->ending_until = now + SETTLE_MS;
        w->look_at = now + LOOK_MS;
        look(w);
        w->growing = w->processes > MANY_PROCESSES;
    }
    return !w->growing || w->limit != LIMIT_NONE || now >= w->ending_until;
}

void watch_end(struct watch *w, struct job *j)
{
    if (!w->groups)
        return;
    if (w->limit == LIMIT_NONE && exit_code_of(j->status) != 0 && w->disk_low < DISK_FULL_BYTES) {
        w->limit = LIMIT_DISK;
        w->limit_value = w->disk_size;
    }
    j->limit = w->limit;
    j->limit_value = w->limit_value;
    if (w->cpu_ms > (uint64_t)j->cpu_ms)
        j->cpu_ms = (int64_t)w->cpu_ms;
    if (w->memory_peak >> 10 > j->max_rss_kib)
        j->max_rss_kib = w->memory_peak >> 10;
    if (w->has_group)
        group_end(w->groups, &w->group);
    *w = (struct watch){0};
}
