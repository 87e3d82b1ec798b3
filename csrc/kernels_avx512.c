/* The row kernels for AVX-512 (F, BW, DQ, VL). */
#if defined(__x86_64__)
#include <stddef.h>
#include <stdint.h>

/* Everything from here on, the vocabulary's functions too, is compiled for this instruction set: the build needs no
 * flags per file. */
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")
#endif

#include "fs.h"

#include "vec_avx512.h"

#define FS_TABLE fs_kernels_avx512
#define FS_STAGING fs_staging_avx512
#include "instantiate.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif
