"""The faces of the losses that measure distributions: entropy, Kullback-Leibler divergence, binary cross-entropy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _plan
from ._forward import _where
from ._losses import REDUCTIONS, Reduction, ValueAndGrad
from ._ops import Array
from ._plan import EMPTY, F4, F8, Frame, Output

__all__ = [
    "binary_cross_entropy",
    "binary_cross_entropy_value_and_grad",
    "entropy",
    "entropy_value_and_grad",
    "kl_divergence",
    "kl_divergence_value_and_grad",
]


class _Call(Reduction):
    """What the calls of these losses have in common: arguments checked and brought into the table's terms."""

    def __init__(
        self, logits: Any, axis: Any, *, sample_weight: Any, reduction: Any, scale: Any, where: Any, empty: Any
    ) -> None:
        self.x = x = _plan.as_real("logits", logits)
        self.frame = Frame(x.shape, axis)
        self.reduction = _plan.one_of("reduction", reduction, REDUCTIONS)
        self.empty = EMPTY[_plan.one_of("empty", empty, tuple(EMPTY))]
        self.scale = _plan.real_number("scale", scale)
        self.mask = _where(where, x.shape)
        self.rows = 1.0 if sample_weight is None else _plan.per_row("sample_weight", sample_weight, self.frame)
        self.natural = _plan.result_dtype(x)
        self.dtype = _plan.computing_dtype(self.natural)
        self.loss_dtype = F8 if self.natural == F8 else F4

    def read_target(self, target: Any, what: str) -> Array:
        """Return the target, of the shape of the logits."""
        t = _plan.as_real("target", target)
        if t.shape != self.x.shape:
            raise ValueError(f"target has shape {t.shape}; expected {self.x.shape}, {what} for each of the logits")
        return t


class _PerRow(_Call):
    """One call of a loss that rows have: the entropy, or with a target the divergence."""

    def __init__(self, logits: Any, axis: Any, target: Any = None, **options: Any) -> None:
        super().__init__(logits, axis, **options)
        self.op, self.ins = "entropy", [self.x]
        if target is not None:
            t = self.read_target(target, "a probability")
            self.op, self.ins = "kl_divergence", [self.x, t]
            self.dtype = _plan.computing_dtype(_plan.result_dtype(self.x, t))

    def run(self, *, gradient: bool, grad_output: Any = None, grad_out: Any = None) -> tuple[Any, Any]:
        """Compute the loss and, if asked, its gradient."""
        rows, frame = self.rows, self.frame
        divisor = float(frame.r if isinstance(rows, float) else rows.sum(dtype=np.float64))
        outs = [Output("loss", None, frame.batch_shape, self.loss_dtype, dtype_free=False)]
        ins = [*self.ins, rows]
        if gradient:
            outs.append(Output("grad_out", grad_out, self.x.shape, self.natural, dtype_free=False))
            ins.append(self.upstream(grad_output, divisor))
        params = {"scale": self.scale, "empty": self.empty}
        op = self.op + "_grad" * gradient
        loss, *grad = _plan.run(op, frame, ins, outs, params, self.dtype, where=self.mask)
        return self.reduced(loss, divisor), grad[0] if gradient else None


