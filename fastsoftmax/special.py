"""``softmax``, ``log_softmax`` and ``logsumexp`` in the place of SciPy's.

>>> from fastsoftmax.special import logsumexp      # instead of: from scipy.special import logsumexp

Signatures, defaults (``axis=None``), dtypes, shapes, scalars and errors are those of ``scipy.special``, for real input;
complex input is a TypeError.  The numbers are those of the functions of the same name in ``fastsoftmax``.
"""

# SciPy's signatures have no annotations, and ours must be equal to them: types are comments here.

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from . import _backends, _forward, _plan
from ._plan import Frame

__all__ = ["log_softmax", "logsumexp", "softmax"]

# Elements up to which an array is copied so that its classes come last, rather than sent through the plan: on 8 x 10
# with axis=0 the plan takes 16 us, the way with a copy 2.
SMALL = 8192

# Rows of one class from which on a subtraction is faster than a kernel.  Softmax of 100000 floats took a kernel 166 us,
# as long as SciPy, and 32 so.
MANY_ROWS = 512


@lru_cache(maxsize=256)
def _moved(shape: tuple[int, ...], axis: Any) -> tuple[Any, ...]:
    """Return how an array of this shape is seen as rows.

    That is the permutation that puts the classes last, and what undoes it: both None if they are the last axes already.
    Then the shape of the rows and the permuted one: both None if there is one axis of classes.  Then the shape with
    ``keepdims``.
    """
    frame = Frame(shape, axis)
    perm = frame.perm
    there = (None, None) if perm == tuple(range(len(shape))) else (perm, tuple(np.argsort(perm).tolist()))
    joined = (None, None)
    if len(frame.class_shape) != 1:
        joined = ((*frame.batch_shape, frame.c), frame.batch_shape + frame.class_shape)  # type: ignore[assignment]
    return *there, *joined, frame.kept_shape()


def _along(op: str, arrays: tuple[Any, ...], axis: Any, params: tuple[float, ...]) -> list[Any] | None:
    """Compute plain arrays, with their classes along one axis, where they are; None if they are not plain.

    As many results as arrays.
    """
    return _backends.current().quick(op, arrays, (None,) * len(arrays), params, axis) if type(axis) is int else None


def _quick(op: str, arrays: tuple[Any, ...], axis: Any, params: tuple[float, ...]) -> list[Any] | None:
    """Compute plain arrays without the plan, with their classes moved last; None if they are not plain.

    As many results as arrays.
    """
    x = arrays[0]
    if type(x) is not np.ndarray or not x.size or not x.ndim:
        return None
    if axis is not None and type(axis) is not int and not (type(axis) is tuple and all(type(k) is int for k in axis)):
        return None
    if any(type(a) is not np.ndarray or a.shape != x.shape for a in arrays[1:]):
        return None  # the axis is that of what they broadcast to
    perm, _, joined, _, _ = _moved(x.shape, axis)
    rows = []
    for a in arrays:
        row = a if perm is None else a.transpose(perm)
        if not row.flags.c_contiguous:
            if a.size > SMALL:
                return None
            row = row.copy()
        rows.append(row if joined is None else row.reshape(joined))
    return _backends.current().quick(op, tuple(rows), (None,) * len(rows), params)


def _of_one_class(op: Any, x: Any, axis: Any) -> Any:
    """Compute many rows of one class, which has all of the probability if it is finite; None for other input."""
    if type(x) is not np.ndarray or x.size < MANY_ROWS or x.dtype.char not in "fd" or type(axis) is not int:
        return None
    if not -x.ndim <= axis < x.ndim or x.shape[axis] != 1:
        return None
    with np.errstate(invalid="ignore"):
        y = x - x
    return np.add(y, 1, out=y) if op is _forward.softmax else y


def _rowwise(op: Any, x: Any, axis: Any) -> Any:
    """Compute a function from logits to as many numbers."""
    y = _of_one_class(op, x, axis)
    if y is not None:
        return y
    done = _along(op.__name__, (x,), axis, (1.0, 0.0))
    if done is not None:
        return done[0]
    done = _quick(op.__name__, (x,), axis, (1.0, 0.0))
    if done is not None:
        _, back, _, apart, _ = _moved(x.shape, axis)
        y = done[0] if apart is None else done[0].reshape(apart)
        return y if back is None else y.transpose(back)
    a = _plan.as_real("x", x)
    frame = Frame(a.shape, axis)
    if a.dtype.kind == "b":
        raise TypeError("x has dtype bool; expected numbers (scipy.special refuses bools here, too)")
    if not frame.c:
        raise ValueError(f"x has shape {a.shape}; expected at least one element along axis={axis}")
    # exp of a small integer is a small float: int8 gives float16, int16 float32.
    return op(a, axis, dtype=None if a.dtype.kind in "fV" else np.exp(np.empty(0, a.dtype)).dtype)


