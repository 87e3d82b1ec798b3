"""Truths that need no reference: each law holds in every room and dtype.

A law is a function of the dtype, in terms of the public functions; the saboteurs face the same laws.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from checks import LD, assert_close, assert_same_bits, distance, ulp
from rooms import Room

import fastsoftmax as fs
from fastsoftmax._ops import Array

Law = Callable[[np.dtype], None]
LAWS: list[Law] = []
SHAPES = ((17, 10), (5, 97), (2, 1021), (6, 1), (9, 2))


def law(f: Law) -> Law:
    LAWS.append(f)
    return f


@pytest.mark.parametrize("check", LAWS, ids=lambda f: f.__name__)
def test_law(room: Room, dtype: np.dtype, check: Law) -> None:
    check(dtype)


def logits(dtype: np.dtype, shape: tuple[int, int], sigma: float = 3, seed: int = 0) -> Array:
    return np.random.default_rng(seed + shape[1]).normal(0, sigma, shape).astype(dtype)


def vectors(dtype: np.dtype, shape: tuple[int, ...], seed: int = 1) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def within(actual: Array, expected: Array, size: Array, eps: float, what: str) -> None:
    """Assert |actual - expected| <= eps * size, in longdouble."""
    error = np.abs(np.asarray(actual, LD) - np.asarray(expected, LD))
    worst = float((error / np.maximum(size, np.finfo(LD).tiny)).max())
    assert (error <= eps * size).all(), f"{what}: off by {worst:.3g} of the size of its terms, allowed {eps:.3g}"


def eps_of(dtype: np.dtype, times: float) -> float:
    return times * float(np.finfo(dtype).eps)


# --- forward ------------------------------------------------


@law
def shift_invariance(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x = (np.round(logits(dtype, shape) * 64) / 64).astype(dtype)  # so that the shifts below are exact
        for shift in (1.0, -1024.0, 16384.0):
            moved = x + dtype.type(shift)
            assert (moved - dtype.type(shift) == x).all()
            assert_close(fs.softmax(moved), fs.softmax(x).astype(LD), 4, what="softmax(x + k)")
            assert_close(fs.log_softmax(moved), fs.log_softmax(x).astype(LD), 4, what="log_softmax(x + k)")
            lse, base = fs.logsumexp(moved), fs.logsumexp(x).astype(LD) + shift
            assert_close(lse, base, 5, np.maximum(np.abs(base), np.maximum(1, abs(shift))), "logsumexp(x + k)")


@law
def sums_to_one(dtype: np.dtype) -> None:
    for shape in SHAPES:
        for sigma in (0.1, 3, 100):
            p = fs.softmax(logits(dtype, shape, sigma))
            assert (p >= 0).all()
            assert (p <= 1).all()
            within(p.astype(LD).sum(-1), np.ones(shape[0]), 1, eps_of(dtype, 4), "sum of a softmax")


@law
def exp_of_log_softmax(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x = logits(dtype, shape)
        logp = fs.log_softmax(x).astype(LD)
        p = np.exp(logp)
        assert_close(fs.softmax(x), p, 6, p * np.maximum(1, np.abs(logp)), "exp(log_softmax)")


@law
def logsumexp_lies_between(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x = logits(dtype, shape)
        lse, m = fs.logsumexp(x), x.max(-1)
        assert (lse >= m).all()
        assert (lse <= (m + np.log(shape[1])) * (1 + np.sign(m) * eps_of(dtype, 4)) + eps_of(dtype, 4)).all()


@law
def order_is_kept(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x = np.sort(logits(dtype, shape), axis=-1)
        apart = np.diff(x) > eps_of(dtype, 32)
        for f in (fs.softmax, fs.log_softmax):
            rises = np.diff(f(x)) > 0
            assert rises[apart].all(), f"{f.__name__} does not keep the order of the logits"
        equal = np.repeat(x[:, :1], shape[1], axis=1)
        p = fs.softmax(equal)
        assert (p == p[:, :1]).all(), "equal logits with unequal probabilities"


@law
def permutation_of_classes(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x = logits(dtype, shape)
        k = np.random.default_rng(5).permutation(shape[1])
        assert_close(fs.softmax(x[:, k]), fs.softmax(x)[:, k].astype(LD), 4, what="softmax of permuted classes")
        assert_close(fs.log_softmax(x[:, k]), fs.log_softmax(x)[:, k].astype(LD), 4, what="log_softmax, permuted")
        y = np.arange(shape[0]) % shape[1]
        back = np.argsort(k)
        a = fs.cross_entropy(x, y, reduction="none")
        b = fs.cross_entropy(x[:, k], back[y], reduction="none")
        assert_close(b, a.astype(LD), 4, what="cross_entropy of permuted classes")


# --- derivatives ------------------------------------------------


@law
def jvp_and_vjp_are_adjoint(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x = logits(dtype, shape)
        t, g = vectors(dtype, shape, 1).astype(LD), vectors(dtype, shape, 2).astype(LD)
        td, gd = t.astype(dtype), g.astype(dtype)
        p, logp = fs.softmax(x), fs.log_softmax(x)
        eps = eps_of(dtype, 32)
        for scale in (1.0, -0.5):
            for name, jvp, vjp, saved in (
                ("softmax", fs.softmax_jvp, fs.softmax_vjp, p),
                ("log_softmax", fs.log_softmax_jvp, fs.log_softmax_vjp, logp),
            ):
                a, b = jvp(saved, td, scale=scale).astype(LD), vjp(saved, gd, scale=scale).astype(LD)
                size = (np.abs(a * g) + np.abs(t * b)).sum(-1) + (np.abs(g).sum(-1) * (p * np.abs(t)).sum(-1))
                within((a * g).sum(-1), (t * b).sum(-1), size, eps, f"<J t, g> = <t, J' g> of {name}")
            g1 = gd[:, 0]
            a = fs.logsumexp_jvp(p, td, scale=scale).astype(LD) * g1
            b = (t * fs.logsumexp_vjp(p, g1, scale=scale)).sum(-1)
            within(a, b, np.abs(t * p * g[:, :1]).sum(-1), eps, "<J t, g> = <t, J' g> of logsumexp")


@law
def jacobian_times_tangent(dtype: np.dtype) -> None:
    for shape in SHAPES[:2]:
        x, t = logits(dtype, shape), vectors(dtype, shape)
        for name, jvp, vjp, jacobian, saved in (
            ("softmax", fs.softmax_jvp, fs.softmax_vjp, fs.softmax_jacobian, fs.softmax(x)),
            ("log_softmax", fs.log_softmax_jvp, fs.log_softmax_vjp, fs.log_softmax_jacobian, fs.log_softmax(x)),
        ):
            for scale in (1.0, 2.5):
                j = jacobian(saved, scale=scale).astype(LD)
                assert j.shape == (*shape, shape[1])
                terms = np.abs(j) @ np.abs(t[..., None]).astype(LD)
                within(jvp(saved, t, scale=scale), (j @ t[..., None])[..., 0], terms[..., 0], eps_of(dtype, 32), name)
                terms = np.abs(np.swapaxes(j, 1, 2)) @ np.abs(t[..., None]).astype(LD)
                exact = (np.swapaxes(j, 1, 2) @ t[..., None])[..., 0]
                within(vjp(saved, t, scale=scale), exact, terms[..., 0], eps_of(dtype, 32), name)


@law
def jacobian_is_the_quotient_rule(dtype: np.dtype) -> None:
    """diag(p) - p p', element by element, with loops over the classes."""
    x = logits(dtype, (2, 7))
    p = fs.softmax(x)
    j = fs.softmax_jacobian(p)
    wide = p.astype(LD)
    for r in range(2):
        for a in range(7):
            for b in range(7):
                exact = wide[r, a] * (wide[r].sum() - wide[r, a]) if a == b else -wide[r, a] * wide[r, b]
                assert_close(j[r, a, b], exact, 5, what=f"jacobian[{a}, {b}]")
    assert (j == np.swapaxes(j, 1, 2)).all()


