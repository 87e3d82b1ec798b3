"""Deliberately wrong rooms: the numpy room with one thing broken.

Each has been seen in somebody's softmax.  ``test_saboteurs.py`` demands that the suite's checks catch all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any
from unittest import mock

import numpy as np

from fastsoftmax import _numpy, _ops
from fastsoftmax._backends import Kernel
from fastsoftmax._ops import OPS, Array

NARROW = {np.dtype(np.float64): np.float32, np.dtype(np.longdouble): np.float64}


def narrow(a: Array) -> Array:
    """Round to the dtype of the kernel; definitions are evaluated one precision up."""
    return a.astype(NARROW[a.dtype])


@dataclass(frozen=True)
class Saboteur:
    """A backend whose kernels of some operations are wrong."""

    name: str
    ops: tuple[str, ...]
    definition: Callable[..., Any] | None  # (honest definition, *operands, **params) -> results
    vandalise: Callable[..., Any] | None  # (honest kernel, ins, outs, params, threads)
    strided = True
    masks = False
    reads = MappingProxyType({})

    def why_not(self) -> str | None:
        return None

    def quick(self, *operands: Any, **options: Any) -> None:
        """Take no short cut: every call goes through the plan."""

    def kernel(self, op: str, dtype: np.dtype[Any]) -> Kernel:
        if op not in self.ops:
            return _numpy.kernel(op, dtype)
        if self.vandalise is not None:
            vandalise, honest = self.vandalise, _numpy.kernel(op, dtype)
            return lambda ins, outs, params, threads: vandalise(honest, ins, outs, params, threads)
        broken, right = self.definition, OPS[op].definition
        assert broken is not None

        def definition(*operands: Any, **params: Any) -> tuple[Array, ...]:
            """Return the wrong outputs, and honest extras if there are no wrong ones."""
            wrong = broken(right, *operands, **params)
            return *wrong, *right(*operands, **params)[len(wrong) :]

        row = replace(OPS[op], definition=definition)
        with mock.patch.object(_numpy, "OPS", {**OPS, op: row}):
            return _numpy.kernel(op, dtype)


SABOTEURS: list[Saboteur] = []


def breaks(ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a wrong definition of the named operations."""

    def enter(f: Callable[..., Any]) -> Callable[..., Any]:
        SABOTEURS.append(Saboteur(f.__name__, tuple(ops.split()), f, None))
        return f

    return enter


