"""Entropy, Kullback-Leibler divergence and binary cross-entropy with their options, against formulas and peers."""

from __future__ import annotations

import tracemalloc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from checks import HAS_WIDE, LD, assert_close, assert_same_bits, compute, exactly
from rooms import Room

import fastsoftmax as fs
from fastsoftmax._ops import OPS, Array

INF, NAN = np.inf, np.nan
VALUE_AND_GRAD = {f: getattr(fs, f.__name__ + "_value_and_grad") for f in (
    fs.entropy, fs.kl_divergence, fs.binary_cross_entropy,
)}  # fmt: skip
FUNCTIONS = list(VALUE_AND_GRAD)


# --- the formulas, written once more, element by element in longdouble ------------------------------------------------


def probabilities(x: Array, mask: Array, scale: float) -> tuple[Array, Array]:
    """Return log p of the included classes, -inf elsewhere, and p."""
    z = np.where(mask, x.astype(LD) * LD(scale), -INF)
    top = np.argmax(z, -1)[:, None]
    z = z - np.take_along_axis(z, top, -1)
    others = np.exp(z)
    np.put_along_axis(others, top, 0, -1)
    logp = z - np.log1p(others.sum(-1, keepdims=True))
    return logp, np.exp(logp)


def times_log(a: Array, log: Array) -> Array:
    """Return ``a log``, where 0 times anything is 0."""
    return np.where(a == 0, 0, a * np.where(a == 0, 0, log))


def entropy_terms(x: Array, target: None, mask: Array, scale: float, **_: Any) -> tuple[Array, Array, Array]:
    logp, p = probabilities(x, mask, scale)
    h = -times_log(p, logp).sum(-1)
    slope = -scale * times_log(p, logp + h[:, None])
    return h, slope, np.abs(scale) * (np.abs(times_log(p, logp)) + p * h[:, None])


def kl_terms(x: Array, target: Array, mask: Array, scale: float, **_: Any) -> tuple[Array, Array, Array]:
    logp, p = probabilities(x, mask, scale)
    t = target.astype(LD)
    loss = times_log(t, np.log(np.where(t == 0, 1, t)) - logp).sum(-1)
    mass = t.sum(-1, keepdims=True)
    return loss, scale * (p * mass - t), abs(scale) * (p * mass + t)


def binary_terms(
    x: Array, target: Array, mask: Array, scale: float, weight: Any = 1.0, pos_weight: Any = 1.0
) -> tuple[Array, Array, Array]:
    z, y = x.astype(LD) * LD(scale), target.astype(LD)
    w, u = np.asarray(weight, LD), np.asarray(pos_weight, LD)
    up, down = (np.maximum(s * z, 0) + np.log1p(np.exp(-np.abs(z))) for s in (1, -1))
    p, q = 1 / (1 + np.exp(-z)), 1 / (1 + np.exp(z))
    loss, slope, size = (1 - y) * up + u * y * down, (1 - y) * p - u * y * q, (1 - y) * p + u * y * q
    return tuple(np.where(mask, w * a, 0) for a in (loss, scale * slope, abs(scale) * size))  # type: ignore[return-value]


TERMS: dict[Callable[..., Any], Callable[..., Any]] = {
    fs.entropy: entropy_terms, fs.kl_divergence: kl_terms, fs.binary_cross_entropy: binary_terms,
}  # fmt: skip


