"""``fastsoftmax score``: loss, accuracy and calibration of saved logits."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .. import _plan
from .._forward import log_softmax, softmax
from .._losses import cross_entropy, cross_entropy_value_and_grad
from .._ops import Array
from ._common import CliError, JobError, need, print_json, progress
from ._files import blocks, check_targets, create_array, open_array, written_beside

# Large enough that a disk streams and Python's overhead vanishes, small enough for a few of them to stay in cache.
BLOCK_BYTES = 1 << 22

BINS = 15

# Temperatures between which the best one is sought; beyond, the loss is flat or only falls towards a limit.
COLDEST, HOTTEST = 1e-6, 1e6

_DESCRIPTION = """\
Score saved logits against labels: loss, accuracy, calibration.

LOGITS.npy holds unnormalised log-probabilities (float16, float32, float64 or
integers), of any shape; --axis tells which axis is the classes.  LABELS.npy
holds the true classes: integers, of the shape of the logits without that axis.
Both are read block by block, so that files larger than memory work.

what is reported, over all rows that are not ignored:
  mean loss    cross-entropy in nats, after --temperature and --label-smoothing
  perplexity   exp(mean loss)
  top-1, top-5 part of the rows whose label is among the 1 or 5 largest logits;
               of equal logits the lower class comes first; a row without
               probabilities (one that holds a NaN, say) counts as a miss
  ECE          expected calibration error: rows are put into 15 equal bins
               ((0, 1/15], (1/15, 2/15], ...) by their confidence, which is the
               largest probability; the ECE is the mean over the rows of
               |accuracy of the bin - mean confidence of the bin|
"""

_EPILOG = """\
examples:
  fastsoftmax score logits.npy labels.npy
  fastsoftmax score logits.npy labels.npy --json --per-class
  fastsoftmax score logits.npy labels.npy --fit-temperature --plot plot.png
  fastsoftmax score logits.npy labels.npy --temperature 1.7 --probs p.npy
  fastsoftmax score image_logits.npy masks.npy --axis 1 --ignore-index 255

