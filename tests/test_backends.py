"""Choosing a backend, an instruction set, a number of threads; what an import costs."""

from __future__ import annotations

import asyncio
import io
import threading

import numpy as np
import pytest
import rooms
from isolated import prints, python
from rooms import Room

import fastsoftmax as fs
from fastsoftmax import _backends, _config, _threads

USED = "from fastsoftmax import _backends; print(_backends.current().name)"


def test_available_backends() -> None:
    available = fs.available_backends()
    assert list(available) == ["cython", "numba", "numpy"]
    assert available["numpy"] is None
    for reason in available.values():
        assert reason is None or (isinstance(reason, str) and reason)


def test_use_backend(room: Room) -> None:
    assert _backends.current().name == room.backend
    with fs.use_backend("numpy"):
        assert _backends.current().name == "numpy"
        with fs.use_backend(room.backend):
            assert _backends.current().name == room.backend
        assert _backends.current().name == "numpy"
    assert _backends.current().name == room.backend


def test_use_backend_resets_after_an_error() -> None:
    before = _backends.current()
    with pytest.raises(KeyError), fs.use_backend("numpy"):
        raise KeyError
    assert _backends.current() is before


def test_unknown_backend() -> None:
    with pytest.raises(ValueError, match="backend is 'cuda'; expected one of 'auto', 'cython', 'numba', 'numpy'"):
        fs.use_backend("cuda").__enter__()


def test_unavailable_backend_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    broken = type(
        "Broken",
        (),
        {
            "name": "numba",
            "strided": False,
            "reads": {},
            "masks": False,
            "why_not": staticmethod(lambda: "it is Monday"),
        },
    )
    monkeypatch.setitem(_backends._modules, "numba", broken)
    with pytest.raises(fs.BackendUnavailableError, match="backend 'numba' cannot run: it is Monday"):
        fs.use_backend("numba").__enter__()
    assert issubclass(fs.BackendUnavailableError, ImportError)
    assert fs.available_backends()["numba"] == "it is Monday"
    with fs.use_backend("auto"):  # only auto may fall back
        assert _backends.current().name in ("cython", "numpy")


def test_backend_of_a_thread_and_of_a_task() -> None:
    seen: dict[str, str] = {}

    def look() -> None:
        seen["thread"] = _backends.current().name

    default = _backends.current().name
    with fs.use_backend("numpy"):
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    assert seen["thread"] == default

    names = [room.backend for room in rooms.usable()]

    async def task(name: str) -> None:
        with fs.use_backend(name), fs.num_threads(len(name)):
            for _ in range(3):
                await asyncio.sleep(0)
                assert _backends.current().name == name
                assert fs.get_num_threads() == len(name)

    async def main() -> None:
        await asyncio.gather(*(task(name) for name in names * 3))

    asyncio.run(main())
    assert _backends.current().name == default


def test_threads_that_compute_at_once(room: Room) -> None:
    x = np.random.default_rng(0).normal(size=(400, 1000)).astype(np.float32)
    expected = fs.softmax(x)
    right: list[bool] = []

    def work() -> None:
        with fs.use_backend(room.backend):
            right.extend(bool((fs.softmax(x) == expected).all()) for _ in range(5))

    workers = [threading.Thread(target=work) for _ in range(4)]
    for w in workers:
        w.start()
    for w in workers:
        w.join()
    assert right == [True] * 20


def test_num_threads() -> None:
    before = fs.get_num_threads()
    with fs.num_threads(3):
        assert fs.get_num_threads() == 3
        with fs.num_threads(np.int64(1)):
            assert fs.get_num_threads() == 1
        assert fs.get_num_threads() == 3
        seen = []
        thread = threading.Thread(target=lambda: seen.append(fs.get_num_threads()))
        thread.start()
        thread.join()
        assert seen == [before]
    assert fs.get_num_threads() == before
    try:
        fs.set_num_threads(5)
        assert fs.get_num_threads() == 5
        with fs.num_threads(2):
            fs.set_num_threads(4)
            assert fs.get_num_threads() == 2
        assert fs.get_num_threads() == 4
    finally:
        fs.set_num_threads(before)
    for call in (fs.set_num_threads, lambda n: fs.num_threads(n).__enter__()):
        for wrong in (0, -1):
            with pytest.raises(ValueError, match=f"n is {wrong}; expected a positive integer"):
                call(wrong)
        for wrong in (1.0, "2", None):
            with pytest.raises(TypeError, match="expected a positive integer"):
                call(wrong)
    assert fs.get_num_threads() == before