def reference(function: Any, x: Array, target: Any, options: dict[str, Any]) -> tuple[Array, Array, Array]:
    """Return value, gradient and the size of the gradient's terms, of rows (R, C)."""
    options = dict(options)
    rows = len(x)
    reduction, scale = options.pop("reduction", "mean"), options.pop("scale", 1.0)
    mask = np.broadcast_to(options.pop("where", True), x.shape)
    v = np.broadcast_to(np.asarray(options.pop("sample_weight", 1.0), LD), rows)
    g = np.asarray(options.pop("grad_output", 1.0), LD)
    options.pop("empty", None)
    value, slope, size = TERMS[function](x, target, mask, scale, **options)
    each = value.ndim == 2
    value = value * (v[:, None] if each else v)
    g = np.broadcast_to(g, value.shape)
    g = g if each else g[:, None]
    slope, size = slope * v[:, None] * g, np.abs(size * v[:, None] * g)
    if reduction == "none":
        return value, slope, size
    count = (mask.sum(-1) * v).sum() if each else v.sum()
    divisor = count if reduction == "mean" else 1
    return value.sum() / divisor, slope / divisor, size / divisor


def draw(function: Any, rng: np.random.Generator, dtype: np.dtype) -> tuple[Array, Any, dict[str, Any]]:
    """Draw logits, targets and options."""
    r, c = int(rng.integers(1, 9)), int(rng.choice([1, 2, 3, 5, 10, 17, 33, 100]))
    x = (rng.normal(size=(r, c)) * rng.choice([0.3, 3, 20])).astype(dtype)
    binary = function is fs.binary_cross_entropy
    options: dict[str, Any] = {
        "sample_weight": rng.choice([0.5, 1.0, 2.0], r).astype(dtype),
        "scale": float(rng.choice([0.5, 2.0, -1.0, 0.7])),
        "where": rng.random((r, c)) < 0.8,
        "empty": "zero",
    }
    options["where"][:, 0] = True
    if binary:
        options["weight"] = rng.uniform(0.1, 3, c).astype(dtype)
        options["pos_weight"] = rng.uniform(0.1, 3, c).astype(dtype)
    options = {name: value for name, value in options.items() if rng.random() < 0.35}
    options["reduction"] = str(rng.choice(["none", "mean", "sum"]))
    if rng.random() < 0.5:
        shape = ((r, c) if binary else (r,)) if options["reduction"] == "none" else ()
        options["grad_output"] = rng.normal(size=shape).astype(dtype)
    target = None
    if function is fs.kl_divergence:
        target = rng.dirichlet(np.ones(c), r).astype(dtype)
        target[rng.random((r, c)) < 0.2] = 0
        target[~np.broadcast_to(options.get("where", True), (r, c))] = 0
    if binary:
        target = np.where(rng.random((r, c)) < 0.5, rng.random((r, c)), rng.integers(2, size=(r, c))).astype(dtype)
    return x, target, options


def compare(function: Any, x: Array, target: Any, options: dict[str, Any]) -> None:
    """Compare value and gradient with the formulas, alone and in place."""
    value, slope, size = reference(function, x, target, options)
    ins = [x] if target is None else [x, target]
    got = VALUE_AND_GRAD[function](*ins, **options)
    what = f"{function.__name__}, {x.dtype}, {x.shape}, {sorted(options.items(), key=str)}"
    assert got.value.dtype == got.grad.dtype == x.dtype, what
    assert_close(got.value, np.asarray(value), 12, np.maximum(np.abs(value), 1 if "kl" in what else 0), what)
    assert_close(got.grad, slope, 12, np.maximum(size, 16 * np.finfo(x.dtype).tiny), what)
    alone = {k: v for k, v in options.items() if k != "grad_output"}
    assert_close(function(*ins, **alone), np.asarray(got.value, LD), 4, what=what)
    memory = x.copy()
    again = VALUE_AND_GRAD[function](memory, *ins[1:], **options, grad_out=memory)
    assert again.grad is memory
    assert_same_bits(memory, got.grad, what)
    assert_same_bits(again.value, got.value, what)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("seed", range(30))
def test_random_options(room: Room, dtype: np.dtype, function: Any, seed: int) -> None:
    compare(function, *draw(function, np.random.default_rng(seed), dtype))


@pytest.mark.nightly
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_many_random_options(room: Room, dtype: np.dtype, function: Any) -> None:
    for seed in range(100, 3000):
        compare(function, *draw(function, np.random.default_rng(seed), dtype))


