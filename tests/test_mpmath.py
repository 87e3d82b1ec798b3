"""The oracle's oracle: hard cases in many digits, against the definitions and against the float64 rooms."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import mpmath
import numpy as np
import pytest
from cases import Case
from checks import HAS_WIDE, LD, compute, distance, sizes, ulp, widened
from rooms import Room

from fastsoftmax._ops import OPS, Array

F8 = np.dtype(np.float64)
DIGITS = 700  # log(1 + exp(-745)) written as it stands needs 324 more than it gives

pytestmark = pytest.mark.skipif(not HAS_WIDE, reason="longdouble is double here: no oracle for float64")


def mp(a: Any) -> Any:
    """Convert a double to mpmath; infinities and nan as they are."""
    return mpmath.mpf(float(a))


def to_longdouble(values: list[Any]) -> Array:
    """Round mpmath numbers to longdouble: a double, the rest, and an exponent that neither could hold."""
    out = []
    with np.errstate(all="ignore"):
        for v in values:
            if not mpmath.isfinite(v):
                out.append(LD(float(v)))
                continue
            mantissa, exponent = mpmath.frexp(v)
            high = float(mantissa)
            out.append(
                np.ldexp(LD(high) + LD(float(mantissa - mpmath.mpf(high))), max(-20000, min(int(exponent), 20000)))
            )
    return np.array(out, LD)


# --- straightforward mathematics, one row at a time ------------------------------------------------


def _exponentials(x: list[Any], scale: Any) -> tuple[list[Any], Any]:
    m = max(x)
    e = [mpmath.exp((v - m) * scale) for v in x]
    return e, mpmath.fsum(e)


def softmax(x, scale, **_):
    e, total = _exponentials(x, scale)
    return [[v / total for v in e]]


def log_softmax(x, scale, **_):
    _, total = _exponentials(x, scale)
    return [[(v - max(x)) * scale - mpmath.log(total) for v in x]]


def logsumexp(x, scale, **_):
    return [[max(x) * scale + mpmath.log(_exponentials(x, scale)[1])]]


def softmax_jvp(p, t, scale, **_):
    total = mpmath.fsum(p)
    mean = mpmath.fdot(p, t)
    if abs(total - 1) <= 1 / mpmath.mpf(64):
        mean /= total
    return [[v * (u - mean) * scale for v, u in zip(p, t)]]


def log_softmax_vjp(logp, g, scale, **_):
    total = mpmath.fsum(g)
    return [[(u - mpmath.exp(v) * total) * scale for v, u in zip(logp, g)]]


def log_softmax_jvp(logp, t, scale, **_):
    p = [mpmath.exp(v) for v in logp]
    mean = mpmath.fdot(p, t) / mpmath.fsum(p)
    return [[(u - mean) * scale for u in t]]


def logsumexp_vjp(p, g, scale, **_):
    return [[v * g * scale for v in p]]


def logsumexp_jvp(p, t, scale, **_):
    return [[mpmath.fdot(p, t) * scale]]


def softmax_jacobian(p, scale, **_):
    total = mpmath.fsum(p)
    return [[scale * ((total - a) * a if i == j else -a * b) for i, a in enumerate(p) for j, b in enumerate(p)]]


def log_softmax_jacobian(logp, scale, **_):
    p = [mpmath.exp(v) for v in logp]
    return [[scale * ((1 if i == j else 0) - b) for i in range(len(p)) for j, b in enumerate(p)]]


def logsumexp_weighted(x, b, scale, **_):
    m = max(x)
    total = mpmath.fsum(f * mpmath.exp((v - m) * scale) for v, f in zip(x, b))
    return [[mpmath.log(abs(total)) + m * scale], [mpmath.sign(total)]]


def total(x, **_):
    return [[mpmath.fsum(x)]]


def _loss(x, q, v, g, scale, zloss):
    e, s = _exponentials(x, scale)
    m = max(x)
    lse = m * scale + mpmath.log(s)
    mass = mpmath.fsum(q)
    loss = v * (mpmath.fsum(a * (mpmath.log(s) - (z - m) * scale) for a, z in zip(q, x)) + zloss * lse**2)
    return [[loss], [scale * v * g * ((mass + 2 * zloss * lse) * w / s - a) for w, a in zip(e, q)]]


def cross_entropy_index(x, y, w, v, g=1, *, scale, keep, spread, zloss, **_):
    w = w if isinstance(w, list) else [w] * len(x)
    q = [a * (keep * (1 if k == y else 0) + spread) for k, a in enumerate(w)]
    return _loss(x, q, v, g, scale, zloss)


def cross_entropy_probs(x, t, w, v, g=1, *, scale, keep, spread, zloss, **_):
    w = w if isinstance(w, list) else [w] * len(x)
    return _loss(x, [a * (keep * u + spread) for u, a in zip(t, w)], v, g, scale, zloss)


def _along(result, u):
    loss, grad = result
    return [loss, [mpmath.fdot(grad, u)]]


def cross_entropy_index_jvp(x, y, u, w, v, **params):
    return _along(cross_entropy_index(x, y, w, v, **params), u)


def cross_entropy_probs_jvp(x, t, u, w, v, **params):
    return _along(cross_entropy_probs(x, t, w, v, **params), u)


def _hessian(x, mass, v, scale, zloss):
    """Return the Hessian as it is written: a (diag(p) - p p') + 2 zloss p p'."""
    e, s = _exponentials(x, scale)
    p = [a / s for a in e]
    a = mass + 2 * zloss * (max(x) * scale + mpmath.log(s))
    f, n = v * scale**2, range(len(x))
    return [[f * (a * ((p[i] if i == j else 0) - p[i] * p[j]) + 2 * zloss * p[i] * p[j]) for j in n] for i in n]


def _diagonal(x, q, v, g, *, scale, zloss, excess, **_):
    h = _hessian(x, mpmath.fsum(q), v * g, scale, zloss)
    return [*_loss(x, q, v, g, scale, zloss), [(1 + excess) * h[i][i] for i in range(len(x))]]


def cross_entropy_index_hess(x, y, w, v, g, *, keep, spread, **params):
    w = w if isinstance(w, list) else [w] * len(x)
    return _diagonal(x, [a * (keep * (1 if k == y else 0) + spread) for k, a in enumerate(w)], v, g, **params)


def cross_entropy_probs_hess(x, t, w, v, g, *, keep, spread, **params):
    w = w if isinstance(w, list) else [w] * len(x)
    return _diagonal(x, [a * (keep * u + spread) for u, a in zip(t, w)], v, g, **params)


def cross_entropy_hessian(x, y, q, v, *, scale, zloss, **_):
    return [[a for row in _hessian(x, q, v, scale, zloss) for a in row]]


def cross_entropy_hvp(x, y, u, q, v, *, scale, zloss, **_):
    return [[mpmath.fdot(row, u) for row in _hessian(x, q, v, scale, zloss)]]


def entropy(x, v, g=1, *, scale, **_):
    e, s = _exponentials(x, scale)
    logp = [(z - max(x)) * scale - mpmath.log(s) for z in x]
    h = -mpmath.fsum(a / s * b for a, b in zip(e, logp))
    return [[v * h], [-scale * v * g * a / s * (b + h) for a, b in zip(e, logp)]]


def kl_divergence(x, t, v, g=1, *, scale, **_):
    e, s = _exponentials(x, scale)
    loss = mpmath.fsum(
        a * (mpmath.log(a) - (z - max(x)) * scale + mpmath.log(s)) if a else 0 for a, z in zip(t, x)
    )  # fmt: skip
    mass = mpmath.fsum(t)
    return [[v * loss], [scale * v * g * (mass * a / s - b) for a, b in zip(e, t)]]


def binary_cross_entropy(x, y, w, u, v, g=1, *, scale, positive, **_):
    w, u, g = (a if isinstance(a, list) else [a] * len(x) for a in (w, u, g))
    no, yes = [1 - b for b in y], [a * positive * b for a, b in zip(u, y)]
    up, down = ([mpmath.log(1 + mpmath.exp(s * scale * z)) for z in x] for s in (1, -1))
    p, not_p = ([1 / (1 + mpmath.exp(s * scale * z)) for z in x] for s in (-1, 1))
    return [
        [v * k * (a * h + b * s) for k, a, h, b, s in zip(w, no, up, yes, down)],
        [scale * v * k * f * (a * q - b * r) for k, f, a, q, b, r in zip(w, g, no, p, yes, not_p)],
    ]


def binary_cross_entropy_sum(*ins, **params):
    loss, slope = binary_cross_entropy(*ins, **params)
    return [[mpmath.fsum(loss)], slope]


EXACT: dict[str, Callable[..., Any]] = {
    name: globals()[name.removesuffix("_grad")] for name in OPS if name.removesuffix("_grad") in globals()
}

HARD = [
    Case("normal", 2, 9), Case("sigma100", 2, 9), Case("sigma1000", 2, 17), Case("shift+1e+12", 2, 9),
    Case("shift-1e+06", 2, 33), Case("dominating+30", 3, 9), Case("dominating+200", 3, 5), Case("cutoffs", 2, 17),
    Case("subnormal", 2, 17), Case("cancelling", 1, 257), Case("equal", 2, 7), Case("huge", 2, 5),
    Case("normal", 2, 9, ("scale=0.3",)), Case("shift+1e+04", 2, 9, ("scale=7",)),
    Case("normal", 2, 9, ("smoothing", "zloss", "weights", "vectors")),
    Case("dominating+30", 2, 9, ("smoothing", "weights")),
    Case("normal", 2, 9, ("zloss", "masses", "vectors")),
]  # fmt: skip
PAIRS = [
    pytest.param(name, case, id=f"{name}-{case.name}") for name in EXACT for case in HARD if case.applies(OPS[name])
]


@cache
def exact_rows(name: str, case: Case) -> list[Array]:
    """Evaluate one operation in many digits."""
    op = OPS[name]
    ins, params = operands(name, case)
    rows = ins[0].shape[0]
    results: list[list[Any]] = []
    with mpmath.workdps(DIGITS):
        for i in range(rows):
            row_ins: list[Any] = []
            for (_, kind), a in zip(op.ins, ins, strict=True):
                if not isinstance(a, np.ndarray):
                    row_ins.append(mp(a))
                elif kind == "c":
                    row_ins.append([mp(v) for v in a])
                elif kind == "()i":
                    row_ins.append(int(a[i]))
                else:
                    row_ins.append([mp(v) for v in a[i]] if a.ndim == 2 else mp(a[i]))
            row = EXACT[name](*row_ins, **{k: mp(v) for k, v in params.items()})
            results.append([to_longdouble(r) for r in row[: len(op.outs)]])
    return [np.stack([row[k] for row in results]) for k in range(len(op.outs))]


def operands(name: str, case: Case) -> tuple[list[Any], dict[str, float]]:
    ins, params = case.build(OPS[name], F8)
    # A tangent at a class that cannot occur may be infinite; here it only has to be a number.
    return [np.where(np.isfinite(a), a, 0) if isinstance(a, np.ndarray) and a.dtype == F8 and k else a
            for k, a in enumerate(ins)], params  # fmt: skip


def test_every_operation_is_checked() -> None:
    assert set(EXACT) == set(OPS), "write the mathematics of the new operation above, in mpmath"


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_definitions(name: str, case: Case) -> None:
    """In longdouble, the definition is right to a small part of a double's ULP."""
    op = OPS[name]
    ins, params = operands(name, case)
    wide, options = widened(op, ins, params)
    with np.errstate(all="ignore"):
        results = op.definition(*wide, **options)
        scales = sizes(op, wide, options, results, F8)
    for result, exact, size in zip(results, exact_rows(name, case), scales):
        exact = exact.reshape(result.shape)
        finite = np.isfinite(exact)
        assert (np.isfinite(result) == finite).all()
        with np.errstate(all="ignore"):
            error = np.where(finite, np.abs(result - exact) / ulp(size, F8), 0)
        assert error.max() <= 0.1, f"the definition of {name} is {float(error.max()):.3g} ULP off on {case.name}"


@pytest.mark.parametrize(("name", "case"), PAIRS)
def test_rooms_in_float64(room: Room, name: str, case: Case) -> None:
    op = OPS[name]
    ins, params = operands(name, case)
    wide, options = widened(op, ins, params)
    outs = compute(op, F8, ins, params)
    exact = exact_rows(name, case)
    with np.errstate(all="ignore"):
        scales = sizes(op, wide, options, op.definition(*wide, **options), F8)
    for out, e, size in zip(outs, exact, scales):
        d = distance(out, e.reshape(out.shape), size)
        assert (d <= op.ulp).all(), f"{name}, {room.id}, {case.name}: {d.max():.3g} ULP (promised: {op.ulp:g})"
