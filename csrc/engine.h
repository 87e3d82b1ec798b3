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
    int vectors, strands; /* of the kernel's table */
    double params[FS_MAX_PARAMS];
    /* Options on the logits, which are operand 0, and on what goes with them. */
    int options;        /* whether there are any */
    fs_option option;
    fs_operand mask;    /* bytes, 0 where a class is excluded; data is NULL if there is none */
    int poison;         /* whether rows whose included logits are all -inf become NaN */
    int cleared;        /* an input that is made 0 where a class is excluded, or -1 */
    int derived[FS_MAX_OPERANDS];  /* outputs that are derivatives by the logits */
    double chain[FS_MAX_OPERANDS]; /* what they are multiplied by, before they are cleared likewise */
    int summed;         /* the output that has one number a row of which only the sum is wanted, or -1 */
    double *sum;        /* and where to: it does not depend on the number of threads */
    int checked;        /* the labels that are checked on the way, where they stand one after the other, or -1 */
    int64_t ignore;
    ptrdiff_t *ignored; /* and where to count those that are `ignore`; -1 if another is not in [0, c), whose tile is left out */
} fs_call;

/* Sizes that tools/tune_engine.py measures, and that tests make small. */
typedef struct {
    ptrdiff_t worth_a_thread; /* elements that keep a thread busy for longer than it takes to start it */
    ptrdiff_t run_bytes;      /* of one operand, that a thread takes at a time */
    ptrdiff_t tile_bytes;     /* of a tile whose rows are transposed */
    ptrdiff_t flat_bytes;     /* of a tile whose rows are only converted; four times that if they have options */
    ptrdiff_t by_class;       /* classes up to which rows are taken side by side, if they lie so and the kernel can */
    ptrdiff_t stream_bytes;   /* of an operand, from which what is staged is written past the caches */
} fs_sizes;
extern fs_sizes fs_tuned;

/* Run a call on up to `threads` threads.  Returns 0, or -1 if there is no memory for the tiles (nothing is written). */
int fs_run(const fs_call *call, int threads);

/* Count the labels that are `ignore`, or return -1 if another one is not in [0, classes). */
ptrdiff_t fs_count_ignored(const fs_staging *staging, const int64_t *labels, ptrdiff_t n, int64_t classes, int64_t ignore,
                           int threads);

/* The factors of n rows: of_row[i] of_class[labels[i]], where what is NULL is 1, in floats or doubles; 0 where the label is
 * `ignore`. */
typedef struct {
    ptrdiff_t n;
    const int64_t *labels;
    int64_t ignore;
    const void *of_row, *of_class;
    ptrdiff_t row_size, class_size;
} fs_weights;

/* Their sum, which does not depend on the number of threads.  Returns 0, or -1 if there is no memory. */
int fs_weigh_rows(const fs_weights *w, int threads, double *sum);

/* How many worker threads exist now: for show_config and the tests. */
int fs_pool_size(void);

#endif