# --- what is special about each ------------------------------------------------


def test_entropy_of_known_distributions(room: Room, dtype: np.dtype) -> None:
    for c in (1, 2, 7, 100, 1000):
        h, grad = fs.entropy_value_and_grad(np.full((2, c), 3, dtype), reduction="none")
        assert_close(h, np.full(2, np.log(LD(c))), 2)
        assert (grad == 0).all()
    # One class dominates: the entropy is exp(-d) (1 + d), far below the rounding of 1.
    d = np.array([20, 50, 80], dtype)
    h = fs.entropy(np.stack([0 * d, d], -1), reduction="none")
    e = np.exp(-d.astype(LD))
    assert_close(h, np.log1p(e) + d * e / (1 + e), 2)


def test_divergence_is_cross_entropy_minus_entropy(room: Room, dtype: np.dtype) -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 2, (2, 5, 13)).astype(dtype)
    t = fs.softmax(y)
    a = fs.kl_divergence_value_and_grad(x, t, reduction="none")
    b = fs.cross_entropy_value_and_grad(x, t, reduction="none")
    np.testing.assert_allclose(a.value, b.value - fs.entropy(y, reduction="none"), rtol=64 * np.finfo(dtype).eps)
    assert_close(a.grad, b.grad.astype(LD), 4, np.abs(b.grad) + t, "gradient")
    assert (a.value > 0).all()


def test_divergence_near_zero(room: Room, dtype: np.dtype) -> None:
    """Where p is near the target the terms cancel, and the logarithms in them: neither may be rounded first."""
    rng = np.random.default_rng(1)
    x = rng.normal(0, 3, (40, 1000)).astype(dtype)
    p = fs.softmax(x.astype(float))
    noise = rng.normal(size=x.shape)
    noise -= (p * noise).sum(-1, keepdims=True)
    t = (p * (1 + noise * (1e-3 if dtype.itemsize == 4 else 1e-7))).astype(dtype)
    exact = kl_terms(x, t, np.ones(x.shape, bool), 1.0)[0]
    ours = fs.kl_divergence(x, t, reduction="none").astype(LD)
    rounded_first = fs.cross_entropy(x, t, reduction="none") + (t * np.log(t)).sum(-1)
    # Of 1, which the targets sum to; in float64 the logarithm of the sum of exponentials has no more digits.
    bound = float(np.finfo(dtype).eps) * (0.25 if dtype.itemsize == 4 else 2)
    assert (np.abs(ours - exact) <= bound).all()
    assert (np.abs(rounded_first - exact) > bound).any(), "the case is too easy"


def test_zero_log_zero(room: Room, dtype: np.dtype) -> None:
    x = np.array([[1, -INF, 2, -INF], [0, 1, 2, 3]], dtype)
    inner = x[:1, [0, 2]]
    for function, targets in ((fs.entropy, ()), (fs.kl_divergence, (np.array([[0.25, 0, 0.75, 0]] * 2, dtype),))):
        got = VALUE_AND_GRAD[function](x, *targets, reduction="none")
        kept = VALUE_AND_GRAD[function](inner, *(t[:1, [0, 2]] for t in targets), reduction="none")
        assert_close(got.value[:1], kept.value.astype(LD), 2)
        assert_close(got.grad[:1, [0, 2]], kept.grad.astype(LD), 4, np.ones((1, 2)))
        assert (got.grad[0, [1, 3]] == 0).all()
    one_hot = np.eye(4, dtype=dtype)[[2, 3]]
    assert_close(fs.kl_divergence(x, one_hot), np.asarray(fs.cross_entropy(x, [2, 3]), LD), 2)
    lost = fs.kl_divergence_value_and_grad(x, np.eye(4, dtype=dtype)[[1, 0]], reduction="none")
    assert lost.value[0] == INF
    assert np.isfinite(lost.grad).all()
    assert np.isnan(fs.kl_divergence(x, -one_hot, reduction="none")).all()


