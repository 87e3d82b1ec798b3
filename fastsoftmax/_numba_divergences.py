"""Numba kernels of the losses that measure distributions: entropy, Kullback-Leibler divergence, binary cross-entropy.

Written in the words of :mod:`fastsoftmax._numba_kernels`.
"""

from __future__ import annotations

import math

from numba import prange

from ._numba_kernels import (
    absolute,
    accumulate,
    accumulate_product,
    any_of,
    checked_max,
    class_weight,
    close_row,
    collapse,
    exp_constants,
    exp_terms,
    fill_row,
    fma,
    fold_any,
    fold_sum,
    helper,
    in_parallel,
    kernel,
    lanes,
    load,
    log1p_pair,
    log_of_sum,
    log_pair,
    nothing,
    only,
    open_row,
    out_row,
    over_sum,
    pair_times,
    per_row,
    pointer_to,
    put_row,
    quotient,
    row_frame,
    rows_at_once,
    scaled_difference,
    scratch,
    select,
    spread,
    store,
    times,
    two_product,
    two_sum,
    unscale,
    widen,
    without_maximum,
)  # fmt: skip

# mypy: ignore-errors
# Numba compiles these functions for types of its own, which no annotation describes.


# --- entropy ------------------------------------------------------------------------------------------------------


@helper
def distances(p, a, k, left, m, e):
    """Return ``x - m`` of a vector of classes; 0 where the term e is 0, since the distance may be infinite there."""
    return select(e == 0.0, nothing(p), widen(load(a, k, left, 0.0)) - m)


@helper
def entropy_rows(x, v, v_all, g, g_all, loss, dx, c, first, last, scale, empty, way, gradient):
    """Compute the entropies and, if asked, their gradients.

    With ``d = x - m`` the entropy is ``log(sum exp(s d)) - s <p, d>``, its gradient ``-s**2 p (d - <p, d>)``.
    """
    px, pv, pg, ploss, pdx = pointer_to(x), pointer_to(v), pointer_to(g), pointer_to(loss), pointer_to(dx)
    tile = scratch(px)
    step = rows_at_once(px, way)
    count = lanes(px)
    n = c * step
    constants = exp_constants(px, scale)
    for r in range(first, last, step):
        a = open_row(px, r, last - r, c, tile, way)
        m, ok = checked_max(a, n, way)
        m0 = select(ok, m, 0.0)
        frame = row_frame(px, m0, scale)
        row = per_row(pv, v.size > 0, v_all, r, last - r, way)
        total, total_lo, _, _, log, log_lo = log_of_sum(px, a, n, constants, frame, m0, a, False, way)
        hi, lo = nothing(px), nothing(px)
        for k in range(0, n, count):
            e = widen(exp_terms(load(a, k, n - k, -math.inf), constants, frame))
            hi, lo = accumulate_product(px, hi, lo, e, distances(px, a, k, n - k, m0, e))
        hi, lo = fold_sum(px, hi, lo, way)
        mean, mean_lo = quotient(hi, lo, total, total_lo)
        far, far_lo = two_product(mean, -scale)
        value, error = two_sum(log, far)
        value = collapse(value, error + (far_lo + (log_lo - scale * mean_lo)))
        bad = without_maximum(m, 0.0 if empty else math.nan)
        put_row(ploss, r, last - r, select(ok, value * row, bad), way)
        if gradient:
            to = out_row(pdx, r, c, tile, way)
            if any_of(ok):
                rate = -scale * scale * row * per_row(pg, g.size > 0, g_all, r, last - r, way)
                hi, lo, after = over_sum(px, total, total_lo, rate)
                special = spread(px, bad)
                for k in range(0, n, count):
                    e = widen(exp_terms(load(a, k, n - k, -math.inf), constants, frame))
                    d = (distances(px, a, k, n - k, m0, e) - mean) - mean_lo
                    store(to, k, n - k, only(ok, spread(px, times(px, e * d, hi, lo) * after), special, way))
            else:
                fill_row(to, n, bad, way)
            close_row(pdx, r, last - r, c, tile, way)


