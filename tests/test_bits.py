"""Bitwise reproducibility: what a row's result, and a reduced loss, must not depend on.

The checks are functions of (op, dtype), so that the saboteurs face them, too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cases import Case, is_loss
from checks import assert_same_bits, compute, copies, new_outs, out_shape
from hypothesis import given
from hypothesis import strategies as st
from rooms import Room

import fastsoftmax as fs
from fastsoftmax._ops import CLASS, OPS, SQUARE, Op

CLASSES = (3, 10, 17, 100, 515)


def options(op: Op) -> tuple[str, ...]:
    return ("weights", "vectors", "smoothing", "zloss") if is_loss(op) else ()


def rows_of(op: Op, ins: list[Any], rows: Any) -> list[Any]:
    """Select rows of all operands that have rows."""
    return [a[rows] if isinstance(a, np.ndarray) and kind != CLASS else a for (_, kind), a in zip(op.ins, ins)]


def alone(op: Op, dtype: np.dtype) -> None:
    """Demand the same bits of a row alone, in any batch, and at any position in it."""
    for c in CLASSES[:3] if is_square(op) else CLASSES:
        for family in ("normal", "sigma100"):
            ins, params = Case(family, 19, c, options(op)).build(op, dtype)
            whole = compute(op, dtype, ins, params)
            for rows in (slice(0, 1), slice(7, 8), slice(18, 19), slice(2, 5), slice(1, 17), slice(None, None, -1)):
                part = compute(op, dtype, [np.ascontiguousarray(a) if isinstance(a, np.ndarray) else a
                                           for a in rows_of(op, ins, rows)], params)  # fmt: skip
                for a, b in zip(part, whole, strict=True):
                    assert_same_bits(a, b[rows], f"{op.name}, {dtype}, {c} classes: rows {rows} alone and in a batch")


def is_square(op: Op) -> bool:
    return any(kind == SQUARE for _, kind in op.outs)


def shifted(a: Any, offset: int) -> Any:
    """Copy an array to an address ``offset`` elements past a 64-byte boundary."""
    if not isinstance(a, np.ndarray):
        return a
    buffer = np.zeros(a.nbytes + 64 + offset * a.itemsize, np.uint8)
    start = -buffer.ctypes.data % 64 + offset * a.itemsize
    view = buffer[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    view[...] = a
    return view


def anywhere(op: Op, dtype: np.dtype) -> None:
    """Demand that alignment and the strides of rows and of classes do not show in the bits."""
    for c in CLASSES[:4]:
        ins, params = Case("normal", 5, c, options(op)).build(op, dtype)
        expected = compute(op, dtype, ins, params)
        for offset in (1, 3, 5, 15):
            outs = [shifted(np.zeros_like(o), 16 - offset) for o in expected]
            got = compute(op, dtype, [shifted(a, offset) for a in ins], params, outs)
            for a, b in zip(got, expected, strict=True):
                assert_same_bits(a, b, f"{op.name}, {dtype}, {c} classes, {offset} elements off a boundary")
        for spread in ("rows", "classes", "transposed"):
            got = compute(op, dtype, [spaced(a, spread) for a in ins], params, [spaced(o, spread) for o in expected])
            for a, b in zip(got, expected, strict=True):
                assert_same_bits(a, b, f"{op.name}, {dtype}, {c} classes, {spread} spread out")


def spaced(a: Any, how: str) -> Any:
    """Copy a batch into an array with gaps between rows or classes, or with the rows lying side by side."""
    if not isinstance(a, np.ndarray) or a.ndim == 1:
        return a
    if how == "transposed":
        return np.array(a.T, order="C").T
    shape = [2 * n if k == (0 if how == "rows" else a.ndim - 1) else n for k, n in enumerate(a.shape)]
    view = np.full(shape, 77, a.dtype)[:: 2 if how == "rows" else 1]
    view = view if how == "rows" else view[..., ::2]
    view[...] = a
    return view


def gaps_stay(op: Op, dtype: np.dtype) -> None:
    """Nothing is written around an output or between its rows: one element past the end is one too far."""
    for c in (*CLASSES[:3], 16, 33):
        ins, params = Case("normal", 6, c, options(op)).build(op, dtype)
        for gap in (0, 3):
            buffers, outs = [], []
            for (_, kind), like in zip(op.results, new_outs(op, dtype, 1, 1)):
                shape = out_shape(kind, 6, c)
                big = np.full((8, *(n + gap for n in shape[1:])), 77, like.dtype)
                buffers.append(big)
                outs.append(big[(slice(1, 7), *(slice(0, n) for n in shape[1:]))])
            compute(op, dtype, copies(ins), params, outs)
            for big, out in zip(buffers, outs, strict=True):
                out[...] = 77
                assert (big == 77).all(), f"{op.name}, {dtype}, {c} classes: wrote outside of its output"


def any_number_of_threads(op: Op, dtype: np.dtype) -> None:
    """1 to 4 threads give the same bits, for many rows and for few long ones."""
    shapes = [(700, 21)] if is_square(op) else [(61, 4001), (20_011, 5), (1, 300_007), (3, 70_001)]
    for shape in shapes:
        ins, params = Case("normal", *shape, options(op)).build(op, dtype)
        with fs.num_threads(1):
            expected = compute(op, dtype, ins, params)
        for n in (2, 3, 4):
            with fs.num_threads(n):
                for a, b in zip(compute(op, dtype, ins, params), expected, strict=True):
                    assert_same_bits(a, b, f"{op.name}, {dtype}, {shape}: {n} threads and 1")


CHECKS = (alone, anywhere, gaps_stay)


@pytest.mark.parametrize("check", CHECKS, ids=lambda f: f.__name__)
def test_bits(room: Room, op: Op, dtype: np.dtype, check: Any) -> None:
    check(op, dtype)


def test_threads(room: Room, op: Op, dtype: np.dtype) -> None:
    any_number_of_threads(op, dtype)


def test_repeated_calls(room: Room, op: Op, dtype: np.dtype) -> None:
    ins, params = Case("normal", 33, 65, options(op)).build(op, dtype)
    first = compute(op, dtype, ins, params)
    for _ in range(5):
        for a, b in zip(compute(op, dtype, ins, params), first, strict=True):
            assert_same_bits(a, b, op.name)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduced_losses(room: Room, dtype: np.dtype, reduction: str) -> None:
    rng = np.random.default_rng(0)
    for r, c in ((100_003, 3), (517, 600)):
        x, y = rng.normal(size=(r, c)).astype(dtype), rng.integers(c, size=r)
        w = rng.random(c).astype(dtype)
        for options in ({}, {"weight": w}):  # summed while computed, and afterwards
            with fs.num_threads(1):
                one = fs.cross_entropy(x, y, reduction=reduction, **options)
                value, grad = fs.cross_entropy_value_and_grad(x, y, reduction=reduction, **options)
            for n in (2, 3, 4):
                with fs.num_threads(n):
                    assert_same_bits(fs.cross_entropy(x, y, reduction=reduction, **options), one)
                    again = fs.cross_entropy_value_and_grad(x, y, reduction=reduction, **options)
                    assert_same_bits(again.value, value)
                    assert_same_bits(again.grad, grad)


@pytest.mark.parametrize("name", ["softmax", "cross_entropy_index_grad", "log_softmax_vjp"])
@given(
    rows=st.integers(1, 40), classes=st.integers(1, 70), threads=st.integers(1, 4),
    offset=st.integers(0, 15), seed=st.integers(0, 2**32 - 1), data=st.data(),
)  # fmt: skip
def test_any_row_of_any_batch(
    room: Room, name: str, rows: int, classes: int, threads: int, offset: int, seed: int, data: st.DataObject
) -> None:
    op, dtype = OPS[name], np.dtype(np.float32)
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(rows, classes)) * rng.choice([0.1, 1, 30, 1e4])).astype(dtype)
    ins, params = Case("normal", rows, classes).build(op, dtype)
    ins[0] = x if op.ins[0][0] == "x" else fs.log_softmax(x)
    k = data.draw(st.integers(0, rows - 1))
    with fs.num_threads(threads):
        whole = compute(op, dtype, [shifted(a, offset) for a in ins], params)
    part = compute(op, dtype, rows_of(op, ins, slice(k, k + 1)), params)
    for a, b in zip(part, whole, strict=True):
        assert_same_bits(a[0], b[k], f"{name}: row {k} of {rows} x {classes}")


def test_int_labels_of_any_width(room: Room) -> None:
    x = np.random.default_rng(0).normal(size=(6, 9))
    y = np.arange(6)
    expected = fs.cross_entropy(x, y, reduction="none")
    for narrow in ("i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", ">i4"):
        assert_same_bits(fs.cross_entropy(x, y.astype(narrow), reduction="none"), expected, narrow)


@pytest.mark.parametrize("masked", [False, True])
def test_factors_of_a_row_alone(room: Room, dtype: np.dtype, masked: bool) -> None:
    """What is one number for a row alone, and an array for a batch, is rounded alike."""
    rng = np.random.default_rng(0)
    x, y, g, v = rng.normal(size=(30, 9)).astype(dtype), rng.integers(0, 9, 30), *rng.normal(size=(2, 30))
    mask = rng.random((30, 9)) < 0.7 if masked else np.full((30, 9), True)
    t = np.exp(x)
    for f in (
        lambda i, **o: fs.cross_entropy_value_and_grad(x[i], y[i], label_smoothing=0.1, **o).grad,
        lambda i, **o: fs.cross_entropy_value_grad_hess(x[i], y[i], label_smoothing=0.1, **o).hess,
        lambda i, **o: fs.cross_entropy_hvp(x[i], y[i], t[i], label_smoothing=0.1, **o),
        lambda i, **o: fs.kl_divergence_value_and_grad(x[i], t[i], **o).grad,
    ):
        whole = f(slice(None), where=mask, sample_weight=v, grad_output=g, reduction="none")
        for i in range(30):
            assert_same_bits(f(i, where=mask[i], sample_weight=v[i], grad_output=g[i], reduction="none"), whole[i])
        whole = f(slice(None), where=mask, grad_output=g, reduction="none")
        for i in range(30):
            assert_same_bits(f(i, where=mask[i], grad_output=g[i], reduction="none"), whole[i])
