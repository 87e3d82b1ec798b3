/* The engine.  Rows are cut into tiles; threads take runs of tiles from a counter; a kernel computes a tile.
 *
 * An operand whose elements are contiguous along the classes is the kernel's operand as it is.  Any other is staged: a
 * tile of its rows is copied into memory that stays in cache, computed there, and copied back, so that a stride costs a
 * copy within the cache, not another kernel.  A few long rows are not cut between the rows but within them. */
#include "engine.h"
#include "pool.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* Elements that keep a thread busy for longer than it takes to start it.  Estimated, not yet tuned by measurement. */
enum { WORTH_A_THREAD = 8192 };

/* Bytes of one operand that a thread takes at a time: long enough for the prefetcher, short enough to share evenly. */
enum { RUN_BYTES = 1 << 18 };

/* Bytes of a staged tile: a few of them fit a 1 MiB second-level cache. */
enum { TILE_BYTES = 1 << 17 };

/* Rows of a staged tile are this many bytes apart in addition: rows a power of two apart would share cache sets. */
enum { PAD_BYTES = 64 };

/* Fewer rows than this per thread, of at least this many blocks each, are split within the rows. */
enum { FEW_ROWS = 4, LONG_BLOCKS = 4 };

typedef struct {
    const fs_call *call;
    int staged[FS_MAX_OPERANDS];
    char *memory;       /* per worker: scratch, then the staged tiles */
    size_t per_worker, scratch_bytes, tile_stride[FS_MAX_OPERANDS];
    ptrdiff_t n1, n2, run, tile;
    _Atomic ptrdiff_t next;
    int threads;
} fs_job;

/* --- staging ------------------------------------------------------------------------------------------------------ */

/* Copy `rows` rows of c elements; rows of `from` may be adjacent in memory (s2 = itemsize: another axis than the last). */
#define DEFINE_COPY(T, NAME)                                                                                          \
    static void NAME(char *to, ptrdiff_t t2, ptrdiff_t tc, const char *from, ptrdiff_t s2, ptrdiff_t sc,              \
                     ptrdiff_t rows, ptrdiff_t c)                                                                     \
    {                                                                                                                 \
        enum { B = 64 / sizeof(T) };                                                                                  \
        ptrdiff_t r = 0;                                                                                              \
        for (; r + B <= rows; r += B) {                                                                               \
            ptrdiff_t k = 0;                                                                                          \
            for (; k + B <= c; k += B)                                                                                \
                for (int a = 0; a < B; a++)                                                                           \
                    for (int b = 0; b < B; b++)                                                                       \
                        *(T *)(to + (r + b) * t2 + (k + a) * tc) = *(const T *)(from + (r + b) * s2 + (k + a) * sc);  \
            for (; k < c; k++)                                                                                        \
                for (int b = 0; b < B; b++)                                                                           \
                    *(T *)(to + (r + b) * t2 + k * tc) = *(const T *)(from + (r + b) * s2 + k * sc);                  \
        }                                                                                                             \
        for (; r < rows; r++)                                                                                         \
            for (ptrdiff_t k = 0; k < c; k++)                                                                         \
                *(T *)(to + r * t2 + k * tc) = *(const T *)(from + r * s2 + k * sc);                                  \
    }
DEFINE_COPY(uint32_t, copy4)
DEFINE_COPY(uint64_t, copy8)

static void copy_rows(ptrdiff_t itemsize, char *to, ptrdiff_t t2, ptrdiff_t tc, const char *from, ptrdiff_t s2,
                      ptrdiff_t sc, ptrdiff_t rows, ptrdiff_t c)
{
    (itemsize == 4 ? copy4 : copy8)(to, t2, tc, from, s2, sc, rows, c);
}

/* --- tiles --------------------------------------------------------------------------------------------------------- */

static void serial_blocks(const fs_tile *t, ptrdiff_t n, fs_block_fn *fn, void *context)
{
    (void)t;
    for (ptrdiff_t b = 0; b < n; b++)
        fn(context, b);
}

typedef struct {
    fs_block_fn *fn;
    void *context;
    ptrdiff_t n;
    _Atomic ptrdiff_t next;
} fs_blocks;

static void pull_blocks(void *context, int worker)
{
    fs_blocks *b = context;
    (void)worker;
    for (ptrdiff_t i; (i = atomic_fetch_add(&b->next, 1)) < b->n;)
        b->fn(b->context, i);
}

/* A tile that carries its number of threads, for kernels that split rows. */
typedef struct {
    fs_tile tile;
    int threads;
} fs_split_tile;

static void parallel_blocks(const fs_tile *t, ptrdiff_t n, fs_block_fn *fn, void *context)
{
    fs_blocks blocks = {.fn = fn, .context = context, .n = n};
    fs_parallel(((const fs_split_tile *)t)->threads, pull_blocks, &blocks);
}

