/* Which instruction sets are compiled in, and which of them this CPU runs. */
#ifndef FS_ISA_H
#define FS_ISA_H

#include "fs.h"

/* Instruction sets are numbered weakest first. */
int fs_isa_count(void);
const char *fs_isa_name(int isa);
int fs_isa_runs(int isa);
const fs_kernel *fs_isa_kernels(int isa);
const fs_staging *fs_isa_staging(int isa);

#endif
