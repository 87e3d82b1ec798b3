/* What the kernels, the engine and the binding share. */
#ifndef FS_H
#define FS_H

#include <stddef.h>
#include <stdint.h>

#define FS_INLINE static inline __attribute__((always_inline))

/* Masks whose rows are farther apart, in bytes, are staged: a vector of rows must be within 2 GB. */
enum { FS_FAR_ROWS = 1 << 26 };

enum { FS_MAX_OPERANDS = 10, FS_MAX_PARAMS = 8, FS_FETCHED = 2 };

/* Bytes of each class that a kernel takes at a time of rows side by side: four vectors, of 64 bytes at most.  Rows of more
 * than FS_TALL classes, which a second-level cache does not hold, it takes slab by slab of FS_SLAB classes, a part of a block. */
#define FS_ROOM 256
#define FS_TALL 8192
#define FS_SLAB 1024

/* Bytes of one operand: a row longer than a block is worked on in blocks, whose results are merged in their order: that is what
 * lets several threads share one row without the bits depending on their number.  A block stays in a first-level cache from
 * its maximum to its sum: logsumexp of 131072 floats took 0.71 memcpys with blocks of 16 and 32 KB, 0.80 with 64, 0.87 with
 * 128. */
#define FS_BLOCK (32 << 10)
/* Rows are worked on together up to this; and the terms of a row up to that are kept from its sum to its result. */
#define FS_GROUP (16 << 10)
#define FS_KEPT (1 << 20)

typedef struct fs_tile fs_tile;
typedef void fs_block_fn(void *context, ptrdiff_t block);

/* An operand's part of the next tile, which is fetched while this one is computed, a line for every vector: piece by piece as
 * it lies in memory. */
typedef struct {
    const char *at;                 /* the next line */
    ptrdiff_t lines, pieces, apart; /* lines of a piece, pieces of a round; bytes from piece to piece */
    ptrdiff_t line, piece, rounds;  /* left of them, these included */
} fs_fetch;

/* Twice as far as the first-level cache, whose few lines on their way are what a kernel waits for. */
FS_INLINE void fs_fetch_line(fs_fetch *f)
{
    if (f->rounds <= 0)
        return;
    __builtin_prefetch(f->at, 0, 2);
    f->at += 64;
    if (--f->line == 0) {
        f->line = f->lines;
        f->at += f->apart - 64 * f->lines;
        if (--f->piece == 0) {
            f->piece = f->pieces;
            f->at += 64 * f->lines - f->pieces * f->apart;
            f->rounds--;
        }
    }
}

/* Fetch a line that will be written, as this core's own.  __builtin_prefetch(p, 1) is a read where the target is not said to have
 * this instruction (which others ignore).  Threads whose rows lie side by side take such lines from each other, since the
 * processor fetches beyond a thread's own: softmax of 1000 floats side by side by 100 took 69 us, 58 so. */
#if defined(__x86_64__)
#define FS_FETCH_TO_WRITE(p) __asm__ __volatile__("prefetchw %0" : : "m"(*(const char *)(p)))
#else
#define FS_FETCH_TO_WRITE(p) __builtin_prefetch((p), 1)
#endif

/* What a kernel sees: n rows of c elements per operand, in the order of the table's inputs and outputs.  The elements of a row
 * are contiguous, or, where a kernel works in columns, those of neighbouring rows are. */
struct fs_tile {
    ptrdiff_t n, c;
    char *data[FS_MAX_OPERANDS];      /* the first row of each operand; NULL for a vector of classes that is all 1, and for
                                       * an extra that is not wanted */
    ptrdiff_t step[FS_MAX_OPERANDS];  /* bytes from one row to the next; 0 if all rows share the operand */
    ptrdiff_t apart[FS_MAX_OPERANDS]; /* bytes from one class to the next */
    ptrdiff_t ahead[FS_MAX_OPERANDS]; /* of few classes side by side, and of labels: bytes from a row to that which is fetched
                                       * meanwhile */
    unsigned stream;                  /* bit o: what is written of operand o is to pass by the caches */
    const double *params;             /* in the table's order */
    const uint8_t *mask;              /* of the first row of operand 0: 0 where a class is excluded; NULL excludes none */
    ptrdiff_t mask_step;
    unsigned *cleared;                /* a kernel sets bit o if it has made operand o 0 where a class is excluded */
    int bare;                         /* what is excluded is still to be: in columns a kernel does it as it brings them */
    int poison;                       /* then also: a row whose included logits are all -inf is NaN */
    unsigned derived;                 /* and bit o: operand o is to be 0 where a class is excluded */
    fs_fetch *fetch;                  /* FS_FETCHED of them; or NULL: the next rows stand after these, or `ahead` */
    double *scratch;                  /* 6 doubles per block of a row */
    char *row;                        /* room for a row, if any are bare or side by side */
    char *room;                       /* for rows side by side: FS_ROOM bytes a class of a slab and operand; or NULL */
    char *aside;                      /* room for the terms of a row that is streamed, if they are kept */
    ptrdiff_t spare;                  /* bytes from there to room for another; 0 if there is none */
    ptrdiff_t sharing;                /* threads that share a row's blocks */
    /* Run fn(context, b) for b in [0, n), in any order, possibly at the same time; return when all are done. */
    void (*for_blocks)(const fs_tile *, ptrdiff_t n, fs_block_fn *fn, void *context);
};

