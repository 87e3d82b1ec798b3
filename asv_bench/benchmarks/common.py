"""What the benchmarks share: the table, operands, calls, and the check of their results.

What is measured is the installed ``fastsoftmax``, of whichever commit.  What it is measured with comes from the working
tree, under the name ``yardstick``: the table, the exact results, the other libraries.  So the parameters of a benchmark
are the same for every commit, and an old commit is judged by today's standard.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import inspect
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

import fastsoftmax

ROOT = Path(__file__).resolve().parents[2]

# Set by the tests: everything runs once, on arrays of a few elements.
TINY = "FASTSOFTMAX_BENCH_TINY" in os.environ


def _load_yardstick() -> ModuleType:
    source = ROOT / "fastsoftmax" / "__init__.py"
    spec = importlib.util.spec_from_file_location("yardstick", source, submodule_search_locations=[str(source.parent)])
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["yardstick"] = module
    spec.loader.exec_module(module)
    return module


yardstick = _load_yardstick()


def tool(name: str) -> Any:
    """Return a module of the working tree's package."""
    return importlib.import_module(f"yardstick.{name}")


_ops = tool("_ops")
OPS: dict[str, Any] = _ops.OPS
ROW, ONE, LABEL, CLASS, SQUARE = _ops.ROW, _ops.ONE, _ops.LABEL, _ops.CLASS, _ops.SQUARE
BACKENDS: tuple[str, ...] = tool("_backends").BACKENDS
DTYPES = ("float32", "float64")

Array = np.ndarray[Any, Any]
Call = Callable[[], Any]


# --- parameters ---------------------------------------------------------------------------------------------------

# Rows, classes, axis of the classes: one small array, one in cache, one long row, and three of 240 MB in float32.
_SIZES = ((8, 10, -1), (128, 1000, -1), (1, 4_000_000, -1), (6_000_000, 10, -1), (60_000, 1000, -1), (60_000, 1000, 0))
# For operations whose result is a matrix per row, of as many elements.
_SQUARE_SIZES = ((8, 10, -1), (16, 100, -1), (1, 2000, -1), (600_000, 10, -1), (60, 1000, -1), (60, 1000, 0))
_TINY_SIZES = ((3, 4, -1), (5, 70, -1), (1, 300, -1), (40, 3, -1), (9, 33, -1), (7, 33, 0))

# More elements than this take the reference backend, which is there to be right, longer than anyone will wait.
_REFERENCE_ELEMENTS = 1 << 20


def is_loss(op: Any) -> bool:
    """Tell whether the operation is a loss, perhaps with derivatives, or a derivative of one."""
    return bool(op.outs[0][0] == "loss" or "zloss" in op.params)


def is_square(op: Any) -> bool:
    """Tell whether the operation's result is a matrix per row."""
    return any(kind == SQUARE for _, kind in op.outs)


def shapes(op: Any) -> dict[str, tuple[int, int, int]]:
    """Return the shape classes of an operation: rows, classes and the axis of the classes by the array's shape."""
    sizes = _TINY_SIZES if TINY else _SQUARE_SIZES if is_square(op) else _SIZES
    return {f"{r}x{c}" if axis else f"{c}x{r}, axis 0": (r, c, axis) for r, c, axis in sizes}


def cases(op: Any) -> list[str]:
    """Return ``<op>-<dtype>-<backend>`` for every dtype and backend."""
    return [f"{op.name}-{dtype}-{backend}" for backend in BACKENDS for dtype in DTYPES]


def per_op(name: str, *bases: type) -> type:
    """Return a class of benchmarks for one operation: the bases', with the operation and its parameters."""
    op = OPS[name]
    params = [cases(op), list(shapes(op))]
    return type(name, bases, {"op": op, "params": params[: len(bases[0].param_names)]})  # type: ignore[attr-defined]


# --- where it is computed -----------------------------------------------------------------------------------------

_entered = contextlib.ExitStack()


def leave() -> None:
    """Return to the default backend."""
    _entered.close()


def enter(backend: str) -> None:
    """Compute with this backend from now on; if the installed commit cannot, asv skips the benchmark."""
    leave()
    try:
        _entered.enter_context(fastsoftmax.use_backend(backend))
    except (ImportError, AttributeError) as error:  # the latter from commits older than the backend
        raise NotImplementedError(f"backend {backend}: {error}") from None


