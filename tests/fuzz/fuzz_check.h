/* must(): an assertion of a fuzz target; it holds in release builds too. */
#pragma once

#include <stdio.h>
#include <stdlib.h>

#define must(cond)                                                                                 \
    do {                                                                                           \
        if (!(cond)) {                                                                             \
            fprintf(stderr, "%s:%d: %s does not hold\n", __FILE__, __LINE__, #cond);               \
            abort();                                                                               \
        }                                                                                          \
    } while (0)