def test_binary_tails(room: Room, dtype: np.dtype) -> None:
    """Hard labels keep full relative precision on both sides, down to the smallest subnormal."""
    far = 103 if dtype.itemsize == 4 else 744
    z = np.linspace(-far, far, 2001).astype(dtype)
    wide = z.astype(LD)
    for label, sign in ((0.0, 1), (1.0, -1)):
        got = fs.binary_cross_entropy_value_and_grad(z, np.full(z.shape, label, dtype), reduction="none")
        loss = np.maximum(sign * wide, 0) + np.log1p(np.exp(-np.abs(wide)))
        slope = sign / (1 + np.exp(-sign * wide))
        assert_close(got.value, loss, 2, what=f"loss, label {label}")
        assert_close(got.grad, slope, 3, what=f"gradient, label {label}")
    got = fs.binary_cross_entropy_value_and_grad(
        np.array([INF, -INF, INF, -INF, NAN], dtype), np.array([1, 0, 0, 1, 0], dtype), reduction="none"
    )
    np.testing.assert_array_equal(got.value, [0, 0, INF, INF, NAN])
    np.testing.assert_array_equal(got.grad, [0, 0, 1, -1, NAN])


@pytest.mark.skipif(not HAS_WIDE, reason="longdouble is double here: no oracle for float64")
def test_binary_with_every_factor(room: Room, dtype: np.dtype) -> None:
    """Weights, scale and cotangents are products of many roundings: 4.11 ULP were seen of the promised 4."""
    rng = np.random.default_rng(0)
    r, c = 20, 1000
    x = (rng.normal(size=(r, c)) * np.array([0.3, 3, 20, 60])[np.arange(r) % 4, None]).astype(dtype)
    y, g = rng.random((r, c)).astype(dtype), rng.normal(size=(r, c)).astype(dtype)
    w, u, v = (rng.uniform(0.1, 3, n).astype(dtype) for n in (c, c, r))
    for name, upstream in (("binary_cross_entropy_grad", g), ("binary_cross_entropy_sum_grad", g[:, 0].copy())):
        op = OPS[name]
        for scale in (0.7, 3.3):
            ins, params = [x, y, w, u, v, upstream], {"scale": scale, "positive": 1.0}
            for out, exact, size in zip(compute(op, dtype, ins, params), *exactly(op, ins, params, dtype), strict=True):
                assert_close(out, exact, op.ulp, size, f"{name}, scale {scale}")


def test_binary_of_infinite_weights(room: Room, dtype: np.dtype) -> None:
    """What is lost is infinite, not NaN: the second parts of products and quotients leave infinities alone."""
    x, y = np.array([-25, -1, 0.5, 1, 25], dtype), np.full(5, 0.25, dtype)
    many = np.full(5, INF)
    for weights in ({"weight": many}, {"weight": INF}, {"sample_weight": INF}, {"pos_weight": many}):
        for more in ({}, {"scale": 0.7}, {"weight": np.full(5, 0.3)}):
            options = {**more, **weights}
            for reduction in ("none", "sum"):
                value, grad = fs.binary_cross_entropy_value_and_grad(x, y, reduction=reduction, **options)
                assert (value == INF).all(), (options, reduction)
                assert np.isinf(grad[[0, 1, 2]]).all(), (options, reduction)


def test_binary_factors_keep_their_digits(room: Room, dtype: np.dtype) -> None:
    x, y = np.ones(4, dtype), np.zeros(4)
    v = np.float16(1.5) * np.ones(4)
    for rows in (v.astype(np.float16)[:, None], v.astype(np.float32)):
        each = fs.binary_cross_entropy(
            x.reshape(rows.shape),
            y.reshape(rows.shape),
            -1 if rows.ndim > 1 else (),
            weight=0.1,
            sample_weight=rows.reshape(4),
            reduction="none",
        )
        exact = (LD(0.1) * LD(1.5) * np.log1p(np.exp(LD(1)))) * np.ones(rows.shape, LD)
        assert_close(each, exact, 4)


