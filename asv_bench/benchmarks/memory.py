"""No operation allocates more than its result plus O(rows + threads x block)."""

from __future__ import annotations

import tracemalloc
from typing import Any

import fastsoftmax

from .common import OPS, Job, forget_peak, job, parts, per_op, resident

# A thread's block, with the temporaries of the reference backend: a dozen of 65536 long doubles.
BLOCK_BYTES = 1 << 24

# Per row: a maximum, a sum, a label, in whichever precision.
ROW_BYTES = 64


class _Memory:
    """What a call allocates beyond its result, by dtype and backend, and by shape."""

    op: Any
    param_names = ("case", "shape")
    timeout = 180

    made: Job

    def setup(self, case: str, shape: str) -> None:
        """Make the operands, compute once, check the result, and give its memory back."""
        self.made = job(self.op, case, shape)
        self.made.call = self.made.fresh

    def track_excess(self, case: str, shape: str) -> int:
        """Return the bytes beyond the result, as Python's allocators and the system count them; fail if too many."""
        excess = max(self._traced(), self._resident())
        bound = ROW_BYTES * self.made.rows + BLOCK_BYTES * fastsoftmax.get_num_threads()
        if excess > bound:
            raise AssertionError(f"{case} {shape}: {excess} bytes beyond the result; expected at most {bound}")
        return excess

    def _traced(self) -> int:
        """Count what NumPy and Python allocate: exact, but blind to the kernels' own memory."""
        tracemalloc.start()
        try:
            result = self.made.fresh()
            return tracemalloc.get_traced_memory()[1] - sum(a.nbytes for a in parts(result))
        finally:
            tracemalloc.stop()

    def _resident(self) -> int:
        """Count what the process has touched: all of it, but by pages, and only where the system tells."""
        forget_peak()
        before = resident(peak=False)
        result = self.made.fresh()
        peak = resident(peak=True)
        return 0 if before is None or peak is None else peak - before - sum(a.nbytes for a in parts(result))

    track_excess.unit = "bytes"  # type: ignore[attr-defined]


globals().update({name: per_op(name, _Memory) for name in OPS})
