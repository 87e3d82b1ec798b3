"""``fastsoftmax demo``: a classifier trained on real data, with this library and with plain NumPy."""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _backends, _threads
from .._losses import cross_entropy_value_and_grad
from .._ops import OPS, Array
from .._version import __version__
from ._common import duration, need, print_json, progress
from ._exact import exact, ulp_error
from ._peers import idiom_value_and_grad

# One split for everybody, so that the numbers can be compared.
SEED = 0

# Strength of the L2 penalty; it makes the minimum unique, so that both fits must find the same.
L2 = 1e-2

ROUNDS = 7
WIDE_ROWS, WIDE_CLASSES = 128, 32000

# The loss and the gradient of its mean with respect to the logits.
Loss = Callable[[Array, Array], tuple[float, Array]]

_DESCRIPTION = """\
See the library at work, and check it.

1. Softmax regression on scikit-learn's handwritten digits, by SciPy's L-BFGS:
   once on the loss and gradient of this library, once on those of plain
   NumPy, from the same start.
2. The same two on a wide batch, like a language model's: 32000 classes,
   float32.

The exit status is 0 if all the checks at the end hold.  Takes less than half
a minute and no network.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the subcommand's arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="train a classifier on real data, with this library and with plain NumPy; check and compare",
        description=_DESCRIPTION,
        epilog="example:\n  fastsoftmax demo",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    return parser


# --- the two contestants --------------------------------------------------------------------------


class Ours:
    """The fused loss of this library; the gradient's memory is reused."""

    def __init__(self) -> None:
        self._grad: Array | None = None

    def __call__(self, logits: Array, labels: Array) -> tuple[float, Array]:
        """Return the mean loss and its gradient."""
        value, self._grad = cross_entropy_value_and_grad(logits, labels, grad_out=self._grad)
        return float(value), self._grad


def plain_numpy(logits: Array, labels: Array) -> tuple[float, Array]:
    """Return the mean loss and its gradient, as everybody writes them."""
    losses, grad = idiom_value_and_grad(logits, labels)
    grad /= len(labels)
    return float(losses.mean()), grad


def gradient_error(loss: Loss, logits: Array, labels: Array) -> tuple[float, float]:
    """Return the largest deviation of a gradient from the definition in extended precision, and the same in ULP."""
    _, (_, result) = exact(cross_entropy_value_and_grad, logits, labels, reduction="none", grad_output=1 / len(labels))
    got = loss(logits, labels)[1]
    return float(np.abs(got - result).max()), ulp_error(got, result)


# --- 1. digits ------------------------------------------------------------------------------------


def _digits(bar: Any) -> dict[str, Any]:
    minimize = need("scipy.optimize", "demo").minimize
    x, y = need("sklearn.datasets", "demo").load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = need("sklearn.model_selection", "demo").train_test_split(
        x, y, test_size=0.25, random_state=SEED, stratify=y
    )
    scaler = need("sklearn.preprocessing", "demo").StandardScaler().fit(x_train)
    x_train, x_test = scaler.transform(x_train), scaler.transform(x_test)
    features, classes = x.shape[1], int(y.max()) + 1

    def logits(theta: Array, x: Array) -> Array:
        weights, bias = np.split(theta, [features * classes])
        return np.asarray(x @ weights.reshape(features, classes) + bias)

    def train(loss: Loss) -> Any:
        def objective(theta: Array) -> tuple[float, Array]:
            value, grad = loss(logits(theta, x_train), y_train)
            weights = theta[: features * classes]
            slope = np.concatenate(((x_train.T @ grad).ravel() + L2 * weights, grad.sum(0)))
            return value + L2 / 2 * float(weights @ weights), slope

        start = np.zeros((features + 1) * classes)
        tight = {"maxiter": 1000, "ftol": 1e-13, "gtol": 1e-9}
        return minimize(objective, start, jac=True, method="L-BFGS-B", options=tight)

    contestants: dict[str, Loss] = {"ours": Ours(), "numpy": plain_numpy}
    report: dict[str, Any] = {"training_rows": len(y_train), "test_rows": len(y_test), "classes": classes}
    times: dict[str, list[float]] = {name: [] for name in contestants}
    fits = {}
    # The matrix products are small: threads would not speed them up, but wait for each other on a busy machine.
    with need("threadpoolctl", "demo").threadpool_limits(1, user_api="blas"):  # scikit-learn brings it along
        for _ in range(ROUNDS + 1):
            for name, loss in contestants.items():
                start = time.perf_counter()
                fits[name] = train(loss)
                times[name].append(time.perf_counter() - start)
                bar.update()
    for name, loss in contestants.items():
        theta = fits[name].x
        error, ulp = gradient_error(loss, logits(theta, x_train), y_train)
        report[name] = {
            "loss": float(fits[name].fun),
            "test_accuracy": float(np.mean(logits(theta, x_test).argmax(-1) == y_test)),
            "evaluations": int(fits[name].nfev),
            "seconds": statistics.median(times[name][1:]),  # the first one warms up
            "gradient_error": error,
            "gradient_ulp": ulp,
        }
    report["ratio"] = report["numpy"]["seconds"] / report["ours"]["seconds"]
    return report


