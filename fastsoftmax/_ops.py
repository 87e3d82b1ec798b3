"""The table: every operation of the project, once.

Nothing else lists operations.  The backends must serve exactly these rows, the conformance test, the
benchmarks, the ``bench`` command and the documentation iterate over them.

An operation is a map on *rows*.  Its operands are described by their kind, in gufunc notation:

========= ============ =====================================================================
kind      notation     what a kernel sees
========= ============ =====================================================================
ROW       ``(c)``      one vector of ``c`` classes per row
ONE       ``()``       one number per row
LABEL     ``()i``      one class index per row (int64)
CLASS     ``c``        one vector of ``c`` classes, shared by all rows
SQUARE    ``(c,c)``    one matrix per row
========= ============ =====================================================================

By convention a ROW input called ``x`` holds logits (the plan applies ``where`` and ``softcap`` to it), a ROW input
called ``y`` a label of each class for itself (the plan makes it 0 where ``where`` excludes the class) and a ROW output
called ``dx`` a gradient with respect to the logits (the plan applies the chain rule's factor).

``definition`` is the executable mathematics, on arrays of rows in any floating dtype.  Evaluated in
``longdouble`` it is the tests' oracle; evaluated one precision up and rounded once it is the ``numpy``
backend.  It is written for exactness, not for speed: sums that would cancel are taken over "the others".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

ROW, ONE, LABEL, CLASS, SQUARE = "(c)", "()", "()i", "c", "(c,c)"

# A softmax that was rounded to bfloat16 (8 bits) sums to 1 within 2**-8 or so.  Inside this band the
# derivative rules divide p by its sum, so that rounding of the saved output cannot leak into row sums;
# outside it p is no softmax and the rules are applied to the letter.
UNIT_SUM_BAND = 1 / 64


@dataclass(frozen=True)
class Op:
    """One operation on rows.

    Attributes
    ----------
    name
        Name of the kernel in every backend.
    ins, outs, extras
        ``(name, kind)`` of the operands, in the kernels' argument order.  The extras are further outputs; a call may
        leave out the last of them, or all, which cost nothing then.
    params
        Names of the scalar parameters, in the kernels' argument order; all are passed as floats.
    ulp
        Promised error, in units in the last place.
    ulp_kind
        Of what: of the exact result ("result"); of its magnitude, but at least 1 ("unit"), for a logarithm that can be
        0; or of the sum of the terms' magnitudes ("term"): sums of signed terms can cancel.
    bytes_moved
        Row elements that must cross the memory bus, read plus written, per element of a row.
    public
        The public functions that end in this kernel.
    """

    name: str
    ins: tuple[tuple[str, str], ...]
    outs: tuple[tuple[str, str], ...]
    extras: tuple[tuple[str, str], ...]
    params: tuple[str, ...]
    ulp: float
    bytes_moved: int
    public: tuple[str, ...]
    definition: Callable[..., tuple[Array, ...]]
    ulp_kind: str = "result"

    @cached_property
    def results(self) -> tuple[tuple[str, str], ...]:
        """The outputs, then the extras."""
        return self.outs + self.extras

    def promise(self, output: str) -> tuple[float, str]:
        """Return the promised error of one output, and of what: ``ulp`` and ``ulp_kind``, but for the extras."""
        if output not in dict(self.extras):
            return self.ulp, self.ulp_kind
        return (0, "result") if dict(self.extras)[output] == LABEL else (OPS["logsumexp"].ulp, "unit")


OPS: dict[str, Op] = {}


def _op(
    ins: str,
    outs: str,
    params: str = "",
    *,
    ulp: float,
    bytes_moved: int,
    public: str,
    ulp_kind: str = "result",
    extras: str = "",
) -> Callable[[Callable[..., tuple[Array, ...]]], Callable[..., tuple[Array, ...]]]:
    """Enter the decorated definition in the table.  Operands are written as ``name:kind`` words."""

    def pairs(text: str) -> tuple[tuple[str, str], ...]:
        return tuple((w.split(":")[0], w.split(":")[1]) for w in text.split())

    def enter(definition: Callable[..., tuple[Array, ...]]) -> Callable[..., tuple[Array, ...]]:
        name = definition.__name__
        OPS[name] = Op(
            name,
            pairs(ins),
            pairs(outs),
            pairs(extras),
            tuple(params.split()),
            ulp,
            bytes_moved,
            tuple(public.split()),
            definition,
            ulp_kind,
        )
        return definition

    return enter


# --- shared pieces of the definitions --------------------------------------------------------------------


def _first_max(x: Array) -> Array:
    """Column of the first largest element of each row, as an index array for take_along_axis."""
    top: Array = np.argmax(x, axis=-1)[:, None]
    return top


def _top(x: Array) -> Array:
    """Class of the first largest element of each row, or of its first NaN; -1 if all are -inf."""
    top = _first_max(x)
    found: Array = np.where(np.take_along_axis(x, top, -1) == -np.inf, -1, top)[:, 0]
    return found


def _product(a: Array, b: Any) -> tuple[Array, Array]:
    """Return ``a * b`` and what rounding took from it (Dekker's product): exp turns that into a relative error."""
    p = a * b
    if b == 1:
        return p, np.zeros_like(p)
    split = a.dtype.type(2) ** ((np.finfo(a.dtype).nmant + 2) // 2) + 1
    a_hi = a * split - (a * split - a)
    b_hi = b * split - (b * split - b)
    a_lo, b_lo = a - a_hi, b - b_hi
    lost = ((a_hi * b_hi - p) + a_hi * b_lo + a_lo * b_hi) + a_lo * b_lo
    return p, np.where(np.isfinite(lost), lost, 0)


def _shifted(x: Array, scale: Any) -> tuple[Array, Array, Array, Array]:
    """Return ``d = scale (x - max x)``, ``m = scale max x``, ``e = exp(d)`` and the sum of e without one maximum.

    The scale is positive (the plan sees to it).  The difference is scaled, not the scaled terms subtracted: far from 0
    the latter would be rounded.  The softmax denominator is ``1 + rest``: its logarithm keeps full relative precision
    when one class dominates, which ``log(sum)`` does not.
    """
    top = _first_max(x)
    largest = np.take_along_axis(x, top, -1)
    d, lost = _product(x - largest, scale)
    m = largest * scale
    e = np.exp(d)
    e = np.where(lost == 0, e, e + e * lost)
    others = e.copy()
    np.put_along_axis(others, top, 0, -1)
    return d, m, e, others.sum(-1, keepdims=True)


def _lse(m: Array, rest: Array) -> Array:
    """Return the logsumexp of rows from what :func:`_shifted` returns of them.  A row with a NaN has m = NaN."""
    lse: Array = np.where(np.isinf(m), m, m + np.log1p(rest))
    return lse


def _centred(p: Array, t: Array, key: Array, dead: Array) -> Array:
    """Return ``t - <p, t>`` for a softmax p, without cancellation where one class dominates.

    ``t`` is taken relative to its value at the most probable class.  For exact p any such shift drops out; for
    a rounded p dividing by its sum makes it drop out, too.  ``dead`` marks the classes that cannot occur: 0 there.
    """
    t = np.where(dead, 0, t)
    ref = np.take_along_axis(t, _first_max(key), -1)
    h = np.where(dead, 0, t - ref)
    total = p.sum(-1, keepdims=True)
    dot = (p * h).sum(-1, keepdims=True)
    unit = np.abs(total - 1) <= UNIT_SUM_BAND
    centre = np.where(unit, dot / np.where(unit, total, 1), dot - ref * (1 - total))
    return np.where(dead, 0, h - centre)


# --- forward ------------------------------------------------------------------------------------------------


@_op("x:(c)", "y:(c)", "scale empty", ulp=2, bytes_moved=2, public="softmax")
def softmax(x: Array, *, scale: Any, empty: Any) -> tuple[Array, ...]:
    """``y = exp(scale x - lse(scale x))``."""
    _, m, e, _ = _shifted(x, scale)
    y = e / (e.sum(-1, keepdims=True))
    if empty:
        y = np.where(m == -np.inf, 0, y)
    return (y,)


@_op("x:(c)", "y:(c)", "scale empty", ulp=2, bytes_moved=2, public="log_softmax")
def log_softmax(x: Array, *, scale: Any, empty: Any) -> tuple[Array, ...]:
    """``y = scale x - lse(scale x)``."""
    d, m, _, rest = _shifted(x, scale)
    y = np.where(m == np.inf, np.nan, d - np.log1p(rest))
    if empty:
        y = np.where(m == -np.inf, -np.inf, y)
    return (y,)


@_op("x:(c)", "s:()", "scale", ulp=2, bytes_moved=1, public="logsumexp", ulp_kind="unit")
def logsumexp(x: Array, *, scale: Any) -> tuple[Array, ...]:
    """``s = log sum_c exp(scale x_c)``."""
    _, m, _, rest = _shifted(x, scale)
    return (_lse(m, rest)[:, 0],)


@_op("x:(c) b:(c)", "s:() sign:()", "scale", ulp=2, bytes_moved=2, public="logsumexp", ulp_kind="term")
def logsumexp_weighted(x: Array, b: Array, *, scale: Any) -> tuple[Array, ...]:
    """``total = sum_c b_c exp(scale x_c)``; ``s = log |total|`` and ``sign = sgn(total)``.  b = 0 excludes a term."""
    z = np.where(b == 0, -np.inf, x * scale)
    m = z.max(-1, keepdims=True)
    shift = np.where(np.isinf(m), 0, m)
    total = (np.where(b == 0, 0, b) * np.exp(z - shift)).sum(-1)
    return np.log(np.abs(total)) + shift[:, 0], np.sign(total)


# --- derivatives, from the saved output -------------------------------------------------------------------------


@_op("p:(c) t:(c)", "y:(c)", "scale", ulp=4, bytes_moved=3, public="softmax_jvp softmax_vjp", ulp_kind="term")
def softmax_jvp(p: Array, t: Array, *, scale: Any) -> tuple[Array, ...]:
    """``y = scale p (t - <p, t>)``; the Jacobian is symmetric, so this is the vjp, too."""
    return (p * _centred(p, t, p, p == 0) * scale,)


@_op("logp:(c) t:(c)", "y:(c)", "scale", ulp=4, bytes_moved=3, public="log_softmax_jvp", ulp_kind="term")
def log_softmax_jvp(logp: Array, t: Array, *, scale: Any) -> tuple[Array, ...]:
    """``y = scale (t - <p, t>)`` with ``p = exp(logp)``."""
    return (_centred(np.exp(logp), t, logp, logp == -np.inf) * scale,)


@_op("logp:(c) g:(c)", "y:(c)", "scale", ulp=4, bytes_moved=3, public="log_softmax_vjp", ulp_kind="term")
def log_softmax_vjp(logp: Array, g: Array, *, scale: Any) -> tuple[Array, ...]:
    """``y = scale (g - p sum(g))`` with ``p = exp(logp)``."""
    dead = logp == -np.inf
    g = np.where(dead, 0, g)
    return (np.where(dead, 0, (g - np.exp(logp) * g.sum(-1, keepdims=True)) * scale),)


@_op("p:(c) t:(c)", "s:()", "scale", ulp=4, bytes_moved=2, public="logsumexp_jvp", ulp_kind="term")
def logsumexp_jvp(p: Array, t: Array, *, scale: Any) -> tuple[Array, ...]:
    """``s = scale <p, t>``."""
    return ((p * np.where(p == 0, 0, t)).sum(-1) * scale,)


@_op("p:(c) g:()", "y:(c)", "scale", ulp=2, bytes_moved=2, public="logsumexp_vjp")
def logsumexp_vjp(p: Array, g: Array, *, scale: Any) -> tuple[Array, ...]:
    """``y = scale g p``."""
    return (np.where(p == 0, 0, p * g[:, None] * scale),)


@_op("p:(c)", "j:(c,c)", "scale", ulp=4, bytes_moved=1, public="softmax_jacobian")
def softmax_jacobian(p: Array, *, scale: Any) -> tuple[Array, ...]:
    """``j = scale (diag(p) - p p^T)``; the diagonal is ``p_i`` times the sum of the other p."""
    total = p.sum(-1, keepdims=True)
    top = _first_max(p)
    others = p.copy()
    np.put_along_axis(others, top, 0, -1)
    rest = total - p
    np.put_along_axis(rest, top, others.sum(-1, keepdims=True), -1)
    rest = np.where(np.abs(total - 1) <= UNIT_SUM_BAND, rest, 1 - p)
    j = -p[:, :, None] * p[:, None, :]
    i = np.arange(p.shape[-1])
    j[:, i, i] = p * rest
    return (j * scale,)


@_op("logp:(c)", "j:(c,c)", "scale", ulp=4, bytes_moved=1, public="log_softmax_jacobian")
def log_softmax_jacobian(logp: Array, *, scale: Any) -> tuple[Array, ...]:
    """``j = scale (I - 1 p^T)``; rows of classes that cannot occur (logp = -inf) are 0."""
    p = np.exp(logp)
    j = np.where((logp == -np.inf)[:, :, None], 0, np.broadcast_to(-p[:, None, :], (*p.shape, p.shape[-1]))).copy()
    i = np.arange(p.shape[-1])
    j[:, i, i] = np.where(logp == -np.inf, 0, -np.expm1(logp))
    return (j * scale,)


# --- cross-entropy ----------------------------------------------------------------------------------------------
#
# The extras of a row, whether it is ignored or not: lse, the logsumexp of scale x; top, the class of its largest logit;
# aim, that of its largest target.  Of equal ones it is the first; a NaN is the largest; if all are -inf, it is -1.
#
# With targets q (a one-hot or given distribution, smoothed and class-weighted) and nll_c = lse - z_c:
#     loss = v (sum_c q_c nll_c + z_loss lse^2)
#     dx_c = scale v g ((sum_k q_k + 2 z_loss lse) p_c - q_c)
# where  q_c = w_c (keep t_c + spread).   `keep` is 1 - label_smoothing, `spread` label_smoothing / classes.


def _parts(x: Array, scale: Any, empty: Any) -> tuple[Array, Array, Array, Array]:
    """Return ``-log p``, ``p``, ``1 - p`` without cancellation, and lse of each row's softmax."""
    d, m, e, rest = _shifted(x, scale)
    total = e.sum(-1, keepdims=True)
    nll = np.log1p(rest) - d
    lse = _lse(m, rest)
    p = e / total
    not_p = (total - e) / total
    np.put_along_axis(not_p, _first_max(x), rest / total, -1)
    broken = ~np.isfinite(m)
    nll, p, not_p = (np.where(broken, np.nan, a) for a in (nll, p, not_p))
    if empty:
        nothing = m == -np.inf
        nll, p, not_p = np.where(nothing, np.inf, nll), np.where(nothing, 0, p), np.where(nothing, 0, not_p)
    return nll, p, not_p, lse


def _loss(x: Array, q: Array, v: Array, scale: Any, zloss: Any, empty: Any) -> tuple[Array, Array, Array, Array]:
    """Return the loss, ``p``, ``1 - p`` without cancellation, and lse, all per row."""
    nll, p, not_p, lse = _parts(x, scale, empty)
    per_class = np.where(q == 0, 0, q * nll)
    loss = v * (per_class.sum(-1) + (zloss * lse[:, 0] ** 2 if zloss else 0))
    # A row that is nan anywhere is nan everywhere, also where q is 0.
    return np.where(np.isnan(p).any(-1), np.nan, loss), p, not_p, lse


def _row_gradient(q: Array, p: Array, not_p: Array, lse: Array, zloss: Any, empty: Any) -> Array:
    """Return the derivative of a row's loss by ``scale x``."""
    extra = q.sum(-1, keepdims=True) - q
    if zloss:
        extra = extra + 2 * zloss * lse
    # (sum q) p_c - q_c = (sum of the other q) p_c - q_c (1 - p_c): nothing cancels at the target.
    dz = np.where(p == 0, 0, extra * p) - q * not_p
    return np.where(lse == -np.inf, 0, dz) if empty else dz


def _loss_grad(
    x: Array, q: Array, v: Array, g: Array, scale: Any, zloss: Any, empty: Any
) -> tuple[Array, Array, Array]:  # fmt: skip
    loss, p, not_p, lse = _loss(x, q, v, scale, zloss, empty)
    return loss, _row_gradient(q, p, not_p, lse, zloss, empty) * (v * g)[:, None] * scale, lse


def _one_hot(x: Array, y: Array, w: Array, keep: Any, spread: Any, ignore: Any) -> tuple[Array, Array]:
    """Return the smoothed, class-weighted targets of class indices and the mask of ignored rows."""
    ignored = y == int(ignore)
    t = np.zeros_like(x)
    np.put_along_axis(t, np.where(ignored, 0, y)[:, None], 1, -1)
    return w * (keep * t + spread), ignored


@_op(
    "x:(c) y:()i w:c v:()", "loss:()", "scale empty keep spread zloss ignore", extras="lse:() top:()i",
    ulp=2, bytes_moved=1, public="cross_entropy",
)  # fmt: skip
def cross_entropy_index(
    x: Array, y: Array, w: Array, v: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, ignore: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Loss against class indices."""
    q, ignored = _one_hot(x, y, w, keep, spread, ignore)
    loss, _, _, lse = _loss(x, q, v, scale, zloss, empty)
    return np.where(ignored, 0, loss), lse[:, 0], _top(x)


@_op(
    "x:(c) y:()i w:c v:() g:()", "loss:() dx:(c)", "scale empty keep spread zloss ignore", extras="lse:() top:()i",
    ulp=4, bytes_moved=2, public="cross_entropy_value_and_grad", ulp_kind="term",
)  # fmt: skip
def cross_entropy_index_grad(
    x: Array, y: Array, w: Array, v: Array, g: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, ignore: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Loss against class indices, and its gradient times g."""
    q, ignored = _one_hot(x, y, w, keep, spread, ignore)
    loss, dx, lse = _loss_grad(x, q, v, g, scale, zloss, empty)
    return np.where(ignored, 0, loss), np.where(ignored[:, None], 0, dx), lse[:, 0], _top(x)


@_op(
    "x:(c) t:(c) w:c v:()", "loss:()", "scale empty keep spread zloss", extras="lse:() top:()i aim:()i",
    ulp=2, bytes_moved=2, public="cross_entropy", ulp_kind="term",
)  # fmt: skip
def cross_entropy_probs(
    x: Array, t: Array, w: Array, v: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Loss against probabilities."""
    loss, _, _, lse = _loss(x, w * (keep * t + spread), v, scale, zloss, empty)
    return loss, lse[:, 0], _top(x), _top(t)


@_op(
    "x:(c) t:(c) w:c v:() g:()", "loss:() dx:(c)", "scale empty keep spread zloss", extras="lse:() top:()i aim:()i",
    ulp=4, bytes_moved=3, public="cross_entropy_value_and_grad", ulp_kind="term",
)  # fmt: skip
def cross_entropy_probs_grad(
    x: Array, t: Array, w: Array, v: Array, g: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Loss against probabilities, and its gradient times g."""
    loss, dx, lse = _loss_grad(x, w * (keep * t + spread), v, g, scale, zloss, empty)
    return loss, dx, lse[:, 0], _top(x), _top(t)


# --- cross-entropy, second order ------------------------------------------------------------------------------------
#
# With q as above, Q = sum_k q_k and z = scale x, the Hessian of a row's loss by z is
#     H = v ((Q + 2 z_loss lse) (diag(p) - p p^T) + 2 z_loss p p^T):
# it depends on the targets through Q only.  A class at -inf has p = 0; a direction is 0 there, whatever it holds.


def _curvature(mass: Array, lse: Array, zloss: Any) -> Array:
    """Return ``Q + 2 z_loss lse``, per row."""
    a: Array = mass + 2 * zloss * lse if zloss else mass + 0 * lse
    return a


def _diagonal(mass: Array, p: Array, not_p: Array, lse: Array, zloss: Any) -> Array:
    """Return the diagonal of H for v = 1: ``p (a (1 - p) + 2 z_loss p)``."""
    return np.where(p == 0, 0, p * (_curvature(mass, lse, zloss) * not_p + 2 * zloss * p))


def _loss_jvp(
    x: Array, q: Array, d: Array, v: Array, scale: Any, zloss: Any, empty: Any
) -> tuple[Array, Array]:  # fmt: skip
    loss, p, not_p, lse = _loss(x, q, v, scale, zloss, empty)
    terms = _row_gradient(q, p, not_p, lse, zloss, empty) * np.where(x == -np.inf, 0, d)
    return loss, terms.sum(-1) * v * scale


def _loss_hess(
    x: Array, q: Array, v: Array, g: Array, scale: Any, zloss: Any, empty: Any, excess: Any
) -> tuple[Array, Array, Array]:
    loss, p, not_p, lse = _loss(x, q, v, scale, zloss, empty)
    mass, f = q.sum(-1, keepdims=True), (v * g)[:, None] * scale
    dx = _row_gradient(q, p, not_p, lse, zloss, empty) * f
    return loss, dx, _diagonal(mass, p, not_p, lse, zloss) * (f * scale * (1 + excess))


@_op(
    "x:(c) y:()i d:(c) w:c v:()", "loss:() slope:()", "scale empty keep spread zloss ignore",
    ulp=4, bytes_moved=2, public="cross_entropy_jvp", ulp_kind="term",
)  # fmt: skip
def cross_entropy_index_jvp(
    x: Array, y: Array, d: Array, w: Array, v: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, ignore: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Loss against class indices, and its derivative along d."""
    q, ignored = _one_hot(x, y, w, keep, spread, ignore)
    return tuple(np.where(ignored, 0, a) for a in _loss_jvp(x, q, d, v, scale, zloss, empty))


@_op(
    "x:(c) t:(c) d:(c) w:c v:()", "loss:() slope:()", "scale empty keep spread zloss",
    ulp=4, bytes_moved=3, public="cross_entropy_jvp", ulp_kind="term",
)  # fmt: skip
def cross_entropy_probs_jvp(
    x: Array, t: Array, d: Array, w: Array, v: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Loss against probabilities, and its derivative along d."""
    return _loss_jvp(x, w * (keep * t + spread), d, v, scale, zloss, empty)


@_op(
    "x:(c) y:()i w:c v:() g:()", "loss:() dx:(c) hess:(c)", "scale empty keep spread zloss ignore excess",
    ulp=4, bytes_moved=3, public="cross_entropy_value_grad_hess", ulp_kind="term",
)  # fmt: skip
def cross_entropy_index_hess(
    x: Array, y: Array, w: Array, v: Array, g: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, ignore: Any, excess: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Loss against class indices, its gradient times g, and its Hessian's diagonal times g (1 + excess)."""
    q, ignored = _one_hot(x, y, w, keep, spread, ignore)
    loss, dx, hess = _loss_hess(x, q, v, g, scale, zloss, empty, excess)
    return np.where(ignored, 0, loss), np.where(ignored[:, None], 0, dx), np.where(ignored[:, None], 0, hess)


@_op(
    "x:(c) t:(c) w:c v:() g:()", "loss:() dx:(c) hess:(c)", "scale empty keep spread zloss excess",
    ulp=4, bytes_moved=4, public="cross_entropy_value_grad_hess", ulp_kind="term",
)  # fmt: skip
def cross_entropy_probs_hess(
    x: Array, t: Array, w: Array, v: Array, g: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, excess: Any,
) -> tuple[Array, ...]:  # fmt: skip
    """Loss against probabilities, its gradient times g, and its Hessian's diagonal times g (1 + excess)."""
    return _loss_hess(x, w * (keep * t + spread), v, g, scale, zloss, empty, excess)


@_op(
    "x:(c) y:()i d:(c) q:() v:()", "hv:(c)", "scale empty zloss ignore",
    ulp=4, bytes_moved=3, public="cross_entropy_hvp", ulp_kind="term",
)  # fmt: skip
def cross_entropy_hvp(
    x: Array, y: Array, d: Array, q: Array, v: Array, *, scale: Any, empty: Any, zloss: Any, ignore: Any
) -> tuple[Array, ...]:
    """``hv = scale**2 H d``, where q is the sum of a row's targets; of y only matters which rows are ignored."""
    _, p, _, lse = _parts(x, scale, empty)
    dead = x == -np.inf
    hv = p * _curvature(q[:, None], lse, zloss) * _centred(p, d, x, dead)
    if zloss:
        hv = hv + 2 * zloss * p * (p * np.where(dead, 0, d)).sum(-1, keepdims=True)
    hv = np.where(p == 0, 0, hv) * v[:, None] * scale**2
    return (np.where((y == int(ignore))[:, None], 0, hv),)


@_op(
    "x:(c) y:()i q:() v:()", "h:(c,c)", "scale empty zloss ignore",
    ulp=4, bytes_moved=1, public="cross_entropy_hessian", ulp_kind="term",
)  # fmt: skip
def cross_entropy_hessian(
    x: Array, y: Array, q: Array, v: Array, *, scale: Any, empty: Any, zloss: Any, ignore: Any
) -> tuple[Array, ...]:
    """``h = scale**2 H``, where q is the sum of a row's targets; of y only matters which rows are ignored."""
    _, p, not_p, lse = _parts(x, scale, empty)
    mass = q[:, None]
    h = np.where(p == 0, 0, p * (2 * zloss - _curvature(mass, lse, zloss)))[:, :, None] * p[:, None, :]
    i = np.arange(x.shape[-1])
    h[:, i, i] = _diagonal(mass, p, not_p, lse, zloss)
    return (np.where((y == int(ignore))[:, None, None], 0, h * v[:, None, None] * scale**2),)


# --- divergences ------------------------------------------------------------------------------------------------


def _entropy(x: Array, scale: Any, empty: Any) -> tuple[Array, Array, Array]:
    """Return the entropy of each row, p, and ``log p + entropy`` without cancellation.

    ``-sum p log p = log(sum exp d) - <p, d>`` with ``d = scale (x - max x)``: two terms that are not negative.
    """
    d, m, e, rest = _shifted(x, scale)
    p = e / e.sum(-1, keepdims=True)
    d = np.where(p == 0, 0, d)
    mean = (p * d).sum(-1, keepdims=True)
    broken = ~np.isfinite(m)
    h, p = (np.where(broken, np.nan, a) for a in (np.log1p(rest) - mean, p))
    if empty:
        h, p = (np.where(m == -np.inf, 0, a) for a in (h, p))
    return h[:, 0], p, d - mean


@_op("x:(c) v:()", "loss:()", "scale empty", ulp=3, bytes_moved=1, public="entropy")
def entropy(x: Array, v: Array, *, scale: Any, empty: Any) -> tuple[Array, ...]:
    """``loss = -v sum_c p_c log p_c`` with ``p = softmax(scale x)``."""
    return (v * _entropy(x, scale, empty)[0],)


@_op(
    "x:(c) v:() g:()", "loss:() dx:(c)", "scale empty",
    ulp=4, bytes_moved=2, public="entropy_value_and_grad", ulp_kind="term",
)  # fmt: skip
def entropy_grad(x: Array, v: Array, g: Array, *, scale: Any, empty: Any) -> tuple[Array, ...]:
    """Entropy, and its gradient times g: ``dx = -scale v g p (log p + entropy)``."""
    h, p, log_ratio = _entropy(x, scale, empty)
    return v * h, np.where(p == 0, 0, -p * log_ratio) * (v * g)[:, None] * scale


def _divergence(x: Array, t: Array, v: Array, scale: Any, empty: Any) -> Array:
    """Return v sum t (log t - log p), summed term by term: near p = t the terms are small, their parts are not."""
    d, m, _, rest = _shifted(x, scale)
    log_ratio = (np.log(np.where(t == 0, 1, t)) - d) + np.log1p(rest)
    if empty:
        log_ratio = np.where(m == -np.inf, np.inf, log_ratio)
        m = np.where(m == -np.inf, 0, m)
    total = np.where(t == 0, 0, t * log_ratio).sum(-1)
    return np.where(np.isfinite(m[:, 0]) & ~np.isnan(x).any(-1), v * total, np.nan)


@_op("x:(c) t:(c) v:()", "loss:()", "scale empty", ulp=4, bytes_moved=2, public="kl_divergence", ulp_kind="term")
def kl_divergence(x: Array, t: Array, v: Array, *, scale: Any, empty: Any) -> tuple[Array, ...]:
    """``loss = v sum_c t_c (log t_c - log p_c)`` with ``p = softmax(scale x)`` and ``0 log 0 = 0``."""
    return (_divergence(x, t, v, scale, empty),)


@_op(
    "x:(c) t:(c) v:() g:()", "loss:() dx:(c)", "scale empty",
    ulp=4, bytes_moved=3, public="kl_divergence_value_and_grad", ulp_kind="term",
)  # fmt: skip
def kl_divergence_grad(x: Array, t: Array, v: Array, g: Array, *, scale: Any, empty: Any) -> tuple[Array, ...]:
    """Divergence, and its gradient times g: ``dx = scale v g (p sum(t) - t)``, as of a cross-entropy."""
    return _divergence(x, t, v, scale, empty), _loss_grad(x, t, v, g, scale, 0, empty)[1]


# --- binary cross-entropy ---------------------------------------------------------------------------------------
#
# Every class is a question of its own, with label y, positive weight u (times `positive`, the same for all) and z:
#     loss = w v (u y softplus(-z) + (1 - y) softplus(z))
#     dx = scale w v g ((1 - y) sigmoid(z) - u y sigmoid(-z))


def _binary(
    x: Array, y: Array, w: Array, u: Array, v: Array, scale: Any, positive: Any
) -> tuple[Array, Array]:  # fmt: skip
    """Return the loss of each element and its derivative by ``scale x``; no part of either cancels for y in [0, 1]."""
    z, lost = _product(x, scale)
    a = np.abs(z)
    e = np.exp(-a)
    e = np.where(lost == 0, e, e - e * lost * np.sign(z))
    no, yes = 1 - y, u * positive * y
    against, right = np.where(z < 0, yes, no), np.where(z < 0, no, yes)
    factor = w * v[:, None]
    linear = np.where(against == 0, 0, against * a)
    slope = np.where(z < 0, -1, 1) * (against - right * e) / (1 + e)
    return factor * (linear + (no + yes) * np.log1p(e)), factor * slope


@_op(
    "x:(c) y:(c) w:c u:c v:()", "loss:(c)", "scale positive",
    ulp=4, bytes_moved=3, public="binary_cross_entropy", ulp_kind="term",
)  # fmt: skip
def binary_cross_entropy(
    x: Array, y: Array, w: Array, u: Array, v: Array, *, scale: Any, positive: Any
) -> tuple[Array, ...]:
    """``loss_c = v w_c (u_c y_c softplus(-scale x_c) + (1 - y_c) softplus(scale x_c))``, of each element."""
    return (_binary(x, y, w, u, v, scale, positive)[0],)


@_op(
    "x:(c) y:(c) w:c u:c v:() g:(c)", "loss:(c) dx:(c)", "scale positive",
    ulp=4, bytes_moved=5, public="binary_cross_entropy_value_and_grad", ulp_kind="term",
)  # fmt: skip
def binary_cross_entropy_grad(
    x: Array, y: Array, w: Array, u: Array, v: Array, g: Array, *, scale: Any, positive: Any
) -> tuple[Array, ...]:
    """Loss of each element, and its derivative times g."""
    loss, slope = _binary(x, y, w, u, v, scale, positive)
    return loss, slope * g * scale


@_op("x:(c) y:(c) w:c u:c v:()", "loss:()", "scale positive", ulp=4, bytes_moved=2, public="", ulp_kind="term")
def binary_cross_entropy_sum(
    x: Array, y: Array, w: Array, u: Array, v: Array, *, scale: Any, positive: Any
) -> tuple[Array, ...]:
    """Sum of the losses of a row's elements."""
    return (_binary(x, y, w, u, v, scale, positive)[0].sum(-1),)


@_op(
    "x:(c) y:(c) w:c u:c v:() g:()", "loss:() dx:(c)", "scale positive",
    ulp=4, bytes_moved=3, public="", ulp_kind="term",
)  # fmt: skip
def binary_cross_entropy_sum_grad(
    x: Array, y: Array, w: Array, u: Array, v: Array, g: Array, *, scale: Any, positive: Any
) -> tuple[Array, ...]:
    """Sum of the losses of a row's elements, and its gradient times g."""
    loss, slope = _binary(x, y, w, u, v, scale, positive)
    return loss.sum(-1), slope * g[:, None] * scale


# --- internal: reductions of per-row results ---------------------------------------------------------------------


@_op("x:(c)", "s:()", "", ulp=1, bytes_moved=1, public="", ulp_kind="term")
def total(x: Array) -> tuple[Array, ...]:
    """``s = sum_c x_c`` in fixed blocks, accumulated in float64: the reduction of a vector of losses."""
    return (x.sum(-1),)