Outputs have the shape of the logits and their dtype; float32 for float16 and
float64 for integers.  They appear under their names when they are complete;
a run that fails or is interrupted leaves none.
"""


def _temperature(text: str) -> float:
    value = float(text)
    if not (COLDEST <= value <= HOTTEST):
        raise argparse.ArgumentTypeError(f"{text} is not a temperature from {COLDEST:g} to {HOTTEST:g}")
    return value


def _fraction(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 0 to 1")
    return value


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the subcommand's arguments."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "score",
        help="loss, accuracy and calibration of saved logits; write probabilities or gradients",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("logits", type=Path, metavar="LOGITS.npy", help="the logits")
    add("labels", type=Path, metavar="LABELS.npy", help="the true classes")
    add("--axis", type=int, default=-1, metavar="N", help="the axis of the classes (default: the last)")
    heat = parser.add_mutually_exclusive_group()
    heat.add_argument(
        "--temperature", type=_temperature, default=1.0, metavar="T", help="divide the logits by T (default: 1)"
    )
    heat.add_argument(
        "--fit-temperature", action="store_true", help="find the T with the smallest mean loss and use it (needs SciPy)"
    )
    add("--ignore-index", type=int, default=-100, metavar="N", help="leave out rows with this label (default: -100)")
    add("--label-smoothing", type=_fraction, default=0.0, metavar="E", help="spread this part of each target evenly")
    add("--per-class", action="store_true", help="also the recall of each class: the top-1 accuracy of its rows")
    add("--probs", type=Path, metavar="OUT.npy", help="write the probabilities")
    add("--log-probs", type=Path, metavar="OUT.npy", help="write their logarithms")
    add("--grad", type=Path, metavar="OUT.npy", help="write the gradient of the mean loss with respect to the logits")
    add("--plot", type=Path, metavar="FILE.png", help="draw a reliability diagram and a histogram (needs matplotlib)")
    return parser


# --- the data, block by block ---------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """Logits and labels, mapped from files.

    Attributes
    ----------
    logits
        As stored.
    rows
        The same with the classes last.
    labels
        Class indices, of the shape of ``rows`` without the last axis.
    ignore
        The label of ignored rows.
    count, total
        The number of rows that are not ignored, and of all.
    dtype
        The dtype of computation and of the outputs.
    """

    logits: Array
    rows: Array
    labels: Array
    axis: int
    ignore: int
    count: int
    total: int
    dtype: np.dtype[Any]

    @property
    def classes(self) -> int:
        """The number of classes."""
        return int(self.rows.shape[-1])

    def blocks(self) -> Iterator[tuple[Any, Array, Array]]:
        """Yield the index of a block in the batch, its logits as contiguous rows, and its labels."""
        step = max(1, BLOCK_BYTES // (self.classes * self.dtype.itemsize))
        for slices in blocks(self.labels.shape, step):
            index: tuple[Any, ...] = (
                *slices,
                ...,
            )  # with an ellipsis, what it selects is an array even if there are no axes
            labels = self.labels[index].astype(np.int64).reshape(-1)
            yield index, self.rows[index].astype(self.dtype, order="C").reshape(-1, self.classes), labels


def read(args: argparse.Namespace) -> Data:
    """Open the inputs and check that they fit together."""
    logits, labels = open_array(args.logits), open_array(args.labels)
    try:
        frame = _plan.Frame(logits.shape, args.axis)
    except np.exceptions.AxisError as error:
        raise CliError(f"--axis {args.axis}: {error} ({args.logits} has shape {logits.shape})") from None
    if not logits.ndim or not frame.c:
        raise CliError(f"{args.logits} has shape {logits.shape}: there are no classes")
    if labels.dtype.kind not in "iu":
        raise CliError(f"{args.labels} has dtype {labels.dtype}; expected integers, the true classes")
    if labels.shape != frame.batch_shape:
        raise CliError(
            f"{args.labels} has shape {labels.shape} but {args.logits} has {logits.shape} with --axis {args.axis}; "
            f"expected labels of shape {frame.batch_shape}"
        )
    count = _count_labels(labels, frame.c, args)
    dtype = _plan.computing_dtype(_plan.result_dtype(logits))
    return Data(logits, frame.rows(logits), labels, frame.axes[0], args.ignore_index, count, frame.r, dtype)


def _count_labels(labels: Array, classes: int, args: argparse.Namespace) -> int:
    """Return the number of labels that are not ignored; raise for one that is no class."""
    count = 0
    for index in blocks(labels.shape, BLOCK_BYTES // 8):
        part = labels[(*index, ...)]
        valid = part != args.ignore_index
        wrong = valid & ((part < 0) | (part >= classes))
        if wrong.any():
            first = tuple(np.argwhere(wrong)[0])
            spot = ", ".join(str(cut.start + k) for cut, k in zip(index, first))
            raise CliError(
                f"{args.labels}{f'[{spot}]' if spot else ''} = {part[first]} is out of range for {classes} classes "
                f"(--ignore-index {args.ignore_index})"
            )
        count += int(np.count_nonzero(valid))
    return count


# --- metrics --------------------------------------------------------------------------------------


def fsum(values: Iterable[float]) -> float:
    """Return the correctly rounded sum, infinite where it overflows."""
    try:
        return math.fsum(values)
    except OverflowError:
        return math.inf


@dataclass
class Metrics:
    """Sums over rows, from which every metric follows.

    The sums of blocks are kept and added at the end, exactly: the result does not depend on the size of the blocks.
    """

    classes: int
    count: int = 0
    losses: list[float] = field(default_factory=list)
    top1: int = 0
    top5: int = 0

    def __post_init__(self) -> None:
        self.bin_count = np.zeros(BINS, np.int64)
        self.bin_hits = np.zeros(BINS, np.int64)
        self.bin_confidence: list[Array] = [np.zeros(BINS)]
        self.support = np.zeros(self.classes, np.int64)
        self.recalled = np.zeros(self.classes, np.int64)

    def add(self, logits: Array, labels: Array, losses: Array, confidence: Array) -> None:
        """Add rows, none of them ignored."""
        rank = label_rank(logits, labels)
        rank[np.isnan(confidence)] = self.classes + 5
        hit = rank == 0
        self.count += labels.size
        self.losses.append(float(losses.sum(dtype=np.float64)))
        self.top1 += int(np.count_nonzero(hit))
        self.top5 += int(np.count_nonzero(rank < 5))
        confidence = confidence.astype(np.float64)
        bins = np.searchsorted(np.arange(1, BINS) / BINS, confidence)
        self.bin_count += np.bincount(bins, minlength=BINS)
        self.bin_hits += np.bincount(bins[hit], minlength=BINS)
        self.bin_confidence.append(np.bincount(bins, confidence, BINS))
        self.support += np.bincount(labels, minlength=self.classes)
        self.recalled += np.bincount(labels[hit], minlength=self.classes)

    def mean(self, total: float) -> float:
        """Divide by the number of rows; nan if there are none."""
        return total / self.count if self.count else math.nan

    @property
    def loss(self) -> float:
        """The mean loss."""
        return self.mean(fsum(self.losses))

    def reliability(self) -> tuple[Array, Array]:
        """Return the accuracy and the mean confidence of each bin; nan for an empty one."""
        count = np.where(self.bin_count, self.bin_count, np.nan)
        return self.bin_hits / count, np.array([fsum(s) for s in zip(*self.bin_confidence)]) / count

    def ece(self) -> float:
        """Return the expected calibration error."""
        accuracy, confidence = self.reliability()
        used = self.bin_count > 0
        return self.mean(fsum((self.bin_count * np.abs(accuracy - confidence))[used]))

    def summary(self) -> dict[str, float]:
        """Return the metrics by name."""
        with np.errstate(over="ignore"):
            perplexity = float(np.exp(self.loss))
        return {
            "mean_loss": self.loss,
            "perplexity": perplexity,
            "top1_accuracy": self.mean(self.top1),
            "top5_accuracy": self.mean(self.top5),
            "expected_calibration_error": self.ece(),
        }

    def bins(self) -> list[dict[str, float]]:
        """Return the bins of the reliability diagram."""
        accuracy, confidence = self.reliability()
        return [
            {
                "above": k / BINS,
                "up_to": (k + 1) / BINS,
                "rows": int(self.bin_count[k]),
                "accuracy": float(accuracy[k]),
                "confidence": float(confidence[k]),
            }
            for k in range(BINS)
        ]

    def recall(self) -> list[dict[str, float]]:
        """Return the recall of each class; nan for one that no label names."""
        return [
            {"class": k, "rows": int(n), "recall": int(hits) / int(n) if n else math.nan}
            for k, (n, hits) in enumerate(zip(self.support, self.recalled))
        ]


def label_rank(logits: Array, labels: Array) -> Array:
    """Return how many classes come before the label: larger logits, and equal ones of lower classes."""
    own = np.take_along_axis(logits, labels[:, None], -1)
    rank: Array = np.count_nonzero(logits > own, axis=-1)
    equal = logits == own
    equal &= np.arange(logits.shape[-1]) < labels[:, None]
    rank += np.count_nonzero(equal, axis=-1)
    return rank


# --- the passes over the data ---------------------------------------------------------------------


def evaluate(data: Data, scale: float, smoothing: float, outputs: Mapping[str, Array], text: str) -> Metrics:
    """Stream the data once: metrics, and whichever outputs there are."""
    metrics = Metrics(data.classes)
    options: dict[str, Any] = {"scale": scale, "label_smoothing": smoothing, "ignore_index": data.ignore}
    views = {name: np.moveaxis(array, data.axis, -1) for name, array in outputs.items()}
    with progress(data.total, "row") as bar:
        bar.set_description(text)
        for index, x, labels in data.blocks():
            results = {"probs": softmax(x, scale=scale)}
            if "log_probs" in views:
                results["log_probs"] = log_softmax(x, scale=scale)
            if "grad" in views:
                losses, results["grad"] = cross_entropy_value_and_grad(
                    x, labels, reduction="none", grad_output=1 / max(1, data.count), **options
                )
            else:
                losses = cross_entropy(x, labels, reduction="none", **options)
            valid = labels != data.ignore
            confidence = results["probs"].max(-1)
            if valid.all():
                metrics.add(x, labels, losses, confidence)
            else:
                metrics.add(x[valid], labels[valid], losses[valid], confidence[valid])
            for name, view in views.items():
                view[index] = results[name].reshape(view[index].shape)
            bar.update(labels.size)
    return metrics


def fit_temperature(data: Data, smoothing: float) -> float:
    """Return the temperature with the smallest mean loss.

    The loss is convex in s = 1/T, so its derivative, the sum over all logits of ``x * (d loss / d(s x))``, has one
    change of sign.  It is bracketed by steps of a factor and then found by Brent's method, each step one pass.
    """
    brentq = need("scipy.optimize", "--fit-temperature").brentq

    def slope(u: float) -> float:
        scale = math.exp(u)
        sums, flat = [], True
        with progress(data.total, "row") as bar:
            bar.set_description(f"T = {1 / scale:.6g}")
            for _, x, labels in data.blocks():
                grad = cross_entropy_value_and_grad(
                    x, labels, reduction="sum", scale=scale, label_smoothing=smoothing, ignore_index=data.ignore
                ).grad
                with np.errstate(all="ignore"):
                    # The gradients of a row sum to 0, so this drops out, and with it what rounding leaves of that sum.
                    centred = x - x.max(-1, keepdims=True)
                    # A class at -inf has probability 0 and no part in the slope; ignored rows may hold anything.
                    terms = np.where((grad == 0) | ~np.isfinite(x), 0, centred * grad)
                sums.append(float(terms.sum(dtype=np.float64)))
                flat &= not terms.any()
                bar.update(labels.size)
        if flat:
            raise JobError(
                f"no temperature minimises the loss: it is flat at T = {1 / scale:.6g} "
                "(every label is by far its row's largest logit, or all logits of a row are equal)"
            )
        return fsum(sums) / scale

    here, value = 0.0, slope(0.0)
    while value != 0:
        there = here - math.copysign(math.log(4), value)
        if not COLDEST <= math.exp(-there) <= HOTTEST:
            limit = (
                "0 (nearly every label is its row's largest logit)" if value < 0 else "infinity (guessing is better)"
            )
            raise JobError(f"no temperature minimises the loss: it only falls as T goes to {limit}")
        before, value = value, slope(there)
        if before * value < 0:
            return math.exp(-float(brentq(slope, here, there, xtol=1e-9)))
        here = there
    return math.exp(-here)


# --- the command ----------------------------------------------------------------------------------


def run(args: argparse.Namespace) -> int:
    """Score, and write what was asked for."""
    options = {"probs": args.probs, "log_probs": args.log_probs, "grad": args.grad, "plot": args.plot}
    targets = {name: path for name, path in options.items() if path is not None}
    # Whatever can be found out without reading the data comes first: a long run must not fail at its end.
    check_targets({"--" + name.replace("_", "-"): path for name, path in targets.items()}, [args.logits, args.labels])
    draw = _plotter() if args.plot else None
    if args.fit_temperature:
        need("scipy.optimize", "--fit-temperature")
    data = read(args)
    temperature, before = args.temperature, None
    if args.fit_temperature:
        before = evaluate(data, 1.0, args.label_smoothing, {}, "T = 1")
        if not math.isfinite(before.loss):
            raise JobError(f"no temperature can be fitted: the mean loss at T = 1 is {before.loss}")
        temperature = fit_temperature(data, args.label_smoothing)
    with written_beside(targets) as drafts:
        outputs = {n: create_array(p, data.dtype, data.logits.shape) for n, p in drafts.items() if n != "plot"}
        metrics = evaluate(data, 1 / temperature, args.label_smoothing, outputs, f"T = {temperature:.6g}")
        for array in outputs.values():
            array.flush()
        columns = {f"T = {temperature:.6g}": metrics}
        if before is not None:
            columns = {"T = 1": before, **columns}
        if draw is not None:
            draw(drafts["plot"], columns)
    if args.json:
        print_json(_report(args, data, temperature, metrics, before, targets))
    else:
        _print(args, data, columns, targets)
    return 0


def _report(
    args: argparse.Namespace,
    data: Data,
    temperature: float,
    metrics: Metrics,
    before: Metrics | None,
    targets: dict[str, Path],
) -> dict[str, Any]:
    report: dict[str, Any] = {
        "logits": args.logits,
        "labels": args.labels,
        "shape": data.logits.shape,
        "dtype": data.logits.dtype,
        "axis": data.axis,
        "classes": data.classes,
        "rows": data.count,
        "ignored": data.total - data.count,
        "temperature": temperature,
        "label_smoothing": args.label_smoothing,
        **metrics.summary(),
        "bins": metrics.bins(),
    }
    if before is not None:
        report["before"] = {"temperature": 1.0, **before.summary(), "bins": before.bins()}
    if args.per_class:
        report["per_class"] = metrics.recall()
    return report | {"written": targets}


def _print(args: argparse.Namespace, data: Data, columns: dict[str, Metrics], targets: dict[str, Path]) -> None:
    print(f"logits         {args.logits}: {data.logits.dtype} {data.logits.shape}, classes on axis {data.axis}")
    print(f"rows           {data.count}" + (f", {data.total - data.count} ignored" if data.total > data.count else ""))
    print(f"classes        {data.classes}\n")
    summaries = [metrics.summary() for metrics in columns.values()]
    print(" " * 15 + "".join(f"{name:>16}" for name in columns))
    for label, key, form in (
        ("mean loss", "mean_loss", "16.8f"),
        ("perplexity", "perplexity", "16.8g"),
        ("top-1", "top1_accuracy", "16.4%"),
        ("top-5", "top5_accuracy", "16.4%"),
        (f"ECE, {BINS} bins", "expected_calibration_error", "16.6f"),
    ):
        print(f"{label:15}" + "".join(format(summary[key], form) for summary in summaries))
    if args.per_class:
        print(f"\n{'class':>9}{'rows':>12}{'recall':>12}")
        for entry in list(columns.values())[-1].recall():
            print(f"{entry['class']:>9}{entry['rows']:>12}{entry['recall']:>12.4%}")
    if targets:
        print()
    for name, path in targets.items():
        print(f"{'wrote ' + name.replace('_', '-'):15}{path}")


def _plotter() -> Callable[[Path, dict[str, Metrics]], None]:
    """Return the function that draws, with matplotlib imported: a missing one must not be noticed at the end."""
    figure_class = need("matplotlib.figure", "--plot").Figure

    def draw(path: Path, columns: dict[str, Metrics]) -> None:
        """Draw a reliability diagram above a histogram of the confidence, one pair for each set of metrics."""
        figure = figure_class(figsize=(4.6 * len(columns), 6.4), layout="constrained")
        axes = figure.subplots(2, len(columns), squeeze=False, sharex=True, sharey="row", height_ratios=(3, 1))
        left = np.arange(BINS) / BINS
        style = {"width": 1 / BINS, "align": "edge", "edgecolor": "white", "linewidth": 0.8}
        for (top, bottom), (name, metrics) in zip(axes.T, columns.items()):
            accuracy, confidence = metrics.reliability()
            used = np.isfinite(confidence)
            top.bar(left[used], accuracy[used], color="#4477aa", label="accuracy", **style)
            top.bar(
                left[used],
                (confidence - accuracy)[used],
                bottom=accuracy[used],
                facecolor="#ee667755",
                hatch="////",
                label="gap to mean confidence",
                **style,
            )
            top.plot([0, 1], [0, 1], color="0.4", linestyle="--", linewidth=1, label="perfect calibration")
            top.set(xlim=(0, 1), ylim=(0, 1), title=f"{name}:  ECE = {metrics.ece():.4f}", aspect="equal")
            top.grid(alpha=0.25)
            top.set_axisbelow(True)
            bottom.bar(left, 100 * metrics.bin_count / max(1, metrics.count), color="#4477aa", **style)
            bottom.set(xlabel="confidence (largest probability)", ylim=(0, None))
            bottom.grid(alpha=0.25)
            bottom.set_axisbelow(True)
        axes[0, 0].set_ylabel("accuracy")
        axes[1, 0].set_ylabel("rows, %")
        axes[0, 0].legend(loc="upper left", fontsize="small")
        figure.savefig(path, format="png", dpi=120)

    return draw
