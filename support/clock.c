#include "support/clock.h"

#include <stdio.h>
#include <string.h>
#include <time.h>

static int64_t read_us(clockid_t id)
{
    struct timespec ts;
    clock_gettime(id, &ts);
    return (int64_t)ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

int64_t cb_now_ms(void)
{
    return read_us(CLOCK_REALTIME) / 1000;
}

int64_t cb_monotonic_ms(void)
{
    return read_us(CLOCK_MONOTONIC) / 1000;
}

int64_t cb_monotonic_us(void)
{
    return read_us(CLOCK_MONOTONIC);
}

void cb_rfc3339(int64_t ms, char *out)
{
    time_t s = (time_t)(ms / 1000);
    int frac = (int)(ms % 1000);
    if (frac < 0) {
        frac += 1000;
        s -= 1;
    }
    struct tm tm;
    if (!gmtime_r(&s, &tm))
        memset(&tm, 0, sizeof(tm));
    char day[64];
    (void)strftime(day, sizeof(day), "%Y-%m-%dT%H:%M:%S", &tm);
    (void)snprintf(out, CB_RFC3339_LEN + 1, "%.19s.%03dZ", day, frac);
}
