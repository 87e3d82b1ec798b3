/* The engine.  Rows are cut into tiles; threads take runs of tiles from a counter; a kernel computes a tile.
 *
 * An operand is the kernel's as it is if its elements are of the kernel's type and contiguous along the classes, or, where a
 * kernel works in columns or strands, along the rows (by class).  Any other is staged: a tile of its rows is loaded
 * into memory that stays in cache, computed there, and stored, so that a layout or a type costs a copy within the cache, not
 * another kernel.  A few long rows are not cut between the rows but within them. */
#include "engine.h"
#include "pool.h"

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/* On an Intel Xeon with 2 MiB of second-level cache, tiles from 2^17 to 2^19 bytes differed by less than the noise; flat ones had
 * better leave room in a first-level cache of 48 KB (softmax of 60 million halfs in rows of 10, 100, 1000: 23.2, 22.0, 16.4 ms
 * with 2^14, 25.2, 24.3, 17.3 with 2^15).  Stores past the caches took a fifth off 60 million elements.  By class there is no
 * limit.  The other sizes are estimated. */
fs_sizes fs_tuned = {
    .worth_a_thread = 8192,
    .run_bytes = 1 << 18,
    .tile_bytes = 1 << 18,
    .flat_bytes = 1 << 14,
    .by_class = 1 << 30,
    .stream_bytes = 1 << 25,
};

/* Fewer rows than this per thread, of at least this many blocks each, are split within the rows. */
enum { FEW_ROWS = 4, LONG_BLOCKS = 13 };

/* Of rows side by side a tile should have so many, whole groups of a kernel's; and it has a multiple of some, whole cache lines
 * of each class. */
enum { SIDE_BY_SIDE = 64, SOME_SIDE_BY_SIDE = 16 };

/* Up to so many classes the processor itself follows their streams, and lines that are not whole cost less than another copy. */
enum { FEW_CLASSES = 20 };

/* Long rows of a run, whose last one's results are stored by themselves; and runs that each thread should have at least. */
enum { STREAMED_ROWS = 16, RUNS_EACH = 4 };

static const ptrdiff_t SIZE[FS_TYPES] = {4, 8, 2, 2, 1, 8};

/* A sum over fewer runs than this is over blocks of a FEW_RUNS-th of one. */
enum { FEW_RUNS = 8 };

/* Bytes between the workers' tiles: what is fetched beyond the end of one, by kernels and by the processor, which goes on in the
 * next page, must not be another core's.  Softmax of 60 million halfs in rows of 100 took 32 ms without, 27 with 2048, 25 with
 * 4096 and 21 from 6144 on. */
enum { APART = 8192 };

/* A larger tile and the next one's lines, an output's too, do not stay in a second-level cache: softmax of halfs in rows of
 * 131072 took 24.6 ms with them, 20 past the caches. */
enum { LARGE_TILE = 1 << 17 };

/* Running sums of one block of rows, so many that additions need not wait for each other. */
enum { LANES = 8 };

static ptrdiff_t at_least(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
static ptrdiff_t at_most(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }

enum { MOST_SHARES = 16 };

/* n pieces of work for several threads, which take them one by one.  Each begins with a share of its own, the same in every pass
 * and call, so that what it takes may still be in its own cache; then it helps the others.  Softmax of one row of 100000 floats
 * took 40 us from one counter, 34 so. */
typedef struct {
    ptrdiff_t n;
    int shares;
    struct {
        _Alignas(64) _Atomic ptrdiff_t taken; /* a line each */
    } of[MOST_SHARES];
} fs_shares;

typedef struct {
    fs_shares *s;
    int share, left;
} fs_claim;

static void hand_out(fs_shares *s, ptrdiff_t n, int shares)
{
    s->n = n;
    s->shares = (int)at_most(shares, MOST_SHARES);
    for (int k = 0; k < s->shares; k++)
        atomic_init(&s->of[k].taken, n * k / s->shares);
}

static fs_claim first_claim(fs_shares *s, int worker)
{
    return (fs_claim){.s = s, .share = worker % s->shares, .left = s->shares};
}

/* The next piece for a thread; n if there is none. */
static ptrdiff_t next_claim(fs_claim *c)
{
    for (; c->left > 0; c->left--, c->share = (c->share + 1) % c->s->shares) {
        const ptrdiff_t i = atomic_fetch_add(&c->s->of[c->share].taken, 1);
        if (i < c->s->n * (c->share + 1) / c->s->shares)
            return i;
    }
    return c->s->n;
}

typedef struct {
    const fs_call *call;
    int staged[FS_MAX_OPERANDS], by_class[FS_MAX_OPERANDS], linear[FS_MAX_OPERANDS];
    int direct;         /* logits with options need no loading */
    int mask_stands;    /* nor does the mask */
    int bare;           /* the kernel does the excluding */
    int stream;         /* whether the result is large */
    int strands;        /* whether the kernel works in them */
    int fetch;          /* whether the next tile is fetched meanwhile */
    int fetched_output; /* of the outputs this one, if it is not -1 */
    int columns;        /* whether the kernel works in them */
    int in_place;       /* the output that is computed in the tile of operand 0, or -1 */
    char *memory;       /* per worker: scratch, room for a row, for groups side by side and for terms, then the staged tiles */
    size_t per_worker, scratch_bytes, row_bytes, room_bytes, aside_bytes;
    ptrdiff_t rows, run, tile, step; /* step: bytes from row to row of a tile */
    ptrdiff_t spare;                 /* of a tile */
    ptrdiff_t across;                /* bytes from class to class of one that is staged by class */
    ptrdiff_t shift;                 /* the first run is so many rows short, so that the others start at cache lines */
    int segments;                    /* tiles must not cross from one n1 to the next */
    ptrdiff_t block;                 /* rows whose numbers are added up in their order, if a sum is wanted */
    double (*partial)[2 * LANES];    /* of each such block */
    fs_shares *runs;
    int threads;
    _Atomic ptrdiff_t ignored; /* labels */
    _Atomic int bad;
} fs_job;

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
    fs_shares shares;
} fs_blocks;