@kernel
def entropy(x, v, v_all, loss, c, first, last, scale, empty, way):
    """``loss = -v sum_c p_c log p_c``."""
    entropy_rows(x, v, v_all, v, v_all, loss, x, c, first, last, scale, empty, way, False)


@kernel
def entropy_grad(x, v, v_all, g, g_all, loss, dx, c, first, last, scale, empty, way):
    """Entropy, and its gradient times g."""
    entropy_rows(x, v, v_all, g, g_all, loss, dx, c, first, last, scale, empty, way, True)


# --- Kullback-Leibler divergence ----------------------------------------------------------------------------------


@helper
def log_ratio(p, x, t, m, scale, log, log_lo):
    """Return ``log t - scale (x - m) + log`` in two parts; anything where t is 0, NaN where it is negative."""
    tiny = t < 2.0**-1022
    u = select(t == 0.0, nothing(p) + 1.0, select(tiny, t * 2.0**54, t))
    hi, lo = log_pair(u, 0.0, select(t == 0.0, nothing(p), select(tiny, nothing(p) + 54.0, nothing(p))))
    hi = select(t < 0.0, nothing(p) + math.nan, hi)
    far, far_lo = scaled_difference(nothing(p) + m, x, scale)
    hi, error = two_sum(hi, far)
    lo = lo + (far_lo + error)
    hi, error = two_sum(hi, nothing(p) + log)
    lo = lo + (error + log_lo)
    return hi, select(absolute(hi) < math.inf, lo, 0.0)


@helper
def divergence_rows(x, t, v, v_all, g, g_all, loss, dx, c, first, last, scale, empty, way, gradient):
    """Compute the divergences and, if asked, their gradients, which are those of the cross-entropy."""
    px, pt, pv, pg = pointer_to(x), pointer_to(t), pointer_to(v), pointer_to(g)
    ploss, pdx = pointer_to(loss), pointer_to(dx)
    tile, other = scratch(px), scratch(px)
    step = rows_at_once(px, way)
    count = lanes(px)
    n = c * step
    constants = exp_constants(px, scale)
    zero = spread(px, 0.0)
    for r in range(first, last, step):
        a = open_row(px, r, last - r, c, tile, way)
        b = open_row(pt, r, last - r, c, other, way)
        m, ok = checked_max(a, n, way)
        m0 = select(ok, m, 0.0)
        frame = row_frame(px, m0, scale)
        row = per_row(pv, v.size > 0, v_all, r, last - r, way)
        total, total_lo, rest, top, log, log_lo = log_of_sum(px, a, n, constants, frame, m0, a, False, way)
        mass, mass_lo, hi, lo = nothing(px), nothing(px), nothing(px), nothing(px)
        any_target = zero != zero
        for k in range(0, n, count):
            single = load(b, k, n - k, 0.0)
            q = widen(single)
            mass, mass_lo = accumulate(px, mass, mass_lo, q)
            ratio, ratio_lo = log_ratio(px, widen(load(a, k, n - k, 0.0)), q, m0, scale, log, log_lo)
            ratio = select(q == 0.0, nothing(px), ratio)
            hi, lo = accumulate_product(px, hi, lo, q, ratio)
            lo = fma(q, select(q == 0.0, nothing(px), ratio_lo), lo)
            any_target = any_target | (single != 0.0)
        mass, mass_lo = fold_sum(px, mass, mass_lo, way)
        mass = collapse(mass, mass_lo)
        hi, lo = fold_sum(px, hi, lo, way)
        # A NaN among the logits shows in the log only, if no target is on it.
        value = select(mass == math.inf, math.inf, collapse(hi, lo)) + 0.0 * log
        endless = select(fold_any(px, any_target, way), math.inf, 0.0)
        endless = select(endless == 0.0, 0.0, endless * row) + 0.0 * mass
        put_row(
            ploss,
            r,
            last - r,
            select(ok, value * row, without_maximum(m, endless if empty else endless * math.nan)),
            way,
        )
        if gradient:
            to = out_row(pdx, r, c, tile, way)
            rate = row * per_row(pg, g.size > 0, g_all, r, last - r, way) * scale
            bad = without_maximum(m, 0.0 if empty else math.nan)
            if any_of(ok):
                hi, lo, after = over_sum(px, total, total_lo, rate)
                special = spread(px, bad)
                for k in range(0, n, count):
                    e = widen(exp_terms(load(a, k, n - k, 0.0), constants, frame))
                    q = widen(load(b, k, n - k, 0.0))
                    others = select(e == top, nothing(px) + rest, total - e)
                    z = times(px, (mass - q) * e - q * others, hi, lo)
                    store(to, k, n - k, only(ok, spread(px, z * after), special, way))
            else:
                fill_row(to, n, bad, way)
            close_row(pdx, r, last - r, c, tile, way)


