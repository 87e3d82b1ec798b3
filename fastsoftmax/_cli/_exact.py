"""Results in extended precision, and errors measured against them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .. import _backends, _numpy
from .._ops import ONE, OPS, Array, Op


class _Oracle:
    """A backend that computes the table's definitions in longdouble and remembers the results unrounded."""

    name = "oracle"
    strided = False
    masks = False

    def __init__(self) -> None:
        self.calls: list[tuple[Op, list[Array]]] = []
        self.reads: Mapping[np.dtype[Any], frozenset[str]] = {}

    def why_not(self) -> str | None:
        """Return None: it can always run."""
        return None

    def quick(
        self, op: str, ins: tuple[Any, ...], outs: tuple[Any, ...], params: tuple[float, ...], axis: int = -1
    ) -> None:
        """Return None: every call takes the ordinary way."""

    def kernel(self, op: str, dtype: np.dtype[Any]) -> _backends.Kernel:
        """Return the kernel of one operation."""
        # The reference evaluates float64 in longdouble, and stores into whatever it is given.
        evaluate = _numpy.kernel(op, np.dtype(np.float64))

        def definition(ins: Sequence[Any], outs: Sequence[Any], params: tuple[float, ...], threads: int) -> None:
            wide = [np.empty(out.shape, np.longdouble) for out in outs]
            evaluate(ins, wide, params, threads)
            self.calls.append((OPS[op], [a[0] for a in wide]))
            for out, a in zip(outs, wide):
                with np.errstate(all="ignore"):
                    out[...] = a

        return definition


def exact(function: Callable[..., Any], *args: Any, **options: Any) -> tuple[Op, list[Array]]:
    """Return the operation in which a call of a public function ends, and its exact results.

    The operands are contiguous rows, ``(n, c)``, and the call returns results per row; so are these: ``(n, ...)``.
    """
    oracle = _Oracle()
    token = _backends._override.set(oracle)
    try:
        function(*args, **options)
    finally:
        _backends._override.reset(token)
    op = oracle.calls[0][0]
    return op, [np.concatenate(parts) for parts in zip(*(results for _, results in oracle.calls))]


def magnitude(op: Op, output: int, result: Array) -> Array:
    """Return the magnitudes in whose last place the errors of one output of ``op`` are counted.

    That is the result itself; max(1, its magnitude) for a logarithm that may cancel to 0; and the row's largest
    result for sums of signed terms, each of which may cancel to 0.
    """
    size = np.abs(result)
    if op.ulp_kind == "result":
        return size
    if op.outs[output][1] == ONE:
        return np.maximum(size, 1)
    return np.broadcast_to(size.max(-1, keepdims=True, initial=0), size.shape)


def ulp_error(got: Array, result: Array, size: Array | None = None) -> float:
    """Return the largest error of ``got`` in units in the last place.

    Parameters
    ----------
    got
        Computed numbers, float32 or float64.
    result
        The exact ones, in longdouble.
    size
        The magnitudes whose last place is the unit, in longdouble; default those of ``result``.

    Returns
    -------
    float
        The error.  nan for nan, and an infinity where the exact result is infinite or rounds to it, are no error;
        nan or an infinity where a number is expected, or the other way round, is an infinite one.
    """
    info = np.finfo(got.dtype)
    size = np.abs(result) if size is None else size
    with np.errstate(all="ignore"):
        agree = (got == result.astype(got.dtype)) & ~np.isfinite(got) | (np.isnan(got) & np.isnan(result))
        # 2**(e-1) <= size < 2**e; below the normal numbers the unit stays that of the smallest one.
        exponent = np.where(size == 0, info.minexp, np.frexp(size)[1] - 1)
        unit = np.ldexp(np.longdouble(1), np.maximum(exponent, info.minexp) - info.nmant)
        error = np.abs(got - result) / unit
    error = np.where(agree, 0, np.where(np.isfinite(got) & np.isfinite(result), error, np.inf))
    return float(error.max(initial=0))
