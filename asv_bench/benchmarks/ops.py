"""Every operation, dtype, backend and shape class: time, peak memory, memcpy, other libraries, exactness."""

from __future__ import annotations

import importlib.util
import math
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

import fastsoftmax

from .common import OPS, Job, define, forget_peak, job, loops_for, parts, per_op, ratio, repeated, tool

# Which operations other libraries have; a test compares this with what the library's own ``bench`` command knows.
PEERS = {
    "scipy": ("softmax", "log_softmax", "logsumexp"),
    "torch": (
        "softmax",
        "log_softmax",
        "logsumexp",
        "softmax_jvp",
        "log_softmax_vjp",
        "cross_entropy_index",
        "cross_entropy_index_grad",
        "cross_entropy_probs",
        "cross_entropy_probs_grad",
    ),
}


class _Operation:
    """One operation, by dtype and backend, and by shape."""

    op: Any
    param_names = ("case", "shape")
    timeout = 180
    rounds = 2
    repeat = (3, 10, 0.5)
    warmup_time = 0.02

    made: tuple[tuple[str, str], Job] | None = None

    def setup(self, case: str, shape: str) -> None:
        """Make the operands, compute once (which compiles), check the result."""
        if self.made is None or self.made[0] != (case, shape):  # asv calls this before every sample
            self.made = None
            self.made = (case, shape), job(self.op, case, shape)
            # asv times single calls.  A sample of several, on a clock that is slower by as much, gives small calls
            # a time well above the clock's resolution.
            loops = loops_for(self.made[1].call, 0.01)
            self.sample, self.timer = repeated(self.made[1].call, loops), lambda: time.perf_counter() / loops
        self.job = self.made[1]
        forget_peak()

    def time_call(self, case: str, shape: str) -> None:
        """Time the call, into memory that is reused."""
        self.sample()

    def peakmem_call(self, case: str, shape: str) -> None:
        """Measure the peak memory of the process: operands, result and whatever the call needs beside them."""
        self.job.call = self.sample = self.job.fresh  # and the memory for reuse is given back
        self.job.fresh()

    def track_memcpy(self, case: str, shape: str) -> float:
        """Return the call's time in multiples of the time to copy the first operand, with as many threads."""
        threads = fastsoftmax.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            return ratio(self.job.call, tool("_cli.bench")._memcpy(self.job.operands[0], threads, pool))

    def track_ulp(self, case: str, shape: str) -> float:
        """Return the largest error in units in the last place, against the definition in extended precision."""
        exactness = tool("_cli._exact")
        worst = 0.0
        exact = define(self.op, self.job.block, np.longdouble)
        for k, ((_, kind), got, want) in enumerate(zip(self.op.outs, parts(self.job.call()), exact, strict=True)):
            first = self.job.row_view(got, kind)[: len(want)]
            worst = max(worst, exactness.ulp_error(first, want, exactness.magnitude(self.op, k, want)))
        return worst

    track_memcpy.unit = "x memcpy"  # type: ignore[attr-defined]
    track_ulp.unit = "ULP"  # type: ignore[attr-defined]

    def speedup(self, peer: str) -> float:
        """Return the time of another library in multiples of ours; nan if it is not there or has no such axis."""
        _, packages, make = tool("_cli._peers").PEERS[peer]
        if self.job.axis == 0 or any(importlib.util.find_spec(package) is None for package in packages):
            return math.nan
        found = (make(name, self.job.operands, fastsoftmax.get_num_threads()) for name in self.op.public)
        theirs = next(call for call in found if call is not None)
        return ratio(theirs, self.job.call)


class _BesideSciPy(_Operation):
    def track_speedup_scipy(self, case: str, shape: str) -> float:
        """Return SciPy's time in multiples of ours."""
        return self.speedup("scipy")

    track_speedup_scipy.unit = "x"  # type: ignore[attr-defined]


class _BesidePyTorch(_Operation):
    def track_speedup_torch(self, case: str, shape: str) -> float:
        """Return PyTorch's time in multiples of ours."""
        return self.speedup("torch")

    track_speedup_torch.unit = "x"  # type: ignore[attr-defined]


class _WithExtras(_Operation):
    def track_extras(self, case: str, shape: str) -> float:
        """Return the time with the extras in multiples of the time without."""
        return ratio(lambda: self.job.fresh(extras=True), self.job.fresh)

    track_extras.unit = "x"  # type: ignore[attr-defined]


def _bases(name: str) -> tuple[type, ...]:
    beside = {"scipy": _BesideSciPy, "torch": _BesidePyTorch}
    bases = [base for peer, base in beside.items() if name in PEERS[peer]]
    if getattr(OPS[name], "extras", ()):  # not in older commits
        bases.append(_WithExtras)
    return tuple(bases) or (_Operation,)


globals().update({name: per_op(name, *_bases(name)) for name in OPS})