def test_binary_is_two_classes(room: Room, dtype: np.dtype) -> None:
    z = np.random.default_rng(0).normal(0, 4, 50).astype(dtype)
    y = np.arange(50) % 2
    two = fs.cross_entropy(np.stack([0 * z, z], -1), y, reduction="none")
    for labels in (y, y.astype(bool), y.astype(dtype)):
        assert_close(fs.binary_cross_entropy(z, labels, reduction="none"), two.astype(LD), 4)


def test_binary_of_flat_arrays(room: Room, dtype: np.dtype) -> None:
    """Contiguous arrays are cut into even rows, others are not: the elements' bits are the same, in any threads."""
    rng = np.random.default_rng(0)
    for n in (1, 300, 4096, 100_001, 1 << 18):
        x, y = rng.normal(0, 3, n).astype(dtype), rng.random(n).astype(dtype)
        one = fs.binary_cross_entropy_value_and_grad(x, y)
        each = fs.binary_cross_entropy_value_and_grad(x, y, reduction="none")
        assert_close(one.value, np.asarray(each.value.astype(LD).mean()), 4)
        apart = fs.binary_cross_entropy_value_and_grad(np.stack([x, x], -1)[:, 0], y[::-1].copy()[::-1])
        assert_same_bits(apart.grad, one.grad)
        assert_close(apart.value, np.asarray(one.value, LD), 1)
        for shape in ((n, 1), (1, n), (1, 1, n)):
            reshaped = fs.binary_cross_entropy_value_and_grad(x.reshape(shape), y.reshape(shape))
            assert_same_bits(reshaped.value, one.value)
            assert_same_bits(reshaped.grad.reshape(-1), one.grad)
        for threads in (1, 3):
            with fs.num_threads(threads):
                again = fs.binary_cross_entropy_value_and_grad(x, y)
            assert_same_bits(again.value, one.value)
            assert_same_bits(again.grad, one.grad)


def test_binary_where(room: Room, dtype: np.dtype) -> None:
    """An excluded element counts nothing, whatever it and its label hold."""
    x = np.array([[1, NAN, -2], [INF, 3, 0.5]], dtype)
    y = np.array([[1, 1, 0.25], [NAN, 0, INF]], dtype)
    mask = np.array([[True, False, True], [False, True, False]])
    got = fs.binary_cross_entropy_value_and_grad(x, y, where=mask)
    kept = fs.binary_cross_entropy_value_and_grad(x[mask], y[mask])
    assert_close(got.value, np.asarray(kept.value, LD), 1)
    assert_same_bits(got.grad[mask], kept.grad)
    assert (got.grad[~mask] == 0).all()
    assert (fs.binary_cross_entropy(x, y, where=mask, reduction="none")[~mask] == 0).all()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_memory(room: Room, dtype: np.dtype, function: Any) -> None:
    """A reduced loss with its gradient in place allocates a number per row: no array of the logits' size."""
    if room.backend == "numpy":
        pytest.skip("the reference makes what temporaries it likes")
    x = np.random.default_rng(0).normal(size=(2000, 300)).astype(dtype)
    ins = [x] if function is fs.entropy else [x, fs.softmax(x)]
    options = {"weight": np.ones(300, dtype)} if function is fs.binary_cross_entropy else {}
    for extra in ({}, options):
        VALUE_AND_GRAD[function](x.copy(), *ins[1:], **extra)  # compiles
        z = x.copy()
        tracemalloc.start()
        VALUE_AND_GRAD[function](z, *ins[1:], grad_out=z, **extra)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < x.nbytes / 10