@law
def jacobian_rows_and_columns_sum_to_zero(dtype: np.dtype) -> None:
    for shape in SHAPES[:2]:
        x = logits(dtype, shape)
        j = fs.softmax_jacobian(fs.softmax(x)).astype(LD)
        for axis in (1, 2):
            within(j.sum(axis), 0, np.abs(j).sum(axis), eps_of(dtype, 4), "row or column of the softmax Jacobian")
        j = fs.log_softmax_jacobian(fs.log_softmax(x)).astype(LD)
        within(j.sum(2), 0, np.abs(j).sum(2), eps_of(dtype, 16), "row of the log_softmax Jacobian")


@law
def uniform_cotangent_is_exactly_zero(dtype: np.dtype) -> None:
    for shape in SHAPES:
        for sigma in (0.1, 3, 30):
            x = logits(dtype, shape, sigma)
            for value in (1.0, 0.3, -1e6):
                g = np.full(shape, value, dtype)
                assert not fs.softmax_vjp(fs.softmax(x), g).any(), "softmax_vjp of a uniform cotangent is not 0"
                assert not fs.log_softmax_jvp(fs.log_softmax(x), g).any(), "log_softmax_jvp, uniform tangent"


@law
def vjp_rows_sum_to_zero(dtype: np.dtype) -> None:
    """To a few ULP of the largest term, plus what the roundings of C correctly rounded terms add up to."""
    for shape in (*SHAPES, (2, 20_011)):
        allowed = 4 + np.sqrt(shape[1]) / 2
        for sigma in (0.1, 3, 30):
            y = fs.softmax_vjp(fs.softmax(logits(dtype, shape, sigma)), vectors(dtype, shape))
            d = np.abs(y.astype(LD).sum(-1)) / ulp(np.abs(y).max(-1), dtype)
            assert (d <= allowed).all(), (
                f"row of softmax_vjp, {shape[1]} classes, sums to {float(d.max()):.3g} ULP of its largest term "
                f"(allowed: {allowed:.3g})"
            )


