/* What the kernels, the engine and the binding share. */
#ifndef FS_H
#define FS_H

#include <stddef.h>
#include <stdint.h>

#define FS_INLINE static inline __attribute__((always_inline))

enum { FS_MAX_OPERANDS = 8, FS_MAX_PARAMS = 8 };

/* A row longer than this is worked on in blocks of this many elements, whose results are merged in their order:
 * that is what lets several threads share one row without the bits depending on their number. */
#define FS_BLOCK 32768

typedef struct fs_tile fs_tile;
typedef void fs_block_fn(void *context, ptrdiff_t block);

/* What a kernel sees: n rows of c contiguous elements per operand, in the order of the table's inputs and outputs. */
struct fs_tile {
    ptrdiff_t n, c;
    char *data[FS_MAX_OPERANDS];      /* the first row of each operand; NULL for a vector of classes that is all 1 */
    ptrdiff_t step[FS_MAX_OPERANDS];  /* bytes from one row to the next; 0 if all rows share the operand */
    const double *params;             /* in the table's order */
    double *scratch;                  /* 4 doubles per block of a row */
    /* Run fn(context, b) for b in [0, n), in any order, possibly at the same time; return when all are done. */
    void (*for_blocks)(const fs_tile *, ptrdiff_t n, fs_block_fn *fn, void *context);
};

typedef void fs_kernel_fn(const fs_tile *);

/* One row of a kernel table; the tables of all instruction sets list the same operations in the same order. */
typedef struct {
    const char *op;
    fs_kernel_fn *f32, *f64;
} fs_kernel;

extern const fs_kernel fs_kernels_baseline[];
#if defined(__x86_64__)
extern const fs_kernel fs_kernels_avx2[];
extern const fs_kernel fs_kernels_avx512[];
#endif

#endif