/* Compute rows [j, j + n) of batch i. */
static void run_tile(const fs_job *job, char *memory, ptrdiff_t i, ptrdiff_t j, ptrdiff_t n, int split)
{
    const fs_call *call = job->call;
    fs_split_tile s = {.tile = {.n = n, .c = call->c, .params = call->params, .scratch = (double *)memory,
                                .for_blocks = split > 1 ? parallel_blocks : serial_blocks},
                       .threads = split};
    char *stage = memory + job->scratch_bytes;
    for (int o = 0; o < call->operands; o++) {
        const fs_operand *x = &call->operand[o];
        char *data = x->data == NULL ? NULL : x->data + i * x->s1 + j * x->s2;
        if (job->staged[o]) {
            ptrdiff_t row = (ptrdiff_t)job->tile_stride[o];
            if (!x->output)
                copy_rows(call->itemsize, stage, row, call->itemsize, data, x->s2, x->sc, n, call->c);
            s.tile.data[o] = stage;
            s.tile.step[o] = row;
            stage += row * job->tile;
        } else {
            s.tile.data[o] = data;
            s.tile.step[o] = x->s2;
        }
    }
    call->kernel(&s.tile);
    for (int o = 0; o < call->operands; o++) {
        const fs_operand *x = &call->operand[o];
        if (job->staged[o] && x->output)
            copy_rows(call->itemsize, x->data + i * x->s1 + j * x->s2, x->s2, x->sc, s.tile.data[o], s.tile.step[o],
                      call->itemsize, n, call->c);
    }
}

static void pull_runs(void *context, int worker)
{
    fs_job *job = context;
    const ptrdiff_t rows = job->n1 * job->n2;
    char *memory = job->memory + worker * job->per_worker;
    for (ptrdiff_t start; (start = atomic_fetch_add(&job->next, job->run)) < rows;) {
        ptrdiff_t end = rows - start < job->run ? rows : start + job->run;
        while (start < end) {
            ptrdiff_t i = start / job->n2, j = start % job->n2, n = end - start;
            if (n > job->tile)
                n = job->tile;
            if (n > job->n2 - j)
                n = job->n2 - j;
            run_tile(job, memory, i, j, n, 1);
            start += n;
        }
    }
}

static ptrdiff_t at_least(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static ptrdiff_t at_most(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

int fs_run(const fs_call *given, int threads)
{
    fs_call call = *given;
    fs_job job = {.call = &call, .n1 = call.n1, .n2 = call.n2};
    const ptrdiff_t rows = call.n1 * call.n2, row_bytes = call.c * call.itemsize;
    int stages = 0, linear = 1;
    for (int o = 0; o < call.operands; o++) {
        const fs_operand *x = &call.operand[o];
        job.staged[o] = x->kind == FS_ROW && call.c > 1 && x->sc != call.itemsize;
        stages += job.staged[o];
        linear &= call.n1 == 1 || x->s1 == x->s2 * call.n2;
    }
    if (linear) {
        job.n1 = 1;
        job.n2 = rows;
    } else if (call.n2 < 32 && call.n2 < call.n1) {
        /* Tiles lie within the second batch dimension: let it be the longer one.  The order of rows means nothing. */
        job.n1 = call.n2;
        job.n2 = call.n1;
        for (int o = 0; o < call.operands; o++) {
            ptrdiff_t s = call.operand[o].s1;
            call.operand[o].s1 = call.operand[o].s2;
            call.operand[o].s2 = s;
        }
    }
    threads = (int)at_most(threads, at_least(1, rows * call.c / WORTH_A_THREAD));
    const ptrdiff_t blocks = (call.c + FS_BLOCK - 1) / FS_BLOCK;
    const int split = threads > 1 && !stages && blocks >= LONG_BLOCKS && rows < FEW_ROWS * threads;
    /* 16 rows are a cache line where rows are adjacent, and a multiple of every group of rows. */
    if (stages)
        job.tile = at_least(16, TILE_BYTES / at_least(row_bytes, 1) / 16 * 16);
    else
        job.tile = PTRDIFF_MAX;
    job.run = at_least(1, RUN_BYTES / at_least(row_bytes, 1));
    if (job.run > 16)
        job.run = job.run / 16 * 16;
    if (stages)
        job.run = at_least(job.run, job.tile);
    job.run = at_most(job.run, at_least(1, (rows + threads - 1) / threads));
    job.tile = at_most(job.tile, job.run);
    job.threads = threads;
    job.scratch_bytes = (size_t)(blocks > 1 ? blocks * 4 * (ptrdiff_t)sizeof(double) : 0);
    job.scratch_bytes = (job.scratch_bytes + 63) / 64 * 64;
    job.per_worker = job.scratch_bytes;
    for (int o = 0; o < call.operands; o++) {
        job.tile_stride[o] = (size_t)((row_bytes + 63) / 64 * 64 + PAD_BYTES);
        if (job.staged[o])
            job.per_worker += job.tile_stride[o] * (size_t)job.tile;
    }
    if (job.per_worker) {
        job.memory = aligned_alloc(64, job.per_worker * (size_t)threads);
        if (job.memory == NULL)
            return -1;
    }
    if (split)
        for (ptrdiff_t r = 0; r < rows; r++)
            run_tile(&job, job.memory, r / job.n2, r % job.n2, 1, threads);
    else
        fs_parallel(threads, pull_runs, &job);
    free(job.memory);
    return 0;
}