static void pull_blocks(void *context, int worker)
{
    fs_blocks *b = context;
    fs_claim claim = first_claim(&b->shares, worker);
    const ptrdiff_t n = b->shares.n;
    for (ptrdiff_t i; (i = next_claim(&claim)) < n;)
        b->fn(b->context, b->shares.shares == 1 ? i : i % 2 ? n - 1 - i / 2 : i / 2);
}

/* A pass over a row's blocks; another one may go through them backwards, so a share has as many of the first as of the last.  A
 * row that does not stay in cache is read from its beginning to its end: logsumexp of 20 million floats took 5.2 ms so, 6.5 in
 * shares. */
static void for_blocks(int threads, ptrdiff_t n, fs_block_fn *fn, void *context)
{
    if (threads == 1) {
        /* Nor is there an atomic operation, which would wait for stores past the caches: 2 of 28 ms of softmax of 60 million
         * halfs in rows of 10. */
        serial_blocks(NULL, n, fn, context);
        return;
    }
    fs_blocks blocks;
    blocks.fn = fn;
    blocks.context = context;
    hand_out(&blocks.shares, n, n * FS_BLOCK > FS_KEPT ? 1 : threads);
    fs_parallel(threads, pull_blocks, &blocks);
}

static void parallel_blocks(const fs_tile *t, ptrdiff_t n, fs_block_fn *fn, void *context)
{
    for_blocks((int)t->sharing, n, fn, context);
}

/* --- staging ------------------------------------------------------------------------------------------------------ */

/* One operand's part of a tile, which is moved block by block of classes if it is long and several threads are at hand. */
typedef struct {
    const fs_job *job;
    const fs_operand *x;
    char *tile, *data;
    ptrdiff_t step, rows, c, block;
    int store, stream;
} fs_move;

static void move_block(void *context, ptrdiff_t b)
{
    const fs_move *m = context;
    const fs_call *call = m->job->call;
    const fs_staging *s = &call->staging[call->itemsize == 8];
    const fs_operand *x = m->x;
    ptrdiff_t from = b * m->block, n = m->c - from < m->block ? m->c - from : m->block;
    char *tile = m->tile + from * call->itemsize, *data = m->data + from * x->sc;
    if (m->store)
        s->store[x->type](data, x->s2, x->sc, tile, m->step, m->rows, n, m->stream);
    else
        s->load[x->type](tile, m->step, data, x->s2, x->sc, m->rows, n);
}

/* Load or store rows [start, start + n) of operand o; a row of a ONE or LABEL operand is one element. */
static void move_rows(const fs_job *job, int o, char *tile, ptrdiff_t start, ptrdiff_t n, int store, int split)
{
    const fs_call *call = job->call;
    const fs_operand *x = &call->operand[o];
    const int linear = job->linear[o], by_class = job->by_class[o];
    const int stream = x->kind == FS_ROW && o != job->fetched_output &&
                       job->rows * call->c * SIZE[x->type] >= fs_tuned.stream_bytes;
    while (n > 0) {
        ptrdiff_t i = linear ? 0 : start / call->n2, j = linear ? start : start % call->n2;
        ptrdiff_t rows = linear || n < call->n2 - j ? n : call->n2 - j;
        char *data = x->data + i * x->s1 + j * x->s2;
        if (x->kind == FS_LABEL) {
            for (ptrdiff_t r = 0; r < rows; r++)
                memcpy(store ? data + r * x->s2 : tile + r * 8, store ? tile + r * 8 : data + r * x->s2, 8);
            tile += rows * 8;
        } else {
            fs_operand y = *x;
            fs_move m = {.job = job, .x = &y, .tile = tile, .data = data, .step = job->step, .rows = rows, .c = call->c,
                         .store = store, .stream = stream};
            if (x->kind == FS_ONE) {
                y.sc = x->s2;
                m.rows = 1;
                m.c = rows;
                tile += rows * call->itemsize;
            } else if (by_class) { /* its classes are moved like rows */
                y.s2 = x->sc;
                y.sc = x->s2;
                m.step = job->across;
                m.rows = call->c;
                m.c = rows;
                tile += rows * call->itemsize;
            } else {
                if (x->sc == SIZE[x->type] && x->s2 == call->c * x->sc && job->step == call->c * call->itemsize) {
                    m.rows = 1;
                    m.c = rows * call->c;
                }
                tile += rows * job->step;
            }
            m.block = split > 1 ? FS_BLOCK / call->itemsize : m.c;
            for_blocks(split, (m.c + m.block - 1) / m.block, move_block, &m);
        }
        start += rows;
        n -= rows;
    }
}

static void two_sum(double *hi, double *lo, double x)
{
    double t = *hi + x, back = t - *hi;
    *lo += (*hi - (t - back)) + (x - back);
    *hi = t;
}

/* Add x[k] to running sum (i + k) % LANES.  Rounds of them all are vectorised: one by one, they took 2 ns a row, as long as
 * the loss of a row of two classes itself. */
static void add_floats(double *restrict sums, const float *restrict x, ptrdiff_t i, ptrdiff_t n)
{
    ptrdiff_t k = 0;
    for (; k < n && (i + k) % LANES != 0; k++)
        sums[(i + k) % LANES] += x[k]; /* floats: the rounding of double is nothing to them */
    for (; k + LANES <= n; k += LANES)
        for (int lane = 0; lane < LANES; lane++)
            sums[lane] += x[k + lane];
    for (; k < n; k++)
        sums[(i + k) % LANES] += x[k];
}

static void add_doubles(double *restrict sums, const double *restrict x, ptrdiff_t i, ptrdiff_t n)
{
    ptrdiff_t k = 0;
    for (; k < n && (i + k) % LANES != 0; k++)
        two_sum(&sums[(i + k) % LANES], &sums[LANES + (i + k) % LANES], x[k]);
    for (; k + LANES <= n; k += LANES)
        for (int lane = 0; lane < LANES; lane++)
            two_sum(&sums[lane], &sums[LANES + lane], x[k + lane]);
    for (; k < n; k++)
        two_sum(&sums[(i + k) % LANES], &sums[LANES + (i + k) % LANES], x[k]);
}