def test_default_number_of_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FASTSOFTMAX_NUM_THREADS", "7")
    monkeypatch.setenv("OMP_NUM_THREADS", "5,2")
    assert _threads.detect() == 7
    monkeypatch.setenv("FASTSOFTMAX_NUM_THREADS", "")
    assert _threads.detect() == 5
    monkeypatch.setenv("OMP_NUM_THREADS", "junk")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(6))
    monkeypatch.setattr(_threads, "_cgroup_quota", lambda: None)
    assert _threads.detect() == 6
    for quota, expected in ((2.5, 3), (0.5, 1), (100.0, 6)):
        monkeypatch.setattr(_threads, "_cgroup_quota", lambda quota=quota: quota)
        assert _threads.detect() == expected
    for wrong in ("0", "-1", "two"):
        monkeypatch.setenv("FASTSOFTMAX_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match=f"FASTSOFTMAX_NUM_THREADS is '{wrong}'; expected a positive integer"):
            _threads.detect()


# --- environment ------------------------------------------------


def test_environment_chooses_the_backend() -> None:
    for room in {room.backend: room for room in rooms.usable()}.values():
        assert prints(USED, FASTSOFTMAX_BACKEND=room.backend) == room.backend
    first = next(name for name, reason in fs.available_backends().items() if reason is None)
    for auto in ("auto", "", None):
        assert prints(USED, FASTSOFTMAX_BACKEND=auto) == first


@pytest.mark.parametrize(
    ("variable", "known"),
    [
        ("FASTSOFTMAX_BACKEND", "'auto', 'cython', 'numba', 'numpy'"),
        ("FASTSOFTMAX_ISA", "'baseline', 'avx2', 'avx512'"),
    ],
)
def test_unknown_value_in_the_environment(variable: str, known: str) -> None:
    result = python("import fastsoftmax", **{variable: "fastest"})
    assert result.returncode != 0
    assert f"ValueError: {variable} is 'fastest'; expected one of {known}" in result.stderr


def test_environment_sets_the_number_of_threads() -> None:
    code = "import fastsoftmax as fs; print(fs.get_num_threads())"
    assert prints(code, FASTSOFTMAX_NUM_THREADS="3", OMP_NUM_THREADS="2") == "3"
    assert prints(code, OMP_NUM_THREADS="2") == "2"
    result = python(code, FASTSOFTMAX_NUM_THREADS="many")
    assert "ValueError: FASTSOFTMAX_NUM_THREADS is 'many'; expected a positive integer" in result.stderr


def test_affinity_is_honoured() -> None:
    narrow = "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
    assert prints(narrow + "import fastsoftmax as fs; print(fs.get_num_threads())") == "1"


def test_environment_caps_the_instruction_set() -> None:
    for room in rooms.usable():
        if room.isa is not None:
            code = "from fastsoftmax import _cython; print(_cython.isa())"
            assert prints(code, FASTSOFTMAX_ISA=room.isa) == room.isa


def test_import_is_light() -> None:
    code = "import sys, fastsoftmax; print(*sorted({m.partition('.')[0] for m in sys.modules} & {%s}))"
    heavy = "'numba', 'scipy', 'torch', 'sklearn', 'matplotlib', 'tqdm', 'ml_dtypes', 'llvmlite', 'hypothesis'"
    assert prints(code % heavy) == ""
    call = "import sys, fastsoftmax as fs; fs.use_backend('numpy').__enter__(); fs.softmax([1.0, 2]); "
    assert prints(call + "print('numba' in sys.modules)") == "False"


def test_show_config(room: Room, capsys: pytest.CaptureFixture[str]) -> None:
    fs.show_config()
    text = capsys.readouterr().out
    for word in ("version: ", f"backend: {room.backend}", "threads: ", "numpy: "):
        assert word in text
    if room.isa is not None:
        assert f"instruction set: {room.isa}" in text
    assert _config.config()["version"] == fs.__version__


def test_required_rooms() -> None:
    """FASTSOFTMAX_REQUIRE turns a skip into a failure, and does not accept misspelt names."""
    assert "the rooms are" in python("import rooms", FASTSOFTMAX_REQUIRE="cython-avx1024").stderr
    missing = [room for room in rooms.ROOMS.values() if room.why_not() is not None]
    for room in missing:
        code = f"import pytest, sys; sys.exit(pytest.main(['-q', 'tests/test_layouts.py::test_scalars[{room.id}]']))"
        outcome = python(code, FASTSOFTMAX_REQUIRE=room.id).stdout
        assert ("is required" in outcome) == (room.why_not() != rooms.CPU_CANNOT.format(room.isa))


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu.cfs_quota_us": "400000", "cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, None),
        ({"cpu.max": "junk of"}, None),
        ({}, None),
    ],
)
def test_cgroup_quota(files: dict[str, str], quota: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_open(path: str) -> io.StringIO:
        name = path.rpartition("/")[2]
        if name not in files:
            raise FileNotFoundError(path)
        return io.StringIO(files[name])

    monkeypatch.setattr(_threads, "open", fake_open, raising=False)
    assert _threads._cgroup_quota() == quota


def test_forced_instruction_set_is_known() -> None:
    cython = _backends._module("cython")
    if cython.why_not() is None:
        with pytest.raises(ValueError, match="instruction set is 'mmx'; expected one of 'baseline'"):
            cython.forced_isa("mmx").__enter__()  # type: ignore[attr-defined]
