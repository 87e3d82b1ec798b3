"""Where a test can run: a *room* is a backend, and for the compiled one an instruction set.

The rooms follow from the lists in ``fastsoftmax._backends``; nothing here knows a backend by its kernels.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from fastsoftmax import _backends

# The room whose kernels run now, for failure messages.
current = "?"


@dataclass(frozen=True)
class Room:
    """A backend with one instruction set forced (if it offers several)."""

    backend: str
    isa: str | None = None

    @property
    def id(self) -> str:
        return self.backend if self.isa is None else f"{self.backend}-{self.isa}"

    def why_not(self) -> str | None:
        """Return None if the room can be entered, else the reason."""
        module = _backends._module(self.backend)
        reason = module.why_not()
        if reason is None and self.isa is not None and self.isa not in module.instruction_sets():  # type: ignore
            return CPU_CANNOT.format(self.isa)
        return reason

    @contextmanager
    def use(self) -> Iterator[None]:
        """Compute in this room inside a ``with`` block."""
        module: Any = _backends._module(self.backend)
        forced = module.forced_isa(self.isa) if self.isa else nullcontext()
        with _backends.use_backend(self.backend), forced, entered(self.id):
            yield


CPU_CANNOT = "this CPU cannot run {}"


@contextmanager
def entered(name: str) -> Iterator[None]:
    """Remember the room's name for failure messages."""
    global current
    before, current = current, name
    try:
        yield
    finally:
        current = before


@contextmanager
def use_stranger(name: str, backend: Any) -> Iterator[None]:
    """Compute with any object that has a backend's doors: how saboteurs get in."""
    token = _backends._override.set(backend)
    try:
        with entered(name):
            yield
    finally:
        _backends._override.reset(token)


def _rooms() -> Iterator[Room]:
    for name in _backends.BACKENDS:
        if name == "cython":
            for isa in _backends.INSTRUCTION_SETS:
                yield Room(name, isa)
        else:
            yield Room(name)


ROOMS = {room.id: room for room in _rooms()}

# Rooms whose absence is a failure, not a skip (set in CI).
REQUIRED = {word.strip() for word in os.environ.get("FASTSOFTMAX_REQUIRE", "").split(",") if word.strip()}
if not set(ROOMS) >= REQUIRED:
    raise ValueError(f"FASTSOFTMAX_REQUIRE names {sorted(REQUIRED - set(ROOMS))}; the rooms are {sorted(ROOMS)}")


def usable() -> list[Room]:
    """Return the rooms that can be entered here."""
    return [room for room in ROOMS.values() if room.why_not() is None]
