"""``fastsoftmax bench``: this library beside others."""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import statistics
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np

import fastsoftmax

from .. import _backends, _threads
from .._ops import CLASS, LABEL, ONE, OPS, ROW, SQUARE, Array, Op
from ._common import CliError, duration, print_json, progress
from ._exact import exact, magnitude, ulp_error
from ._peers import PEERS, Call

DEFAULT_OPS = ("softmax", "cross_entropy_value_and_grad")
DEFAULT_SHAPES = ((65536, 10), (4096, 1000), (256, 32000))
SQUARE_SHAPES = ((4096, 10), (16, 1000))

# Elements whose exact results are computed, in extended precision, to judge the others by.
CHECKED = 1 << 18

# Below this size, handing half of a copy to another thread takes longer than the copy.
SMALL = 1 << 20

# The functions that can be timed: every public one of the table, with the first operation that it ends in.
FUNCTIONS: dict[str, Op] = {}
for _op in OPS.values():
    for _name in _op.public:
        FUNCTIONS.setdefault(_name, _op)

_DESCRIPTION = """\
Time this library's backends beside whatever other libraries are installed.

All of them take turns in one process, with the same number of threads (SciPy
and plain NumPy have but one), and reuse memory for the output where they can.
Losses are per row, gradients those of their sum.  For each the table shows

  time       the median of its turns
  x memcpy   the same, in multiples of the time to copy the logits once, with
             as many threads
  ULP        the largest error, in units in the last place of the exact result
             (of the row's largest one where results are sums of signed terms,
             which may cancel); from the first rows only where there are many

Each result is checked before it is timed; a wrong one is reported, and the
exit status is 1 if it is one of ours.
"""

_EPILOG = """\
examples:
  fastsoftmax bench
  fastsoftmax bench --shape 4096,1000 --shape 32,128000 --dtype float64
  fastsoftmax bench --op log_softmax --op softmax_vjp --peers torch,jax
  fastsoftmax bench --backends cython --seconds 60 --json
"""


def _shape(text: str) -> tuple[int, int]:
    try:
        rows, classes = (int(part) for part in text.split(","))
    except ValueError:
        rows = classes = 0
    if rows < 1 or classes < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a shape: expected ROWS,CLASSES, for example 4096,1000")
    return rows, classes


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        names = [name for name in text.split(",") if name]
        for name in names:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is not one of {', '.join(known)}")
        return names

    return parse


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number of seconds")
    return value


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the subcommand's arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="time this library beside NumPy, SciPy, PyTorch, JAX and ONNX Runtime",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    shapes = " ".join(f"{rows},{classes}" for rows, classes in DEFAULT_SHAPES)
    add("--shape", type=_shape, action="append", metavar="R,C", help=f"rows, classes; repeatable (default: {shapes})")
    add("--dtype", choices=("float32", "float64"), default="float32", help="(default: float32)")
    add(
        "--op",
        choices=list(FUNCTIONS),
        action="append",
        metavar="NAME",
        help=f"repeatable (default: {' '.join(DEFAULT_OPS)}); one of {', '.join(FUNCTIONS)}",
    )
    backends = _backends.BACKENDS
    add(
        "--backends",
        type=_names(backends),
        metavar="A,B",
        help="ours (default: all usable of " + ",".join(backends) + ")",
    )
    add(
        "--peers",
        type=_names(list(PEERS)),
        metavar="A,B",
        help="others (default: all installed of " + ",".join(PEERS) + ")",
    )
    add("--seconds", type=_seconds, default=30.0, metavar="S", help="time to spend on taking turns (default: 30)")
    return parser


# --- operands -------------------------------------------------------------------------------------


def make_operands(function: str, rows: int, classes: int, dtype: str) -> list[Array]:
    """Return operands for the required arguments of a public function, made after the table's notes on their kinds."""
    op = FUNCTIONS[function]
    parameters = inspect.signature(getattr(fastsoftmax, function)).parameters.values()
    required = sum(p.default is p.empty for p in parameters)
    rng = np.random.default_rng(0)

    def logits() -> Array:
        return (rng.standard_normal((rows, classes)) * 4).astype(dtype, copy=False)

    def operand(name: str, kind: str) -> Array:
        if kind == LABEL:
            return rng.integers(0, classes, rows)
        if kind == ONE:
            return rng.standard_normal(rows).astype(dtype)
        if kind != ROW:
            return rng.random(classes).astype(dtype)
        if name == "logp":
            return np.asarray(fastsoftmax.log_softmax(logits()))
        if name == "p" or (name in "ty" and op.ins[0][0] == "x"):  # beside logits, a target: probabilities
            return np.asarray(fastsoftmax.softmax(logits()))
        return logits()

    return [operand(name, kind) for name, kind in op.ins[:required]]


