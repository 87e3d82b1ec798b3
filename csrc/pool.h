/* A pool of threads that pull work from the caller's counter. */
#ifndef FS_POOL_H
#define FS_POOL_H

typedef void fs_work_fn(void *context, int worker);

/* Run work(context, w) on the calling thread (w = 0) and on up to threads - 1 others, each with its own w < threads;
 * return when all that began have returned.  `work` must pull what it does from shared counters: it may run on the
 * calling thread alone, which is what happens if the pool is in use, as in nested and concurrent calls. */
void fs_parallel(int threads, fs_work_fn *work, void *context);

/* How often an idle worker looks for work before it sleeps. */
extern int fs_spins;

int fs_pool_size(void);

#endif
