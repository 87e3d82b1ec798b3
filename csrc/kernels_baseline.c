/* The row kernels for x86-64's own instruction set, and every other processor's. */
#include <stddef.h>
#include <stdint.h>

#include "fs.h"

#include "vec_baseline.h"

#define FS_TABLE fs_kernels_baseline
#define FS_STAGING fs_staging_baseline
#include "instantiate.h"
