"""Named adversarial inputs, for any operation of the table.

A *family* makes logits.  A *case* is a family, a shape and options; it builds the operands of an operation from
their kinds: logits, or the softmax or log-softmax of them where the operation takes a saved output, plus tangents,
targets, labels and weights.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastsoftmax._ops import CLASS, LABEL, ONE, OPS, ROW, SQUARE, Array, Op

Family = Callable[[np.random.Generator, np.dtype, int, int], Array]
FAMILIES: dict[str, Family] = {}
IGNORE = -100


# --- families of logits ------------------------------------------------


def family(name: str) -> Callable[[Family], Family]:
    def enter(f: Family) -> Family:
        FAMILIES[name] = f
        return f

    return enter


def _normal(sigma: float, shift: float = 0.0) -> Family:
    return lambda rng, dtype, r, c: rng.normal(shift, sigma, (r, c))


for _sigma in (1, 0.1, 10, 100, 1000):
    FAMILIES["normal" if _sigma == 1 else f"sigma{_sigma}"] = _normal(_sigma)
for _shift in (1e4, -1e4, 1e6, -1e6, 1e12, -1e12):
    FAMILIES[f"shift{_shift:+.0e}"] = _normal(3, _shift)


@family("huge")
def _huge(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    return rng.uniform(-1e30, 1e30, (r, c))


def _large(part: float) -> Family:
    return lambda rng, dtype, r, c: rng.choice([-1.0, 1.0, 0.0], (r, c)) * (float(np.finfo(dtype).max) * part)


# Whose differences and short sums are finite, and whose differences are not.
FAMILIES["large"], FAMILIES["largest"] = _large(2.0**-8), _large(1.0)


def _dominating(lead: float) -> Family:
    def make(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
        x = rng.normal(size=(r, c))
        x[np.arange(r), rng.integers(c, size=r)] += lead
        return x

    return make


FAMILIES["dominating+30"], FAMILIES["dominating+200"] = _dominating(30), _dominating(200)


@family("ties")
def _ties(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    return rng.choice([-1.0, 0.25, 2.0], (r, c))


@family("equal")
def _equal(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    return np.repeat(rng.normal(size=(r, 1)), c, axis=1)


@family("increasing")
def _increasing(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    return np.sort(rng.normal(0, 5, (r, c)), axis=1)


@family("steps")
def _steps(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    """Parts of a row far below others, as long as what is worked on at a time."""
    level = np.array([-15, -60, 0, -INF, -95, -300, 3])
    return rng.normal(size=(r, c)) + level[np.arange(c) // 8192 % len(level)]


@family("decreasing")
def _decreasing(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    return -np.sort(rng.normal(0, 5, (r, c)), axis=1)


@family("far-rows")
def _far_rows(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    """Rows thousands apart, so that one maximum cannot serve all of them."""
    return rng.normal(size=(r, c)) + np.linspace(-30000, 30000, r)[:, None]


@family("cancelling")
def _cancelling(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    """Make sums of exponentials next to 1, whose logarithm cancels against the maximum."""
    return rng.normal(-np.log(c), 0.001, (r, c))


@family("cutoffs")
def _cutoffs(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    """Distances from the maximum an ulp around those where exp becomes subnormal, smallest, and zero."""
    edges = (
        [87.33654, 88.72284, 103.27893, 103.97208]
        if dtype.itemsize == 4
        else [708.39642, 709.78271, 744.44007, 745.13322]
    )
    near = [np.asarray(edges, dtype)]
    for direction in (0, 2000):
        for _ in range(3):
            near.append(np.nextafter(near[-1], dtype.type(direction)))
    x = -rng.choice(np.concatenate(near).astype(float), (r, c))
    x[np.arange(r), rng.integers(c, size=r)] = 0
    return x


@family("subnormal")
def _subnormal(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    low, high = (87, 104.5) if dtype.itemsize == 4 else (708, 746)
    x = -rng.uniform(low, high, (r, c))
    x[np.arange(r), rng.integers(c, size=r)] = 0
    return x


@family("tiny")
def _tiny(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    """Subnormal logits and signed zeros."""
    return rng.choice([0.0, -0.0, 1.0, -1.0, 2.0], (r, c)) * float(np.finfo(dtype).smallest_subnormal)


def _special(*values: float, lanes: str) -> Family:
    """Put special values into the middle row, which must not leak into the others."""

    def make(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
        x = rng.normal(size=(r, c))
        start = {"first": 0, "middle": c // 2, "last": c - len(values), "all": 0}[lanes]
        for k in range(c if lanes == "all" else len(values)):
            x[r // 2, (start + k) % c] = values[k % len(values)]
        return x

    return make


INF, NAN = np.inf, np.nan
for _lanes in ("first", "middle", "last"):
    FAMILIES[f"nan-{_lanes}"] = _special(NAN, lanes=_lanes)
    FAMILIES[f"-inf-{_lanes}"] = _special(-INF, lanes=_lanes)
FAMILIES |= {
    "-inf-all": _special(-INF, lanes="all"),
    "+inf-middle": _special(INF, lanes="middle"),
    "+inf-two-and--inf": _special(INF, -INF, INF, lanes="last"),
    "+inf-all": _special(INF, lanes="all"),
    "+inf-and-nan": _special(INF, NAN, lanes="first"),
    "nan-and--inf-rest": _special(NAN, *[-INF] * 200, lanes="all"),
}


@family("many--inf")
def _many_minus_inf(rng: np.random.Generator, dtype: np.dtype, r: int, c: int) -> Array:
    x = rng.normal(size=(r, c))
    x[rng.random((r, c)) < 0.5] = -INF
    return x


# --- options ------------------------------------------------


def is_loss(op: Op) -> bool:
    """Tell whether an operation is a loss on logits or a derivative of one."""
    return "zloss" in op.params or op.outs[0][0] == "loss"


def _kinds(op: Op) -> list[str]:
    return [kind for _, kind in op.ins]


# Which operations an option means something to.
OPTIONS: dict[str, Callable[[Op], bool]] = {
    "scale=0.3": lambda op: "scale" in op.params,
    "scale=7": lambda op: "scale" in op.params,
    "empty": lambda op: "empty" in op.params,
    "smoothing": lambda op: "keep" in op.params,
    "masses": lambda op: ("q", ONE) in op.ins,
    "zloss": lambda op: "zloss" in op.params,
    "ignored": lambda op: "ignore" in op.params,
    "weights": lambda op: CLASS in _kinds(op),
    "vectors": lambda op: ONE in _kinds(op) and is_loss(op),
    "unnormalised": lambda op: ("t", ROW) in op.ins and is_loss(op),
    "zero-targets": lambda op: ("t", ROW) in op.ins and is_loss(op),
    "excess": lambda op: "excess" in op.params,
    "positive": lambda op: "positive" in op.params,
    "p-coarse": lambda op: op.ins[0][0] in ("p", "logp"),
    "p-half": lambda op: op.ins[0][0] in ("p", "logp"),
    "t-offset": lambda op: op.ins[:2] == (("p", ROW), ("t", ROW)),
    "t-late": lambda op: op.ins[:2] == (("p", ROW), ("t", ROW)),
}


@dataclass(frozen=True)
class Case:
    """A family of logits, a shape, options."""

    family: str
    rows: int
    classes: int
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return "-".join((self.family, f"{self.rows}x{self.classes}", *self.options))

    def applies(self, op: Op) -> bool:
        square = any(kind == SQUARE for _, kind in op.outs)
        sums = "scale" not in op.params or ("t", ROW) in op.ins  # may overflow on the way to a finite result
        return (
            all(OPTIONS[o](op) for o in self.options)
            and not (square and self.classes > 300)
            and not (sums and self.family == "largest")
        )

    def build(self, op: Op, dtype: np.dtype) -> tuple[list[Any], dict[str, float]]:
        """Return the operands and parameters of ``op``."""
        rng = np.random.default_rng(zlib.crc32(f"{self.name} {dtype}".encode()))
        params = self._params(op)
        with np.errstate(all="ignore"):
            x = FAMILIES[self.family](rng, dtype, self.rows, self.classes).astype(dtype)
            first = self._first(op, x, rng, params)
        ins = [first] + [self._operand(op, name, kind, x, first, rng, dtype) for name, kind in op.ins[1:]]
        if "ignored" in self.options:
            labels = ins[1]
            labels[:: 3 if self.rows > 2 else 1] = IGNORE
            x[0] = NAN  # an ignored row may hold anything
        return ins, params

    def _params(self, op: Op) -> dict[str, float]:
        eps = 0.1 if "smoothing" in self.options else 0.0
        values = {
            "scale": 0.3 if "scale=0.3" in self.options else 7.0 if "scale=7" in self.options else 1.0,
            "empty": float("empty" in self.options),
            "keep": 1 - eps,
            "spread": eps / self.classes,
            "zloss": 1e-3 if "zloss" in self.options else 0.0,
            "ignore": float(IGNORE),
            "excess": 1 / 8 if "excess" in self.options else 0.0,
            "positive": 2.5 if "positive" in self.options else 1.0,
        }
        return {name: values[name] for name in op.params}

    def _first(self, op: Op, x: Array, rng: np.random.Generator, params: dict[str, float]) -> Array:
        saved = {"p": "softmax", "logp": "log_softmax"}.get(op.ins[0][0])
        if saved is None:
            return x
        wide = OPS[saved].definition(x.astype(np.longdouble), scale=1, empty="empty" in self.options)[0]
        if "p-coarse" in self.options:  # as if it had been rounded to bfloat16
            wide = wide * (1 + rng.uniform(-(2.0**-9), 2.0**-9, x.shape))
        if "p-half" in self.options:  # no softmax at all
            wide = wide / 2
        if "t-late" in self.options:
            wide = wide / 2
            wide[:, self.classes // 2] += 0.5
        return wide.astype(x.dtype)

    def _operand(
        self, op: Op, name: str, kind: str, x: Array, first: Array, rng: np.random.Generator, dtype: np.dtype
    ) -> Any:
        r, c = x.shape
        if kind == LABEL:
            # Every other row is labelled with its most probable class, where p - 1 would cancel.
            return np.where(np.arange(r) % 2, rng.integers(c, size=r), np.argmax(x, axis=1)).astype(np.int64)
        if kind == CLASS:
            return rng.uniform(0.2, 3, c).astype(dtype) if "weights" in self.options else 1.0
        if kind == ONE:
            option = "masses" if name == "q" else "vectors"
            return (
                1.0 if is_loss(op) and option not in self.options else rng.choice([-1, 0, 0.5, 1, 3], r).astype(dtype)
            )
        if is_loss(op) and name == "g":
            return rng.normal(size=(r, c)).astype(dtype)
        if is_loss(op) and name == "y":  # certain labels, and uncertain ones
            return np.where(rng.random((r, c)) < 0.8, rng.random((r, c)) < 0.5, rng.random((r, c))).astype(dtype)
        if is_loss(op) and name == "t":
            t = rng.dirichlet(np.ones(c), r)
            t[:, rng.integers(c)] = 0
            if "unnormalised" in self.options:
                t *= 3
            if "zero-targets" in self.options:
                t[x == -INF] = 0
            return t.astype(dtype)
        if name == "b":
            return rng.choice([0, 1, -0.3, 2.5], (r, c), p=[0.1, 0.5, 0.1, 0.3]).astype(dtype)
        t = rng.normal(size=(r, c)).astype(dtype)
        if "t-offset" in self.options:  # all nearly the same
            t += dtype.type(1e4)
        if (
            "t-late" in self.options
        ):  # but the first, whose size thus says nothing of a product that outweighs the others
            t[:, 64:] += dtype.type(1e4)
        # What cannot occur must not count, whatever its tangent.
        impossible = first == (0 if op.ins[0][0] == "p" else -INF)
        t[impossible] = np.resize([INF, NAN, -INF], int(impossible.sum()))
        return t


# --- the list ------------------------------------------------

CLASSES = (1, 2, 3, 4, 5, 7, 8, 9, 10, 15, 16, 17, 31, 32, 33, 63, 64, 65, 97, 100, 128, 255, 1000, 1021, 4099)
ROWS = (1, 2, 5, 16, 17, 257)
NARROW, WIDE = (17, 10), (3, 97)


def _cases() -> list[Case]:
    both = (NARROW, WIDE)
    cases = [Case("normal", 3, c) for c in CLASSES]
    cases += [Case("sigma10", r, c) for r in ROWS for c in (5, 17)]
    cases += [Case(name, *shape) for name in FAMILIES if name != "normal" for shape in both]
    cases += [Case(name, 2, 4099) for name in ("sigma100", "shift+1e+04", "cancelling", "dominating+30", "equal")]
    cases += [Case("normal", *shape, (option,)) for option in OPTIONS for shape in both]
    cases += [Case(name, *shape, ("empty",)) for name in ("-inf-all", "-inf-last") for shape in both]
    cases += [Case("many--inf", *shape, ("zero-targets",)) for shape in both]
    cases += [Case(name, *shape, ("p-coarse",)) for name in ("dominating+30", "many--inf") for shape in both]
    cases += [Case("sigma10", *shape, (option,)) for option in ("scale=0.3", "scale=7") for shape in both]
    every = ("scale=0.3", "smoothing", "zloss", "weights", "vectors")
    second = ("scale=0.3", "zloss", "masses", "vectors")  # what remains of these for a Hessian
    for name in ("normal", "sigma10", "dominating+30", "shift+1e+04", "-inf-middle", "nan-middle"):
        cases += [Case(name, *shape, every[name.startswith("shift") :]) for shape in both]
        cases += [Case(name, *shape, (*every[1:], "ignored")) for shape in both]
        cases += [Case(name, *shape, second[name.startswith("shift") :]) for shape in both]
        cases += [Case(name, *shape, (*second[1:], "ignored")) for shape in both]
    # Long enough for a row to be worked on in blocks, and to be split over threads.
    cases += [Case(name, 1, 20_003) for name in ("sigma100", "shift+1e+04", "dominating+30", "nan-middle", "-inf-all")]
    cases += [Case("normal", *shape, (t,)) for t in ("t-offset", "t-late") for shape in ((2, 1021), (1, 20_003))]
    cases += [Case("steps", 1, 70_003)]
    cases += [Case(name, 1, 200_003) for name in ("normal", "increasing")]
    return list(dict.fromkeys(cases))


CASES = _cases()
assert len({case.name for case in CASES}) == len(CASES)


def cases_for(op: Op) -> list[Case]:
    """Return the cases that mean something to an operation."""
    return [case for case in CASES if case.applies(op)]
