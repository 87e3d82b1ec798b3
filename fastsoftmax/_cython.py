"""The compiled backend: the C kernels of csrc/ behind the Cython binding, on the best instruction set that runs here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from . import _backends
from ._ops import OPS

try:
    from . import _native
except ImportError as error:
    _native = None
    _reason = (
        f"the compiled extension is missing ({error}); install a wheel, or a C compiler (gcc or clang) and then run "
        "'pip install --force-reinstall --no-binary fastsoftmax fastsoftmax'"
    )

name = "cython"
strided = True

_kernels: dict[tuple[str, str, np.dtype[Any]], _backends.Kernel] = {}
_isa: str | None = None


def why_not() -> str | None:
    """Return None if the extension is there, else why it is not."""
    return _reason if _native is None else None


def instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that run here, weakest first."""
    return () if _native is None else _native.instruction_sets()


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
    try:
        yield
    finally:
        _isa = before


def kernel(op: str, dtype: np.dtype[Any]) -> _backends.Kernel:
    """Return the kernel of one operation."""
    key = (_isa or isa(), op, dtype)
    found = _kernels.get(key)
    if found is None:
        row = OPS[op]
        found = _native.Kernel(key[0], op, dtype, [kind for _, kind in row.ins], [kind for _, kind in row.outs])
        _kernels[key] = found
    return found


def facts() -> dict[str, Any]:
    """Return what show_config tells about this backend."""
    return {"instruction set": isa(), "instruction sets": ", ".join(instruction_sets()), "threading": "own pool"}
