"""Calls on several threads whose results are known: what the processes and threads of ``test_threads.py`` compute.

Importing this module makes such calls, so that a process which imports it and forks was forked after use.
"""

from __future__ import annotations

import os
import warnings
import zlib

import numpy as np

import fastsoftmax as fs
from fastsoftmax import _backends, _numba

# From Python 3.12 on any fork of a process with threads is warned of, NumPy's own threads included.
warnings.filterwarnings("ignore", ".*use of fork.. may lead to deadlocks", DeprecationWarning)

_numba.PARALLEL_BYTES = 1

BACKEND = os.environ["JOB_BACKEND"]
THREADS = 2

_rng = np.random.default_rng(0)
MANY_ROWS = _rng.normal(size=(2000, 50)).astype(np.float32)
LONG_ROW = _rng.normal(size=(1, 300_007))  # shared by the threads of the compiled backend
STRIDED = _rng.normal(size=(999, 100))[:, ::2]  # staged


def answer(_: object = None, threads: int = THREADS, backend: str = BACKEND) -> list[int]:
    """Return checksums of some results, computed on as many threads."""
    with fs.use_backend(backend), fs.num_threads(threads):
        results = [fs.softmax(x) for x in (MANY_ROWS, LONG_ROW, STRIDED)]
    return [zlib.crc32(a) for a in results]


def threads_of_process() -> int:
    """Return the number of this process's threads, sleeping ones included."""
    return len(os.listdir("/proc/self/task"))


def workers() -> int:
    """Return the number of threads in the compiled backend's pool."""
    return _backends.find("cython")._native.pool_size()  # type: ignore[attr-defined]


def in_child(_: object) -> int:
    """Return how many workers the compiled backend has here, after a call of its own."""
    return workers() if answer() == EXPECTED else -1


EXPECTED = answer(threads=1)
if "JOB_IDLE" not in os.environ:
    assert answer() == EXPECTED
