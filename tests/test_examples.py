"""The scripts of examples/ reach what the libraries beside them reach: they exit with 1 if not."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nightly

ROOT = Path(__file__).parent.parent
SCRIPTS = ("lightgbm_objective", "newton_cg", "xgboost_objective")
OPTIONAL = {"lightgbm", "scipy", "sklearn", "xgboost"}


def test_no_script_is_forgotten() -> None:
    assert sorted(path.stem for path in (ROOT / "examples").glob("*.py")) == list(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS)
def test_script(script: str) -> None:
    path = ROOT / "examples" / f"{script}.py"
    wanted = OPTIONAL.intersection(re.findall(r"^(?:import|from) (\w+)", path.read_text(), re.MULTILINE))
    assert wanted
    missing = sorted(name for name in wanted if importlib.util.find_spec(name) is None)
    if missing:
        pytest.skip(f'{", ".join(missing)}: in the extra, pip install "fastsoftmax[examples]"')
    result = subprocess.run(
        [sys.executable, str(path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert re.search(r"^fastsoftmax .* \d+\.\d+", result.stdout, re.MULTILINE), result.stdout
