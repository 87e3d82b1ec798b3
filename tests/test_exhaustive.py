"""At night: exp of every float32 there is, and the longest rows that are promised."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import rooms
from cases import Case
from checks import HAS_WIDE, conforms

import fastsoftmax as fs
from fastsoftmax._ops import OPS, Array

pytestmark = pytest.mark.nightly

CLASSES, ROWS = 4096, 512
BOUND = 1.0  # ULP; the worst seen is 0.998


def floats(first: float, last: float) -> Iterator[Array]:
    """Yield all float32 from the smaller to the larger magnitude, in batches of rows; the last one is repeated."""
    start, end = (int(np.float32(v).view(np.uint32)) for v in (first, last))
    for chunk in range(start, end + 1, CLASSES * ROWS):
        bits = np.minimum(np.arange(chunk, chunk + CLASSES * ROWS, dtype=np.uint64), end)
        yield bits.astype(np.uint32).view(np.float32).reshape(ROWS, CLASSES)


def exponentials(x: Array) -> Array:
    """Return exp as the kernels compute it: a class whose cotangent is 0 has -exp(logp) times the sum of the others."""
    logp, g = np.zeros((ROWS, CLASSES + 1), np.float32), np.zeros((ROWS, CLASSES + 1), np.float32)
    logp[:, :-1], g[:, -1] = x, 1
    return -fs.log_softmax_vjp(logp, g)[:, :-1]


# Below 2**-26, exp rounds to 1 whatever the kernel adds; above ln(2)/2 a power of two is split off, and below -104 exp
# rounds to 0.  So the second range is each float that a log-probability can be and that has an exponential of its own.
@pytest.mark.parametrize(
    ("first", "last"), [(2.0**-26, np.log(2) / 2), (-(2.0**-26), -104.5)], ids=["positive", "negative"]
)
def test_exp_of_every_float(first: float, last: float) -> None:
    worst = dict.fromkeys((room for room in rooms.usable() if room.backend != "numpy"), 0.0)  # numpy's is the reference
    for x in floats(first, last):
        exact = np.exp(x.astype(np.float64))
        unit = np.spacing(np.maximum(exact, np.finfo(np.float32).tiny).astype(np.float32)).astype(np.float64)
        for room in worst:
            with room.use():
                error = np.abs(exponentials(x) - exact) / unit
            assert (error <= BOUND).all(), f"{room.id}: exp({x.flat[np.argmax(error)]!r}) is {error.max():.3g} ULP off"
            worst[room] = max(worst[room], float(error.max()))
    assert worst
    assert min(worst.values()) > 0.4, worst  # rounding alone costs half an ULP


@pytest.mark.skipif(not HAS_WIDE, reason="longdouble is double here: no oracle for float64")
@pytest.mark.parametrize("family", ["normal", "sigma10", "dominating+30"])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "logsumexp", "cross_entropy_index"])
def test_ten_million_classes(name: str, family: str, dtype: np.dtype) -> None:
    for room in rooms.usable():
        if room.backend != "numpy":  # that is the oracle's own text
            with room.use():
                conforms(OPS[name], dtype, Case(family, 1, 10**7))
