"""The linear layer fused with the cross-entropy, against the losses on logits that are in memory."""

from __future__ import annotations

import importlib.util
import tracemalloc
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checks import assert_same_bits
from rooms import Room

import fastsoftmax as fs
from fastsoftmax import _linear

NAN = np.nan
R, D, C = 37, 9, 23
OPTIONS: list[dict[str, Any]] = [
    {},
    {"reduction": "sum", "label_smoothing": 0.1},
    {"reduction": "none", "z_loss": 0.01},
    {"softcap": 5.0, "z_loss": 0.01, "label_smoothing": 0.1},
    {"reduction": "none", "softcap": 5.0, "weight": np.linspace(0.5, 2, C), "sample_weight": np.linspace(2, 0.5, R)},
    {"weight": np.linspace(0.5, 2, C), "sample_weight": np.linspace(2, 0.5, R)},
]


def problem(bias: bool = True, seed: int = 0) -> tuple[Any, ...]:
    rng = np.random.default_rng(seed)
    x, w = rng.normal(size=(R, D)), rng.normal(size=(C, D))
    y = rng.integers(0, C, R)
    y[[3, 8]] = -100
    return x, w, y, rng.normal(size=C) if bias else None


def dense(x: Any, w: Any, bias: Any) -> Any:
    return x @ w.T + (0 if bias is None else bias)


def close(a: Any, b: Any, tolerance: float = 1e-13) -> None:
    np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance * np.abs(b).max(initial=1))


def as_grads(g: Any, x: Any, w: Any, bias: Any) -> tuple[Any, ...]:
    return g @ w, g.T @ x, None if bias is None else g.sum(0)


# --- values ------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("max_bytes", [None, 9000])
def test_is_the_dense_computation(options: dict[str, Any], bias: bool, max_bytes: int | None) -> None:
    x, w, y, b = problem(bias)
    rng = np.random.default_rng(1)
    upstream = rng.normal(size=R) if options.get("reduction") == "none" else 1.7
    value, grad = fs.cross_entropy_value_and_grad(dense(x, w, b), y, grad_output=upstream, **options)
    close(fs.linear_cross_entropy(x, w, y, b, max_bytes=max_bytes, **options), value)
    got = fs.linear_cross_entropy_value_and_grad(x, w, y, b, max_bytes=max_bytes, grad_output=upstream, **options)
    assert isinstance(got, fs.ValueAndGrad)
    close(got.value, value)
    for mine, theirs in zip(got.grad, as_grads(grad, x, w, b), strict=True):
        assert (mine is None) == (theirs is None)
        if mine is not None:
            close(mine, theirs)


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("given", ["xwb", "x", "w", "b", "xw", ""])
@pytest.mark.parametrize("max_bytes", [None, 9000])
def test_directions(options: dict[str, Any], given: str, max_bytes: int | None) -> None:
    """The tangent is the dense one; the Hessian's product is the gradients' central difference."""
    x, w, y, b = problem()
    rng = np.random.default_rng(1)
    ts = [rng.normal(size=a.shape) if name in given else None for name, a in zip("xwb", (x, w, b), strict=True)]
    tx, tw, tb = (np.zeros_like(a) if t is None else t for t, a in zip(ts, (x, w, b), strict=True))
    expected = fs.cross_entropy_jvp(dense(x, w, b), y, tx @ w.T + x @ tw.T + tb, **options)
    got = fs.linear_cross_entropy_jvp(x, w, y, b, *ts, max_bytes=max_bytes, **options)
    close(got.value, expected.value)
    close(got.tangent, expected.tangent)

    upstream = rng.normal(size=R) if options.get("reduction") == "none" else 1.7

    def gradient(step: float) -> tuple[Any, ...]:
        moved = (x + step * tx, w + step * tw, y, b + step * tb)
        return fs.linear_cross_entropy_value_and_grad(*moved, grad_output=upstream, **options).grad

    products = fs.linear_cross_entropy_hvp(x, w, y, b, *ts, max_bytes=max_bytes, grad_output=upstream, **options)
    for mine, after, before in zip(products, gradient(1e-6), gradient(-1e-6), strict=True):
        close(mine, (after - before) / 2e-6, 1e-7)


