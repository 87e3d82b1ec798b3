#include "isa.h"

static int always(void) { return 1; }

#if defined(__x86_64__)
/* __builtin_cpu_supports asks the operating system, too, whether it saves the registers. */
static int has_avx2(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

static int has_avx512(void)
{
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
}
#endif

static const struct {
    const char *name;
    int (*runs)(void);
    const fs_kernel *kernels;
    const fs_staging *staging;
} sets[] = {
    {"baseline", always, fs_kernels_baseline, fs_staging_baseline},
#if defined(__x86_64__)
    {"avx2", has_avx2, fs_kernels_avx2, fs_staging_avx2},
    {"avx512", has_avx512, fs_kernels_avx512, fs_staging_avx512},
#endif
};

int fs_isa_count(void) { return (int)(sizeof sets / sizeof sets[0]); }
const char *fs_isa_name(int isa) { return sets[isa].name; }
int fs_isa_runs(int isa) { return sets[isa].runs(); }
const fs_kernel *fs_isa_kernels(int isa) { return sets[isa].kernels; }
const fs_staging *fs_isa_staging(int isa) { return sets[isa].staging; }
