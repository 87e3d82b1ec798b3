"""``fastsoftmax.special`` in the place of ``scipy.special``."""

from __future__ import annotations

import importlib.util
import inspect
import itertools
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import isolated
import numpy as np
import pytest
from checks import assert_same_bits
from rooms import Room

import fastsoftmax as fs
from fastsoftmax import special

scipy_special = pytest.importorskip("scipy.special", reason='SciPy is in the extra: pip install "fastsoftmax[test]"')

ROOT = Path(__file__).parent.parent
TOOL = ROOT / "tools" / "run_scipy_tests.py"
INF, NAN = np.inf, np.nan


def test_it_is_there_once_the_package_is_imported() -> None:
    done = isolated.run([sys.executable, "-c", "import fastsoftmax as fs; print(fs.special.__name__)"])
    assert done.stdout == "fastsoftmax.special\n", done.stderr


@pytest.mark.parametrize("name", special.__all__)
def test_signatures_are_equal(name: str) -> None:
    assert inspect.signature(getattr(special, name)) == inspect.signature(getattr(scipy_special, name))


@pytest.mark.parametrize("dtype", ["f4", "f8", ">f4", "f2"])
@pytest.mark.parametrize("op", ["softmax", "log_softmax"])
def test_rows_of_one_class_have_the_bits_of_few(op: str, dtype: str) -> None:
    """Many of them do not come from a kernel."""
    few = np.array([[0.0], [-1.0], [6e4], [INF], [-INF], [NAN], [-NAN], [6e-8]], dtype)
    many = np.tile(few, (special.MANY_ROWS // 8 + 1, 1))
    expected = np.tile(getattr(fs, op)(few), (special.MANY_ROWS // 8 + 1, 1))
    for a, axis in ((many, 1), (many.T, 0), (many.T, -2), (many[:, None], 1)):
        assert_same_bits(getattr(special, op)(a, axis).reshape(expected.shape), expected)


def test_scipys_own_tests_pass() -> None:
    result = subprocess.run([sys.executable, str(TOOL)], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
    assert " passed, " in result.stdout


def test_scipys_own_tests_can_fail() -> None:
    """The tool tests our functions, not SciPy's, and excepts the tests of complex input only."""
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("tool", {str(TOOL)!r})
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)
tool.special.softmax = lambda x, axis=None: 0
sys.exit(tool.main(["--tb=line"]))
"""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1
    failed = {line.split("::")[1] for line in result.stdout.splitlines() if line.startswith("FAILED")}
    assert failed == {"TestSoftmax"}


# --- the same as SciPy's, call by call ------------------------------------------------

AXES = (None, 0, -1, 1, -2, 2, (0, 1), (0, 2), (), 1.0)
SHAPES = ((), (1,), (5,), (2, 3), (2, 3, 4), (0,), (0, 5), (5, 0), (0, 0))


def outcome(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Return the results of a call, or the exception's class."""
    try:
        with np.errstate(all="ignore"):
            result = function(*args, **options)
    except Exception as error:
        return type(error)
    return result if isinstance(result, tuple) else (result,)


def assert_as_scipy(name: str, *args: Any, **options: Any) -> None:
    ours, theirs = (outcome(getattr(module, name), *args, **options) for module in (special, scipy_special))
    what = f"{name}{args}{options}"
    assert isinstance(ours, type) == isinstance(theirs, type), f"{what}: {ours}, SciPy: {theirs}"
    if isinstance(ours, type):
        assert ours is theirs, what
        return
    for a, b in zip(ours, theirs, strict=True):
        assert (type(a), a.dtype, a.shape) == (type(b), b.dtype, b.shape), what
        tolerance = 16 * np.finfo(b.dtype).eps
        np.testing.assert_allclose(a.astype(float), b.astype(float), rtol=tolerance, atol=tolerance, err_msg=what)


@pytest.mark.parametrize("dtype", "bhilBHILefd")
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_is_scipys(name: str, dtype: str) -> None:
    for shape, axis in itertools.product(SHAPES, AXES):
        x = np.random.default_rng(0).integers(0, 4, shape).astype(dtype)
        if x.dtype.kind == "u":
            x[...] = 3  # SciPy's differences of unsigned numbers wrap around
        assert_as_scipy(name, x, axis=axis)


@pytest.mark.parametrize("dtype", "?bhilBHILefd")
def test_logsumexp_is_scipys(dtype: str) -> None:
    for shape, axis, keepdims in itertools.product(SHAPES, AXES, (False, True)):
        rng = np.random.default_rng(0)
        a, b = rng.integers(0, 4, shape).astype(dtype), rng.integers(1, 4, shape).astype(dtype)
        if not a.size and not (isinstance(axis, int) and -a.ndim <= axis < a.ndim):
            continue  # SciPy's raises an accidental IndexError, or invents an element
        for factors in (None, b, -b if dtype != "?" and a.dtype.kind != "u" else b):
            assert_as_scipy("logsumexp", a, axis, factors, keepdims)
            if a.size:
                assert_as_scipy("logsumexp", a, axis=axis, b=factors, keepdims=keepdims, return_sign=True)


@pytest.mark.parametrize(("one", "other"), list(itertools.product("?bBhilefd", repeat=2)))
def test_dtypes_promote_as_scipys(one: str, other: str) -> None:
    assert_as_scipy("logsumexp", np.ones(3, one), b=np.ones(3, other))


@pytest.mark.parametrize("number", [2, 2.0, True, np.float64(2), np.float32(2), np.int64(2), [2.0]])
def test_numbers_promote_as_scipys(number: Any) -> None:
    for other in (np.ones(3, "f4"), np.ones(3, "f2"), np.ones(3, int), 3, 3.0):
        assert_as_scipy("logsumexp", number, b=other)
        assert_as_scipy("logsumexp", other, b=number)
    for name in special.__all__:
        if not isinstance(number, bool):
            assert_as_scipy(name, number)


def test_broadcasting_goes_both_ways() -> None:
    assert_as_scipy("logsumexp", np.zeros((4, 1, 2, 1)), b=np.ones((3, 1, 5)))
    assert_as_scipy("logsumexp", np.zeros((2, 3)), axis=0, b=np.ones((4, 1, 1)))
    for axis in (1, (0, 1), -2):
        assert_as_scipy("logsumexp", np.ones(1), axis=axis, b=np.array([[0.5], [1.5]]))
    message = r"a has shape \(2, 3\) and b has shape \(4,\); expected shapes that broadcast"
    with pytest.raises(ValueError, match=message):
        special.logsumexp(np.zeros((2, 3)), b=np.ones(4))


@pytest.mark.parametrize("row", list(itertools.product((1.0, -INF, INF, NAN), repeat=3)))
def test_values_at_the_edges(room: Room, row: tuple[float, ...]) -> None:
    x = np.array(row)
    assert_as_scipy("softmax", x)
    for b in (None, [1.0, -1, 1], [NAN, 1, 1], [INF, 1, 1], [INF, -INF, 1], [-2.0, -1, -1]):
        for sign in (False, True):
            assert_as_scipy("logsumexp", x, b=b, return_sign=sign)
    if INF not in row:
        assert_as_scipy("log_softmax", x)


def test_where_ours_differs() -> None:
    assert np.isnan(special.log_softmax([1.0, INF])).all()
    assert special.logsumexp([1.0, INF], b=[0.0, 0.0], return_sign=True) == (-INF, 0)
    assert special.logsumexp([], return_sign=True) == (-INF, 0)
    assert special.logsumexp(np.zeros((2, 0))) == -INF
    assert special.logsumexp(np.zeros((2, 0)), axis=()).shape == (2, 0)
    x = np.array([0, 200], np.uint8)
    assert_same_bits(special.softmax(x), np.array([0, 1], np.float16))


# --- errors ------------------------------------------------


@pytest.mark.parametrize("name", special.__all__)
def test_errors_are_clear(name: str) -> None:
    function = getattr(special, name)
    argument = next(iter(inspect.signature(function).parameters))
    for dtype in (complex, np.complex64, object, np.longdouble, "U1"):
        with pytest.raises(
            TypeError, match=rf"^{argument} has dtype .*; expected float16, bfloat16, float32 or float64"
        ):
            function(np.zeros(3, dtype))
    with pytest.raises(TypeError, match=f"{argument} is a masked array"):
        function(np.ma.zeros(3))
    with pytest.raises(np.exceptions.AxisError):
        function(np.zeros((2, 3)), axis=2)
    if name != "logsumexp":
        with pytest.raises(ValueError, match=r"x has shape \(5, 0\); expected at least one element along axis=-1"):
            function(np.zeros((5, 0)), axis=-1)
        with pytest.raises(TypeError, match="x has dtype bool; expected numbers"):
            function(np.ones(3, bool))
    else:
        with pytest.raises(TypeError, match="b has dtype complex128"):
            function(np.zeros(3), b=np.zeros(3, complex))


# --- the way of a plain array ------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 10), (8, 10), (40, 300), (7,), (2, 3, 5)])
@pytest.mark.parametrize("order", ["C", "F"])
def test_bits_are_those_of_the_package(room: Room, dtype: np.dtype, shape: tuple[int, ...], order: Any) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(dtype, order=order)
    kept = x.copy()
    for axis in (None, *range(-len(shape), len(shape))):
        for name in special.__all__:
            got, expected = (getattr(module, name)(x, axis=axis) for module in (special, fs))
            assert_same_bits(got, expected, f"{name}, axis={axis}")
            assert not np.may_share_memory(got, x)
            if isinstance(got, np.ndarray):
                assert got.flags.writeable
        kept_dims = special.logsumexp(x, axis=axis, keepdims=True)
        assert_same_bits(kept_dims, fs.logsumexp(x, axis=axis, keepdims=True))
    assert_same_bits(x, kept)


def test_module_is_not_part_of_the_package_namespace() -> None:
    assert importlib.util.find_spec("fastsoftmax.special") is not None
    assert "special" not in fs.__all__