def test_the_hessian_is_symmetric() -> None:
    x, w, y, b = problem()
    rng = np.random.default_rng(2)
    u, v = ([rng.normal(size=a.shape) for a in (x, w, b)] for _ in range(2))
    hu, hv = (fs.linear_cross_entropy_hvp(x, w, y, b, *t, softcap=4.0, z_loss=0.1) for t in (u, v))
    close(sum((a * c).sum() for a, c in zip(u, hv)), sum((a * c).sum() for a, c in zip(v, hu)), 1e-12)


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_is_torchs(reduction: str) -> None:
    if importlib.util.find_spec("torch") is None:
        pytest.skip("PyTorch is not installed")
    import torch

    x, w, y, b = problem()
    leaves = [torch.tensor(a, requires_grad=True) for a in (x, w, b)]
    logits = torch.nn.functional.linear(*leaves)
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor(y), reduction=reduction, label_smoothing=0.1)
    upstream = np.linspace(-1, 2, R) if reduction == "none" else np.array(3.0)
    loss.backward(torch.tensor(upstream))
    got = fs.linear_cross_entropy_value_and_grad(
        x, w, y, b, reduction=reduction, label_smoothing=0.1, grad_output=upstream, max_bytes=9000
    )
    close(got.value, loss.detach().numpy(), 1e-12)
    for mine, leaf in zip(got.grad, leaves, strict=True):
        close(mine, leaf.grad.numpy(), 1e-12)


def test_probabilities(room: Room) -> None:
    x, w, _, b = problem()
    t = fs.softmax(np.random.default_rng(3).normal(size=(R, C)))
    value, grad = fs.cross_entropy_value_and_grad(dense(x, w, b), t, label_smoothing=0.1)
    got = fs.linear_cross_entropy_value_and_grad(x, w, t, b, label_smoothing=0.1, max_bytes=9000)
    close(got.value, value)
    for mine, theirs in zip(got.grad, as_grads(grad, x, w, b), strict=True):
        close(mine, theirs)


def test_rooms(room: Room, dtype: np.dtype) -> None:
    x, w, y, b = (a if a.dtype.kind == "i" else a.astype(dtype) for a in problem())
    exact = fs.cross_entropy_value_and_grad(dense(*(a.astype(float) for a in (x, w, b))), y)
    value, grads = fs.linear_cross_entropy_value_and_grad(x, w, y, b, max_bytes=9000)
    tolerance = 100 * np.finfo(dtype).eps
    assert value.dtype == dtype
    close(value, exact.value, tolerance)
    for mine, theirs in zip(grads, as_grads(exact.grad, *(a.astype(float) for a in (x, w, b))), strict=True):
        assert mine.dtype == dtype
        close(mine, theirs, tolerance)


# --- shapes, layouts, dtypes ------------------------------------------------


@pytest.mark.parametrize("batch", [(), (6,), (2, 3), (3, 1, 2), (0,), (2, 0)])
@pytest.mark.parametrize(("d", "c"), [(4, 5), (0, 5), (4, 1), (0, 1)])
def test_shapes(batch: tuple[int, ...], d: int, c: int) -> None:
    rng = np.random.default_rng(0)
    x, w, b, y = rng.normal(size=(*batch, d)), rng.normal(size=(c, d)), rng.normal(size=c), rng.integers(0, c, batch)
    z = x @ w.T + b
    for reduction in ("sum", "none", "mean"):
        expected = fs.cross_entropy_value_and_grad(z, y, reduction=reduction)
        got = fs.linear_cross_entropy_value_and_grad(x, w, y, b, reduction=reduction, max_bytes=2000)
        np.testing.assert_allclose(got.value, expected.value, rtol=1e-13, atol=1e-15)
        assert np.shape(got.value) == np.shape(expected.value)
        flat = expected.grad.reshape(-1, c)
        for mine, theirs in zip(got.grad, (expected.grad @ w, flat.T @ x.reshape(len(flat), d), flat.sum(0))):
            assert mine.shape == theirs.shape
            close(mine, theirs)
        h = fs.linear_cross_entropy_hvp(x, w, y, b, x, w, b, reduction=reduction)
        assert [a.shape for a in h] == [x.shape, w.shape, b.shape]
        assert np.shape(fs.linear_cross_entropy_jvp(x, w, y, b, x, reduction=reduction).tangent) == np.shape(got.value)


def test_layouts() -> None:
    x, w, y, b = problem()
    expected = fs.linear_cross_entropy_value_and_grad(x, w, y, b)

    def stretched(a: Any) -> Any:
        big = np.full([2 * n for n in a.shape], NAN)
        view = big[tuple(slice(None, None, -2) for _ in a.shape)]
        view[...] = a
        return view

    kept = [x.copy(), w.copy(), b.copy()]
    for change in (np.asfortranarray, stretched, lambda a: a.astype(">f8"), lambda a: a.tolist()):
        got = fs.linear_cross_entropy_value_and_grad(change(x), change(w), y, change(b), max_bytes=9000)
        close(got.value, expected.value)
        for mine, theirs in zip(got.grad, expected.grad, strict=True):
            close(mine, theirs)
    cube = stretched(x[:36].reshape(4, 9, D))
    got = fs.linear_cross_entropy_value_and_grad(cube, w, y[:36].reshape(4, 9), b, reduction="none", max_bytes=9000)
    flat = fs.linear_cross_entropy_value_and_grad(x[:36], w, y[:36], b, reduction="none")
    close(got.value, flat.value.reshape(4, 9))
    close(got.grad[0], flat.grad[0].reshape(4, 9, D))
    close(got.grad[1], flat.grad[1])
    for a, k in zip((x, w, b), kept, strict=True):
        assert_same_bits(a, k)


