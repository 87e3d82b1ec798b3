"""The reference backend: the definitions of the table, evaluated one precision up and rounded once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ._backends import Kernel
from ._ops import LABEL, ONE, OPS

name = "numpy"
strided = False
masks = False
reads: dict[np.dtype[Any], frozenset[str]] = {}

# longdouble is float64 on some platforms (MSVC, 64-bit Arm macOS); the reference is less exact there.
WIDER = {np.dtype(np.float32): np.float64, np.dtype(np.float64): np.longdouble}

# The definitions make a dozen temporaries; blocks of this many elements keep them small and in cache.
BLOCK = 1 << 16


def why_not() -> str | None:
    """Return None: NumPy is always there."""
    return None


def quick(
    op: str, ins: tuple[Any, ...], outs: tuple[Any, ...], params: tuple[float, ...], axis: int = -1
) -> list[Any] | None:
    """Return None: the reference has one way."""
    return None


def kernel(op: str, dtype: np.dtype[Any]) -> Kernel:
    """Return the kernel of one operation."""
    row = OPS[op]
    wide = WIDER[dtype]

    def definition(ins: Sequence[Any], outs: Sequence[Any], params: tuple[float, ...], threads: int) -> None:
        del threads  # NumPy computes on one
        n, c = ins[0].shape[1:]
        options = {key: wide(value) for key, value in zip(row.params, params, strict=True)}
        step = max(1, BLOCK // (c * c if any(len(o.shape) == 4 for o in outs) else c))
        for start in range(0, n, step):
            part = slice(start, start + step)
            with np.errstate(all="ignore"):
                operands = []
                for (_, kind), a in zip(row.ins, ins, strict=True):
                    if not isinstance(a, np.ndarray):
                        operands.append(np.full(min(step, n - start), a, wide) if kind == ONE else wide(a))
                    elif kind == LABEL:
                        operands.append(a[0, part])
                    else:
                        operands.append((a if a.ndim == 1 else a[0, part]).astype(wide))
                for out, result in zip(outs, row.definition(*operands, **options)):
                    out[0, part] = result

    return definition
