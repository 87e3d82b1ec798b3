"""The Numba backend: its doors, and the care that Numba's threads need.

The kernels are in the modules that ``MODULES`` names, which import Numba and are imported when first asked for.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Sequence
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np

from ._backends import Kernel
from ._ops import LABEL, ONE, OPS, ROW, SQUARE, Array

name = "numba"
strided = False
masks = False
reads = {np.dtype(np.float32): frozenset({"float16", "bfloat16"})}

# Where the kernels are.  The first module is the vocabulary, too, in which the others are written.
MODULES = ("_numba_kernels", "_numba_divergences", "_numba_second_order")

# Up to so many classes rows lie across the lanes of a vector, not along.  Measured: what a row costs by itself (folds,
# logarithms, a division) is worth the transposition of 256 float32 classes (a logsumexp of 100000 x 200 took 4.8 ms
# across and 7.4 along), but not that of results, too (a softmax 9.9 and 7.1); and rows without an exponential to
# compute cost little by themselves.
FEW = {np.dtype(np.float32): 128, np.dtype(np.float64): 128}
FEW_READ = {np.dtype(np.float32): 256, np.dtype(np.float64): 128}
FEW_SAVED = {np.dtype(np.float32): 32, np.dtype(np.float64): 32}

# With the cores idle, two threads break even at 128 KB (a softmax of 32 x 1000 float32 took 18 us on one and 17 us on
# two, 128 x 1000 took 65 and 41); with busy cores Numba's threads wait for each other much longer.  In bytes: a float64
# costs what two float32 cost (125 x 1000 on one thread took twice the time of the compiled backend).
PARALLEL_BYTES = 1 << 19

# Fewer rows per thread than this are computed by all threads together if they are long.
FEW_ROWS = 4

_kernels: tuple[ModuleType, ...] = ()
_reason: str | None = None


def _import() -> str | None:
    """Import the kernels, or return why that is impossible."""
    global _kernels, _reason
    if not _kernels and _reason is None:
        if importlib.util.find_spec("numba") is None:
            _reason = 'numba is not installed; get it with: pip install "fastsoftmax[numba]"'
        else:
            try:
                _kernels = tuple(importlib.import_module(f".{module}", __package__) for module in MODULES)
            except Exception as error:  # an incompatible Numba raises whatever it likes
                _reason = (
                    f"numba is installed but cannot be imported: {type(error).__name__}: {error}; "
                    'try: pip install --upgrade "fastsoftmax[numba]"'
                )
    return _reason


def _package() -> Any:
    return importlib.import_module("numba")


def why_not() -> str | None:
    """Return None if Numba can be imported, else the reason."""
    return _import()


def quick(
    op: str, ins: tuple[Any, ...], outs: tuple[Any, ...], params: tuple[float, ...], axis: int = -1
) -> list[Any] | None:
    """Return None: entering a compiled function costs more than the plan saves."""
    return None


def facts() -> dict[str, str]:
    """Return what :func:`fastsoftmax.show_config` prints about the backend."""
    numba = _package()
    layer = _layer() or f"{numba.config.THREADING_LAYER} (not started)"
    return {"numba": numba.__version__, "numba threading layer": layer}


# --- threads ------------------------------------------------------------------------------------------------------
#
# Numba's layers differ in what they forgive.  "omp" terminates a forked child that starts a parallel kernel (SIGTERM
# from Numba itself), and inside a parallel region starts another team; "workqueue" aborts the process when two threads
# are in parallel kernels at once (SIGABRT), nested ones included.  A call that might meet this is computed by the
# thread that makes it; the results are the same, bit for bit.

# As in csrc/pool.c: a second call computes alone, and adds no threads to a busy machine.
_one_at_a_time = threading.Lock()


def _layer() -> str | None:
    """Return the threading layer in use, or None if no threads have been started."""
    numba = _package()
    try:
        return str(numba.threading_layer())
    except ValueError:
        return None


def _after_fork() -> None:
    """Note, in a forked child, that the parent's threads are not here, whoever started them."""
    global _serial
    if "numba" in sys.modules and _layer() is not None:
        _serial = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)

# Threads that somebody else started before this module was imported may have been the parent's, too.
_serial = "numba" in sys.modules and _layer() is not None and multiprocessing.parent_process() is not None


@cache
def _openmp() -> ctypes.CDLL:
    """Return the OpenMP runtime that Numba's layer is linked with; looking a symbol up searches the dependencies."""
    return ctypes.CDLL(importlib.import_module("numba.np.ufunc.omppool").__file__)


def _allowed(layer: str | None) -> int:
    """Return how many threads a launch may use here and now: 1 inside a parallel region."""
    if layer == "omp":
        openmp = _openmp()
        # The second is what threadpoolctl sets.  Numba's own launch asks for a number and does not heed it.
        return 1 if openmp.omp_in_parallel() else int(openmp.omp_get_max_threads())
    if layer == "workqueue":
        # All work is done by threads that Python did not start.
        return 1 if isinstance(threading.current_thread(), threading._DummyThread) else sys.maxsize
    return sys.maxsize  # tbb's regions nest, and share their threads


