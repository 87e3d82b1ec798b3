"""What a call costs whatever the size: calls on the smallest array, where the arithmetic takes no time to speak of."""

from __future__ import annotations

import statistics
import time
from typing import Any

from .common import OPS, Job, job, loops_for, per_op, repeated, shapes


class _Overhead:
    """The smallest shape class, by dtype and backend."""

    op: Any
    param_names = ("case",)
    timeout = 60

    made: Job

    def setup(self, case: str) -> None:
        """Make the operands, compute once, check the result."""
        self.made = job(self.op, case, next(iter(shapes(self.op))))

    def track_microseconds(self, case: str) -> float:
        """Return the microseconds of a call into memory that is reused: the median of samples of many calls."""
        loops = loops_for(self.made.call, 0.005)
        several = repeated(self.made.call, loops)
        samples = []
        for _ in range(21):
            start = time.perf_counter()
            several()
            samples.append(time.perf_counter() - start)
        return statistics.median(samples) / loops * 1e6

    track_microseconds.unit = "us"  # type: ignore[attr-defined]


globals().update({name: per_op(name, _Overhead) for name in OPS})
