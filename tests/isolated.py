"""Run a few lines of Python in a process of their own, with a time-out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def python(code: str, timeout: float = 120, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run ``code``; ``environment`` sets variables, or unsets them with None."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTSOFTMAX_", "OMP_"))}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), env.get("PYTHONPATH")]))
    for key, value in environment.items():
        env.pop(key, None)
        if value is not None:
            env[key] = value
    return subprocess.run(
        [sys.executable, "-W", "error", "-X", "faulthandler", "-c", code],
        capture_output=True, text=True, timeout=timeout, check=False, env=env, cwd=ROOT,
    )  # fmt: skip


def prints(code: str, timeout: float = 120, **environment: str | None) -> str:
    """Run ``code``, which must succeed, and return what it prints."""
    result = python(code, timeout, **environment)
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr[-3000:]}"
    return result.stdout.strip()
