"""The extras of the losses: logsumexp, prediction, correct, normalizer."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checks import LD, assert_close, assert_same_bits
from rooms import Room
from test_loss import draw

import fastsoftmax as fs
from fastsoftmax._ops import Array

INF, NAN = np.inf, np.nan
F4 = np.dtype(np.float32)


def final(x: Array, options: dict[str, Any]) -> Array:
    """Return the logits that the softmax is of, in longdouble."""
    with np.errstate(all="ignore"):
        z = np.asarray(x).astype(LD) * options.get("scale", 1)
        if "softcap" in options:
            z = options["softcap"] * np.tanh(z / options["softcap"])
    return np.where(options.get("where", True), z, -INF)


def logsumexp(z: Array) -> Array:
    """Return the logsumexp of rows."""
    with np.errstate(all="ignore"):
        m = z.max(-1)
        return np.where(np.isinf(m), m, m + np.log(np.exp(z - m[..., None]).sum(-1)))


def normalizer(target: Array, options: dict[str, Any]) -> float:
    """Return the divisor of the mean, by its documented formula."""
    v = options.get("sample_weight", np.ones(len(target)))
    if target.ndim == 2:
        return float(np.sum(v, dtype=float))
    kept = target != options.get("ignore_index", -100)
    w = options.get("weight", np.ones(target.max(initial=0) + 1))
    return float(sum(float(v[i]) * float(w[target[i]]) for i in np.flatnonzero(kept)))


def check(x: Array, target: Array, options: dict[str, Any], bound: float = 2) -> fs.Extras:
    """Compare with the formulas; what comes with the extras has the same bits as without, in place, too."""
    what = f"{x.dtype}, target {target.dtype} {target.shape}, {sorted(options.items(), key=str)}"
    value, grad, extras = fs.cross_entropy_value_and_grad(x, target, **options, extras=True)
    z = final(x, options)
    lse = logsumexp(z)
    size = np.maximum(1, np.abs(np.where(np.isfinite(lse), lse, 1)))
    assert_close(extras.logsumexp, lse, bound, size, what)
    assert extras.logsumexp.dtype == value.dtype
    assert extras.prediction.dtype == np.int64
    if "softcap" not in options:
        np.testing.assert_array_equal(extras.prediction, np.argmax(z, axis=-1), err_msg=what)
    else:  # rounds the logits
        best = np.take_along_axis(z, extras.prediction[:, None], -1)[:, 0]
        assert_close(best.astype(x.dtype), z.max(-1), bound, size, what)
    aim = target if target.ndim == 1 else np.argmax(target, axis=-1)
    counted = target != options.get("ignore_index", -100) if target.ndim == 1 else np.ones(len(x), bool)
    assert extras.correct == np.count_nonzero((extras.prediction == aim) & counted), what
    np.testing.assert_allclose(extras.normalizer, normalizer(target, options), rtol=1e-14, err_msg=what)

    plain = fs.cross_entropy_value_and_grad(x, target, **options)
    in_place = x.copy()
    again = fs.cross_entropy_value_and_grad(in_place, target, **options, grad_out=in_place, extras=True)
    assert again.grad is in_place
    for result in (plain, again):
        assert_same_bits(result.value, value, what)
        assert_same_bits(result.grad, grad, what)
    alone = {k: v for k, v in options.items() if k != "grad_output"}
    loss, of_loss = fs.cross_entropy(x, target, **alone, extras=True)
    assert_same_bits(loss, fs.cross_entropy(x, target, **alone), what)
    assert_close(of_loss.logsumexp, lse, bound, size, what)
    assert_same_bits(again.extras.logsumexp, extras.logsumexp, what)
    for other in (again.extras, of_loss):
        np.testing.assert_array_equal(other.prediction, extras.prediction, err_msg=what)
        assert other[2:] == extras[2:]
    return extras


@pytest.mark.parametrize("seed", range(30))
def test_random_options(room: Room, dtype: np.dtype, seed: int) -> None:
    x, target, options = draw(np.random.default_rng(seed), dtype)
    bound = 2.0
    if "softcap" in options:
        cap = float(options["softcap"])
        bound += 4 * cap * (dtype != F4) + 8 * np.abs(options.get("scale", 1) * x / cap).max()
    check(x, target, options, bound)


ROWS = np.array([
    [0.5, -1, 2, 2, 1], [0.5, -INF, 2, -INF, 1], [-INF] * 5, [0, INF, 1, INF, -INF], [0, NAN, INF, NAN, 1],
    [1, 2, 3, NAN, 3], [-0.0, 0.0, -0.0, 0.0, -0.0], [NAN, 9, 9, 9, 9], [-INF, -INF, -INF, -INF, 0],
    [-INF] * 5,
])  # fmt: skip
LABELS = np.array([2, 2, 0, 1, 2, 3, 1, -100, 4, -100])
NONE = np.array([[True] * 5] * 7 + [[False] * 5] + [[False] * 4 + [True]] + [[True] * 5])


EDGES: dict[str, dict[str, Any]] = {
    "plain": {}, "scale": {"scale": 3.0}, "negative scale": {"scale": -1.0}, "smoothing": {"label_smoothing": 0.1},
    "mask of all": {"where": np.full(ROWS.shape, True)}, "mask": {"where": ROWS != 2}, "nothing": {"where": NONE},
    "smoothed nothing": {"where": NONE, "label_smoothing": 0.1}, "softcap": {"softcap": 4.0, "where": NONE},
    "smoothed mask": {"where": np.arange(5) < 4, "label_smoothing": 0.5, "ignore_index": 2},
}  # fmt: skip


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("options", EDGES.values(), ids=EDGES)
def test_rows_at_the_edges(room: Room, dtype: np.dtype, options: dict[str, Any], empty: str) -> None:
    options = {**options, "empty": empty, "reduction": "none"}
    bound = 16 if "softcap" in options else 2
    x, y = ROWS.astype(dtype), np.where(LABELS < 0, options.get("ignore_index", -100), LABELS)
    for target in (y, np.roll(np.eye(5, dtype=dtype)[np.maximum(LABELS, 0)], 1, axis=0)):
        check(x, target, options, bound)
    # Neither few classes nor short rows.
    if "where" in options:
        options["where"] = np.broadcast_to(options["where"], x.shape).repeat(40, axis=1)
    if "ignore_index" in options:
        options["ignore_index"] *= 40
    extras = check(x.repeat(40, axis=1), np.where(y < 0, y, y * 40), options, bound)
    if "where" not in options and "scale" not in options:
        assert extras.prediction.tolist() == [80, 80, 0, 40, 40, 120, 0, 0, 160, 0]


def arranged(a: Array) -> list[tuple[Any, Array]]:
    """Return the same rows with the classes along other axes, and other strides."""
    r, c = a.shape
    return [
        (0, a.T), (0, np.ascontiguousarray(a.T)), (1, a.reshape(2, -1, c).swapaxes(1, 2)), (-1, a.repeat(2, 1)[:, ::2]),
        (-1, a[::-1, ::-1].copy()[::-1, ::-1]), ((0, 2), a.reshape(r, 2, -1).swapaxes(0, 1)),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int32, ">f4"])
@pytest.mark.parametrize("soft", [False, True])
def test_layouts(room: Room, dtype: Any, soft: bool) -> None:
    """A row's extras do not depend on how it lies; those of 16-bit logits are float32."""
    rng = np.random.default_rng(0)
    for r, c in ((6, 4), (70, 34)):
        x = rng.normal(0, 4, (r, c)).astype(dtype)
        x[:, 1] = x[:, 3]
        y = rng.integers(c, size=r)
        target = rng.dirichlet(np.ones(c), r).astype(np.float32) if soft else y
        flat = fs.cross_entropy_value_and_grad(x, target, extras=True).extras
        assert flat.logsumexp.dtype == (np.float64 if x.dtype.kind == "i" or x.dtype.itemsize == 8 else np.float32)
        np.testing.assert_array_equal(flat.prediction, np.argmax(x.astype(float), axis=-1))
        assert flat.correct == np.count_nonzero(flat.prediction == (target.argmax(-1) if soft else y))
        alone = fs.cross_entropy(x, target, extras=True).extras
        targets = [t for _, t in arranged(target)] if soft else [y, y, y.reshape(2, -1), y, y, y]
        for (axis, logits), t in zip(arranged(x), targets):
            for get, expected in ((fs.cross_entropy, alone), (fs.cross_entropy_value_and_grad, flat)):
                extras = get(logits, t, axis, extras=True).extras
                assert_same_bits(extras.logsumexp.reshape(-1), expected.logsumexp)
                np.testing.assert_array_equal(extras.prediction.reshape(-1), expected.prediction)
                assert extras[2:] == expected[2:]