@kernel
def kl_divergence(x, t, v, v_all, loss, c, first, last, scale, empty, way):
    """``loss = v sum_c t_c (log t_c - log p_c)``."""
    divergence_rows(x, t, v, v_all, v, v_all, loss, x, c, first, last, scale, empty, way, False)


@kernel
def kl_divergence_grad(x, t, v, v_all, g, g_all, loss, dx, c, first, last, scale, empty, way):
    """Divergence, and its gradient times g."""
    divergence_rows(x, t, v, v_all, g, g_all, loss, dx, c, first, last, scale, empty, way, True)


# --- binary cross-entropy -----------------------------------------------------------------------------------------


@helper
def binary_parts(p, x, y, u, constants, frame, scale):
    """Return a loss as ``against a + log unscale`` and its derivative by ``scale x`` as ``slope unscale``.

    With ``a = |scale x|``, ``e = exp(-a)``, ``against`` the part of the label that x is wrong about, ``right`` the
    other: ``loss = against a + (against + right) log1p(e)``, ``slope = +-(against - right e) / (1 + e)``.
    """
    up = 1.0 / unscale(p)
    a = absolute(x)
    term = widen(exp_terms(-1.0 * a, constants, frame))
    e = term * unscale(p)
    log, log_lo = log1p_pair(e, 0.0)
    log = select(e < 2.0**-60, term, (log + log_lo) * up)
    below = widen(x) < 0.0
    q = widen(y)
    no, yes = 1.0 - q, u * q
    against, right = select(below, yes, no), select(below, no, yes)
    # Divided with one rounding, since several products follow.
    size = against * up - right * term
    whole, lost = two_sum(nothing(p) + 1.0, e)
    inverse = 1.0 / whole
    slope = size * inverse
    nearer = fma(fma(-1.0 * slope, lost, fma(-1.0 * slope, whole, size)), inverse, slope)
    slope = select(nearer == nearer, nearer, slope)  # but not an infinite one
    return against, widen(a) * scale, (no + yes) * log, select(below, -1.0 * slope, slope)


@helper
def weighed(p, a, hi, lo):
    """Return ``a (hi + lo)``, where an infinite a needs no second part."""
    y = times(p, a, hi, lo)
    return select(y == y, y, a * hi)


