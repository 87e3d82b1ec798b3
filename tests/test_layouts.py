"""Any shape, axis and layout: the result is that of the contiguous rows, bit for bit."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from cases import Case, is_loss
from checks import assert_same_bits, compute
from faces import LAYOUTS, axes_of, call, faces, out_keyword, split, to_array, to_rows
from hypothesis import given
from hypothesis import strategies as st
from rooms import Room

import fastsoftmax as fs
from fastsoftmax._ops import LABEL, ROW, SQUARE, Op

FACES = [pytest.param(public, op, id=f"{public}-{op.name}") for public, op in faces()]
OPTIONS = ("weights", "vectors")


@st.composite
def shapes_and_axes(draw: Any) -> tuple[tuple[int, ...], Any]:
    shape = tuple(draw(st.lists(st.integers(1, 6), min_size=1, max_size=4)))
    ndim = len(shape)
    one = st.integers(-ndim, ndim - 1)
    some = st.permutations(range(ndim)).flatmap(lambda p: st.integers(0, ndim).map(lambda k: tuple(p[:k])))
    axis = draw(one | some | st.none() | one.map(np.int64))
    return shape, axis


def rows_case(op: Op, shape: tuple[int, ...], axis: Any) -> Case:
    batch, classes = split(shape, axis)
    return Case("normal", int(np.prod(batch)), int(np.prod(classes)), OPTIONS if is_loss(op) else ())


def agrees(public: str, op: Op, dtype: np.dtype, shape: tuple[int, ...], axis: Any, layouts: list[str]) -> None:
    """Assert that a call on arrays of that shape and those layouts gives the bits of contiguous rows."""
    ins, params = rows_case(op, shape, axis).build(op, dtype)
    if "weights" in OPTIONS and is_loss(op):
        classes = split(shape, axis)[1]
        ins = [a.reshape(classes).reshape(-1) if name == "w" else a for (name, _), a in zip(op.ins, ins)]
    expected = compute(op, dtype, ins, params)
    arrays = [to_array(a, kind, shape, axis) for (_, kind), a in zip(op.ins, ins)]
    operands = [LAYOUTS[layouts[k % len(layouts)]](a) if isinstance(a, np.ndarray) else a for k, a in enumerate(arrays)]
    # A list of float32 would be read as float64: lists are only made of what they read as.
    results = call(public, op, operands, axis=axis)
    for (name, kind), result, e in zip(op.outs, results, expected[: len(op.outs)], strict=True):
        what = f"{public}, {dtype}, shape {shape}, axis {axis}, {layouts}, output {name}"
        batch = split(shape, axis)[0]
        if kind == ROW:
            assert np.shape(result) == shape, what
        elif kind == SQUARE:
            assert np.shape(result)[:-2] == batch, what
        else:
            assert np.shape(result) == batch, what
        assert_same_bits(to_rows(result, kind, shape, axis), e, what)


@pytest.mark.parametrize(("public", "op"), FACES)
@given(spec=shapes_and_axes(), layouts=st.lists(st.sampled_from(sorted(LAYOUTS)), min_size=1, max_size=4))
def test_shapes_axes_layouts(room: Room, public: str, op: Op, spec: Any, layouts: list[str]) -> None:
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        agrees(public, op, dtype, *spec, layouts)


@pytest.mark.parametrize(("public", "op"), FACES)
@pytest.mark.parametrize("layout", sorted(LAYOUTS))
def test_each_layout(room: Room, dtype: np.dtype, public: str, op: Op, layout: str) -> None:
    for shape, axis in (((5, 33), -1), ((33, 5), 0), ((4, 7, 3), 1), ((3, 4, 5), (0, 2))):
        agrees(public, op, dtype, shape, axis, [layout])


@pytest.mark.parametrize(("public", "op"), FACES)
def test_zero_strides(room: Room, dtype: np.dtype, public: str, op: Op) -> None:
    r, c = 4, 9
    for repeated in (0, 1):
        ins, params = Case("normal", r, c).build(op, dtype)
        views = [
            np.broadcast_to(a[:1] if repeated == 0 else a[:, :1], a.shape) if k == ROW else a
            for (_, k), a in zip(op.ins, ins)
        ]
        expected = compute(
            op, dtype, [np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a for a in views], params
        )
        for result, e in zip(call(public, op, views), expected[: len(op.outs)], strict=True):
            assert_same_bits(result, e, public)


@pytest.mark.parametrize(("public", "op"), FACES)
@pytest.mark.parametrize("narrow", ["f2", "bfloat16", "i1", "i8", "u1", "u8", "?"])
def test_other_dtypes(room: Room, public: str, op: Op, narrow: str) -> None:
    """16-bit floats are read and written as themselves and computed in float32; integers become float64 first."""
    given_as = np.dtype(ml_dtypes.bfloat16 if narrow == "bfloat16" else narrow)
    is_float = narrow in ("f2", "bfloat16")
    computing = np.dtype(np.float32 if is_float else np.float64)
    ins, params = Case("normal", 4, 9).build(op, computing)
    low = []
    for (name, kind), a in zip(op.ins, ins):
        if not isinstance(a, np.ndarray) or kind == LABEL:
            low.append(a)
        elif is_float:
            low.append(a.astype(given_as))
        elif is_loss(op) and name == "t":  # integers of the logits' shape are no probabilities
            low.append(a)
        else:
            low.append(np.abs(3 * a).astype(given_as))
    wide = [a.astype(computing) if isinstance(a, np.ndarray) and a.dtype == given_as else a for a in low]
    wide = [ins[k] if kind == LABEL else a for k, ((_, kind), a) in enumerate(zip(op.ins, wide))]
    expected = compute(op, computing, wide, params)
    for (name, _), result, e in zip(op.outs, call(public, op, low), expected[: len(op.outs)], strict=True):
        with np.errstate(all="ignore"):
            kept = np.float32 if name in ("loss", "slope") else given_as
            assert_same_bits(result, e.astype(kept) if is_float else e, f"{public} {narrow} {name}")


def test_uint_does_not_wrap(room: Room) -> None:
    x = np.array([0, 1, 2], np.uint8)
    assert_same_bits(fs.log_softmax(x), fs.log_softmax(x.astype(float)))


def test_scalars(room: Room) -> None:
    assert fs.softmax(3.0) == 1
    assert isinstance(fs.softmax(3.0), np.float64)
    assert fs.log_softmax(np.float32(2)).dtype == np.float32
    assert fs.logsumexp(5) == 5
    assert fs.softmax(np.array(3.0), axis=None) == 1
    assert fs.softmax_vjp(1.0, 3.0) == 0
    assert fs.logsumexp_vjp(1.0, 3.0) == 3


@pytest.mark.parametrize(("public", "op"), FACES)
def test_out_of_any_layout(room: Room, dtype: np.dtype, public: str, op: Op) -> None:
    """An ``out`` may have any strides; what lies between its elements stays as it was."""
    ins, params = Case("normal", 5, 12).build(op, dtype)
    expected = compute(op, dtype, ins, params)
    for k, (name, _) in enumerate(op.outs):
        keyword = out_keyword(op, name)
        if keyword is None:
            continue
        shape = expected[k].shape
        for step in (1, 2, -1, -2):
            big = np.full([n * abs(step) + 2 for n in shape], 77, dtype)
            out = big[tuple(slice(1, 1 + n * abs(step), abs(step)) for n in shape)]
            if step < 0:
                out = out[tuple(slice(None, None, -1) for _ in shape)]
            result = call(public, op, ins, **{keyword: out})[k]
            assert result is out
            assert_same_bits(out, expected[k], f"{public}, out with step {step}")
            out[...] = 77
            assert (big == 77).all(), f"{public} wrote outside of out (step {step})"


@pytest.mark.parametrize(("public", "op"), FACES)
def test_axis_of_large_arrays(room: Room, dtype: np.dtype, public: str, op: Op) -> None:
    """Arrays of several tiles, classes along any axis."""
    if any(kind == SQUARE for _, kind in op.outs):
        shapes = [((7, 50, 11), 1)]
    else:
        shapes = [((300, 700), 0), ((7, 300, 130), 1), ((40, 5, 50, 30), (1, 3)), ((1030, 5), 0)]
    for shape, axis in shapes:
        assert max(axes_of(len(shape), axis)) < len(shape)
        agrees(public, op, dtype, shape, axis, ["C"])
