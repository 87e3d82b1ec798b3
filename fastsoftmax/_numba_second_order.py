"""The Numba backend's kernels of the losses' derivatives along a direction and of second order.

Losses and gradients are computed by the functions of :mod:`fastsoftmax._numba_kernels`; what is added here is computed
from the logits again, row by row, while they are in cache.  The mathematics is that of the table.
"""

from __future__ import annotations

import math

from numba import prange

from ._numba_kernels import (
    accumulate,
    accumulate_product,
    add_product,
    any_of,
    checked_max,
    class_weight,
    close_row,
    collapse,
    existing,
    exp_constants,
    exp_terms,
    fill_row,
    fma,
    fold_sum,
    gather,
    helper,
    in_parallel,
    index_rows,
    is_single,
    kernel,
    labels,
    lanes,
    load,
    log_of_sum,
    minus,
    nothing,
    offset,
    only,
    open_row,
    out_row,
    over_sum,
    pair_times,
    per_row,
    pointer_to,
    probs_rows,
    put_row,
    quotient,
    reference_value,
    row_frame,
    rows_at_once,
    scratch,
    select,
    spread,
    store,
    times,
    two_sum,
    unscale,
    widen,
    widened,
    without_maximum,
)  # fmt: skip

# mypy: ignore-errors
# Numba compiles these functions for types of its own, which no annotation describes.


@helper
def softmax_of(p, a, n, constants, scale, m0, way):
    """Return a row's frame, what :func:`log_of_sum` returns first of it, and its logsumexp."""
    frame = row_frame(p, m0, scale)
    total, total_lo, rest, top, log, log_lo = log_of_sum(p, a, n, constants, frame, m0, a, False, way)
    lse, lse_lo = add_product(log, log_lo, m0, scale)
    return frame, total, total_lo, rest, top, collapse(lse, lse_lo)


@helper
def direction(p, a, b, k, left, ref):
    """Return u relative to a number per row, in two parts: u is 0 where the logit is -inf."""
    dead = widen(load(a, k, left, -math.inf)) == -math.inf
    u = select(dead, nothing(p), widen(load(b, k, left, 0.0)))
    h, h_lo = minus(p, u, nothing(p), ref, 0.0)
    beyond = existing(p, left)
    return select(beyond, h, nothing(p)), select(beyond, h_lo, nothing(p))


@helper
def mean_along(p, a, b, n, constants, frame, ref, total, total_lo, way):
    """Return ``<p, u - ref>`` in two parts."""
    dot, dot_lo = nothing(p), nothing(p)
    for k in range(0, n, lanes(p)):
        e = widen(exp_terms(load(a, k, n - k, -math.inf), constants, frame))
        h, h_lo = direction(p, a, b, k, n - k, ref)
        dot, dot_lo = accumulate_product(p, dot, dot_lo, e, h)
        if not is_single(p):
            dot_lo = fma(e, h_lo, dot_lo)
    dot, dot_lo = fold_sum(p, dot, dot_lo, way)
    dot, dot_lo = two_sum(dot, dot_lo)
    return quotient(dot, dot_lo, total, total_lo)


@helper
def weight_sum(w, count, c):
    """Return the sum of the class weights."""
    if count == 1:
        return widened(w, 0) * c
    s, s_lo = 0.0, 0.0
    for i in range(c):
        s, error = two_sum(s, widened(w, i))
        s_lo += error
    return s + s_lo


@helper
def index_mass(x, w, label, keep, spread_, weights, way):
    """Return what the targets of a row sum to, given its class index."""
    return gather(w, label, x, 0, way) * keep + spread_ * weights


@helper
def target_at(t, w, count, k, left, keep, spread_, way):
    """Return ``q = w (keep t + spread)`` for a vector of classes; 0 beyond the last."""
    q = fma(widen(load(t, k, left, 0.0)), keep, spread_) * widen(class_weight(w, count, k, left, way))
    return select(existing(t, left), q, nothing(t))


