"""Threads and processes: many callers at once, forked and spawned children, nested regions, limits, other libraries.

What can go wrong is a hang or a death, so each test runs in a process of its own, with a time-out.
"""

from __future__ import annotations

import os
import shutil
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from isolated import prints, run, succeeds

from fastsoftmax import _backends

LAYERS = ("omp", "workqueue", "tbb")
ENGINES = ("cython", *(f"numba-{layer}" for layer in LAYERS))
STARTS = ("fork", "forkserver", "spawn")
TBB = str(Path(sys.prefix) / "lib")  # where pip puts its library, which the loader does not search

# What can be forked safely and what cannot shows in these; the other layers' turn is at night.
COMMON = ("cython", "numba-omp")


def needs(*packages: str) -> pytest.MarkDecorator:
    missing = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def at_night(*rare: str) -> list[object]:
    """Return the engines as parameters; those that are named run at night only."""
    return [pytest.param(engine, marks=[pytest.mark.nightly] * (engine in rare)) for engine in ENGINES]


RARE = tuple(engine for engine in ENGINES if engine not in COMMON)


def environment(engine: str, **more: str | None) -> dict[str, str | None]:
    """Return the variables that choose an engine: a backend, and for Numba a threading layer; skip if it is missing."""
    backend, _, layer = engine.partition("-")
    reason = _backends._module(backend).why_not()
    if reason is not None:
        pytest.skip(reason)
    if layer == "tbb" and find_spec("tbb") is None and not list(Path(TBB).glob("libtbb.so*")):
        pytest.skip("tbb is not installed")
    return {
        "JOB_BACKEND": backend,
        "NUMBA_THREADING_LAYER": layer or None,
        "NUMBA_NUM_THREADS": "2",
        "LD_LIBRARY_PATH": os.pathsep.join(filter(None, [TBB, os.environ.get("LD_LIBRARY_PATH")])),
        **more,
    }


def job(engine: str, code: str, timeout: float = 120, **more: str | None) -> None:
    """Run code that has parallel_job's names; it must come to its end, in the layer that was asked for."""
    layer = engine.partition("-")[2]
    start = "import os, sys, threading\nfrom parallel_job import *\nfrom parallel_job import np, fs, _numba\n"
    end = f"\nimport numba\nassert numba.threading_layer() == {layer!r}" if layer else ""
    out = prints(start + code + end + "\nprint('done')", timeout, **environment(engine, **more))
    assert "done" in out.splitlines()  # TBB writes to stdout when its process forks, sometimes only at its end


# --- threads ------------------------------------------------

AT_ONCE = """
import itertools, time
end = time.monotonic() + {seconds}
start = threading.Barrier(8)
backends = {backends}
expected = {{name: answer(threads=1, backend=name) for name in backends}}
calls, wrong = [0] * 8, []

def work(me):
    start.wait()
    for k in itertools.count():
        name = backends[(me + k) % len(backends)]
        if answer(backend=name) != expected[name]:
            wrong.append((me, k, name))
        calls[me] += 1
        if time.monotonic() > end:
            break

threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
for t in threads: t.start()
for t in threads: t.join()
assert not wrong and min(calls) > 0, (wrong, calls)
assert workers() <= 1
"""


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("seconds", [2, pytest.param(60, marks=pytest.mark.nightly)])
def test_eight_threads_call_both_backends_at_once(layer: str, seconds: int) -> None:
    environment("cython")
    job(f"numba-{layer}", AT_ONCE.format(seconds=seconds, backends=["cython", "numba"]), timeout=120 + seconds)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_first_call_by_eight_threads_at_once(engine: str) -> None:
    """The pool, or the layer, starts while others call."""
    job(engine, AT_ONCE.format(seconds=0, backends=[engine.partition("-")[0]]), JOB_IDLE="1")


# --- processes ------------------------------------------------

PROCESSES = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
context = multiprocessing.get_context({start!r})
if {start!r} == "forkserver":
    context.set_forkserver_preload(["parallel_job"])  # whose import computes in parallel: children are forked after use
for _ in range(2):
    with context.Pool(2) as pool:
        assert pool.map(answer, range(4)) == [EXPECTED] * 4
        assert set(pool.map(in_child, range(4))) == {{{workers}}}
    with ProcessPoolExecutor(2, mp_context=context) as executor:
        assert list(executor.map(answer, range(4))) == [EXPECTED] * 4
    assert answer() == EXPECTED