# --- 2. a wide batch ------------------------------------------------------------------------------


def _wide(bar: Any) -> dict[str, Any]:
    rng = np.random.default_rng(SEED)
    logits = rng.standard_normal((WIDE_ROWS, WIDE_CLASSES), np.float32) * 3
    labels = rng.integers(0, WIDE_CLASSES, WIDE_ROWS)
    contestants: dict[str, Loss] = {"ours": Ours(), "numpy": plain_numpy}
    report: dict[str, Any] = {"rows": WIDE_ROWS, "classes": WIDE_CLASSES}
    few = slice(0, 16)  # the definition in extended precision is slow
    for name, loss in contestants.items():
        error, ulp = gradient_error(loss, logits[few], labels[few])
        report[name] = {"gradient_error": error, "gradient_ulp": ulp}
    contestants["ours"] = Ours()
    times: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(ROUNDS + 1):
        for name, loss in contestants.items():
            start = time.perf_counter()
            report[name]["loss"] = loss(logits, labels)[0]
            times[name].append(time.perf_counter() - start)
            bar.update()
    for name in contestants:
        report[name]["seconds"] = statistics.median(times[name][1:])
    report["ratio"] = report["numpy"]["seconds"] / report["ours"]["seconds"]
    return report


# --- the command ----------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Train, compare, check."""
    for module in ("scipy.optimize", "sklearn.datasets"):
        need(module, "demo")
    with progress(4 * (ROUNDS + 1), "run") as bar:
        digits, wide = _digits(bar), _wide(bar)
    promise = OPS["cross_entropy_index_grad"].ulp
    checks = {
        "test accuracy above 95 %": min(digits[name]["test_accuracy"] for name in ("ours", "numpy")) > 0.95,
        "both fits reach the same regularised loss, to 6 digits": _same(digits, 1e-6),
        f"the gradient is within {promise:g} ULP of the exact one, digits": digits["ours"]["gradient_ulp"] <= promise,
        f"the gradient is within {promise:g} ULP of the exact one, wide batch": wide["ours"]["gradient_ulp"] <= promise,
        "both have the same loss on the wide batch, to 5 digits": _same(wide, 1e-5),
    }
    if args.json:
        print_json({"digits": digits, "wide": wide, "checks": checks, "ok": all(checks.values())})
    else:
        _print(digits, wide, checks)
    return 0 if all(checks.values()) else 1


def _same(report: dict[str, Any], tolerance: float) -> bool:
    ours, theirs = report["ours"]["loss"], report["numpy"]["loss"]
    return bool(abs(ours - theirs) <= tolerance * abs(theirs))


def _print(digits: dict[str, Any], wide: dict[str, Any], checks: dict[str, bool]) -> None:
    backend = _backends.current().name
    print(f"fastsoftmax {__version__}, backend {backend}, {_threads.get_num_threads()} threads\n")
    print(
        f"1. Handwritten digits: softmax regression, {digits['training_rows']} images to train, "
        f"{digits['test_rows']} to test, {digits['classes']} classes, float64"
    )
    _table(
        digits,
        ("test accuracy", lambda r: f"{r['test_accuracy']:.2%}"),
        ("regularised loss", lambda r: f"{r['loss']:.9f}"),
        ("evaluations", lambda r: str(r["evaluations"])),
        ("largest error of the gradient", lambda r: f"{r['gradient_error']:.1e}"),
        ("the same in ULP", lambda r: f"{r['gradient_ulp']:.3g}"),
        (f"time to train, median of {ROUNDS}", lambda r: duration(r["seconds"])),
    )
    print(f"\n2. A wide batch: loss and gradient, {wide['rows']} rows, {wide['classes']} classes, float32")
    _table(
        wide,
        ("loss", lambda r: f"{r['loss']:.7g}"),
        ("largest error of the gradient", lambda r: f"{r['gradient_error']:.1e}"),
        ("the same in ULP", lambda r: f"{r['gradient_ulp']:.3g}"),
        (f"time, median of {ROUNDS}", lambda r: duration(r["seconds"])),
    )
    if backend == "numpy":
        print("\nThe backend `numpy` is the reference, exact and slow; `fastsoftmax info` says why no other one runs.")
    print("\nChecks")
    for name, holds in checks.items():
        print(f"   {'ok    ' if holds else 'FAILED'}  {name}")


def _table(report: dict[str, Any], *lines: tuple[str, Callable[[dict[str, Any]], str]]) -> None:
    print(f"   {'':32}{'fastsoftmax':>14}{'plain NumPy':>14}")
    for label, show in lines:
        print(f"   {label:32}{show(report['ours']):>14}{show(report['numpy']):>14}")
    print(f"   {'ratio of the times':32}{report['ratio']:>13.2f}x")
