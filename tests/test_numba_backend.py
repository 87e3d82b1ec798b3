"""What is particular to the Numba backend: its threads, its cache on disk, and how it says that it cannot run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from isolated import prints

import fastsoftmax as fs
from fastsoftmax import _backends, _numba
from fastsoftmax._ops import OPS, SQUARE

needs_numba = pytest.mark.skipif(_numba.why_not() is not None, reason=str(_numba.why_not()))

# Defines `both()`, which computes a softmax on two threads if it can, and `expected`, which one thread computed.
SETUP = """
import numpy as np
import numba
import fastsoftmax as fs
from fastsoftmax import _numba

_numba.PARALLEL_BYTES = 1
x = np.random.default_rng(0).normal(size=(501, 20)).astype(np.float32)
fs.set_num_threads(1)
with fs.use_backend("numba"):
    expected = fs.softmax(x).tobytes()
fs.set_num_threads(2)

def both():
    with fs.use_backend("numba"):
        return fs.softmax(x).tobytes() == expected
"""


def with_layer(layer: str, code: str, library_path: str | None = None) -> str:
    """Run code after the setup, with one of Numba's threading layers."""
    variables = {"NUMBA_THREADING_LAYER": layer, "NUMBA_NUM_THREADS": "2", "LD_LIBRARY_PATH": library_path}
    return prints(SETUP + code, timeout=300, **variables)


@needs_numba
def test_a_layer_that_cannot_be_loaded() -> None:
    out = with_layer("tbb", "print(both(), both(), _numba._layer())", "/nowhere")
    assert out in ("True True None", "True True tbb")


@needs_numba
def test_the_callers_number_of_threads_stays() -> None:
    code = """
assert both()
numba.set_num_threads(1)
assert both() and numba.get_num_threads() == 1
print(_numba.facts()["numba threading layer"])
"""
    assert with_layer("workqueue", code) == "workqueue"


@needs_numba
@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("classes", [5, 40])
def test_threads_do_not_show(name: str, classes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parallel kernel, which a small array never meets, gives the serial kernel's bits."""
    from cases import Case, is_loss
    from checks import assert_same_bits, compute

    op = OPS[name]
    options = ("weights", "vectors", "smoothing", "zloss") if is_loss(op) else ()
    launched = []
    launch = _numba._launch
    monkeypatch.setattr(_numba, "_launch", lambda *args: launched.append(1) or launch(*args))
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        ins, params = Case("normal", 77, classes, options).build(op, dtype)
        with _backends.use_backend("numba"):
            monkeypatch.setattr(_numba, "PARALLEL_BYTES", 1 << 60)
            serial = compute(op, dtype, ins, params)
            monkeypatch.setattr(_numba, "PARALLEL_BYTES", 1)
            parallel = compute(op, dtype, ins, params)
        for a, b in zip(parallel, serial, strict=True):
            assert_same_bits(a, b, name)
    assert len(launched) == 2


@needs_numba
@pytest.mark.parametrize("name", [op.name for op in OPS.values() if op.ins[0][0] in ("x", "p", "logp")])
def test_long_rows_at_the_edges(name: str) -> None:
    """Rows that are computed in blocks, by two threads: what is odd in one block is known in all."""
    from cases import Case
    from checks import conforms

    op = OPS[name]
    if any(kind == SQUARE for _, kind in op.outs):
        pytest.skip("a matrix of such rows is too large")
    families = ("nan-middle", "-inf-all", "-inf-middle", "+inf-middle", "+inf-and-nan", "dominating+30", "many--inf")
    every = ("smoothing", "zloss", "weights", "vectors") if "keep" in op.params else ()
    cases = [Case(family, 2, 70_001) for family in families] + [Case(family, 1, 70_003, every) for family in families]
    with _backends.use_backend("numba"), fs.num_threads(2):
        for case in cases:
            if case.applies(op):
                conforms(op, np.dtype(np.float32), case)


@needs_numba
def test_read_only_arrays_compile_nothing_new() -> None:
    code = (
        SETUP
        + """
x.setflags(write=False)
fs.set_num_threads(1)
from fastsoftmax import _numba_kernels
before = len(_numba_kernels.softmax.signatures)
assert both() and len(_numba_kernels.softmax.signatures) == before
print("done")
"""
    )
    assert prints(code, timeout=300) == "done"


@needs_numba
def test_the_second_process_finds_the_cache(tmp_path: Path) -> None:
    code = """
import json
import time
import numpy as np
import fastsoftmax as fs
x = np.ones((3, 5), np.float32)
with fs.use_backend("numba"):
    start = time.perf_counter()
    fs.softmax(x)
    seconds = time.perf_counter() - start
from fastsoftmax import _numba_kernels
stats = _numba_kernels.softmax.stats
print(json.dumps([sum(stats.cache_hits.values()), sum(stats.cache_misses.values()), seconds]))
"""
    results = [json.loads(prints(code, timeout=300, NUMBA_CACHE_DIR=str(tmp_path))) for _ in range(2)]
    assert [r[:2] for r in results] == [[0, 1], [1, 0]]
    assert results[1][2] < results[0][2]


@needs_numba
def test_nowhere_to_cache() -> None:
    code = """
from numba.core import caching
for c in vars(caching).values():
    if isinstance(c, type) and issubclass(c, caching.CacheImpl):
        c._locator_classes = []
import fastsoftmax as fs
with fs.use_backend("numba"):
    print(fs.softmax([0.0, 0.0]).tolist())
"""
    assert prints(code, timeout=300) == "[0.5, 0.5]"


def test_importing_the_package_imports_no_numba() -> None:
    assert prints("import sys, fastsoftmax; print('numba' in sys.modules)") == "False"


def test_missing_numba() -> None:
    code = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numba" else find(name, *rest)
import fastsoftmax as fs
print(fs.available_backends()["numba"])
try:
    fs.use_backend("numba").__enter__()
except ImportError as e:
    print(e)
"""
    reason = 'numba is not installed; get it with: pip install "fastsoftmax[numba]"'
    assert prints(code) == f"{reason}\nbackend 'numba' cannot run: {reason}"


def test_broken_numba(tmp_path: Path) -> None:
    (tmp_path / "numba.py").write_text("raise ImportError('Numba needs NumPy 2.3 or less. Got NumPy 2.9.')\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport fastsoftmax as fs\n"
    out = prints(code + "print(fs.available_backends()['numba'])")
    assert out.startswith("numba is installed but cannot be imported: ImportError: Numba needs NumPy 2.3 or less.")
    assert "pip install" in out


@pytest.mark.skipif(sys.platform != "linux", reason="the tool is run where the library is developed")
def test_constants_come_from_the_tool() -> None:
    pytest.importorskip("mpmath")
    tool = Path(__file__).parent.parent / "tools" / "fit_polynomials.py"
    out = prints(f"import runpy, sys\nsys.argv = ['x', '--check']\nrunpy.run_path({str(tool)!r}, run_name='__main__')")
    assert "_numba_*.py: all" in out
