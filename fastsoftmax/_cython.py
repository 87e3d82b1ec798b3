"""The compiled backend: the C kernels of csrc/ behind the Cython binding, on the best instruction set here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import _backends, _plan, _threads
from ._ops import OPS

_reason: str | None = None
try:
    from . import _native
except ImportError as error:
    _reason = (
        f"the compiled extension is missing ({error}); install a wheel, or a C compiler (gcc or clang) and then run "
        "'pip install --force-reinstall --no-binary fastsoftmax fastsoftmax'"
    )

name = "cython"
strided = True
masks = True
reads = {
    np.dtype(np.float32): frozenset(("float16", "bfloat16")),
    np.dtype(np.float64): frozenset(("float16", "bfloat16", "float32")),
}

# Elements below which the engine uses one thread whatever it is allowed (WORTH_A_THREAD in csrc/engine.c).
SERIAL = 8192

_kernels: dict[tuple[str, str, np.dtype[Any]], _backends.Kernel] = {}
_isa: str | None = None


def why_not() -> str | None:
    """Return None if the extension is there, else why it is not."""
    return _reason


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that run here, weakest first."""
    return _native.instruction_sets() if _reason is None else ()


def isa() -> str:
    """Return the instruction set in use: the best one that runs here and that FASTSOFTMAX_ISA allows."""
    global _isa
    if _isa is None:
        allowed = _backends.INSTRUCTION_SETS[: _backends.INSTRUCTION_SETS.index(_backends.isa_cap) + 1]
        _isa = [s for s in instruction_sets() if s in allowed][-1]
    return _isa


@contextmanager
def forced_isa(name: str) -> Iterator[None]:
    """Compute with one instruction set inside a ``with`` block, in all threads: for tests and benchmarks."""
    global _isa
    before = isa()
    if name not in instruction_sets():
        raise ValueError(f"instruction set is {name!r}; expected one of {', '.join(map(repr, instruction_sets()))}")
    _isa = name
    _by_number.clear()
    try:
        yield
    finally:
        _isa = before
        _by_number.clear()


def kernel(op: str, dtype: np.dtype[Any]) -> _backends.Kernel:
    """Return the kernel of one operation."""
    key = (_isa or isa(), op, dtype)
    found = _kernels.get(key)
    if found is None:
        row = OPS[op]
        in_kinds, out_kinds = ([kind for _, kind in operands] for operands in (row.ins, row.results))
        found = _native.Kernel(key[0], op, dtype, in_kinds, out_kinds)
        _kernels[key] = found
    return found


# Kernels by operation and NumPy's type number, of the instruction set in use.
_by_number: dict[tuple[str, int], Any] = {}
_FLOAT_NUMBERS: dict[int, np.dtype[Any]] = {
    np.dtype(np.float32).num: np.dtype(np.float32),
    np.dtype(np.float64).num: np.dtype(np.float64),
}


def _found(op: str, number: int) -> Any:
    """Enter the kernel of an operation in the table by type numbers; None for other types."""
    dtype = _FLOAT_NUMBERS.get(number)
    if dtype is None:
        return None
    _by_number[op, number] = kernel(op, dtype)
    return _by_number[op, number]


def quick(
    op: str, ins: tuple[Any, ...], outs: tuple[Any, ...], params: tuple[float, ...], axis: int = -1
) -> list[Any] | None:
    """Compute the straight case without the plan, or return None: see ``Kernel.quick``.

    A call on an 8 x 10 array takes 1.2 us this way, 17 us through the plan.
    """
    x = ins[0]
    if type(x) is not np.ndarray:
        return None
    found = _by_number.get((op, x.dtype.num)) or _found(op, x.dtype.num)
    if found is None:
        return None
    threads = 1 if x.size < SERIAL else _threads.get_num_threads()
    return found.quick(ins, outs, params, threads, axis)  # type: ignore[no-any-return]


def quick_loss(
    logits: Any, target: Any, grad_out: Any, reduction: str, scale: float, empty: float, ignore: int, gradient: bool
) -> tuple[Any, Any] | None:
    """Compute the straight case of a plain loss against class indices, or return None: see ``_native.quick_loss``."""
    if type(logits) is not np.ndarray:
        return None
    op = "cross_entropy_index_grad" if gradient else "cross_entropy_index"
    number = logits.dtype.num
    found = _by_number.get((op, number)) or _found(op, number)
    narrow = found is None and (logits.dtype == np.float16 or _plan.is_bfloat16(logits.dtype))
    if narrow:
        found = kernel(op, np.dtype(np.float32))
    elif found is None:
        return None
    threads = 1 if logits.size < SERIAL else _threads.get_num_threads()
    return _native.quick_loss(
        found, logits, target, grad_out, reduction, scale, empty, ignore, gradient, threads, narrow
    )


def _plain(a: Any, *dtypes: Any) -> bool:
    """Tell whether an array is contiguous and of one of these dtypes."""
    return type(a) is np.ndarray and a.flags.c_contiguous and a.flags.aligned and a.dtype in dtypes


def count_ignored(labels: np.ndarray[Any, Any], classes: int, ignore: int) -> int | None:
    """Return how many labels are ``ignore``, -1 if another is out of bounds; None if they are no contiguous int64."""
    if not _plain(labels, np.dtype(np.int64)) or not -(2**63) <= ignore < 2**63:
        return None
    threads = _threads.get_num_threads()
    total: Any = kernel("total", np.dtype(np.float64))
    found: int = _native.count_ignored(total, labels, classes, ignore, threads)
    return found


def weigh_rows(labels: np.ndarray[Any, Any], ignore: int, weight: Any, rows: Any) -> float | None:
    """Return the sum of ``weight[label] * rows`` over the rows that are not ignored, or None: see ``count_ignored``.

    Either array may be a float, which is 1.  6 million rows took NumPy 43 ms, this 6.
    """
    weight, rows = (None if isinstance(a, float) else a for a in (weight, rows))
    floats = [a for a in (weight, rows) if a is not None]
    if not _plain(labels, np.dtype(np.int64)) or not all(_plain(a, *_FLOAT_NUMBERS.values()) for a in floats):
        return None
    threads = _threads.get_num_threads()
    total: float = _native.weigh_rows(labels.size, labels, ignore, weight, rows, threads)
    return total


def facts() -> dict[str, Any]:
    """Return what show_config tells about this backend."""
    compiler, flags = _native.build()
    return {
        "instruction set": isa(),
        "instruction sets": ", ".join(instruction_sets()),
        "threading layer": f"own pool, {_native.pool_size()} workers",
        "compiler": compiler,
        "build flags": flags,
    }
