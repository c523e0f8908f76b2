/* floor DIR BASE_URL DIGEST...: what a registry's layers cost when no file system is made of them.
 *
 * Fetches each blob over HTTP, hashes it, inflates it with ISA-L, hashes the tar and writes the
 * tar's bytes to DIR/0, DIR/1...: all the work that a flattener cannot avoid and nothing else. Two
 * threads take blobs and inflate them, each with a helper that hashes and writes what came out, so
 * that one layer alone uses two cores as well. Prints the seconds. The goal of `./dev bench layers`
 * is a multiple of this figure, measured in the same run. */
#include "support/hash.h"

#include <curl/curl.h>
#include <fcntl.h>
#include <isa-l/igzip_lib.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { WORKERS = 2, SLOTS = 8, PIECE = 512 << 10 };

struct pipe_of_pieces {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    unsigned char *data[SLOTS];
    size_t len[SLOTS];
    unsigned made, used;
    bool end;
    int fd;
};

struct blob {
    unsigned char *data;
    size_t len, cap;
    struct cb_hasher *hash;
};

static const char *folder, *base;
static char **digests;
static int n_digests;
static atomic_int next_blob;

static void die(const char *what)
{
    fprintf(stderr, "floor: %s\n", what);
    exit(1);
}

static void *hash_and_write(void *arg)
{
    struct pipe_of_pieces *p = arg;
    struct cb_hasher *h = cb_hasher_new();
    struct cb_digest d;
    for (;;) {
        pthread_mutex_lock(&p->lock);
        while (p->made == p->used && !p->end)
            pthread_cond_wait(&p->changed, &p->lock);
        bool done = p->made == p->used;
        unsigned slot = p->used % SLOTS;
        pthread_mutex_unlock(&p->lock);
        if (done)
            break;
        cb_hasher_update(h, p->data[slot], p->len[slot]);
        if (write(p->fd, p->data[slot], p->len[slot]) != (ssize_t)p->len[slot])
            die("cannot write");
        pthread_mutex_lock(&p->lock);
        p->used++;
        pthread_cond_signal(&p->changed);
        pthread_mutex_unlock(&p->lock);
    }
    cb_hasher_final(h, &d);
    return NULL;
}

static void pass_on(struct pipe_of_pieces *p, size_t len)
{
    pthread_mutex_lock(&p->lock);
    p->len[p->made % SLOTS] = len;
    p->made++;
    pthread_cond_signal(&p->changed);
    while (p->made - p->used == SLOTS)
        pthread_cond_wait(&p->changed, &p->lock);
    pthread_mutex_unlock(&p->lock);
}

static void inflate_all(struct pipe_of_pieces *p, struct blob *b)
{
    struct inflate_state *s = malloc(sizeof(*s));
    if (!s)
        die("no memory");
    isal_inflate_init(s);
    s->next_in = b->data;
    s->avail_in = (uint32_t)b->len;
    do {
        s->crc_flag = ISAL_GZIP;
        while (s->block_state != ISAL_BLOCK_FINISH) {
            s->next_out = p->data[p->made % SLOTS];
            s->avail_out = PIECE;
            if (isal_inflate(s) < 0 || (s->avail_out == PIECE && s->avail_in == 0))
                die("not gzip");
            pass_on(p, PIECE - s->avail_out);
        }
        isal_inflate_reset(s);
    } while (s->avail_in > 18 && s->next_in[0] == 0x1f);
    free(s);
}

static size_t on_data(char *data, size_t one, size_t n, void *arg)
{
    struct blob *b = arg;
    n *= one;
    if (b->len + n > b->cap) {
        b->cap = (b->len + n) * 2;
        b->data = realloc(b->data, b->cap);
        if (!b->data)
            die("no memory");
    }
    memcpy(b->data + b->len, data, n);
    b->len += n;
    cb_hasher_update(b->hash, data, n);
    return n;
}

static void one_blob(CURL *c, int i)
{
    struct blob b = {.hash = cb_hasher_new()};
    struct cb_digest d;
    struct pipe_of_pieces p = {.lock = PTHREAD_MUTEX_INITIALIZER,
                               .changed = PTHREAD_COND_INITIALIZER};
    char text[4096], found[CB_DIGEST_LEN + 1];
    pthread_t helper = 0;
    snprintf(text, sizeof(text), "%s/blobs/%s", base, digests[i]);
    curl_easy_setopt(c, CURLOPT_URL, text);
    curl_easy_setopt(c, CURLOPT_WRITEFUNCTION, on_data);
    curl_easy_setopt(c, CURLOPT_WRITEDATA, &b);
    curl_easy_setopt(c, CURLOPT_FOLLOWLOCATION, 1L);
    curl_easy_setopt(c, CURLOPT_FAILONERROR, 1L);
    curl_easy_setopt(c, CURLOPT_BUFFERSIZE, 256L << 10);
    if (curl_easy_perform(c) != CURLE_OK)
        die("cannot fetch");
    cb_hasher_final(b.hash, &d);
    cb_digest_text(&d, found);
    if (strcmp(found, digests[i]) != 0)
        die("a blob has another digest");
    snprintf(text, sizeof(text), "%s/%d", folder, i);
    p.fd = open(text, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
    for (unsigned k = 0; k < SLOTS; k++)
        p.data[k] = malloc(PIECE);
    if (p.fd < 0 || pthread_create(&helper, NULL, hash_and_write, &p) != 0)
        die("cannot start");
    inflate_all(&p, &b);
    pthread_mutex_lock(&p.lock);
    p.end = true;
    pthread_cond_signal(&p.changed);
    pthread_mutex_unlock(&p.lock);
    pthread_join(helper, NULL);
    for (unsigned k = 0; k < SLOTS; k++)
        free(p.data[k]);
    free(b.data);
    close(p.fd);
}

static void *worker(void *arg)
{
    CURL *c = curl_easy_init();
    (void)arg;
    for (int i; (i = atomic_fetch_add(&next_blob, 1)) < n_digests;)
        one_blob(c, i);
    curl_easy_cleanup(c);
    return NULL;
}

int main(int argc, char **argv)
{
    struct timespec from, to;
    pthread_t threads[WORKERS];
    if (argc < 4)
        die("usage: floor DIR BASE_URL DIGEST...");
    folder = argv[1];
    base = argv[2];
    digests = argv + 3;
    n_digests = argc - 3;
    curl_global_init(CURL_GLOBAL_DEFAULT);
    clock_gettime(CLOCK_MONOTONIC, &from);
    for (int i = 0; i < WORKERS; i++)
        if (pthread_create(&threads[i], NULL, worker, NULL) != 0)
            die("cannot start");
    for (int i = 0; i < WORKERS; i++)
        pthread_join(threads[i], NULL);
    clock_gettime(CLOCK_MONOTONIC, &to);
    printf("%.3f\n", (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9);
    return 0;
}
