/* The engine: threads, tiles and staging, above the kernels and below the binding. */
#ifndef FS_ENGINE_H
#define FS_ENGINE_H

#include "fs.h"

typedef enum { FS_ROW, FS_ONE, FS_LABEL, FS_CLASS, FS_SQUARE } fs_kind;

/* One operand of a call: element (i, j, k) of an n1 x n2 x c array is at data + i s1 + j s2 + k sc. */
typedef struct {
    char *data;
    ptrdiff_t s1, s2, sc;
    fs_kind kind;
    int output;
} fs_operand;

typedef struct {
    fs_kernel_fn *kernel;
    fs_operand operand[FS_MAX_OPERANDS];
    int operands;
    ptrdiff_t n1, n2, c;
    ptrdiff_t itemsize; /* of the floating-point operands: 4 or 8 */
    double params[FS_MAX_PARAMS];
} fs_call;

/* Run a call on up to `threads` threads.  Returns 0, or -1 if there is no memory for the tiles (nothing is written). */
int fs_run(const fs_call *call, int threads);

/* How many worker threads exist now: for show_config and the tests. */
int fs_pool_size(void);

#endif
