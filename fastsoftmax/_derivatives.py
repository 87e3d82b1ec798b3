"""The faces of the derivative rules.  They take the saved output of the forward function, not its input."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _backends, _plan
from ._ops import Array
from ._plan import Frame, Output

__all__ = [
    "log_softmax_jacobian",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp_jvp",
    "logsumexp_vjp",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
]


def _like(name: str, value: Any, first: str, shape: tuple[int, ...]) -> Array:
    """Return an operand that must have (or broadcast to) the shape of the first one."""
    a = _plan.as_real(name, value)
    try:
        return np.broadcast_to(a, shape) if a.shape != shape else a
    except ValueError:
        raise ValueError(f"{name} has shape {a.shape}; expected {shape}, the shape of {first}") from None


def _row_rule(op: str, names: tuple[str, str], a: Any, b: Any, axis: Any, scale: Any, out: Any) -> Any:
    """Run a rule (c),(c)->(c)."""
    if type(axis) is int and type(scale) is float and math.isfinite(scale):
        done = _backends.current().quick(op, (a, b), (out,), (scale,), axis)
        if done is not None:
            return done[0]
    first = _plan.as_real(names[0], a)
    frame = Frame(first.shape, axis)
    second = _like(names[1], b, names[0], first.shape)
    dtype = _plan.result_dtype(first, second)
    output = Output("out", out, first.shape, dtype, dtype_free=False)
    params = {"scale": _plan.real_number("scale", scale)}
    return _plan.run(op, frame, [first, second], [output], params, _plan.computing_dtype(dtype))[0]


def _jacobian(op: str, name: str, value: Any, axis: Any, scale: Any, out: Any) -> Any:
    """Run a rule (c)->(c,c)."""
    a = _plan.as_real(name, value)
    frame = Frame(a.shape, axis)
    dtype = _plan.result_dtype(a)
    output = Output("out", out, (*frame.batch_shape, frame.c, frame.c), dtype, dtype_free=False)
    params = {"scale": _plan.real_number("scale", scale)}
    return _plan.run(op, frame, [a], [output], params, _plan.computing_dtype(dtype))[0]


def softmax_jvp(
    p: ArrayLike,
    t: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    scale: float = 1.0,
    out: Array | None = None,
) -> Any:
    r"""Jacobian of the softmax times a tangent: :math:`s\, p_c (t_c - \sum_k p_k t_k)`.

    Parameters
    ----------
    p : array_like
        The saved output ``softmax(x, axis, scale=scale)``.
    t : array_like
        The tangent of ``x``, of the shape of ``p``.
    axis : int, tuple of ints or None
        The axis of the classes.
    scale : float
        The scale that was passed to :func:`softmax`.
    out : ndarray, optional
        Takes the result; may be ``p`` or ``t``.

    Returns
    -------
    ndarray or scalar
        The tangent of ``p``, of its shape.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For operands, ``out`` or an axis that do not fit.

    Notes
    -----
    A class of probability 0 gets 0, whatever ``t`` is there.  The tail keeps its relative precision when one class
    dominates, a uniform ``t`` gives exactly 0, and each row of the result sums to 0 within a few ULP of its largest
    term, plus the roundings of its C terms (tested: 4 + sqrt(C)/2 ULP): ``t`` is taken relative to its value at the
    most probable class, and the rounding of a ``p`` that sums to nearly 1 is divided out.  Source: the quotient rule,
    J = diag(p) - p p^T.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.softmax_jvp([0.25, 0.75], [1.0, 0.0])
    array([ 0.1875, -0.1875])
    """
    return _row_rule("softmax_jvp", ("p", "t"), p, t, axis, scale, out)


def softmax_vjp(
    p: ArrayLike,
    g: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    scale: float = 1.0,
    out: Array | None = None,
) -> Any:
    r"""Cotangent times the Jacobian of the softmax: :math:`s\, p_c (g_c - \sum_k p_k g_k)`.

    The Jacobian is symmetric, so this is the map of :func:`softmax_jvp`.

    Parameters
    ----------
    p : array_like
        The saved output ``softmax(x, axis, scale=scale)``.
    g : array_like
        The upstream gradient with respect to ``p``, of its shape.
    axis : int, tuple of ints or None
        The axis of the classes.
    scale : float
        The scale that was passed to :func:`softmax`.
    out : ndarray, optional
        Takes the result; may be ``p`` or ``g``.

    Returns
    -------
    ndarray or scalar
        The gradient with respect to ``x``, of the shape of ``p``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For operands, ``out`` or an axis that do not fit.

    Notes
    -----
    See :func:`softmax_jvp` for the numerical promise and the source.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> p = fs.softmax([40.0, 0.0])
    >>> fs.softmax_vjp(p, [1.0, 0.0])  # the tail survives
    array([ 4.24835426e-18, -4.24835426e-18])
    """
    return _row_rule("softmax_jvp", ("p", "g"), p, g, axis, scale, out)


def softmax_jacobian(
    p: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    scale: float = 1.0,
    out: Array | None = None,
) -> Any:
    r"""Jacobian of the softmax: :math:`J = s\,(\operatorname{diag}(p) - p p^T)`.

    Parameters
    ----------
    p : array_like
        The saved output ``softmax(x, axis, scale=scale)``.
    axis : int, tuple of ints or None
        The axis of the classes.
    scale : float
        The scale that was passed to :func:`softmax`.
    out : ndarray, optional
        Takes the result.

    Returns
    -------
    ndarray
        Of shape ``(..., C, C)``: the batch axes of ``p`` first, then ``J[i, j] = dp_i / dx_j``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For operands, ``out`` or an axis that do not fit.

    Notes
    -----
    The diagonal is :math:`p_i \sum_{j \ne i} p_j`, which does not cancel where :math:`p_i` is next to 1; rows and
    columns sum to 0.  Use :func:`softmax_vjp` unless the matrix itself is wanted: it needs C numbers, not C squared.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.softmax_jacobian([0.25, 0.75])
    array([[ 0.1875, -0.1875],
           [-0.1875,  0.1875]])
    """
    return _jacobian("softmax_jacobian", "p", p, axis, scale, out)


def log_softmax_jvp(
    logp: ArrayLike,
    t: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    scale: float = 1.0,
    out: Array | None = None,
) -> Any:
    r"""Jacobian of the log-softmax times a tangent: :math:`s\,(t_c - \sum_k p_k t_k)` with :math:`p = \exp(logp)`.

    Parameters
    ----------
    logp : array_like
        The saved output ``log_softmax(x, axis, scale=scale)``.
    t : array_like
        The tangent of ``x``, of the shape of ``logp``.
    axis : int, tuple of ints or None
        The axis of the classes.
    scale : float
        The scale that was passed to :func:`log_softmax`.
    out : ndarray, optional
        Takes the result; may be ``logp`` or ``t``.

    Returns
    -------
    ndarray or scalar
        The tangent of ``logp``, of its shape.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For operands, ``out`` or an axis that do not fit.

    Notes
    -----
    A class with ``logp = -inf`` gets 0, whatever ``t`` is there.  Source: J = I - 1 p^T.

    Examples
    --------
    >>> import numpy as np, fastsoftmax as fs
    >>> fs.log_softmax_jvp(np.log([0.25, 0.75]), [1.0, 0.0])
    array([ 0.75, -0.25])
    """
    return _row_rule("log_softmax_jvp", ("logp", "t"), logp, t, axis, scale, out)


def log_softmax_vjp(
    logp: ArrayLike,
    g: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    scale: float = 1.0,
    out: Array | None = None,
) -> Any:
    r"""Cotangent times the Jacobian of the log-softmax: :math:`s\,(g_c - p_c \sum_k g_k)` with :math:`p = \exp(logp)`.

    Parameters
    ----------
    logp : array_like
        The saved output ``log_softmax(x, axis, scale=scale)``.
    g : array_like
        The upstream gradient with respect to ``logp``, of its shape.
    axis : int, tuple of ints or None
        The axis of the classes.
    scale : float
        The scale that was passed to :func:`log_softmax`.
    out : ndarray, optional
        Takes the result; may be ``logp`` or ``g``.

    Returns
    -------
    ndarray or scalar
        The gradient with respect to ``x``, of the shape of ``logp``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For operands, ``out`` or an axis that do not fit.

    Notes
    -----
    A class with ``logp = -inf`` neither gives nor gets anything, whatever ``g`` is there.  Source: J = I - 1 p^T.

    Examples
    --------
    >>> import numpy as np, fastsoftmax as fs
    >>> fs.log_softmax_vjp(np.log([0.25, 0.75]), [1.0, 0.0])
    array([ 0.75, -0.75])
    """
    return _row_rule("log_softmax_vjp", ("logp", "g"), logp, g, axis, scale, out)


def log_softmax_jacobian(
    logp: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    scale: float = 1.0,
    out: Array | None = None,
) -> Any:
    r"""Jacobian of the log-softmax: :math:`J = s\,(I - 1 p^T)` with :math:`p = \exp(logp)`.

    Parameters
    ----------
    logp : array_like
        The saved output ``log_softmax(x, axis, scale=scale)``.
    axis : int, tuple of ints or None
        The axis of the classes.
    scale : float
        The scale that was passed to :func:`log_softmax`.
    out : ndarray, optional
        Takes the result.

    Returns
    -------
    ndarray
        Of shape ``(..., C, C)``: the batch axes of ``logp`` first, then ``J[i, j] = dlogp_i / dx_j``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For operands, ``out`` or an axis that do not fit.

    Notes
    -----
    The row of a class with ``logp = -inf`` is 0.  The diagonal is ``-expm1(logp)``, which does not cancel.

    Examples
    --------
    >>> import numpy as np, fastsoftmax as fs
    >>> fs.log_softmax_jacobian(np.log([0.25, 0.75]))
    array([[ 0.75, -0.75],
           [-0.25,  0.25]])
    """
    return _jacobian("log_softmax_jacobian", "logp", logp, axis, scale, out)


def logsumexp_jvp(
    p: ArrayLike,
    t: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    keepdims: bool = False,
    scale: float = 1.0,
    out: Array | None = None,
) -> Any:
    r"""Gradient of the log-sum-exp times a tangent: :math:`s \sum_k p_k t_k`.

    Parameters
    ----------
    p : array_like
        The softmax ``softmax(x, axis, scale=scale)``, which is the gradient of the log-sum-exp.
    t : array_like
        The tangent of ``x``, of the shape of ``p``.
    axis : int, tuple of ints or None
        The axis of the classes.
    keepdims : bool
        Keep the reduced axes with length 1.
    scale : float
        The scale that was passed to :func:`logsumexp`.
    out : ndarray, optional
        Takes the result.

    Returns
    -------
    ndarray or scalar
        The tangent of the log-sum-exp.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For operands, ``out`` or an axis that do not fit.

    Notes
    -----
    A class of probability 0 contributes 0, whatever ``t`` is there.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> float(fs.logsumexp_jvp([0.25, 0.75], [1.0, 2.0]))
    1.75
    """
    first = _plan.as_real("p", p)
    frame = Frame(first.shape, axis)
    second = _like("t", t, "p", first.shape)
    dtype = _plan.result_dtype(first, second)
    shape = frame.kept_shape() if keepdims else frame.batch_shape
    output = Output("out", _plan.batch_view("out", out, shape, frame), frame.batch_shape, dtype, dtype_free=False)
    params = {"scale": _plan.real_number("scale", scale)}
    value = _plan.run("logsumexp_jvp", frame, [first, second], [output], params, _plan.computing_dtype(dtype))[0]
    if out is not None:
        return out
    return np.asarray(value).reshape(shape)[()] if keepdims else value


def logsumexp_vjp(
    p: ArrayLike,
    g: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    scale: float = 1.0,
    out: Array | None = None,
) -> Any:
    r"""Cotangent times the gradient of the log-sum-exp: :math:`s\, g\, p_c`.

    Parameters
    ----------
    p : array_like
        The softmax ``softmax(x, axis, scale=scale)``, which is the gradient of the log-sum-exp.
    g : array_like
        The upstream gradient, of the shape of the log-sum-exp, with or without ``keepdims``, or a scalar.
    axis : int, tuple of ints or None
        The axis of the classes.
    scale : float
        The scale that was passed to :func:`logsumexp`.
    out : ndarray, optional
        Takes the result; may be ``p``.

    Returns
    -------
    ndarray or scalar
        The gradient with respect to ``x``, of the shape of ``p``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For operands, ``out`` or an axis that do not fit.

    Notes
    -----
    A class of probability 0 gets 0, whatever ``g`` is.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.logsumexp_vjp([0.25, 0.75], 2.0)
    array([0.5, 1.5])
    """
    first = _plan.as_real("p", p)
    frame = Frame(first.shape, axis)
    second = _plan.per_row("g", g, frame)
    dtype = _plan.result_dtype(first, second)
    output = Output("out", out, first.shape, dtype, dtype_free=False)
    params = {"scale": _plan.real_number("scale", scale)}
    return _plan.run("logsumexp_vjp", frame, [first, second], [output], params, _plan.computing_dtype(dtype))[0]