# --- the edges ------------------------------------------------


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_edges_of_entropy_and_divergence(room: Room, dtype: np.dtype, empty: str) -> None:
    x = np.array([[-INF] * 3, [INF, 0, 0], [NAN, 0, 0], [0, NAN, 5], [0, 1, 2]], dtype)
    t = np.array([[0, 1, 0]] * 5, dtype)
    h = fs.entropy_value_and_grad(x, reduction="none", empty=empty)
    kl = fs.kl_divergence_value_and_grad(x, t, reduction="none", empty=empty)
    for got, nothing in ((h, 0), (kl, INF)):
        np.testing.assert_array_equal(got.value[0], nothing if empty == "zero" else NAN)
        np.testing.assert_array_equal(got.grad[0], np.full(3, 0 if empty == "zero" else NAN))
        assert np.isnan(got.value[1:4]).all()
        assert np.isnan(got.grad[1:4]).all()
        assert np.isfinite(got.value[4])
    assert np.isnan(fs.kl_divergence(x, 0 * t, reduction="none", empty=empty)[1:4]).all()
    masked = fs.entropy_value_and_grad(x, reduction="none", empty=empty, where=np.array([False] * 3))
    assert (masked.value == 0).all()
    assert (masked.grad == 0).all()
    part = fs.entropy_value_and_grad(x, reduction="none", where=np.array([False, False, True]), empty=empty)
    assert (part.value[1:] == 0).all()
    assert (part.grad[1:] == 0).all()


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_nothing_to_average(room: Room, dtype: np.dtype, function: Any, empty: str) -> None:
    for shape, options in (((0, 5), {}), ((3, 4), {"sample_weight": np.zeros(3)})):
        x = np.zeros(shape, dtype)
        ins = [x] if function is fs.entropy else [x, x + 0.25]
        value, grad = VALUE_AND_GRAD[function](*ins, empty=empty, **options)
        assert grad.shape == shape
        np.testing.assert_array_equal(value, NAN if empty == "nan" else 0)
        assert (grad == 0).all() if empty == "zero" else np.isnan(grad).all()
        assert function(*ins, reduction="sum", **options) == 0
    no_classes = np.zeros((2, 0), dtype)
    ins = [no_classes] if function is fs.entropy else [no_classes, no_classes]
    assert function(*ins, reduction="sum") == 0


def test_dtypes_and_layouts_of_the_reduced_loss(room: Room) -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 30)), rng.random((40, 30))
    for narrow in (np.float16, ml_dtypes.bfloat16):
        a, b = x.astype(narrow), y.astype(narrow)
        for function in FUNCTIONS:
            ins = [a] if function is fs.entropy else [a, b]
            got = VALUE_AND_GRAD[function](*ins)
            wide = VALUE_AND_GRAD[function](*(i.astype(np.float32) for i in ins))
            assert got.value.dtype == np.float32
            assert got.grad.dtype == narrow
            np.testing.assert_allclose(got.value, wide.value, rtol=1e-6)
            assert_same_bits(got.grad, wide.grad.astype(narrow))
    for function in FUNCTIONS:
        ins = [x] if function is fs.entropy else [x, y]
        base = VALUE_AND_GRAD[function](*ins)
        for layout in (np.asfortranarray, lambda a: np.repeat(a, 2, 1)[:, ::2], lambda a: a[::-1].copy()[::-1]):
            got = VALUE_AND_GRAD[function](*map(layout, ins))
            np.testing.assert_allclose(got.value, base.value, rtol=1e-15)
            np.testing.assert_allclose(got.grad, base.grad, rtol=1e-13, atol=1e-18)
        turned = VALUE_AND_GRAD[function](*(a.T for a in ins), axis=0)
        np.testing.assert_allclose(turned.grad.T, base.grad, rtol=1e-13, atol=1e-18)


