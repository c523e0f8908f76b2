/* frames: the wire format between the host (builder/session.c) and the guest agent
 * (builder/agent/).
 *
 * One byte stream each way (a virtio-serial port, or a socket in a container). A frame is a header
 * of FRAME_HEAD bytes, all numbers little-endian:
 *
 *     0  magic "CBF1"    4  type (16 bits)    6  zero (16 bits)    8  step    12  payload length
 *
 * and a payload of fields: tag (16 bits), length (32 bits), bytes. Numbers are fields of 8 bytes,
 * texts are bytes without NUL. Unknown tags are skipped, unknown types are an error. Both sides
 * bound what they take: FRAME_REQUEST_MAX towards the guest (a script or an environment may be
 * long), FRAME_REPLY_MAX towards the host. The host has one request open at a time; the guest
 * answers it with DONE, FAILED or the type's own answer, and may send OUTPUT, NOTE, PROBE and
 * HEARTBEAT meanwhile. INPUT alone comes while a request (SHELL) is open.
 *
 * This header is shared by a glibc and a musl program and needs libc alone. */
#pragma once

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define FRAME_VERSION 1u
#define FRAME_MAGIC 0x31464243u /* "CBF1" */
#define FRAME_HEAD 16u
#define FRAME_REQUEST_MAX (256u << 10)
#define FRAME_REPLY_MAX (64u << 10)
#define FRAME_OUTPUT_MAX (32u << 10) /* bytes of output in one frame */
#define FRAME_INPUT_MAX 4096u        /* bytes of input in one frame */
#define FRAME_TEXT_MAX 4096u         /* a note or an error */
#define FRAME_HEARTBEAT_MS 2000
#define FRAME_NONCE_LEN 16u
#define FRAME_ENTROPY_LEN 64u
#define FRAME_AUTHORITIES_MAX (2u << 20) /* of all pieces */
#define FRAME_AUTHORITIES_PATH "/run/capsule-build/authorities.pem"
#define FRAME_PORT_NAME "capsule.agent.0"

enum frame_type {
    /* host to guest */
    FRAME_SETUP =
        1, /* HOSTNAME, ENV..., USER, WORKDIR, RUNNER, DNS, TIME, LOWER, SCRATCH, OUTPUT */
    FRAME_LAYER_BEGIN, /* NAME, ENV..., WORKDIR, USER, PREVIOUS */
    FRAME_STEP, /* SCRIPT or ARG..., ROOT, ENV..., WORKDIR, USER, TIMEOUT, MEMORY, CPUS, FILE... */
    FRAME_LAYER_END,
    FRAME_SHUTDOWN,
    FRAME_EXEC,      /* ARG...: one command in the booted system */
    FRAME_WATCH,     /* ask for READY or START_EXITED, and the start command's output from now on */
    FRAME_TRY = 30,  /* the next steps work on an upper of their own; one not kept is dropped */
    FRAME_TRY_KEEP,  /* what they did becomes part of the layer */
    FRAME_START,     /* as STEP, for a process that goes on; WAIT */
    FRAME_COPY = 50, /* files come into the layer: COPY_TO, COPY_FOLDER, COPY_MODE, COPY_OWNER or
                      * USER, ROOT. DONE answers it and each COPY_DATA */
    FRAME_COPY_DATA, /* their ENTRYs, the DATA of each behind it in any number of pieces, COPY_END
                      */
    FRAME_DRIVES = 33, /* DRIVE and DRIVE_PATH..., USER: the layer's next steps have them mounted */
    FRAME_AUTHORITIES = 36, /* DATA...: a piece of what commands are to trust besides the image's
                             * authorities; after SETUP, before the first layer */
    FRAME_SHELL = 40, /* as STEP, for a program that is given input; ROWS, COLS: on a terminal */
    FRAME_INPUT = 41, /* for it: DATA or END, or ROWS and COLS; TAKEN comes before the next one */
    FRAME_METADATA_ANSWER = 42, /* to METADATA: CLIENT, STATUS, TEXT (the content's type), DATA */
    FRAME_PARK = 44,   /* write everything to the disk and be silent: the machine is saved next */
    FRAME_RESUME = 45, /* to one that is parked: NONCE, TIME, ENTROPY; HELLO with NONCE answers */
    /* guest to host */
    FRAME_HELLO = 65, /* VERSION, MODE, after RESUME its NONCE */
    FRAME_DONE,   /* SETUP, AUTHORITIES, LAYER_BEGIN, TRY, TRY_KEEP, SHUTDOWN and WATCH were carried
                   * out;   answers START when the process lived for WAIT */
    FRAME_FAILED, /* the open request could not be: KIND, TEXT */
    FRAME_OUTPUT, /* STREAM, DATA */
    FRAME_STEP_DONE,  /* answer to STEP and EXEC, and to START when the process ended at once: EXIT,
                       * SIGNAL, TIMED_OUT, ELAPSED, CPU, RSS, and LIMIT, LIMIT_VALUE */
    FRAME_LAYER_DONE, /* OFFSET, LENGTH, ENTRIES, WHITEOUTS */
    FRAME_NOTE,       /* TEXT */
    FRAME_HEARTBEAT,
    FRAME_READY,          /* TEXT: how */
    FRAME_PROBE,          /* TEXT: what the last probe gave */
    FRAME_START_EXITED,   /* EXIT, SIGNAL */
    FRAME_METADATA = 101, /* a command asks the metadata server: CLIENT, TEXT (the path), FLAVOR,
                           * FORWARDED */
    FRAME_TAKEN = 100,    /* the INPUT was handed on, or nobody reads it any more */
    FRAME_PARKED = 104,   /* answers PARK, or comes in place of HELLO: silent until RESUME */
};

