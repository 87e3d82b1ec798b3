"""Call the public functions of an operation on arrays of any shape and layout, derived from the table."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from cases import is_loss

import fastsoftmax as fs
from fastsoftmax._ops import CLASS, LABEL, ONE, OPS, ROW, SQUARE, Array, Op

# The mass of a row's targets, q, follows from them: it is 1 for plain class indices.
KEYWORDS = {"b": "b", "w": "weight", "u": "pos_weight", "v": "sample_weight", "q": "q"}


def faces() -> Iterator[tuple[str, Op]]:
    """Yield every public function with the operation it ends in."""
    for op in OPS.values():
        for public in op.public:
            yield public, op


def call(public: str, op: Op, operands: list[Any], **options: Any) -> list[Any]:
    """Call a public function with the operation's operands, in the order of the table; return its outputs."""
    positional, keywords = [], dict(options)
    for (name, _), a in zip(op.ins, operands, strict=True):
        keyword = "grad_output" if is_loss(op) and name == "g" else KEYWORDS.get(name)
        if keyword is None:
            positional.append(a)
        elif not (isinstance(a, float) and a == 1):  # the neutral default
            keywords[keyword] = a
    if is_loss(op):
        keywords.setdefault("reduction", "none")
    if op.name == "logsumexp_weighted":
        keywords["return_sign"] = True
    result = getattr(fs, public)(*positional, **keywords)
    return list(result) if len(op.outs) > 1 else [result]


def out_keyword(op: Op, name: str) -> str | None:
    """Return the argument that takes the output of this name, if there is one."""
    return {"dx": "grad_out", "hess": "hess_out", "sign": None, "loss": None, "slope": None}.get(name, "out")


# --- rows to arrays and back ------------------------------------------------


def axes_of(ndim: int, axis: Any) -> tuple[int, ...]:
    """Return the axes as non-negative ints."""
    if axis is None:
        return tuple(range(ndim))
    try:
        return (operator.index(axis) % ndim,)
    except TypeError:
        return tuple(a % ndim for a in axis)


def split(shape: tuple[int, ...], axis: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the lengths of the batch axes and those of the class axes."""
    axes = axes_of(len(shape), axis)
    return tuple(n for k, n in enumerate(shape) if k not in axes), tuple(shape[k] for k in axes)


def to_array(rows: Any, kind: str, shape: tuple[int, ...], axis: Any) -> Any:
    """Turn an operand on ``(r, c)`` rows into one on an array of ``shape`` whose classes lie along ``axis``."""
    if not isinstance(rows, np.ndarray) or kind == CLASS:
        return rows
    batch, classes = split(shape, axis)
    if kind in (ONE, LABEL):
        return rows.reshape(batch)
    axes = axes_of(len(shape), axis)
    return np.moveaxis(rows.reshape(batch + classes), range(len(batch), len(shape)), axes)


def to_rows(a: Any, kind: str, shape: tuple[int, ...], axis: Any) -> Array:
    """Undo :func:`to_array`."""
    batch, classes = split(shape, axis)
    a = np.asarray(a)
    c = int(np.prod(classes))
    if kind == SQUARE:
        return a.reshape(-1, c, c)
    if kind != ROW:
        return a.reshape(-1)
    axes = axes_of(len(shape), axis)
    return np.moveaxis(a, axes, range(len(batch), len(shape))).reshape(-1, c)


# --- layouts ------------------------------------------------


class ArrayProtocol:
    """An object that NumPy can only read through ``__array__``."""

    def __init__(self, a: Array) -> None:
        self._a = a

    def __array__(self, dtype: Any = None, copy: Any = None) -> Array:
        return self._a


class DLPack:
    """An object that NumPy can only read through ``__dlpack__``."""

    def __init__(self, a: Array) -> None:
        self._a = a

    def __dlpack__(self, **options: Any) -> Any:
        return self._a.__dlpack__(**options)

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._a.__dlpack_device__()


def _embedded(a: Array, step: int) -> Array:
    """Copy into an array of which every |step|-th element is used, along every axis."""
    big = np.full([max(n * abs(step), 1) for n in a.shape], 77, a.dtype)
    view = big[(*(slice(None, n * abs(step), abs(step)) for n in a.shape), ...)]
    if step < 0:
        view = view[(*(slice(None, None, -1) for _ in a.shape), ...)]
    view[...] = a
    return view


def _unaligned(a: Array) -> Array:
    buffer = np.zeros(a.nbytes + 1, np.uint8)[1:]
    view = buffer.view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def _read_only(a: Array) -> Array:
    a = a.copy()
    a.flags.writeable = False
    return a


def _memmap(a: Array) -> Array:
    import tempfile

    with tempfile.TemporaryFile() as f:
        m = np.memmap(f, a.dtype, "w+", shape=a.shape or (1,)).reshape(a.shape)
        m[...] = a
        return m


LAYOUTS = {
    "C": lambda a: np.array(a, order="C"),
    "F": lambda a: np.array(a, order="F"),
    "strided": lambda a: _embedded(a, 3),
    "negative": lambda a: _embedded(a, -1),
    "negative strided": lambda a: _embedded(a, -2),
    "read-only": _read_only,
    "byte-swapped": lambda a: a.astype(a.dtype.newbyteorder()),
    "unaligned": _unaligned,
    "memmap": _memmap,
    "list": lambda a: a.tolist() if a.dtype.itemsize == 8 else a.copy(),
    "__array__": ArrayProtocol,
    "__dlpack__": lambda a: DLPack(a.copy()),
}
