/* The thread pool.
 *
 * Why not OpenMP: libgomp hangs in a process that was forked after use, and each wheel brings a copy of its own.  These
 * threads spin a little before they sleep, so that the next call need not wake them.
 *
 * One job runs at a time.  A caller that finds the pool busy does its work alone, so that nested calls and calls from many
 * Python threads neither wait for each other nor oversubscribe the machine.  A job is open from its publication until its
 * caller has found no more work; a worker that wakes too late finds it closed and is not waited for.
 *
 * After a fork the child has no workers and a fresh pool; its first parallel call starts new ones. */
#define _GNU_SOURCE
#include "pool.h"

#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>

#if defined(__x86_64__) || defined(__i386__)
#define RELAX() __builtin_ia32_pause()
#elif defined(__aarch64__)
#define RELAX() __asm__ __volatile__("yield")
#else
#define RELAX() ((void)0)
#endif

enum { MAX_WORKERS = 255 };

/* How long an idle worker spins before it sleeps: some 20 us at 40 cycles a pause.  Longer would spare more calls the
 * waking, but takes the core from other libraries' threads. */
int fs_spins = 2000;

/* A job's state: its number, whether it is closed, and how many workers are in it. */
#define CLOSED ((uint64_t)1 << 31)
#define ACTIVE(state) ((state) & (CLOSED - 1))
#define NUMBER(state) ((state) >> 32)

static struct {
    pthread_mutex_t busy;  /* held by the one caller whose job runs */
    pthread_mutex_t sleep; /* guards the condition */
    pthread_cond_t wake;
    _Atomic uint64_t state;
    _Atomic int sleepers;
    _Atomic int workers; /* changed under `busy`, read by anybody */
    _Atomic int wanted; /* workers that may join the job */
    fs_work_fn *_Atomic work;
    void *_Atomic context;
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER,
          .state = CLOSED};

static void join_job(uint64_t number, int index)
{
    uint64_t state = atomic_load(&pool.state);
    while (NUMBER(state) == number && !(state & CLOSED)) {
        if (atomic_compare_exchange_weak(&pool.state, &state, state + 1)) {
            if (index <= atomic_load(&pool.wanted))
                atomic_load(&pool.work)(atomic_load(&pool.context), index);
            atomic_fetch_sub(&pool.state, 1);
            return;
        }
    }
}

static void *worker(void *argument)
{
    int index = (int)(intptr_t)argument;
    uint64_t seen = 0;
    for (;;) {
        uint64_t number = seen;
        for (int i = 0; i < fs_spins && number == seen; i++) {
            number = NUMBER(atomic_load(&pool.state));
            RELAX();
        }
        if (number == seen) {
            pthread_mutex_lock(&pool.sleep);
            atomic_fetch_add(&pool.sleepers, 1);
            while ((number = NUMBER(atomic_load(&pool.state))) == seen)
                pthread_cond_wait(&pool.wake, &pool.sleep);
            atomic_fetch_sub(&pool.sleepers, 1);
            pthread_mutex_unlock(&pool.sleep);
        }
        seen = number;
        join_job(number, index);
    }
    return NULL;
}

static void reset_in_child(void)
{
    pthread_mutex_init(&pool.busy, NULL);
    pthread_mutex_init(&pool.sleep, NULL);
    pthread_cond_init(&pool.wake, NULL);
    atomic_store(&pool.state, CLOSED);
    atomic_store(&pool.sleepers, 0);
    pool.workers = 0;
}

static void add_workers(int wanted)
{
    static int registered;
    if (!registered) {
        registered = 1;
        pthread_atfork(NULL, NULL, reset_in_child);
    }
    /* Signals belong to the interpreter's threads: workers block them all. */
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old);
    while (pool.workers < wanted && pool.workers < MAX_WORKERS) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, worker, (void *)(intptr_t)(pool.workers + 1)) != 0)
            break;
        pthread_detach(thread);
        pool.workers++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

void fs_parallel(int threads, fs_work_fn *work, void *context)
{
    if (threads <= 1 || pthread_mutex_trylock(&pool.busy) != 0) {
        work(context, 0);
        return;
    }
    if (pool.workers < threads - 1)
        add_workers(threads - 1);
    atomic_store(&pool.work, work);
    atomic_store(&pool.context, context);
    atomic_store(&pool.wanted, threads - 1);
    uint64_t number = NUMBER(atomic_load(&pool.state)) + 1;
    atomic_store(&pool.state, number << 32);
    if (atomic_load(&pool.sleepers) > 0) {
        pthread_mutex_lock(&pool.sleep);
        pthread_cond_broadcast(&pool.wake);
        pthread_mutex_unlock(&pool.sleep);
    }
    work(context, 0);
    uint64_t state = atomic_fetch_or(&pool.state, CLOSED) | CLOSED;
    for (int i = 0; ACTIVE(state) != 0; i++) {
        /* A worker that lost its core gets it back sooner if this thread yields. */
        if (i < fs_spins)
            RELAX();
        else
            sched_yield();
        state = atomic_load(&pool.state);
    }
    pthread_mutex_unlock(&pool.busy);
}

int fs_pool_size(void)
{
    return pool.workers;
}
