"""What every room is held to: the definition in higher precision, and how far from it a result may be.

The functions run in whatever room is entered, so that the saboteurs of ``test_saboteurs.py`` face the very checks
that the honest rooms face.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import rooms
from cases import Case

from fastsoftmax import _ops
from fastsoftmax._ops import LABEL, ONE, OPS, ROW, SQUARE, Array, Op
from fastsoftmax._plan import Frame, execute

LD = np.longdouble

# An honest oracle needs more than double precision.
HAS_WIDE = np.finfo(LD).nmant > np.finfo(np.float64).nmant


# --- units in the last place ------------------------------------------------


def ulp(size: Any, dtype: Any) -> Array:
    """Return the spacing of ``dtype`` at |size|; among subnormals, and at 0, the smallest subnormal."""
    info = np.finfo(dtype)
    finite = np.where(np.isfinite(size), size, 1)
    exponent = np.where(finite == 0, info.minexp, np.frexp(np.abs(finite).astype(LD))[1] - 1)
    return np.ldexp(LD(1), np.maximum(exponent, info.minexp) - info.nmant)


def distance(actual: Array, exact: Array, size: Array | None = None) -> Array:
    """Return the error of ``actual`` in ULP of ``size`` (default: of the exact result).

    Where the exact result, rounded, is nan or infinite, the distance is 0 or infinite: the pattern must match.
    """
    with np.errstate(all="ignore"):
        rounded = exact.astype(actual.dtype)
        plain = np.isfinite(rounded) & np.isfinite(actual)
        same = (actual == rounded) | (np.isnan(actual) & np.isnan(rounded))
        error = np.abs(actual.astype(LD) - exact) / ulp(exact if size is None else size, actual.dtype)
        return np.where(plain, error, np.where(same, 0, np.inf)).astype(float)


def assert_close(actual: Any, exact: Any, bound: float, size: Any = None, what: str = "") -> None:
    """Assert that ``actual`` is within ``bound`` ULP; the message shows the worst element, in hex, too."""
    actual, exact = np.asarray(actual), np.asarray(exact)
    assert actual.shape == exact.shape, f"{what}: shape {actual.shape}, expected {exact.shape}"
    if not actual.size:
        return
    d = distance(actual, exact, size)
    if not (d <= bound).all():
        worst = np.unravel_index(np.argmax(np.where(np.isnan(d), np.inf, d)), d.shape)
        with np.errstate(all="ignore"):
            got, want = actual[worst], exact[worst].astype(actual.dtype)
        raise AssertionError(
            f"{what}: {int((~(d <= bound)).sum())} of {d.size} elements are off, worst at {tuple(map(int, worst))}: "
            f"got {got!r} = {float(got).hex()}, expected {want!r} = {float(want).hex()}, "
            f"{d[worst]:.4g} ULP apart (promised: {bound:g})"
        )


def assert_same_bits(actual: Any, expected: Any, what: str = "") -> None:
    """Assert equality bit for bit (any nan equals any nan)."""
    a, b = np.asarray(actual), np.asarray(expected)
    assert a.shape == b.shape, f"{what}: shape {a.shape}, expected {b.shape}"
    assert a.dtype == b.dtype, f"{what}: dtype {a.dtype}, expected {b.dtype}"
    if a.tobytes() == b.tobytes():
        return
    nan = np.isnan(a.astype(float)) & np.isnan(b.astype(float))
    bits = f"V{a.dtype.itemsize}"
    differ = (np.ascontiguousarray(a).view(bits) != np.ascontiguousarray(b).view(bits)).reshape(a.shape) & ~nan
    if differ.any():
        where = tuple(int(k) for k in np.argwhere(differ)[0])
        raise AssertionError(
            f"{what}: {int(differ.sum())} of {a.size} elements differ, first at {where}: "
            f"{float(a[where]).hex()} and {float(b[where]).hex()}"
        )


# --- how large the terms of a sum are ------------------------------------------------
#
# Signed terms can cancel, and then no rounding lets a kernel promise ULP of the result.  Per operation, the size of
# what is added: |a| + |b| where the definition says a - b.  Operations that are not listed here are sums whose
# definition on absolute values is that size.


def _size_centred(p: Array, key: Array, t: Array, tiny: Any) -> tuple[Array, Array]:
    """Return |t - ref| and <p, |t - ref|>, where ref is the tangent of the most probable class.

    A subnormal term is known to the smallest subnormal only, so it counts as the smallest normal number.
    """
    t = np.where(p == 0, 0, t)
    ref = np.take_along_axis(t, np.argmax(key, axis=-1)[:, None], -1)
    h = np.abs(t - ref)
    dot = np.where(p * h == 0, p * h, np.maximum(p * h, tiny)).sum(-1, keepdims=True)
    total = p.sum(-1, keepdims=True)
    # Outside the band of softmaxes the reference does not drop out.
    band = np.abs(total - 1) <= _ops.UNIT_SUM_BAND
    return h, dot + np.where(band, 0, np.abs(ref * (1 - total)))


def _size_softmax_jvp(p: Array, t: Array, *, scale: Any, tiny: Any) -> tuple[Array, ...]:
    h, dot = _size_centred(p, p, t, tiny)
    return (p * np.maximum(h, dot) * scale,)


def _size_log_softmax_jvp(logp: Array, t: Array, *, scale: Any, tiny: Any) -> tuple[Array, ...]:
    h, dot = _size_centred(np.exp(logp), logp, t, tiny)
    return (np.maximum(h, dot) * scale,)


def _size_log_softmax_vjp(logp: Array, g: Array, *, scale: Any, tiny: Any) -> tuple[Array, ...]:
    g = np.abs(np.where(logp == -np.inf, 0, g))
    return (np.maximum(g, np.exp(logp) * g.sum(-1, keepdims=True)) * scale,)


def _size_logsumexp_weighted(x: Array, b: Array, *, scale: Any, tiny: Any) -> tuple[Array, ...]:
    z = np.where(b == 0, -np.inf, x * scale)
    m = z.max(-1, keepdims=True)
    terms = np.where(b == 0, 0, b) * np.exp(z - np.where(np.isinf(m), 0, m))
    total = np.abs(terms.sum(-1))
    sizes = (np.ones_like(total), np.abs(np.log(total)), np.abs(m[:, 0]), np.abs(terms).sum(-1) / total)
    return np.max([np.where(np.isfinite(s), s, 1) for s in sizes], axis=0), np.ones_like(total)


def _size_loss_grad(x: Array, q: Array, v: Array, g: Array, scale: Any, zloss: Any, empty: Any) -> tuple[Array, ...]:
    loss, p, not_p, lse = _ops._loss(x, np.abs(q), np.abs(v), scale, np.abs(zloss), empty)
    others = np.abs(q).sum(-1, keepdims=True) - np.abs(q) + 2 * np.abs(zloss * lse if zloss else 0)
    return loss, (np.where(p == 0, 0, others * p) + np.abs(q) * not_p) * np.abs(v * g)[:, None] * scale


def _size_cross_entropy_index_grad(
    x: Array, y: Array, w: Array, v: Array, g: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, ignore: Any, tiny: Any,
) -> tuple[Array, ...]:  # fmt: skip
    q, _ = _ops._one_hot(x, y, w, keep, spread, ignore)
    return _size_loss_grad(x, q, v, g, scale, zloss, empty)


def _size_cross_entropy_probs_grad(
    x: Array, t: Array, w: Array, v: Array, g: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, tiny: Any,
) -> tuple[Array, ...]:  # fmt: skip
    return _size_loss_grad(x, w * (keep * t + spread), v, g, scale, zloss, empty)


def _size_loss_jvp(
    x: Array, q: Array, u: Array, v: Array, scale: Any, zloss: Any, empty: Any
) -> tuple[Array, ...]:  # fmt: skip
    loss, dx = _size_loss_grad(x, q, v, np.ones_like(v), scale, zloss, empty)
    return loss, (dx * np.abs(np.where(x == -np.inf, 0, u))).sum(-1)


def _size_cross_entropy_index_jvp(
    x: Array, y: Array, u: Array, w: Array, v: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, ignore: Any, tiny: Any,
) -> tuple[Array, ...]:  # fmt: skip
    q, _ = _ops._one_hot(x, y, w, keep, spread, ignore)
    return _size_loss_jvp(x, q, u, v, scale, zloss, empty)


def _size_cross_entropy_probs_jvp(
    x: Array, t: Array, u: Array, w: Array, v: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, tiny: Any,
) -> tuple[Array, ...]:  # fmt: skip
    return _size_loss_jvp(x, w * (keep * t + spread), u, v, scale, zloss, empty)


def _known(p: Array, tiny: Any) -> Array:
    """Return probabilities as they are known: those below the normal numbers to the smallest subnormal only."""
    return np.where(p == 0, 0, np.maximum(p, tiny))


def _size_curvature(mass: Array, lse: Array, zloss: Any) -> Array:
    return np.abs(mass) + (np.abs(2 * zloss * lse) if zloss else 0)


def _size_loss_hess(
    x: Array, q: Array, v: Array, g: Array, scale: Any, zloss: Any, empty: Any, excess: Any, tiny: Any
) -> tuple[Array, ...]:  # fmt: skip
    _, p, not_p, lse = _ops._parts(x, scale, empty)
    a = _size_curvature(q.sum(-1, keepdims=True), lse, zloss)
    hess = np.where(p == 0, 0, _known(p, tiny) * (a * not_p + 2 * zloss * p))
    hess = hess * np.abs(v * g)[:, None] * scale**2 * (1 + excess)
    return *_size_loss_grad(x, q, v, g, scale, zloss, empty), hess


def _size_cross_entropy_index_hess(
    x: Array, y: Array, w: Array, v: Array, g: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, ignore: Any, excess: Any, tiny: Any,
) -> tuple[Array, ...]:  # fmt: skip
    q, _ = _ops._one_hot(x, y, w, keep, spread, ignore)
    return _size_loss_hess(x, q, v, g, scale, zloss, empty, excess, tiny)


def _size_cross_entropy_probs_hess(
    x: Array, t: Array, w: Array, v: Array, g: Array, *,
    scale: Any, empty: Any, keep: Any, spread: Any, zloss: Any, excess: Any, tiny: Any,
) -> tuple[Array, ...]:  # fmt: skip
    return _size_loss_hess(x, w * (keep * t + spread), v, g, scale, zloss, empty, excess, tiny)


def _size_cross_entropy_hvp(
    x: Array, y: Array, u: Array, q: Array, v: Array, *, scale: Any, empty: Any, zloss: Any, ignore: Any, tiny: Any
) -> tuple[Array, ...]:
    _, p, _, lse = _ops._parts(x, scale, empty)
    u = np.where(x == -np.inf, 0, u)
    h, dot = _size_centred(p, x, u, tiny)
    size = _size_curvature(q[:, None], lse, zloss) * np.maximum(h, dot)
    if zloss:
        size = size + 2 * zloss * (p * np.abs(u)).sum(-1, keepdims=True)
    return (np.where(p == 0, 0, _known(p, tiny) * size) * np.abs(v)[:, None] * scale**2,)


def _size_cross_entropy_hessian(
    x: Array, y: Array, q: Array, v: Array, *, scale: Any, empty: Any, zloss: Any, ignore: Any, tiny: Any
) -> tuple[Array, ...]:
    _, p, not_p, lse = _ops._parts(x, scale, empty)
    a = _size_curvature(q[:, None], lse, zloss)
    known = _known(p, tiny)
    h = np.where(p == 0, 0, known * (a + 2 * zloss))[:, :, None] * known[:, None, :]
    i = np.arange(x.shape[-1])
    h[:, i, i] = np.where(p == 0, 0, known * (a * not_p + 2 * zloss * p))
    return (h * np.abs(v)[:, None, None] * scale**2,)


def _size_entropy_grad(x: Array, v: Array, g: Array, *, scale: Any, empty: Any, tiny: Any) -> tuple[Array, ...]:
    d, _, e, _ = _ops._shifted(x, scale)
    p = e / e.sum(-1, keepdims=True)
    d = np.abs(np.where(p == 0, 0, d))
    size = p * (d + (p * d).sum(-1, keepdims=True)) * np.abs(v * g)[:, None] * scale
    return np.zeros_like(v), size


def _size_kl_divergence(x: Array, t: Array, v: Array, *, scale: Any, empty: Any, tiny: Any) -> tuple[Array, ...]:
    """Return sum t max(1, |log t - log p|): where t is near p, an error of t itself counts by t, not by the term."""
    d, _, _, rest = _ops._shifted(x, scale)
    log_ratio = np.where(t == 0, 0, np.log(np.where(t == 0, 1, t)) - d + np.log1p(rest))
    return (np.abs(v) * (t * np.maximum(1, np.abs(log_ratio))).sum(-1),)


def _size_kl_divergence_grad(
    x: Array, t: Array, v: Array, g: Array, *, scale: Any, empty: Any, tiny: Any
) -> tuple[Array, ...]:
    _, slope = _size_loss_grad(x, t, v, g, scale, 0, empty)
    return (*_size_kl_divergence(x, t, v, scale=scale, empty=empty, tiny=tiny), slope)


def _size_binary_cross_entropy_grad(
    x: Array, y: Array, w: Array, u: Array, v: Array, g: Array, *, scale: Any, positive: Any, tiny: Any
) -> tuple[Array, ...]:
    """Of y in [0, 1], whose parts have opposite signs in the derivative only."""
    loss, slope = _ops._binary(x, y, w, u, v, scale, positive)
    return loss, (np.abs(slope) + 2 * np.abs(_right(x, y, w, u, v, scale, positive))) * np.abs(_column(g)) * scale


def _right(x: Array, y: Array, w: Array, u: Array, v: Array, scale: Any, positive: Any) -> Array:
    """Return the smaller part of the derivative of a binary cross-entropy."""
    e = np.exp(-np.abs(x * scale))
    return np.where(x < 0, 1 - y, u * positive * y) * e / (1 + e) * w * v[:, None]


def _column(g: Array) -> Array:
    return g if g.ndim == 2 else g[:, None]


def _size_binary_cross_entropy_sum_grad(
    x: Array, y: Array, w: Array, u: Array, v: Array, g: Array, *, scale: Any, positive: Any, tiny: Any
) -> tuple[Array, ...]:
    loss, slope = _size_binary_cross_entropy_grad(x, y, w, u, v, g, scale=scale, positive=positive, tiny=tiny)
    return loss.sum(-1), slope


def sizes(
    op: Op, operands: list[Any], params: dict[str, Any], exact: tuple[Array, ...], dtype: np.dtype
) -> tuple[Array, ...]:
    """Return, per output, the magnitude in whose ULP the error of an operation is counted."""
    n = len(op.outs)
    own = _sizes(op, operands, params, exact[:n], dtype)
    return *own, *(np.maximum(1, np.abs(e)) for e in exact[n:])


def _sizes(
    op: Op, operands: list[Any], params: dict[str, Any], exact: tuple[Array, ...], dtype: np.dtype
) -> tuple[Array, ...]:
    if op.ulp_kind == "result":
        return exact
    if op.ulp_kind == "unit":
        return tuple(np.maximum(1, np.abs(e)) for e in exact)
    if op.ulp_kind != "term":
        raise ValueError(f"op {op.name!r} has ulp_kind={op.ulp_kind!r}; expected 'result', 'unit' or 'term'")
    own: Callable[..., tuple[Array, ...]] | None = globals().get(f"_size_{op.name}")
    if own is not None:
        terms = own(*operands, **params, tiny=LD(np.finfo(dtype).tiny))
    else:
        logits = ("x",) if "scale" in op.params else ()
        absolute = [
            a if name in logits or getattr(a, "dtype", None) == np.int64 else np.abs(a)
            for (name, _), a in zip(op.ins, operands, strict=True)
        ]
        terms = op.definition(*absolute, **params)
    return tuple(np.fmax(np.abs(e), t) for e, t in zip(exact, terms))


# --- the oracle ------------------------------------------------


def widened(op: Op, ins: list[Any], params: dict[str, float]) -> tuple[list[Any], dict[str, Any]]:
    """Return operands and parameters in longdouble, ready for the definition."""
    rows = ins[0].shape[0]
    operands = [
        np.full(rows, a, LD) if kind == ONE and not isinstance(a, np.ndarray)
        else LD(a) if not isinstance(a, np.ndarray)
        else a if a.dtype == np.int64
        else a.astype(LD)
        for (_, kind), a in zip(op.ins, ins, strict=True)
    ]  # fmt: skip
    return operands, {name: LD(value) for name, value in params.items()}


def exactly(
    op: Op, ins: list[Any], params: dict[str, float], dtype: np.dtype
) -> tuple[tuple[Array, ...], tuple[Array, ...]]:
    """Return the exact results and the magnitudes that the promised error refers to."""
    operands, options = widened(op, ins, params)
    with np.errstate(all="ignore"):
        exact = op.definition(*operands, **options)
        return exact, sizes(op, operands, options, exact, dtype)


@lru_cache(maxsize=64)
def prepared(name: str, dtype: np.dtype, case: Case) -> tuple[Any, ...]:
    """Return operands, parameters, exact results and sizes of one case; kept while all rooms run it."""
    op = OPS[name]
    ins, params = case.build(op, dtype)
    return ins, params, *exactly(op, ins, params, dtype)


# --- running a kernel ------------------------------------------------


def out_shape(kind: str, r: int, c: int) -> tuple[int, ...]:
    """Return the shape of an operand of ``kind`` for r rows of c classes."""
    return {ROW: (r, c), SQUARE: (r, c, c)}.get(kind, (r,))


def new_outs(op: Op, dtype: np.dtype, r: int, c: int, fill: float = 12345) -> list[Array]:
    """Return an array for each output and extra, for r rows of c classes."""
    return [np.full(out_shape(kind, r, c), fill, np.int64 if kind == LABEL else dtype) for _, kind in op.results]


def compute(
    op: Op, dtype: np.dtype, ins: list[Any], params: dict[str, float], outs: list[Array] | None = None, **options: Any
) -> list[Array]:
    """Run the entered room's kernel through the plan, on operands of ``(rows, classes)``."""
    r, c = ins[0].shape
    if outs is None:
        outs = new_outs(op, dtype, r, c)
    execute(op, Frame((r, c), -1), ins, outs, params, dtype, **options)
    return outs


