"""What a new process waits for: the import, and the first call of the Numba backend."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import fastsoftmax

from .common import OPS, ROOT, TINY, enter, leave

_IMPORT = """
import time, numpy
start = time.perf_counter()
import fastsoftmax
print(time.perf_counter() - start)
"""

# Numba itself is imported by entering the backend, before the clock starts.
_FIRST_CALL = """
import sys, time
from benchmarks import common
op = common.OPS[sys.argv[1]]
job = common.Job(op, "float32", *list(common.shapes(op).values())[1])
common.enter("numba")
start = time.perf_counter()
job.fresh()
print(time.perf_counter() - start)
"""


def _seconds(code: str, *args: str, **environment: str) -> float:
    """Run code in a new process, with the installed fastsoftmax of this one, and return what it prints."""
    path = os.pathsep.join([str(Path(fastsoftmax.__file__).parents[1]), str(ROOT / "asv_bench")])
    env = {**os.environ, "PYTHONPATH": path, **environment}
    command = [sys.executable, "-c", code, *args]
    with tempfile.TemporaryDirectory() as elsewhere:
        done = subprocess.run(command, env=env, cwd=elsewhere, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout)


class Import:
    """The import of fastsoftmax, beyond NumPy's."""

    timeout = 60

    def track_milliseconds(self) -> float:
        """Return the milliseconds of ``import fastsoftmax`` after ``import numpy``: the median of a few processes."""
        return statistics.median(_seconds(_IMPORT) for _ in range(1 if TINY else 7)) * 1e3

    track_milliseconds.unit = "ms"  # type: ignore[attr-defined]


class FirstCall:
    """The first call of the Numba backend, by operation: Numba's cache on disk empty, or filled by another process."""

    params = ([name for name, op in OPS.items() if op.public], ("empty", "filled"))
    param_names = ("op", "cache")
    timeout = 180

    def setup(self, op: str, cache: str) -> None:
        """Make a cache of our own, and fill it if it is to be filled."""
        self.folder = tempfile.TemporaryDirectory()
        enter("numba")
        leave()
        if cache == "filled":
            self._call(op)

    def teardown(self, op: str, cache: str) -> None:
        """Remove the cache."""
        self.folder.cleanup()

    def _call(self, op: str) -> float:
        return _seconds(_FIRST_CALL, op, NUMBA_CACHE_DIR=self.folder.name)

    def track_seconds(self, op: str, cache: str) -> float:
        """Return the seconds of the first call in a new process."""
        return self._call(op)

    track_seconds.unit = "seconds"  # type: ignore[attr-defined]