enum frame_tag {
    TAG_HOSTNAME = 1,
    TAG_ENV, /* "K=V" */
    TAG_USER,
    TAG_WORKDIR,
    TAG_RUNNER,
    TAG_DNS,
    TAG_TIME, /* milliseconds since 1970 */
    TAG_LOWER,
    TAG_SCRATCH,
    TAG_OUTPUT,
    TAG_NAME,
    TAG_SCRIPT,
    TAG_ARG,
    TAG_ROOT,
    TAG_TIMEOUT,
    TAG_VERSION,
    TAG_MODE,
    TAG_KIND,
    TAG_TEXT,
    TAG_STREAM, /* 1 stdout, 2 stderr */
    TAG_DATA,
    TAG_EXIT,
    TAG_SIGNAL,
    TAG_TIMED_OUT,
    TAG_ELAPSED, /* milliseconds */
    TAG_CPU,     /* milliseconds */
    TAG_RSS,     /* KiB */
    TAG_OFFSET,
    TAG_LENGTH,
    TAG_ENTRIES,
    TAG_WHITEOUTS,
    TAG_WAIT = 100,  /* milliseconds */
    TAG_LIMIT = 120, /* enum limit_kind */
    TAG_LIMIT_VALUE, /* bytes, or how many */
    TAG_MEMORY,      /* bytes that a command may have */
    TAG_CPUS,        /* percent of one CPU that it may have */
    TAG_FILE,        /* a path that it may open; none: all */
    TAG_ENTRY = 130, /* struct frame_entry */
    TAG_COPY_TO,     /* absolute path in the layer */
    TAG_COPY_FOLDER, /* 1: that is a folder, and is made; else it is where the one entry goes, or
                      * the folder that the entry goes into when there is one */
    TAG_COPY_MODE,   /* of all entries but links, in place of their own */
    TAG_COPY_OWNER,  /* "user:group" as the image knows them */
    TAG_COPY_MOUNTS, /* 1: what is mounted can be the place, or on the way there */
    TAG_COPY_END,    /* nothing follows */
    TAG_DRIVE = 140, /* which of the machine's drives, from 0; its DRIVE_PATH follows */
    TAG_DRIVE_PATH = 141,
    TAG_PREVIOUS = 142,    /* a folder of the scratch disk: what the layer's commands left before */
    TAG_SECRET_PATH = 150, /* LAYER_BEGIN: absolute path in the layer; its bytes follow */
    TAG_SECRET_DATA,
    TAG_SECRETIVE,     /* commands have secrets: they leave no core files */
    TAG_NONCE = 170,   /* FRAME_NONCE_LEN bytes */
    TAG_ENTROPY = 171, /* FRAME_ENTROPY_LEN bytes for the random number generator */
    TAG_STACK = 190,  /* SETUP: the scratch disk was used before, and has so many finished layers */
    TAG_TOKENS = 195, /* STEP: 1: it may ask for tokens (METADATA) */
    TAG_CLIENT = 196,
    TAG_STATUS = 197,    /* as in HTTP */
    TAG_FLAVOR = 198,    /* 1: with the header Metadata-Flavor: Google */
    TAG_FORWARDED = 199, /* 1: with the header X-Forwarded-For */
    TAG_ROWS = 191,      /* of a terminal */
    TAG_COLS = 192,
    TAG_END = 193,  /* no input comes any more */
    TAG_KEEP = 194, /* SHUTDOWN: with everything on the scratch disk, which is used again */
};