def test_central_differences(room: Room) -> None:
    rng = np.random.default_rng(0)
    x, t = rng.normal(0, 2, (3, 6)), rng.normal(size=(3, 6))
    y, h = rng.random((3, 6)), 2.0**-13
    some = np.arange(6) != 2
    for function, extra in (
        (fs.entropy, {}), (fs.kl_divergence, {}),
        (fs.binary_cross_entropy, {"weight": rng.random(6), "pos_weight": np.array(2.5)}),
        (fs.binary_cross_entropy, {"pos_weight": rng.random(6)}),
    ):  # fmt: skip
        for options in (
            {}, {"scale": -0.7, "sample_weight": np.array([1, 0, 2.0]), "reduction": "sum"}, {"where": some},
        ):  # fmt: skip
            options = {**extra, **options}
            ins = [] if function is fs.entropy else [np.where(some, y, 0)]

            def loss(z: Array, function=function, ins=ins, options=options) -> Any:  # type: ignore[no-untyped-def]
                return function(z, *ins, **options)

            grad = VALUE_AND_GRAD[function](x, *ins, **options).grad
            slope = (8 * (loss(x + h * t) - loss(x - h * t)) - (loss(x + 2 * h * t) - loss(x - 2 * h * t))) / (12 * h)
            np.testing.assert_allclose((grad * t).sum(), slope, rtol=1e-8, atol=1e-9, err_msg=function.__name__)


# --- bad input ------------------------------------------------

X = np.zeros((2, 3))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: fs.kl_divergence(X, np.zeros((2, 4))), ValueError,
         "target has shape (2, 4); expected (2, 3), a probability for each of the logits"),
        (lambda: fs.kl_divergence(X, None), TypeError, "target has dtype object; expected"),
        (lambda: fs.binary_cross_entropy(X, np.zeros(3)), ValueError,
         "target has shape (3,); expected (2, 3), a label for each of the logits"),
        (lambda: fs.binary_cross_entropy(X, X, weight=np.ones(2)), ValueError,
         "weight has shape (2,); expected (3,), one number per class, or a scalar"),
        (lambda: fs.binary_cross_entropy(X, X, pos_weight=X), ValueError,
         "pos_weight has shape (2, 3); expected (3,), one number per class, or a scalar"),
        (lambda: fs.binary_cross_entropy(X, X, pos_weight="2"), TypeError, "pos_weight has dtype <U1; expected"),
        (lambda: fs.binary_cross_entropy_value_and_grad(X, X, reduction="none", grad_output=np.ones(3)), ValueError,
         "grad_output has shape (3,); expected (2, 3), one number per element, or a scalar"),
        (lambda: fs.binary_cross_entropy_value_and_grad(X, X, grad_output=X), ValueError,
         "grad_output has shape (2, 3); expected a scalar with reduction='mean'"),
        (lambda: fs.entropy_value_and_grad(X, reduction="none", grad_output=np.ones(3)), ValueError,
         "grad_output has shape (3,); expected (2,), one number per row, or a scalar"),
        (lambda: fs.entropy(X, reduction="batchmean"), ValueError, "reduction is 'batchmean'; expected one of"),
        (lambda: fs.entropy(X, empty="inf"), ValueError, "empty is 'inf'; expected one of"),
        (lambda: fs.entropy(X, scale=NAN), ValueError, "scale is nan; expected a finite number"),
        (lambda: fs.entropy(X, sample_weight=np.ones(3)), ValueError, "sample_weight has shape (3,); expected (2,)"),
        (lambda: fs.entropy(X.astype(complex)), TypeError, "logits has dtype complex128; expected"),
        (lambda: fs.entropy(np.ma.zeros((2, 3))), TypeError, "logits is a masked array"),
        (lambda: fs.entropy(X, axis=2), np.exceptions.AxisError, "axis 2 is out of bounds"),
    ],
)  # fmt: skip
def test_errors(room: Room, call: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value).startswith(message), str(caught.value)


# --- peers as referees ------------------------------------------------


