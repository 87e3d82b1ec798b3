"""LightGBM with a softmax objective of one call, beside its own ``multiclass``.

LightGBM's diagonal of the Hessian is C / (C - 1) p (1 - p): ``kind="friedman"``.  It wants gradients class after class:
with ``order="F"`` they are written that way.  With the same data and parameters both have to arrive at the same
validation loss, within TOLERANCE (relative).

Install and run, in the root of the sources::

    python -m pip install ".[examples]"
    python examples/lightgbm_objective.py

The exit status is 1 if the losses differ by more.
"""

from __future__ import annotations

import sys
from typing import Any

import lightgbm as lgb
import numpy as np
from numpy.typing import NDArray

import fastsoftmax as fs

CLASSES = 5
ROUNDS = 20
TOLERANCE = 1e-6
# Only the built-in objective would begin at the logarithms of the classes' frequencies; a custom one begins at 0.
PARAMS: dict[str, Any] = {
    "num_class": CLASSES, "num_leaves": 15, "learning_rate": 0.3, "boost_from_average": False, "num_threads": 1,
    "deterministic": True, "verbose": -1,
}  # fmt: skip


def multiclass(scores: NDArray[np.float64], data: lgb.Dataset) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return gradient and Hessian's diagonal of the weighted sum of the rows' losses."""
    labels, weights = np.asarray(data.get_label(), np.int64), data.get_weight()
    _, grad, hess = fs.cross_entropy_value_grad_hess(
        scores, labels, kind="friedman", reduction="sum", order="F",
        sample_weight=None if weights is None else np.asarray(weights),
    )  # fmt: skip
    return grad, hess


def made_data(
    rng: np.random.Generator, rows: int
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Draw points whose class depends on curved functions of some of their coordinates, and weights."""
    x = rng.normal(size=(rows, 8))
    score = np.stack([np.sin((k + 1) * x[:, k]) + x[:, 7] * x[:, k] for k in range(CLASSES)], axis=1)
    labels = np.argmax(score + rng.gumbel(scale=0.3, size=score.shape), axis=1)
    return x, labels, rng.uniform(0.5, 2, rows)


def main() -> int:
    """Train both, print both losses, and return the exit status."""
    rng = np.random.default_rng(0)
    x, labels, weights = made_data(rng, 600)
    x_valid, labels_valid, weights_valid = made_data(rng, 300)
    losses = {}
    for name, objective in {"multiclass": "multiclass", "fastsoftmax": multiclass}.items():
        model = lgb.train(PARAMS | {"objective": objective}, lgb.Dataset(x, labels, weight=weights), ROUNDS)
        scores = model.predict(x_valid, raw_score=True)
        losses[name] = float(fs.cross_entropy(scores, labels_valid, sample_weight=weights_valid))
        print(f"{name:16} validation loss {losses[name]:.7f}")
    theirs, ours = losses.values()
    difference = abs(ours - theirs) / theirs
    print(f"relative difference {difference:.1e}, allowed {TOLERANCE:.0e}")
    return int(not difference <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