def vandalises(ops: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Enter a kernel that damages memory around an honest computation."""

    def enter(f: Callable[..., Any]) -> Callable[..., Any]:
        SABOTEURS.append(Saboteur(f.__name__, tuple(ops.split()), None, f))
        return f

    return enter


# --- wrong maxima, sums, exponentials ------------------------------------------------


@breaks("softmax")
def maximum_of_the_whole_array(right, x, *, scale, empty):
    e = np.exp(narrow(x * scale - (x * scale).max()))
    return (e / e.sum(-1, keepdims=True),)


@breaks("softmax logsumexp")
def maximum_starts_at_minus_10000(right, x, *, scale, **rest):
    m = np.maximum((x * scale).max(-1, keepdims=True), -1e4)
    e = np.exp(narrow(x * scale - m))
    if not rest:
        return (m[:, 0] + np.log(e.sum(-1)),)
    return (e / e.sum(-1, keepdims=True),)


@breaks("softmax logsumexp")
def no_maximum_at_all(right, x, *, scale, **rest):
    e = np.exp(narrow(x * scale))
    return (np.log(e.sum(-1)),) if not rest else (e / e.sum(-1, keepdims=True),)


@breaks("softmax")
def another_exp_in_the_tail(right, x, **params):
    (y,) = right(x, **params)
    tail = x.shape[1] // 8 * 8
    rounded = y[:, tail:].astype(np.float32) * np.float32(1 + 2.0**-21)
    return (np.concatenate([y[:, :tail], rounded], axis=1),)


@breaks("softmax log_softmax logsumexp cross_entropy_index")
def exp_to_seven_digits(right, x, *rest, **params):
    return tuple(r * (1 + x.dtype.type(4) * np.finfo(NARROW[x.dtype]).eps) for r in right(x, *rest, **params))


@breaks("softmax")
def naive_sum_in_the_dtype(right, x, *, scale, empty):
    e = narrow(np.exp(x * scale - (x * scale).max(-1, keepdims=True)))
    return (e / np.cumsum(e, axis=-1)[:, -1:],)


@breaks("total logsumexp_jvp")
def naive_sum_in_half_the_digits(right, x, *rest, **params):
    half = {np.dtype(np.float64): np.float16, np.dtype(np.longdouble): np.float32}[x.dtype]
    return tuple(r.astype(half) for r in right(x, *rest, **params))


@breaks("log_softmax")
def log_of_the_sum_with_the_maximum(right, x, *, scale, empty):
    z = x * scale
    d = z - z.max(-1, keepdims=True)
    return (d - np.log(narrow(np.exp(d).sum(-1, keepdims=True))),)


@breaks("log_softmax")
def x_minus_logsumexp(right, x, *, scale, empty):
    return (narrow(x * scale) - narrow(OPS["logsumexp"].definition(x, scale=scale)[0])[:, None],)


@breaks("logsumexp")
def logsumexp_rounds_before_adding_the_maximum(right, x, *, scale):
    m = (x * scale).max(-1)
    return (narrow(m) + narrow(right(x - m[:, None] / scale, scale=scale)[0]),)


@breaks("softmax softmax_jvp")
def flush_to_zero(right, x, *rest, **params):
    (y,) = right(x, *rest, **params)
    return (np.where(np.abs(y) < np.finfo(NARROW[x.dtype]).tiny, 0, y),)


@breaks(" ".join(OPS))
def a_thousandth_too_much(right, *operands, **params):
    return tuple(r * 1.001 for r in right(*operands, **params))


@breaks("softmax log_softmax logsumexp cross_entropy_index_grad")
def scale_ignored(right, *operands, scale, **rest):
    return right(*operands, scale=1, **rest)


@breaks("softmax_jvp log_softmax_vjp logsumexp_vjp softmax_jacobian log_softmax_jacobian")
def scale_squared(right, *operands, scale):
    return right(*operands, scale=scale**2)


# --- wrong lanes and rows ------------------------------------------------


@breaks("softmax log_softmax")
def last_column_forgotten(right, x, **params):
    (y,) = right(x[:, :-1] if x.shape[1] > 1 else x, **params)
    return (np.pad(y, ((0, 0), (0, x.shape[1] - y.shape[1]))),)


@breaks("logsumexp cross_entropy_index_grad")
def remainder_of_sixteen_forgotten(right, x, *rest, **params):
    tail = x.shape[1] // 16 * 16
    z = x.copy()
    z[:, tail if tail else x.shape[1] :] = -np.inf
    return right(z, *rest, **params)


@breaks("softmax logsumexp")
def one_element_past_the_row_read(right, x, **params):
    (y,) = right(np.append(x, np.roll(x[:, :1], -1, axis=0), axis=1), **params)
    return (y[:, :-1] if y.ndim == 2 else y,)


@vandalises("softmax log_softmax_vjp")
def one_element_past_the_end_written(honest, ins, outs, params, threads):
    honest(ins, outs, params, threads)
    row = outs[0][0, -1]
    np.lib.stride_tricks.as_strided(row, (row.size + 1,))[-1] = 0


@vandalises("softmax cross_entropy_index")
def last_row_forgotten(honest, ins, outs, params, threads):
    kept = [o[0, -1].copy() for o in outs]
    honest(ins, outs, params, threads)
    for o, k in zip(outs, kept):
        o[0, -1] = k


@vandalises("softmax log_softmax_vjp cross_entropy_index_grad")
def output_cleared_before_the_input_is_read(honest, ins, outs, params, threads):
    for o in outs:
        o[...] = 0
    honest(ins, outs, params, threads)


@vandalises("logsumexp softmax_jvp")
def input_used_as_scratch(honest, ins, outs, params, threads):
    honest(ins, outs, params, threads)
    ins[0][...] -= ins[0].max(-1, keepdims=True)


def _one_ulp_up(out: Array) -> None:
    out[...] = np.nextafter(out, out.dtype.type(np.inf))


@vandalises("softmax")
def odd_rows_differ(honest, ins, outs, params, threads):
    honest(ins, outs, params, threads)
    _one_ulp_up(outs[0][:, 1::2])


@vandalises("logsumexp")
def threads_differ(honest, ins, outs, params, threads):
    honest(ins, outs, params, threads)
    if threads > 1:
        _one_ulp_up(outs[0])


@vandalises("softmax")
def unaligned_rows_differ(honest, ins, outs, params, threads):
    honest(ins, outs, params, threads)
    if ins[0].ctypes.data % 16:
        _one_ulp_up(outs[0])


# --- wrong values at the edges ------------------------------------------------


@breaks("softmax logsumexp cross_entropy_index")
def nan_leaks_into_other_rows(right, x, *rest, **params):
    return tuple(np.where(np.isnan(x).any(), np.nan, r) for r in right(x, *rest, **params))


@breaks("softmax logsumexp")
def nan_skipped(right, x, **params):
    return right(np.where(np.isnan(x), -np.inf, x), **params)


@breaks("softmax")
def infinity_wins(right, x, **params):
    hot = x == np.inf
    (y,) = right(x, **params)
    return (np.where(hot.any(-1, keepdims=True), hot, y),)


@breaks("softmax log_softmax cross_entropy_index_grad")
def empty_ignored(right, *operands, empty, **rest):
    return right(*operands, empty=1 - empty, **rest)


@breaks("softmax_jvp log_softmax_jvp logsumexp_jvp log_softmax_vjp")
def zero_times_infinity(right, first, t, *, scale):
    (y,) = right(first, t, scale=scale)
    unguarded = ((first == -np.inf) | (first == 0)) & ~np.isfinite(t)
    return (np.where(unguarded if y.ndim == 2 else unguarded.any(-1), np.nan, y),)


# --- wrong derivatives ------------------------------------------------


@breaks("log_softmax_vjp")
def jvp_for_vjp(right, logp, g, *, scale):
    return OPS["log_softmax_jvp"].definition(logp, g, scale=scale)


@breaks("softmax_jvp")
def tail_of_the_vjp_cancels(right, p, t, *, scale):
    p, t = narrow(p), narrow(t)
    return (p * (t - (p * t).sum(-1, keepdims=True)) * narrow(scale),)


@breaks("softmax_jvp")
def not_divided_by_the_sum_of_p(right, p, t, *, scale):
    dead = p == 0
    t = np.where(dead, 0, t)
    return (np.where(dead, 0, p * (t - (p * t).sum(-1, keepdims=True)) * scale),)


@breaks("softmax_jacobian")
def diagonal_cancels(right, p, *, scale):
    (j,) = right(p, scale=scale)
    i = np.arange(p.shape[1])
    j[:, i, i] = (narrow(p) * (1 - narrow(p))) * scale
    return (j,)


@breaks("softmax_jacobian")
def signs_of_the_jacobian(right, p, *, scale):
    return (-right(p, scale=scale)[0],)


@breaks("log_softmax_jacobian")
def jacobian_transposed(right, logp, *, scale):
    return (np.swapaxes(right(logp, scale=scale)[0], 1, 2),)


@breaks("logsumexp_vjp")
def cotangent_forgotten(right, p, g, *, scale):
    return right(p, np.ones_like(g), scale=scale)


@breaks("logsumexp_weighted")
def sign_lost(right, *operands, **params):
    s, sign = right(*operands, **params)
    return s, np.abs(sign)


# --- wrong losses ------------------------------------------------


@breaks("cross_entropy_index cross_entropy_index_grad")
def label_off_by_one(right, x, y, *rest, **params):
    return right(x, np.where(y == int(params["ignore"]), y, (y + 1) % x.shape[1]), *rest, **params)


@breaks("cross_entropy_index_grad cross_entropy_probs_grad")
def upstream_gradient_ignored(right, x, y, w, v, g, **params):
    return right(x, y, w, v, np.ones_like(g), **params)


@breaks("cross_entropy_index_grad")
def sample_weight_left_out_of_the_gradient(right, x, y, w, v, g, **params):
    return right(x, y, w, v, g, **params)[0], right(x, y, w, np.ones_like(v), g, **params)[1]


@breaks("cross_entropy_probs_grad")
def targets_taken_for_normalised(right, x, t, w, v, g, *, scale, empty, keep, spread, zloss):
    q = w * (keep * t + spread)
    loss, p, _, _ = _ops._loss(x, q, v, scale, zloss, empty)
    return loss, (p - q) * (v * g)[:, None] * scale


@breaks("cross_entropy_index_grad")
def p_minus_one_cancels(right, x, y, w, v, g, *, scale, empty, keep, spread, zloss, ignore):
    q, ignored = _ops._one_hot(x, y, w, keep, spread, ignore)
    loss, p, _, lse = _ops._loss(x, q, v, scale, zloss, empty)
    dx = (narrow(q.sum(-1, keepdims=True) + (2 * zloss * lse if zloss else 0)) * narrow(p) - narrow(q)) * scale
    return np.where(ignored, 0, loss), np.where(ignored[:, None], 0, dx * (v * g)[:, None])


@breaks("cross_entropy_index cross_entropy_probs")
def smoothing_over_the_other_classes(right, x, *rest, spread, **params):
    c = x.shape[1]
    return right(x, *rest, spread=spread * c / max(c - 1, 1), **params)


@breaks("cross_entropy_index cross_entropy_probs cross_entropy_index_grad")
def class_weights_ignored(right, x, y, w, *rest, **params):
    return right(x, y, np.ones_like(w), *rest, **params)


@breaks("cross_entropy_index_grad cross_entropy_probs_grad")
def z_loss_left_out_of_the_gradient(right, *operands, zloss, **params):
    return right(*operands, zloss=zloss, **params)[0], right(*operands, zloss=0 * zloss, **params)[1]


@breaks("cross_entropy_index_grad")
def ignored_rows_times_zero(right, x, y, *rest, **params):
    loss, dx, *extras = right(x, y, *rest, **params)
    return loss, dx + 0 * np.where((y == int(params["ignore"]))[:, None], x, 0), *extras


@breaks("cross_entropy_probs cross_entropy_probs_grad")
def zero_probability_times_infinity(right, x, t, *rest, **params):
    loss, *grad = right(x, t, *rest, **params)
    return np.where(((t == 0) & (x == -np.inf)).any(-1), np.nan, loss), *grad


# --- wrong extras ------------------------------------------------

_LOSSES = "cross_entropy_index cross_entropy_probs cross_entropy_index_grad cross_entropy_probs_grad"


def _changed(right: Callable[..., Any], operands: Any, params: Any, name: str, change: Any) -> list[Array]:
    """Compute honestly but for one output."""
    op = OPS[right.__name__]
    results = list(right(*operands, **params))
    k = [output for output, _ in op.results].index(name)
    results[k] = change(results[k])
    return results


@breaks(_LOSSES)
def last_of_the_largest_predicted(right, x, *rest, **params):
    last = x.shape[1] - 1 - np.argmax(x[:, ::-1], axis=1)
    special = ~np.isfinite(x).all(-1)
    return _changed(right, (x, *rest), params, "top", lambda top: np.where(special, top, last))


@breaks(_LOSSES)
def nan_never_predicted(right, x, *rest, **params):
    largest = np.argmax(np.where(np.isnan(x), -np.inf, x), axis=1)
    return _changed(right, (x, *rest), params, "top", lambda top: np.where(np.isnan(x).any(-1), largest, top))


@breaks(_LOSSES)
def a_class_of_a_row_of_nothing_predicted(right, *operands, **params):
    return _changed(right, operands, params, "top", lambda top: np.maximum(top, 0))


@breaks(_LOSSES)
def logsumexp_of_unscaled_logits(right, x, *rest, **params):
    lse = OPS["logsumexp"].definition(x, scale=1)[0]
    return _changed(right, (x, *rest), params, "lse", lambda _: lse)


@breaks("cross_entropy_index cross_entropy_index_grad")
def ignored_rows_have_no_extras(right, x, y, *rest, **params):
    ignored = y == int(params["ignore"])
    return _changed(right, (x, y, *rest), params, "lse", lambda lse: np.where(ignored, 0, lse))


@breaks("cross_entropy_probs cross_entropy_probs_grad")
def largest_target_is_the_prediction(right, *operands, **params):
    return _changed(right, operands, params, "aim", lambda aim: right(*operands, **params)[-2])


# --- wrong second derivatives ------------------------------------------------


@breaks("cross_entropy_hvp cross_entropy_hessian")
def mass_of_the_targets_forgotten(right, x, y, *rest, **params):
    *u, q, v = rest
    return right(x, y, *u, np.ones_like(q), v, **params)


@breaks("cross_entropy_hvp cross_entropy_hessian cross_entropy_index_hess cross_entropy_probs_hess")
def z_loss_squared_is_taken_for_linear(right, *operands, zloss, **params):
    """Only the curvature of lse counts, not the square of its gradient."""
    *others, last = right(*operands, zloss=zloss, **params)
    *_, without = right(*operands, zloss=0 * zloss, **params)
    return *others, (last + without) / 2


@breaks("cross_entropy_hvp cross_entropy_hessian cross_entropy_index_hess")
def scale_only_once(right, *operands, scale, **params):
    *others, last = right(*operands, scale=scale, **params)
    return *others, last / scale


@breaks("cross_entropy_hvp")
def tail_of_the_hvp_cancels(right, x, y, u, q, v, *, scale, empty, zloss, ignore):
    p = narrow(OPS["softmax"].definition(x, scale=scale, empty=empty)[0])
    u = narrow(np.where(x == -np.inf, 0, u))
    hv = p * (u - (p * u).sum(-1, keepdims=True)) * (q * v * scale**2)[:, None]
    return (np.where((y == int(ignore))[:, None], 0, hv),)


@breaks("cross_entropy_index_hess cross_entropy_probs_hess")
def p_times_one_minus_p_cancels(right, x, *operands, scale, **params):
    *others, hess = right(x, *operands, scale=scale, **params)
    p = narrow(OPS["softmax"].definition(x, scale=scale, empty=1)[0])
    return *others, np.where(1 - p == 0, 0, hess)


@breaks("cross_entropy_index_hess cross_entropy_probs_hess")
def upstream_gradient_left_out_of_the_diagonal(right, x, y, w, v, g, **params):
    return *right(x, y, w, v, g, **params)[:2], right(x, y, w, v, np.ones_like(g), **params)[2]


@breaks("cross_entropy_index_jvp cross_entropy_probs_jvp cross_entropy_hvp")
def excluded_classes_move(right, x, y, u, *rest, **params):
    results = list(right(x, y, u, *rest, **params))
    moved = ((x == -np.inf) & ~np.isfinite(u)).any(-1)
    results[-1] = np.where(moved if results[-1].ndim == 1 else moved[:, None], np.nan, results[-1])
    return tuple(results)


@breaks("cross_entropy_index_jvp")
def tangent_without_sample_weight(right, x, y, u, w, v, **params):
    return right(x, y, u, w, v, **params)[0], right(x, y, u, w, np.ones_like(v), **params)[1]


# --- wrong divergences ------------------------------------------------


@breaks("entropy entropy_grad")
def entropy_without_the_guard(right, x, *rest, **params):
    return tuple(np.where((x == -np.inf).any(-1, keepdims=r.ndim == 2), np.nan, r) for r in right(x, *rest, **params))


@breaks("entropy_grad")
def entropy_slope_cancels(right, x, v, g, *, scale, empty):
    h, p, _ = _ops._entropy(x, scale, empty)
    log_ratio = narrow(np.log(p)) + narrow(h)[:, None]
    return v * h, np.where(p == 0, 0, -p * log_ratio) * (v * g)[:, None] * scale


@breaks("kl_divergence kl_divergence_grad")
def entropy_of_the_target_left_out(right, x, t, v, *g, scale, empty):
    loss, *_ = OPS["cross_entropy_probs"].definition(
        x, t, np.ones_like(x[0]), v, scale=scale, empty=empty, keep=1, spread=0, zloss=0
    )
    return (loss, *right(x, t, v, *g, scale=scale, empty=empty)[1:])


@breaks("kl_divergence")
def logarithm_of_a_zero_target(right, x, t, v, **params):
    return (np.where((t == 0).any(-1), np.nan, right(x, t, v, **params)[0]),)


@breaks("binary_cross_entropy binary_cross_entropy_grad binary_cross_entropy_sum binary_cross_entropy_sum_grad")
def positive_weight_on_the_loss(right, x, y, w, u, *rest, positive, **params):
    return right(x, y, w * u * positive, np.ones_like(u), *rest, positive=1, **params)


@breaks("binary_cross_entropy binary_cross_entropy_sum")
def softplus_overflows(right, x, y, w, u, v, *, scale, positive):
    z = narrow(x * scale)
    loss = np.log1p(np.exp(-z)) * u * positive * y + np.log1p(np.exp(z)) * (1 - y)
    loss = w * v[:, None] * loss
    return (loss if right.__name__ == "binary_cross_entropy" else loss.sum(-1),)


@breaks("binary_cross_entropy_grad binary_cross_entropy_sum_grad")
def sigmoid_minus_label(right, x, y, w, u, v, g, *, scale, positive):
    loss = right(x, y, w, u, v, g, scale=scale, positive=positive)[0]
    p = narrow(1 / (1 + np.exp(-x * scale)))
    cancelled = w * v[:, None] * ((1 - y + u * positive * y) * p - u * positive * y)
    return loss, cancelled * (g if g.ndim == 2 else g[:, None]) * scale
