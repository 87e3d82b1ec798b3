"""Every operation, in every room, in every dtype, on every adversarial case, against its definition."""

from __future__ import annotations

import conftest
import numpy as np
import pytest
import rooms
from cases import Case, cases_for
from checks import HAS_WIDE, conforms

from fastsoftmax._ops import OPS, Op

DTYPES = [np.dtype(np.float32), np.dtype(np.float64)]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # The room varies fastest: the oracle is evaluated once for all of them.
    metafunc.parametrize(
        ("op", "dtype", "cases", "place"),
        [
            pytest.param(op, dtype, cases, room, id=f"{op.name}-{dtype.str[1:]}-{name}-{room.id}")
            for op in OPS.values()
            for dtype in DTYPES
            for name, cases in in_all_shapes(op).items()
            for room in rooms.ROOMS.values()
        ],
    )


def in_all_shapes(op: Op) -> dict[str, list[Case]]:
    """Return the cases of an operation, of all shapes together: most take less time than pytest takes for a test."""
    together: dict[str, list[Case]] = {}
    for case in cases_for(op):
        together.setdefault("-".join((case.family, *case.options)), []).append(case)
    return together


def test_conformance(op: Op, dtype: np.dtype, cases: list[Case], place: rooms.Room, record_property: object) -> None:
    if dtype.itemsize == 8 and not HAS_WIDE:
        pytest.skip("longdouble is double here: no oracle for float64")
    conftest.enter_or_skip(place)
    record_property("room", place.id)  # type: ignore[operator]
    with place.use():
        for case in cases:
            conforms(op, dtype, case)