/* Which limit a command reached. */
enum limit_kind {
    LIMIT_NONE,
    LIMIT_MEMORY,    /* it was killed for want of memory */
    LIMIT_PROCESSES, /* it was killed for it could have no more processes */
    LIMIT_DISK,      /* it failed, and the builder's disk was full */
    LIMIT_KIND_END
};

/* Why a request failed: who has to do something about it. */
enum fail_kind {
    FAIL_SYSTEM = 1, /* a system call said no */
    FAIL_COMMAND,    /* what the user asked for cannot be: no such user, a file named .wh.x */
    FAIL_IMAGE,      /* the image is not one that commands can run in */
    FAIL_SPACE,      /* a disk of the builder is full */
    FAIL_PROTOCOL,   /* the request itself was wrong */
    FAIL_KIND_END
};

static inline void frame_store(uint8_t *p, uint64_t v, unsigned bytes)
{
    for (unsigned i = 0; i < bytes; i++)
        p[i] = (uint8_t)(v >> (8 * i));
}

static inline uint64_t frame_load(const uint8_t *p, unsigned bytes)
{
    uint64_t v = 0;
    for (unsigned i = 0; i < bytes; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

struct frame_head {
    uint16_t type;
    uint32_t step;
    uint32_t length;
};

/* False when it is not a header of ours or promises more than @max bytes of payload. */
static inline bool frame_head_parse(const uint8_t *p, uint32_t max, struct frame_head *h)
{
    if (frame_load(p, 4) != FRAME_MAGIC || frame_load(p + 6, 2) != 0)
        return false;
    h->type = (uint16_t)frame_load(p + 4, 2);
    h->step = (uint32_t)frame_load(p + 8, 4);
    h->length = (uint32_t)frame_load(p + 12, 4);
    return h->length <= max;
}

struct frame_field {
    uint16_t tag;
    uint32_t len;
    const uint8_t *data; /* borrowed from the payload */
};

/* Takes one field off the front of [*p, end). 1: got one, 0: the end, -1: broken. */
static inline int frame_next(const uint8_t **p, const uint8_t *end, struct frame_field *f)
{
    size_t left = (size_t)(end - *p);
    if (left == 0)
        return 0;
    if (left < 6)
        return -1;
    f->tag = (uint16_t)frame_load(*p, 2);
    f->len = (uint32_t)frame_load(*p + 2, 4);
    if (f->len > left - 6)
        return -1;
    f->data = *p + 6;
    *p += 6 + f->len;
    return 1;
}

/* A field that is a number. */
static inline bool frame_number(const struct frame_field *f, uint64_t *v)
{
    if (f->len != 8)
        return false;
    *v = frame_load(f->data, 8);
    return true;
}

/* A field that is a text of at most @max bytes: no NUL in it. */
static inline bool frame_is_text(const struct frame_field *f, size_t max)
{
    return f->len <= max && (f->len == 0 || !memchr(f->data, 0, f->len));
}

/* Writing: into the caller's bytes; what does not fit marks the frame (`over`) and is left out. */
struct frame_out {
    uint8_t *p;
    size_t cap, len;
    bool over;
};

static inline void frame_begin(struct frame_out *o, void *p, size_t cap, enum frame_type type,
                               uint32_t step)
{
    o->p = (uint8_t *)p;
    o->cap = cap;
    o->len = FRAME_HEAD;
    o->over = cap < FRAME_HEAD;
    if (o->over)
        return;
    frame_store(o->p, FRAME_MAGIC, 4);
    frame_store(o->p + 4, (uint64_t)type, 2);
    frame_store(o->p + 6, 0, 2);
    frame_store(o->p + 8, step, 4);
    frame_store(o->p + 12, 0, 4);
}

static inline void frame_put(struct frame_out *o, enum frame_tag tag, const void *data, size_t len)
{
    if (o->over || len > o->cap - o->len || o->cap - o->len - len < 6) {
        o->over = true;
        return;
    }
    frame_store(o->p + o->len, (uint64_t)tag, 2);
    frame_store(o->p + o->len + 2, len, 4);
    if (len)
        memcpy(o->p + o->len + 6, data, len);
    o->len += 6 + len;
    frame_store(o->p + 12, o->len - FRAME_HEAD, 4);
}

static inline void frame_put_text(struct frame_out *o, enum frame_tag tag, const char *s)
{
    if (s)
        frame_put(o, tag, s, strlen(s));
}

static inline void frame_put_number(struct frame_out *o, enum frame_tag tag, uint64_t v)
{
    uint8_t b[8];
    frame_store(b, v, 8);
    frame_put(o, tag, b, sizeof b);
}

/* One file of a COPY. What it is made of, in this order: kind (1 byte), mode (2), seconds (8) and
 * nanoseconds (4) of its time, size (8), length of its path (2), the path, and a link's target up
 * to the end of the field. The path is relative and clean: no empty component, no "." and "..". */
#define FRAME_ENTRY_HEAD 25u
#define FRAME_ENTRY_TIME 3u /* where the time is: 12 bytes */
#define FRAME_PATH_MAX 4095u

enum frame_entry_kind { ENTRY_FILE = 'f', ENTRY_FOLDER = 'd', ENTRY_LINK = 'l' };

struct frame_entry {
    enum frame_entry_kind kind;
    uint16_t mode; /* 0777 */
    int64_t mtime;
    uint32_t mtime_ns;
    uint64_t size; /* of a file: how much DATA follows */
    uint16_t path_len;
    uint32_t target_len;
    const char *path, *target; /* borrowed, not NUL-terminated */
};

static inline bool frame_path_clean(const char *p, size_t n)
{
    if (n == 0 || n > FRAME_PATH_MAX || memchr(p, 0, n))
        return false;
    for (size_t at = 0; at <= n;) {
        const char *slash = at < n ? (const char *)memchr(p + at, '/', n - at) : NULL;
        size_t len = (slash ? (size_t)(slash - p) : n) - at;
        if (len == 0 || len > 255 || (p[at] == '.' && (len == 1 || (len == 2 && p[at + 1] == '.'))))
            return false;
        at += len + 1;
    }
    return true;
}

/* False when it breaks a rule. */
static inline bool frame_entry_parse(const uint8_t *p, size_t n, struct frame_entry *e)
{
    if (n < FRAME_ENTRY_HEAD)
        return false;
    e->kind = (enum frame_entry_kind)p[0];
    e->mode = (uint16_t)frame_load(p + 1, 2);
    e->mtime = (int64_t)frame_load(p + 3, 8);
    e->mtime_ns = (uint32_t)frame_load(p + 11, 4);
    e->size = frame_load(p + 15, 8);
    e->path_len = (uint16_t)frame_load(p + 23, 2);
    if (e->path_len > n - FRAME_ENTRY_HEAD)
        return false;
    e->path = (const char *)p + FRAME_ENTRY_HEAD;
    e->target = e->path + e->path_len;
    e->target_len = (uint32_t)(n - FRAME_ENTRY_HEAD - e->path_len);
    bool link = e->kind == ENTRY_LINK;
    return (link || e->kind == ENTRY_FILE || e->kind == ENTRY_FOLDER) && e->mode <= 0777 &&
           e->mtime_ns < 1000000000 && (e->size == 0 || e->kind == ENTRY_FILE) &&
           link == (e->target_len > 0) && e->target_len <= FRAME_PATH_MAX &&
           !(link && memchr(e->target, 0, e->target_len)) && frame_path_clean(e->path, e->path_len);
}

/* Writes its head at @p: FRAME_ENTRY_HEAD bytes. */
static inline void frame_entry_head(uint8_t *p, const struct frame_entry *e)
{
    p[0] = (uint8_t)e->kind;
    frame_store(p + 1, e->mode, 2);
    frame_store(p + 3, (uint64_t)e->mtime, 8);
    frame_store(p + 11, e->mtime_ns, 4);
    frame_store(p + 15, e->size, 8);
    frame_store(p + 23, e->path_len, 2);
}
