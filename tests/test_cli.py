"""The command line, against plain NumPy formulas in float64."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import pickle
import signal
import subprocess
import sys
import time
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

import fastsoftmax
from fastsoftmax._cli import _common, _files, bench, demo, main, score
from fastsoftmax._cli._exact import exact, magnitude, ulp_error
from fastsoftmax._cli._peers import PEERS
from fastsoftmax._ops import OPS

ROOT = Path(fastsoftmax.__file__).parents[1]


# --- helpers ------------------------------------------------


def save(path, array):
    np.save(path, array)
    return str(path)


def draw(rows=300, classes=7, dtype=np.float64, seed=0, spread=2.0):
    """Return logits and labels that follow their softmax."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, classes)) * spread
    p = reference_softmax(x)
    y = (p.cumsum(1) > rng.random((rows, 1))).argmax(1)
    return x.astype(dtype), y


def reference_softmax(x):
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def reference_losses(x, y, scale=1.0, smoothing=0.0):
    logp = np.log(reference_softmax(x.astype(np.float64) * scale))
    q = np.full(x.shape, smoothing / x.shape[1])
    q[np.arange(len(y)), y] += 1 - smoothing
    return -(q * logp).sum(1)


def reference_topk(x, y, k):
    """Sort every row by descending logit, then ascending class, and look for the label."""
    hits = 0
    for row, label in zip(x.tolist(), y.tolist()):
        order = sorted(range(len(row)), key=lambda c: (-row[c], c))
        hits += label in order[:k]
    return hits / len(y)


def reference_ece(x, y, bins=15):
    p = reference_softmax(x.astype(np.float64))
    total = 0.0
    for k in range(bins):
        inside = [i for i in range(len(y)) if k / bins < p[i].max() <= (k + 1) / bins]
        if inside:
            accuracy = np.mean([p[i].argmax() == y[i] for i in inside])
            confidence = np.mean([p[i].max() for i in inside])
            total += len(inside) / len(y) * abs(accuracy - confidence)
    return total


@pytest.fixture
def run(capsys):
    """Run the command line in this process; return status, stdout and stderr."""

    def call(*argv):
        status = main([str(a) for a in argv])
        return status, *capsys.readouterr()

    return call


@pytest.fixture
def scored(run):
    """Run ``score --json``, which must succeed, and return its report."""

    def call(*argv):
        status, out, err = run("score", "--json", *argv)
        assert (status, err) == (0, "")
        return json.loads(out, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))

    return call


@pytest.fixture
def files(tmp_path):
    """Save logits and labels; return their paths."""

    def make(x, y):
        return save(tmp_path / "x.npy", x), save(tmp_path / "y.npy", y)

    return make


def refused(result, *words, status=2):
    """Check that a run ended with one clear line on stderr and nothing else."""
    got, out, err = result
    assert got == status
    assert out == ""
    assert err.startswith("fastsoftmax: error: ")
    assert err.count("\n") == 1
    assert "Traceback" not in err
    for word in words:
        assert word in err


