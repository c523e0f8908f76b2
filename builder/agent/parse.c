/* parse: requests, from fields to structs. Texts are bounded; unknown fields are skipped. */
#include "builder/agent/agent.h"

#include <stdlib.h>
#include <string.h>

#define WORDS_MAX 8192

static int take_text(const struct frame_field *f, char **out, struct fail *fail)
{
    if (!frame_is_text(f, FRAME_REQUEST_MAX))
        return fail_set(fail, FAIL_PROTOCOL, "field %u: a NUL in a text", f->tag);
    free(*out);
    *out = ag_strndup(f->data, f->len);
    return 0;
}

static int take_word(const struct frame_field *f, struct words *w, struct fail *fail)
{
    char *s = NULL;
    if (w->n >= WORDS_MAX)
        return fail_set(fail, FAIL_PROTOCOL, "field %u: too many of it", f->tag);
    if (take_text(f, &s, fail) < 0)
        return -1;
    words_take(w, s);
    return 0;
}

static int take_env(const struct frame_field *f, struct words *env, struct fail *fail)
{
    char *s = NULL;
    if (env->n >= WORDS_MAX)
        return fail_set(fail, FAIL_PROTOCOL, "too many environment variables");
    if (take_text(f, &s, fail) < 0)
        return -1;
    env_set(env, s);
    free(s);
    return 0;
}

static int take_number(const struct frame_field *f, uint64_t *v, struct fail *fail)
{
    if (!frame_number(f, v))
        return fail_set(fail, FAIL_PROTOCOL, "field %u is not a number", f->tag);
    return 0;
}

static int broken(struct fail *f)
{
    return fail_set(f, FAIL_PROTOCOL, "a field that does not end");
}

void setup_release(struct setup *s)
{
    words_release(&s->env);
    text_release(&s->authorities);
    char *owned[] = {s->user, s->workdir, s->runner,  s->hostname,
                     s->dns,  s->lower,   s->scratch, s->output};
    for (size_t i = 0; i < ARRAY_LEN(owned); i++)
        free(owned[i]);
    *s = (struct setup){0};
}

int setup_parse(struct setup *s, const uint8_t *p, size_t n, struct fail *f)
{
    struct frame_field x;
    int got, rc = 0;
    for (const uint8_t *end = p + n; rc == 0 && (got = frame_next(&p, end, &x)) != 0;) {
        if (got < 0)
            return broken(f);
        switch (x.tag) {
        case TAG_ENV: rc = take_env(&x, &s->env, f); break;
        case TAG_USER: rc = take_text(&x, &s->user, f); break;
        case TAG_WORKDIR: rc = take_text(&x, &s->workdir, f); break;
        case TAG_RUNNER: rc = take_text(&x, &s->runner, f); break;
        case TAG_HOSTNAME: rc = take_text(&x, &s->hostname, f); break;
        case TAG_DNS: rc = take_text(&x, &s->dns, f); break;
        case TAG_LOWER: rc = take_text(&x, &s->lower, f); break;
        case TAG_SCRATCH: rc = take_text(&x, &s->scratch, f); break;
        case TAG_OUTPUT: rc = take_text(&x, &s->output, f); break;
        case TAG_TIME: rc = take_number(&x, &s->time_ms, f); break;
        case TAG_STACK:
            s->used = true;
            rc = take_number(&x, &s->stack_layers, f);
            break;
        default: break;
        }
    }
    if (rc == 0 && s->stack_layers > INT32_MAX)
        return fail_set(f, FAIL_PROTOCOL, "a number of layers out of range");
    return rc;
}

void layer_spec_release(struct layer_spec *l)
{
    free(l->name);
    free(l->user);
    free(l->workdir);
    words_release(&l->env);
    drives_release(l->drives, l->n_drives);
    free(l->drives_user);
    free(l->previous);
    secret_files_release(&l->secrets);
    *l = (struct layer_spec){0};
}

int layer_parse(struct layer_spec *l, const uint8_t *p, size_t n, struct fail *f)
{
    struct frame_field x;
    int got, rc = 0;
    for (const uint8_t *end = p + n; rc == 0 && (got = frame_next(&p, end, &x)) != 0;) {
        if (got < 0)
            return broken(f);
        switch (x.tag) {
        case TAG_NAME: rc = take_text(&x, &l->name, f); break;
        case TAG_PREVIOUS: rc = take_text(&x, &l->previous, f); break;
        case TAG_ENV: rc = take_env(&x, &l->env, f); break;
        case TAG_USER: rc = take_text(&x, &l->user, f); break;
        case TAG_WORKDIR: rc = take_text(&x, &l->workdir, f); break;
        case TAG_SECRETIVE: l->secretive = true; break;
        case TAG_SECRET_PATH:
        case TAG_SECRET_DATA: rc = secret_files_take(&l->secrets, &x, f); break;
        default: break;
        }
    }
    return rc;
}

void step_release(struct step_spec *s)
{
    free(s->script);
    free(s->user);
    free(s->workdir);
    words_release(&s->argv);
    words_release(&s->env);
    words_release(&s->files);
    *s = (struct step_spec){0};
}

int step_parse(struct step_spec *s, const uint8_t *p, size_t n, struct fail *f)
{
    struct frame_field x;
    uint64_t root = 0;
    int got, rc = 0;
    for (const uint8_t *end = p + n; rc == 0 && (got = frame_next(&p, end, &x)) != 0;) {
        if (got < 0)
            return broken(f);
        switch (x.tag) {
        case TAG_SCRIPT: rc = take_text(&x, &s->script, f); break;
        case TAG_ARG: rc = take_word(&x, &s->argv, f); break;
        case TAG_ENV: rc = take_env(&x, &s->env, f); break;
        case TAG_ROOT: rc = take_number(&x, &root, f); break;
        case TAG_USER: rc = take_text(&x, &s->user, f); break;
        case TAG_WORKDIR: rc = take_text(&x, &s->workdir, f); break;
        case TAG_TIMEOUT: rc = take_number(&x, &s->timeout_ms, f); break;
        case TAG_WAIT: rc = take_number(&x, &s->wait_ms, f); break;
        case TAG_ROWS: rc = take_number(&x, &s->rows, f); break;
        case TAG_COLS: rc = take_number(&x, &s->cols, f); break;
        case TAG_TOKENS: s->tokens = true; break;
        case TAG_MEMORY: rc = take_number(&x, &s->memory, f); break;
        case TAG_CPUS: rc = take_number(&x, &s->cpu_percent, f); break;
        case TAG_FILE: rc = take_word(&x, &s->files, f); break;
        default: break;
        }
    }
    s->root = root != 0;
    if (s->timeout_ms > INT64_MAX / 4)
        s->timeout_ms = 0;
    if (s->wait_ms > 60000)
        s->wait_ms = 60000;
    if (s->cpu_percent > 1000000)
        s->cpu_percent = 1000000;
    if (rc == 0 && !s->script && s->argv.n == 0)
        return fail_set(f, FAIL_PROTOCOL, "a step without a command");
    return rc;
}