@helper
def binary_rows(
    x, y, w, u, v, v_all, g, g_all, loss, dx, c, first, last, scale, positive, way, summed, gradient
):  # fmt: skip
    """Compute losses, or their sums, and, if asked, gradients; summed, g is a number per row."""
    px, py, pw, pu, pv, pg = (
        pointer_to(x), pointer_to(y), pointer_to(w), pointer_to(u), pointer_to(v), pointer_to(g)
    )  # fmt: skip
    ploss, pdx = pointer_to(loss), pointer_to(dx)
    tile, tile_y, tile_g = scratch(px), scratch(px), scratch(px)
    step = rows_at_once(px, way)
    n = c * step
    constants = exp_constants(px, scale)
    frame = row_frame(px, 0.0, scale)
    unit = unscale(px)
    for r in range(first, last, step):
        a = open_row(px, r, last - r, c, tile, way)
        b = open_row(py, r, last - r, c, tile_y, way)
        row = per_row(pv, v.size > 0, v_all, r, last - r, way)
        rate, rate_lo = two_product(row, scale)
        upstream = a
        if gradient:
            if summed:
                rate, rate_lo = pair_times(per_row(pg, g.size > 0, g_all, r, last - r, way), rate, rate_lo)
            else:
                upstream = open_row(pg, r, last - r, c, tile_g, way)
        to_loss = out_row(ploss, r, c, tile_y, way) if not summed else a
        to_slope = out_row(pdx, r, c, tile, way)
        hi, lo, high, low = nothing(px), nothing(px), nothing(px), nothing(px)
        for k in range(0, n, lanes(px)):
            left = n - k
            ux = widen(class_weight(pu, u.size, k, left, way)) * positive
            wx = widen(class_weight(pw, w.size, k, left, way))
            label = load(b, k, left, 0.0)
            against, distance, log, slope = binary_parts(
                px, load(a, k, left, -math.inf), label, ux, constants, frame, scale
            )
            if gradient:
                slope = weighed(px, slope, *pair_times(wx, rate, rate_lo))
                if not summed:
                    slope = slope * widen(load(upstream, k, left, 0.0))
            if summed:
                linear = against * wx
                hi, lo = accumulate(px, hi, lo, select(linear == 0.0, nothing(px), linear * distance))
                high, low = accumulate(px, high, low, log * wx)
            else:
                factor, lost = two_product(wx, row)
                linear = select(against == 0.0, nothing(px), weighed(px, against, factor, lost) * distance)
                store(to_loss, k, left, spread(px, fma(weighed(px, log, factor, lost), unit, linear)))
            if gradient:
                store(to_slope, k, left, spread(px, slope * unit))
        if summed:
            hi, lo = fold_sum(px, hi, lo, way)
            high, low = fold_sum(px, high, low, way)
            value, error = two_sum(hi, collapse(high, low) * unit)
            put_row(ploss, r, last - r, collapse(value, lo + error) * row, way)
        else:
            close_row(ploss, r, last - r, c, tile_y, way)
        if gradient:
            close_row(pdx, r, last - r, c, tile, way)


@kernel
def binary_cross_entropy(x, y, w, u, v, v_all, loss, c, first, last, scale, positive, way):
    """Losses of the elements."""
    binary_rows(x, y, w, u, v, v_all, v, v_all, loss, x, c, first, last, scale, positive, way, False, False)


@kernel
def binary_cross_entropy_grad(x, y, w, u, v, v_all, g, loss, dx, c, first, last, scale, positive, way):
    """Losses of the elements, and their derivatives times g."""
    binary_rows(x, y, w, u, v, v_all, g, v_all, loss, dx, c, first, last, scale, positive, way, False, True)


@kernel
def binary_cross_entropy_sum(x, y, w, u, v, v_all, loss, c, first, last, scale, positive, way):
    """Sum of the losses of a row's elements."""
    binary_rows(x, y, w, u, v, v_all, v, v_all, loss, x, c, first, last, scale, positive, way, True, False)


@kernel
def binary_cross_entropy_sum_grad(
    x, y, w, u, v, v_all, g, g_all, loss, dx, c, first, last, scale, positive, way
):  # fmt: skip
    """Sum of the losses of a row's elements, and its gradient times g."""
    binary_rows(x, y, w, u, v, v_all, g, g_all, loss, dx, c, first, last, scale, positive, way, True, True)


# --- the same on several threads ----------------------------------------------------------------------------------


@in_parallel
def entropy_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        entropy(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def entropy_grad_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        entropy_grad(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def kl_divergence_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        kl_divergence(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def kl_divergence_grad_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        kl_divergence_grad(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def binary_cross_entropy_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        binary_cross_entropy(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def binary_cross_entropy_grad_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        binary_cross_entropy_grad(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def binary_cross_entropy_sum_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        binary_cross_entropy_sum(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def binary_cross_entropy_sum_grad_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        binary_cross_entropy_sum_grad(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)
