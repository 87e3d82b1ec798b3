"""The Numba backend: its doors, and the care that Numba's threads need.

The kernels are in :mod:`fastsoftmax._numba_kernels`, which imports Numba and is imported when first asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import numpy as np

from . import _numpy
from ._backends import Kernel
from ._ops import CLASS, ONE, OPS, ROW, SQUARE, Array

name = "numba"
strided = False

# Up to so many classes rows lie across the lanes of a vector, not along.
FEW = {np.dtype(np.float32): 48, np.dtype(np.float64): 32}

# Starting threads costs about 30 us, in which one computes so many elements: fewer are not worth it.
PARALLEL_ELEMENTS = 1 << 16

# Scales for which no constant of the kernels leaves the range of float32; the reference serves the others.
SCALES = (2.0**-64, 2.0**64)

_kernels: ModuleType | None = None
_reason: str | None = None


def _import() -> str | None:
    """Import the kernels, or return why that is impossible."""
    global _kernels, _reason
    if _kernels is None and _reason is None:
        if importlib.util.find_spec("numba") is None:
            _reason = 'numba is not installed; get it with: pip install "fastsoftmax[numba]"'
        else:
            try:
                _kernels = importlib.import_module("._numba_kernels", __package__)
            except Exception as error:  # an incompatible Numba raises whatever it likes
                _reason = (
                    f"numba is installed but cannot be imported: {type(error).__name__}: {error}; "
                    'try: pip install --upgrade "fastsoftmax[numba]"'
                )
    return _reason


def why_not() -> str | None:
    """Return None if Numba can be imported, else the reason."""
    return _import()


# --- threads ------------------------------------------------------------------------------------------------------
#
# Numba's layers differ in what they forgive.  "omp" terminates a forked child that starts a parallel kernel (SIGTERM
# from Numba itself), "workqueue" aborts the process when two threads are in parallel kernels at once (SIGABRT).  A
# call that might meet this is computed by the thread that makes it; the results are the same, bit for bit.

_one_at_a_time = threading.Lock()
_forked = False


def _layer() -> str | None:
    """Return the threading layer in use, or None if no threads have been started."""
    import numba

    try:
        return str(numba.threading_layer())
    except ValueError:
        return None


def _after_fork() -> None:
    """Note, in a forked child, that the parent's threads are not here."""
    global _forked
    if _kernels is not None and _layer() is not None:
        _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _launch(function: Any, threads: int, *args: Any) -> bool:
    """Run a parallel kernel; return False if that is not safe now."""
    import numba

    if _forked:
        return False
    # The first launch chooses the layer, and not even that is safe for two at once.
    alone = _layer() not in ("tbb", "omp")
    if alone and not _one_at_a_time.acquire(blocking=False):
        return False
    try:
        before = numba.get_num_threads()
        numba.set_num_threads(threads)
        try:
            function(*args)
        finally:
            numba.set_num_threads(before)
    finally:
        if alone:
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
    return flat if flat.flags.writeable else np.asarray(_Alias(flat))


def kernel(op: str, dtype: np.dtype[Any]) -> Kernel:
    """Return the kernel of one operation."""
    import numba

    reason = _import()
    if reason is not None:
        raise ImportError(reason)
    row = OPS[op]
    serial: Callable[..., None] = getattr(_kernels, op)
    parallel: Callable[..., None] = getattr(_kernels, f"{op}_parallel")
    along, across = _kernels.ALONG, _kernels.ACROSS  # type: ignore[union-attr]
    few = 0 if any(kind == SQUARE for _, kind in row.outs) else FEW[dtype]
    lanes = 64 // dtype.itemsize
    in_kinds = [kind for _, kind in row.ins]
    scale_at = row.params.index("scale") if "scale" in row.params else None
    none, unit = np.empty(0, dtype), np.ones(1, dtype)
    most_threads = int(numba.config.NUMBA_NUM_THREADS)

    def run(ins: Sequence[Any], outs: Sequence[Any], params: tuple[float, ...], threads: int) -> None:
        if scale_at is not None and not SCALES[0] <= params[scale_at] <= SCALES[1]:
            _numpy.kernel(op, dtype)(ins, outs, params, threads)
            return
        rows, c = ins[0].shape[1:]
        operands: list[Any] = []
        for kind, a in zip(in_kinds, ins):
            if kind == ONE:
                operands += (_flat(a), 1.0) if isinstance(a, np.ndarray) else (none, a)
            else:
                operands.append(_flat(a) if isinstance(a, np.ndarray) else unit)
        operands += [a.reshape(-1) for a in outs]
        way = across if c <= few else along  # by c alone: a row's bits must not depend on the others
        threads = min(threads, most_threads, rows)
        if threads > 1 and outs[-1].size + rows * c > PARALLEL_ELEMENTS:
            chunk = -(-rows // threads)
            if c <= few:
                chunk = -(-chunk // lanes) * lanes
            if _launch(parallel, threads, tuple(operands), c, rows, chunk, params, way):
                return
        serial(*operands, c, 0, rows, *params, way)

    return run