# --- operands -----------------------------------------------------------------------------------------------------

# What the definitions take for options that are not given.
_NEUTRAL = {
    "scale": 1.0,
    "empty": 0.0,
    "keep": 1.0,
    "spread": 0.0,
    "zloss": 0.0,
    "ignore": -100.0,
    "positive": 1.0,
    "excess": 0.0,
}

# Rows of about so many elements are drawn, and repeated up to the array's size: that is fast, and tells what all of a
# large result must be.
_BLOCK = 1 << 16


def _block(op: Any, rows: int, classes: int, dtype: str) -> dict[str, Any]:
    """Draw an operand for each of the table's, ``(rows, classes)`` or ``(rows,)``; options have their defaults."""
    rng = np.random.default_rng(0)

    def logits() -> Array:
        return (rng.standard_normal((rows, classes)) * 4).astype(dtype)

    def operand(name: str, kind: str) -> Any:
        if name in ("w", "u", "v", "q") or (name == "g" and is_loss(op)):
            return 1.0 if kind != ROW else np.ones((rows, classes), dtype)
        if kind == LABEL:
            return rng.integers(0, classes, rows)
        if kind == ONE:
            return rng.standard_normal(rows).astype(dtype)
        if name == "b":
            return rng.uniform(0.2, 1, (rows, classes)).astype(dtype)
        x = logits()
        if name == "p" or (name in "ty" and is_loss(op)):
            return OPS["softmax"].definition(x, scale=1, empty=0)[0].astype(dtype)
        return OPS["log_softmax"].definition(x, scale=1, empty=0)[0].astype(dtype) if name == "logp" else x

    return {name: operand(name, kind) for name, kind in op.ins}


def define(op: Any, operands: dict[str, Any], wide: Any) -> list[Array]:
    """Evaluate the table's definition of an operation in a wider dtype, per row."""
    rows = len(operands[op.ins[0][0]])
    ins = []
    for name, kind in op.ins:
        a = operands[name]
        if not isinstance(a, np.ndarray):
            a = np.full(rows, a, wide) if kind == ONE else wide(a)
        ins.append(a if kind == LABEL else a.astype(wide))
    with np.errstate(all="ignore"):
        return list(op.definition(*ins, **{p: wide(_NEUTRAL[p]) for p in op.params}))[: len(op.outs)]


def parts(result: Any) -> list[Array]:
    """Return a result's arrays."""
    return [np.asarray(part) for part in (result if isinstance(result, tuple) else (result,))]