@helper
def probs_mass(p, b, w, count, n, keep, spread_, way):
    """Return what the targets of a row sum to, given probabilities."""
    s, s_lo = nothing(p), nothing(p)
    for k in range(0, n, lanes(p)):
        s, s_lo = accumulate(p, s, s_lo, target_at(b, w, count, k, n - k, keep, spread_, way))
    s, s_lo = fold_sum(p, s, s_lo, way)
    return collapse(s, s_lo)


# --- loss, gradient, diagonal -------------------------------------------------------------------------------------


@helper
def diagonal_row(p, a, n, constants, scale, to, mass, rate, excess, zloss, empty, valid, way):
    """Write ``rate p (curvature (1 - p) + 2 zloss p) (1 + excess)``."""
    m, ok = checked_max(a, n, way)
    frame, total, total_lo, rest, top, lse = softmax_of(p, a, n, constants, scale, select(ok, m, 0.0), way)
    bad = select(valid, without_maximum(m, 0.0 if empty else math.nan), 0.0)
    good = valid & ok
    if any_of(good):
        curvature = mass + 2.0 * zloss * lse if zloss != 0.0 else mass
        hi, lo, after = over_sum(p, total, total_lo, rate)
        inverse, inverse_lo = quotient(1.0, 0.0, total, total_lo)
        special = spread(p, bad)
        # Not 0, which would make NaN of an infinite result; a finite one is not changed.
        excess = max(excess, 2.0**-60)
        for k in range(0, n, lanes(p)):
            e = widen(exp_terms(load(a, k, n - k, 0.0), constants, frame))
            not_p, not_p_lo = pair_times(select(e == top, nothing(p) + rest, total - e), inverse, inverse_lo)
            z, z_lo = pair_times(curvature, not_p, not_p_lo)
            if zloss != 0.0:
                z, z_lo = add_product(z, z_lo, e * inverse, 2.0 * zloss)
            z = times(p, e, hi, lo) * (z + z_lo) * after
            store(to, k, n - k, only(good, spread(p, fma(z, excess, z)), special, way))
    else:
        fill_row(to, n, bad, way)


@kernel
def cross_entropy_index_hess(
    x, y, w, v, v_all, g, g_all, loss, dx, hess, c, first, last, scale, empty, keep, spread_, zloss, ignore, excess, way
):
    """Loss against class indices, its gradient times g, and its Hessian's diagonal times g (1 + excess)."""
    px, py, pw, pv, pg, ph = pointer_to(x), pointer_to(y), pointer_to(w), pointer_to(v), pointer_to(g), pointer_to(hess)
    tile = scratch(px)
    step = rows_at_once(px, way)
    n = c * step
    constants = exp_constants(px, scale)
    weights = weight_sum(pw, w.size, c) if spread_ != 0.0 else 0.0
    # Whichever result takes the place of the logits is written last.
    gradient_turn = 0 if hess.ctypes.data == x.ctypes.data else 1
    for r in range(first, last, step):
        for turn in range(2):
            if turn == gradient_turn:
                index_rows(
                    x, y, w, v, v_all, g, g_all, loss, dx, None, None, c, r, min(r + step, last), scale, empty, keep,
                    spread_, zloss, ignore, way, True,
                )  # fmt: skip
            else:
                label = labels(px, py, r, last - r, way)
                valid = label != int(ignore)
                a = open_row(px, r, last - r, c, tile, way)
                to = out_row(ph, r, c, tile, way)
                mass = index_mass(1 if w.size > 1 else 0, pw, select(valid, label, 0), keep, spread_, weights, way)
                rate = per_row(pv, v.size > 0, v_all, r, last - r, way) * scale
                rate = rate * per_row(pg, g.size > 0, g_all, r, last - r, way) * scale
                diagonal_row(px, a, n, constants, scale, to, mass, rate, excess, zloss, empty, valid, way)
                close_row(ph, r, last - r, c, tile, way)


