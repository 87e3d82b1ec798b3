"""Run every kernel with its operands between pages that cannot be touched: ``python guard.py ROOM``.

One byte read or written too far kills the process; the last line printed names the case.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from typing import Any

import numpy as np
import rooms
from cases import Case, is_loss
from checks import assert_same_bits, compute
from saboteurs import Saboteur

from fastsoftmax._ops import OPS, SQUARE, Array

PAGE = mmap.PAGESIZE
CLASSES = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 65, 100, 1021)
LONG = (4099, 70_001)
_libc = ctypes.CDLL(None, use_errno=True)


def guarded(shape: tuple[int, ...], dtype: Any, at_end: bool) -> Array:
    """Return an array that ends where (or starts where) an inaccessible page starts (or ends)."""
    dtype = np.dtype(dtype)
    size = max(int(np.prod(shape)) * dtype.itemsize, 1)
    pages = -(-size // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for address in (base, base + (pages + 1) * PAGE):
        if _libc.mprotect(ctypes.c_void_p(address), ctypes.c_size_t(PAGE), 0) != 0:
            raise OSError(ctypes.get_errno(), "mprotect failed")
    start = PAGE + (pages * PAGE - size if at_end else 0)
    return np.frombuffer(area, dtype, int(np.prod(shape)), start).reshape(shape)


def inside(a: Any, at_end: bool) -> Any:
    """Copy an operand between guard pages."""
    if not isinstance(a, np.ndarray):
        return a
    copy = guarded(a.shape, a.dtype, at_end)
    copy[...] = a
    return copy


def main(room: str) -> None:
    for op in OPS.values():
        square = any(kind == SQUARE for _, kind in op.outs)
        for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
            for c in CLASSES[:-1] if square else CLASSES + LONG:
                for r in (1, 2) if c in LONG else (1, 3, 17, 37):
                    options = ("weights", "vectors", "smoothing", "zloss") if is_loss(op) else ()
                    ins, params = Case("sigma10", r, c, options).build(op, dtype)
                    print(f"{op.name}, room {room}, {dtype}, {r} x {c}", flush=True)
                    expected = compute(op, dtype, ins, params)
                    for at_end in (True, False):
                        outs = [guarded(o.shape, o.dtype, at_end) for o in expected]
                        compute(op, dtype, [inside(a, at_end) for a in ins], params, outs)
                        for a, b in zip(outs, expected, strict=True):
                            assert_same_bits(a, b)
    print("done", flush=True)


def trespass() -> None:
    """Prove that the guards guard: read one element past the end."""
    reader = Saboteur(
        "reads past the end",
        tuple(OPS),
        None,
        lambda honest, ins, outs, params, threads: np.lib.stride_tricks.as_strided(
            ins[0].reshape(-1), (ins[0].size + 1,)
        )[-1].copy(),
    )
    with rooms.use_stranger(reader.name, reader):
        main(reader.name)


if __name__ == "__main__":
    if sys.argv[1] == "trespass":
        trespass()
    else:
        with rooms.ROOMS[sys.argv[1]].use():
            main(sys.argv[1])
