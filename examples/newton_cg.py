"""Softmax regression by Newton's method with conjugate gradients, beside scikit-learn's.

The method asks for the Hessian times directions only.  With logits Z = X W, X's last column all ones, that is
X^T (H_Z (X V)) for the direction V, and ``cross_entropy_hvp`` is H_Z times a direction, without the matrix.  SciPy's
"Newton-CG" does the rest.  Both minimise the mean loss plus |W|^2 / (2 C n), the intercepts' row of W left out of the
penalty, and have to arrive at the same objective, within TOLERANCE (relative).

Install and run, in the root of the sources::

    python -m pip install ".[examples]"
    python examples/newton_cg.py

The exit status is 1 if the objectives differ by more.  The ratio of the times is printed, and decides nothing: it
holds for this size and this machine.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression

import fastsoftmax as fs

ROWS, FEATURES, CLASSES = 600, 20, 10
C = 1.0
TOLERANCE = 1e-9
# It arrives after 8 steps; with half or twice the Hessian it is not there after 10.
STEPS = 10
REPEATS = 5

Array = NDArray[np.float64]


class Objective:
    """Mean cross-entropy plus the penalty, of the flattened W with the intercepts in the last row."""

    def __init__(self, x: Array, labels: NDArray[np.int64]) -> None:
        self.x = np.column_stack([x, np.ones(len(x))])
        self.labels = labels
        # The intercept is not penalised.
        self.penalty = np.full((self.x.shape[1], 1), 1 / (C * len(x)))
        self.penalty[-1] = 0
        self.theta, self.z = np.empty(0), np.empty(0)

    def matrix(self, flat: Array) -> Array:
        """Return W with a column per class."""
        return flat.reshape(self.x.shape[1], CLASSES)

    def logits(self, theta: Array) -> Array:
        """Return the logits; those of the same theta are kept, for the many products with its Hessian."""
        if not np.array_equal(theta, self.theta):
            self.theta, self.z = theta.copy(), self.x @ self.matrix(theta)
        return self.z

    def value_and_grad(self, theta: Array) -> tuple[float, Array]:
        """Return the objective and its gradient."""
        w = self.matrix(theta)
        value, grad = fs.cross_entropy_value_and_grad(self.logits(theta), self.labels)
        shrink = self.penalty * w
        return float(value + (shrink * w).sum() / 2), (self.x.T @ grad + shrink).ravel()

    def hvp(self, theta: Array, direction: Array) -> Array:
        """Return the Hessian times a direction."""
        v = self.matrix(direction)
        hv = fs.cross_entropy_hvp(self.logits(theta), self.labels, self.x @ v)
        product: Array = (self.x.T @ hv + self.penalty * v).ravel()
        return product


def made_data(rng: np.random.Generator) -> tuple[Array, NDArray[np.int64]]:
    """Draw points, and their classes from a softmax model."""
    x = rng.normal(size=(ROWS, FEATURES))
    score = x @ rng.normal(size=(FEATURES, CLASSES))
    return x, np.argmax(score + rng.gumbel(scale=2, size=score.shape), axis=1)


def fit_fastsoftmax(x: Array, labels: NDArray[np.int64]) -> Array:
    """Return the optimal W, flattened."""
    objective = Objective(x, labels)
    start = np.zeros(objective.x.shape[1] * CLASSES)
    result = minimize(
        objective.value_and_grad, start, jac=True, hessp=objective.hvp, method="Newton-CG",
        options={"xtol": 1e-6, "maxiter": STEPS},
    )  # fmt: skip
    theta: Array = result.x
    return theta


def fit_sklearn(x: Array, labels: NDArray[np.int64]) -> Array:
    """Return the optimal W, flattened."""
    model = LogisticRegression(solver="newton-cg", C=C, tol=1e-6, max_iter=200).fit(x, labels)
    theta: Array = np.vstack([model.coef_.T, model.intercept_]).ravel()
    return theta


def timed(fit: Callable[..., Array], *args: object) -> tuple[float, Array]:
    """Return the least of some times in seconds, and the result."""
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter()
        theta = fit(*args)
        times.append(time.perf_counter() - begin)
    return min(times), theta


def main() -> int:
    """Fit both, print both objectives and the ratio of the times, and return the exit status."""
    x, labels = made_data(np.random.default_rng(0))
    objective = Objective(x, labels)
    seconds, values = [], []
    for name, fit in {"scikit-learn": fit_sklearn, "fastsoftmax": fit_fastsoftmax}.items():
        elapsed, theta = timed(fit, x, labels)
        value, grad = objective.value_and_grad(theta)
        seconds.append(elapsed)
        values.append(value)
        print(f"{name:12}  objective {value:.12f}  largest gradient {abs(grad).max():.0e}  {1e3 * elapsed:6.1f} ms")
    difference = abs(values[1] - values[0]) / values[0]
    print(f"relative difference {difference:.1e}, allowed {TOLERANCE:.0e}")
    print(f"scikit-learn's time / fastsoftmax's: {seconds[0] / seconds[1]:.2f}")
    return int(not difference <= TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