@kernel
def cross_entropy_probs_hess(
    x, t, w, v, v_all, g, g_all, loss, dx, hess, c, first, last, scale, empty, keep, spread_, zloss, excess, way
):
    """Loss against probabilities, its gradient times g, and its Hessian's diagonal times g (1 + excess)."""
    px, pt, pw, pv, pg, ph = pointer_to(x), pointer_to(t), pointer_to(w), pointer_to(v), pointer_to(g), pointer_to(hess)
    tile, other = scratch(px), scratch(px)
    step = rows_at_once(px, way)
    n = c * step
    constants = exp_constants(px, scale)
    gradient_turn = 0 if hess.ctypes.data == x.ctypes.data or hess.ctypes.data == t.ctypes.data else 1
    for r in range(first, last, step):
        for turn in range(2):
            if turn == gradient_turn:
                probs_rows(
                    x, t, w, v, v_all, g, g_all, loss, dx, None, None, None, c, r, min(r + step, last), scale, empty,
                    keep, spread_, zloss, way, True,
                )  # fmt: skip
            else:
                a = open_row(px, r, last - r, c, tile, way)
                b = open_row(pt, r, last - r, c, other, way)
                to = out_row(ph, r, c, tile, way)
                mass = probs_mass(px, b, pw, w.size, n, keep, spread_, way)
                rate = per_row(pv, v.size > 0, v_all, r, last - r, way) * scale
                rate = rate * per_row(pg, g.size > 0, g_all, r, last - r, way) * scale
                diagonal_row(px, a, n, constants, scale, to, mass, rate, excess, zloss, empty, mass == mass, way)
                close_row(ph, r, last - r, c, tile, way)


# --- loss and its derivative along a direction --------------------------------------------------------------------


@kernel
def cross_entropy_index_jvp(
    x, y, u, w, v, v_all, loss, slope, c, first, last, scale, empty, keep, spread_, zloss, ignore, way
):
    """Loss against class indices, and its derivative along u."""
    px, py, pu, pw, pv, ps = (
        pointer_to(x),
        pointer_to(y),
        pointer_to(u),
        pointer_to(w),
        pointer_to(v),
        pointer_to(slope),
    )
    tile, other = scratch(px), scratch(px)
    step = rows_at_once(px, way)
    n = c * step
    constants = exp_constants(px, scale)
    weights = weight_sum(pw, w.size, c) if spread_ != 0.0 else 0.0
    index_rows(
        x, y, w, v, v_all, v, v_all, loss, x, None, None, c, first, last, scale, empty, keep, spread_, zloss, ignore,
        way, False,
    )  # fmt: skip
    for r in range(first, last, step):
        label = labels(px, py, r, last - r, way)
        valid = label != int(ignore)
        label = select(valid, label, 0)
        a = open_row(px, r, last - r, c, tile, way)
        b = open_row(pu, r, last - r, c, other, way)
        m, ok = checked_max(a, n, way)
        frame, total, total_lo, _, _, lse = softmax_of(px, a, n, constants, scale, select(ok, m, 0.0), way)
        # The gradient sums to 2 zloss lse: the direction may be taken relative to the target's.
        ref = select(gather(a, label, step, 1, way) == -math.inf, 0.0, gather(b, label, step, 1, way))
        mean, mean_lo = mean_along(px, a, b, n, constants, frame, ref, total, total_lo, way)
        z = index_mass(1 if w.size > 1 else 0, pw, label, keep, spread_, weights, way) * (mean + mean_lo)
        if spread_ != 0.0:
            even, even_lo = nothing(px), nothing(px)
            for k in range(0, n, lanes(px)):
                wc = widen(class_weight(pw, w.size, k, n - k, way))
                h, h_lo = direction(px, a, b, k, n - k, ref)
                even, even_lo = accumulate_product(px, even, even_lo, wc, h)
                if not is_single(px):
                    even_lo = fma(wc, h_lo, even_lo)
            even, even_lo = fold_sum(px, even, even_lo, way)
            z = z - spread_ * collapse(even, even_lo)
        if zloss != 0.0:
            z = z + 2.0 * zloss * lse * (ref + mean)
        z = select(ok, z * per_row(pv, v.size > 0, v_all, r, last - r, way) * scale, without_maximum(m, 0.0))
        z = select(valid, z if empty else select(m == -math.inf, math.nan, z), 0.0)
        put_row(ps, r, last - r, z, way)