@pytest.mark.parametrize("kind", [np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("max_bytes", [None, 9000])
def test_sixteen_bits_are_computed_in_float32(kind: Any, max_bytes: int | None) -> None:
    x, w, y, b = (a if a.dtype.kind == "i" else a.astype(kind) for a in problem())
    wide = fs.linear_cross_entropy_value_and_grad(*(a if a is y else a.astype(np.float32) for a in (x, w, y, b)))
    got = fs.linear_cross_entropy_value_and_grad(x, w, y, b, max_bytes=max_bytes)
    assert got.value.dtype == np.float32
    close(got.value, wide.value, 1e-6)
    for mine, theirs in zip(got.grad, wide.grad, strict=True):
        assert mine.dtype == kind
        close(mine.astype(float), theirs.astype(float), 1.01 * float(ml_dtypes.finfo(kind).eps))


def test_dtypes_mix() -> None:
    x, w, y, b = problem()
    got = fs.linear_cross_entropy_value_and_grad(x.astype(np.float32), w, y, b.astype(np.float16))
    assert got.value.dtype == np.float64
    assert [a.dtype for a in got.grad] == [np.float32, np.float64, np.float16]
    got = fs.linear_cross_entropy_value_and_grad(np.ones((2, 3), int), np.ones((4, 3), np.float32), [0, 1])
    assert [a.dtype for a in got.grad[:2]] == [np.float64, np.float32]
    assert got.grad[2] is None


# --- rows that are ignored, or not finite ------------------------------------------------


@pytest.mark.parametrize("bad", [NAN, np.inf, -np.inf])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignored_rows_may_hold_anything(bad: float, reduction: str) -> None:
    x, w, y, b = problem()
    dirty = x.copy()
    dirty[y == -100] = bad
    upstream = np.where(y == -100, bad, 2.0) if reduction == "none" else 2.0
    clean = fs.linear_cross_entropy_value_and_grad(
        x, w, y, b, reduction=reduction, grad_output=np.nan_to_num(upstream, posinf=0, neginf=0)
    )
    for max_bytes in (None, 9000):
        got = fs.linear_cross_entropy_value_and_grad(
            dirty, w, y, b, reduction=reduction, grad_output=upstream, max_bytes=max_bytes
        )
        close(got.value, clean.value)
        assert (got.grad[0][y == -100] == 0).all()
        for mine, theirs in zip(got.grad, clean.grad, strict=True):
            close(mine, theirs)
    products = fs.linear_cross_entropy_hvp(dirty, w, y, b, dirty, w, b)
    assert all(np.isfinite(a).all() for a in products)
    assert np.isfinite(fs.linear_cross_entropy_jvp(dirty, w, y, b, dirty).tangent)


def test_all_rows_ignored() -> None:
    x, w, y, b = problem()
    value, grads = fs.linear_cross_entropy_value_and_grad(x * NAN, w, np.full_like(y, -100), b)
    assert np.isnan(value)
    assert all((g == 0).all() for g in grads)


def test_rows_that_are_not_finite_stay_alone() -> None:
    x, w, y, b = problem()
    x[5] = NAN
    with np.errstate(all="raise"):
        got = fs.linear_cross_entropy_value_and_grad(x, w, y, b, reduction="none", max_bytes=9000)
    others = np.arange(R) != 5
    assert np.isnan(got.value[5])
    assert np.isnan(got.grad[0][5]).all()
    assert np.isfinite(got.value[others]).all()
    assert np.isfinite(got.grad[0][others]).all()


# --- memory ------------------------------------------------


@pytest.mark.parametrize("max_bytes", [3_000_000, 8_000_000])
@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_memory_is_bounded(max_bytes: int, kind: Any) -> None:
    rng = np.random.default_rng(0)
    x, w, y = (
        rng.normal(size=(600, 32)).astype(kind),
        rng.normal(size=(5000, 32)).astype(kind),
        rng.integers(0, 5000, 600),
    )
    results = x.nbytes + w.nbytes
    calls: list[tuple[Any, int]] = [
        (lambda: fs.linear_cross_entropy(x, w, y, max_bytes=max_bytes), 0),
        (lambda: fs.linear_cross_entropy_value_and_grad(x, w, y, max_bytes=max_bytes), results),
        (lambda: fs.linear_cross_entropy_jvp(x, w, y, None, x, w, max_bytes=max_bytes), 0),
        (lambda: fs.linear_cross_entropy_hvp(x, w, y, None, x, w, max_bytes=max_bytes), results),
    ]
    for call, result in calls:
        call()
        tracemalloc.start()
        try:
            call()
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        # Beside: a loss and a label per row, and the plan's tiles.
        assert peak - result <= max_bytes + 600_000


@pytest.mark.parametrize("kind", [np.float32, np.float16])
def test_default_bound(kind: Any) -> None:
    layer = _linear._Layer(
        np.broadcast_to(kind(0), (2048, 512)), np.broadcast_to(kind(0), (50257, 512)),
        np.zeros(2048, int), None, weight=None, sample_weight=None, ignore_index=-100, label_smoothing=0.0,
        reduction="mean", softcap=None, z_loss=0.0, max_bytes=None, buffers=1, gradient=True,
    )  # fmt: skip
    assert 250 < layer.height < 64e6 / (4 * 50257)
    assert len(list(layer.blocks())) * layer.height >= 2048


# --- errors ------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"x": 1.0}, ValueError, "x has shape (); expected (..., D)"),
        (
            {"w": np.ones((C, D + 1))},
            ValueError,
            "w has shape (23, 10) but x has (37, 9); expected (C, 9), a row per class",
        ),
        ({"w": np.ones(D)}, ValueError, "w has shape (9,) but x has (37, 9); expected (C, 9), a row per class"),
        ({"bias": np.ones(3)}, ValueError, "bias has shape (3,); expected (23,), one number per class"),
        ({"x": np.ones((R, D), complex)}, TypeError, "x has dtype complex128; expected float16"),
        ({"w": np.ma.ones((C, D))}, TypeError, "w is a masked array, which is not supported"),
        ({"target": np.full(R, C)}, IndexError, "target[0] = 23 is out of bounds for 23 classes (ignore_index=-100)"),
        ({"target": np.zeros(5, int)}, ValueError, "target has shape (5,) but logits has (37, 23) with axis=-1"),
        ({"weight": np.ones(3)}, ValueError, "weight has shape (3,); expected (23,), one number per class"),
        ({"sample_weight": np.ones(3)}, ValueError, "sample_weight has shape (3,); expected (37,)"),
        ({"reduction": "max"}, ValueError, "reduction is 'max'; expected one of 'none', 'mean', 'sum'"),
        ({"softcap": 0}, ValueError, "softcap is 0.0; expected a positive number or None"),
        ({"label_smoothing": 2}, ValueError, "label_smoothing is 2.0; expected a number from 0 to 1"),
        ({"ignore_index": 0.5}, TypeError, "ignore_index is 0.5; expected an int"),
        ({"max_bytes": "a"}, TypeError, "max_bytes is 'a'; expected an int or None"),
        ({"max_bytes": 100}, ValueError, "max_bytes is 100; expected at least "),
    ],
)
def test_errors(change: dict[str, Any], error: type[Exception], message: str) -> None:
    x, w, y, b = problem()
    arguments: dict[str, Any] = {"x": x, "w": w, "target": y, "bias": b, **change}
    for name in _linear.__all__:
        with pytest.raises(error) as caught:
            getattr(fs, name)(**arguments)
        assert str(caught.value).startswith(message), str(caught.value)


def test_errors_of_directions() -> None:
    x, w, y, _ = problem()
    with pytest.raises(ValueError, match=r"tx has shape \(3,\); expected \(37, 9\)"):
        fs.linear_cross_entropy_jvp(x, w, y, tx=np.ones(3))
    with pytest.raises(ValueError, match="vbias is given but bias is not; pass bias, if only zeros"):
        fs.linear_cross_entropy_hvp(x, w, y, vbias=np.ones(C))
    with pytest.raises(ValueError, match=r"grad_output has shape \(37,\); expected a scalar with reduction='mean'"):
        fs.linear_cross_entropy_value_and_grad(x, w, y, grad_output=np.ones(R))


def test_least_max_bytes_is_enough() -> None:
    x, w, y, b = problem()
    for name in _linear.__all__:
        with pytest.raises(ValueError, match="max_bytes") as caught:
            getattr(fs, name)(x, w, y, b, max_bytes=0)
        least = int(str(caught.value).partition("at least ")[2].partition(",")[0])
        getattr(fs, name)(x, w, y, b, max_bytes=least)
        with pytest.raises(ValueError, match=f"max_bytes is {least - 1}"):
            getattr(fs, name)(x, w, y, b, max_bytes=least - 1)
