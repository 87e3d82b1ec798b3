"""The linear layer fused with the cross-entropy: time, also in multiples of its matrix products', and memory."""

from __future__ import annotations

import tracemalloc
from typing import Any

import numpy as np

import fastsoftmax

from .common import BACKENDS, DTYPES, TINY, enter, ratio

# Rows, features, classes: a language model's last layer, and one with few classes.
SHAPES = ((9, 5, 33), (40, 3, 7)) if TINY else ((2048, 512, 50257), (16384, 256, 1000))


class ValueAndGrad:
    """``linear_cross_entropy_value_and_grad``."""

    params = (
        [f"{dtype}-{backend}" for backend in BACKENDS for dtype in DTYPES],
        ["x".join(map(str, shape)) for shape in SHAPES],
    )
    param_names = ("case", "shape")
    timeout = 180

    def setup(self, case: str, shape: str) -> None:
        """Make the operands, compute once, and check the result's first rows."""
        dtype, backend = case.split("-")
        rows, features, classes = map(int, shape.split("x"))
        if backend == "numpy" and rows * classes > 1 << 20:
            raise NotImplementedError("the reference backend is too slow for this shape")
        enter(backend)
        if not hasattr(fastsoftmax, "linear_cross_entropy_value_and_grad"):
            raise NotImplementedError("this commit has no linear_cross_entropy")
        rng = np.random.default_rng(0)
        self.x = rng.standard_normal((rows, features)).astype(dtype)
        self.w = (rng.standard_normal((classes, features)) / features**0.5).astype(dtype)
        self.y = rng.integers(0, classes, rows)
        _, grads = self.call()
        n = min(rows, 64)
        g = fastsoftmax.cross_entropy_value_and_grad(self.x[:n] @ self.w.T, self.y[:n], reduction="sum").grad
        error = np.abs(grads[0][:n] - g @ self.w / rows).max() * rows
        if not error <= 1e4 * np.finfo(dtype).eps:
            raise AssertionError(f"the gradient is wrong by {error:.3g}")

    def call(self) -> Any:
        return fastsoftmax.linear_cross_entropy_value_and_grad(self.x, self.w, self.y)

    def products(self) -> Any:
        z = self.x @ self.w.T
        return z @ self.w, z.T @ self.x

    def time_call(self, case: str, shape: str) -> None:
        """Time the call."""
        self.call()

    def peakmem_call(self, case: str, shape: str) -> None:
        """Measure the process's peak memory."""
        self.call()

    def track_products(self, case: str, shape: str) -> float:
        """Return the call's time in multiples of that of its three matrix products alone, with all logits in memory."""
        return ratio(self.call, self.products)

    def track_excess(self, case: str, shape: str) -> int:
        """Return the bytes beyond the results."""
        tracemalloc.start()
        try:
            _, grads = self.call()
            return tracemalloc.get_traced_memory()[1] - sum(g.nbytes for g in grads if g is not None)
        finally:
            tracemalloc.stop()

    track_products.unit = "x three products"  # type: ignore[attr-defined]
    track_excess.unit = "bytes"  # type: ignore[attr-defined]
