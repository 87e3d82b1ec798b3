"""The faces of the forward functions: softmax, log_softmax, logsumexp."""

from __future__ import annotations

from typing import Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike, DTypeLike

from . import _backends, _plan
from ._ops import Array
from ._plan import EMPTY, Frame, Output

__all__ = [
    "log_softmax",
    "logsumexp",
    "softmax",
]


def _where(where: Any, shape: tuple[int, ...]) -> Array | None:
    """Return the mask broadcast to the operand's shape; None if it masks nothing."""
    if where is None or where is True:
        return None
    mask = _plan.as_array("where", where)
    if mask.dtype != np.bool_:
        raise TypeError(f"where has dtype {mask.dtype}; expected bool (True = included)")
    try:
        return np.broadcast_to(mask, shape)
    except ValueError:
        raise ValueError(f"where has shape {mask.shape}, which does not broadcast to {shape}") from None


def _quick(op: str, x: Any, axis: Any, where: Any, scale: Any, dtype: Any, out: Any, *more: float) -> list[Any] | None:
    """Compute what needs no plan, or return None."""
    if type(axis) is not int or where is not None or dtype is not None or type(scale) is not float:
        return None
    if not _plan.SCALES[0] <= scale <= _plan.SCALES[1]:
        return None
    return _backends.current().quick(op, (x,), (out,), (scale, *more), axis)


def _rowwise(op: str, x: Any, axis: Any, where: Any, scale: Any, empty: Any, dtype: Any, out: Any) -> Any:
    if type(empty) is str and empty in EMPTY:
        done = _quick(op, x, axis, where, scale, dtype, out, EMPTY[empty])
        if done is not None:
            return done[0]
    a = _plan.as_real("x", x)
    frame = Frame(a.shape, axis)
    mask = _where(where, a.shape)
    params = {"scale": _plan.real_number("scale", scale), "empty": EMPTY[_plan.one_of("empty", empty, tuple(EMPTY))]}
    natural = _plan.result_dtype(a)
    chosen = _plan.chosen_dtype(dtype, natural)
    output = Output("out", out, a.shape, chosen, dtype_free=True)
    computing = _plan.computing_dtype(np.promote_types(_plan.computing_dtype(natural), _plan.computing_dtype(chosen)))
    return _plan.run(op, frame, [a], [output], params, computing, where=mask)[0]