def spawn(*argv, code=None, **options):
    """Start a Python process that runs the command line (or other code) from the source tree."""
    start = ["-c", code] if code else ["-m", "fastsoftmax"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return subprocess.Popen([sys.executable, *start, *map(str, argv)], env=environment, **options)


# --- the frame: help, version, errors, exit statuses ------------------------------------------------


@pytest.mark.parametrize("command", [[], ["demo"], ["score"], ["bench"], ["info"]])
def test_help_explains_and_fits_a_terminal(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as end:
        main([*command, "--help"])
    assert end.value.code == 0
    text = capsys.readouterr().out
    assert "usage: fastsoftmax" in text
    assert command == ["info"] or "example" in text
    assert max(map(len, text.splitlines())) < 80


def test_top_help_lists_the_commands(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    text = capsys.readouterr().out
    for command in ("demo", "score", "bench", "info", "--version", "FASTSOFTMAX_BACKEND"):
        assert command in text


def test_version(capsys):
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert end.value.code == 0
    assert capsys.readouterr().out == f"fastsoftmax {fastsoftmax.__version__}\n"


@pytest.mark.parametrize(
    ("argv", "word"),
    [
        ([], "COMMAND"),
        (["train"], "invalid choice: 'train'"),
        (["score"], "LOGITS.npy"),
        (["info", "--fast"], "--fast"),
        (["score", "a", "b", "--temperature", "0"], "temperature"),
        (["score", "a", "b", "--temperature", "nan"], "temperature"),
        (["score", "a", "b", "--temperature", "warm"], "temperature"),
        (["score", "a", "b", "--temperature", "2", "--fit-temperature"], "not allowed with"),
        (["score", "a", "b", "--label-smoothing", "1.5"], "from 0 to 1"),
        (["score", "a", "b", "--axis", "x"], "--axis"),
        (["bench", "--shape", "3"], "ROWS,CLASSES"),
        (["bench", "--shape", "0,3"], "ROWS,CLASSES"),
        (["bench", "--op", "softmin"], "softmin"),
        (["bench", "--peers", "julia"], "julia"),
        (["bench", "--backends", "cuda"], "cuda"),
        (["bench", "--seconds", "-1"], "seconds"),
        (["bench", "--backends", "", "--peers", ""], "nothing to time"),
    ],
)
def test_wrong_usage(run, argv, word):
    refused(run(*argv), word)


def test_module_and_entry_point_are_the_same():
    process = spawn("--version")
    out, err = process.communicate()
    assert (process.returncode, out, err) == (0, f"fastsoftmax {fastsoftmax.__version__}\n", "")
    text = (ROOT / "pyproject.toml").read_text()
    assert 'fastsoftmax = "fastsoftmax.__main__:main"' in text
    assert __import__("fastsoftmax.__main__", fromlist=["main"]).main is main


def test_importing_the_library_imports_nothing_of_the_command_line():
    code = "import sys, fastsoftmax; print([m for m in sys.modules if '_cli' in m or m in ('argparse', 'tqdm')])"
    assert spawn(code=code).communicate()[0] == "[]\n"


def test_help_is_quick_because_imports_are_lazy():
    code = (
        "import sys\nfrom fastsoftmax._cli import main\ntry: main(['score', '--help'])\nexcept SystemExit: pass\n"
        "print([m for m in ('scipy', 'sklearn', 'matplotlib', 'torch', 'jax', 'tqdm', 'numba') if m in sys.modules])"
    )
    assert spawn(code=code).communicate()[0].endswith("\n[]\n")


@pytest.mark.parametrize("start", ["module", "script"])
@pytest.mark.parametrize("name", ["FASTSOFTMAX_BACKEND", "FASTSOFTMAX_ISA", "FASTSOFTMAX_NUM_THREADS"])
def test_a_wrong_environment_is_a_plain_error(name, start, monkeypatch, tmp_path):
    monkeypatch.setenv(name, "fatsest")
    script = tmp_path / "fastsoftmax"
    script.write_text("import sys\nfrom fastsoftmax.__main__ import main\nsys.exit(main())\n")
    command = {"module": ["-m", "fastsoftmax"], "script": [str(script)]}[start]
    result = subprocess.run(
        [sys.executable, *command, "info"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    refused((result.returncode, result.stdout, result.stderr), name, "fatsest")


def test_interrupt(run, monkeypatch):
    def interrupt(args):
        raise KeyboardInterrupt

    monkeypatch.setattr("fastsoftmax._cli.info.run", interrupt)
    refused(run("info"), "interrupted", status=130)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), MemoryError("2 TiB")])
def test_failures_of_the_machine(run, monkeypatch, error):
    def fail(args):
        raise error

    monkeypatch.setattr("fastsoftmax._cli.info.run", fail)
    refused(run("info"), str(error.args[-1]), status=1)


def test_a_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    process = spawn("info", stdout=writer)
    os.close(writer)
    assert process.communicate()[1] == ""
    assert process.returncode == 141


def test_main_works_in_another_thread(capsys):
    import threading

    status = []
    thread = threading.Thread(target=lambda: status.append(main(["info"])))
    thread.start()
    thread.join()
    assert status == [0]


def test_main_leaves_the_signal_handlers_alone(run):
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    run("info")
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


# --- info ------------------------------------------------


def test_info(run):
    status, out, err = run("info")
    assert (status, err) == (0, "")
    assert f"version: {fastsoftmax.__version__}" in out
    assert "backend numpy: usable" in out


def test_info_json(run):
    status, out, _ = run("info", "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["version"] == fastsoftmax.__version__
    assert facts["threads"] == fastsoftmax.get_num_threads()
    assert facts["numpy"] == importlib.metadata.version("numpy")


def test_json_has_no_bare_nan(capsys):
    _common.print_json({"a": [np.nan, np.inf, -np.inf, 1.5, None, True], 2: Path("x")})
    out = capsys.readouterr().out
    assert json.loads(out) == {"a": ["NaN", "Infinity", "-Infinity", 1.5, None, True], "2": "x"}
    assert "NaN," not in out.replace('"NaN",', "")


@pytest.mark.parametrize(("seconds", "text"), [(2.0, "2 s"), (0.0123, "12.3 ms"), (4.56e-5, "45.6 us")])
def test_durations(seconds, text):
    assert _common.duration(seconds) == text


# --- score: numbers ------------------------------------------------


def check_numbers(report, x, y, scale=1.0, smoothing=0.0, tolerance=1e-12):
    """Compare every metric with its plain formula."""
    z = x.astype(np.float64) * scale
    losses = reference_losses(x, y, scale, smoothing)
    assert report["mean_loss"] == pytest.approx(losses.mean(), rel=tolerance)
    assert report["perplexity"] == pytest.approx(np.exp(losses.mean()), rel=10 * tolerance)
    assert report["top1_accuracy"] == pytest.approx(reference_topk(x, y, 1), abs=1e-15)
    assert report["top5_accuracy"] == pytest.approx(reference_topk(x, y, 5), abs=1e-15)
    assert report["expected_calibration_error"] == pytest.approx(reference_ece(z, y), abs=10 * tolerance)
    assert report["rows"] == len(y)
    assert report["classes"] == x.shape[1]
    for k, entry in enumerate(report["bins"]):
        p = reference_softmax(z)
        inside = (p.max(1) > k / 15) & (p.max(1) <= (k + 1) / 15)
        assert entry["rows"] == inside.sum()
        if inside.any():
            assert entry["confidence"] == pytest.approx(p.max(1)[inside].mean(), rel=10 * tolerance)
            assert entry["accuracy"] == pytest.approx((p.argmax(1) == y)[inside].mean(), abs=1e-15)
        else:
            assert (entry["confidence"], entry["accuracy"]) == ("NaN", "NaN")


@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(np.float64, 1e-13), (">f8", 1e-13), (np.float32, 1e-6), (np.float16, 1e-6), (np.int8, 1e-13)],
)
def test_metrics(scored, files, dtype, tolerance):
    x, y = draw(dtype=dtype)
    report = scored(*files(x, y.astype(np.uint16)))
    check_numbers(report, x, y, tolerance=tolerance)
    assert report["temperature"] == 1
    assert report["shape"] == [300, 7]
    assert report["written"] == {}


def test_temperature(scored, files):
    x, y = draw()
    check_numbers(scored(*files(x, y), "--temperature", 2.5), x, y, scale=1 / 2.5)


def test_label_smoothing(scored, files):
    x, y = draw()
    check_numbers(scored(*files(x, y), "--label-smoothing", 0.1), x, y, smoothing=0.1)


@pytest.mark.parametrize("ignore", [-100, 255, 3])
def test_ignored_rows_count_nowhere(scored, files, tmp_path, ignore):
    x, y = draw()
    out = np.arange(len(y)) % 3 == 0
    y = np.where(out, ignore, y)
    x[out] = np.nan
    keep = y != ignore
    paths = files(x, y)
    report = scored(*paths, "--ignore-index", ignore, "--per-class", "--grad", tmp_path / "g.npy")
    check_numbers(report, x[keep], y[keep])
    assert report["ignored"] == (~keep).sum()
    assert sum(entry["rows"] for entry in report["per_class"]) == keep.sum()
    grad = np.load(tmp_path / "g.npy")
    assert not grad[~keep].any()
    expected = reference_softmax(x[keep])
    expected[np.arange(keep.sum()), y[keep]] -= 1
    np.testing.assert_allclose(grad[keep], expected / keep.sum(), rtol=1e-12, atol=1e-17)


def test_per_class_recall(scored, files):
    x, y = draw(classes=9)
    y[y == 4] = 5
    for entry in scored(*files(x, y), "--per-class")["per_class"]:
        k = entry["class"]
        assert entry["rows"] == (y == k).sum()
        expected = "NaN" if k == 4 else pytest.approx((x.argmax(1)[y == k] == k).mean())
        assert entry["recall"] == expected


def test_ties_go_to_the_lower_class(scored, files):
    x = np.zeros((8, 8))
    report = scored(*files(x, np.arange(8)))
    assert report["top1_accuracy"] == 1 / 8
    assert report["top5_accuracy"] == 5 / 8
    x[:, 6] = 1  # now class 6, then 0, 1, 2, 3
    report = scored(*files(x, np.arange(8)))
    assert report["top1_accuracy"] == 1 / 8
    assert report["top5_accuracy"] == 5 / 8
    assert [score.label_rank(x, np.array([k] * 8))[0] for k in range(8)] == [1, 2, 3, 4, 5, 6, 0, 7]


def test_fewer_than_five_classes(scored, files):
    x, y = draw(classes=3)
    assert scored(*files(x, y))["top5_accuracy"] == 1


def test_a_row_without_probabilities_is_a_miss(scored, files):
    x, y = draw(rows=4)
    x[1] = np.nan
    x[2] = -np.inf
    y[:] = x.argmax(1)
    report = scored(*files(x, y))
    assert report["top1_accuracy"] == 0.5
    assert report["top5_accuracy"] == 0.5
    assert report["mean_loss"] == "NaN"


def test_an_impossible_label_makes_the_loss_infinite(scored, files):
    x, y = draw(rows=4)
    x[0, y[0]] = -np.inf
    report = scored(*files(x, y))
    assert report["mean_loss"] == report["perplexity"] == "Infinity"
    assert np.isfinite(report["expected_calibration_error"])


def test_bins_include_their_upper_edge():
    metrics = score.Metrics(2)
    edges = np.arange(1, 16) / 15
    metrics.add(np.zeros((15, 2)), np.zeros(15, int), np.ones(15), edges)
    assert metrics.bin_count.tolist() == [1] * 15
    np.testing.assert_array_equal(metrics.reliability()[1], edges)


def test_overflowing_sums_are_infinite():
    assert score.fsum([1e308, 1e308, 1.0]) == np.inf
    assert score.fsum([0.1] * 10) == 1.0


@pytest.mark.parametrize("axis", [-1, 0])
def test_no_rows(scored, files, tmp_path, axis):
    shape = (0, 5) if axis else (5, 0)
    paths = files(np.zeros(shape), np.zeros(0, int))
    report = scored(*paths, "--axis", axis, "--per-class", "--probs", tmp_path / "p.npy", "--plot", tmp_path / "p.png")
    assert report["rows"] == 0
    assert report["mean_loss"] == report["top1_accuracy"] == report["expected_calibration_error"] == "NaN"
    assert np.load(tmp_path / "p.npy").shape == shape


def test_only_ignored_rows(scored, files, tmp_path):
    x, _ = draw(rows=3)
    report = scored(*files(x, np.full(3, -100)), "--grad", tmp_path / "g.npy")
    assert report["mean_loss"] == "NaN"
    assert report["ignored"] == 3
    assert not np.load(tmp_path / "g.npy").any()


def test_one_row_as_a_vector(scored, files, tmp_path):
    x, y = draw(rows=1)
    report = scored(*files(x[0], y[0]), "--probs", tmp_path / "p.npy")
    check_numbers(report, x, y)
    np.testing.assert_allclose(np.load(tmp_path / "p.npy"), reference_softmax(x)[0], rtol=1e-13)


def test_text_output(run, files):
    x, y = draw()
    y[0] = -100
    status, out, err = run("score", *files(x, y), "--per-class")
    assert (status, err) == (0, "")
    assert "299, 1 ignored" in out
    assert f"{reference_losses(x[1:], y[1:]).mean():.8f}" in out
    assert f"{reference_topk(x[1:], y[1:], 5):.4%}" in out
    assert f"{reference_ece(x[1:], y[1:]):.6f}" in out
    assert "recall" in out


# --- score: outputs ------------------------------------------------


@pytest.mark.parametrize(("dtype", "written"), [("f8", "f8"), ("f4", "f4"), ("f2", "f4"), ("i2", "f8"), (">f4", "f4")])
def test_outputs(scored, files, tmp_path, dtype, written):
    x, y = draw(dtype=dtype)
    names = {"probs": tmp_path / "p.npy", "log_probs": tmp_path / "l.npy", "grad": tmp_path / "g.npy"}
    argv = [word for name, path in names.items() for word in ("--" + name.replace("_", "-"), path)]
    report = scored(*files(x, y), *argv, "--temperature", 1.5, "--label-smoothing", 0.2)
    assert report["written"] == {name: str(path) for name, path in names.items()}
    p = reference_softmax(x.astype(np.float64) / 1.5)
    q = np.full(x.shape, 0.2 / 7)
    q[np.arange(len(y)), y] += 0.8
    expected = {"probs": p, "log_probs": np.log(p), "grad": (p - q) / 1.5 / len(y)}
    tight = {"rtol": 1e-6, "atol": 1e-9} if written == "f4" else {"rtol": 1e-12, "atol": 1e-18}
    for name, path in names.items():
        got = np.load(path)
        assert got.dtype == np.dtype(written)
        np.testing.assert_allclose(got, expected[name], **tight)


def test_gradient_is_that_of_the_reported_loss(scored, files, tmp_path):
    x, y = draw(rows=5, classes=3)
    argv = ("--temperature", 0.7, "--label-smoothing", 0.1)
    scored(*files(x, y), *argv, "--grad", tmp_path / "g.npy")
    grad, h = np.load(tmp_path / "g.npy"), 1e-5
    for spot in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[spot] += h
        down[spot] -= h
        slope = (scored(*files(up, y), *argv)["mean_loss"] - scored(*files(down, y), *argv)["mean_loss"]) / (2 * h)
        assert grad[spot] == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("axis", [0, 1, 2, -2])
def test_axes(scored, files, tmp_path, monkeypatch, axis):
    monkeypatch.setattr(score, "BLOCK_BYTES", 1000)
    x, y = draw(rows=60, classes=7)
    cube = np.moveaxis(x.reshape(6, 10, 7), -1, axis)
    report = scored(*files(cube, y.reshape(6, 10)), "--axis", axis, "--grad", tmp_path / "g.npy")
    check_numbers(report, x, y)
    assert report["axis"] == axis % 3
    expected = reference_softmax(x)
    expected[np.arange(60), y] -= 1
    got = np.moveaxis(np.load(tmp_path / "g.npy"), axis, -1).reshape(60, 7)
    np.testing.assert_allclose(got, expected / 60, rtol=1e-12, atol=1e-17)


def test_fortran_order(scored, files):
    x, y = draw()
    check_numbers(scored(*files(np.asfortranarray(x), y)), x, y)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_size_of_blocks_changes_nothing(scored, files, tmp_path, monkeypatch, axis, dtype):
    x, y = draw(rows=1000, dtype=dtype)
    y[::7] = -100
    paths = files(x if axis else x.T.copy(), y)
    seen = []
    for size in (1, 100, 4096, 1 << 22):
        monkeypatch.setattr(score, "BLOCK_BYTES", size)
        seen.append(scored(*paths, "--axis", axis, "--grad", tmp_path / "g.npy", "--per-class"))
        seen[-1]["grad"] = np.load(tmp_path / "g.npy")
    for other in seen[1:]:
        np.testing.assert_array_equal(other.pop("grad"), seen[0]["grad"])
        for key, value in other.items():
            if isinstance(value, float):
                assert value == pytest.approx(seen[0][key], rel=1e-13, abs=1e-15)
            elif key != "bins":
                assert value == seen[0][key]
        for a, b in zip(other["bins"], seen[0]["bins"]):
            assert a == pytest.approx(b, rel=1e-13, nan_ok=True) if a["rows"] else a == b


def test_memory_does_not_grow_with_the_file(scored, files, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "BLOCK_BYTES", 1 << 16)
    x = np.random.default_rng(0).standard_normal((60_000, 32), np.float32)  # 7.3 MiB
    paths = files(x, np.zeros(len(x), np.int8))
    tracemalloc.start()
    try:
        scored(*paths, "--probs", tmp_path / "p.npy", "--grad", tmp_path / "g.npy")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 << 20


def test_a_link_stays_a_link(scored, files, tmp_path):
    (tmp_path / "there").mkdir()
    link = tmp_path / "p.npy"
    link.symlink_to(tmp_path / "there" / "real.npy")
    x, y = draw()
    scored(*files(x, y), "--probs", link)
    assert link.is_symlink()
    assert np.load(tmp_path / "there" / "real.npy").shape == x.shape


def test_outputs_have_ordinary_permissions(scored, files, tmp_path):
    x, y = draw()
    scored(*files(x, y), "--probs", tmp_path / "p.npy")
    (tmp_path / "other").touch()
    assert (tmp_path / "p.npy").stat().st_mode == (tmp_path / "other").stat().st_mode


# --- score: failing without a trace ------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError])
def test_a_failing_run_keeps_old_files_and_leaves_no_new_ones(run, files, tmp_path, monkeypatch, error):
    x, y = draw()
    paths = files(x, y)
    (tmp_path / "p.npy").write_text("old")
    before = sorted(tmp_path.iterdir())
    monkeypatch.setattr(score, "BLOCK_BYTES", 1000)
    calls = []
    honest = score.softmax

    def fail_midway(*args, **options):
        calls.append(sorted(tmp_path.iterdir()))
        if len(calls) == 5:
            raise error
        return honest(*args, **options)

    monkeypatch.setattr(score, "softmax", fail_midway)
    argv = ("--probs", tmp_path / "p.npy", "--grad", tmp_path / "g.npy", "--plot", tmp_path / "p.png")
    status, out, err = run("score", *paths, *argv)
    assert status == (130 if error is KeyboardInterrupt else 1)
    assert out == ""
    assert err.count("\n") == 1
    assert len(calls[0]) == len(before) + 3  # it did write beside
    assert sorted(tmp_path.iterdir()) == before
    assert (tmp_path / "p.npy").read_text() == "old"


def test_a_failing_plot_keeps_all_outputs_back(run, files, tmp_path, monkeypatch):
    x, y = draw()
    paths = files(x, y)

    def fail(path, columns):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(score, "_plotter", lambda: fail)
    refused(
        run("score", *paths, "--probs", tmp_path / "p.npy", "--plot", tmp_path / "p.png"), "No space left", status=1
    )
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npy", "y.npy"]


def test_a_full_disk_is_noticed_before_writing(run, files, tmp_path, monkeypatch):
    x, y = draw()
    paths = files(x, y)

    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    refused(run("score", *paths, "--probs", tmp_path / "p.npy"), "No space left on device", status=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npy", "y.npy"]


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_signals_leave_nothing_behind(files, tmp_path, number, status):
    x, y = draw()
    paths = files(x, y)
    slow = """
import signal, sys, time
from fastsoftmax._cli import main, score
# A shell's background jobs ignore SIGINT, those of nohup SIGHUP, and their children inherit it.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
score.BLOCK_BYTES = 1000
honest = score.softmax
score.softmax = lambda *a, **k: (time.sleep(0.2), honest(*a, **k))[1]
sys.exit(main())
"""
    process = spawn("score", *paths, "--probs", tmp_path / "p.npy", code=slow)
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob(".p.npy.*.tmp")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert "Traceback" not in err
    assert out == ""
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.npy", "y.npy"]


def test_an_ignored_signal_stays_ignored(run, monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    seen = []
    monkeypatch.setattr("fastsoftmax._cli.info.run", lambda args: seen.append(signal.getsignal(signal.SIGHUP)) or 0)
    try:
        assert run("info")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)
    assert seen == [signal.SIG_IGN]


# --- score: bad input ------------------------------------------------


def bad_files(tmp_path):
    """Write one file of each kind that cannot be scored; return their names and words of the errors."""
    whole = Path(save(tmp_path / "whole.npy", np.zeros((100, 7)))).read_bytes()
    (tmp_path / "truncated.npy").write_bytes(whole[:1000])
    (tmp_path / "header.npy").write_bytes(whole[:40])
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "text.npy").write_text("1,2,3\n")
    (tmp_path / "pickle.npy").write_bytes(pickle.dumps([1, 2, 3]))
    np.save(tmp_path / "objects.npy", np.array([[1, "a"]], dtype=object))
    np.savez(tmp_path / "archive.npz", x=np.zeros(3))
    np.save(tmp_path / "complex.npy", np.zeros((100, 7), complex))
    np.save(tmp_path / "strings.npy", np.array(["a", "b"]))
    np.save(tmp_path / "records.npy", np.zeros(3, [("a", "f4")]))
    np.save(tmp_path / "dates.npy", np.zeros(3, "M8[s]"))
    np.save(tmp_path / "long.npy", np.zeros((100, 7), np.longdouble))
    (tmp_path / "folder.npy").mkdir()
    return {
        "truncated.npy": "truncated",
        "header.npy": "truncated",
        "empty.npy": "not a .npy file",
        "text.npy": "not a .npy file",
        "pickle.npy": "not a .npy file",
        "objects.npy": "Python objects",
        "archive.npz": "not a .npy file",
        "complex.npy": "complex128",
        "strings.npy": "<U1",
        "records.npy": "dtype",
        "dates.npy": "datetime64",
        "long.npy": "float",
        "folder.npy": "directory",
        "missing.npy": "No such file",
    }


@pytest.mark.filterwarnings("ignore:Custom dtypes")
def test_bad_files(run, tmp_path):
    labels = save(tmp_path / "y.npy", np.zeros(100, int))
    logits = save(tmp_path / "x.npy", np.zeros((100, 7)))
    for name, word in bad_files(tmp_path).items():
        refused(run("score", tmp_path / name, labels), name, word)
        refused(run("score", logits, tmp_path / name), name, "" if name == "long.npy" else word)


def test_a_file_that_would_run_code_is_not_loaded(run, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    array = np.empty(1, object)
    array[0] = Bomb()
    np.save(tmp_path / "bomb.npy", array)
    (tmp_path / "bomb2.npy").write_bytes(pickle.dumps(Bomb()))
    for name in ("bomb.npy", "bomb2.npy"):
        refused(run("score", tmp_path / name, tmp_path / name), name)
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("x", "y", "argv", "words"),
    [
        (np.zeros((4, 3)), np.zeros(5, int), [], ("(5,)", "(4, 3)", "(4,)")),
        (np.zeros((4, 3)), np.zeros((4, 1), int), [], ("(4, 1)", "(4,)")),
        (np.zeros((4, 3)), np.zeros(4, int), ["--axis", 0], ("(3,)", "--axis 0")),
        (np.zeros((4, 3)), np.zeros(4), [], ("float64", "integers")),
        (np.zeros((4, 3)), np.zeros(4, bool), [], ("bool", "integers")),
        (np.zeros((4, 3)), np.zeros(4, int), ["--axis", 2], ("--axis 2", "(4, 3)")),
        (np.zeros((4, 0)), np.zeros(4, int), [], ("no classes",)),
        (np.float64(3), np.int64(0), [], ("no classes",)),
        (np.zeros((4, 3)), np.array([0, 1, 3, 2]), [], ("y.npy[2] = 3", "3 classes")),
        (np.zeros((4, 3)), np.array([0, -1, 1, 2], np.int8), [], ("y.npy[1] = -1", "--ignore-index -100")),
        (np.zeros((4, 3)), np.array([0, 255, 1, 2], np.uint8), ["--ignore-index", 254], ("y.npy[1] = 255", "254")),
        (np.zeros((2, 3, 4)), np.array([[0, 1], [0, 9]]), ["--axis", 1], ("(2, 2)", "(2, 4)")),
        (np.zeros((2, 3, 2)), np.array([[0, 1], [0, 9]]), ["--axis", 1], ("y.npy[1, 1] = 9",)),
        (np.zeros(3), np.int64(7), [], ("y.npy = 7",)),
    ],
)
def test_logits_and_labels_that_do_not_fit(run, files, x, y, argv, words):
    refused(run("score", *files(x, y), *argv), *words)


def test_a_wrong_label_is_named_in_any_block(run, files, monkeypatch):
    monkeypatch.setattr(score, "BLOCK_BYTES", 64)
    y = np.zeros((5, 40), int)
    y[3, 33] = 8
    refused(run("score", *files(np.zeros((5, 40, 3), np.int8), y)), "y.npy[3, 33] = 8")


@pytest.mark.parametrize("option", ["--probs", "--log-probs", "--grad", "--plot"])
def test_targets_that_cannot_be_written(run, files, tmp_path, monkeypatch, option):
    x, y = draw()
    paths = files(x, y)
    before = Path(paths[0]).read_bytes(), Path(paths[1]).read_bytes()
    os.link(paths[0], tmp_path / "hard.npy")
    (tmp_path / "soft.npy").symlink_to(paths[1])
    monkeypatch.setattr(score, "read", lambda args: pytest.fail("the target must be checked before the work"))
    refused(run("score", *paths, option, tmp_path / "nowhere" / "p.npy"), option, "no directory")
    refused(run("score", *paths, option, tmp_path), option, "is a directory")
    for name in ("x.npy", "y.npy", "hard.npy", "soft.npy"):
        refused(run("score", *paths, option, tmp_path / name), option, "is an input")
    assert (Path(paths[0]).read_bytes(), Path(paths[1]).read_bytes()) == before


def test_two_outputs_of_one_name(run, files, tmp_path):
    x, y = draw()
    argv = ("--probs", tmp_path / "p.npy", "--grad", tmp_path / ".." / tmp_path.name / "p.npy")
    refused(run("score", *files(x, y), *argv), "--grad", "--probs")


def test_a_directory_that_is_not_writable(run, files, tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: (path, mode) != (tmp_path, os.W_OK))  # root may write anywhere
    refused(run("score", *files(*draw()), "--probs", tmp_path / "p.npy"), "--probs", "not writable")


def test_missing_packages_are_named_before_the_work(run, files, tmp_path, monkeypatch):
    x, y = draw()
    paths = files(x, y)
    for module in ("scipy.optimize", "matplotlib.figure", "sklearn.datasets"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setattr(score, "read", lambda args: pytest.fail("packages must be checked before the work"))
    extra = 'pip install "fastsoftmax[demo]"'
    refused(run("score", *paths, "--fit-temperature"), "scipy", extra)
    refused(run("score", *paths, "--plot", tmp_path / "p.png"), "matplotlib", extra)
    refused(run("demo"), "scipy", extra)


# --- score: temperature ------------------------------------------------


@pytest.mark.parametrize(("dtype", "true"), [(np.float64, 2.5), (np.float32, 2.5), (np.float64, 0.2)])
def test_fit_recovers_a_known_temperature(scored, files, dtype, true):
    from scipy.optimize import minimize_scalar

    x, y = draw(rows=4000, seed=3)
    x = (x * true + 100).astype(dtype)
    report = scored(*files(x, y), "--fit-temperature")
    assert report["temperature"] == pytest.approx(true, rel=0.1)
    u = np.log(true)
    best = minimize_scalar(
        lambda u: reference_losses(x, y, np.exp(-u)).mean(), bracket=(u - 0.2, u, u + 0.2), tol=1e-10
    )
    # The minimum of a function is found only to half its digits; ours is a root.
    assert report["temperature"] == pytest.approx(np.exp(best.x), rel=1e-6)
    tolerance = 1e-11 if dtype == np.float64 else 1e-5
    check_numbers(report["before"] | {"rows": 4000, "classes": 7}, x, y, tolerance=tolerance)
    check_numbers(report, x, y, scale=1 / report["temperature"], tolerance=tolerance)
    assert report["mean_loss"] < report["before"]["mean_loss"]
    assert report["expected_calibration_error"] < report["before"]["expected_calibration_error"]


def test_fit_is_a_stationary_point_under_every_option(scored, files, tmp_path, monkeypatch):
    monkeypatch.setattr(score, "BLOCK_BYTES", 5000)
    x, y = draw(rows=500, spread=6)
    x[:, 2] = -np.inf
    y[y == 2] = -100
    x[::11] = np.nan
    y[::11] = -100
    keep = y != -100
    report = scored(*files(x.T.copy(), y), "--axis", 0, "--fit-temperature", "--probs", tmp_path / "p.npy")
    scale = 1 / report["temperature"]
    seen = np.delete(x[keep], 2, axis=1)
    p = reference_softmax(seen * scale)
    label = np.where(y[keep] > 2, y[keep] - 1, y[keep])
    slope = ((p * seen).sum(1) - seen[np.arange(len(label)), label]).mean()
    assert abs(slope) < 1e-7
    np.testing.assert_allclose(np.load(tmp_path / "p.npy").T[keep][:, [0, 1, 3, 4, 5, 6]], p, rtol=1e-12)


def test_fit_at_the_start(scored, files):
    """Three of four right at odds of three to one: T = 1 is the best already."""
    x = np.zeros((4, 2))
    x[:, 0] = np.log(3.0)
    report = scored(*files(x, np.array([0, 0, 0, 1])), "--fit-temperature")
    assert report["temperature"] == pytest.approx(1, rel=1e-12)


def test_label_smoothing_takes_part_in_the_fit(scored, files):
    x = np.zeros((3, 2))
    x[:, 0] = 5.0
    report = scored(*files(x, np.zeros(3, int)), "--fit-temperature", "--label-smoothing", 0.2)
    assert 5 / report["temperature"] == pytest.approx(np.log(9), rel=1e-9)  # p = 0.9


@pytest.mark.parametrize(
    ("x", "y", "word"),
    [
        (np.eye(3) * 9, np.arange(3), "falls"),
        (np.eye(3) * 900, np.arange(3), "flat"),
        (np.eye(3) * 1e-5, np.arange(3), "goes to 0"),
        (np.eye(3), np.array([1, 2, 0]), "infinity"),
        (np.ones((3, 3)), np.arange(3), "flat"),
        (np.array([[0.0, -np.inf]]), np.array([1]), "inf"),
        (np.array([[0.0, np.nan]]), np.array([1]), "nan"),
        (np.zeros((0, 3)), np.zeros(0, int), "nan"),
    ],
)
def test_temperatures_that_do_not_exist(run, files, tmp_path, x, y, word):
    result = run("score", *files(x, y), "--fit-temperature", "--probs", tmp_path / "p.npy")
    refused(result, "temperature", "" if word == "falls" else word, status=1)
    assert not (tmp_path / "p.npy").exists()


def test_text_output_shows_both_temperatures(run, files):
    x, y = draw()
    status, out, _ = run("score", *files(x * 2, y), "--fit-temperature")
    assert status == 0
    head = next(line for line in out.splitlines() if "T = " in line)
    assert head.count("T = ") == 2


# --- score: plots and progress ------------------------------------------------


@pytest.mark.parametrize("argv", [[], ["--fit-temperature"]])
def test_plot_is_a_png_and_touches_no_global_state(scored, files, tmp_path, argv):
    x, y = draw(rows=2000)
    path = tmp_path / "p.png"
    scored(*files(x * 3, y), "--plot", path, *argv)
    assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    from matplotlib import image

    pixels = image.imread(path)
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > (900 if argv else 400)
    assert len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)) > 10
    assert "matplotlib.pyplot" not in sys.modules or not sys.modules["matplotlib.pyplot"].get_fignums()