"""


# What a fork leaves behind depends on the layer; a process that starts afresh does not know the layer of another.
@pytest.mark.parametrize(
    ("engine", "start"),
    [
        pytest.param(engine, start, marks=[pytest.mark.nightly] * (engine in RARE and start != "fork"))
        for engine in ENGINES
        for start in STARTS
    ],
)
def test_processes(engine: str, start: str) -> None:
    job(engine, PROCESSES.format(start=start, workers=1 if engine == "cython" else 0))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_fork_while_other_threads_compute(engine: str) -> None:
    code = """
import itertools
stop = threading.Event()
def work():
    while not stop.is_set():
        assert answer() == EXPECTED
threads = [threading.Thread(target=work) for _ in range(2)]
for t in threads: t.start()
try:
    for _ in range(20):
        child = os.fork()
        if not child:
            before = threads_of_process()
            right = answer() == EXPECTED == answer()
            # The compiled pool starts again, whoever held it when its process was forked; Numba's layers cannot.
            os._exit(0 if right and threads_of_process() - before == (BACKEND == "cython") else 9)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status == 0, status
finally:
    stop.set()
for t in threads: t.join()
assert answer() == EXPECTED
"""
    job(engine, code)


@pytest.mark.parametrize("imported", ["fastsoftmax._backends", "fastsoftmax._numba"])
@pytest.mark.parametrize("layer", LAYERS)
def test_a_fork_after_somebody_elses_numba_kernel(layer: str, imported: str) -> None:
    """The parent never used this library's Numba backend, but its threads are gone all the same."""
    code = """
import multiprocessing
import numba
import IMPORTED

@numba.njit(parallel=True)
def total(n):
    s = 0
    for k in numba.prange(n):
        s += k
    return s

def child():
    from parallel_job import answer, EXPECTED
    assert answer() == EXPECTED

assert total(10) == 45 and numba.threading_layer() == LAYER
process = multiprocessing.get_context("fork").Process(target=child)
process.start()
process.join()
print(process.exitcode)
"""
    code = code.replace("LAYER", repr(layer)).replace("IMPORTED", imported)
    assert prints(code, **environment(f"numba-{layer}")) == "0"


@needs("joblib")
@pytest.mark.parametrize("engine", at_night(*RARE))
def test_joblib(engine: str) -> None:
    code = """
import joblib
for backend in ("loky", "multiprocessing", "threading"):
    assert joblib.Parallel(2, backend=backend)(joblib.delayed(answer)(k) for k in range(4)) == [EXPECTED] * 4
    assert answer() == EXPECTED
with joblib.parallel_config("loky", inner_max_num_threads=1):
    assert joblib.Parallel(2)(joblib.delayed(fs.get_num_threads)() for _ in range(2)) == [1, 1]
"""
    job(engine, code)


@needs("xdist")
@pytest.mark.parametrize("engine", at_night(*RARE))
def test_pytest_xdist(engine: str, tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("import parallel_job\n")  # in the controller and in the workers
    (tmp_path / "test_it.py").write_text(
        "import os, pytest\nfrom parallel_job import EXPECTED, answer\n"
        "@pytest.mark.parametrize('k', range(6))\n"
        "def test_it(k):\n    assert os.environ['PYTEST_XDIST_WORKER'] and answer() == EXPECTED\n"
    )
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "-p", "no:cacheprovider", str(tmp_path)]
    out = succeeds(run([*command, f"--rootdir={tmp_path}"], **environment(engine)))
    assert "6 passed" in out


# --- nested ------------------------------------------------

# Defines seen(k), which computes and notes how many threads the process has.
NESTED = """
import ctypes
wrong, counts = [], []
def seen(k):
    if inside and answer() != EXPECTED:
        wrong.append(k)
    counts.append(threads_of_process())
inside = False
"""

IN_NUMBA = (
    NESTED
    + """
import numba
callback = ctypes.CFUNCTYPE(None, ctypes.c_int64)(seen)

@numba.njit(parallel=True, nogil=True)
def region(n):
    for k in numba.prange(n):
        callback(k)
"""
)