class _Binary(_Call):
    """One call of the binary cross-entropy, whose losses elements have."""

    def __init__(self, logits: Any, target: Any, axis: Any, weight: Any, pos_weight: Any, **options: Any) -> None:
        super().__init__(logits, axis, **options)
        self.y = self.read_target(target, "a label")
        if self.y.dtype.kind not in "iub":  # those are as exact in the dtype of the logits
            self.dtype = _plan.computing_dtype(_plan.result_dtype(self.x, self.y))
        self.w = self._per_class("weight", weight)
        self.u = self._per_class("pos_weight", pos_weight)
        if self.frame.c == 1:  # a number for the only class is a number for all elements
            self.u = self.u if isinstance(self.u, float) else float(self.u[0])
            if isinstance(self.rows, float) and not isinstance(self.w, float):
                self.w = float(self.w[0])

    def _per_class(self, name: str, value: Any) -> Any:
        """Return a float, or a vector over the classes."""
        if value is None:
            return 1.0
        a = _plan.as_real(name, value)
        if a.size == 1 and self.frame.c != 1:
            return float(a.reshape(())[()])
        if a.shape not in ((self.frame.c,), self.frame.class_shape, ()):
            raise ValueError(
                f"{name} has shape {a.shape}; expected ({self.frame.c},), one number per class, or a scalar"
            )
        with np.errstate(all="ignore"):
            return np.ascontiguousarray(a.reshape(-1), self.dtype)

    def _counted(self) -> float:
        """Return how many elements count, each as often as its row's factor says."""
        frame, rows = self.frame, self.rows
        if self.mask is None:
            return float(frame.c * (frame.r if isinstance(rows, float) else rows.sum(dtype=np.float64)))
        included = np.count_nonzero(frame.rows(self.mask), axis=tuple(range(frame.nbatch, len(frame.perm))))
        return float(np.sum(included * (rows if isinstance(rows, float) else rows.astype(np.float64))))

    def _even_rows(self, *arrays: Any) -> Frame | None:
        """Return a frame that cuts contiguous arrays into rows of a convenient length, if no operand minds."""
        n = self.x.size
        plain = self.mask is None and isinstance(self.rows, float) and isinstance(self.u, float)
        if not plain or not isinstance(self.w, float) or not n:
            return None
        if not all(a.flags.c_contiguous for a in arrays if isinstance(a, np.ndarray)):
            return None
        # A power of two that divides n: rows are what threads share.  Without one, all is one row; the compiled
        # backend shares that out, too.
        c = min(n & -n, EVEN)
        return Frame((n // c, c) if c >= UNEVEN else (1, n), -1)

    def run(self, *, gradient: bool, grad_output: Any = None, grad_out: Any = None) -> tuple[Any, Any]:
        """Compute the loss and, if asked, its gradient."""
        summed, frame = self.reduction != "none", self.frame
        divisor = self._counted()
        into = Output("grad_out", grad_out, self.x.shape, self.natural, dtype_free=False) if gradient else None
        upstream: Any = None
        if gradient:
            upstream = self.upstream(grad_output, divisor) if summed else self._each(grad_output)
        even = self._even_rows(self.x, self.y, grad_out, upstream)
        operands = [self.x, self.y, upstream, grad_out]
        if even is not None:
            frame = even
            operands = [a.reshape(frame.shape) if isinstance(a, np.ndarray) else a for a in operands]
        x, y, upstream, given = operands
        vector = isinstance(self.u, np.ndarray)
        rows = self.rows
        if isinstance(self.w, float) and self.w != 1:
            with np.errstate(all="ignore"):  # in float64: in the factors' dtype the product would be rounded to it
                rows = self.w * (rows if isinstance(rows, float) else rows.astype(F8))
        ins = [x, y, self.w if isinstance(self.w, np.ndarray) else 1.0, self.u if vector else 1.0, rows]
        shape = frame.batch_shape if summed else x.shape
        outs = [Output("loss", None, shape, self.loss_dtype, dtype_free=False)]
        if into is not None:
            ins.append(upstream)
            outs.append(Output("grad_out", given, x.shape, self.natural, dtype_free=False))
        params = {"scale": self.scale, "positive": 1.0 if vector else self.u}
        op = "binary_cross_entropy" + "_sum" * summed + "_grad" * gradient
        loss, *grad = _plan.run(op, frame, ins, outs, params, self.dtype, where=self.mask)
        if even is not None:
            loss = loss if summed else loss.reshape(self.x.shape)[()]
            grad = [grad_out if g is given else g.reshape(self.x.shape)[()] for g in grad]
        return self.reduced(loss, divisor), grad[0] if gradient else None

    def _each(self, grad_output: Any) -> Array:
        """Return the gradient with respect to each element's loss."""
        g = _plan.as_real("grad_output", 1.0 if grad_output is None else grad_output)
        if g.shape not in ((), self.x.shape):
            raise ValueError(
                f"grad_output has shape {g.shape}; expected {self.x.shape}, one number per element, or a scalar"
            )
        return np.broadcast_to(g.astype(self.dtype) if g.ndim == 0 else g, self.x.shape)


# Elements of the rows that a flat array is cut into: at most, and at least (fewer are not worth a row).
EVEN, UNEVEN = 1 << 14, 1 << 8


def entropy(
    logits: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    scale: float = 1.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
) -> Any:
    r"""Entropy of a softmax: :math:`H = -\sum_c p_c \log p_c` per row, with :math:`0 \log 0 = 0`.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, of any shape, strides and real dtype.
    axis : int, tuple of ints or None
        The axis of the classes.
    sample_weight : array_like, optional
        A factor for each row, of the batch's shape.
    reduction : {"mean", "sum", "none"}
        What to return of the rows' entropies.  "mean" divides by the number of rows, or by the sum of their
        ``sample_weight``.
    scale : float
        Multiplies the logits: p is ``softmax(scale * logits)``.
    where : array_like of bool, optional
        True where a class takes part; broadcast to the shape of ``logits``.
    empty : {"nan", "zero"}
        A row whose logits are all -inf has entropy NaN, or 0 with gradient 0.  A mean over nothing is NaN, or 0.

    Returns
    -------
    scalar, or ndarray of the batch's shape with ``reduction="none"``
        The entropy in nats; float32, or float64 for float64 logits.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range.

    Notes
    -----
    Each row's entropy is within 3 ULP of the exact result, also near 0: it is computed as the sum of two terms that
    are not negative, ``log(sum(exp(d)))`` and ``-<p, d>`` with ``d`` the distance from the largest logit (written anew
    from the definition).  A row without an included class has entropy 0.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> float(fs.entropy([[0.0, 0.0], [0.0, 1000.0]], reduction="none")[0])
    0.6931471805599453
    """
    return _PerRow(
        logits, axis, sample_weight=sample_weight, reduction=reduction, scale=scale, where=where, empty=empty
    ).run(gradient=False)[0]


def entropy_value_and_grad(
    logits: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    scale: float = 1.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
    grad_output: ArrayLike | None = None,
    grad_out: Array | None = None,
) -> ValueAndGrad:
    r"""Entropy of a softmax and its gradient with respect to the logits, in one fused pass.

    The gradient of a row is :math:`-g\,s\,p_c\,(\log p_c + H)`, with H as in :func:`entropy`, s the scale and g the
    upstream gradient.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, of any shape, strides and real dtype.
    axis : int, tuple of ints or None
        The axis of the classes.
    sample_weight, reduction, scale, where, empty
        As for :func:`entropy`.
    grad_output : array_like, optional
        The upstream gradient: a scalar, or one number per row with ``reduction="none"``.  Without it the gradient is
        that of the (reduced) entropy, or of the sum of the entropies with ``reduction="none"``.
    grad_out : ndarray, optional
        Takes the gradient; ``grad_out=logits`` computes it in place of the logits.

    Returns
    -------
    ValueAndGrad
        The named pair ``(value, grad)``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range; no output has been touched then.

    Notes
    -----
    A class of probability 0 has gradient 0.  The gradient is within 4 ULP of the sum of its two terms' magnitudes.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> value, grad = fs.entropy_value_and_grad([[1.0, 1.0]])
    >>> bool(abs(grad).max() == 0)
    True
    """
    return ValueAndGrad(
        *_PerRow(
            logits, axis, sample_weight=sample_weight, reduction=reduction, scale=scale, where=where, empty=empty
        ).run(gradient=True, grad_output=grad_output, grad_out=grad_out)
    )


def kl_divergence(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    scale: float = 1.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
) -> Any:
    r"""Kullback-Leibler divergence of a softmax from a target: :math:`\sum_c t_c\,(\log t_c - \log p_c)` per row.

    It is the cross-entropy minus the target's entropy, with :math:`0 \log 0 = 0`.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, of any shape, strides and real dtype.
    target : array_like
        Probabilities t, of the shape of ``logits``; they need not sum to 1.  A negative one makes its row NaN.
    axis : int, tuple of ints or None
        The axis of the classes.
    sample_weight : array_like, optional
        A factor for each row, of the batch's shape.
    reduction : {"mean", "sum", "none"}
        What to return of the rows' divergences.  "mean" divides by the number of rows, or by the sum of their
        ``sample_weight``.  For rows along the first axis that is "batchmean" of ``torch.nn.functional.kl_div``, whose
        own "mean" divides by the number of elements.
    scale : float
        Multiplies the logits: p is ``softmax(scale * logits)``.
    where : array_like of bool, optional
        True where a class takes part; broadcast to the shape of ``logits``.
    empty : {"nan", "zero"}
        A row whose logits are all -inf has divergence NaN, or +inf with gradient 0.  A mean over nothing is NaN, or 0.

    Returns
    -------
    scalar, or ndarray of the batch's shape with ``reduction="none"``
        The divergence in nats; float32, or float64 for float64 logits.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range.

    Notes
    -----
    The logarithms are subtracted with more digits than the result has, so that their sizes do not show: the error of a
    row is at most 4 ULP of :math:`\sum_c t_c \max(1, |\log t_c - \log p_c|)`, also where p is near t.
    A target on a class at -inf, or excluded by ``where``, has an infinite divergence; a target of 0 counts nothing.
    Written from the definition of Kullback and Leibler.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> float(fs.kl_divergence([[0.0, 0.0]], [[1.0, 0.0]]))
    0.6931471805599453
    """
    return _PerRow(
        logits, axis, np.asarray(target) if target is None else target, sample_weight=sample_weight,
        reduction=reduction, scale=scale, where=where, empty=empty,
    ).run(gradient=False)[0]  # fmt: skip


def kl_divergence_value_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    scale: float = 1.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
    grad_output: ArrayLike | None = None,
    grad_out: Array | None = None,
) -> ValueAndGrad:
    r"""Kullback-Leibler divergence and its gradient with respect to the logits, in one fused pass.

    The gradient of a row is :math:`g\,s\,(p_c \sum_k t_k - t_c)`, that of the cross-entropy, with s the scale and g the
    upstream gradient.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, of any shape, strides and real dtype.
    target : array_like
        Probabilities, of the shape of ``logits``.
    axis : int, tuple of ints or None
        The axis of the classes.
    sample_weight, reduction, scale, where, empty
        As for :func:`kl_divergence`.
    grad_output : array_like, optional
        The upstream gradient: a scalar, or one number per row with ``reduction="none"``.  Without it the gradient is
        that of the (reduced) divergence, or of the sum of the divergences with ``reduction="none"``.
    grad_out : ndarray, optional
        Takes the gradient; ``grad_out=logits`` computes it in place of the logits.

    Returns
    -------
    ValueAndGrad
        The named pair ``(value, grad)``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range; no output has been touched then.

    Notes
    -----
    At the target, where p - 1 would cancel, the gradient is computed from the sum over the other classes.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> value, grad = fs.kl_divergence_value_and_grad([[0.0, 0.0]], [[1.0, 0.0]])
    >>> grad
    array([[-0.5,  0.5]])
    """
    return ValueAndGrad(
        *_PerRow(
            logits, axis, np.asarray(target) if target is None else target, sample_weight=sample_weight,
            reduction=reduction, scale=scale, where=where, empty=empty,
        ).run(gradient=True, grad_output=grad_output, grad_out=grad_out)
    )  # fmt: skip


def binary_cross_entropy(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    scale: float = 1.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
) -> Any:
    r"""Binary (multi-label) cross-entropy of sigmoids, of each element.

    It is :math:`v\,w_c\,(u_c\,y \log(1 + e^{-z}) + (1 - y) \log(1 + e^z))` with logits z, labels y, ``weight`` w,
    ``pos_weight`` u and ``sample_weight`` v.

    Parameters
    ----------
    logits : array_like
        Logarithms of odds, of any shape, strides and real dtype.
    target : array_like
        Labels of the shape of ``logits``: 0, 1, or anything between.
    axis : int, tuple of ints or None
        The axis of the classes that ``weight`` and ``pos_weight`` tell apart; all others make the batch of rows.
    weight : array_like of shape (C,), or scalar, optional
        A factor for each class.
    pos_weight : array_like of shape (C,), or scalar, optional
        A factor for what is lost by positive labels, for each class.
    sample_weight : array_like, optional
        A factor for each row, of the batch's shape.
    reduction : {"mean", "sum", "none"}
        What to return of the elements' losses.  "mean" divides by the number of (included) elements, each counted
        ``sample_weight`` times, whatever ``weight`` and ``pos_weight`` are.
    scale : float
        Multiplies the logits, first of all.
    where : array_like of bool, optional
        True where an element takes part; broadcast to the shape of ``logits``.  Others have loss and gradient 0,
        whatever they and their labels hold, and do not count in the mean.
    empty : {"nan", "zero"}
        A mean over nothing is NaN, or 0.

    Returns
    -------
    scalar, or ndarray of the shape of ``logits`` with ``reduction="none"``
        The loss in nats; float32, or float64 for float64 logits.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range.

    Notes
    -----
    Names, defaults and formulas are those of ``torch.nn.functional.binary_cross_entropy_with_logits``.  The loss of an
    element is within 4 ULP of the sum of its parts' magnitudes, in both tails; sums of losses are accumulated with
    twice the digits.  Labels outside [0, 1] are taken to the letter.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> float(fs.binary_cross_entropy([[0.0, 2.0]], [[1, 0]]))
    1.4100375958014588
    """
    return _Binary(
        logits, target, axis, weight, pos_weight, sample_weight=sample_weight, reduction=reduction, scale=scale,
        where=where, empty=empty,
    ).run(gradient=False)[0]  # fmt: skip


def binary_cross_entropy_value_and_grad(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    reduction: str = "mean",
    scale: float = 1.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
    grad_output: ArrayLike | None = None,
    grad_out: Array | None = None,
) -> ValueAndGrad:
    r"""Binary cross-entropy and its gradient with respect to the logits, in one fused pass.

    The gradient of an element is :math:`g\,s\,v\,w_c\,((1 - y)\,\sigma(z) - u_c\,y\,\sigma(-z))`, with s the scale and
    g the upstream gradient: nothing cancels at the label.

    Parameters
    ----------
    logits : array_like
        Logarithms of odds, of any shape, strides and real dtype.
    target : array_like
        Labels of the shape of ``logits``.
    axis : int, tuple of ints or None
        The axis of the classes.
    weight, pos_weight, sample_weight, reduction, scale, where, empty
        As for :func:`binary_cross_entropy`.
    grad_output : array_like, optional
        The upstream gradient: a scalar, or one number per element with ``reduction="none"``.  Without it the gradient
        is that of the (reduced) loss, or of the sum of the losses with ``reduction="none"``.
    grad_out : ndarray, optional
        Takes the gradient; ``grad_out=logits`` computes it in place of the logits.

    Returns
    -------
    ValueAndGrad
        The named pair ``(value, grad)``.

    Raises
    ------
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range; no output has been touched then.

    Notes
    -----
    With ``reduction="mean"`` or ``"sum"`` no array of losses is made: what is allocated besides the gradient is one
    number per row.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> value, grad = fs.binary_cross_entropy_value_and_grad([0.0, 0.0], [0, 1], reduction="sum")
    >>> grad
    array([ 0.5, -0.5])
    """
    return ValueAndGrad(
        *_Binary(
            logits, target, axis, weight, pos_weight, sample_weight=sample_weight, reduction=reduction, scale=scale,
            where=where, empty=empty,
        ).run(gradient=True, grad_output=grad_output, grad_out=grad_out)
    )  # fmt: skip
