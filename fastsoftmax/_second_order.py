"""The faces of the losses' derivatives along a direction and of second order."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import _plan
from ._derivatives import _like
from ._losses import _Loss
from ._ops import OPS, Array
from ._plan import F8, Frame, Output

__all__ = [
    "ValueAndTangent",
    "ValueGradHess",
    "cross_entropy_hessian",
    "cross_entropy_hvp",
    "cross_entropy_jvp",
    "cross_entropy_value_grad_hess",
]


class ValueAndTangent(NamedTuple):
    """A loss and its derivative along a direction.

    Attributes
    ----------
    value : ndarray or scalar
        The loss, reduced as asked.
    tangent : ndarray or scalar
        Its derivative, of the same shape.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> value, tangent = fs.cross_entropy_jvp([0.0, 0.0], 1, [1.0, 0.0])
    >>> float(tangent)
    0.5
    """

    value: Any
    tangent: Any


class ValueGradHess(NamedTuple):
    """A loss, its gradient and the diagonal of its Hessian.

    Attributes
    ----------
    value : ndarray or scalar
        The loss, reduced as asked.
    grad : ndarray
        Its gradient with respect to the logits.
    hess : ndarray
        Its second derivatives by one logit each, of the shape of the logits.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> value, grad, hess = fs.cross_entropy_value_grad_hess([0.0, 0.0], 1)
    >>> hess
    array([0.25, 0.25])
    """

    value: Any
    grad: Any
    hess: Any


# What the exact diagonal is multiplied by, for so many classes, less 1: of C / (C - 1) this loses no digit that counts.
KINDS: dict[str, Callable[[int], float]] = {
    "exact": lambda c: 0.0,
    "upper": lambda c: 1.0,
    "friedman": lambda c: 1 / (c - 1) if c > 1 else 0.0,
}

ORDERS = ("C", "F")


class _Curved(_Loss):
    """A loss whose derivatives along directions, or of second order, are asked for."""

    def widen(self, *arrays: Array) -> np.dtype[Any]:
        """Let these arrays, too, choose the computing dtype; return the dtype of results of the logits and them."""
        dtype = _plan.result_dtype(self.x, *arrays)
        if _plan.computing_dtype(dtype) == F8 != self.dtype:
            self.dtype = F8
            if isinstance(self.weight, np.ndarray):
                self.weight = self.weight.astype(F8)
        return dtype

    def tangent(self, u: Array, outs: Sequence[Output]) -> tuple[Any, ...]:
        """Compute the losses and their derivatives along u, one per row."""
        if not self.bent:
            return self.run("_jvp", outs, d=u)

        def compute(block: _Curved, part: _Part, first: Array, second: Array) -> tuple[Any, ...]:
            return block.run("_jvp", [block.per_row("loss"), block.per_row("slope")], d=part(u, True) * first)

        return self.in_blocks(compute, outs, [u], self.frame.c)

    def diagonal(self, outs: Sequence[Output], upstream: Any, excess: float) -> tuple[Any, ...]:
        """Compute the losses, the gradient and the Hessian's diagonal times ``1 + excess``."""
        if not self.bent:
            return self.run("_hess", outs, g=upstream, excess=excess)

        def compute(block: _Curved, part: _Part, first: Array, second: Array) -> tuple[Any, ...]:
            new = [block.per_row("loss"), block.like_logits("dx", None), block.like_logits("hess", None)]
            loss, grad, hess = block.run("_hess", new, g=part(upstream), excess=excess)
            return loss, _product(grad, first), _product(hess, first**2) + _product(grad, (1 + excess) * second)

        return self.in_blocks(compute, outs, [upstream], self.frame.c)

    def product(self, u: Array, out: Output, upstream: Any) -> Any:
        """Compute the Hessian times a direction."""
        if not self.bent:
            return self.second("hvp", out, upstream, d=u)

        def compute(block: _Curved, part: _Part, first: Array, second: Array) -> tuple[Any, ...]:
            direction, g = part(u, True), part(upstream)
            hv = block.second("hvp", block.like_logits("hv", None), g, d=direction * first)
            return (_product(hv, first) + _product(block.gradient(g), second * direction),)

        return self.in_blocks(compute, [out], [u, upstream], self.frame.c)[0]

    def matrix(self, out: Output, upstream: Any) -> Any:
        """Compute the Hessian of each row."""
        if not self.bent:
            return self.second("hessian", out, upstream)

        def compute(block: _Curved, part: _Part, first: Array, second: Array) -> tuple[Any, ...]:
            g, (n, c) = part(upstream), first.shape
            h = block.second("hessian", Output("h", None, (n, c, c), F8, dtype_free=False), g)
            h = _product(_product(h, first[:, :, None]), first[:, None, :])
            h[:, np.arange(c), np.arange(c)] += _product(block.gradient(g), second)
            return (h,)

        return self.in_blocks(compute, [out], [upstream], self.frame.c**2)[0]

    def gradient(self, upstream: Any) -> Array:
        """Compute the gradient."""
        grad: Array = self.run("_grad", [self.per_row("loss"), self.like_logits("dx", None)], g=upstream)[1]
        return grad

    def second(self, kind: str, out: Output, upstream: Any, **operands: Any) -> Any:
        """Run ``cross_entropy_hvp`` or ``cross_entropy_hessian``, which know of the targets only what they sum to."""
        op = OPS["cross_entropy_" + kind]
        labels = self.target if self.indexed else np.broadcast_to(np.int64(0), self.frame.batch_shape)
        known = {
            "x": self.x, "y": labels, "q": self.mass(), "v": self._rates(upstream), "scale": self.scale,
            "empty": self.empty, "zloss": self.zloss, "ignore": float(self.ignore if self.indexed else -1),
        } | operands  # fmt: skip
        ins = [known[name] for name, _ in op.ins]
        params = {name: known[name] for name in op.params}
        return _plan.run(op.name, self.frame, ins, [out], params, self.dtype, where=self.mask)[0]

    def _rates(self, upstream: Any) -> Any:
        """Return each row's factor times its upstream gradient."""
        if isinstance(self.rows, float) and isinstance(upstream, float):
            return self.rows * upstream
        with np.errstate(all="ignore"):
            rows, upstream = (a if isinstance(a, float) else a.astype(self.dtype) for a in (self.rows, upstream))
            return np.asarray(np.multiply(rows, upstream, dtype=F8), self.dtype)

    def mass(self) -> Any:
        """Return what each row's targets, weighted and smoothed, sum to; a float if it is the same for all rows."""
        frame = self.frame
        w = self.weight.astype(F8) if isinstance(self.weight, np.ndarray) else None
        hot = 1.0 if self.indexed and w is None else self._hot_mass(w)
        share: Any = self.smoothing / max(frame.c, 1)
        even: Any = frame.c if w is None else float(w.sum())
        if self.smoothing and self.mask is not None:
            # Smoothed over the included classes, whose number differs from row to row.
            mask, axes = frame.rows(self.mask), tuple(range(frame.nbatch, len(frame.perm)))
            even = count = np.add.reduce(mask, axes, dtype=np.int64)
            share = self.smoothing / np.maximum(count, 1)
            if w is not None:
                even = np.add.reduce(np.broadcast_to(w.reshape(frame.class_shape), mask.shape), axes, where=mask)
        mass = (1 - self.smoothing) * hot + share * even
        return mass if type(mass) is float else np.asarray(mass, self.dtype).reshape(frame.batch_shape)

    def _hot_mass(self, w: Array | None) -> Any:
        """Return what each row's targets sum to before they are smoothed."""
        frame = self.frame
        if self.indexed:
            assert w is not None
            return w[self.target if self.ignored is None else np.where(self.ignored, 0, self.target)]
        out = Output("mass", None, frame.batch_shape, self.dtype, dtype_free=False)
        if w is None:
            return _plan.run("total", frame, [self.target], [out], {}, self.dtype)[0]
        # The weights as an array of the logits' shape, without a copy.
        rows = np.broadcast_to(w.reshape(frame.class_shape), (*frame.batch_shape, *frame.class_shape))
        each = rows.transpose(np.argsort(frame.perm)).reshape(self.x.shape)
        return _plan.run("logsumexp_jvp", frame, [self.target, each], [out], {"scale": 1.0}, self.dtype)[0]

    # --- softcap: blocks of rows of what it makes of the logits ---
    #
    # With z the capped logits, z' and z'' its derivatives by the logits and D = diag(z'), the chain rule is
    # g_x = D g_z and H_x = D H_z D + diag(g_z z'').

    @property
    def bent(self) -> bool:
        """Tell whether the logits are capped, and there are any."""
        return self.softcap is not None and self.frame.r > 0 and self.frame.c > 0

    def in_blocks(
        self, compute: Callable[..., tuple[Any, ...]], outs: Sequence[Output], inputs: Sequence[Any], width: int
    ) -> tuple[Any, ...]:
        """Compute block by block, of about TILE_BYTES each.

        ``compute`` gets a block's loss of z, a function that cuts the block out of another operand, z' and z''.
        """
        frame = self.frame
        for k, output in enumerate(outs):
            output.open([self.x, self.target, self.weight, self.rows, self.mask, *inputs], outs[:k])
        views = [frame.rows(o.array) if o.shape == self.x.shape else o.array for o in outs]
        with np.errstate(all="ignore"):
            for index in _plan._blocks(frame.batch_shape, max(1, _plan.TILE_BYTES // (F8.itemsize * width))):
                part = functools.partial(self._part, index)
                block = copy.copy(self)
                block.x, block.mask = part(self.x, True), part(self.mask, True, np.dtype(bool))
                block.target = (
                    part(self.target, True) if not self.indexed else part(self.target, False, self.target.dtype)
                )
                block.rows, block.ignored = part(self.rows), part(self.ignored, False, np.dtype(bool))
                block.frame = Frame(block.x.shape, -1)
                block.natural = block.dtype = block.loss_dtype = F8
                first, second = block.bend()
                for view, result in zip(views, compute(block, part, first, second)):
                    _plan._copy(view[index], result.reshape(view[index].shape))
        return tuple(output.close() for output in outs)

    def _part(self, index: Any, operand: Any, whole: bool = False, dtype: np.dtype[Any] = F8) -> Any:
        """Copy a block of an operand of the logits' shape to (rows, classes), or of the batch's to (rows,)."""
        if not isinstance(operand, np.ndarray):
            return operand
        part = (self.frame.rows(operand) if whole else operand.reshape(self.frame.batch_shape))[index]
        tile = np.empty(part.shape, dtype)
        _plan._copy(tile, part)
        return tile.reshape(-1, self.frame.c) if whole else tile.reshape(-1)

    def bend(self) -> tuple[Array, Array]:
        """Cap a block's logits; return the first and the second derivative of what they have become.

        z = c tanh(s x / c); z' = s (1 - tanh^2), with e = exp(-2 |s x / c|) that is 4 s e / (1 + e)^2, which does not
        cancel; z'' = -2 / c tanh s z'.
        """
        assert self.softcap is not None
        x, scale, softcap = self.x, self.scale, self.softcap
        x *= scale / softcap
        e = np.exp(-2 * np.abs(x))
        np.tanh(x, out=x)
        first = 4 * scale * e / (1 + e) ** 2
        second = -2 * scale / softcap * x * first
        x *= softcap
        self.scale, self.softcap = 1.0, None
        return first, second


_Part = Callable[..., Any]


def _product(a: Array, b: Array) -> Array:
    """Return ``a b``, 0 where a is 0: an ignored row's derivatives are, whatever the row holds."""
    return np.multiply(a, b, out=np.zeros(a.shape), where=a != 0)


def cross_entropy_jvp(
    logits: ArrayLike,
    target: ArrayLike,
    t: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
) -> ValueAndTangent:
    r"""Cross-entropy and its derivative along a direction, in one fused pass.

    The derivative of a row is :math:`\sum_c t_c\,\partial L / \partial x_c`.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, of any shape, strides and real dtype.
    target : array_like
        Class indices or probabilities, as for :func:`cross_entropy`.
    t : array_like
        The direction (the tangent of the logits), of the shape of ``logits`` or one that broadcasts to it.
    axis : int, tuple of ints or None
        The axis of the classes.
    weight, sample_weight, ignore_index, label_smoothing, reduction, scale, softcap, z_loss, where, empty
        As for :func:`cross_entropy`.

    Returns
    -------
    ValueAndTangent
        The named pair ``(value, tangent)``.  With ``reduction="none"`` both have the batch's shape.

    Raises
    ------
    IndexError
        If a label is out of bounds.
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range.

    Notes
    -----
    A class that cannot occur (at -inf, or excluded by ``where``) does not move, whatever ``t`` is there.  The
    direction is taken relative to its value at the label, so that nothing cancels when the label's class dominates; a
    row's tangent is within 4 ULP of the sum of its terms' magnitudes.  Source: the chain rule on
    :func:`cross_entropy_value_and_grad`.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> value, tangent = fs.cross_entropy_jvp([[0.0, 0.0]], [0], [[1.0, 3.0]])
    >>> float(tangent)
    1.0
    """
    call = _Curved(
        logits, target, axis, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction, scale=scale, softcap=softcap, z_loss=z_loss, where=where,
        empty=empty,
    )  # fmt: skip
    u = _like("t", t, "logits", call.x.shape)
    call.widen(u)
    losses, tangents = call.tangent(u, [call.per_row("loss"), call.per_row("slope")])
    divisor = call.divisor()
    return ValueAndTangent(call.reduced(losses, divisor), call.reduced(tangents, divisor))


def cross_entropy_hvp(
    logits: ArrayLike,
    target: ArrayLike,
    v: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
    grad_output: ArrayLike | None = None,
    out: Array | None = None,
) -> Any:
    r"""Hessian of the cross-entropy times a direction, in one fused pass and without the matrix.

    With :math:`z = s x`, :math:`Q = \sum_k q_k` the sum of a row's targets and p the softmax it is, per row,
    :math:`g\,s^2\,((Q + 2\,\mathrm{z\_loss}\,lse)\,p_c\,(v_c - \langle p, v\rangle) +
    2\,\mathrm{z\_loss}\,p_c\,\langle p, v\rangle)`.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, of any shape, strides and real dtype.
    target : array_like
        Class indices or probabilities, as for :func:`cross_entropy`.
    v : array_like
        The direction, of the shape of ``logits`` or one that broadcasts to it.
    axis : int, tuple of ints or None
        The axis of the classes.
    weight, sample_weight, ignore_index, label_smoothing, reduction, scale, softcap, z_loss, where, empty
        As for :func:`cross_entropy`.
    grad_output : array_like, optional
        What the Hessian is multiplied by: a scalar, or one number per row with ``reduction="none"``.  Without it the
        Hessian is that of the (reduced) loss, or of the sum of the losses with ``reduction="none"``.
    out : ndarray, optional
        Takes the result; may be ``logits`` or ``v``.

    Returns
    -------
    ndarray
        The product, of the shape of ``logits``.

    Raises
    ------
    IndexError
        If a label is out of bounds; no output has been touched then.
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range.

    Notes
    -----
    This is the exact Hessian.  Without z-loss and softcap it is the Gauss-Newton matrix, too, and positive
    semi-definite. With z-loss, :math:`2\,\mathrm{z\_loss}\,lse` may make it indefinite; with softcap :math:`z(x)` it is
    :math:`D H_z D + \mathrm{diag}(g_z\,z'')`, :math:`D = \mathrm{diag}(z')`, of which Gauss-Newton keeps the first
    term.  It depends on the targets through Q only, but for the softcap's second term.

    A class that cannot occur (at -inf, or excluded by ``where``) gets 0, whatever ``v`` is there; so does an ignored
    row. ``v`` is taken relative to its value at the most probable class, so that the tail keeps its precision when one
    class dominates.  Each element is within 4 ULP of the sum of its terms' magnitudes.  Source: the derivative of
    :math:`Q p - q`, by the Jacobian of :func:`softmax_jvp`.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.cross_entropy_hvp([0.0, 0.0], 1, [1.0, 0.0])
    array([ 0.25, -0.25])
    """
    call = _Curved(
        logits, target, axis, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction, scale=scale, softcap=softcap, z_loss=z_loss, where=where,
        empty=empty,
    )  # fmt: skip
    u = _like("v", v, "logits", call.x.shape)
    output = Output("out", out, call.x.shape, call.widen(u), dtype_free=False)
    return call.product(u, output, call.upstream(grad_output, call.divisor()))


def cross_entropy_hessian(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
    grad_output: ArrayLike | None = None,
    out: Array | None = None,
) -> Any:
    r"""Hessian of each row's cross-entropy.

    It is :math:`g\,s^2\,(a\,(\mathrm{diag}(p) - p p^T) + 2\,\mathrm{z\_loss}\,p p^T)`, where :math:`a = Q +
    2\,\mathrm{z\_loss}\,lse` with Q the sum of the row's targets, and p is the softmax.  Rows do not interact, so
    these blocks are the whole Hessian.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, of any shape, strides and real dtype.
    target : array_like
        Class indices or probabilities, as for :func:`cross_entropy`.
    axis : int, tuple of ints or None
        The axis of the classes.
    weight, sample_weight, ignore_index, label_smoothing, reduction, scale, softcap, z_loss, where, empty
        As for :func:`cross_entropy`.
    grad_output : array_like, optional
        What the Hessian is multiplied by: a scalar, or one number per row with ``reduction="none"``.
    out : ndarray of shape (..., C, C), optional
        Takes the result.

    Returns
    -------
    ndarray of shape (..., C, C)
        The batch axes first, then two axes for the classes.

    Raises
    ------
    IndexError
        If a label is out of bounds; no output has been touched then.
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range.

    Notes
    -----
    This is the exact Hessian, not Gauss-Newton's: see :func:`cross_entropy_hvp`, which needs no matrix.  On the
    diagonal, 1 - p is the sum over the other classes.  Each element is within 4 ULP of the sum of its terms'
    magnitudes.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.cross_entropy_hessian([0.0, 0.0], 1)
    array([[ 0.25, -0.25],
           [-0.25,  0.25]])
    """
    call = _Curved(
        logits, target, axis, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction, scale=scale, softcap=softcap, z_loss=z_loss, where=where,
        empty=empty,
    )  # fmt: skip
    frame = call.frame
    output = Output("out", out, (*frame.batch_shape, frame.c, frame.c), call.natural, dtype_free=False)
    return call.matrix(output, call.upstream(grad_output, call.divisor()))


def cross_entropy_value_grad_hess(
    logits: ArrayLike,
    target: ArrayLike,
    axis: int | tuple[int, ...] | None = -1,
    *,
    kind: str = "exact",
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    scale: float = 1.0,
    softcap: float | None = None,
    z_loss: float = 0.0,
    where: ArrayLike | None = None,
    empty: str = "nan",
    grad_output: ArrayLike | None = None,
    grad_out: Array | None = None,
    hess_out: Array | None = None,
    order: str = "C",
) -> ValueGradHess:
    r"""Cross-entropy, its gradient and the diagonal of its Hessian, in one fused pass, as gradient boosting wants them.

    The diagonal of a row is :math:`k\,g\,s^2\,p_c\,((Q + 2\,\mathrm{z\_loss}\,lse)\,(1 - p_c) +
    2\,\mathrm{z\_loss}\,p_c)`, with Q the sum of its targets; with class indices and no options it is
    :math:`k\,p_c\,(1 - p_c)`.

    Parameters
    ----------
    logits : array_like
        Unnormalised log-probabilities, of any shape, strides and real dtype.
    target : array_like
        Class indices or probabilities, as for :func:`cross_entropy`.
    axis : int, tuple of ints or None
        The axis of the classes.
    kind : {"exact", "upper", "friedman"}
        The factor k.  "exact": 1, the second derivatives.  "upper": 2; the diagonal matrix that results is no smaller
        than the Hessian (by Gershgorin's circles: :math:`\sum_j |H_{cj}| = 2 p_c (1 - p_c)`).  "friedman": C / (C - 1).
    weight, sample_weight, ignore_index, label_smoothing, reduction, scale, softcap, z_loss, where, empty
        As for :func:`cross_entropy`.
    grad_output : array_like, optional
        What gradient and Hessian are multiplied by: a scalar, or one number per row with ``reduction="none"``.
        Without it they are those of the (reduced) loss, or of the sum of the losses with ``reduction="none"``.
    grad_out, hess_out : ndarray, optional
        Take the gradient and the diagonal, with any strides; either may be ``logits``.
    order : {"C", "F"}
        How new arrays for them lie in memory.  "F" is class-major for logits of shape (rows, classes): then
        ``grad.ravel("F")`` is the flat array that some boosting libraries want, without a copy.

    Returns
    -------
    ValueGradHess
        The named triple ``(value, grad, hess)``.

    Raises
    ------
    IndexError
        If a label is out of bounds; no output has been touched then.
    TypeError, ValueError, numpy.exceptions.AxisError
        For arguments of a wrong kind, shape or range.

    Notes
    -----
    Boosting wants derivatives of the sum, not of the mean: pass ``reduction="none"`` or "sum".

    Where one class has nearly all, 1 - p is the sum over the other classes: the diagonal does not cancel.  Gradient and
    diagonal are within 4 ULP of the sum of their terms' magnitudes; value and gradient have the bits of
    :func:`cross_entropy_value_and_grad`.  With z-loss or softcap "exact" is the exact diagonal, not Gauss-Newton's (see
    :func:`cross_entropy_hvp`); the other kinds are multiples of it, and "upper" is then no longer a bound.

    Sources: "upper" is what XGBoost's multi:softprob takes for the diagonal (multiclass_obj.cu), before its floor;
    "friedman" is LightGBM's (multiclass_objective.hpp), after the factor (K - 1) / K in the leaf values of J. H.
    Friedman, Greedy function approximation: a gradient boosting machine, Annals of Statistics 29 (2001), algorithm 6.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> value, grad, hess = fs.cross_entropy_value_grad_hess([[0.0, 0.0]], [0], kind="upper")
    >>> grad, hess
    (array([[-0.5,  0.5]]), array([[0.5, 0.5]]))
    """
    excess = KINDS[_plan.one_of("kind", kind, tuple(KINDS))]
    _plan.one_of("order", order, ORDERS)
    call = _Curved(
        logits, target, axis, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction, scale=scale, softcap=softcap, z_loss=z_loss, where=where,
        empty=empty,
    )  # fmt: skip
    divisor = call.divisor()
    upstream = call.upstream(grad_output, divisor)
    outs = [call.per_row("loss"), call.like_logits("grad_out", grad_out), call.like_logits("hess_out", hess_out)]
    for output in outs[1:]:
        if output.given is None and order == "F":
            output.given = np.empty(output.shape, output.dtype, order="F")
    apart = hess_out is not None and np.may_share_memory(hess_out, call.target)
    if apart:
        # Both results may take an operand's place, but not of two operands: each needs both.
        outs[2] = call.like_logits("hess_out", None)
    losses, grad, hess = call.diagonal(outs, upstream, excess(call.frame.c))
    if apart:
        hess_out[...] = hess  # type: ignore[index]
        hess = hess_out
    return ValueGradHess(call.reduced(losses, divisor), grad, hess)