def softmax(x, axis=None):
    # type: (Any, Any) -> Any
    r"""Softmax, as ``scipy.special.softmax``: :math:`p_c = \exp(x_c) / \sum_k \exp(x_k)` along ``axis``.

    Parameters
    ----------
    x : array_like
        Logits: real, of any shape.
    axis : int, tuple of ints or None
        The axis of the classes; several axes are taken together, None means all.

    Returns
    -------
    ndarray or scalar
        Probabilities, of the shape of ``x``; float64 for int64, float32 for int16, float16 for int8.

    Raises
    ------
    TypeError
        For complex, bool, object, string, longdouble and masked arrays.
    ValueError
        If there are no classes.
    numpy.exceptions.AxisError
        If the axis does not exist.

    Notes
    -----
    The numerical promise is that of :func:`fastsoftmax.softmax`.  Unlike SciPy's, it does not warn, does not wrap
    around in small integers, and computes float16 in float32.

    Examples
    --------
    >>> import numpy as np
    >>> from fastsoftmax.special import softmax
    >>> softmax(np.log([[1.0, 2.0], [1.0, 4.0]]))
    array([[0.125, 0.25 ],
           [0.125, 0.5  ]])
    """
    return _rowwise(_forward.softmax, x, axis)


def log_softmax(x, axis=None):
    # type: (Any, Any) -> Any
    r"""Logarithm of the softmax, as ``scipy.special.log_softmax``: :math:`x_c - \log \sum_k \exp(x_k)` along ``axis``.

    Parameters
    ----------
    x : array_like
        Logits: real, of any shape.
    axis : int, tuple of ints or None
        The axis of the classes; several axes are taken together, None means all.

    Returns
    -------
    ndarray or scalar
        Log-probabilities in nats, of the shape of ``x``, of the dtype that :func:`softmax` has.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As :func:`softmax`.

    Notes
    -----
    The numerical promise is that of :func:`fastsoftmax.log_softmax`.  A row with a +inf is NaN; SciPy's is -inf at the
    row's other classes.

    Examples
    --------
    >>> from fastsoftmax.special import log_softmax
    >>> log_softmax([1000.0, 1.0])
    array([   0., -999.])
    """
    return _rowwise(_forward.log_softmax, x, axis)


def logsumexp(a, axis=None, b=None, keepdims=False, return_sign=False):
    # type: (Any, Any, Any, Any, Any) -> Any
    r"""Logarithm of a sum of exponentials, as ``scipy.special.logsumexp``: :math:`\log \sum_c b_c \exp(a_c)`.

    Parameters
    ----------
    a : array_like
        Exponents: real, of any shape.
    axis : int, tuple of ints or None
        The axis of the sum; None means all.
    b : array_like, optional
        Factors of the exponentials, of any sign, broadcast with ``a``.  A zero excludes its term.
    keepdims : bool
        Keep the reduced axes with length 1.
    return_sign : bool
        Also return the sign of the sum, and the logarithm of its absolute value; without it a negative sum gives NaN.

    Returns
    -------
    ndarray or scalar, or a pair of them with ``return_sign``
        The log-sum-exp in nats, and the sign; -inf and 0 for a sum over nothing.

    Raises
    ------
    TypeError
        For complex, object, string, longdouble and masked arrays.
    ValueError
        If ``a`` and ``b`` do not broadcast.
    numpy.exceptions.AxisError
        If the axis does not exist.

    Notes
    -----
    The numerical promise is that of :func:`fastsoftmax.logsumexp`.  A term with ``b`` = 0 is as if absent, whatever its
    ``a``; SciPy's result is NaN if that is not finite and the result would be infinite.  A sum over nothing has sign 0;
    SciPy's has sign -1 if there are no terms.

    Examples
    --------
    >>> from fastsoftmax.special import logsumexp
    >>> value, sign = logsumexp([1.0, 2.0], b=[1.0, -1.0], return_sign=True)
    >>> float(sign)
    -1.0
    """
    arrays = (a,) if b is None else (a, b)
    op = "logsumexp" if b is None else "logsumexp_weighted"
    done = _along(op, arrays, axis, (1.0,)) or _quick(op, arrays, axis, (1.0,))
    if done is not None:
        if keepdims:
            kept = _moved(a.shape, axis)[-1]
            done = [r.reshape(kept) for r in done]
        value = done[0]
        if not return_sign:
            if b is not None:
                value[done[1] < 0] = np.nan
            return value if value.ndim else value[()]
        sign = done[1] if b is not None else np.where(value != value, value, value > -np.inf).astype(a.dtype)
        return (value, sign) if value.ndim else (value[()], sign[()])
    x = np.atleast_1d(_plan.as_real("a", a))
    factors = None if b is None else _plan.as_real("b", b)
    # A Python number takes the other's dtype, as in NumPy's own arithmetic.
    kinds = [v if type(v) in (bool, int, float) else r for v, r in ((a, x), (b, factors)) if r is not None]
    dtype = _plan.result_dtype(np.empty(0, np.result_type(*kinds)))
    if factors is not None:
        try:
            x, factors = np.broadcast_arrays(x, factors)
        except ValueError:
            raise ValueError(
                f"a has shape {x.shape} and b has shape {factors.shape}; expected shapes that broadcast"
            ) from None
    return _forward.logsumexp(x, axis, b=factors, keepdims=keepdims, return_sign=return_sign, dtype=dtype)