/* Add what a tile's kernel has left for its rows to the running sums of their blocks. */
static void add_rows(const fs_job *job, const char *tile, ptrdiff_t start, ptrdiff_t n)
{
    for (ptrdiff_t r = 0, count; r < n; r += count) {
        const ptrdiff_t i = (start + r) % job->block;
        double *sums = job->partial[(start + r) / job->block];
        count = n - r < job->block - i ? n - r : job->block - i;
        if (job->call->itemsize == 4)
            add_floats(sums, (const float *)tile + r, i, count);
        else
            add_doubles(sums, (const double *)tile + r, i, count);
    }
}

static double sum_blocks(const fs_job *job)
{
    double hi = 0, lo = 0;
    for (ptrdiff_t b = 0; b * job->block < job->rows; b++)
        for (int k = 0; k < LANES; k++) {
            two_sum(&hi, &lo, job->partial[b][k]);
            lo += job->partial[b][LANES + k];
        }
    return hi + lo == hi + lo ? hi + lo : hi; /* of an infinite sum the low part is inf - inf */
}

/* --- options -------------------------------------------------------------------------------------------------------- */

typedef unsigned char fs_bytes16 __attribute__((vector_size(16)));
#ifdef __clang__
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (fs_bytes16){__VA_ARGS__})
#endif