@law
def vjp_keeps_the_tail(dtype: np.dtype) -> None:
    """One class dominates: p (g - <p, g>) must not lose what the other classes feel."""
    for lead in (20.0, 40.0, 80.0):
        for c in (2, 5, 100):
            x = np.zeros((1, c), dtype)
            x[0, c // 2] = lead
            g = np.zeros((1, c), dtype)
            g[0, c // 2] = 1
            p = fs.softmax(x)
            e = np.exp(LD(-lead))
            tail, top = e / (1 + (c - 1) * e), 1 / (1 + (c - 1) * e)
            exact = np.full((1, c), -tail * top)
            exact[0, c // 2] = (c - 1) * tail * top
            assert_close(fs.softmax_vjp(p, g), exact, 16, what=f"tail of softmax_vjp at {lead}")


@law
def scaling_by_two_is_exact(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x, g = logits(dtype, shape), vectors(dtype, shape)
        p, logp, two = fs.softmax(x), fs.log_softmax(x), dtype.type(2)
        assert_same_bits(fs.softmax_vjp(p, two * g), two * fs.softmax_vjp(p, g), "softmax_vjp(2 g)")
        assert_same_bits(fs.log_softmax_vjp(logp, two * g), two * fs.log_softmax_vjp(logp, g), "log_softmax_vjp(2 g)")
        assert (fs.softmax_jvp(p, -g) == -fs.softmax_jvp(p, g)).all(), "softmax_jvp(-g)"
        y = np.arange(shape[0]) % shape[1]
        one = fs.cross_entropy_value_and_grad(x, y, reduction="none", grad_output=np.ones(shape[0], dtype)).grad
        four = fs.cross_entropy_value_and_grad(x, y, reduction="none", grad_output=4.0).grad
        assert_same_bits(four, 4 * one, "cross-entropy gradient times 4")


# --- cross-entropy ------------------------------------------------


@law
def gradient_is_p_sum_y_minus_y(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x = logits(dtype, shape)
        y = np.random.default_rng(2).random(shape).astype(dtype)  # sums to anything
        p = fs.softmax(x).astype(LD)
        grad = fs.cross_entropy_value_and_grad(x, y, reduction="sum").grad
        mass = y.astype(LD).sum(-1, keepdims=True)
        within(grad, p * mass - y, p * mass + y, eps_of(dtype, 8), "p sum(y) - y")
        labels = np.arange(shape[0]) % shape[1]
        hot = np.eye(shape[1], dtype=dtype)[labels]
        a = fs.cross_entropy_value_and_grad(x, labels, reduction="sum")
        b = fs.cross_entropy_value_and_grad(x, hot, reduction="sum")
        assert_close(a.grad, b.grad.astype(LD), 8, what="indices and one-hot targets")
        assert_close(a.value, np.asarray(b.value, LD), 8, what="indices and one-hot targets")


@law
def gradient_vanishes_at_the_target_distribution(dtype: np.dtype) -> None:
    """Where y / s is constant: s has converged to the distribution that is proportional to y."""
    for shape in SHAPES:
        x = logits(dtype, shape)
        p = fs.softmax(x)
        for factor in (1.0, 3.0):
            y = (p * dtype.type(factor)).astype(dtype)
            grad = fs.cross_entropy_value_and_grad(x, y, reduction="sum").grad
            within(grad, 0, 2 * factor * p.astype(LD), eps_of(dtype, 8), "gradient at the target distribution")


@law
def two_classes_are_binary_cross_entropy(dtype: np.dtype) -> None:
    z = np.linspace(-60, 60, 121).astype(dtype)
    x = np.stack([np.zeros_like(z), z], -1)
    for label, sign in ((1, -1), (0, 1)):
        loss, grad = fs.cross_entropy_value_and_grad(x, np.full(z.shape, label), reduction="none")
        wide = sign * z.astype(LD)
        with np.errstate(over="ignore"):
            exact = np.log1p(np.exp(wide))  # softplus
            slope = sign / (1 + np.exp(-wide))
        assert_close(loss, exact, 2, what="binary cross-entropy")
        assert_close(grad[:, 1], slope, 4, what="its gradient")
        assert_close(grad[:, 0], -slope, 4, what="its gradient")


@law
def loss_is_logsumexp_minus_logit(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x = logits(dtype, shape)
        y = (7 * np.arange(shape[0])) % shape[1]
        lse = fs.logsumexp(x).astype(LD)
        picked = np.take_along_axis(x, y[:, None], 1)[:, 0]
        loss = fs.cross_entropy(x, y, reduction="none")
        within(loss, lse - picked, np.abs(lse) + np.abs(picked) + 1, eps_of(dtype, 8), "lse - x[y]")
        fused = fs.cross_entropy_value_and_grad(x, y, reduction="none").value
        assert_close(fused, loss.astype(LD), 6, what="loss alone and loss with gradient")
        log_p = -np.take_along_axis(fs.log_softmax(x), y[:, None], 1)[:, 0]
        assert_close(loss, log_p.astype(LD), 4, what="-log_softmax(x)[y]")
        assert (loss >= 0).all()


@law
def reductions_agree(dtype: np.dtype) -> None:
    for shape in SHAPES:
        x = logits(dtype, shape)
        y = np.arange(shape[0]) % shape[1]
        each = fs.cross_entropy(x, y, reduction="none").astype(LD)
        assert_close(fs.cross_entropy(x, y, reduction="sum"), each.sum(), 2, what="sum of losses")
        assert_close(fs.cross_entropy(x, y), each.mean(), 2, what="mean of losses")
        a = fs.cross_entropy_value_and_grad(x, y, reduction="sum").grad.astype(LD)
        b = fs.cross_entropy_value_and_grad(x, y).grad.astype(LD)
        within(b * shape[0], a, np.abs(a), eps_of(dtype, 8), "gradient of the mean")


# --- finite differences ------------------------------------------------


@law
def micro_batches_combine(dtype: np.dtype) -> None:
    """Combine the means of parts, and their gradients, by their normalisers; rows' extras do not depend on the cuts."""
    for shape in ((17, 10), (5, 97), (9, 2)):
        x = logits(dtype, shape)
        y = np.random.default_rng(2).integers(shape[1], size=shape[0])
        y[::4] = -100  # the last part of five rows is ignored as a whole
        w, v = np.abs(vectors(dtype, (shape[1],))) + dtype.type(0.5), np.abs(vectors(dtype, (shape[0],), 3))
        soft = np.random.default_rng(4).dirichlet(np.ones(shape[1]), shape[0]).astype(dtype)
        for target, weight in ((y, None), (y, w), (soft, w)):
            whole, *parts = (
                fs.cross_entropy_value_and_grad(
                    x[k], target[k], weight=weight, sample_weight=v[k], empty="zero", extras=True
                )
                for k in (slice(None), slice(0, 3), slice(3, 4), slice(4, None))
            )
            total = sum(p.extras.normalizer for p in parts)
            within(LD(total), LD(whole.extras.normalizer), LD(total), 2.0**-50, "sum of the normalisers")
            mean = sum(LD(p.value) * p.extras.normalizer for p in parts) / total
            assert_close(whole.value, mean, 4, what="mean of micro-batches")
            grad = np.concatenate([p.grad.astype(LD) * (p.extras.normalizer / LD(total)) for p in parts])
            assert_close(whole.grad, grad, 8, np.abs(grad).max(-1, keepdims=True), "gradient of micro-batches")
            for name in ("logsumexp", "prediction"):
                rows = np.concatenate([getattr(p.extras, name) for p in parts])
                assert_same_bits(getattr(whole.extras, name), rows, name)
            assert whole.extras.correct == sum(p.extras.correct for p in parts)
            if weight is None:
                kept = np.flatnonzero(y != -100)
                gap = whole.extras.logsumexp.astype(LD)[kept] - x[kept, y[kept]]
                mean = (v[kept] * gap).sum() / v[kept].sum(dtype=LD)
                assert_close(whole.value, mean, 32, what="mean of logsumexp - logit")


def central(f: Callable[[Array], Array], x: Array, t: Array, h: float = 2.0**-13) -> Array:
    """Return the derivative of f at x along t, from differences of fourth order."""
    near, far = f(x + h * t) - f(x - h * t), f(x + 2 * h * t) - f(x - 2 * h * t)
    return (8 * near - far) / (12 * h)


@law
def finite_differences(dtype: np.dtype) -> None:
    if dtype.itemsize != 8:
        return
    x, t = logits(dtype, (4, 9), 2), vectors(dtype, (4, 9))
    y, soft = np.array([0, 3, 8, 3]), np.abs(vectors(dtype, (4, 9), 3))
    w, v = np.linspace(0.5, 2, 9), np.array([1.0, 0.0, 2.0, -1.0])
    for scale in (1.0, 0.7, -1.3):
        pairs = [
            (fs.softmax, fs.softmax_jvp(fs.softmax(x, scale=scale), t, scale=scale)),
            (fs.log_softmax, fs.log_softmax_jvp(fs.log_softmax(x, scale=scale), t, scale=scale)),
            (fs.logsumexp, fs.logsumexp_jvp(fs.softmax(x, scale=scale), t, scale=scale)),
        ]
        for f, jvp in pairs:
            slope = central(lambda z, f=f, scale=scale: f(z, scale=scale), x, t)
            np.testing.assert_allclose(jvp, slope, rtol=1e-9, atol=1e-9, err_msg=f.__name__)
        for target in (y, soft):
            for options in (
                {},
                {"label_smoothing": 0.2, "weight": w},
                {"z_loss": 0.1, "sample_weight": v, "reduction": "sum"},
                {"softcap": 3.0, "weight": w, "z_loss": 0.05, "label_smoothing": 0.1},
                {"where": np.arange(9) != 1, "label_smoothing": 0.3, "softcap": 5.0},
            ):

                def loss(z: Array, target=target, options=options, scale=scale) -> Array:  # type: ignore[no-untyped-def]
                    return fs.cross_entropy(z, target, scale=scale, **options)

                value, grad = fs.cross_entropy_value_and_grad(x, target, scale=scale, **options)
                if target is soft and "where" in options:
                    continue  # mass on an excluded class: the loss is infinite
                np.testing.assert_allclose(value, loss(x), rtol=1e-14)
                np.testing.assert_allclose((grad * t).sum(), central(loss, x, t), rtol=1e-8, atol=1e-9)


def test_distance_counts_ulps() -> None:
    """The measuring rod itself."""
    one = np.float32(1)
    assert distance(np.nextafter(one, np.float32(2)), np.asarray(LD(1))) == 1
    assert distance(np.nextafter(one, np.float32(0)), np.asarray(LD(1))) == 0.5
    assert distance(np.float32(0), np.asarray(LD(2) ** -149)) == 1
    assert distance(np.float32(0), np.asarray(LD(2) ** -126)) == 2**23
    assert distance(np.float64(np.inf), np.asarray(LD(1))) == np.inf
    assert distance(np.float64(np.inf), np.asarray(-LD(np.inf))) == np.inf
    assert distance(np.float64(np.nan), np.asarray(LD(np.nan))) == 0
    assert distance(np.float32(np.inf), np.asarray(LD(10) ** 40)) == 0