def _parts(result: Any) -> list[Array]:
    """Return a result's arrays."""
    return [np.asarray(part) for part in (result if isinstance(result, tuple) else (result,))]


# --- candidates -----------------------------------------------------------------------------------


@dataclass
class Candidate:
    """Something to time."""

    label: str
    ours: bool
    call: Call
    ulp: float = 0.0
    fault: str | None = None
    times: list[float] = field(default_factory=list)
    spent: float = 0.0

    def turn(self) -> None:
        """Call twice and time the second: the first wakes threads and fills caches."""
        start = time.perf_counter()
        time.sleep(0.002)  # some libraries' threads go on spinning for a while after their work
        self.call()
        middle = time.perf_counter()
        self.call()
        end = time.perf_counter()
        self.times.append(end - middle)
        self.spent += end - start


def _ours(backend: str, function: str, operands: list[Array]) -> Call:
    f = getattr(fastsoftmax, function)
    parameters = inspect.signature(f).parameters
    options: dict[str, Any] = {"reduction": "none"} if "reduction" in parameters else {}
    with _backends.use_backend(backend):
        first = f(*operands, **options)
    arrays = _parts(first)
    memory = {"out": first, "grad_out": arrays[1 % len(arrays)], "hess_out": arrays[-1]}
    options |= {name: array for name, array in memory.items() if name in parameters}

    def call() -> Any:
        with _backends.use_backend(backend):
            return f(*operands, **options)

    return call


def _memcpy(x: Array, threads: int, pool: ThreadPoolExecutor) -> Call:
    out = np.empty_like(x)
    if x.nbytes < SMALL or threads == 1:
        return lambda: np.copyto(out, x)
    pairs = list(zip(np.array_split(out.reshape(-1), threads), np.array_split(x.reshape(-1), threads)))

    def copy() -> None:
        for _ in pool.map(lambda pair: np.copyto(*pair), pairs):
            pass

    return copy