class Job:
    """One call of the library: operands, the call with and without memory for the result, the expected rows.

    Attributes
    ----------
    call
        The call, into memory that is reused where the function takes an ``out``.
    fresh
        The call without.
    operands
        What is passed, in the table's order.
    block
        The rows that the operands repeat, by the table's names.
    """

    def __init__(self, op: Any, dtype: str, rows: int, classes: int, axis: int) -> None:
        self.op, self.dtype, self.rows, self.axis = op, dtype, rows, axis
        width = classes * classes if is_square(op) else classes
        self.block = _block(op, min(rows, max(1, _BLOCK // width)), classes, dtype)
        named = {name: self._spread(a) for name, a in self.block.items() if isinstance(a, np.ndarray)}
        self.operands = list(named.values())
        self.fresh = self._bind(named)
        self.call = self.fresh

    def _spread(self, block: Array) -> Array:
        """Repeat a block of rows along an array; with axis 0, rows are columns."""
        a = np.empty((self.rows, *block.shape[1:])[:: 1 if self.axis else -1], block.dtype)
        view = a if self.axis else a.T
        for start in range(0, self.rows, len(block)):
            view[start : start + len(block)] = block[: self.rows - start]
        return a

    def _bind(self, named: dict[str, Array]) -> Callable[..., Any]:
        op = self.op
        if not op.public:  # an operation that the library uses itself
            plan = importlib.import_module("fastsoftmax._plan")
            x = self.operands[0]
            frame = plan.Frame(x.shape, self.axis)

            def execute(out: Array | None = None) -> tuple[Array, ...]:
                outs = [np.empty(x.shape if kind == ROW else frame.batch_shape, x.dtype) for _, kind in op.outs]
                outs[0] = outs[0] if out is None else out
                ins = [named.get(name, 1.0) for name, _ in op.ins]
                plan.execute(op, frame, ins, outs, {name: _NEUTRAL[name] for name in op.params}, x.dtype)
                return tuple(outs)

            return execute
        function = getattr(fastsoftmax, op.public[0])
        options: dict[str, Any] = {"axis": self.axis}
        if is_loss(op):
            options["reduction"] = "none"
        if "b" in named:
            options |= {"b": named["b"], "return_sign": True}
        args = [a for name, a in named.items() if name != "b" and not (is_loss(op) and name == "g")]
        return lambda **out: function(*args, **options, **out)

    def prepare(self) -> None:
        """Compute once, which compiles what has to be, check the result, and keep its memory for the next call."""
        if self.op.name not in fastsoftmax._ops.OPS:
            raise NotImplementedError(f"this commit has no {self.op.name}")
        result = parts(self.fresh())
        self.check(result)
        known = inspect.signature(getattr(fastsoftmax, self.op.public[0]) if self.op.public else self.fresh).parameters
        memory = {"out": result[0], "grad_out": result[1 % len(result)], "hess_out": result[-1]}
        options = {name: a for name, a in memory.items() if name in known}
        self.call = lambda: self.fresh(**options)
        self.check(parts(self.call()))

    def row_view(self, a: Array, kind: str) -> Array:
        """View a result with its rows first."""
        return a.T if kind == ROW and self.axis == 0 else a

    def check(self, result: Sequence[Array]) -> None:
        """Compare with the definition: the first rows roughly, the others with the first, to the bit."""
        n = len(next(iter(self.block.values())))
        wide = np.longdouble if self.block[self.op.ins[0][0]].size <= _BLOCK else np.float64
        for (name, kind), a, want in zip(self.op.outs, result, define(self.op, self.block, wide), strict=True):
            got = self.row_view(a, kind)
            first = got[:n]
            error = float(np.abs(first - want).max()) / float(np.abs(want).max())
            if not error <= 64 * np.finfo(self.dtype).eps:
                raise AssertionError(f"{self.op.name}: {name} is wrong by {error:.3g} of its largest element")
            for start in range(n, self.rows, n):
                part = got[start : start + n]
                if not np.array_equal(part, first[: len(part)]):
                    raise AssertionError(f"{self.op.name}: {name} of a row depends on where the row is")


def job(op: Any, case: str, shape: str) -> Job:
    """Return what a benchmark's parameters stand for, computed once and checked."""
    _, dtype, backend = case.rsplit("-", 2)
    rows, classes, axis = shapes(op)[shape]
    if backend == "numpy" and rows * classes * (classes if is_square(op) else 1) > _REFERENCE_ELEMENTS:
        raise NotImplementedError("the reference backend is too slow for this shape")
    enter(backend)
    made = Job(op, dtype, rows, classes, axis)
    made.prepare()
    return made


# --- time and memory ----------------------------------------------------------------------------------------------


def loops_for(call: Call, seconds: float) -> int:
    """Return how many calls take about so many seconds."""
    if TINY:
        return 1
    loops = 1
    while True:
        start = time.perf_counter()
        for _ in range(loops):
            call()
        spent = time.perf_counter() - start
        if spent >= seconds / 4:
            return max(1, round(loops * seconds / spent))
        loops *= 4


def repeated(call: Call, loops: int) -> Call:
    """Return a call of so many calls."""

    def several() -> None:
        for _ in range(loops):
            call()

    return several


def ratio(first: Call, second: Call, seconds: float = 0.6) -> float:
    """Return the time of one call in multiples of another's: medians of turns in one process."""
    bench = tool("_cli.bench")
    loops = min(loops_for(first, 0.001), loops_for(second, 0.001))
    candidates = [bench.Candidate("", False, repeated(call, loops)) for call in (first, second)]
    bench.take_turns(candidates, 1e-6 if TINY else seconds, tool("_cli._common")._NoBar())
    a, b = (statistics.median(c.times) for c in candidates)
    return float(a / b)


_PROC = Path("/proc/self")


def forget_peak() -> None:
    """Let the process's peak memory be what it uses now, as far as the system can."""
    with contextlib.suppress(OSError):
        (_PROC / "clear_refs").write_text("5")


def resident(peak: bool) -> int | None:
    """Return the bytes of memory that the process uses, or has used at its peak; None where that cannot be told."""
    try:
        lines = (_PROC / "status").read_text().splitlines()
    except OSError:
        return None
    key = "VmHWM:" if peak else "VmRSS:"
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))
