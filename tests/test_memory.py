"""No kernel reads or writes one byte too far: operands between guard pages, in a process that may die of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from rooms import Room

HERE = Path(__file__).parent

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="guard pages by mmap and mprotect, as on Linux")


def run_guarded(name: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-X", "faulthandler", str(HERE / "guard.py"), name],
        capture_output=True, text=True, timeout=300, check=False, cwd=HERE.parent,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), os.environ.get("PYTHONPATH", "")])},
    )  # fmt: skip


def test_guard_pages(room: Room) -> None:
    result = run_guarded(room.id)
    last = result.stdout.strip().rpartition("\n")[2]
    assert result.returncode == 0, f"exit code {result.returncode} in: {last}\n{result.stderr[-2000:]}"
    assert last == "done"


def test_guards_guard() -> None:
    result = run_guarded("trespass")
    assert result.returncode == -11, "reading one element past the end went unnoticed"
