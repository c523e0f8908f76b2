#include "layers/parallel.h"

#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <unistd.h>

struct job {
    parallel_fn fn;
    void *arg;
    size_t n;
    _Atomic size_t next;
    _Atomic bool stop;
    pthread_mutex_t lock; /* guards err */
    struct cb_error err;
};

struct worker {
    struct job *job;
    unsigned number;
};

unsigned parallel_workers(size_t n)
{
    long cpus = sysconf(_SC_NPROCESSORS_ONLN);
    size_t most = cpus < 1 ? 1 : (size_t)cpus;
    if (most > PARALLEL_MAX)
        most = PARALLEL_MAX;
    if (most > n)
        most = n ? n : 1;
    return (unsigned)most;
}

static void *work(void *arg)
{
    const struct worker *w = arg;
    struct job *j = w->job;
    while (!atomic_load(&j->stop)) {
        size_t i = atomic_fetch_add(&j->next, 1);
        if (i >= j->n)
            break;
        struct cb_error err = CB_ERROR_INIT;
        if (j->fn(j->arg, w->number, i, &err) >= 0)
            continue;
        atomic_store(&j->stop, true);
        (void)pthread_mutex_lock(&j->lock);
        if (j->err.code == CB_OK)
            (void)cb_error_move(&j->err, &err);
        (void)pthread_mutex_unlock(&j->lock);
        cb_error_clear(&err);
    }
    return NULL;
}

int parallel_run(size_t n, parallel_fn fn, void *arg, struct cb_error *err)
{
    struct job j = {.fn = fn, .arg = arg, .n = n, .err = CB_ERROR_INIT};
    (void)pthread_mutex_init(&j.lock, NULL);
    unsigned workers = parallel_workers(n), made = 0;
    struct worker w[PARALLEL_MAX];
    pthread_t thread[PARALLEL_MAX];
    sigset_t all, before;
    (void)sigfillset(&all);
    (void)pthread_sigmask(SIG_SETMASK, &all, &before);
    while (made + 1 < workers) {
        w[made + 1] = (struct worker){&j, made + 1};
        if (pthread_create(&thread[made], NULL, work, &w[made + 1]) != 0)
            break;
        made++;
    }
    (void)pthread_sigmask(SIG_SETMASK, &before, NULL);
    w[0] = (struct worker){&j, 0};
    (void)work(&w[0]);
    for (unsigned i = 0; i < made; i++)
        (void)pthread_join(thread[i], NULL);
    (void)pthread_mutex_destroy(&j.lock);
    return j.err.code == CB_OK ? 0 : cb_error_move(err, &j.err);
}