IN_OPENMP = (
    NESTED
    + """
openmp = ctypes.CDLL("libgomp.so.1")  # Numba's omp layer is linked with it, too
team = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: [seen(k) for k in range(10)])
def region(n):
    openmp.GOMP_parallel(team, None, 2, 0)
"""
)

TWICE = """
answer()
region(20)
before = max(counts)  # with all threads of the region, and of the library
inside, counts[:] = True, []
region(20)
assert not wrong and len(counts) == 20, (wrong, counts)
assert max(counts) <= before, (before, counts)
"""


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("backend", ["cython", "numba"])
def test_within_a_numba_region(layer: str, backend: str) -> None:
    environment("numba")
    code = IN_NUMBA + TWICE + f"assert numba.threading_layer() == {layer!r}\n"
    more = {**environment(f"numba-{layer}"), "JOB_BACKEND": backend}
    assert prints("from parallel_job import *\n" + code + "print('done')", **more) == "done"


@pytest.mark.parametrize("engine", COMMON)
def test_within_an_openmp_region(engine: str) -> None:
    try:
        import ctypes

        ctypes.CDLL("libgomp.so.1")
    except OSError as error:
        pytest.skip(str(error))
    job(engine, IN_OPENMP + TWICE)


# --- beside other libraries ------------------------------------------------

BESIDE = """
data = np.random.default_rng(0).normal(size=(3000, 10))

def scikit_learn():
    from sklearn.cluster import KMeans
    return KMeans(5, n_init=1, random_state=0).fit(data).inertia_

def pytorch():
    import torch
    torch.set_num_threads(2)
    x = torch.from_numpy(np.repeat(data, 100, axis=0)).requires_grad_()
    torch.nn.functional.cross_entropy(x, torch.zeros(len(x), dtype=torch.int64)).backward()
    return float(x.grad.abs().sum())

def both():
    first, second = OTHER(), answer()
    return first, second == EXPECTED

expected = both()
assert expected[1]
before = threads_of_process()
for _ in range(3):
    assert both() == expected
assert threads_of_process() <= before, (before, threads_of_process())

results = []
callers = [threading.Thread(target=lambda: results.append(both())) for _ in range(4)]
for t in callers: t.start()
for t in callers: t.join()
assert len(results) == 4 and all(ok and abs(r / expected[0] - 1) < 1e-9 for r, ok in results), results
assert workers() <= 1

from concurrent.futures import ProcessPoolExecutor
import multiprocessing
with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as executor:
    assert executor.submit(answer).result() == EXPECTED
"""


@needs("sklearn")
@pytest.mark.parametrize("engine", at_night(*RARE))
def test_beside_scikit_learn(engine: str) -> None:
    job(engine, BESIDE.replace("OTHER", "scikit_learn"))


@needs("torch")  # too large for the extra named test
@pytest.mark.parametrize("engine", at_night(*RARE))
def test_beside_pytorch(engine: str) -> None:
    code = """
import torch
class Softmax(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        context.p = answer()
        return x
    @staticmethod
    def backward(context, g):
        return g * (answer() == context.p == EXPECTED)
x = torch.ones(3, requires_grad=True)
Softmax.apply(x).sum().backward()
assert x.grad.tolist() == [1, 1, 1]
loader = torch.utils.data.DataLoader(range(4), num_workers=2, collate_fn=answer, batch_size=1)
assert list(loader) == [EXPECTED] * 4
"""
    job(engine, BESIDE.replace("OTHER", "pytorch") + code)


# --- limits ------------------------------------------------

# The numbers of threads of which something was computed: the pool's size, and what Numba was asked for.
USED = """
import os
import numpy as np
import fastsoftmax as fs
from fastsoftmax import _backends
BACKEND = os.environ["JOB_BACKEND"]
X = np.ones((2000, 200), np.float32)
launched = []
if BACKEND == "numba":
    from fastsoftmax import _numba, _numba_kernels
    import numba
    kernel = _numba_kernels.softmax_parallel
    def spy(*operands):
        launched.append(numba.get_num_threads())
        kernel(*operands)
    _numba_kernels.softmax_parallel = spy
def used():
    with fs.use_backend(BACKEND):
        launched[:] = [1]
        fs.softmax(X)
    return launched[-1] if BACKEND == "numba" else 1 + _backends.find("cython")._native.pool_size()
"""