def _launch(function: Any, threads: int, *args: Any) -> bool:
    """Run a parallel kernel; return False if that is not safe now, or not allowed."""
    global _serial
    # The first launch chooses the layer, and not even that is safe for two at once.
    if _serial or not _one_at_a_time.acquire(blocking=False):
        return False
    try:
        numba = _package()
        try:
            before = numba.get_num_threads()
        except ValueError:  # no layer can be loaded, or not the one that was asked for
            _serial = True
            return False
        threads = min(threads, _allowed(_layer()))
        if threads == 1:
            return False
        numba.set_num_threads(threads)
        try:
            function(*args)
        finally:
            numba.set_num_threads(before)
    finally:
        _one_at_a_time.release()
    return True


# --- kernels ------------------------------------------------------------------------------------------------------


class _Alias:
    """The memory of a read-only array as if it could be written; kernels compile once for both."""

    def __init__(self, a: Array) -> None:
        address, _ = a.__array_interface__["data"]
        self.__array_interface__ = {**a.__array_interface__, "data": (address, False)}
        self.owner = a


def _flat(a: Array) -> Array:
    flat = a.reshape(-1)
    if a.itemsize == 2:
        # Numba has no 16-bit floats: FLOAT16 and BFLOAT16 of the kernels.
        flat = flat.view(np.int16 if a.dtype.kind == "f" else np.uint16)
    return flat if flat.flags.writeable else np.asarray(_Alias(flat))


@cache
def kernel(op: str, dtype: np.dtype[Any]) -> Kernel:
    """Return the kernel of one operation."""
    reason = _import()
    if reason is not None:
        raise ImportError(reason)
    row = OPS[op]
    vocabulary = _kernels[0]
    home = next((module for module in _kernels if hasattr(module, op)), vocabulary)
    serial: Callable[..., None] = getattr(home, op)
    parallel: Callable[..., None] = getattr(home, f"{op}_parallel")
    along, across = vocabulary.ALONG, vocabulary.ACROSS
    writes = any(kind == ROW for _, kind in row.outs)
    limits = FEW_SAVED if row.ins[0][0] != "x" else FEW if writes else FEW_READ
    few = min(limits[dtype], vocabulary.MAX_FEW)
    long = vocabulary.LONG
    in_blocks = getattr(serial, "in_blocks", False)
    square = any(kind == SQUARE for _, kind in row.outs)
    if square:
        few, long = 0, sys.maxsize
    lanes = 64 // dtype.itemsize
    in_kinds, out_kinds = ([kind for _, kind in operands] for operands in (row.ins, row.results))
    none, unit = np.empty(0, dtype), np.ones(1, dtype)
    nothing = [np.empty(0, np.int64) if kind == LABEL else none for kind in out_kinds]
    plain = len(row.outs)
    most_threads = int(_package().config.NUMBA_NUM_THREADS)

    def readable(kind: str, a: Any, c: int) -> Any:
        """Convert 16-bit floats that the kernels do not: numbers per row, and rows that are too long for a tile."""
        if isinstance(a, np.ndarray) and a.itemsize == 2 and (kind == ONE or square or c > long):
            return a.astype(dtype)
        return a

    def run(ins: Sequence[Any], outs: Sequence[Any], params: tuple[float, ...], threads: int) -> None:
        rows, c = ins[0].shape[1:]
        results = [readable(kind, a, c) for kind, a in zip(out_kinds, outs)]
        operands: list[Any] = []
        for kind, given in zip(in_kinds, ins):
            a = readable(kind, given, c)
            if kind == ONE:
                operands += (_flat(a), 1.0) if isinstance(a, np.ndarray) else (none, float(a))
            else:
                operands.append(_flat(a) if isinstance(a, np.ndarray) else unit)
        flat = [_flat(a) for a in results]
        operands += flat[:plain]
        if row.extras:  # without any, Numba compiles a kernel that knows nothing of them
            operands += flat[plain:] + nothing[len(outs) :] if len(outs) > plain else [None] * len(row.extras)
        # By c alone: a row's bits must not depend on the others.
        way = across if c <= few else along
        threads = min(threads, most_threads)
        tasks, chunk = rows, -(-rows // threads)
        if c <= few:
            chunk = -(-chunk // lanes) * lanes
        elif in_blocks and c > long:
            words, all_words = vocabulary.room_size(c)
            rooms = np.zeros(rows * all_words, np.int64)
            together = rows < FEW_ROWS * threads
            way = (rooms.ctypes.data, words, rows if together else 0)
            if together:
                tasks, chunk = threads, 1
        several = tasks > chunk and max(rows * c, outs[0].size) * dtype.itemsize >= PARALLEL_BYTES
        if not (several and _launch(parallel, threads, tuple(operands), c, tasks, chunk, params, way)):
            serial(*operands, c, 0, rows, *params, way)
        for target, result in zip(outs, results):
            if target is not result:
                with np.errstate(all="ignore"):
                    target[...] = result

    return run