class Judge:
    """Knows the exact results of a call, on its first rows."""

    def __init__(self, function: str, operands: list[Array]) -> None:
        f = getattr(fastsoftmax, function)
        options = {"reduction": "none"} if "reduction" in inspect.signature(f).parameters else {}
        op = FUNCTIONS[function]
        n, classes = operands[0].shape
        width = classes * classes if any(kind == SQUARE for _, kind in op.outs) else classes
        self.rows = min(n, max(1, CHECKED // width))
        kinds = [kind for _, kind in op.ins]
        first = [a if kind == CLASS else a[: self.rows] for a, kind in zip(operands, kinds)]
        self.op, self.results = exact(f, *first, **options)

    def look_at(self, candidate: Candidate) -> None:
        """Measure the error of a candidate, and find fault with it if that is too large."""
        for k, (result, part) in enumerate(zip(self.results, _parts(candidate.call()), strict=True)):
            got = part[: self.rows].reshape(result.shape)
            size = magnitude(self.op, k, result)
            error = ulp_error(got, result, size)
            candidate.ulp = max(candidate.ulp, error)
            if candidate.ours:
                # Of cancelling sums the table promises less than this unit measures: multiples of the largest term.
                limit = self.op.ulp * (16 if self.op.ulp_kind == "term" else 1)
            else:
                limit = float(np.finfo(got.dtype).eps) ** -0.5
                error = ulp_error(got, result, np.broadcast_to(np.abs(result).max(initial=0), result.shape))
            if not error <= limit:
                candidate.fault = f"wrong by {error:.3g} ULP; expected at most {limit:.3g}"


# --- turns ----------------------------------------------------------------------------------------


def take_turns(candidates: list[Candidate], seconds: float, bar: Any) -> None:
    """Time the candidates in turns until each has spent its share of the time; each has one turn at least."""
    share = seconds / len(candidates)
    waiting = list(candidates)
    while waiting:
        for candidate in waiting:
            before = candidate.spent
            candidate.turn()
            bar.update(round(min(candidate.spent, share) - min(before, share), 3))
        waiting = [c for c in waiting if c.spent + c.spent / len(c.times) <= share]


def _candidates(args: argparse.Namespace, function: str, operands: list[Array], threads: int) -> list[Candidate]:
    """Return whatever can compute the function, each with its result checked."""
    judge = Judge(function, operands)
    found = []
    for backend in args.backends:
        candidate = Candidate(f"fastsoftmax {backend}", True, _ours(backend, function, operands))
        judge.look_at(candidate)
        found.append(candidate)
    for peer in args.peers:
        label, packages, make = PEERS[peer]
        try:
            label = f"{label} {importlib.import_module(packages[0]).__version__}"
            call = make(function, operands, threads)
            if call is None:
                continue
            candidate = Candidate(label, False, call)
            judge.look_at(candidate)
        except Exception as error:  # a peer that fails is no reason to show nothing of the others
            candidate = Candidate(label, False, lambda: None, fault=f"failed: {' '.join(str(error).split())[:100]}")
        found.append(candidate)
    return found


def _case(args: argparse.Namespace, function: str, shape: tuple[int, int], seconds: float, bar: Any) -> dict[str, Any]:
    """Time one function at one shape."""
    threads = _threads.get_num_threads()
    bar.set_description(f"{function} {shape[0]},{shape[1]}")
    operands = make_operands(function, *shape, args.dtype)
    candidates = _candidates(args, function, operands, threads)
    with ThreadPoolExecutor(threads) as pool:
        memcpy = Candidate("memcpy", False, _memcpy(operands[0], threads, pool))
        take_turns([memcpy] + [c for c in candidates if c.fault is None], seconds, bar)
    unit = statistics.median(memcpy.times)

    def entry(c: Candidate) -> dict[str, Any]:
        median = statistics.median(c.times) if c.times else None
        return {
            "name": c.label,
            "ours": c.ours,
            "seconds": median,
            "memcpy_multiple": None if median is None else median / unit,
            "ulp": c.ulp,
            "turns": len(c.times),
            "fault": c.fault,
        }

    return {
        "op": function,
        "shape": shape,
        "dtype": args.dtype,
        "threads": threads,
        "memcpy_seconds": unit,
        "results": [entry(c) for c in candidates],
    }


# --- the command ----------------------------------------------------------------------------------


def _choose(args: argparse.Namespace) -> None:
    """Fill in what was not said, and check that what was said can run."""
    usable = _backends.available_backends()
    if args.backends is None:
        args.backends = [name for name, reason in usable.items() if reason is None]
    for name in args.backends:
        if usable[name] is not None:
            raise CliError(f"--backends: {name} cannot run: {usable[name]}")
    missing = {
        name: [p for p in packages if not importlib.util.find_spec(p)] for name, (_, packages, _) in PEERS.items()
    }
    if args.peers is None:
        args.peers = [name for name in PEERS if not missing[name]]
    for name in args.peers:
        if missing[name]:
            raise CliError(f"--peers: {name} cannot run; get it with: pip install {' '.join(missing[name])}")
    if not args.backends and not args.peers:
        raise CliError("there is nothing to time: --backends and --peers are both empty")


def run(args: argparse.Namespace) -> int:
    """Time, and print a table for each function and shape."""
    _choose(args)
    cases = []
    for function in args.op or DEFAULT_OPS:
        square = any(kind == SQUARE for _, kind in FUNCTIONS[function].outs)
        cases += [(function, shape) for shape in args.shape or (SQUARE_SHAPES if square else DEFAULT_SHAPES)]
    results = []
    with progress(args.seconds, "s") as bar:
        for function, shape in cases:
            results.append(_case(args, function, shape, args.seconds / len(cases), bar))
    if args.json:
        print_json({"version": fastsoftmax.__version__, "cases": results})
    else:
        for result in results:
            _print(result)
    return 1 if any(r["ours"] and r["fault"] for result in results for r in result["results"]) else 0


def _print(case: dict[str, Any]) -> None:
    rows, classes = case["shape"]
    threads = f"{case['threads']} thread" + "s" * (case["threads"] > 1)
    print(f"{case['op']}, {rows} x {classes} {case['dtype']}, {threads}; memcpy {duration(case['memcpy_seconds'])}")
    print(f"  {'':22}{'time':>10}{'x memcpy':>10}{'ULP':>10}")
    for r in case["results"]:
        if r["fault"] is not None:
            print(f"  {r['name']:22}{r['fault']}")
        else:
            print(f"  {r['name']:22}{duration(r['seconds']):>10}{r['memcpy_multiple']:>10.2f}{r['ulp']:>10.3g}")
    print()
