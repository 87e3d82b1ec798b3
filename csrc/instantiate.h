/* All row kernels for floats and for doubles, on the instruction set whose vocabulary has been included, and their table
 * FS_TABLE.  Everything but the table is static. */
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
#include "forget.h"

#define REAL double
#define FS_FLOAT 0
#define NAME(x) x##_f64
#define V(x) d_##x
#include "rows.h"
#include "row_ops.h"
#include "forget.h"

#define ENTRY(op, columns_max) {#op, op##_f32, op##_f64},
const fs_kernel FS_TABLE[] = {FS_OPS(ENTRY){NULL, NULL, NULL}};
