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
    fs_type type;
    int output;
} fs_operand;

typedef struct {
    fs_kernel_fn *kernel;
    const fs_staging *staging;
    fs_operand operand[FS_MAX_OPERANDS];
    int operands;
    ptrdiff_t n1, n2, c;
    ptrdiff_t itemsize; /* of what the kernel computes in: 4 or 8 */
    double params[FS_MAX_PARAMS];
    /* Options on the logits, which are operand 0, and on their gradient, if there is one. */
    int options;        /* whether there are any */
    fs_option option;
    fs_operand mask;    /* bytes, 0 where a class is excluded; data is NULL if there is none */
    int gradient;       /* the operand that holds the gradient, or -1 */
} fs_call;

/* Sizes that tools/tune_engine.py measures, and that tests make small. */
typedef struct {
    ptrdiff_t worth_a_thread; /* elements that keep a thread busy for longer than it takes to start it */
    ptrdiff_t run_bytes;      /* of one operand, that a thread takes at a time */
    ptrdiff_t tile_bytes;     /* of a tile whose rows are transposed */
    ptrdiff_t flat_bytes;     /* of a tile whose rows are only converted or masked */
    ptrdiff_t stream_bytes;   /* of an operand, from which what is staged is written past the caches */
} fs_sizes;
extern fs_sizes fs_tuned;

/* Run a call on up to `threads` threads.  Returns 0, or -1 if there is no memory for the tiles (nothing is written). */
int fs_run(const fs_call *call, int threads);

/* How many worker threads exist now: for show_config and the tests. */
int fs_pool_size(void);

#endif