@kernel
def cross_entropy_probs_jvp(x, t, u, w, v, v_all, loss, slope, c, first, last, scale, empty, keep, spread_, zloss, way):
    """Loss against probabilities, and its derivative along u."""
    px, pt, pu, pw, pv, ps = (
        pointer_to(x),
        pointer_to(t),
        pointer_to(u),
        pointer_to(w),
        pointer_to(v),
        pointer_to(slope),
    )
    tile, other, third = scratch(px), scratch(px), scratch(px)
    step = rows_at_once(px, way)
    n = c * step
    constants = exp_constants(px, scale)
    probs_rows(
        x,
        t,
        w,
        v,
        v_all,
        v,
        v_all,
        loss,
        x,
        None,
        None,
        None,
        c,
        first,
        last,
        scale,
        empty,
        keep,
        spread_,
        zloss,
        way,
        False,
    )
    for r in range(first, last, step):
        a = open_row(px, r, last - r, c, tile, way)
        b = open_row(pt, r, last - r, c, other, way)
        d = open_row(pu, r, last - r, c, third, way)
        m, ok = checked_max(a, n, way)
        frame, total, _, rest, top, lse = softmax_of(px, a, n, constants, scale, select(ok, m, 0.0), way)
        mass = probs_mass(px, b, pw, w.size, n, keep, spread_, way)
        if zloss != 0.0:
            mass = mass + 2.0 * zloss * lse
        inverse = 1.0 / total
        dot, dot_lo = nothing(px), nothing(px)
        for k in range(0, n, lanes(px)):
            e = widen(exp_terms(load(a, k, n - k, -math.inf), constants, frame))
            others = select(e == top, nothing(px) + rest, total - e)
            q = target_at(b, pw, w.size, k, n - k, keep, spread_, way)
            h = direction(px, a, d, k, n - k, 0.0 * m)[0]
            dot, dot_lo = accumulate_product(px, dot, dot_lo, ((mass - q) * e - q * others) * inverse, h)
        dot, dot_lo = fold_sum(px, dot, dot_lo, way)
        z = collapse(dot, dot_lo) * per_row(pv, v.size > 0, v_all, r, last - r, way) * scale
        z = select(ok, z, without_maximum(m, 0.0))
        put_row(ps, r, last - r, z if empty else select(m == -math.inf, math.nan, z), way)


# --- Hessian ------------------------------------------------------------------------------------------------------


