"""Measure the engine's sizes: run it on a quiet machine, and put what it finds into ``fs_tuned`` in csrc/engine.c.

Candidates are timed in turns, on calls that their size matters for.  Printed is the median time relative to the best
candidate's, averaged over the calls.  Sizes are taken one after another, each with the best of those before.  Two sizes
that differ by less than the noise are equally good: keep the one in the source.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import fastsoftmax as fs
from fastsoftmax import _native

Call = Callable[[], Any]


def softmax_of(shape: tuple[int, ...], axis: int, dtype: str) -> Call:
    """Return a softmax of an array of that shape, into an array that exists."""
    x = np.resize(np.random.default_rng(0).normal(0, 3, 1 << 16), shape).astype(dtype)
    y = np.empty_like(x)
    return lambda: fs.softmax(x, axis=axis, out=y)


def million(n: float, c: int, dtype: str = "f4") -> Call:
    """Return a softmax along axis 0 of about n million elements."""
    return softmax_of((c, int(n * 1e6) // c), 0, dtype)


def calls(name: str, n: float) -> list[Call]:
    """Return the calls that a size matters for."""
    if name == "worth_a_thread":
        return [softmax_of((2 * w // 100, 100), -1, "f4") for w in (1024, 4096, 16384, 65536)]
    if name == "run_bytes":
        return [softmax_of((int(n * 1e6) // c, c), -1, "f4") for c in (10, 1000, 8192)]
    if name == "flat_bytes":
        return [softmax_of((int(n * 1e6) // c, c), -1, "f2") for c in (10, 100, 1000, 8192)]
    if name == "by_class":
        return [million(n, c) for c in (100, 300, 1000, 5000)]
    if name == "stream_bytes":
        return [million(m, 1000) for m in (0.25, 1, 4, 16, n)]
    return [million(n, c) for c in (100, 1000, 8192)] + [million(n / 2, 1000, "f8")]


CANDIDATES = {
    "worth_a_thread": [1 << k for k in range(10, 18)],
    "run_bytes": [1 << k for k in range(15, 22)],
    "tile_bytes": [1 << k for k in range(16, 22)],
    "flat_bytes": [1 << k for k in range(13, 19)],
    "by_class": [20, 128, 512, 2048, 1 << 30],
    "stream_bytes": [1 << k for k in range(19, 28, 2)],
}


def seconds(call: Call, name: str, candidates: list[int], budget: float) -> list[float]:
    """Return the median time of a call with each candidate."""
    times: list[list[float]] = [[] for _ in candidates]
    end = time.perf_counter() + budget
    while time.perf_counter() < end or len(times[0]) < 3:
        for k, value in enumerate(candidates):
            _native.tuned(**{name: value})
            call()  # after another candidate's pages and caches
            start = time.perf_counter()
            call()
            times[k].append(time.perf_counter() - start)
    return [float(np.median(t)) for t in times]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(CANDIDATES), help=f"some of {', '.join(CANDIDATES)}")
    parser.add_argument("--million", type=float, default=60, help="elements of the large arrays, in millions")
    parser.add_argument("--seconds", type=float, default=3, help="for each call")
    options = parser.parse_args()
    for name in options.names:
        before = _native.tuned()[name]
        candidates = CANDIDATES[name]
        relative = []
        for call in calls(name, options.million):
            t = np.array(seconds(call, name, candidates, options.seconds))
            relative.append(t / t.min())
            print(f"{name}: " + "  ".join(f"{v}: {1e3 * s:.3g} ms" for v, s in zip(candidates, t)), flush=True)
        mean = np.mean(relative, axis=0)
        best = candidates[int(np.argmin(mean))]
        print(f"{name}: best {best}, in the source {before}; " + ", ".join(
            f"{v}: {m:.2f}" for v, m in zip(candidates, mean)), flush=True)  # fmt: skip
        _native.tuned(**{name: best})


if __name__ == "__main__":
    main()
