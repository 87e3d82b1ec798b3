"""The public surface: arguments, shapes, outputs, values at the edges, errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import Case, is_loss
from checks import LD, assert_close, assert_same_bits, compute
from faces import call, faces, out_keyword
from hypothesis import example, given
from hypothesis import strategies as st
from rooms import ROOMS, Room

import fastsoftmax as fs
from fastsoftmax._ops import CLASS, ROW, SQUARE, Array, Op

INF, NAN = np.inf, np.nan
FACES = [pytest.param(public, op, id=f"{public}-{op.name}") for public, op in faces()]
WITH_OUT = [pytest.param(p, o, id=f"{p}-{o.name}") for p, o in faces() if any(out_keyword(o, n) for n, _ in o.outs)]


def operands(op: Op, dtype: Any = np.float64, shape: tuple[int, int] = (4, 6)) -> list[Any]:
    return Case("normal", *shape).build(op, np.dtype(dtype))[0]


# --- axis ------------------------------------------------


@pytest.mark.parametrize(("public", "op"), FACES)
def test_axis_errors(public: str, op: Op) -> None:
    ins = operands(op)
    for axis in (2, -3, (0, 5)):
        with pytest.raises(np.exceptions.AxisError, match=f"axis {axis if axis != (0, 5) else 5} is out of bounds"):
            call(public, op, ins, axis=axis)
    with pytest.raises(ValueError, match=r"axis is \(0, -2\); expected no axis twice"):
        call(public, op, ins, axis=(0, -2))
    for axis in (1.0, "1", (0.5,)):
        with pytest.raises(TypeError, match="expected an int, a tuple of ints or None"):
            call(public, op, ins, axis=axis)


def test_axis_of_numpys_integers(room: Room) -> None:
    """Whatever ``operator.index`` takes, and arrays of it, which do not compare with -1."""
    for public, op in faces():
        ins = operands(op)
        for axis in (np.int8(-1), np.array(-1), np.array([-1]), [1]):
            for a, b in zip(call(public, op, ins, axis=axis), call(public, op, ins), strict=True):
                assert_same_bits(a, b, public)


def test_default_axis_is_the_last_everywhere(room: Room) -> None:
    for public, op in faces():
        ins = operands(op)
        for a, b in zip(call(public, op, ins), call(public, op, ins, axis=-1), strict=True):
            assert_same_bits(a, b, public)


def test_keepdims(room: Room) -> None:
    x = np.random.default_rng(0).normal(size=(2, 3, 4))
    p = fs.softmax(x)
    for axis, shape in ((0, (1, 3, 4)), (-1, (2, 3, 1)), ((0, 2), (1, 3, 1)), (None, (1, 1, 1))):
        flat = fs.logsumexp(x, axis)
        kept = fs.logsumexp(x, axis, keepdims=True)
        assert kept.shape == shape
        assert_same_bits(kept.reshape(np.shape(flat)), flat)
        assert fs.logsumexp_jvp(p, x, axis, keepdims=True).shape == shape
        out = np.empty(shape)
        assert fs.logsumexp(x, axis, keepdims=True, out=out) is out
        assert_same_bits(out, kept)
        g = np.random.default_rng(1).normal(size=shape)
        assert_same_bits(fs.logsumexp_vjp(p, g, axis), fs.logsumexp_vjp(p, g.reshape(np.shape(flat)), axis))


def test_jacobian_axes(room: Room) -> None:
    p = fs.softmax(np.random.default_rng(0).normal(size=(2, 3, 4)), axis=1)
    assert fs.softmax_jacobian(p, 1).shape == (2, 4, 3, 3)
    assert fs.softmax_jacobian(p, (1, 2)).shape == (2, 12, 12)
    assert fs.softmax_jacobian(p, None).shape == (24, 24)


# --- shapes at the edges ------------------------------------------------


@pytest.mark.parametrize(("public", "op"), FACES)
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (2, 0, 3), (0, 2, 3)])
@pytest.mark.parametrize("axis", [-1, 0])
def test_empty_arrays(room: Room, dtype: np.dtype, public: str, op: Op, shape: tuple[int, ...], axis: int) -> None:
    batch = shape[:-1] if axis == -1 else shape[1:]
    c = shape[axis]
    ins: list[Any] = []
    for name, kind in op.ins:
        if kind == ROW:
            ins.append(np.zeros(shape, dtype))
        elif name == "y":
            ins.append(np.full(batch, -100))
        elif name == "q":
            ins.append(1.0)
        else:
            ins.append(np.ones(c, dtype) if kind == CLASS else np.ones(batch, dtype))
    results = call(public, op, ins, axis=axis)
    for (name, kind), result in zip(op.outs, results, strict=True):
        assert np.shape(result) == (shape if kind == ROW else (*batch, c, c) if kind == SQUARE else batch)
        keyword = out_keyword(op, name)
        if keyword is not None and np.ndim(result):
            out = np.empty_like(result)
            assert any(again is out for again in call(public, op, ins, axis=axis, **{keyword: out}))
        if c == 0 and kind not in (ROW, SQUARE) and name == "s":
            empty_sum = 0 if public == "logsumexp_jvp" else -INF
            assert (np.asarray(result) == empty_sum).all()


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_mean_over_nothing(room: Room, empty: str) -> None:
    value, grad = fs.cross_entropy_value_and_grad(np.zeros((0, 5)), np.zeros(0, int), empty=empty)
    assert grad.shape == (0, 5)
    assert np.isnan(value) if empty == "nan" else value == 0
    assert fs.cross_entropy(np.zeros((0, 5)), np.zeros(0, int), reduction="sum") == 0
    no_classes = fs.cross_entropy(np.zeros((4, 0)), np.full(4, -100), weight=np.zeros(0), empty=empty)
    assert np.isnan(no_classes) if empty == "nan" else no_classes == 0


def test_one_class(room: Room, dtype: np.dtype) -> None:
    x = np.array([[3], [-1e4], [0]], dtype)
    assert (fs.softmax(x) == 1).all()
    assert (fs.log_softmax(x) == 0).all()
    assert (fs.logsumexp(x) == x[:, 0]).all()
    assert (fs.softmax_vjp(np.ones_like(x), x) == 0).all()
    assert (fs.log_softmax_vjp(np.zeros_like(x), x) == 0).all()
    assert (fs.softmax_jacobian(np.ones_like(x)) == 0).all()
    value, grad = fs.cross_entropy_value_and_grad(x, [0, 0, 0], reduction="none")
    assert (value == 0).all()
    assert (grad == 0).all()


def test_zero_dimensional(room: Room) -> None:
    for axis in (-1, 0, None, ()):
        assert fs.softmax(np.array(2.0), axis=axis) == 1
    for axis in (1, -2):
        with pytest.raises(np.exceptions.AxisError):
            fs.softmax(2.0, axis=axis)
    out = np.empty(())
    assert fs.softmax(2.0, out=out) is out
    assert out == 1
    assert fs.cross_entropy(2.0, 0) == 0


def test_axis_of_no_axes_is_one_class_everywhere(room: Room) -> None:
    assert (fs.softmax(np.arange(6.0).reshape(2, 3), axis=()) == 1).all()


# --- dtype= ------------------------------------------------


@pytest.mark.parametrize("function", [fs.softmax, fs.log_softmax, fs.logsumexp])
def test_dtype_argument(room: Room, function: Callable[..., Any]) -> None:
    x = np.random.default_rng(0).normal(size=(3, 7)).astype(np.float32)
    assert_same_bits(function(x, dtype=np.float64), function(x.astype(np.float64)))
    assert_same_bits(function(x, dtype="f2"), function(x).astype(np.float16))
    assert_same_bits(function(x.astype(np.float64), dtype="f4"), function(x.astype(np.float64)).astype(np.float32))
    assert function(x.astype(np.int64), dtype=np.float32).dtype == np.float32
    assert function(x, dtype=ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
    out = np.empty_like(function(x, dtype=np.float64))
    assert function(x, dtype=np.float64, out=out) is out
    for wrong in (np.complex64, np.int32, object, np.longdouble):
        with pytest.raises(TypeError, match=r"dtype is .*; expected float16, bfloat16, float32 or float64"):
            function(x, dtype=wrong)


def test_promotion(room: Room) -> None:
    f2, f4, f8 = (np.ones((2, 3), d) for d in ("f2", "f4", "f8"))
    bf = np.ones((2, 3), ml_dtypes.bfloat16)
    for a, b, expected in (
        (f4, f8, "f8"), (f8, f4, "f8"), (f2, f4, "f4"), (bf, f4, "f4"), (bf, f2, "f4"), (bf, f8, "f8"),
        (f4, np.ones((2, 3), int), "f8"), (f2, f2, "f2"),
    ):  # fmt: skip
        assert fs.softmax_jvp(a, b).dtype == np.dtype(expected), (a.dtype, b.dtype)
    assert fs.cross_entropy(f2, [0, 1]).dtype == np.float32
    assert fs.cross_entropy(f4, [0, 1]).dtype == np.float32
    assert fs.cross_entropy(np.ones((2, 3), int), [0, 1]).dtype == np.float64
    assert fs.cross_entropy_value_and_grad(bf, [0, 1]).grad.dtype == ml_dtypes.bfloat16


def test_no_warning_from_a_comparison(room: Room, dtype: np.dtype) -> None:
    x = np.array([[NAN, 1.0], [INF, 0.0], [-INF, -INF]], ml_dtypes.bfloat16)
    np.testing.assert_array_equal(fs.logsumexp(x, b=np.ones_like(x)).astype(dtype), [NAN, INF, -INF])
    np.testing.assert_array_equal(fs.logsumexp(x, return_sign=True)[1].astype(dtype), [NAN, 1, 0])


# --- out= ------------------------------------------------


@pytest.mark.parametrize(("public", "op"), WITH_OUT)
def test_out_errors_touch_nothing(public: str, op: Op) -> None:
    ins = operands(op)
    index = next(k for k, (n, _) in enumerate(op.outs) if out_keyword(op, n))
    keyword = out_keyword(op, op.outs[index][0])
    good = np.asarray(call(public, op, ins)[index])

    def rejects(out: Any, error: type[Exception], message: str) -> None:
        with pytest.raises(error) as caught:
            call(public, op, ins, **{keyword: out})
        assert str(caught.value).startswith(f"{keyword} {message}"), str(caught.value)

    longer = np.full((*good.shape, 2), 7.0)
    rejects(longer, ValueError, f"has shape {longer.shape}; expected {good.shape}")
    assert (longer == 7).all()
    other = np.full(good.shape, 7, np.float32)
    rejects(other, TypeError, "has dtype float32; expected float64")
    assert (other == 7).all()
    locked = np.full(good.shape, 7.0)
    locked.flags.writeable = False
    rejects(locked, ValueError, "is read-only; expected a writeable array")
    rejects(np.broadcast_to(np.array([7.0]), good.shape), ValueError, "is read-only")
    rejects([0.0], TypeError, "is a list; expected a NumPy array")
    rejects(np.ma.zeros(good.shape), TypeError, "is a MaskedArray; expected a NumPy array")
    for stride in (0, 4, 8) if good.ndim > 1 else (0, 4):
        sharing = np.lib.stride_tricks.as_strided(np.full(good.size, 7.0), good.shape, (stride,) * good.ndim)
        rejects(sharing, ValueError, "has elements that share memory; expected an array without")
        assert (sharing == 7).all() or stride == 4


@pytest.mark.parametrize(("public", "op"), WITH_OUT)
def test_out_is_returned(room: Room, dtype: np.dtype, public: str, op: Op) -> None:
    ins = operands(op, dtype)
    index = next(k for k, (n, _) in enumerate(op.outs) if out_keyword(op, n))
    expected = call(public, op, ins)
    out = np.full_like(expected[index], 7)
    results = call(public, op, ins, **{str(out_keyword(op, op.outs[index][0])): out})
    assert results[index] is out
    for a, b in zip(results, expected, strict=True):
        assert_same_bits(a, b)


class Sub(np.ndarray):
    """A subclass; NumPy itself has np.matrix, whose views keep two axes."""


@pytest.mark.parametrize(("public", "op"), WITH_OUT)
@pytest.mark.parametrize("kind", [np.matrix, Sub], ids=["matrix", "subclass"])
@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_out_of_a_subclass(room: Room, public: str, op: Op, kind: Any) -> None:
    """It is written to as what it holds: for a matrix, memory was once written beside it."""
    index = next(k for k, (n, _) in enumerate(op.outs) if out_keyword(op, n))
    keyword = str(out_keyword(op, op.outs[index][0]))
    for axis in (-1, 0):
        ins = operands(op, shape=(4, 4))
        expected = call(public, op, ins, axis=axis)
        if kind is np.matrix and np.ndim(expected[index]) != 2:
            continue
        given = [a.view(kind) if getattr(a, "ndim", 0) == 2 else a for a in ins]
        out = np.full_like(expected[index], 7).view(kind)
        results = call(public, op, given, axis=axis, **{keyword: out})
        assert results[index] is out
        for a, b in zip(results, expected, strict=True):
            assert_same_bits(a, b)


@pytest.mark.parametrize(("public", "op"), WITH_OUT)
def test_overlap(room: Room, dtype: np.dtype, public: str, op: Op) -> None:
    """An output may be an input, or overlap one in any way: the answer is right."""
    index = next(k for k, (n, _) in enumerate(op.outs) if out_keyword(op, n))
    keyword = str(out_keyword(op, op.outs[index][0]))
    r, c = 4, 6
    if op.outs[index][1] != ROW:
        return
    kept = operands(op, dtype)
    expected = call(public, op, kept)
    views = {
        "the same memory": lambda m: m[:24].reshape(r, c),
        "one element later": lambda m: m[1:25].reshape(r, c),
        "one row later": lambda m: m[c : 24 + c].reshape(r, c),
        "backwards": lambda m: m[:24][::-1].reshape(r, c),
        "transposed": lambda m: m[:24].reshape(c, r).T,
        "rows reversed": lambda m: m[:24].reshape(r, c)[::-1],
    }
    for k, (_, kind) in enumerate(op.ins):
        if kind != ROW:
            continue
        for how, view in views.items():
            memory = np.zeros(40, dtype)
            ins = [a.copy() if isinstance(a, np.ndarray) else a for a in kept]
            ins[k] = memory[:24].reshape(r, c)
            ins[k][...] = kept[k]
            out = view(memory)
            results = call(public, op, ins, **{keyword: out})
            assert results[index] is out
            for a, b in zip(results, expected, strict=True):
                assert_same_bits(a, b, f"{public}: out is {how} as input {k}")


def test_out_overlaps_the_mask(room: Room) -> None:
    for shape in ((2, 8), (300, 1000)):  # in one tile, and in many
        x = np.random.default_rng(0).normal(size=shape)
        buffer = np.zeros(x.size)
        mask = buffer.view(bool)[: x.size].reshape(shape)
        mask[:, ::2] = True
        expected = fs.softmax(x, where=mask.copy())
        assert_same_bits(fs.softmax(x, where=mask, out=buffer.reshape(shape)), expected)


# --- values at the edges: the table ------------------------------------------------

X = np.array([0.5, -1.0, 2.0, 0.25, 1.5])
FORWARD = ("logsumexp", "softmax", "log_softmax")


def forward(row: Any, dtype: np.dtype, **options: Any) -> dict[str, Any]:
    """Return the three forward functions of a row that stands between two plain ones; those must not change."""
    x = np.stack([X, np.asarray(row, float), X]).astype(dtype)
    results = {}
    for name in FORWARD:
        extra = dict(options)
        if name == "logsumexp":
            extra.pop("empty", None)
        all_rows = getattr(fs, name)(x, **extra)
        plain = {k: v for k, v in extra.items() if k != "where"}
        mask = extra.get("where")
        outer = x[[0, 2]]
        mask = None if mask is None else np.broadcast_to(mask, x.shape)[[0, 2]]
        assert_same_bits(all_rows[[0, 2]], getattr(fs, name)(outer, where=mask, **plain), f"{name}: neighbours")
        results[name] = all_rows[1]
    return results


def derivatives(p: Any, logp: Any, dtype: np.dtype, t: Any = (1.0, -2.0, 0.5, 3.0, 0.25)) -> dict[str, Array]:
    p, logp, t = (np.asarray(a, dtype)[None] for a in (p, logp, t))
    return {
        "softmax_jvp": fs.softmax_jvp(p, t)[0],
        "softmax_vjp": fs.softmax_vjp(p, t)[0],
        "log_softmax_jvp": fs.log_softmax_jvp(logp, t)[0],
        "log_softmax_vjp": fs.log_softmax_vjp(logp, t)[0],
        "logsumexp_vjp": fs.logsumexp_vjp(p, dtype.type(-3))[0],
        "logsumexp_jvp": fs.logsumexp_jvp(p, t)[0],
    }


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_some_minus_inf(room: Room, dtype: np.dtype, empty: str) -> None:
    row = X.copy()
    row[[1, 4]] = -INF
    f = forward(row, dtype, empty=empty)
    assert np.isfinite(f["logsumexp"])
    assert (f["softmax"][[1, 4]] == 0).all()
    assert (f["log_softmax"][[1, 4]] == -INF).all()
    kept = [0, 2, 3]
    assert_close(f["softmax"][kept], fs.softmax(row[kept].astype(dtype)).astype(LD), 4)
    for t in ((1.0, INF, -2.0, 0.5, NAN), (1.0, -INF, -2.0, 0.5, 7.0)):
        d = derivatives(f["softmax"], f["log_softmax"], dtype, t)
        for name, y in d.items():
            assert np.isfinite(y).all(), name
            if y.ndim:
                assert (y[[1, 4]] == 0).all(), name


@pytest.mark.parametrize(("empty", "p", "logp", "slope"), [("nan", NAN, NAN, NAN), ("zero", 0, -INF, 0)])
def test_all_minus_inf(room: Room, dtype: np.dtype, empty: str, p: float, logp: float, slope: float) -> None:
    f = forward(np.full(5, -INF), dtype, empty=empty)
    np.testing.assert_array_equal(f["logsumexp"], -INF)
    np.testing.assert_array_equal(f["softmax"], np.full(5, p))
    np.testing.assert_array_equal(f["log_softmax"], np.full(5, logp))
    for name, y in derivatives(f["softmax"], f["log_softmax"], dtype).items():
        np.testing.assert_array_equal(y, np.full(y.shape, slope), err_msg=name)


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("lanes", [[2], [0, 4], [0, 1, 2, 3, 4]])
@pytest.mark.parametrize("with_minus_inf", [False, True])
def test_any_plus_inf(room: Room, dtype: np.dtype, empty: str, lanes: list[int], with_minus_inf: bool) -> None:
    row = X.copy()
    row[1] = -INF if with_minus_inf else row[1]
    row[lanes] = INF
    f = forward(row, dtype, empty=empty)
    assert f["logsumexp"] == INF
    assert np.isnan(f["softmax"]).all()
    assert np.isnan(f["log_softmax"]).all()
    for name, y in derivatives(f["softmax"], f["log_softmax"], dtype).items():
        assert np.isnan(y).all(), name


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("lane", range(5))
@pytest.mark.parametrize("rest", ["plain", "-inf", "+inf"])
def test_any_nan(room: Room, dtype: np.dtype, empty: str, lane: int, rest: str) -> None:
    row = {"plain": X.copy(), "-inf": np.full(5, -INF), "+inf": np.full(5, INF)}[rest]
    row[lane] = NAN
    f = forward(row, dtype, empty=empty)
    for name in FORWARD:
        assert np.isnan(f[name]).all(), name
    for name, y in derivatives(f["softmax"], f["log_softmax"], dtype).items():
        assert np.isnan(y).all(), name


@pytest.mark.parametrize("empty", ["nan", "zero"])
@pytest.mark.parametrize("hidden", [1e30, NAN, INF, -INF])
def test_excluded_by_where(room: Room, dtype: np.dtype, empty: str, hidden: float) -> None:
    row = X.copy()
    row[[0, 3]] = hidden
    mask = np.array([[True] * 5, [False, True, True, False, True], [True] * 5])
    f = forward(row, dtype, where=mask, empty=empty)
    kept = [1, 2, 4]
    assert (f["softmax"][[0, 3]] == 0).all()
    assert (f["log_softmax"][[0, 3]] == -INF).all()
    assert_close(f["softmax"][kept], fs.softmax(row[kept].astype(dtype)).astype(LD), 4)
    assert_close(f["log_softmax"][kept], fs.log_softmax(row[kept].astype(dtype)).astype(LD), 4)
    assert_close(f["logsumexp"], np.asarray(fs.logsumexp(row[kept].astype(dtype)), LD), 4)
    for name, y in derivatives(f["softmax"], f["log_softmax"], dtype, (INF, 1.0, 2.0, NAN, 3.0)).items():
        assert np.isfinite(y).all(), name
        if y.ndim:
            assert (y[[0, 3]] == 0).all(), name


@pytest.mark.parametrize("empty", ["nan", "zero"])
def test_where_all_false(room: Room, dtype: np.dtype, empty: str) -> None:
    mask = np.array([[True] * 5, [False] * 5, [True] * 5])
    for row in (X, np.full(5, NAN), np.full(5, INF), np.full(5, -INF)):
        f = forward(row, dtype, where=mask, empty=empty)
        assert f["logsumexp"] == -INF
        assert (f["softmax"] == 0).all()
        assert (f["log_softmax"] == -INF).all()
        for name, y in derivatives(f["softmax"], f["log_softmax"], dtype).items():
            assert (y == 0).all(), name


def test_where_leaves_only_minus_inf(room: Room, dtype: np.dtype) -> None:
    row = [-INF, 3.0, -INF, NAN, 1.0]
    mask = np.array([[True] * 5, [True, False, True, False, False], [True] * 5])
    f = forward(row, dtype, where=mask)
    assert f["logsumexp"] == -INF
    assert np.isnan(f["softmax"][[0, 2]]).all()
    f = forward(row, dtype, where=mask, empty="zero")
    assert (f["softmax"] == 0).all()
    assert (f["log_softmax"] == -INF).all()


@pytest.mark.parametrize("c", [5, 40])
@pytest.mark.parametrize("value", [NAN, INF, -INF])
def test_excluded_from_a_row_that_is_nan(room: Room, dtype: np.dtype, c: int, value: float) -> None:
    x, mask = np.zeros((9, c), dtype), np.arange(c) % 3 > 0
    x[4, 1 if value != -INF else slice(None)] = value
    nan = np.where(np.arange(9)[:, None] == 4, mask, False)
    for excluded, f in ((0.0, fs.softmax), (-INF, fs.log_softmax)):
        for y in (f(x, where=mask), f(x.T, 0, where=mask[:, None]).T, f(x, where=mask, scale=0.5)):
            assert (y[:, ~mask] == excluded).all()
            np.testing.assert_array_equal(np.isnan(y), nan)


def test_where_broadcasts(room: Room) -> None:
    x = np.random.default_rng(0).normal(size=(3, 4, 5))
    for mask in (
        [True, False, True, True, False],
        np.array([[True], [False], [True], [True]]),
        np.random.default_rng(1).random((3, 1, 5)) < 0.6,
        True,
        False,
    ):
        full = np.broadcast_to(mask, x.shape)
        for axis in (-1, 0, 1, (0, 2), None):
            for f in (fs.softmax, fs.log_softmax, fs.logsumexp):
                assert_same_bits(f(x, axis, where=mask), f(x, axis, where=full))
                hidden = np.where(full, x, -INF)
                expected = f(hidden, axis, **({} if f is fs.logsumexp else {"empty": "zero"}))
                assert_same_bits(f(x, axis, where=mask), expected, f"{f.__name__}, axis {axis}")
    for wrong in (np.ones(5), [1, 0, 1, 0, 1]):
        with pytest.raises(TypeError, match=r"where has dtype .*; expected bool"):
            fs.softmax(x, where=wrong)
    with pytest.raises(ValueError, match=r"where has shape \(4,\), which does not broadcast to \(3, 4, 5\)"):
        fs.softmax(x, where=np.ones(4, bool))


def test_where_in_place(room: Room, dtype: np.dtype) -> None:
    x = np.random.default_rng(0).normal(size=(50, 33)).astype(dtype)
    mask = np.random.default_rng(1).random(x.shape) < 0.7
    expected = fs.softmax(x, where=mask)
    assert_same_bits(fs.softmax(x, where=mask, out=x), expected)


def test_loss_at_the_edges(room: Room, dtype: np.dtype) -> None:
    x = np.array([[1.0, -INF, 2.0], [0.0, 1.0, 2.0]], dtype)
    for options in ({}, {"where": np.array([[True, False, True], [True, True, True]])}):
        logits = np.where(np.isinf(x), 5, x).astype(dtype) if options else x
        value, grad = fs.cross_entropy_value_and_grad(logits, [1, 0], reduction="none", **options)
        assert value[0] == INF, "target class at -inf or excluded"
        assert np.isfinite(grad).all()
        assert np.isfinite(value[1])
        hot = np.array([[0.5, 0, 0.5], [1, 0, 0]], dtype)
        value, grad = fs.cross_entropy_value_and_grad(logits, hot, reduction="none", **options)
        assert np.isfinite(value).all(), "a zero target probability contributes 0 whatever the logit"
        assert grad[0, 1] == 0
    for row in ([NAN] * 3, [INF] * 3, [-INF] * 3, [NAN, INF, -INF]):
        x[0] = row
        value, grad = fs.cross_entropy_value_and_grad(x, [-100, 0], reduction="none", z_loss=0.1)
        assert value[0] == 0
        assert (grad[0] == 0).all()
        alone = fs.cross_entropy_value_and_grad(x[1:], [0], z_loss=0.1)
        both = fs.cross_entropy_value_and_grad(x, [-100, 0], z_loss=0.1)
        assert_same_bits(both.value, alone.value)
        assert_same_bits(both.grad[1:], alone.grad)


def test_empty_policy_of_losses(room: Room, dtype: np.dtype) -> None:
    x = np.array([[-INF, -INF], [0, 1]], dtype)
    value, grad = fs.cross_entropy_value_and_grad(x, [0, 1], reduction="none")
    assert np.isnan(value[0])
    assert np.isnan(grad[0]).all()
    assert np.isfinite(grad[1]).all()
    value, grad = fs.cross_entropy_value_and_grad(x, [0, 1], reduction="none", empty="zero")
    assert value[0] == INF
    assert (grad[0] == 0).all()
    value, grad = fs.cross_entropy_value_and_grad(x, [-100, -100])
    assert np.isnan(value)
    value, grad = fs.cross_entropy_value_and_grad(x, [-100, -100], empty="zero")
    assert value == 0
    assert (grad == 0).all()


# --- logsumexp's own ------------------------------------------------


def test_logsumexp_with_factors(room: Room, dtype: np.dtype) -> None:
    x = np.array([[1.0, 2, INF], [1, 2, NAN], [0, 0, 1]], dtype)
    b = np.array([[1, 2, 0], [-1, -2, 0], [1, -1, 0]], dtype)
    s, sign = fs.logsumexp(x, b=b, return_sign=True)
    total = np.exp(1) + 2 * np.exp(2)
    np.testing.assert_allclose(s, [np.log(total), np.log(total), -INF], rtol=1e-6)
    np.testing.assert_array_equal(sign, [1, -1, 0])
    s = fs.logsumexp(x, b=b)
    assert np.isnan(s[1])
    assert np.isnan(fs.logsumexp(x[1], b=b[1]))
    assert s[2] == -INF
    assert s.dtype == sign.dtype == dtype
    value, sign = fs.logsumexp(x[:, :2], return_sign=True)
    assert_same_bits(value, fs.logsumexp(x[:, :2]))
    assert (sign == 1).all()
    assert fs.logsumexp([-INF, -INF], return_sign=True) == (-INF, 0)
    assert np.isnan(fs.logsumexp([0.0, NAN], return_sign=True)[1])
    mask = np.array([True, False, True])
    assert_same_bits(fs.logsumexp(x[2], b=[1.0, 5, 1], where=mask), fs.logsumexp(x[2], b=[1.0, 0, 1]))
    with pytest.raises(ValueError, match=r"b has shape \(4,\), which does not broadcast to \(3, 3\)"):
        fs.logsumexp(x, b=np.ones(4))


# --- errors: one voice ------------------------------------------------

Z, Y = np.zeros((3, 4)), np.array([0, 1, 3])
REAL = "expected float16, bfloat16, float32 or float64 (integers and bools are converted to float64)"
ERRORS: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any], type[Exception], str]] = [
    (fs.softmax, (np.ma.masked_invalid([1.0, NAN]),), {}, TypeError,
     "x is a masked array, which is not supported; pass where=~x.mask"),
    (fs.softmax, (Z + 0j,), {}, TypeError, f"x has dtype complex128; {REAL}"),
    (fs.log_softmax, (np.array([1, None]),), {}, TypeError, f"x has dtype object; {REAL}"),
    (fs.logsumexp, (["a", "b"],), {}, TypeError, f"x has dtype <U1; {REAL}"),
    (fs.softmax, (np.zeros(3, np.longdouble),), {}, TypeError, f"x has dtype {np.dtype(np.longdouble)}; {REAL}"),
    (fs.softmax, (np.zeros(3, "M8[s]"),), {}, TypeError, f"x has dtype datetime64[s]; {REAL}"),
    (fs.softmax, ([[1.0, 2.0], [3.0]],), {}, ValueError, "x cannot be made an array: setting an array element with a "
     "sequence. The requested array has an inhomogeneous shape after 1 dimensions. The detected shape was (2,) + "
     "inhomogeneous part."),
    (fs.softmax, (Z,), {"empty": "none"}, ValueError, "empty is 'none'; expected one of 'nan', 'zero'"),
    (fs.softmax, (Z,), {"scale": INF}, ValueError, "scale is inf; expected a finite number"),
    (fs.softmax, (Z,), {"scale": "big"}, TypeError, "scale is 'big'; expected a real number"),
    (fs.softmax, (Z,), {"scale": "2"}, TypeError, "scale is '2'; expected a real number"),
    (fs.softmax, (Z,), {"out": np.zeros((3, 4), "f4")}, TypeError,
     "out has dtype float32; expected float64 (pass dtype='float32' to choose the result's dtype)"),
    (fs.softmax, (Z,), {"out": np.zeros((3, 4), Z.dtype.newbyteorder())}, TypeError,
     f"out has dtype {Z.dtype.newbyteorder()}; expected float64"),
    (fs.softmax, (Z,), {"out": np.zeros((3, 4), int)}, TypeError, "out has dtype int64; expected float64"),
    (fs.softmax_jvp, (Z, np.zeros((3, 5))), {}, ValueError, "t has shape (3, 5); expected (3, 4), the shape of p"),
    (fs.softmax_vjp, (Z, np.zeros((2, 4))), {}, ValueError, "g has shape (2, 4); expected (3, 4), the shape of p"),
    (fs.log_softmax_vjp, (Z, np.ma.zeros((3, 4))), {}, TypeError,
     "g is a masked array, which is not supported; pass where=~g.mask"),
    (fs.logsumexp_vjp, (Z, np.zeros(4)), {}, ValueError,
     "g has shape (4,); expected (3,), one number per row, or a scalar"),
    (fs.cross_entropy, (Z, [0, 1, 4]), {}, IndexError,
     "target[2] = 4 is out of bounds for 4 classes (ignore_index=-100)"),
    (fs.cross_entropy, (Z, [0, -1, 1]), {"ignore_index": -2}, IndexError,
     "target[1] = -1 is out of bounds for 4 classes (ignore_index=-2)"),
    (fs.cross_entropy, (np.zeros((2, 3, 4)), [[0, 1, 2], [3, 4, 5]]), {}, IndexError,
     "target[1, 1] = 4 is out of bounds for 4 classes (ignore_index=-100)"),
    (fs.cross_entropy, (np.zeros((32, 5, 10)), np.zeros((32, 10, 5))), {}, ValueError,
     "target has shape (32, 10, 5) but logits has (32, 5, 10) with axis=-1; expected indices of shape (32, 5) or "
     "probabilities of shape (32, 5, 10)"),
    (fs.cross_entropy, (Z, Y.astype(float)), {}, TypeError,
     "target has dtype float64 and shape (3,); expected integers of shape (3,) (class indices) or floats of shape "
     "(3, 4) (probabilities)"),
    (fs.cross_entropy, (Z, np.zeros((3, 4), int)), {}, TypeError,
     "target has dtype int64 and shape (3, 4); expected integers of shape (3,) (class indices) or floats of shape "
     "(3, 4) (probabilities)"),
    (fs.cross_entropy, (Z, Y), {"reduction": "avg"}, ValueError,
     "reduction is 'avg'; expected one of 'none', 'mean', 'sum'"),
    (fs.cross_entropy, (Z, Y), {"label_smoothing": 1.5}, ValueError,
     "label_smoothing is 1.5; expected a number from 0 to 1"),
    (fs.cross_entropy, (Z, Y), {"softcap": 0}, ValueError, "softcap is 0.0; expected a positive number or None"),
    (fs.cross_entropy, (Z, Y), {"weight": np.ones(3)}, ValueError,
     "weight has shape (3,); expected (4,), one number per class"),
    (fs.cross_entropy, (Z, Y), {"sample_weight": np.ones(4)}, ValueError,
     "sample_weight has shape (4,); expected (3,), one number per row, or a scalar"),
    (fs.cross_entropy, (Z, Y), {"ignore_index": 0.5}, TypeError, "ignore_index is 0.5; expected an int"),
    (fs.cross_entropy_value_and_grad, (Z, Y), {"grad_output": np.ones(3)}, ValueError,
     "grad_output has shape (3,); expected a scalar with reduction='mean'"),
    (fs.cross_entropy_value_and_grad, (Z, Y), {"grad_output": np.ones(4), "reduction": "none"}, ValueError,
     "grad_output has shape (4,); expected (3,), one number per row, or a scalar"),
    (fs.cross_entropy_value_and_grad, (Z, Y), {"z_loss": NAN}, ValueError, "z_loss is nan; expected a finite number"),
    (fs.softmax, (Z,), {"dtype": "zz"}, TypeError, "dtype is zz; expected float16, bfloat16, float32 or float64"),
    (fs.softmax, (Z,), {"scale": 10**400}, ValueError, "scale is inf; expected a finite number"),
    (fs.cross_entropy, (np.zeros((0, 4)), np.zeros(0, complex)), {}, TypeError,
     "target has dtype complex128 and shape (0,); expected integers of shape (0,) (class indices) or floats of shape "
     "(0, 4) (probabilities)"),
]  # fmt: skip


@pytest.mark.parametrize("k", range(len(ERRORS)), ids=lambda k: f"{ERRORS[k][0].__name__}-{k}")
def test_errors(room: Room, k: int) -> None:
    """The same error, word for word, from every room, and no output touched."""
    function, arguments, options, error, message = ERRORS[k]
    with pytest.raises(error) as caught:
        function(*arguments, **options)
    assert str(caught.value) == message
    # Once more with an output: it must stay as it was.
    keyword = "grad_out" if function is fs.cross_entropy_value_and_grad else "out"
    if function is not fs.cross_entropy:
        shape = np.asarray(arguments[0], object).shape
        shape = shape[:-1] if function is fs.logsumexp else shape
        out = np.full(shape, 7.0)
        with pytest.raises(error):
            function(*arguments, **options, **{keyword: out})
        assert (out == 7).all()


def test_bad_label_before_any_write(room: Room, dtype: np.dtype) -> None:
    r, c = 5000, 40
    x = np.zeros((r, c), dtype)
    y = np.zeros(r, int)
    y[-1] = c
    grad = np.full((r, c), 7, dtype)
    before = x.copy()
    with pytest.raises(IndexError, match=r"target\[4999\] = 40 is out of bounds for 40 classes"):
        fs.cross_entropy_value_and_grad(x, y, grad_out=grad)
    assert (grad == 7).all()
    with pytest.raises(IndexError):
        fs.cross_entropy_value_and_grad(x, y, grad_out=x)
    assert_same_bits(x, before)


def test_huge_labels_do_not_wrap(room: Room) -> None:
    for label in (2**63, 2**64 - 1, 2**64 - 100):
        with pytest.raises(IndexError, match=rf"target\[0\] = {label} is out of bounds for 4 classes"):
            fs.cross_entropy(np.zeros((1, 4)), np.array([label], np.uint64))
        losses = fs.cross_entropy(
            np.zeros((2, 4)), np.array([label, 3], np.uint64), ignore_index=label, reduction="none"
        )
        assert losses[0] == 0 < losses[1]
    for label in (2**32, 2**31, -(2**32), 256):
        with pytest.raises(IndexError):
            fs.cross_entropy(np.zeros((1, 4)), np.array([label]))


def test_a_label_of_a_scalar(room: Room) -> None:
    for dtype in (np.uint8, np.int64, np.uint64):
        label = np.array(0, dtype)
        assert fs.cross_entropy(2.0, label, ignore_index=np.int8(2)) == 0  # type: ignore[arg-type]
        assert (fs.cross_entropy_value_and_grad(2.0, label, scale=0).grad == 0).all()


@given(st.integers(-(2**63), 2**63 - 1), st.integers(-(2**63), 2**63 - 1), st.booleans())
@example(2**53 + 1, 2**53 + 1, True)
@example(-(2**63), -(2**63), True)
def test_ignore_index_of_any_size(room: Room, label: int, ignore: int, same: bool) -> None:
    x = np.zeros((2, 4))
    label = ignore if same else label
    y = np.array([1, label])
    if label == ignore:
        value, grad = fs.cross_entropy_value_and_grad(x, y, ignore_index=ignore, reduction="none")
        assert value[1] == 0
        assert (grad[1] == 0).all()
        assert (value[0] == 0) == (ignore == 1)
    elif not 0 <= label < 4:
        with pytest.raises(IndexError):
            fs.cross_entropy(x, y, ignore_index=ignore)


def test_ignore_index_beyond_64_bits(room: Room) -> None:
    for ignore in (10**30, -(10**30)):
        assert_same_bits(fs.cross_entropy(Z, Y, ignore_index=ignore), fs.cross_entropy(Z, Y))


def test_no_input_is_modified(room: Room, dtype: np.dtype) -> None:
    for public, op in faces():
        ins = operands(op, dtype)
        for a in ins:
            if isinstance(a, np.ndarray):
                a.flags.writeable = False
        before = [a.copy() if isinstance(a, np.ndarray) else a for a in ins]
        call(public, op, ins)
        for a, b in zip(ins, before, strict=True):
            assert_same_bits(np.asarray(a), np.asarray(b), public)


def test_errstate_is_not_consulted(room: Room, dtype: np.dtype) -> None:
    """No warning (they are errors in this suite) and no FloatingPointError, whatever the values."""
    rows = np.array([
        [0, -INF, 3e38, -3e38, 1], [INF, -INF, NAN, 0, 1], [-INF] * 5, [-87.5, 0, -104, -103.9, -1e-45],
        [-708.5, 0, -746, -745.1, -1e-308],
    ])  # fmt: skip
    with np.errstate(all="ignore"):
        rows = rows.astype(dtype)
    y = np.array([0, 1, 2, 3, 4])
    with np.errstate(all="raise"):
        for empty in ("nan", "zero"):
            p = fs.softmax(rows, empty=empty)
            logp = fs.log_softmax(rows, empty=empty, where=rows != 1)
            fs.cross_entropy_value_and_grad(rows, y, empty=empty, z_loss=1.0, reduction="sum", softcap=3.0)
            fs.cross_entropy_value_and_grad(rows, np.abs(p), empty=empty, label_smoothing=0.1, where=rows != 1)
            fs.cross_entropy_value_and_grad(rows, y, empty=empty, weight=np.zeros(5))
        fs.softmax(rows, dtype=np.float16)
        fs.logsumexp(rows, b=[1, 0, -1, 2, 3.0])
        fs.logsumexp(rows, scale=-1e300 if dtype.itemsize == 8 else -1e38)
        fs.softmax_vjp(p, rows)
        fs.log_softmax_vjp(logp, rows)
        fs.log_softmax_jvp(logp, rows)
        fs.logsumexp_vjp(p, rows[:, 0])
        fs.logsumexp_jvp(p, rows)
        fs.softmax_jacobian(p)
        fs.log_softmax_jacobian(logp)


def test_scale(room: Room, dtype: np.dtype) -> None:
    x = np.random.default_rng(0).normal(size=(5, 9)).astype(dtype)
    y = np.array([0, 1, 2, 3, 4])
    for s in (2.0, -1.0, -0.25):  # powers of two: exact
        scaled = x * dtype.type(s)
        for f in (fs.softmax, fs.log_softmax, fs.logsumexp):
            assert_same_bits(f(x, scale=s), f(scaled), f"{f.__name__}, scale={s}")
        a = fs.cross_entropy_value_and_grad(x, y, scale=s)
        b = fs.cross_entropy_value_and_grad(scaled, y)
        assert_same_bits(a.value, b.value)
        assert_same_bits(a.grad, b.grad * dtype.type(s))
    assert (fs.softmax(x, scale=0) == fs.softmax(np.zeros_like(x))).all()
    rows = np.array([[INF, 1, 2], [-INF, 1, 2], [NAN, 1, 2]], dtype)
    assert np.isnan(fs.softmax(rows, scale=-1)[[0, 2]][1]).all()
    np.testing.assert_array_equal(fs.softmax(rows, scale=-1)[0, 0], 0)
    assert np.isnan(fs.softmax(rows, scale=-1)[1]).all()


# --- every room says the same ------------------------------------------------


def test_rooms_have_distinct_names() -> None:
    assert len(ROOMS) >= 5
    assert {r.backend for r in ROOMS.values()} == set(fs.available_backends())


def test_named_tuple() -> None:
    result = fs.cross_entropy_value_and_grad(Z, Y)
    assert isinstance(result, fs.ValueAndGrad)
    assert result._fields == ("value", "grad")


def test_results_do_not_alias_inputs(room: Room) -> None:
    for public, op in faces():
        ins = operands(op)
        for result in call(public, op, ins):
            for a in ins:
                assert not isinstance(a, np.ndarray) or not np.may_share_memory(np.asarray(result), a)
        assert is_loss(op) or compute(op, np.dtype(float), ins, dict.fromkeys(op.params, 1.0))