def test_no_progress_bar_in_a_pipe(files):
    x, y = draw()
    process = spawn("score", *files(x, y))
    out, err = process.communicate()
    assert process.returncode == 0
    assert err == ""
    assert "mean loss" in out


@pytest.mark.parametrize("command", ["score", "bench"])
def test_progress_bar_on_a_terminal(files, command):
    import fcntl
    import pty
    import struct
    import termios

    argv = files(*draw()) if command == "score" else ("--shape=2,3", "--op=softmax", "--peers=idiom", "--seconds=0.2")
    controller, terminal = pty.openpty()
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))  # a bar needs room
    process = spawn(command, *argv, stderr=terminal)
    os.close(terminal)
    shown = b""
    while True:
        try:
            part = os.read(controller, 4096)
        except OSError:  # Linux's way to say that the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(controller)
    assert process.communicate()[0]
    assert process.returncode == 0
    assert b"%|" in shown


def test_terminal_without_tqdm(capsys, monkeypatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setitem(sys.modules, "tqdm", None)
    with _common.progress(10, "row") as bar:
        bar.update(3)
        bar.set_description("x")
    assert 'pip install "fastsoftmax[demo]"' in capsys.readouterr().err


# --- files ------------------------------------------------


@pytest.mark.parametrize("shape", [(), (0,), (1,), (7,), (3, 0), (2, 3, 4), (5, 1, 6)])
@pytest.mark.parametrize("size", [1, 2, 5, 12, 100])
def test_blocks_cover_everything_once(shape, size):
    seen = np.zeros(shape, int)
    for index in _files.blocks(shape, size):
        seen[index] += 1
        assert 1 <= seen[index].size <= size
    assert (seen == 1).all()
    assert size < 100 or len(list(_files.blocks(shape, size))) == (seen.size > 0)


def test_drafts_of_others_are_not_touched(tmp_path):
    other = tmp_path / f".p.npy.{os.getpid()}.tmp"
    other.write_text("not ours")
    with pytest.raises(FileExistsError), _files.written_beside({"p": tmp_path / "p.npy"}):
        pass
    assert other.read_text() == "not ours"


# --- exact results and errors in ULP ------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_ulp_error(dtype):
    info = np.finfo(dtype)
    one = np.ones(1, dtype)

    def error(got, result):
        return ulp_error(np.array([got], dtype), np.array([result], np.longdouble))

    assert error(1, 1) == 0
    assert ulp_error(np.nextafter(one, dtype(2)), one.astype(np.longdouble)) == 1
    assert ulp_error(np.nextafter(one, dtype(0)), one.astype(np.longdouble)) == 0.5  # the unit is that of the result
    assert error(1, np.longdouble(1) + np.longdouble(info.eps) / 4) == 0.25
    assert error(2, np.longdouble(2) - np.longdouble(info.eps) / 2) == 0.5
    assert error(-4 * (1 + info.eps), -4) == 1
    tiny = info.smallest_subnormal
    assert error(3 * tiny, np.longdouble(tiny)) == 2
    assert error(0, np.longdouble(info.tiny)) == 2**info.nmant
    assert error(tiny, 0) == 1
    assert error(np.nan, np.nan) == error(np.inf, np.inf) == 0
    assert error(np.inf, np.longdouble(info.max) * 2) == 0
    for got, result in ((np.nan, 1), (1, np.nan), (np.inf, 1), (1, np.inf), (np.inf, -np.inf)):
        assert error(got, result) == np.inf
    assert ulp_error(one[:0], one[:0].astype(np.longdouble)) == 0


def test_exact_results_are_those_of_the_definition():
    x, y = draw(rows=5, dtype=np.float32)
    op, (loss, grad) = exact(fastsoftmax.cross_entropy_value_and_grad, x, y, reduction="none", scale=0.5)
    assert op is OPS["cross_entropy_index_grad"]
    assert loss.dtype == grad.dtype == np.longdouble
    np.testing.assert_allclose(loss.astype(float), reference_losses(x, y, 0.5), rtol=1e-14)
    z = x.astype(np.longdouble) / 2
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    p[np.arange(5), y] -= 1
    np.testing.assert_allclose(grad, p / 2, rtol=0, atol=1e-18)
    backend = fastsoftmax._backends.current().name
    assert backend in fastsoftmax.available_backends()  # the oracle was put away


def test_magnitudes_follow_the_table():
    result = np.array([[0.5, -3.0], [0.0, 0.25]], np.longdouble)
    np.testing.assert_array_equal(magnitude(OPS["softmax"], 0, result), np.abs(result))
    np.testing.assert_array_equal(magnitude(OPS["softmax_jvp"], 0, result), [[3, 3], [0.25, 0.25]])
    np.testing.assert_array_equal(magnitude(OPS["logsumexp"], 0, result[0]), [1, 3])


# --- bench ------------------------------------------------

TINY = ("--shape", "6,5", "--seconds", "0.05", "--backends", "numpy", "--json")


def test_every_public_function_of_the_table_can_be_timed(run):
    names = {name for op in OPS.values() for name in op.public}
    assert set(bench.FUNCTIONS) == names
    for dtype in ("float32", "float64"):
        argv = [word for name in sorted(names) for word in ("--op", name)]
        status, out, err = run("bench", *TINY, "--peers", "idiom,scipy", "--dtype", dtype, *argv)
        assert (status, err) == (0, "")
        cases = json.loads(out)["cases"]
        assert [case["op"] for case in cases] == sorted(names)
        for case in cases:
            assert case["shape"] == [6, 5]
            assert case["memcpy_seconds"] > 0
            ours = case["results"][0]
            assert ours["name"] == "fastsoftmax numpy"
            assert ours["fault"] is None
            assert ours["ulp"] <= 0.5 + 1e-3
            assert ours["turns"] >= 1
            assert ours["memcpy_multiple"] == pytest.approx(ours["seconds"] / case["memcpy_seconds"])
            for peer in case["results"][1:]:
                assert peer["fault"] is None
                assert 0 < peer["seconds"] < 1
        theirs = {case["op"]: len(case["results"]) - 1 for case in cases}
        assert theirs["softmax"] == 2
        assert theirs["cross_entropy_value_and_grad"] == 1
        assert theirs["softmax_jacobian"] == 0


def test_bench_table(run):
    status, out, err = run(
        "bench", "--op", "softmax", "--shape", "4,3", "--seconds", "0.05", "--backends", "numpy", "--peers", "idiom"
    )
    assert (status, err) == (0, "")
    assert out.startswith("softmax, 4 x 3 float32, ")
    assert "memcpy" in out
    assert f"NumPy idiom {np.__version__}" in out


def test_bench_uses_every_usable_backend_and_installed_peer(run):
    """In a process of its own: some peers keep settings for good."""
    timed = [name for name in bench.FUNCTIONS if PEERS["idiom"][2](name, [], 1)]
    argv = [word for name in timed for word in ("--op", name)]
    process = spawn("bench", "--shape", "300,50", "--seconds", "0.5", "--json", *argv)
    out, err = process.communicate()
    assert process.returncode == 0, err
    usable = [name for name, reason in fastsoftmax.available_backends().items() if reason is None]
    jax = importlib.util.find_spec("jax") is not None
    for case in json.loads(out)["cases"]:
        assert [r["name"] for r in case["results"] if r["ours"]] == [f"fastsoftmax {name}" for name in usable]
        assert [r["fault"] for r in case["results"]] == [None] * len(case["results"])
        assert any(r["name"].startswith("JAX ") for r in case["results"]) == jax


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("peer", ["scipy", "torch", "onnxruntime"])
def test_peers_compute_what_plain_numpy_does(peer, dtype):
    """JAX is left to a process of its own: after its import no test may fork."""
    _, packages, make = PEERS[peer]
    for package in packages:
        pytest.importorskip(package)
    seen = set()
    for name in bench.FUNCTIONS:
        operands = bench.make_operands(name, 40, 30, dtype)
        call = make(name, operands, 2)
        if call is None:
            continue
        wide = [a.astype(np.float64) if a.dtype.kind == "f" else a for a in operands]
        expected = bench._parts(PEERS["idiom"][2](name, wide, 1)())
        for _ in range(2):  # the second call reuses the memory of the first
            for got, want in zip(bench._parts(call()), expected, strict=True):
                assert got.dtype == dtype
                np.testing.assert_allclose(
                    got, want, rtol=2e-5 if dtype == "float32" else 1e-12, atol=1e-6 if dtype == "float32" else 1e-15
                )
        seen.add(name)
    assert {"softmax", "log_softmax", "logsumexp"} <= seen
    assert peer != "torch" or {"cross_entropy_value_and_grad", "softmax_vjp", "log_softmax_vjp"} <= seen


def test_a_wrong_result_of_ours_fails_the_run(run, monkeypatch):
    honest = fastsoftmax.softmax
    monkeypatch.setattr(fastsoftmax, "softmax", lambda *a, **k: honest(*a, **k) * np.float32(1 + 1e-6))
    status, out, _ = run("bench", *TINY, "--op", "softmax", "--peers", "idiom")
    ours, peer = json.loads(out)["cases"][0]["results"]
    assert status == 1
    assert "wrong by" in ours["fault"]
    assert ours["seconds"] is None
    assert peer["fault"] is None


def test_wrong_and_failing_peers_are_reported(run, monkeypatch):
    def wrong(op, operands, threads):
        return lambda: operands[0]

    def failing(op, operands, threads):
        raise RuntimeError("no such\ninstruction")

    monkeypatch.setitem(PEERS, "idiom", ("Wrong", ("numpy",), wrong))
    monkeypatch.setitem(PEERS, "scipy", ("Failing", ("numpy",), failing))
    status, out, _ = run("bench", *TINY, "--op", "softmax", "--peers", "idiom,scipy")
    faults = [r["fault"] for r in json.loads(out)["cases"][0]["results"]]
    assert status == 0
    assert faults[0] is None
    assert "wrong by" in faults[1]
    assert faults[2] == "failed: no such instruction"
    assert "wrong by" in run("bench", *TINY[:-1], "--op", "softmax", "--peers", "idiom")[1]


def test_what_is_not_there_cannot_be_asked_for(run, monkeypatch):
    monkeypatch.setitem(PEERS, "idiom", ("Nothing", ("numpy", "no_such_package"), PEERS["idiom"][2]))
    refused(run("bench", *TINY, "--peers", "idiom"), "idiom", "pip install no_such_package")
    monkeypatch.setattr("fastsoftmax._backends.available_backends", lambda: {"numpy": "it is too slow"})
    refused(run("bench", *TINY), "numpy cannot run: it is too slow")


def test_turns_share_the_time():
    class Fake(bench.Candidate):
        def turn(self):
            self.times.append(self.cost)
            self.spent += self.cost

    fast, slow = (Fake(name, True, lambda: None) for name in ("fast", "slow"))
    fast.cost, slow.cost = 0.01, 10.0
    bench.take_turns([fast, slow], 0.2, _common.progress(1, "s"))
    assert len(slow.times) == 1
    assert len(fast.times) == 10


@pytest.mark.parametrize("threads", [1, 3])
def test_memcpy_copies_everything(threads):
    x = np.arange(600_001.0)
    with bench.ThreadPoolExecutor(threads) as pool:
        copy = bench._memcpy(x, threads, pool)
        copy()
    targets = [cell.cell_contents for cell in copy.__closure__]
    if threads == 1:
        np.testing.assert_array_equal(next(a for a in targets if isinstance(a, np.ndarray) and a is not x), x)
    else:
        pairs = next(a for a in targets if isinstance(a, list))
        np.testing.assert_array_equal(np.concatenate([to for to, _ in pairs]), x)


# --- demo ------------------------------------------------


@pytest.fixture
def small_demo(monkeypatch):
    """Make the demo's wide batch small."""
    monkeypatch.setattr(demo, "WIDE_ROWS", 4)
    monkeypatch.setattr(demo, "ROUNDS", 1)


def test_demo(run, small_demo):
    status, out, err = run("demo", "--json")
    assert (status, err) == (0, "")
    report = json.loads(out)
    assert report["ok"] is True
    assert len(report["checks"]) == 5
    digits = report["digits"]
    for name in ("ours", "numpy"):
        assert digits[name]["test_accuracy"] > 0.95
        assert digits[name]["seconds"] > 0
    assert digits["ours"]["loss"] == pytest.approx(digits["numpy"]["loss"], rel=1e-6)
    assert digits["training_rows"] + digits["test_rows"] == 1797
    assert digits["ours"]["gradient_ulp"] <= 4 < digits["numpy"]["gradient_ulp"]
    assert digits["ratio"] == pytest.approx(digits["numpy"]["seconds"] / digits["ours"]["seconds"])
    assert report["wide"]["classes"] == 32000
    assert report["wide"]["ours"]["gradient_ulp"] <= 4


def test_demo_fails_when_a_check_fails(run, small_demo, monkeypatch):
    honest = demo.Ours.__call__

    def wrong(self, logits, labels):
        value, grad = honest(self, logits, labels)
        return value, grad * (1 + 1e-5)

    monkeypatch.setattr(demo.Ours, "__call__", wrong)
    status, out, _ = run("demo")
    assert status == 1
    assert out.count("FAILED") == 2
    assert "ok      test accuracy above 95 %" in out
