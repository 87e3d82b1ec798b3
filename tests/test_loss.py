"""Cross-entropy with all its options, against an independent implementation, and against peers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from checks import LD, assert_close, assert_same_bits
from rooms import Room

import fastsoftmax as fs
from fastsoftmax._ops import Array

INF, NAN = np.inf, np.nan


# --- the independent implementation ------------------------------------------------


def reference(
    logits: Array, target: Array, *, weight: Any = None, sample_weight: Any = None, ignore_index: int = -100,
    label_smoothing: float = 0.0, reduction: str = "mean", scale: float = 1.0, softcap: float | None = None,
    z_loss: float = 0.0, where: Any = None, empty: str = "nan", grad_output: Any = None,
) -> tuple[Any, Array, Any]:  # fmt: skip
    """Loss and gradient of rows (R, C), written from the documented formulas, row by row, in longdouble.

    Also returns the size of the terms that the gradient is made of.
    """
    rows, c = logits.shape
    x = logits.astype(LD)
    w = np.ones(c, LD) if weight is None else np.asarray(weight, LD)
    v = np.ones(rows, LD) if sample_weight is None else np.broadcast_to(np.asarray(sample_weight, LD), rows)
    mask = np.ones((rows, c), bool) if where is None else np.broadcast_to(where, (rows, c))
    losses, grad, size = np.zeros(rows, LD), np.zeros((rows, c), LD), np.zeros((rows, c), LD)
    counted = np.zeros(rows, LD)
    indexed = target.ndim == 1
    for i in range(rows):
        if indexed and target[i] == ignore_index:
            continue
        counted[i] = v[i] * (w[target[i]] if indexed else 1)
        z, slope = x[i] * scale, np.full(c, LD(scale))
        if softcap is not None:
            slope = slope / np.cosh(z / softcap) ** 2
            z = softcap * np.tanh(z / softcap)
        included = np.flatnonzero(mask[i])
        t = np.zeros(c, LD)
        if indexed:
            t[target[i]] = 1
        else:
            t[:] = target[i]
        t *= 1 - LD(label_smoothing)
        if len(included):
            t[included] += LD(label_smoothing) / len(included)
        q = w * t
        logp, lse = np.full(c, -INF, LD), -LD(INF)
        if len(included):
            top = included[np.argmax(z[included])]
            rest = np.exp(z[included[included != top]] - z[top]).sum()
            logp[included] = (z[included] - z[top]) - np.log1p(rest)
            lse = z[top] + np.log1p(rest)
        losses[i] = v[i] * (-sum(q[k] * logp[k] for k in range(c) if q[k] != 0) + (z_loss * lse**2 if z_loss else 0))
        p = np.exp(logp)
        terms = (q.sum() * p, 2 * z_loss * lse * p if z_loss else 0 * p, -q)
        grad[i, included] = (v[i] * slope * sum(terms))[included]
        size[i, included] = (np.abs(v[i] * slope) * sum(np.abs(term) for term in terms))[included]
    factor = np.ones(rows, LD) if grad_output is None else np.broadcast_to(np.asarray(grad_output, LD), rows)
    value: Any = losses
    if reduction != "none":
        value = losses.sum()
    if reduction == "mean":
        n = counted.sum()
        if n == 0:
            nothing = LD(0 if empty == "zero" else NAN)
            ignored = target == ignore_index if indexed else np.zeros(rows, bool)
            return nothing, np.where(ignored[:, None] | ~mask, 0, grad * nothing), size
        value, factor = value / n, factor / n
    return value, grad * factor[:, None], np.abs(size * factor[:, None])


def random_options(rng: np.random.Generator, r: int, c: int) -> dict[str, Any]:
    """Draw a combination of options."""
    options: dict[str, Any] = {
        "weight": rng.uniform(0.1, 3, c),
        "sample_weight": rng.choice([0.0, 0.5, 1.0, 2.0], r),
        "label_smoothing": rng.choice([0.05, 0.5, 1.0]),
        "scale": rng.choice([0.5, 2.0, -1.0, 0.7]),
        "softcap": rng.choice([1.0, 5.0, 30.0]),
        "z_loss": rng.choice([1e-4, 0.1]),
        "where": rng.random((r, c)) < 0.8,
        "ignore_index": int(rng.choice([-1, 0, c - 1])),
        "empty": "zero",
    }
    chosen = {name: value for name, value in options.items() if rng.random() < 0.35}
    chosen["reduction"] = str(rng.choice(["none", "mean", "sum"]))
    if rng.random() < 0.5:
        chosen["grad_output"] = rng.normal(size=r) if chosen["reduction"] == "none" else float(rng.normal())
    return chosen


def compare(x: Array, target: Array, options: dict[str, Any], bound: float = 16) -> None:
    """Compare loss and gradient with the reference."""
    expected, slope, size = reference(x, target, **options)
    if "softcap" in options:  # rounds the logits, once they are up to softcap in size, and its slope falls off as fast
        cap = float(options["softcap"])
        bound += 4 * cap * (x.dtype == np.float64) + 8 * np.abs(options.get("scale", 1) * x / cap).max()
    size = np.maximum(size, 16 * np.finfo(x.dtype).tiny)
    value, grad = fs.cross_entropy_value_and_grad(x, target, **options)
    what = f"{x.dtype}, {x.shape}, target {target.dtype} {target.shape}, {sorted(options.items(), key=str)}"
    assert value.dtype == x.dtype, what
    assert grad.dtype == x.dtype, what
    size_of_value = np.maximum(np.abs(expected), np.finfo(x.dtype).eps)
    assert_close(value, np.asarray(expected), bound, np.where(np.isfinite(size_of_value), size_of_value, 1), what)
    assert_close(grad, slope, bound, size, what)
    alone = {k: v for k, v in options.items() if k != "grad_output"}
    assert_close(fs.cross_entropy(x, target, **alone), np.asarray(value, LD), 8, what=what)
    in_place = x.copy()
    result = fs.cross_entropy_value_and_grad(in_place, target, **options, grad_out=in_place)
    assert result.grad is in_place
    assert_same_bits(in_place, grad, f"in place: {what}")
    assert_same_bits(result.value, value, f"in place: {what}")


def draw(rng: np.random.Generator, dtype: np.dtype) -> tuple[Array, Array, dict[str, Any]]:
    """Draw logits, targets and options."""
    r, c = int(rng.integers(1, 9)), int(rng.choice([1, 2, 3, 5, 10, 17, 33, 100]))
    x = (rng.normal(size=(r, c)) * rng.choice([0.3, 3, 20])).astype(dtype)
    options = random_options(rng, r, c)
    for name in ("weight", "sample_weight", "grad_output"):
        if name in options and isinstance(options[name], np.ndarray):
            options[name] = options[name].astype(dtype)  # so that both see the same numbers
    if rng.random() < 0.5:
        target = rng.integers(c, size=r)
        if "where" in options:
            options["where"][np.arange(r), target] = True
    else:
        target = (rng.random((r, c)) * rng.choice([1, 2 / c])).astype(dtype)
        if "where" in options:
            options["where"][:, 0] = True  # a row of nothing is infinitely far from any z-loss
            target[~options["where"]] = 0
    return x, target, options


@pytest.mark.parametrize("seed", range(60))
def test_random_options(room: Room, dtype: np.dtype, seed: int) -> None:
    compare(*draw(np.random.default_rng(seed), dtype))


@pytest.mark.nightly
def test_many_random_options(room: Room, dtype: np.dtype) -> None:
    for seed in range(100, 5000):
        compare(*draw(np.random.default_rng(seed), dtype))


# --- single options ------------------------------------------------


def data(dtype: np.dtype, r: int = 6, c: int = 7, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.normal(0, 3, (r, c)).astype(dtype), rng.integers(c, size=r)


def test_defaults_are_those_of_torch(room: Room, dtype: np.dtype) -> None:
    x, y = data(dtype)
    logp = x.astype(LD) - np.log(np.exp(x.astype(LD)).sum(-1, keepdims=True))
    picked = -logp[np.arange(6), y]
    assert_close(fs.cross_entropy(x, y), picked.mean(), 4)
    assert_close(fs.cross_entropy(x, y, reduction="none"), picked, 2)
    y[2] = -100
    assert_close(fs.cross_entropy(x, y), np.delete(picked, 2).mean(), 4)


def test_ignored_rows(room: Room, dtype: np.dtype) -> None:
    x, y = data(dtype)
    y[[1, 4]] = 3
    for ignore in (3, -100, -1):
        labels = np.where(y == 3, ignore, y)
        kept = np.flatnonzero(labels != ignore)
        dirty = x.copy()
        dirty[np.flatnonzero(labels == ignore)] = np.resize([NAN, INF, -INF], 7)
        for options in (
            {}, {"z_loss": 0.1, "label_smoothing": 0.2}, {"softcap": 2.0}, {"weight": np.arange(1, 8.0)},
            {"where": np.arange(7) != 6, "label_smoothing": 0.1}, {"sample_weight": np.arange(6.0)},
        ):  # fmt: skip
            if "where" in options and 6 in labels[kept]:
                labels = np.where(labels == 6, 5, labels)
            part = {k: v[kept] if k == "sample_weight" else v for k, v in options.items()}
            for reduction in ("none", "mean", "sum"):
                value, grad = fs.cross_entropy_value_and_grad(
                    dirty, labels, ignore_index=ignore, reduction=reduction, **options
                )
                alone = fs.cross_entropy_value_and_grad(x[kept], labels[kept], reduction=reduction, **part)
                if reduction == "none":
                    assert (np.delete(value, kept) == 0).all()
                    value = value[kept]
                assert_close(value, np.asarray(alone.value, LD), 2, what=str(options))
                assert_same_bits(grad[kept], alone.grad, str(options))
                assert (np.delete(grad, kept, axis=0) == 0).all()


def test_many_labels(room: Room) -> None:
    """Threads share the check of many labels: each part's ignored rows count, and each part's bad labels are found."""
    x, y = data(np.dtype(np.float32), 100_003, 2)
    y[[5, 40_000, 70_000, 100_002]] = -100
    each = fs.cross_entropy(x, y, reduction="none").astype(float)
    np.testing.assert_allclose(fs.cross_entropy(x, y), each.sum() / 99_999, rtol=2e-7)
    y[99_999] = 2
    with pytest.raises(IndexError, match=r"target\[99999\] = 2 is out of bounds for 2 classes"):
        fs.cross_entropy(x, y)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_16_bit_logits(room: Room, reduction: str) -> None:
    """Losses are those of the same logits in float32, gradients theirs rounded once, in place, too."""
    rng = np.random.default_rng(5)
    for dtype, (rows, c) in itertools.product((np.float16, ml_dtypes.bfloat16), ((500, 7), (50, 300), (3, 20_011))):
        x, y = rng.standard_normal((rows, c)).astype(dtype), rng.integers(0, c, rows)
        y[1] = -100
        wide = x.astype(np.float32)
        assert_same_bits(fs.cross_entropy(x, y, reduction=reduction), fs.cross_entropy(wide, y, reduction=reduction))
        value, grad = fs.cross_entropy_value_and_grad(x, y, reduction=reduction)
        wide_value, wide_grad = fs.cross_entropy_value_and_grad(wide, y, reduction=reduction)
        assert_same_bits(value, wide_value)
        assert grad.dtype == dtype
        assert_same_bits(grad.astype(np.float32), wide_grad.astype(dtype).astype(np.float32))
        y[2] = c
        with pytest.raises(IndexError, match=rf"target\[2\] = {c} is out of bounds for {c} classes"):
            fs.cross_entropy_value_and_grad(x, y, reduction=reduction, grad_out=x)
        assert_same_bits(x.astype(np.float32), wide)
        y[2] = 0
        grad = fs.cross_entropy_value_and_grad(x, y, reduction=reduction).grad
        fs.cross_entropy_value_and_grad(x, y, reduction=reduction, grad_out=x)
        assert_same_bits(x.astype(np.float32), grad.astype(np.float32))


def test_ignored_class_still_counts_in_the_denominator(room: Room, dtype: np.dtype) -> None:
    x, y = data(dtype)
    y[:] = np.where(y == 2, 1, y)
    assert_same_bits(fs.cross_entropy(x, y, ignore_index=2), fs.cross_entropy(x, y))


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_zero_normaliser(room: Room, dtype: np.dtype, soft: bool, empty: str) -> None:
    x, y = data(dtype)
    target = np.eye(7, dtype=dtype)[y] if soft else y
    for options in ({"sample_weight": np.zeros(6)}, *([] if soft else [{"ignore_index": 0}, {"weight": np.zeros(7)}])):
        labels = np.zeros(6, int) if "ignore_index" in options else target
        value, grad = fs.cross_entropy_value_and_grad(x, labels, empty=empty, **options)
        assert np.isnan(value) if empty == "nan" else value == 0
        if empty == "zero":
            assert (grad == 0).all()


def test_normalisers(room: Room) -> None:
    x, y = data(np.dtype(float))
    w, v = np.arange(1, 8.0), np.array([1, 0, 2, 0.5, 3, 1])
    each = fs.cross_entropy(x, y, weight=w, sample_weight=v, reduction="none")
    total = fs.cross_entropy(x, y, weight=w, sample_weight=v, reduction="sum")
    np.testing.assert_allclose(total, each.sum(), rtol=1e-15)
    np.testing.assert_allclose(fs.cross_entropy(x, y, weight=w, sample_weight=v), total / (w[y] * v).sum(), rtol=1e-15)
    soft = np.eye(7)[y]
    soft_total = fs.cross_entropy(x, soft, weight=w, sample_weight=v, reduction="sum")
    np.testing.assert_allclose(soft_total, total, rtol=1e-14)
    np.testing.assert_allclose(fs.cross_entropy(x, soft, weight=w, sample_weight=v), total / v.sum(), rtol=1e-14)


def test_grad_output(room: Room, dtype: np.dtype) -> None:
    x, y = data(dtype)
    g = np.array([1, -2, 0, 0.5, 4, 1], dtype)
    one = fs.cross_entropy_value_and_grad(x, y, reduction="none")
    each = fs.cross_entropy_value_and_grad(x, y, reduction="none", grad_output=g)
    assert_same_bits(each.value, one.value)
    assert_close(each.grad, one.grad.astype(LD) * g[:, None], 1)
    for shape in ((6,), (6, 1)):
        assert_same_bits(
            fs.cross_entropy_value_and_grad(x, y, reduction="none", grad_output=g.reshape(shape)).grad, each.grad
        )
    for scalar in (2.0, np.array(2.0), [2.0], np.array([[2.0]])):
        mean = fs.cross_entropy_value_and_grad(x, y, grad_output=scalar)
        assert_close(mean.grad, one.grad.astype(LD) / 3, 4)


def test_softcap_comes_before_the_mask(room: Room, dtype: np.dtype) -> None:
    """An excluded class must be gone, not capped to -softcap."""
    x, y = data(dtype)
    mask = np.arange(7) < 6
    y = np.minimum(y, 5)
    for options in ({"softcap": 0.5}, {"softcap": 0.5, "label_smoothing": 0.3}):
        full = fs.cross_entropy_value_and_grad(x, y, where=mask, **options)
        part = fs.cross_entropy_value_and_grad(x[:, :6], y, **options)
        assert_close(full.value, np.asarray(part.value, LD), 4)
        assert_close(full.grad[:, :6], part.grad.astype(LD), 8, np.abs(part.grad) + 0.05, "gradient")
        assert (full.grad[:, 6] == 0).all()


def test_smoothing_is_uniform_over_included_classes(room: Room, dtype: np.dtype) -> None:
    """Excluded classes are as if absent, whatever their number in each row."""
    rng = np.random.default_rng(3)
    x, y = data(dtype)
    mask = rng.random((6, 7)) < 0.6
    mask[np.arange(6), y] = True
    w = rng.uniform(0.5, 2, 7).astype(dtype)
    for weight in (None, w):
        value, grad = fs.cross_entropy_value_and_grad(
            x, y, where=mask, label_smoothing=0.3, weight=weight, reduction="none"
        )
        for i in range(6):
            kept = np.flatnonzero(mask[i])
            row = fs.cross_entropy_value_and_grad(
                x[i, kept], int(np.flatnonzero(kept == y[i])[0]), label_smoothing=0.3, reduction="none",
                weight=None if weight is None else weight[kept],
            )  # fmt: skip
            assert_close(value[i], np.asarray(row.value, LD), 6)
            assert_close(grad[i, kept], row.grad.astype(LD), 8, np.maximum(np.abs(row.grad), 0.5), "gradient")
            assert (grad[i, ~mask[i]] == 0).all()


@pytest.mark.parametrize("classes", [3, 40, 300])
def test_options_keep_the_bits_of_a_row(room: Room, dtype: np.dtype, classes: int) -> None:
    """What options make of a row depends neither on how its logits and its mask lie in memory nor on its neighbours."""
    rng = np.random.default_rng(classes)
    rows = 37
    x = rng.standard_normal((rows, classes)).astype(dtype)
    y = rng.integers(0, classes, rows)
    y[3] = -100
    mask = rng.random((rows, classes)) < 0.7
    mask[5] = False
    probs = (rng.random((rows, classes)) * mask).astype(dtype)
    apart = np.zeros((2, rows, 2 * classes), dtype)
    apart[0, :, ::2] = x
    mask_apart = np.zeros((rows, 2 * classes), bool)
    mask_apart[:, ::2] = mask
    odd = np.frombuffer(b"." + x.tobytes(), dtype, offset=1).reshape(x.shape)
    options: list[dict[str, Any]] = [
        {}, {"label_smoothing": 0.1}, {"softcap": 3.0}, {"scale": -1.0},
        {"label_smoothing": 0.2, "weight": rng.random(classes).astype(dtype), "z_loss": 0.1},
    ]  # fmt: skip
    for t, option in [*((y, option) for option in options), (probs, {"label_smoothing": 0.3})]:

        def loss(x: Array, t: Array, mask: Array, option: dict[str, Any] = option) -> Any:
            return fs.cross_entropy_value_and_grad(x, t, where=mask, reduction="none", **option)

        value, grad = loss(x, t, mask)
        others = [
            loss(odd, t, mask), loss(x.astype(x.dtype.newbyteorder()), t, mask), loss(apart[0, :, ::2], t, mask),
            loss(x, t, mask_apart[:, ::2]), loss(np.asfortranarray(x), t, np.asfortranarray(mask)),
        ]  # fmt: skip
        for other in others:
            assert_same_bits(other.value, value)
            assert_same_bits(other.grad.astype(dtype), grad)
        part = loss(x[5:9], t[5:9], mask[5:9])
        assert_same_bits(part.value, value[5:9])
        assert_same_bits(part.grad, grad[5:9])


def test_smoothing_counts_what_is_excluded_once(room: Room, dtype: np.dtype) -> None:
    """Labels that are excluded, rows without a class, and included logits of -inf, in columns and in rows."""
    for classes in (5, 200):
        x = np.linspace(-2, 2, 6 * classes).reshape(6, classes).astype(dtype)
        y = np.arange(6) % classes
        mask = np.ones((6, classes), bool)
        mask[:, 3] = False  # the label of row 3
        mask[4] = False
        x[1, 2] = -INF
        for smoothing in (0.25, 1.0):
            value, grad = fs.cross_entropy_value_and_grad(
                x, y, where=mask, label_smoothing=smoothing, reduction="none", empty="zero"
            )
            wanted, wanted_grad, size = reference(
                x, y, where=mask, label_smoothing=smoothing, reduction="none", empty="zero"
            )
            assert_close(value, wanted, 8)
            assert_close(grad, wanted_grad, 16, size, "gradient")
            assert (grad[~mask] == 0).all()


def test_mean_of_many_weighted_rows(room: Room) -> None:
    """The factors of rows are added up in runs, which threads share: as exactly as fsum, whatever their number."""
    rng = np.random.default_rng(9)
    x, y = np.zeros((100_003, 2), np.float32), rng.integers(0, 2, 100_003)
    y[::7] = -100
    w, v = np.array([0.1, 0.7], np.float32), rng.random(len(x)).astype(np.float32)
    kept = y >= 0
    for weight, rows in ((w, None), (None, v), (w, v)):
        each = (1.0 if weight is None else weight[y[kept]].astype(float)) * (
            1.0 if rows is None else v[kept].astype(float)
        )
        exact = math.fsum(each)
        found = set()
        for threads in (1, 2):
            with fs.num_threads(threads):
                extras = fs.cross_entropy(x, y, weight=weight, sample_weight=rows, extras=True).extras
            found.add(extras.normalizer)
        assert len(found) == 1
        assert abs(found.pop() - exact) <= 4e-16 * exact * (1 if room.backend == "cython" else 100)


def test_z_loss(room: Room, dtype: np.dtype) -> None:
    x, y = data(dtype)
    lse = fs.logsumexp(x.astype(float))
    plain = fs.cross_entropy(x.astype(float), y, reduction="none")
    np.testing.assert_allclose(
        fs.cross_entropy(x, y, reduction="none", z_loss=0.25), plain + 0.25 * lse**2, rtol=8 * np.finfo(dtype).eps
    )


def test_unnormalised_targets(room: Room, dtype: np.dtype) -> None:
    x, _ = data(dtype)
    t = np.random.default_rng(1).random(x.shape).astype(dtype) * 5
    compare(x, t, {"reduction": "sum"})
    compare(x, t, {"weight": np.arange(1, 8).astype(dtype), "reduction": "none"})
    double = fs.cross_entropy_value_and_grad(x, 2 * t)
    once = fs.cross_entropy_value_and_grad(x, t)
    assert_same_bits(double.grad, 2 * once.grad)
    assert_same_bits(double.value, 2 * once.value)


def test_zero_probability_times_infinity(room: Room, dtype: np.dtype) -> None:
    x = np.array([[1, -INF, 2, -INF], [0, 1, 2, 3]], dtype)
    t = np.array([[0.25, 0, 0.75, 0], [0.25, 0.25, 0.25, 0.25]], dtype)
    value, grad = fs.cross_entropy_value_and_grad(x, t, reduction="none")
    inner = fs.cross_entropy_value_and_grad(x[:1, [0, 2]], t[:1, [0, 2]], reduction="none")
    assert_close(value[:1], inner.value.astype(LD), 4)
    assert np.isfinite(grad).all()
    assert (grad[0, [1, 3]] == 0).all()
    t[0, 1] = 1e-3
    value, grad = fs.cross_entropy_value_and_grad(x, t, reduction="none")
    assert value[0] == INF
    assert np.isfinite(grad).all()


def test_scalar_and_one_row_shapes(room: Room) -> None:
    value, grad = fs.cross_entropy_value_and_grad([1.0, 2, 3], 2)
    assert np.ndim(value) == 0
    assert grad.shape == (3,)
    assert fs.cross_entropy([1.0, 2, 3], 2, reduction="none") == value
    x = np.random.default_rng(0).normal(size=(2, 5, 3))
    y = np.array([[0, 1, 4], [2, 3, 0]])
    flat = fs.cross_entropy(np.moveaxis(x, 1, -1).reshape(6, 5), y.reshape(-1), reduction="none")
    assert_same_bits(fs.cross_entropy(x, y, 1, reduction="none"), flat.reshape(2, 3))


# --- peers as referees ------------------------------------------------


def torch_options(options: dict[str, Any], torch: Any, dtype: Any) -> dict[str, Any]:
    kept = {k: v for k, v in options.items() if k in ("label_smoothing", "reduction", "ignore_index")}
    if "weight" in options:
        kept["weight"] = torch.as_tensor(options["weight"], dtype=dtype)
    return kept


def against_torch(torch: Any, x: Array, target: Array, options: dict[str, Any]) -> None:
    for ours_alone in ("sample_weight", "scale", "softcap", "z_loss", "where", "empty"):
        options.pop(ours_alone, None)
    if target.ndim == 2:
        options.pop("ignore_index", None)
    z = torch.tensor(x, requires_grad=True)
    loss = torch.nn.functional.cross_entropy(z, torch.as_tensor(target), **torch_options(options, torch, z.dtype))
    upstream = torch.as_tensor(options.get("grad_output", 1.0), dtype=z.dtype).expand(loss.shape)
    loss.backward(upstream)
    value, grad = fs.cross_entropy_value_and_grad(x, target, **options)
    eps = 64 * float(np.finfo(x.dtype).eps)
    np.testing.assert_allclose(value, loss.detach().numpy(), rtol=eps, atol=eps, err_msg=str(options))
    absolute = eps * max(1, float(np.abs(upstream.numpy()).max()))  # theirs is p - 1, ours keeps the tail
    np.testing.assert_allclose(grad, z.grad.numpy(), rtol=eps, atol=absolute, err_msg=str(options))


def test_torch_cross_entropy(room: Room, dtype: np.dtype) -> None:
    torch = pytest.importorskip("torch")
    for seed in range(1000, 1040):
        against_torch(torch, *draw(np.random.default_rng(seed), dtype))


def test_torch_normalisers(room: Room, dtype: np.dtype) -> None:
    """What a mean divides by, with and without weights, smoothing, ignored rows and soft targets."""
    torch = pytest.importorskip("torch")
    x, y = data(dtype, 20)
    y[[1, 4]] = 3
    soft = np.random.default_rng(1).random((20, 7)).astype(dtype)
    for weight, smoothing, ignore in itertools.product((None, np.arange(1, 8, dtype=dtype)), (0.0, 0.3), (-100, 3)):
        options = {"label_smoothing": smoothing, "ignore_index": ignore}
        if weight is not None:
            options["weight"] = weight
        for target in (y, soft):
            for reduction in ("mean", "sum"):
                against_torch(torch, x, target, {**options, "reduction": reduction})


@pytest.mark.nightly
def test_torch_cross_entropy_often(room: Room, dtype: np.dtype) -> None:
    torch = pytest.importorskip("torch")
    for seed in range(2000, 4000):
        against_torch(torch, *draw(np.random.default_rng(seed), dtype))


def test_torch_forward_and_jacobians(room: Room, dtype: np.dtype) -> None:
    """Every row of the Jacobian against autograd, and the products against its vector-Jacobian product."""
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(0).normal(0, 2, (5, 11)).astype(dtype)
    g = np.random.default_rng(1).normal(size=(5, 11)).astype(dtype)
    tol = {"rtol": 64 * np.finfo(dtype).eps, "atol": 4 * np.finfo(dtype).eps}
    for name in ("softmax", "log_softmax"):
        z = torch.tensor(x, requires_grad=True)
        theirs = getattr(torch, name)(z, -1)
        saved = getattr(fs, name)(x)
        np.testing.assert_allclose(saved, theirs.detach().numpy(), **tol)
        (vjp,) = torch.autograd.grad(theirs, z, torch.tensor(g), retain_graph=True)
        np.testing.assert_allclose(getattr(fs, name + "_vjp")(saved, g), vjp.numpy(), **tol)
        jacobian = getattr(fs, name + "_jacobian")(saved)
        for i in range(11):
            unit = torch.zeros_like(theirs)
            unit[:, i] = 1
            (row,) = torch.autograd.grad(theirs, z, unit, retain_graph=True)
            np.testing.assert_allclose(jacobian[:, i], row.numpy(), **tol)
    z = torch.tensor(x, requires_grad=True)
    lse = torch.logsumexp(z, -1)
    np.testing.assert_allclose(fs.logsumexp(x), lse.detach().numpy(), **tol)
    (vjp,) = torch.autograd.grad(lse, z, torch.tensor(g[:, 0]))
    np.testing.assert_allclose(fs.logsumexp_vjp(fs.softmax(x), g[:, 0]), vjp.numpy(), **tol)


def test_scipy(room: Room, dtype: np.dtype) -> None:
    special = pytest.importorskip("scipy.special")
    rng = np.random.default_rng(0)
    tol = {"rtol": 32 * np.finfo(dtype).eps}
    for shape, axis in (((5, 7), -1), ((5, 7), 0), ((3, 4, 5), (0, 2)), ((3, 4), None)):
        x = rng.normal(0, 5, shape).astype(dtype)
        b = rng.uniform(0.1, 2, shape).astype(dtype)
        np.testing.assert_allclose(fs.softmax(x, axis), special.softmax(x, axis), **tol)
        np.testing.assert_allclose(fs.log_softmax(x, axis), special.log_softmax(x, axis), atol=1e-6, **tol)
        np.testing.assert_allclose(fs.logsumexp(x, axis), special.logsumexp(x, axis), **tol)
        np.testing.assert_allclose(fs.logsumexp(x, axis, b=b), special.logsumexp(x, axis, b=b), atol=1e-6, **tol)
        ours, theirs = (f(x, axis, b=b - 1, return_sign=True) for f in (fs.logsumexp, special.logsumexp))
        np.testing.assert_array_equal(ours[1], theirs[1])
        np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-4)


def test_sklearn(room: Room, dtype: np.dtype) -> None:
    loss_module = pytest.importorskip("sklearn._loss")
    x, y = data(dtype, 50, 7)
    v = np.random.default_rng(5).random(50).astype(dtype)
    loss = loss_module.HalfMultinomialLoss(n_classes=7)
    value, grad = loss.loss_gradient(y_true=y.astype(dtype), raw_prediction=x, sample_weight=v)
    ours = fs.cross_entropy_value_and_grad(x, y, sample_weight=v, reduction="none")
    tol = {"rtol": 64 * np.finfo(dtype).eps, "atol": 8 * np.finfo(dtype).eps}
    np.testing.assert_allclose(ours.value, value, **tol)
    np.testing.assert_allclose(ours.grad, grad, **tol)
