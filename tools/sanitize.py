"""Run the compiled backend under the sanitizers: ``python tools/sanitize.py [address] [thread] [--short]``.

The tree is copied to ``build/sanitize-NAME`` and the extension built there with gcc's AddressSanitizer and
UndefinedBehaviorSanitizer ("address") or ThreadSanitizer ("thread"); the package that you use stays as it is.  Then the
tests that concern it run there, on every instruction set.  The exit status is 1 if a test failed or anything was
reported; the reports are printed.  Needs gcc with its sanitizers, and the packages of the extra ``test``.

``--short`` runs fewer tests, and builds in a place of its own, without the checks that compile longest.

The interpreter is not instrumented, so the sanitizer's library is loaded before it.  It does not look for leaks: the
interpreter itself leaves memory behind at its end.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
COPIED = ("fastsoftmax", "csrc", "tests", "tools", "setup.py", "pyproject.toml", "README.md", "LICENSE")


@dataclass(frozen=True)
class Sanitizer:
    """How to build and what to run; the runs are pytest's arguments, the first few of them the short version."""

    flags: str
    left_out: str  # of the short version's build
    libraries: tuple[str, ...]
    options: dict[str, str]
    runs: tuple[str, ...]
    short: int


COMPILED = "-k 'cython and not numba'"
SANITIZERS = {
    "address": Sanitizer(
        # Calls to the checks instead of their code in every place find the same, and compile faster.
        flags="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
        " --param asan-instrumentation-with-call-threshold=0",
        # Half of the time: 88 s for kernels_avx2.c, 40 without.  What such a pointer is used for,
        # AddressSanitizer reports all the same.
        left_out="-fno-sanitize=null,object-size,pointer-overflow",
        libraries=("libasan.so", "libubsan.so"),
        options={"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "print_stacktrace=1"},
        runs=(
            "tests/test_bits.py -k 'cython and (anywhere or test_threads)'",
            f"tests/test_bits.py tests/test_layouts.py {COMPILED}",
            f"tests/test_threads.py {COMPILED} --deselect tests/test_threads.py::test_beside_pytorch",
            f"tests/test_conformance.py tests/test_mpmath.py tests/test_regressions.py tests/test_memory.py {COMPILED}",
            f"tests/test_api.py tests/test_loss.py tests/test_laws.py tests/test_backends.py {COMPILED}",
        ),
        short=1,
    ),
    "thread": Sanitizer(
        flags="-fsanitize=thread",
        left_out="",
        libraries=("libtsan.so",),
        # A child forked while there are threads may start new ones: that is what is tested.
        options={"TSAN_OPTIONS": "die_after_fork=0"},
        runs=(
            "tests/test_backends.py tests/test_threads.py -k 'cython and not numba and not pytorch and not scikit'",
            f"tests/test_bits.py tests/test_layouts.py tests/test_loss.py tests/test_api.py {COMPILED}",
        ),
        short=1,
    ),
}


def library(name: str) -> str:
    """Return the path of one of gcc's libraries."""
    found = subprocess.run(
        ["gcc", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise SystemExit(f"sanitize: gcc has no {name}; install its sanitizers")
    return found


def build(name: str, short: bool) -> Path:
    """Copy the tree and build the extension in the copy, from where it was left the last time."""
    place = ROOT / "build" / f"sanitize-{name}{'-short' if short else ''}"
    place.mkdir(parents=True, exist_ok=True)
    ignored = shutil.ignore_patterns("*.so", "__pycache__", "_native.c")
    for item in COPIED:
        if (ROOT / item).is_dir():
            shutil.copytree(ROOT / item, place / item, dirs_exist_ok=True, ignore=ignored)
        else:
            shutil.copy2(ROOT / item, place / item)
    # Lines and names (-g1) are all that a report prints.
    flags = [SANITIZERS[name].flags, SANITIZERS[name].left_out if short else "", "-g1"]
    result = subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--inplace"],
        cwd=place, env=os.environ | {"CFLAGS": " ".join(flags)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if result.returncode or "could not be built" in result.stderr:
        raise SystemExit(f"sanitize: the build for {name!r} failed\n{result.stderr}")
    return place


def check(name: str, place: Path, short: bool) -> bool:
    """Run the tests in the copy; return whether they pass and nothing was reported."""
    chosen = SANITIZERS[name]
    reports = place / "reports"
    shutil.rmtree(reports, ignore_errors=True)
    reports.mkdir()
    # pytest and child processes swallow what a sanitizer writes to stderr: let it write files.
    options = {k: f"{v}:log_path={reports}/{k.lower()}" for k, v in chosen.options.items()}
    env = os.environ | options | {"LD_PRELOAD": " ".join(map(library, chosen.libraries)), "PYTHONPATH": str(place)}
    passed = True
    for run in chosen.runs[: chosen.short if short else None]:
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *shlex.split(run)]
        result = subprocess.run(
            command, cwd=place, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        print(f"sanitize {name}: pytest {run}\n{result.stdout}", flush=True)
        passed &= result.returncode == 0
    for report in sorted(reports.iterdir()):
        passed = False
        print(f"--- {report.name}\n{report.read_text(errors='replace')[:6000]}")
    return passed


def main() -> int:
    """Build for the sanitizers named and run each, side by side."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="SANITIZER", help=f"of {', '.join(SANITIZERS)} (default: all)")
    parser.add_argument("--short", action="store_true", help="fewer tests")
    arguments = parser.parse_args()
    names = arguments.names or list(SANITIZERS)
    if not set(names) <= set(SANITIZERS):
        parser.error(f"SANITIZER is one of {', '.join(SANITIZERS)}; got {', '.join(names)}")
    with ThreadPoolExecutor(len(names)) as pool:
        clean = list(pool.map(lambda name: check(name, build(name, arguments.short), arguments.short), names))
    for name, ok in zip(names, clean, strict=True):
        print(f"sanitize {name}: {'clean' if ok else 'FOUND SOMETHING'}")
    return 0 if all(clean) else 1


if __name__ == "__main__":
    sys.exit(main())
