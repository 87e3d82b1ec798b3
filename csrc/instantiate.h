/* All row kernels for floats and for doubles, on the instruction set whose vocabulary has been included, their table FS_TABLE,
 * and FS_STAGING.  Everything but these two is static. */
#include <math.h>
#include <string.h>

#include "constants.h"
#include "fs.h"

/* A softmax rounded to bfloat16 sums to 1 within this; the same constant stands in the table's definitions. */
#define UNIT_SUM_BAND (1.0 / 64)

#include "vec_math.h"

#define REAL float
#define FS_FLOAT 1
#define NAME(x) x##_f32
#define V(x) f_##x
#include "rows.h"
#include "row_ops.h"
#include "stage.h"
#include "forget.h"

#define REAL double
#define FS_FLOAT 0
#define NAME(x) x##_f64
#define V(x) d_##x
#include "rows.h"
#include "row_ops.h"
#include "stage.h"
#include "forget.h"

static ptrdiff_t count_labels(const int64_t *labels, ptrdiff_t n, int64_t classes, int64_t ignore, int *bad)
{
    int64_t ignored = 0, wrong = 0;
    for (ptrdiff_t i = 0; i < n; i++) { /* without branches, for the compiler to vectorise */
        int64_t skip = labels[i] == ignore;
        ignored += skip;
        wrong |= ((labels[i] < 0) | (labels[i] >= classes)) & (skip ^ 1);
    }
    *bad |= (int)wrong;
    return (ptrdiff_t)ignored;
}

#define ENTRY(op, vectors, strands) {#op, op##_f32, op##_f64, vectors##_f32, strands},
const fs_kernel FS_TABLE[] = {FS_OPS(ENTRY){NULL, NULL, NULL, 0, 0}};

const fs_staging FS_STAGING[2] = {
    {.load = {[FS_F32] = load_own_f32, [FS_F16] = load_half_f32, [FS_BF16] = load_brain_f32},
     .store = {[FS_F32] = store_own_f32, [FS_F16] = store_half_f32, [FS_BF16] = store_brain_f32},
     .admit = admit_f32,
     .poison = poison_f32,
     .finish = finish_f32,
     .labels = count_labels,
     .in_columns = in_columns_f32},
    {.load = {[FS_F64] = load_own_f64, [FS_F32] = load_float_f64, [FS_F16] = load_half_f64, [FS_BF16] = load_brain_f64},
     .store = {[FS_F64] = store_own_f64, [FS_F32] = store_float_f64, [FS_F16] = store_half_f64, [FS_BF16] = store_brain_f64},
     .admit = admit_f64,
     .poison = poison_f64,
     .finish = finish_f64,
     .labels = count_labels,
     .in_columns = in_columns_f64},
};