def test_scipy(room: Room) -> None:
    special = pytest.importorskip("scipy.special")
    rng = np.random.default_rng(0)
    x, y = rng.normal(0, 3, (2, 6, 11))
    p, t = special.softmax(x, -1), special.softmax(y, -1)
    np.testing.assert_allclose(fs.entropy(x, reduction="none"), special.entr(p).sum(-1), rtol=1e-13)
    np.testing.assert_allclose(fs.kl_divergence(x, t, reduction="none"), special.rel_entr(t, p).sum(-1), rtol=1e-12)
    binary = -(special.xlogy(t, special.expit(x)) + special.xlogy(1 - t, special.expit(-x)))
    np.testing.assert_allclose(fs.binary_cross_entropy(x, t, reduction="none"), binary, rtol=1e-12)


def against_torch(torch: Any, function: Any, dtype: np.dtype, seeds: range) -> None:
    F = torch.nn.functional  # noqa: N806
    for seed in seeds:
        x, target, options = draw(function, np.random.default_rng(seed), dtype)
        for ours_alone in ("sample_weight", "scale", "where", "empty"):
            options.pop(ours_alone, None)
        z = torch.tensor(x, requires_grad=True)
        upstream = torch.as_tensor(options.get("grad_output", np.ones((), dtype)))
        if function is fs.entropy:
            each = torch.distributions.Categorical(logits=z).entropy()
        elif function is fs.kl_divergence:
            each = F.kl_div(torch.log_softmax(z, -1), torch.tensor(target), reduction="none").sum(-1)
        if function is fs.binary_cross_entropy:
            weights = {k: torch.as_tensor(v) for k, v in options.items() if k in ("weight", "pos_weight")}
            loss = F.binary_cross_entropy_with_logits(
                z, torch.tensor(target), reduction=options["reduction"], **weights
            )
        else:
            loss = each if options["reduction"] == "none" else getattr(each, options["reduction"])()
        loss.backward(upstream.expand(loss.shape).to(loss.dtype))
        value, grad = VALUE_AND_GRAD[function](*([x] if target is None else [x, target]), **options)
        eps = 128 * float(np.finfo(dtype).eps) * max(1, float(np.abs(upstream.numpy()).max()))
        what = f"{function.__name__}, seed {seed}: {options}"
        np.testing.assert_allclose(value, loss.detach().numpy(), rtol=eps, atol=eps, err_msg=what)
        np.testing.assert_allclose(grad, z.grad.numpy(), rtol=eps, atol=eps, err_msg=what)


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_torch(room: Room, dtype: np.dtype, function: Any) -> None:
    against_torch(pytest.importorskip("torch"), function, dtype, range(1000, 1030))


@pytest.mark.nightly
@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__name__)
def test_torch_often(room: Room, dtype: np.dtype, function: Any) -> None:
    against_torch(pytest.importorskip("torch"), function, dtype, range(2000, 4000))


def test_torch_batchmean(room: Room) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    x, t = rng.normal(size=(4, 9)), rng.dirichlet(np.ones(9), 4)
    logp = torch.log_softmax(torch.tensor(x), -1)
    kl_div = torch.nn.functional.kl_div
    np.testing.assert_allclose(fs.kl_divergence(x, t), kl_div(logp, torch.tensor(t), reduction="batchmean"), rtol=1e-13)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that this is not the divergence
        mean = kl_div(logp, torch.tensor(t), reduction="mean")
    np.testing.assert_allclose(fs.kl_divergence(x, t) / 9, mean, rtol=1e-13)


def test_optax(room: Room) -> None:
    optax = pytest.importorskip("optax")
    rng = np.random.default_rng(0)
    x, y, t = (
        a.astype(np.float32) for a in (rng.normal(size=(4, 9)), rng.random((4, 9)), rng.dirichlet(np.ones(9), 4))
    )
    close = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(
        fs.binary_cross_entropy(x, y, reduction="none"), optax.sigmoid_binary_cross_entropy(x, y), **close
    )
    logp = fs.log_softmax(x)
    np.testing.assert_allclose(fs.kl_divergence(x, t, reduction="none"), optax.kl_divergence(logp, t), **close)
