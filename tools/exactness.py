"""Print the worst errors in ULP of this library and of others: ``python tools/exactness.py [--large]``.

Each kind of input is a family of the tests (``tests/cases.py``); the exact results are the table's definitions in long
double.  ``--large`` adds rows of a million and of ten million classes, which takes some GB and some minutes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import rooms  # noqa: E402
from cases import FAMILIES  # noqa: E402

import fastsoftmax as fs  # noqa: E402
from fastsoftmax._cli import _exact, _peers  # noqa: E402

KINDS = {
    "N(0, 0.1)": "sigma0.1",
    "N(0, 1)": "normal",
    "N(0, 10)": "sigma10",
    "N(0, 100)": "sigma100",
    "N(0, 1000)": "sigma1000",
    "N(1e4, 3)": "shift+1e+04",
    "N(1e6, 3)": "shift+1e+06",
    "N(-1e6, 3)": "shift-1e+06",
    "N(1e12, 3)": "shift+1e+12",
    "N(-1e12, 3)": "shift-1e+12",
    "one class leads by 30": "dominating+30",
    "one class leads by 200": "dominating+200",
    "ties": "ties",
    "at the limits of exp": "cutoffs",
    "subnormal results": "subnormal",
}
OPERATIONS = ("softmax", "log_softmax", "logsumexp", "cross_entropy")
PEERS = ("torch", "onnxruntime", "scipy", "jax")
CLASSES, LARGE = (1, 2, 10, 100, 1000, 32000), (10**6, 10**7)
MOST = 200_000  # elements of one kind at a time, if that is more than a row

Errors = dict[tuple[str, str, int, str], float]  # by operation, kind, classes, contender


def rows_of(kind: str, dtype: np.dtype, classes: int) -> Any:
    """Return logits of one kind."""
    rng = np.random.default_rng(zlib.crc32(f"{kind} {dtype} {classes}".encode()))
    return FAMILIES[KINDS[kind]](rng, dtype, min(max(MOST // classes, 1), 200), classes).astype(dtype)


def results(op: str, operands: list[Any]) -> dict[str, Any]:
    """Return what every contender computes; one that has no such operation is absent."""
    found = {}
    more = {"reduction": "none"} if op == "cross_entropy" else {}
    for room in rooms.usable():
        if room.backend != "numpy":
            with room.use():
                found[room.id] = np.asarray(getattr(fs, op)(*operands, **more))
    for peer in PEERS:
        title, _, function = _peers.PEERS[peer]
        try:
            call = function(op, operands, fs.get_num_threads())
            if call is not None:
                found[title] = np.asarray(call()).copy()
        except Exception as error:  # a package or one of its kernels is missing
            print(f"{title}, {op}, {operands[0].dtype}: {type(error).__name__}: {str(error)[:90]}", file=sys.stderr)
    return found


def measure(dtype: np.dtype, classes: int, errors: Errors) -> None:
    """Enter the errors of all operations for one number of classes."""
    kinds = {kind: x for kind in KINDS if not (dtype.itemsize == 4 and "1e12" in kind)
             for x in [rows_of(kind, dtype, classes)]}  # fmt: skip
    # A row's result does not depend on its neighbours': all kinds go into one call, as long as they fit.
    batches = [[kind] for kind in kinds] if classes > MOST else [list(kinds)]
    for batch in batches:
        x = np.concatenate([kinds[kind] for kind in batch])
        rng = np.random.default_rng(0)
        labels = np.where(rng.random(len(x)) < 0.5, x.argmax(-1), rng.integers(classes, size=len(x)))
        for op in OPERATIONS:
            more = {"reduction": "none"} if op == "cross_entropy" else {}
            operands = [x, labels] if op == "cross_entropy" else [x]
            row, (exact, *_) = _exact.exact(getattr(fs, op), *operands, **more)
            size = _exact.magnitude(row, 0, exact)
            for contender, got in results(op, operands).items():
                start = 0
                for kind in batch:
                    part = slice(start, start := start + len(kinds[kind]))
                    error = _exact.ulp_error(got[part], exact[part], size[part])
                    errors[op, kind, classes, contender] = error


def shown(error: float) -> str:
    """Return an error with as many digits as mean something."""
    return f"{error:.1f}" if error < 99.5 else f"{error:.2g}"


def print_table(title: str, errors: Errors, index: int) -> None:
    """Print the worst errors by operation and one more property."""
    contenders = list(dict.fromkeys(key[3] for key in errors))
    print(f"\n### {title}\n\n| operation | {['', 'input', 'classes'][index]} | {' | '.join(contenders)} |")
    print("|---|---|" + "---|" * len(contenders))
    for op in OPERATIONS:
        for value in dict.fromkeys(key[index] for key in errors):
            cells = [max((e for k, e in errors.items() if (k[0], k[index], k[3]) == (op, value, c)), default=None)
                     for c in contenders]  # fmt: skip
            print(f"| {op} | {value} | {' | '.join('-' if e is None else shown(e) for e in cells)} |")


def main() -> None:
    """Print the tables as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=lambda s: tuple(map(int, s.split(","))), default=CLASSES, help="a,b,c")
    parser.add_argument("--large", action="store_true", help="a million and ten million classes, too")
    arguments = parser.parse_args()
    cpu = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    versions = []
    for name in ("numpy", "numba", *PEERS):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    machine = cpu.group(1) if cpu else platform.machine()
    print(f"{machine}; Python {platform.python_version()}; fastsoftmax {fs.__version__}; {'; '.join(versions)}.")
    for dtype in (np.dtype(np.float32), np.dtype(np.float64)):
        errors: Errors = {}
        for classes in (*arguments.classes, *(LARGE if arguments.large else ())):
            measure(dtype, classes, errors)
        print_table(f"{dtype}, by kind of input", errors, 1)
        print_table(f"{dtype}, by number of classes", errors, 2)


if __name__ == "__main__":
    main()
