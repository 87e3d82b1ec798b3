"""The suite tests itself: rooms that are wrong on purpose must not pass it."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import test_bits
from cases import cases_for
from checks import conforms
from rooms import use_stranger
from saboteurs import SABOTEURS, Saboteur
from test_laws import LAWS

from fastsoftmax._ops import OPS

DTYPES = (np.dtype(np.float32), np.dtype(np.float64))

# These write where they must not: only a check that gives them room for it may call them.
TRESPASSERS = {"one_element_past_the_end_written"}


def checks_of(saboteur: Saboteur, op_name: str) -> Iterator[Callable[[], None]]:
    """Yield what an honest kernel of this operation has to pass."""
    op = OPS[op_name]
    for dtype in DTYPES:
        yield lambda dtype=dtype: test_bits.gaps_stay(op, dtype)
    if saboteur.name in TRESPASSERS:
        return
    for case in cases_for(op):
        for dtype in DTYPES:
            yield lambda dtype=dtype, case=case: conforms(op, dtype, case)
    for check in (test_bits.alone, test_bits.anywhere, test_bits.any_number_of_threads):
        yield lambda check=check: check(op, DTYPES[0])


def passes(check: Callable[[], None]) -> bool:
    try:
        check()
    except AssertionError:
        return False
    return True


@pytest.mark.parametrize(
    ("saboteur", "op_name"),
    [pytest.param(s, name, id=f"{s.name}-{name}") for s in SABOTEURS for name in s.ops],
)
def test_saboteur_is_caught(saboteur: Saboteur, op_name: str) -> None:
    with use_stranger(saboteur.name, saboteur), np.errstate(all="ignore"):
        survived = all(passes(check) for check in checks_of(saboteur, op_name))
    assert not survived, f"the suite does not notice a room with {saboteur.name} in {op_name}"


# Laws that every known saboteur passes would prove nothing; this one holds by the plan, not by a kernel.
BY_THE_PLAN = {"reductions_agree"}


@pytest.mark.parametrize("law", [law for law in LAWS if law.__name__ not in BY_THE_PLAN], ids=lambda f: f.__name__)
def test_law_catches_a_saboteur(law: Callable[[np.dtype], None]) -> None:
    for saboteur in SABOTEURS:
        if saboteur.name not in TRESPASSERS:
            with use_stranger(saboteur.name, saboteur), np.errstate(all="ignore"):
                if not all(passes(lambda dtype=dtype: law(dtype)) for dtype in DTYPES):
                    return
    pytest.fail(f"{law.__name__} catches no saboteur: it proves nothing")


def test_an_honest_stranger_passes() -> None:
    """The checks blame the room, not the disguise."""
    honest = Saboteur("honest", (), None, None)
    with use_stranger("honest", honest):
        for op_name in ("softmax", "cross_entropy_index_grad"):
            assert all(passes(check) for check in checks_of(honest, op_name))