def test_shapes(room: Room) -> None:
    """Scalars for one row, arrays without elements for none, and no class is no prediction."""
    value, extras = fs.cross_entropy([1.0, 3.0, 2.0], 1, extras=True)
    assert isinstance(value, np.float64)
    assert isinstance(extras.logsumexp, np.float64)
    assert isinstance(extras.prediction, np.int64)
    assert isinstance(extras.correct, int)
    assert isinstance(extras.normalizer, float)
    assert extras[1:] == (1, 1, 1.0)
    for options in ({}, {"where": np.array(True), "label_smoothing": 0.1}, {"softcap": 1e9}):
        assert fs.cross_entropy_value_and_grad(5.0, 0, **options, extras=True).extras == (5.0, 0, 1, 1.0)
    lost = fs.cross_entropy_value_and_grad(-INF, 0, where=np.array(True), extras=True)
    assert np.isnan(lost.value)
    assert np.isnan(lost.grad)
    assert lost.extras == (-INF, 0, 1, 1.0)
    x = np.zeros((2, 3, 4))
    for axis, shape in ((1, (2, 4)), ((0, 2), (3,)), (None, ()), ((), (2, 3, 4))):
        extras = fs.cross_entropy(x, np.zeros(shape, int), axis, extras=True).extras
        assert extras.logsumexp.shape == extras.prediction.shape == shape
        assert extras.correct == extras.normalizer == np.prod(shape)
    for shape, soft in (((0, 5), False), ((0, 5), True), ((3, 0), False), ((3, 0), True)):
        target = np.zeros(shape) if soft else np.full(shape[:1], -100)
        for options in ({}, {"where": np.ones(shape, bool), "label_smoothing": 0.1}):
            value, grad, extras = fs.cross_entropy_value_and_grad(np.zeros(shape), target, **options, extras=True)
            assert grad.shape == shape
            assert extras.logsumexp.shape == extras.prediction.shape == shape[:1]
            assert (extras.logsumexp == -INF).all()
            assert (extras.prediction == 0).all()
            assert extras.correct == 0
            assert extras.normalizer == (shape[0] if soft else 0)


