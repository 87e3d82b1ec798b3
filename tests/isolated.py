"""Run a few lines of Python in a process of their own, with a time-out."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run(command: list[str], timeout: float = 120, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run a command in the repository's root; ``environment`` sets variables, or unsets them with None.

    A command that takes too long is killed with all its children: they are what hangs.
    """
    env = {k: v for k, v in os.environ.items() if not k.startswith(("FASTSOFTMAX_", "OMP_", "PYTEST_"))}
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), env.get("PYTHONPATH")]))
    for key, value in environment.items():
        env.pop(key, None)
        if value is not None:
            env[key] = value
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, stdout=pipe, stderr=pipe, text=True, env=env, cwd=ROOT, start_new_session=True
    ) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def python(code: str, timeout: float = 120, **environment: str | None) -> subprocess.CompletedProcess[str]:
    """Run ``code``; a warning is an error."""
    return run([sys.executable, "-W", "error", "-X", "faulthandler", "-c", code], timeout, **environment)


def succeeds(result: subprocess.CompletedProcess[str]) -> str:
    """Demand that a process ended well, and return what it printed."""
    assert result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}\n{result.stderr[-3000:]}"
    return result.stdout.strip()


def prints(code: str, timeout: float = 120, **environment: str | None) -> str:
    """Run ``code``, which must succeed, and return what it prints."""
    return succeeds(python(code, timeout, **environment))