/* Vector k of a and b, interleaved byte by byte. */
static fs_bytes16 interleaved(fs_bytes16 a, fs_bytes16 b, int high)
{
    return high ? SHUFFLE(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
                : SHUFFLE(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
}

/* Load rows of c bytes into a tile without gaps. */
static void load_bytes(char *tile, const char *from, ptrdiff_t s2, ptrdiff_t sc, ptrdiff_t rows, ptrdiff_t c)
{
    ptrdiff_t done = 0; /* rows */
    if (s2 == 1)
        for (; done + 16 <= rows; done += 16) {
            ptrdiff_t k = 0;
            for (; k + 16 <= c; k += 16) {
                /* Four perfect shuffles of 16 vectors transpose a square of 16 by 16. */
                fs_bytes16 v[16], u[16];
                for (int j = 0; j < 16; j++)
                    memcpy(&v[j], from + done + (k + j) * sc, 16);
                for (int round = 0; round < 4; round++) {
                    for (int j = 0; j < 8; j++) {
                        u[2 * j] = interleaved(v[j], v[j + 8], 0);
                        u[2 * j + 1] = interleaved(v[j], v[j + 8], 1);
                    }
                    memcpy(v, u, sizeof v);
                }
                for (int i = 0; i < 16; i++)
                    memcpy(tile + (done + i) * c + k, &v[i], 16);
            }
            for (; k < c; k++)
                for (int i = 0; i < 16; i++)
                    tile[(done + i) * c + k] = from[done + i + k * sc];
        }
    for (ptrdiff_t r = done; r < rows; r++) {
        const char *p = from + r * s2;
        if (sc == 0)
            memset(tile + r * c, *p, (size_t)c);
        else if (sc == 1)
            memcpy(tile + r * c, p, (size_t)c);
        else
            for (ptrdiff_t k = 0; k < c; k++)
                tile[r * c + k] = p[k * sc];
    }
}

enum { ADMIT, FINISH };

/* A part that is changed block by block of classes if it is long and several threads are at hand. */
typedef struct {
    const fs_call *call;
    const fs_part *part;
    ptrdiff_t block;
    int what;
    double by;
} fs_change;

static void change_block(void *context, ptrdiff_t b)
{
    const fs_change *m = context;
    const fs_call *call = m->call;
    const fs_staging *s = &call->staging[call->itemsize == 8];
    const ptrdiff_t from = b * m->block, offset = from * call->itemsize;
    fs_part part = *m->part;
    part.c = at_most(part.c - from, m->block);
    part.tile += offset;
    part.from = part.from ? part.from + offset : NULL;
    part.slope = part.slope ? part.slope + offset : NULL;
    part.mask = part.mask ? part.mask + from : NULL;
    if (m->what == ADMIT)
        s->admit(&part, &call->option);
    else
        s->finish(&part, m->by);
}

static void change(const fs_call *call, const fs_part *part, int what, double by, int split)
{
    fs_change m = {.call = call, .part = part, .what = what, .by = by, .block = split > 1 ? FS_BLOCK / call->itemsize : part->c};
    for_blocks(split, (part->c + m.block - 1) / m.block, change_block, &m);
}

/* Apply the options to a tile of inputs; what they need besides stands from `stage` on.  Returns where that ends. */
static char *admit_rows(const fs_job *job, fs_tile *t, fs_part *logits, char *stage, ptrdiff_t start, int split)
{
    const fs_call *call = job->call;
    const fs_staging *s = &call->staging[call->itemsize == 8];
    const fs_operand *x = &call->operand[0], *mask = &call->mask;
    logits->tile = t->data[0];
    logits->step = t->step[0];
    logits->from = job->direct ? x->data + start * x->s2 : logits->tile;
    logits->from_step = job->direct ? x->s2 : logits->step;
    if (job->mask_stands) {
        logits->mask = mask->data + start * mask->s2;
        logits->mask_step = mask->s2;
    } else if (mask->data != NULL) {
        logits->mask = stage;
        logits->mask_step = t->c;
        for (ptrdiff_t r = 0; r < t->n;) {
            ptrdiff_t i = (start + r) / call->n2, j = (start + r) % call->n2, n = at_most(t->n - r, call->n2 - j);
            load_bytes(stage + r * t->c, mask->data + i * mask->s1 + j * mask->s2, mask->s2, mask->sc, n, t->c);
            r += n;
        }
        stage += (t->c * job->tile + 63) / 64 * 64;
    }
    if (call->option.softcap != 0) {
        logits->slope = stage;
        logits->slope_step = job->step;
        stage += (job->step * job->tile + 63) / 64 * 64;
    }
    change(call, logits, ADMIT, 1, split);
    if (call->poison && logits->mask != NULL)
        s->poison(logits);
    if (call->cleared >= 0) {
        fs_part labels = {.tile = t->data[call->cleared], .step = t->step[call->cleared], .mask = logits->mask,
                          .mask_step = logits->mask_step, .rows = t->n, .c = t->c};
        change(call, &labels, FINISH, 1, split);
    }
    t->mask = (const uint8_t *)logits->mask;
    t->mask_step = logits->mask_step;
    return stage;
}

/* Apply the chain rule to an output, and clear it where a class is excluded. */
static void finish_rows(const fs_job *job, const fs_tile *t, const fs_part *logits, int o, int split)
{
    const fs_call *call = job->call;
    fs_part out = {.tile = t->data[o], .step = t->step[o], .rows = t->n, .c = t->c, .mask = logits->mask,
                   .mask_step = logits->mask_step, .slope = logits->slope, .slope_step = logits->slope_step};
    if (call->operand[o].kind == FS_ROW) {
        change(call, &out, FINISH, call->chain[o], split);
    } else if (call->operand[o].kind == FS_ONE) {
        out.mask = out.slope = NULL;
        out.c = 1;
        change(call, &out, FINISH, call->chain[o], 1);
    } else {
        for (ptrdiff_t r = 0; r < t->n; r++) {
            fs_part square = {.tile = out.tile + r * out.step, .step = t->c * call->itemsize, .rows = t->c, .c = t->c,
                              .mask = out.mask ? out.mask + r * out.mask_step : NULL};
            change(call, &square, FINISH, call->chain[o], 1);
            for (ptrdiff_t j = 0; square.mask != NULL && j < t->c; j++)
                if (!square.mask[j])
                    memset(square.tile + j * square.step, 0, (size_t)square.step);
        }
    }
}

static ptrdiff_t tile_step(const fs_job *job, const fs_operand *x)
{
    return x->kind == FS_ROW ? job->step : x->kind == FS_LABEL ? 8 : job->call->itemsize;
}

static size_t staged_bytes(const fs_job *job, int o)
{
    if (o == job->in_place)
        return 0;
    ptrdiff_t bytes = job->by_class[o] ? job->across * job->call->c : tile_step(job, &job->call->operand[o]) * job->tile;
    return (size_t)((bytes + 63) / 64 * 64);
}

static char *row_of(const fs_job *job, int o, ptrdiff_t r)
{
    const fs_operand *x = &job->call->operand[o];
    const ptrdiff_t n2 = job->call->n2;
    return job->linear[o] ? x->data + r * x->s2 : x->data + r / n2 * x->s1 + r % n2 * x->s2;
}

/* Whether a result by class is made of whole lines, which is what can be stored past the caches. */
static int lines_match(const fs_job *job, const fs_call *call, int o)
{
    return call->operand[o].sc % 64 == 0 && job->linear[o];
}

/* Whether an output is written past the caches: it is large and not an input, too, nor changed afterwards.  Rows that are taken
 * together are shorter than that is worth (on two threads, in memcpys: softmax of 1000 doubles 1.25 so, 1.16 through the caches;
 * of 8192 floats 1.13, 1.24; softmax_vjp of 8192 doubles 1.65, 2.04). */
static int is_streamed(const fs_job *job, int o)
{
    const fs_call *call = job->call;
    const fs_operand *x = &call->operand[o];
    int same = 0;
    for (int k = 0; k < call->operands; k++)
        same |= !call->operand[k].output && call->operand[k].data == x->data;
    return job->stream && x->output && x->kind == FS_ROW && !same && !(call->options && call->derived[o]) &&
           (job->by_class[o] ? lines_match(job, call, o) : call->c * call->itemsize > FS_GROUP);
}

/* Whether a kernel itself fetches the next tile's rows of an operand, line by line as it goes through these (ahead). */
static int is_few(const fs_job *job, int o)
{
    return job->by_class[o] && !job->staged[o] && job->call->c <= FEW_CLASSES;
}

/* Whether an operand's rows stand one after the other. */
static int has_no_gaps(const fs_job *job, int o)
{
    const fs_operand *x = &job->call->operand[o];
    return x->kind == FS_ROW && job->linear[o] && x->sc == SIZE[x->type] && x->s2 == job->call->c * x->sc;
}

/* What to fetch of an operand's tile that begins with row `next`, if it is not read where it stands row after row. */
static int plan_fetch(const fs_job *job, int o, ptrdiff_t next, fs_fetch *f)
{
    const fs_operand *x = &job->call->operand[o];
    const ptrdiff_t size = SIZE[x->type];
    const int by_rows = x->sc == size;
    ptrdiff_t n = at_most(job->tile, job->rows - next), c = job->call->c;
    if (x->kind != FS_ROW || !(job->staged[o] || job->by_class[o]) || is_few(job, o) || !(by_rows || x->s2 == size))
        return 0;
    if (has_no_gaps(job, o)) {
        c *= n;
        n = 1;
    }
    const char *at = row_of(job, o, next);
    f->at = at - (uintptr_t)at % 64;
    const ptrdiff_t lines = (at - f->at + (by_rows ? c : n) * size + 63) / 64;
    f->lines = f->line = !by_rows && job->call->c <= FEW_CLASSES ? at_most(lines, FS_ROOM / 64) : lines;
    f->apart = by_rows ? x->s2 : x->sc;
    f->pieces = f->piece = by_rows ? n : job->call->c;
    f->rounds = (lines + f->lines - 1) / f->lines;
    return 1;
}

/* What to fetch of the tile that begins with row `next`; returns how many of them there are. */
static int plan_fetches(const fs_job *job, ptrdiff_t next, fs_fetch *fetch)
{
    int n = 0;
    if (!job->fetch || next >= job->rows)
        return 0;
    for (int o = 0; o < job->call->operands && n < FS_FETCHED; o++)
        if (!job->call->operand[o].output)
            n += plan_fetch(job, o, next, &fetch[n]);
    if (job->fetched_output < 0)
        return n;
    fs_fetch to;
    plan_fetch(job, job->fetched_output, next, &to);
    if (n < FS_FETCHED && job->columns) { /* whose passes fetch both */
        fetch[n++] = to;
    } else { /* line by line in turns with operand 0 */
        fetch->rounds = at_least(fetch->line, to.line);
        fetch->lines = fetch->line = 1;
        fetch->pieces = fetch->piece = 2;
        fetch->apart = to.at - fetch->at;
    }
    return n;
}

/* Check the labels of rows [start, start + n), which are read for it once, and from the cache when they are used: with a pass of
 * their own the loss of two float32 classes took 2.44 memcpys, 2.01 so. */
static int labels_pass(fs_job *job, ptrdiff_t start, ptrdiff_t n)
{
    const fs_call *call = job->call;
    int bad = 0;
    if (call->checked >= 0)
        atomic_fetch_add(&job->ignored, call->staging->labels((const int64_t *)call->operand[call->checked].data + start, n,
                                                              call->c, call->ignore, &bad));
    if (bad)
        atomic_store(&job->bad, 1);
    return !bad;
}

/* Compute rows [start, start + n); those from `next` on will be the next. */
static void run_tile(fs_job *job, char *memory, ptrdiff_t start, ptrdiff_t n, ptrdiff_t next, int split)
{
    const fs_call *call = job->call;
    if (!labels_pass(job, start, n))
        return;
    char *stage = memory + job->scratch_bytes;
    fs_tile tile = {.n = n, .c = call->c, .params = call->params, .scratch = (double *)memory, .sharing = split,
                    .for_blocks = split > 1 ? parallel_blocks : serial_blocks};
    tile.row = stage;
    tile.room = job->room_bytes ? stage + job->row_bytes : NULL;
    tile.aside = stage + job->row_bytes + job->room_bytes;
    tile.spare = job->spare;
    stage = tile.aside + job->aside_bytes;
    fs_fetch fetch[FS_FETCHED] = {{0}};
    const int fetches = plan_fetches(job, next, fetch);
    for (int o = 0; o < call->operands; o++) {
        const fs_operand *x = &call->operand[o];
        tile.apart[o] = call->itemsize;
        if (job->staged[o]) {
            tile.data[o] = o == job->in_place ? tile.data[0] : stage;
            tile.step[o] = job->by_class[o] ? call->itemsize : tile_step(job, x);
            if (job->by_class[o])
                tile.apart[o] = job->across;
            if (!x->output && !(o == 0 && job->direct))
                move_rows(job, o, stage, start, n, 0, split);
            stage += staged_bytes(job, o);
        } else {
            tile.data[o] = x->data == NULL ? NULL : row_of(job, o, start);
            tile.step[o] = x->s2;
            tile.stream |= (unsigned)is_streamed(job, o) << o;
            if (x->kind == FS_LABEL && !x->output && next < job->rows)
                tile.ahead[o] = row_of(job, o, next) - tile.data[o];
            if (job->by_class[o]) {
                tile.apart[o] = x->sc;
                tile.ahead[o] = is_few(job, o) && next < job->rows ? row_of(job, o, next) - tile.data[o] : 0;
            }
        }
    }
    fs_part logits = {.rows = n, .c = call->c};
    unsigned cleared = 0;
    tile.cleared = &cleared;
    if (job->bare) {
        tile.bare = 1;
        tile.mask = (const uint8_t *)call->mask.data + start * call->mask.s2;
        tile.mask_step = call->mask.s2;
        tile.poison = call->poison;
        for (int o = 0; o < call->operands; o++)
            tile.derived |= (unsigned)call->derived[o] << o;
    } else if (call->options) {
        stage = admit_rows(job, &tile, &logits, stage, start, split);
    }
    tile.fetch = fetches ? fetch : NULL;
    call->kernel(&tile);
    for (int o = 0; call->options && o < call->operands; o++)
        if (call->derived[o] && !(cleared >> o & 1 && call->chain[o] == 1 && logits.slope == NULL))
            finish_rows(job, &tile, &logits, o, split);
    for (int o = 0; o < call->operands; o++)
        if (o == call->summed)
            add_rows(job, tile.data[o], start, n);
        else if (job->staged[o] && call->operand[o].output)
            move_rows(job, o, tile.data[o], start, n, 1, split);
}

static void pull_runs(void *context, int worker)
{
    fs_job *job = context;
    char *memory = job->memory + worker * job->per_worker;
    const ptrdiff_t all = job->rows + job->shift;
    /* A run that is known early can be fetched; but of few runs, a thread that claims two may leave none to another: softmax
     * of 128 rows of 1000 floats took 66 us on two threads, 27 without. */
    const int early = (job->staged[0] || job->by_class[0]) && job->rows >= 8 * job->threads * job->run;
    fs_claim claim = first_claim(job->runs, worker);
    ptrdiff_t mine = next_claim(&claim) * job->run, following = all;
    for (; mine < all; mine = early ? following : next_claim(&claim) * job->run) {
        if (early)
            following = at_most(all, next_claim(&claim) * job->run);
        ptrdiff_t start = at_least(0, mine - job->shift), end = at_most(job->rows, mine - job->shift + job->run);
        while (start < end) {
            ptrdiff_t n = at_most(end - start, job->tile);
            if (job->segments)
                n = at_most(n, job->call->n2 - start % job->call->n2);
            run_tile(job, memory, start, n, start + n < end ? start + n : following - job->shift, 1);
            start += n;
        }
    }
}

static void swap_batch(fs_operand *x)
{
    ptrdiff_t s = x->s1;
    x->s1 = x->s2;
    x->s2 = s;
}

static int is_strided(const fs_call *call, const fs_operand *x)
{
    return x->kind == FS_ROW && call->c > 1 && x->sc != SIZE[x->type];
}

/* Whether a kernel may take an operand's rows side by side.  A tile of them must not be tiny. */
static int is_by_class(const fs_job *job, const fs_call *call, int o)
{
    const fs_operand *x = &call->operand[o];
    int many = call->n2 >= SIDE_BY_SIDE && call->n2 * call->c * call->itemsize >= fs_tuned.flat_bytes;
    return is_strided(call, x) && x->s2 == SIZE[x->type] && !call->options && call->c <= fs_tuned.by_class &&
           (job->linear[o] || many);
}

/* Whether it does so where they are, which are of its own type, and if lines are not whole, they are few, or too many. */
static int is_in_place(const fs_job *job, const fs_call *call, int o)
{
    const fs_operand *x = &call->operand[o];
    return SIZE[x->type] == call->itemsize && (!x->output || !job->stream || lines_match(job, call, o) ||
                                               call->c <= FEW_CLASSES || call->c > FS_SLAB);
}

/* Whether it does: in columns it can take some operands so and some not; in strands it takes all of them, and leaves too many
 * lanes empty if there are but a few rows; and a row's are one thread's. */
static int takes_by_class(fs_job *job, const fs_call *call, int split)
{
    if (job->columns)
        return 1;
    job->strands = call->strands && job->rows >= SOME_SIDE_BY_SIDE && !split;
    for (int o = 0; o < call->operands; o++)
        job->strands &= call->operand[o].kind != FS_ROW ||
                        (is_by_class(job, call, o) && (call->c <= FS_SLAB || is_in_place(job, call, o)));
    return job->strands;
}

static int is_linear(const fs_call *call, const fs_operand *x)
{
    return call->n1 == 1 || x->s1 == x->s2 * call->n2;
}

/* Whether a mask is all that is to be done to logits that a kernel works on in columns: then it does that, too.  Loss and
 * gradient of 600000 rows of 100 floats took 42 ms in tiles, 29 so. */
static int is_bare(const fs_call *call)
{
    const fs_operand *x = &call->operand[0], *mask = &call->mask;
    int linear = is_linear(call, mask);
    for (int o = 0; o < call->operands; o++)
        linear &= is_linear(call, &call->operand[o]);
    /* The prediction of a row that becomes NaN is its first NaN, which only a tile holds. */
    for (int o = 0; o < call->operands; o++)
        linear &= !(call->poison && call->operand[o].output && call->operand[o].kind == FS_LABEL);
    return call->options && call->option.factor == 1 && call->option.softcap == 0 && call->cleared < 0 && linear &&
           mask->data != NULL && mask->sc == 1 && mask->s2 >= 0 && mask->s2 < FS_FAR_ROWS && !is_strided(call, x) &&
           x->type == (call->itemsize == 8 ? FS_F64 : FS_F32) &&
           call->staging[call->itemsize == 8].in_columns(call->c, call->vectors);
}

/* The one output of a kernel that has rows and numbers only, if it can be in the tile of operand 0, or -1.  Those with labels
 * look at their rows again, and of rows in blocks the terms are kept in the result.  In a first-level cache there is room for
 * one tile and what it is converted from and to, not for two: softmax of 60 million halfs in rows of 1000 took 18.8 ms in two,
 * 16.2 in one. */
static int output_in_place(const fs_job *job, const fs_call *call)
{
    int output = -1, rows_only = call->c * call->itemsize <= FS_BLOCK;
    for (int o = 0; o < call->operands; o++) {
        const fs_operand *x = &call->operand[o];
        rows_only &= x->kind != FS_LABEL && !(x->output && output >= 0);
        if (x->output)
            output = o;
    }
    const int staged = output >= 0 && job->staged[0] && !job->by_class[0] && job->staged[output] && !job->by_class[output];
    return rows_only && staged && call->operand[0].kind == FS_ROW && call->operand[output].kind == FS_ROW ? output : -1;
}

/* The output whose lines are fetched, too, instead of being written past the caches; or -1.  It and operand 0 have half as many
 * lines as the kernel has vectors, or less; kernels that work on elements, not on rows, do not fetch.  Stores past the caches
 * come tile by tile, too many at a time, and then everything waits for them: softmax of 60 million halfs in rows of 1000 took
 * 20.9 ms so, 18.8 with what is fetched. */
static int output_to_fetch(const fs_job *job, const fs_call *call)
{
    const ptrdiff_t size = SIZE[call->operand[0].type];
    for (int o = 0; call->vectors && o < call->operands; o++)
        if (call->operand[o].output && job->staged[o] && job->staged[0] && has_no_gaps(job, o) && has_no_gaps(job, 0) &&
            SIZE[call->operand[o].type] == size && 2 * size <= call->itemsize)
            return o;
    return -1;
}

/* Order the batch dimensions, and decide which operands are staged.  split: threads share a row. */
static int stage_operands(fs_job *job, fs_call *call, int split)
{
    const fs_type own = call->itemsize == 8 ? FS_F64 : FS_F32;
    int stages = 0, linear = 1, inner_is_outer = 0;
    job->columns = call->staging[call->itemsize == 8].in_columns(call->c, call->vectors);
    job->bare = is_bare(call);
    call->options &= !job->bare;
    for (int o = 0; o < call->operands; o++) {
        const fs_operand *x = &call->operand[o];
        int floats = x->kind == FS_ROW || x->kind == FS_ONE;
        job->staged[o] = is_strided(call, x) || (floats && x->data != NULL && x->type != own) ||
                         (call->options && (o == 0 || o == call->cleared));
        stages |= job->staged[o];
        linear &= is_linear(call, x);
        if (x->kind == FS_ROW && !is_linear(call, x))
            inner_is_outer |= labs(x->s1) < labs(x->s2);
    }
    /* The order of rows means nothing.  Tiles that are staged want neighbours in memory; others lie within the second batch
     * dimension, which had better be the longer one. */
    if (!linear && (stages ? inner_is_outer : call->n2 < 32 && call->n2 < call->n1)) {
        ptrdiff_t n = call->n1;
        call->n1 = call->n2;
        call->n2 = n;
        for (int o = 0; o < call->operands; o++)
            swap_batch(&call->operand[o]);
        swap_batch(&call->mask);
    }
    for (int o = 0; o < call->operands; o++)
        job->linear[o] = is_linear(call, &call->operand[o]);
    const int by_class = takes_by_class(job, call, split);
    for (int o = 0; o < call->operands; o++) {
        const fs_operand *x = &call->operand[o];
        job->by_class[o] = by_class && is_by_class(job, call, o);
        if (job->by_class[o] && is_in_place(job, call, o))
            job->staged[o] = 0;
        if (!job->linear[o] && !job->by_class[o] && stages && x->kind != FS_SQUARE)
            job->staged[o] = 1;
        job->segments |= !job->linear[o] && !job->staged[o];
    }
    if (call->options) {
        const fs_operand *x = &call->operand[0], *mask = &call->mask;
        job->direct = x->type == own && !is_strided(call, x) && job->linear[0];
        job->mask_stands = mask->data != NULL && mask->sc == 1 && is_linear(call, mask);
    }
    job->in_place = output_in_place(job, call);
    job->fetched_output = output_to_fetch(job, call);
    stages = 0;
    for (int o = 0; o < call->operands; o++)
        stages |= job->staged[o];
    return stages;
}

/* Rows of a run of at most so many: whole numbers of `some`, and if the runs are few, as many runs for each thread.  Softmax of
 * 1000 floats side by side by 100 took 52 us in runs of 320, 45 in runs of 256; of 100 by 1000 80 us in runs of 48, 69 of 64. */
static ptrdiff_t even_run(ptrdiff_t rows, ptrdiff_t most, int threads, ptrdiff_t some)
{
    const ptrdiff_t each = at_least(1, (rows + most * threads - 1) / (most * threads)), runs = each * threads;
    return each > FEW_RUNS ? most : at_most(most, ((rows + runs - 1) / runs + some - 1) / some * some);
}

int fs_run(const fs_call *given, int threads)
{
    fs_call call = *given;
    const ptrdiff_t rows = call.n1 * call.n2, row_bytes = call.c * call.itemsize;
    fs_job job = {.call = &call, .rows = rows};
    job.stream = rows * row_bytes >= fs_tuned.stream_bytes;
    threads = (int)at_most(threads, at_least(1, rows * call.c / fs_tuned.worth_a_thread));
    const ptrdiff_t blocks = (row_bytes + FS_BLOCK - 1) / FS_BLOCK;
    const int split = threads > 1 && blocks >= LONG_BLOCKS && rows < FEW_ROWS * threads;
    const int stages = stage_operands(&job, &call, split);
    /* Rows side by side that are transposed are taken in pairs of cache lines, which the processor fetches together. */
    ptrdiff_t pair = 0, by_class = 0;
    for (int o = 0; o < call.operands; o++) {
        const fs_operand *x = &call.operand[o];
        if (!is_strided(&call, x))
            continue;
        if (job.by_class[o])
            by_class = 1;
        else
            pair = at_least(pair, 128 / SIZE[x->type]);
        if (x->s2 == SIZE[x->type] && job.linear[o] && x->sc % 64 == 0)
            job.shift = (ptrdiff_t)((uintptr_t)x->data % 64) / SIZE[x->type];
    }
    job.run = at_least(1, fs_tuned.run_bytes / at_least(row_bytes, 1));
    if (job.run > 16)
        job.run = job.run / 16 * 16;
    if (job.stream && row_bytes > FS_GROUP) /* whose results wait for the next row's terms */
        job.run = at_least(job.run, at_most(STREAMED_ROWS, rows / (threads * RUNS_EACH)));
    job.run = even_run(rows, job.run, threads, 1);
    job.tile = PTRDIFF_MAX;
    job.step = row_bytes;
    if (pair) {
        job.step = ((row_bytes + 63) / 64 | 1) * 64; /* an odd number of lines: rows must not share cache sets */
        job.tile = fs_tuned.tile_bytes / at_least(row_bytes, 1);
        job.tile = job.tile < pair ? pair / 2 : even_run(rows, job.tile / pair * pair, threads, pair / 2);
        job.run = job.tile;
    } else if (by_class) {
        /* Of each class a tile should have several lines; but it, its results and the next tile share a second-level cache.
         * What is not stored from where it is computed had better be much of each class. */
        const ptrdiff_t most = at_most(SIDE_BY_SIDE, at_least(128 / call.itemsize, fs_tuned.tile_bytes / row_bytes));
        job.tile = at_least(most, fs_tuned.tile_bytes / (stages ? 1 : call.c <= FEW_CLASSES ? 2 : 8) / row_bytes);
        /* Softmax of 100000 rows of 100 floats took 3.7 ms in tiles of 80, whose last 16 are a group, 3.4 in tiles of 64. */
        const ptrdiff_t some = job.tile < SIDE_BY_SIDE ? SOME_SIDE_BY_SIDE : SIDE_BY_SIDE;
        job.tile = call.c > FS_TALL ? SIDE_BY_SIDE : at_least(1, job.tile / some) * some;
        job.run = job.segments ? at_least(1, 4 * job.tile / call.n2) * call.n2 : 4 * job.tile;
        job.run = even_run(rows, job.run, threads, 64 / call.itemsize);
        job.tile = at_most(job.tile, job.run);
    } else if (stages) {
        /* Loss and gradient of 240 MB of logits under a mask, tiles of 8, 32, 64, 128 KB: 1000 floats 29.5, 29.2, 28.5, 28.5 ms;
         * 100 doubles 33.7, 32.3, 31.0, 30.6. */
        const ptrdiff_t bytes = (call.options ? 4 : 1) * fs_tuned.flat_bytes;
        job.tile = at_least(call.options ? 2 : 1, bytes / at_least(row_bytes, 1));
        if (job.columns) /* whole groups: loss and gradient of halfs in rows of 100 took 30.6 ms in tiles of 32 rows, 28.2 of 64 */
            job.tile = at_least(job.tile, SIDE_BY_SIDE);
        if (job.tile > 2 * SIDE_BY_SIDE)
            job.tile = job.tile / SIDE_BY_SIDE * SIDE_BY_SIDE;
        else if (job.tile > 16)
            job.tile = job.tile / 16 * 16;
        else if (job.tile > 8) /* which kernels take together */
            job.tile = call.itemsize == 8 ? 8 : 16;
    }
    if (split && pair)
        job.tile = rows;
    else if (split)
        job.tile = 1;
    job.tile = at_most(job.tile, at_least(job.run, split ? rows : 1));
    if (call.summed >= 0) {
        /* Runs of whole blocks, whose length depends on the shape alone. */
        job.staged[call.summed] = 1;
        job.shift = 0;
        const ptrdiff_t few = rows * row_bytes < FEW_RUNS * fs_tuned.run_bytes ? FEW_RUNS : 1; /* for threads to share */
        job.block = at_most(at_least(1, fs_tuned.run_bytes / few / at_least(row_bytes, 1)), rows >> 20 ? 1024 : 128);
        job.run = (job.run + job.block - 1) / job.block * job.block;
        job.tile = at_most(job.tile, 4096);
        job.partial = calloc((size_t)((rows + job.block - 1) / job.block), sizeof *job.partial);
        if (job.partial == NULL)
            return -1;
    }
    job.across = ((job.tile * call.itemsize + 63) / 64 | 1) * 64; /* odd for the same reason */
    job.threads = threads;
    job.fetch = !split && !(by_class && job.tile * row_bytes > fs_tuned.tile_bytes);
    if (!job.fetch || job.tile * row_bytes > LARGE_TILE)
        job.fetched_output = -1;
    job.scratch_bytes = (size_t)(blocks > 1 ? blocks * 6 * (ptrdiff_t)sizeof(double) : 0);
    job.scratch_bytes = (job.scratch_bytes + 63) / 64 * 64;
    if (by_class || job.bare)
        job.row_bytes = (size_t)(row_bytes + 63) / 64 * 64;
    if (by_class)
        job.room_bytes = (size_t)((job.strands ? 1 : FS_MAX_OPERANDS) * at_most(call.c, FS_TALL) * FS_ROOM);
    if (job.stream && row_bytes > FS_GROUP && row_bytes <= FS_KEPT)
        job.aside_bytes = (size_t)(row_bytes + 63) / 64 * 64;
    /* Room for a second row lets the first be stored while that is computed, also where both fill the second-level cache: softmax
     * of 50257, 90000, 131072 doubles 1.41, 1.38, 1.40 memcpys, 1.20, 1.16, 1.28 so. */
    job.spare = (ptrdiff_t)job.aside_bytes;
    job.aside_bytes *= 2;
    job.per_worker = job.scratch_bytes + job.row_bytes + job.room_bytes + job.aside_bytes;
    for (int o = 0; o < call.operands; o++)
        if (job.staged[o])
            job.per_worker += staged_bytes(&job, o);
    if (call.options && call.mask.data != NULL && !job.mask_stands)
        job.per_worker += (size_t)((call.c * job.tile + 63) / 64 * 64);
    if (call.options)
        job.per_worker += (size_t)((call.option.softcap != 0) * ((job.step * job.tile + 63) / 64 * 64));
    if (job.per_worker) {
        job.per_worker += APART;
        job.memory = aligned_alloc(64, job.per_worker * (size_t)(split ? 1 : threads));
        if (job.memory == NULL) {
            free(job.partial);
            return -1;
        }
    }
    fs_shares runs;
    hand_out(&runs, (rows + job.shift + job.run - 1) / job.run, job.stream ? 1 : threads);
    job.runs = &runs;
    if (split)
        for (ptrdiff_t r = 0; r < rows; r += job.tile)
            run_tile(&job, job.memory, r, at_most(job.tile, rows - r), rows, threads);
    else
        fs_parallel(threads, pull_runs, &job);
    if (call.summed >= 0)
        *call.sum = sum_blocks(&job);
    if (call.checked >= 0)
        *call.ignored = job.bad ? -1 : job.ignored;
    free(job.partial);
    free(job.memory);
    return 0;
}

/* --- labels --------------------------------------------------------------------------------------------------------- */

enum { LABELS_RUN = 1 << 15 }; /* 256 KB of labels */

typedef struct {
    const fs_staging *staging;
    const int64_t *labels;
    ptrdiff_t n;
    int64_t classes, ignore;
    _Atomic ptrdiff_t next, ignored;
    _Atomic int bad;
} fs_labels;

static void pull_labels(void *context, int worker)
{
    fs_labels *l = context;
    (void)worker;
    for (ptrdiff_t i; (i = atomic_fetch_add(&l->next, LABELS_RUN)) < l->n;) {
        int bad = 0;
        atomic_fetch_add(&l->ignored, l->staging->labels(l->labels + i, at_most(LABELS_RUN, l->n - i), l->classes,
                                                         l->ignore, &bad));
        if (bad)
            atomic_store(&l->bad, 1);
    }
}

ptrdiff_t fs_count_ignored(const fs_staging *staging, const int64_t *labels, ptrdiff_t n, int64_t classes, int64_t ignore,
                           int threads)
{
    fs_labels l = {.staging = staging, .labels = labels, .n = n, .classes = classes, .ignore = ignore};
    fs_parallel((int)at_most(threads, at_least(1, n / LABELS_RUN)), pull_labels, &l);
    return l.bad ? -1 : l.ignored;
}

/* --- weights of rows ---------------------------------------------------------------------------------------------------- */

enum { WEIGHED_AT_ONCE = 256 };

typedef struct {
    const fs_weights *w;
    double (*partial)[2];
    _Atomic ptrdiff_t next;
} fs_weighing;

static double number_at(const void *from, ptrdiff_t itemsize, ptrdiff_t i)
{
    return itemsize == 8 ? ((const double *)from)[i] : ((const float *)from)[i];
}

static void pull_weights(void *context, int worker)
{
    fs_weighing *weighing = context;
    const fs_weights *w = weighing->w;
    (void)worker;
    for (ptrdiff_t start; (start = atomic_fetch_add(&weighing->next, LABELS_RUN)) < w->n;) {
        const ptrdiff_t end = at_most(w->n, start + LABELS_RUN);
        double sums[2 * LANES] = {0}, each[WEIGHED_AT_ONCE], *out = weighing->partial[start / LABELS_RUN];
        for (ptrdiff_t i = start; i < end; i += WEIGHED_AT_ONCE) {
            const ptrdiff_t n = at_most(end - i, WEIGHED_AT_ONCE);
            for (ptrdiff_t k = 0; k < n; k++) {
                const int64_t y = w->labels ? w->labels[i + k] : 0;
                double weight = w->of_row ? number_at(w->of_row, w->row_size, i + k) : 1;
                if (w->labels && y == w->ignore)
                    weight = 0;
                else if (w->of_class)
                    weight *= number_at(w->of_class, w->class_size, y);
                each[k] = weight;
            }
            add_doubles(sums, each, 0, n);
        }
        for (int k = 0; k < LANES; k++) {
            two_sum(&out[0], &out[1], sums[k]);
            out[1] += sums[LANES + k];
        }
    }
}

int fs_weigh_rows(const fs_weights *w, int threads, double *sum)
{
    const ptrdiff_t runs = (w->n + LABELS_RUN - 1) / LABELS_RUN;
    fs_weighing weighing = {.w = w, .partial = calloc((size_t)at_least(1, runs), sizeof *weighing.partial)};
    double lo = 0;
    if (weighing.partial == NULL)
        return -1;
    fs_parallel((int)at_most(threads, at_least(1, runs)), pull_weights, &weighing);
    *sum = 0;
    for (ptrdiff_t r = 0; r < runs; r++) {
        two_sum(sum, &lo, weighing.partial[r][0]);
        lo += weighing.partial[r][1];
    }
    if (*sum + lo == *sum + lo) /* of an infinite sum the low part is inf - inf */
        *sum += lo;
    free(weighing.partial);
    return 0;
}
