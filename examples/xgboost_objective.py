"""XGBoost with a softmax objective of one call, beside its own ``multi:softprob``.

XGBoost's diagonal of the Hessian is 2 p (1 - p): ``kind="upper"``.  With the same data and parameters both have to
arrive at the same validation loss, within TOLERANCE (relative).  The last bits of the gradients differ.  They decide
between splits of about the same gain, which are common in small nodes: ``min_child_weight`` keeps nodes large here.

Install and run, in the root of the sources::

    python -m pip install ".[examples]"
    python examples/xgboost_objective.py

The exit status is 1 if the losses differ by more.
"""

from __future__ import annotations

import sys

import numpy as np
import xgboost as xgb
from numpy.typing import NDArray

import fastsoftmax as fs

CLASSES = 5
ROUNDS = 20
TOLERANCE = 1e-6
# Without "base_score" the built-in objective alone would begin at the classes' frequencies.
PARAMS = {
    "num_class": CLASSES, "max_depth": 4, "min_child_weight": 10, "eta": 0.3, "base_score": 0.0, "nthread": 1,
}  # fmt: skip


def softprob(margins: NDArray[np.float32], data: xgb.DMatrix) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return gradient and Hessian's diagonal of the weighted sum of the rows' losses."""
    labels, weights = data.get_label().astype(np.int64), data.get_weight()
    _, grad, hess = fs.cross_entropy_value_grad_hess(
        margins, labels, kind="upper", reduction="sum", sample_weight=weights if weights.size else None
    )
    return grad, hess


def made_data(rng: np.random.Generator, rows: int) -> xgb.DMatrix:
    """Draw points whose class depends on curved functions of some of their coordinates, and weights."""
    x = rng.normal(size=(rows, 8))
    score = np.stack([np.sin((k + 1) * x[:, k]) + x[:, 7] * x[:, k] for k in range(CLASSES)], axis=1)
    labels = np.argmax(score + rng.gumbel(scale=0.3, size=score.shape), axis=1)
    return xgb.DMatrix(x, label=labels, weight=rng.uniform(0.5, 2, rows))


def main() -> int:
    """Train both, print both losses, and return the exit status."""
    rng = np.random.default_rng(0)
    train, valid = made_data(rng, 600), made_data(rng, 300)
    models = {
        "multi:softprob": xgb.train(PARAMS | {"objective": "multi:softprob"}, train, ROUNDS),
        "fastsoftmax": xgb.train(PARAMS, train, ROUNDS, obj=softprob),
    }
    losses = {}
    for name, model in models.items():
        margins, labels = model.predict(valid, output_margin=True), valid.get_label().astype(np.int64)
        losses[name] = float(fs.cross_entropy(margins.astype(np.float64), labels, sample_weight=valid.get_weight()))
        print(f"{name:16} validation loss {losses[name]:.7f}")
    theirs, ours = losses.values()
    difference = abs(ours - theirs) / theirs
    print(f"relative difference {difference:.1e}, allowed {TOLERANCE:.0e}")
    return int(not difference <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
