"""The fixtures ``op``, ``room`` and ``dtype``, drawn from the table and the backends, and the report of rooms."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import hypothesis
import numpy as np
import pytest

pytest.register_assert_rewrite("checks")

import rooms  # noqa: E402

from fastsoftmax._ops import OPS, Op  # noqa: E402

# A job for other processes, which reads its environment when it is imported: no place to look for doctests.
collect_ignore = ["parallel_job.py"]

hypothesis.settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=25,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.function_scoped_fixture, hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")


@pytest.fixture(params=list(OPS.values()), ids=lambda op: op.name)
def op(request: pytest.FixtureRequest) -> Op:
    return request.param


@pytest.fixture(params=[np.dtype(np.float32), np.dtype(np.float64)], ids=["f4", "f8"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return request.param


@pytest.fixture(params=list(rooms.ROOMS.values()), ids=lambda room: room.id)
def room(request: pytest.FixtureRequest) -> Iterator[rooms.Room]:
    """Run the test once in every room; the room is entered for the whole test."""
    room = request.param
    enter_or_skip(room)
    request.node.user_properties.append(("room", room.id))
    with room.use():
        yield room


def enter_or_skip(room: rooms.Room) -> None:
    """Skip if the room cannot be entered; fail if it was required, unless it is the CPU that lacks it."""
    reason = room.why_not()
    if reason is not None:
        if room.id in rooms.REQUIRED and reason != rooms.CPU_CANNOT.format(room.isa):
            pytest.fail(f"{room.id} is required (FASTSOFTMAX_REQUIRE) but cannot run: {reason}", pytrace=False)
        pytest.skip(f"{room.id}: {reason}")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the nightly tests out unless ``-m`` says something."""
    if not config.option.markexpr:
        nightly = [item for item in items if item.get_closest_marker("nightly")]
        items[:] = [item for item in items if not item.get_closest_marker("nightly")]
        config.hook.pytest_deselected(items=nightly)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which backends and instruction sets were really run."""
    ran: Counter[str] = Counter()
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            ran.update(value for key, value in getattr(report, "user_properties", ()) if key == "room")
    terminalreporter.section("backends and instruction sets")
    for name, room in rooms.ROOMS.items():
        reason = room.why_not()
        terminalreporter.write_line(f"{name:16} {f'{ran[name]} tests' if reason is None else f'not run: {reason}'}")