typedef void fs_kernel_fn(const fs_tile *);

/* One row of a kernel table; the tables of all instruction sets list the same operations in the same order. */
typedef struct {
    const char *op;
    fs_kernel_fn *f32, *f64;
    int vectors; /* how long a row must be for it to work in rows */
    int strands; /* whether it takes longer rows side by side, too */
} fs_kernel;

/* Types of elements in memory. */
typedef enum { FS_F32, FS_F64, FS_F16, FS_BF16, FS_BOOL, FS_I64, FS_TYPES } fs_type;

/* Load rows of c elements, which are s2 bytes apart from row to row and sc from class to class, into a tile whose rows are
 * `step` bytes apart and hold floats or doubles; store them, past the caches if they are to be streamed. */
typedef void fs_load_fn(char *tile, ptrdiff_t step, const char *from, ptrdiff_t s2, ptrdiff_t sc, ptrdiff_t rows,
                        ptrdiff_t c);
typedef void fs_store_fn(char *to, ptrdiff_t s2, ptrdiff_t sc, const char *tile, ptrdiff_t step, ptrdiff_t rows,
                         ptrdiff_t c, int stream);

/* Rows of c classes that options change: in `tile`, whose rows are `step` bytes apart, those of `from` for a beginning. */
typedef struct {
    char *tile;
    const char *from;
    const char *mask; /* bytes, 0 where a class is excluded; NULL excludes none */
    char *slope;      /* derivatives of the changed logits by the logits; NULL if they are all the same */
    ptrdiff_t step, from_step, mask_step, slope_step;
    ptrdiff_t rows, c;
} fs_part;

/* What happens to logits before the kernel sees them. */
typedef struct {
    double factor;    /* multiplies the logits; if there is a cap, divided by it */
    double softcap;   /* if not 0, z becomes softcap tanh(z / softcap) */
    double slope;     /* and the slope at 0 */
} fs_option;
typedef void fs_admit_fn(const fs_part *, const fs_option *);
/* Rows of admitted logits that are all -inf where they are included become NaN; one without included classes does not. */
typedef void fs_poison_fn(const fs_part *);
/* What a kernel leaves in `tile`, times a factor and the slopes, 0 where it is 0; and 0 where a class is excluded. */
typedef void fs_finish_fn(const fs_part *, double factor);

/* Count the labels that are `ignore`; *bad is set to 1 if another one is not in [0, classes). */
typedef ptrdiff_t fs_labels_fn(const int64_t *labels, ptrdiff_t n, int64_t classes, int64_t ignore, int *bad);

/* How an instruction set stages tiles of floats (the first of two) or of doubles; NULL for types that it does not. */
typedef struct {
    fs_load_fn *load[FS_TYPES];
    fs_store_fn *store[FS_TYPES];
    fs_admit_fn *admit;
    fs_poison_fn *poison;
    fs_finish_fn *finish;
    fs_labels_fn *labels;
    int (*in_columns)(ptrdiff_t c, int vectors); /* whether a kernel works in columns */
} fs_staging;

extern const fs_kernel fs_kernels_baseline[];
extern const fs_staging fs_staging_baseline[2];
#if defined(__x86_64__)
extern const fs_kernel fs_kernels_avx2[];
extern const fs_staging fs_staging_avx2[2];
extern const fs_kernel fs_kernels_avx512[];
extern const fs_staging fs_staging_avx512[2];
#endif

#endif