def softmax(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    where: ArrayLike | None = None,
    scale: float = 1.0,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    r"""Softmax: :math:`p_c = \exp(s x_c) / \sum_k \exp(s x_k)` along ``axis``.

    Parameters
    ----------
    x : array_like
        Logits (dimensionless), of any shape, strides and real dtype.
    axis : int, tuple of ints or None
        The axis of the classes; several axes are taken together, None means all.
    where : array_like of bool, optional
        True where a class takes part; broadcast to the shape of ``x``.
    scale : float
        Multiplies the logits; a temperature T is ``scale=1/T``.
    empty : {"nan", "zero"}
        The result of a row whose logits are all -inf.
    dtype : dtype, optional
        The result's dtype; default that of ``x``, float64 for integers.
    out : ndarray, optional
        Takes the result; may be ``x`` itself.

    Returns
    -------
    ndarray or scalar
        Probabilities, of the shape of ``x``.

    Raises
    ------
    TypeError
        For masked, complex, object, string and longdouble arrays, a mask that is not bool, an ``out`` of another dtype.
    ValueError
        For an ``out`` or a mask of another shape, an unknown ``empty``, a scale that is not finite.
    numpy.exceptions.AxisError
        If the axis does not exist.

    Notes
    -----
    float32 and float64 results are within 2 ULP of the exact result, subnormal ones included.  A row with a NaN or a
    +inf is NaN; excluded classes get 0.  The formula and its stability: Blanchard, Higham and Higham, "Accurately
    computing the log-sum-exp and softmax functions", IMA J. Numer. Anal. 41 (2021).

    Examples
    --------
    >>> import numpy as np, fastsoftmax as fs
    >>> fs.softmax(np.log([1.0, 2.0, 5.0]))
    array([0.125, 0.25 , 0.625])
    """
    return _rowwise("softmax", x, axis, where, scale, empty, dtype, out)


def log_softmax(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    where: ArrayLike | None = None,
    scale: float = 1.0,
    empty: str = "nan",
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    r"""Logarithm of the softmax: :math:`s x_c - \log \sum_k \exp(s x_k)` along ``axis``.

    Parameters
    ----------
    x : array_like
        Logits (dimensionless), of any shape, strides and real dtype.
    axis : int, tuple of ints or None
        The axis of the classes; several axes are taken together, None means all.
    where : array_like of bool, optional
        True where a class takes part; broadcast to the shape of ``x``.
    scale : float
        Multiplies the logits; a temperature T is ``scale=1/T``.
    empty : {"nan", "zero"}
        Whether a row whose logits are all -inf gives NaN, or -inf (the logarithm of 0).
    dtype : dtype, optional
        The result's dtype; default that of ``x``, float64 for integers.
    out : ndarray, optional
        Takes the result; may be ``x`` itself.

    Returns
    -------
    ndarray or scalar
        Log-probabilities in nats, of the shape of ``x``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As :func:`softmax`.

    Notes
    -----
    float32 and float64 results are within 2 ULP of the exact result, also next to 0, where one class dominates: the
    denominator's logarithm is taken as ``log1p`` of the sum over the other classes.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.log_softmax([0.0, -50.0])
    array([-1.92874985e-22, -5.00000000e+01])
    """
    return _rowwise("log_softmax", x, axis, where, scale, empty, dtype, out)


@overload
def logsumexp(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    b: ArrayLike | None = None,
    where: ArrayLike | None = None,
    scale: float = 1.0,
    keepdims: bool = False,
    return_sign: Literal[True],
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> tuple[Any, Any]: ...
@overload
def logsumexp(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    b: ArrayLike | None = None,
    where: ArrayLike | None = None,
    scale: float = 1.0,
    keepdims: bool = False,
    return_sign: bool = False,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any: ...
def logsumexp(
    x: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    b: ArrayLike | None = None,
    where: ArrayLike | None = None,
    scale: float = 1.0,
    keepdims: bool = False,
    return_sign: bool = False,
    dtype: DTypeLike | None = None,
    out: Array | None = None,
) -> Any:
    r"""Logarithm of a sum of exponentials: :math:`\log \sum_c b_c \exp(s x_c)` along ``axis``.

    Parameters
    ----------
    x : array_like
        Logits (dimensionless), of any shape, strides and real dtype.
    axis : int, tuple of ints or None
        The axis of the classes; several axes are taken together, None means all.
    b : array_like, optional
        Factors of the exponentials, broadcast to the shape of ``x``.  A zero excludes its class, whatever ``x`` is.
    where : array_like of bool, optional
        True where a class takes part; broadcast to the shape of ``x``.
    scale : float
        Multiplies the logits; a temperature T is ``scale=1/T``.
    keepdims : bool
        Keep the reduced axes with length 1.
    return_sign : bool
        Also return the sign of the sum, and the logarithm of its absolute value; without it a negative sum gives NaN.
    dtype : dtype, optional
        The result's dtype; default that of ``x`` (and ``b``), float64 for integers.
    out : ndarray, optional
        Takes the (first) result.

    Returns
    -------
    ndarray or scalar, or a pair of them with ``return_sign``
        The log-sum-exp in nats; -inf for an empty sum.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        As :func:`softmax`.

    Notes
    -----
    float32 and float64 results without ``b`` are within 2 ULP of max(1, \|result\|).  A row with a NaN is NaN, one with
    a +inf is +inf.  ``b`` and ``return_sign`` mean what they mean in ``scipy.special.logsumexp``.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> float(fs.logsumexp([1000.0, 1000.0]))
    1000.6931471805599
    """
    if b is None and not keepdims and not return_sign:
        done = _quick("logsumexp", x, axis, where, scale, dtype, out)
        if done is not None:
            return done[0] if done[0].ndim or out is not None else done[0][()]
    a = _plan.as_real("x", x)
    frame = Frame(a.shape, axis)
    params = {"scale": _plan.real_number("scale", scale)}
    arrays = [a]
    if b is not None:
        factors = _plan.as_real("b", b)
        try:
            arrays.append(np.broadcast_to(factors, a.shape))
        except ValueError:
            raise ValueError(f"b has shape {factors.shape}, which does not broadcast to {a.shape}") from None
    mask = _where(where, a.shape)
    natural = _plan.result_dtype(*arrays)
    if b is not None and mask is not None:
        arrays[1] = np.where(mask, arrays[1], arrays[1].dtype.type(0))
    chosen = _plan.chosen_dtype(dtype, natural)
    shape = frame.kept_shape() if keepdims else frame.batch_shape
    output = Output("out", _plan.batch_view("out", out, shape, frame), frame.batch_shape, chosen, True)
    computing = np.promote_types(_plan.computing_dtype(natural), _plan.computing_dtype(chosen))
    outs = [output]
    if b is not None:
        outs.append(Output("sign", None, frame.batch_shape, chosen, True))
    results = _plan.run(
        "logsumexp" if b is None else "logsumexp_weighted", frame, arrays, outs, params, computing, where=mask
    )
    value = results[0]
    if b is not None and not return_sign:
        with np.errstate(invalid="ignore"):  # bfloat16's NaNs warn when they are compared
            negative = np.asarray(results[1]) < 0
        if negative.any():
            if isinstance(value, np.ndarray):
                value[negative] = np.nan
            else:
                value = value.dtype.type(np.nan)
    if out is not None:
        value = out
    elif keepdims:
        value = np.asarray(value).reshape(shape)[()]
    if not return_sign:
        return value
    if b is not None:
        sign = np.asarray(results[1])
    else:
        v = np.asarray(value)
        sign = np.where(np.isnan(v), np.nan, np.where(v == -np.inf, 0, 1)).astype(v.dtype)
    return value, sign.reshape(shape)[()]