def used(engine: str, code: str, *prefix: str, **more: str | None) -> str:
    command = [*prefix, sys.executable, "-c", USED + code]
    return succeeds(run(command, **environment(engine, NUMBA_NUM_THREADS="4", **more)))


@pytest.mark.parametrize("engine", ENGINES)
def test_a_limit_in_the_program(engine: str) -> None:
    code = """
fs.set_num_threads(1); print(used())
with fs.num_threads(2): print(used())
fs.set_num_threads(3); print(used())
with fs.num_threads(4): print(used())
"""
    assert used(engine, code).split() == ["1", "2", "3", "4"]


@pytest.mark.parametrize("engine", ENGINES)
def test_a_limit_in_the_environment(engine: str) -> None:
    assert used(engine, "print(used())", OMP_NUM_THREADS="1") == "1"
    assert used(engine, "print(used())", OMP_NUM_THREADS="3", FASTSOFTMAX_NUM_THREADS="2") == "2"


@pytest.mark.parametrize("engine", ENGINES)
def test_the_affinity_is_the_limit(engine: str) -> None:
    allowed = sorted(os.sched_getaffinity(0))
    taskset = shutil.which("taskset")
    for cpus in (allowed[:1], allowed[:2]):
        if taskset is not None:
            count = used(engine, "print(used())", taskset, "-c", ",".join(map(str, cpus)))
        else:
            count = used(engine, f"os.sched_setaffinity(0, {cpus}); print(used())")
        assert count == str(len(cpus))


@pytest.mark.parametrize("engine", ENGINES)
def test_fewer_threads_than_the_pool_has(engine: str) -> None:
    """The compiled backend's pool has 3 workers, of which a call that may use one must not wake the others."""
    if engine == "cython":
        code = """
import ctypes, time
import numpy as np
import fastsoftmax as fs
from fastsoftmax import _native
library = ctypes.CDLL(_native.__file__)
seen = []
def work(context, worker):
    seen.append(worker)
    end = time.monotonic() + 10
    while len(seen) < n and time.monotonic() < end:
        time.sleep(0.001)
    time.sleep(0.1)  # for one too many to come
work = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)(work)
for n in (4, 2, 3, 1):
    for _ in range(3):
        seen.clear()
        library.fs_parallel(n, work, None)
        assert len(set(seen)) == len(seen) and set(seen) == set(range(n)), (n, seen)
print(_native.pool_size())
"""
        assert prints(code, **environment(engine)) == "3"
    else:
        code = "fs.set_num_threads(4); print(used())\nwith fs.num_threads(2): print(used())"
        assert used(engine, code).split() == ["4", "2"]


def test_a_busy_pool_is_not_waited_for() -> None:
    code = """
import ctypes
from fastsoftmax import _native
library = ctypes.CDLL(_native.__file__)
kind = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int)
held, go, seen = threading.Event(), threading.Event(), []
hold = kind(lambda context, worker: held.set() or go.wait(20) or None)
work = kind(lambda context, worker: seen.append(worker))
caller = threading.Thread(target=lambda: library.fs_parallel(2, hold, None))
caller.start()
held.wait()
library.fs_parallel(2, work, None)
assert seen == [0] and caller.is_alive(), seen
go.set()
caller.join()
"""
    job("cython", code)


def test_workers_take_no_signals() -> None:
    code = """
import time
def tasks():
    return set(os.listdir("/proc/self/task"))
before = tasks()
assert answer() == EXPECTED
(worker,) = tasks() - before
time.sleep(0.3)  # the system blocks all signals while a thread starts
blocked = next(line for line in open(f"/proc/self/task/{worker}/status") if line.startswith("SigBlk"))
assert int(blocked.split()[1], 16) & 2, blocked  # SIGINT
"""
    job("cython", code, JOB_IDLE="1")


@needs("threadpoolctl")
def test_threadpoolctl_limits_openmp() -> None:
    code = """
from threadpoolctl import threadpool_limits
fs.set_num_threads(3)
print(used())
with threadpool_limits(2, user_api="openmp"): print(used())
with threadpool_limits(1, user_api="openmp"): print(used())
print(used())
"""
    assert used("numba-omp", code).split() == ["3", "2", "1", "3"]