def copies(ins: list[Any]) -> list[Any]:
    """Copy the arrays among operands."""
    return [a.copy() if isinstance(a, np.ndarray) else a for a in ins]


# --- the conformance check ------------------------------------------------


def conforms(op: Op, dtype: np.dtype, case: Case) -> None:
    """Assert all that a room owes for one case: values, patterns, untouched inputs, and the same bits in place."""
    what = f"{op.name}, room {rooms.current}, {dtype}, case {case.name}"
    kept, params, exact, size = prepared(op.name, dtype, case)
    ins = copies(kept)
    outs = compute(op, dtype, ins, params)
    for (name, kind), out, e, s in zip(op.results, outs, exact, size, strict=True):
        if kind == LABEL:
            assert_same_bits(out, e, f"{what}, output {name}")
        else:
            assert_close(out, e, op.promise(name)[0], s, f"{what}, output {name}")
    if op.extras:
        alone = compute(op, dtype, ins, params, new_outs(op, dtype, *ins[0].shape)[: len(op.outs)])
        for a, b in zip(alone, outs):
            assert_same_bits(a, b, f"{what}, without the extras")
    for (name, _), a, b in zip(op.ins, ins, kept, strict=True):
        if isinstance(a, np.ndarray):
            assert a.tobytes() == b.tobytes(), f"{what}: input {name} was modified"
    for k, (name, kind) in enumerate(op.outs):
        for j, (source, other) in enumerate(op.ins):
            if kind == other == ROW:
                ins = copies(kept)
                targets = [ins[j] if i == k else np.empty_like(o) for i, o in enumerate(outs)]
                again = compute(op, dtype, ins, params, targets)
                for a, b in zip(again, outs, strict=True):
                    assert_same_bits(a, b, f"{what}, {name} in place of {source}")
