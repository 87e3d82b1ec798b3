"""The benchmarks of asv_bench/: each runs once, on arrays of a few elements; together they cover the table."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import itertools
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fastsoftmax
from fastsoftmax._backends import BACKENDS, available_backends
from fastsoftmax._cli._peers import PEERS
from fastsoftmax._ops import OPS

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "asv_bench"
PER_OP = ("ops", "memory", "overhead")

USABLE = [name for name, reason in available_backends().items() if reason is None]


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    """Import the benchmarks as asv does, with shapes for tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FASTSOFTMAX_BENCH_TINY", "1")
        patch.syspath_prepend(str(FOLDER))
        names = ("common", "ops", "memory", "overhead", "process", "linear")
        yield {name: importlib.import_module(f"benchmarks.{name}") for name in names}
    for name in [name for name in sys.modules if name.split(".")[0] in ("benchmarks", "yardstick")]:
        del sys.modules[name]


@pytest.fixture
def dashboard() -> ModuleType:
    spec = importlib.util.spec_from_file_location("dashboard", FOLDER / "dashboard.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def methods(benchmark: Any) -> list[str]:
    return [name for name in dir(benchmark) if name.startswith(("time_", "peakmem_", "track_"))]


def run(benchmark: Any, method: str, *params: str) -> Any:
    """Run one benchmark once, as asv does."""
    getattr(benchmark, "setup", lambda *_: None)(*params)
    try:
        return getattr(benchmark, method)(*params)
    finally:
        getattr(benchmark, "teardown", lambda *_: None)(*params)


@pytest.fixture(autouse=True)
def default_backend(benchmarks: dict[str, ModuleType]) -> Iterator[None]:
    """Leave the backend that a benchmark has entered."""
    with contextlib.closing(contextlib.ExitStack()) as stack:
        stack.callback(benchmarks["common"].leave)
        yield


# --- the table ------------------------------------------------


@pytest.mark.parametrize("module", PER_OP)
@pytest.mark.parametrize("name", OPS)
def test_cover_the_table(benchmarks: dict[str, ModuleType], module: str, name: str) -> None:
    cases = getattr(benchmarks[module], name).params[0]
    assert sorted(cases) == sorted(f"{name}-{d}-{b}" for d in ("float32", "float64") for b in BACKENDS)


@pytest.mark.parametrize("name", OPS)
def test_measure_all_there_is_to_measure(benchmarks: dict[str, ModuleType], name: str) -> None:
    found = set(methods(getattr(benchmarks["ops"], name)))
    assert found >= {"time_call", "peakmem_call", "track_memcpy", "track_ulp"}
    operands = benchmarks["common"].Job(OPS[name], "float32", 3, 4, -1).operands
    for peer in ("scipy", "torch"):
        _, packages, make = PEERS[peer]
        if any(importlib.util.find_spec(package) is None for package in packages):
            continue
        knows = name != "logsumexp_weighted" and any(make(public, operands, 1) for public in OPS[name].public)
        assert (f"track_speedup_{peer}" in found) == knows, f"PEERS in asv_bench/benchmarks/ops.py: {peer}, {name}"


# --- every benchmark, once ------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", OPS)
def test_every_shape_is_computed_right(benchmarks: dict[str, ModuleType], name: str, backend: str) -> None:
    if backend not in USABLE:
        with pytest.raises(NotImplementedError, match=backend):
            benchmarks["common"].enter(backend)
        pytest.skip(f"{backend} cannot run")
    cls = getattr(benchmarks["ops"], name)
    for case in cls.params[0]:
        # Numba compiles for seconds: one dtype of each operation, in turns.
        turn = backend != "numba" or ("float64" in case) == list(OPS).index(name) % 2
        if case.endswith(backend) and turn:
            for shape in cls.params[1]:
                benchmark = cls()
                benchmark.setup(case, shape)
                benchmark.time_call(case, shape)


@pytest.mark.parametrize("module", PER_OP)
@pytest.mark.parametrize("name", OPS)
def test_every_benchmark_runs(benchmarks: dict[str, ModuleType], module: str, name: str) -> None:
    cls = getattr(benchmarks[module], name)
    case = f"{name}-float64-{USABLE[0]}"
    for method in methods(cls):
        if "torch" in method and importlib.util.find_spec("torch") is None:
            continue
        value = run(cls(), method, *[case, "5x70"][: len(cls.params)])
        if method.startswith("track_"):
            assert math.isfinite(value), method
            assert value >= 0, method
        if method == "track_ulp":
            assert value <= 16


def test_import(benchmarks: dict[str, ModuleType]) -> None:
    assert run(benchmarks["process"].Import(), "track_milliseconds") > 0


def test_linear(benchmarks: dict[str, ModuleType]) -> None:
    cls = benchmarks["linear"].ValueAndGrad
    assert {name.partition("_")[0] for name in methods(cls)} == {"time", "peakmem", "track"}
    for shape in cls.params[1]:
        for method in methods(cls):
            run(cls(), method, f"float64-{USABLE[0]}", shape)


def test_first_call(benchmarks: dict[str, ModuleType]) -> None:
    cls = benchmarks["process"].FirstCall
    assert list(cls.params[0]) == [name for name, op in OPS.items() if op.public]
    if "numba" not in USABLE:
        pytest.skip("numba cannot run")
    empty, filled = (run(cls(), "track_seconds", "logsumexp_jvp", cache) for cache in cls.params[1])
    assert filled < empty


# --- what they must notice ------------------------------------------------


def test_a_wrong_result_is_not_timed(benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch) -> None:
    honest = fastsoftmax.softmax

    def forgetful(x: Any, axis: int, **options: Any) -> Any:
        y = honest(x, axis, **options)
        y[-1, -1] = 0
        return y

    monkeypatch.setattr(fastsoftmax, "softmax", forgetful)
    for shape in ("3x4", "40x3"):
        with pytest.raises(AssertionError, match=r"wrong by|depends on where"):
            benchmarks["ops"].softmax().setup(f"softmax-float32-{USABLE[0]}", shape)


@pytest.mark.parametrize("keep", [np.ones, np.empty])
def test_too_much_memory_is_noticed(
    benchmarks: dict[str, ModuleType], monkeypatch: pytest.MonkeyPatch, keep: Any
) -> None:
    honest = fastsoftmax.softmax

    def greedy(x: Any, axis: int, **options: Any) -> Any:
        keep(1 << 28, np.int8)[:] = 1
        return honest(x, axis, **options)

    monkeypatch.setattr(fastsoftmax, "softmax", greedy)
    monkeypatch.setattr(benchmarks["memory"], "BLOCK_BYTES", (1 << 26) // fastsoftmax.get_num_threads())
    with pytest.raises(AssertionError, match="bytes beyond the result"):
        run(benchmarks["memory"].softmax(), "track_excess", f"softmax-float32-{USABLE[0]}", "5x70")


# --- asv and its site ------------------------------------------------


def test_asv_check() -> None:
    pytest.importorskip("asv", reason='asv is in the extra: pip install "fastsoftmax[bench]"')
    result = subprocess.run(
        [sys.executable, "-m", "asv", "check", "--python=same"],
        cwd=FOLDER, env={**os.environ, "ASV_PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    assert "No problems found" in result.stdout + result.stderr


PAGE = """<script src="https://a.example/jquery-3.3.1.min.js" integrity="sha256-x" crossorigin="anonymous"></script>
<link rel="stylesheet" href="//b.example/css/bootstrap.min.css" integrity="sha256-x">
<script src="asv.js"></script><a href="https://c.example/">a link is not loaded</a>"""


def test_site_becomes_self_contained(dashboard: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "index.html"
    page.write_text(PAGE)
    monkeypatch.setattr(dashboard, "fetch", lambda name: b"the file " + name.encode())
    assert len(dashboard.loaded_from_elsewhere(tmp_path)) == 2
    dashboard.make_self_contained(tmp_path)
    assert dashboard.loaded_from_elsewhere(tmp_path) == []
    text = page.read_text()
    assert '<script src="vendor/jquery-3.3.1.min.js"></script>' in text
    assert 'href="vendor/bootstrap.min.css"' in text
    assert "integrity" not in text
    assert '<script src="asv.js">' in text
    assert (tmp_path / "vendor" / "bootstrap.min.css").read_bytes() == b"the file bootstrap.min.css"


def test_site_that_loads_more_is_refused(dashboard: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text('<script src="https://a.example/unheard-of.js"></script>')
    with pytest.raises(dashboard.DashboardError, match=r"unheard-of\.js"):
        dashboard.make_self_contained(tmp_path)


def test_what_asv_loads_is_known(dashboard: ModuleType) -> None:
    asv = pytest.importorskip("asv", reason='asv is in the extra: pip install "fastsoftmax[bench]"')
    found = dashboard.loaded_from_elsewhere(Path(asv.__file__).parent / "www")
    assert len(found) == len(dashboard.LOADED)
    assert all(any(name in line for name in dashboard.LOADED) for line in found)


COMPARISON = """
| Change   | Before [1]   | After [2]   |   Ratio | Benchmark (Parameter) |
|----------|--------------|-------------|---------|-----------------------|
| +        | 1.0us        | 2.0us       |    2.00 | ops.a.time_call('a')  |
| -        | 2.0us        | 1.0us       |    0.50 | ops.b.time_call('b')  |
| !        | 1.0us        | failed      |     n/a | ops.c.time_call('c')  |
"""


@pytest.mark.parametrize(("regex", "status"), [("^ops", 1), (r"time_call\('b'\)", 0), ("^ops.c", 1), ("nothing", 0)])
def test_comparison_fails_on_regressions(
    dashboard: ModuleType, monkeypatch: pytest.MonkeyPatch, regex: str, status: int
) -> None:
    commands = []

    def asv(*args: str, **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(args[0])
        return subprocess.CompletedProcess(args, 0, COMPARISON)

    monkeypatch.setattr(dashboard, "asv", asv)
    monkeypatch.setattr(dashboard, "commits", lambda *_: ["1", "2"])
    assert dashboard.main(["compare", "HEAD~1", "HEAD", "--bench", regex]) == status
    assert commands == ["machine", "run", "compare"]


BROWSER = """#!/bin/sh
for word; do case $word in --screenshot=*) echo > "${word#--screenshot=}";; esac; done
echo 'SAYS' >&2
"""


@pytest.mark.parametrize(
    ("says", "status"),
    [
        ("a warning of its own", 0),
        ('CONSOLE:1] "no network", source: chrome://resources/a.js (1)', 0),
        ('CONSOLE:7] "Uncaught ReferenceError", source: http://127.0.0.1:1/graphdisplay.js (7)', 2),
    ],
)
def test_errors_of_the_page_are_noticed(
    dashboard: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str, status: int
) -> None:
    browser = tmp_path / "chromium"
    browser.write_text(BROWSER.replace("SAYS", says))
    browser.chmod(0o755)
    (tmp_path / "index.html").write_text("")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(dashboard, "SITE", tmp_path)
    assert dashboard.main(["picture", str(tmp_path / "out.png")]) == status


def test_missing_browser_is_one_line(
    dashboard: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", "")
    assert dashboard.main(["picture", "out.png"]) == 2
    error = capsys.readouterr().err
    assert "Chromium is not on the PATH" in error
    assert error.count("\n") == 1


def test_quick_choice_exists(
    benchmarks: dict[str, ModuleType], dashboard: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    common = benchmarks["common"]
    monkeypatch.setattr(common, "TINY", False)
    ids = ["process.Import.track_milliseconds", "process.FirstCall.track_seconds('softmax', 'empty')"]
    for module in PER_OP:
        for name, op in OPS.items():
            cls = getattr(benchmarks[module], name)
            params = list(itertools.product(common.cases(op), common.shapes(op)))
            ids += [f"{module}.{name}.{m}{p[: len(cls.params)]}" for m in methods(cls) for p in params]
    ids = [name.replace(",)", ")") for name in ids]
    for regex in dashboard.QUICK:
        assert any(re.search(regex, name) for name in ids), regex