@kernel
def cross_entropy_hvp(x, y, u, q, q_all, v, v_all, hv, c, first, last, scale, empty, zloss, ignore, way):
    """``hv = scale**2 H u``."""
    px, py, pu, pq, pv, to_p = pointer_to(x), pointer_to(y), pointer_to(u), pointer_to(q), pointer_to(v), pointer_to(hv)
    tile, other = scratch(px), scratch(px)
    step = rows_at_once(px, way)
    n = c * step
    constants = exp_constants(px, scale)
    for r in range(first, last, step):
        valid = labels(px, py, r, last - r, way) != int(ignore)
        a = open_row(px, r, last - r, c, tile, way)
        b = open_row(pu, r, last - r, c, other, way)
        to = out_row(to_p, r, c, tile, way)
        m, ok = checked_max(a, n, way)
        frame, total, total_lo, _, _, lse = softmax_of(px, a, n, constants, scale, select(ok, m, 0.0), way)
        bad = select(valid, without_maximum(m, 0.0 if empty else math.nan), 0.0)
        good = valid & ok
        if any_of(good):
            ref = reference_value(px, a, b, n, way)
            mean, mean_lo = mean_along(px, a, b, n, constants, frame, ref, total, total_lo, way)
            curvature = per_row(pq, q.size > 0, q_all, r, last - r, way)
            level = 0.0 * mean
            if zloss != 0.0:
                curvature = curvature + 2.0 * zloss * lse
                level = 2.0 * zloss * (ref + mean)
            rate = per_row(pv, v.size > 0, v_all, r, last - r, way) * scale * scale
            hi, lo, after = over_sum(px, total, total_lo, rate)
            special = spread(px, bad)
            for k in range(0, n, lanes(px)):
                e = widen(exp_terms(load(a, k, n - k, 0.0), constants, frame))
                h, h_lo = direction(px, a, b, k, n - k, ref)
                h, _ = minus(px, h, h_lo, mean, mean_lo)
                z = times(px, e * (h * curvature + level), hi, lo) * after
                store(to, k, n - k, only(good, spread(px, select(e == 0.0, nothing(px), z)), special, way))
        else:
            fill_row(to, n, bad, way)
        close_row(to_p, r, last - r, c, tile, way)


@kernel
def cross_entropy_hessian(x, y, q, q_all, v, v_all, h, c, first, last, scale, empty, zloss, ignore, way):
    """``h = scale**2 H``."""
    px, py, pq, pv, ph = pointer_to(x), pointer_to(y), pointer_to(q), pointer_to(v), pointer_to(h)
    constants = exp_constants(px, scale)
    for r in range(first, last):
        a = offset(px, r * c)
        m, ok = checked_max(a, c, way)
        valid = labels(px, py, r, 1, way) != int(ignore)
        if not (ok and valid):
            bad = without_maximum(m, 0.0 if empty else math.nan) if valid else 0.0
            fill_row(offset(ph, r * c * c), c * c, bad, way)
            continue
        frame, total, total_lo, rest, top, lse = softmax_of(px, a, c, constants, scale, m, way)
        curvature = per_row(pq, q.size > 0, q_all, r, 1, way) + 2.0 * zloss * lse
        rate = per_row(pv, v.size > 0, v_all, r, 1, way) * scale * scale
        inverse, inverse_lo = quotient(1.0, 0.0, total, total_lo)
        outer = rate * (2.0 * zloss - curvature)
        # The terms are kept in the last row of the matrix, which is computed last.
        model = offset(ph, (r * c + c - 1) * c)
        for k in range(0, c, lanes(px)):
            store(model, k, c - k, exp_terms(load(a, k, c - k, -math.inf), constants, frame))
        for i in range(c):
            to = offset(ph, (r * c + i) * c)
            e = widened(model, i)
            p, p_lo = pair_times(e, inverse, inverse_lo)
            # Terms and what they are multiplied by keep their distance from 0 till the last.
            f, f_lo = pair_times(outer, p, p_lo)
            f, f_lo = pair_times(inverse / unscale(px), f, f_lo)
            for k in range(0, c, lanes(px)):
                z = times(px, widen(load(model, k, c - k, 0.0)), f, f_lo) * unscale(px)
                store(to, k, c - k, spread(px, z))
            not_p, not_p_lo = pair_times(rest if e == top else total - e, inverse, inverse_lo)
            z, z_lo = pair_times(curvature, not_p, not_p_lo)
            z, z_lo = add_product(z, z_lo, 2.0 * zloss, p)
            put_row(to, i, 1, collapse(p * z, fma(p, z_lo, p_lo * z)) * rate, way)


# --- the same on several threads ----------------------------------------------------------------------------------


@in_parallel
def cross_entropy_index_hess_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_index_hess(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def cross_entropy_probs_hess_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_probs_hess(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def cross_entropy_index_jvp_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_index_jvp(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def cross_entropy_probs_jvp_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_probs_jvp(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def cross_entropy_hvp_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_hvp(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def cross_entropy_hessian_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_hessian(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)