def test_normalizer_is_that_of_the_mean_whatever_the_reduction(room: Room, dtype: np.dtype) -> None:
    x, y, w = np.eye(4, 5, dtype=dtype), [0, 1, -100, 0], np.arange(1, 6)
    for reduction in ("none", "sum", "mean"):
        extras = fs.cross_entropy(x, y, weight=w, sample_weight=[1, 2, 4, 0.5], reduction=reduction, extras=True).extras
        assert extras.normalizer == 1 + 4 + 0.5
        assert extras.correct == 2


def test_large_finite_logits_are_not_nothing(room: Room) -> None:
    """Their logsumexp overflows to that of a row of -inf, which has no finite loss."""
    x = np.full((2, 3), -np.finfo(np.float32).max)
    options = {"scale": 4.0, "where": [True, True, False], "reduction": "none"}
    value, grad, extras = fs.cross_entropy_value_and_grad(x.astype(F4), [0, 1], **options, extras=True)
    assert (extras.logsumexp == -INF).all()
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
    np.testing.assert_allclose(grad, [[-2, 2, 0], [2, -2, 0]])


def test_labels_and_mask_may_lie_in_the_gradient(room: Room) -> None:
    buffer = np.zeros(16)
    mask = buffer.view(bool)[:16].reshape(2, 8)
    mask[:, ::2] = True
    x = np.full((2, 8), -INF)
    x[0] = 1
    expected = fs.cross_entropy_value_and_grad(x, [0, 0], where=mask.copy(), extras=True)
    result = fs.cross_entropy_value_and_grad(x, [0, 0], where=mask, extras=True, grad_out=buffer.reshape(2, 8))
    assert_same_bits(result.grad, expected.grad)
    assert result.extras[2:] == expected.extras[2:]
    labels = buffer.view(np.int64)[3:5]
    labels[:] = 0, 1
    result = fs.cross_entropy_value_and_grad(np.eye(2, 8), labels, extras=True, grad_out=buffer.reshape(2, 8))
    assert_same_bits(result.grad, fs.cross_entropy_value_and_grad(np.eye(2, 8), [0, 1]).grad)
    assert result.extras[2:] == (2, 2.0)
