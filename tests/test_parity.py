"""The definitions of others over options drawn at random, and where we differ: the tables in docs/edges.rst.

PyTorch's definitions over random options stand in test_loss.py, test_second_order.py and test_divergences.py, beside
the formulas; here are optax's and scikit-learn's, and both columns of each table.
"""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from rooms import Room

import fastsoftmax as fs
from fastsoftmax._ops import Array

INF, NAN = np.inf, np.nan
IGNORED = ([[0.0, NAN], [0.0, 1.0]], [-100, 1])
ZERO_PROBABILITY = ([[0.0, -INF, 1.0]], [[0.5, 0.0, 0.5]])
AT_MINUS_INF = ([[0.0, -INF, 1.0]], [1])


def theirs(logits: Any, target: Any) -> tuple[float, Any]:
    torch = pytest.importorskip("torch")
    x = torch.tensor(logits, dtype=torch.float64, requires_grad=True)
    y = torch.tensor(target, dtype=torch.float64 if np.ndim(target) == 2 else torch.int64)
    loss = torch.nn.functional.cross_entropy(x, y)
    loss.backward()
    return loss.item(), x.grad.numpy()


@pytest.mark.usefixtures("room")
class TestOurs:
    def test_a_zero_probability_counts_nothing(self) -> None:
        value, grad = fs.cross_entropy_value_and_grad(*ZERO_PROBABILITY)
        assert float(value) == pytest.approx(np.log1p(np.e) - 0.5)
        assert np.isfinite(grad).all()

    def test_an_ignored_row_has_gradient_0(self) -> None:
        value, grad = fs.cross_entropy_value_and_grad(*IGNORED)
        assert float(value) == pytest.approx(np.log1p(np.exp(-1)))
        assert (grad[0] == 0).all()

    def test_a_dominating_target_keeps_its_loss(self) -> None:
        assert float(fs.cross_entropy([[50.0, 0.0]], [0])) == pytest.approx(np.exp(-50), rel=1e-15)

    def test_an_infinite_cotangent_of_a_dead_class(self) -> None:
        assert (fs.softmax_vjp([1.0, 0.0], [1.0, INF]) == 0).all()

    def test_losses_of_float16_are_float32(self) -> None:
        assert fs.cross_entropy(np.zeros((2, 3), np.float16), [0, 1]).dtype == np.float32

    def test_a_target_at_minus_infinity(self) -> None:
        value, grad = fs.cross_entropy_value_and_grad(*AT_MINUS_INF)
        assert value == INF
        assert np.isfinite(grad).all()

    def test_nothing_to_average(self) -> None:
        nothing = np.zeros((0, 3)), np.zeros(0, int)
        assert np.isnan(fs.cross_entropy(*nothing))
        assert fs.cross_entropy(*nothing, empty="zero") == 0


def test_pytorch_is_as_the_table_says() -> None:
    torch = pytest.importorskip("torch")
    assert np.isnan(theirs(*ZERO_PROBABILITY)[0])
    value, grad = theirs(*IGNORED)
    assert np.isfinite(value)
    assert np.isnan(grad[0]).all()
    assert theirs([[50.0, 0.0]], [0])[0] == 0
    p = torch.tensor([1.0, 0.0])
    assert torch._softmax_backward_data(torch.tensor([1.0, INF]), p, 0, torch.float32).isnan().all()
    assert torch.nn.functional.cross_entropy(torch.zeros(2, 3).half(), torch.tensor([0, 1])).dtype == torch.float16
    value, grad = theirs(*AT_MINUS_INF)
    assert value == INF
    assert np.isfinite(grad).all()
    assert torch.nn.functional.cross_entropy(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)).isnan()


# The second table: optax and scikit-learn.

OUT_OF_MASK = np.array([[True, False, True]])
NOTHING = np.zeros((1, 3), bool)
FLAT = [[0.0, 0.0, 0.0]]


def optaxs_loss(name: str, logits: Any, target: Any, **options: Any) -> tuple[Any, Any]:
    """Return a loss and its gradient."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    with jax.enable_x64(True):
        x = np.asarray(logits, float)
        value, pull = jax.vjp(lambda x: getattr(optax, name)(x, np.asarray(target), **options), x)
        return np.asarray(value), np.asarray(pull(np.ones(value.shape))[0])


def test_optax_is_as_the_table_says() -> None:
    index, soft = "softmax_cross_entropy_with_integer_labels", "softmax_cross_entropy"
    optax = pytest.importorskip("optax")
    assert np.isnan(optaxs_loss(soft, *ZERO_PROBABILITY)[0])
    assert optaxs_loss("safe_softmax_cross_entropy", *ZERO_PROBABILITY)[0] == pytest.approx(np.log1p(np.e) - 0.5)
    assert np.isnan(
        optax.kl_divergence(*(np.float32(a) for a in (fs.log_softmax(ZERO_PROBABILITY[0]), ZERO_PROBABILITY[1])))
    )
    value, grad = optaxs_loss(index, [[50.0, 0.0]], [0])
    assert value == grad[0, 0] == 0
    assert np.isnan(optaxs_loss(index, FLAT, [3])[0])
    assert optaxs_loss(index, [[1.0, 2.0, 3.0]], [-1])[0] == pytest.approx(
        fs.cross_entropy([1.0, 2.0, 3.0], 2), rel=1e-6
    )
    assert optaxs_loss(index, FLAT, [1], where=OUT_OF_MASK)[0] == pytest.approx(np.log(2))
    assert optaxs_loss(soft, FLAT, [[0.0, 1.0, 0.0]], where=OUT_OF_MASK)[0] == 0
    assert optaxs_loss(index, FLAT, [1], where=NOTHING)[0] == 0
    smooth = optax.smooth_labels(np.float32([[1, 0, 0]]), 0.5, where=OUT_OF_MASK)
    np.testing.assert_allclose(smooth[OUT_OF_MASK], [0.75, 0.25])
    assert np.isnan(optax.sigmoid_binary_cross_entropy(np.float32([INF]), np.float32([1])))
    assert np.isnan(optaxs_loss(index, [[-INF, -INF]], [0])[0])


def test_scikit_learn_is_as_the_table_says() -> None:
    def theirs(x: list[float]) -> Any:
        return half(len(x)).loss_gradient(y_true=np.zeros(1), raw_prediction=np.array([x]))

    value, grad = theirs([50.0, 0.0])
    assert value == grad[0, 0] == 0
    assert np.isnan(theirs([-INF, -INF])[0])


@pytest.mark.usefixtures("room")
class TestOursInTheSecondTable:
    def test_a_zero_probability_has_no_divergence(self) -> None:
        expected = 0.5 * np.log(0.5) * 2 + np.log1p(np.e) - 0.5
        assert float(fs.kl_divergence(*ZERO_PROBABILITY)) == pytest.approx(expected)

    def test_a_dominating_target_keeps_its_gradient(self) -> None:
        grad = fs.cross_entropy_value_and_grad([50.0, 0.0], 0).grad
        assert -grad[0] == grad[1] == pytest.approx(np.exp(-50), rel=1e-15)

    def test_labels_that_are_no_class(self) -> None:
        for label in (3, -1):
            with pytest.raises(IndexError, match=f"= {label} is out of bounds for 3 classes"):
                fs.cross_entropy(FLAT, [label])

    def test_an_excluded_target(self) -> None:
        for target in ([1], [[0.0, 1.0, 0.0]]):
            for mask in (OUT_OF_MASK, NOTHING):
                value, grad = fs.cross_entropy_value_and_grad(FLAT, target, where=mask)
                assert value == INF
                assert np.isfinite(grad).all()
                assert (grad[~mask] == 0).all()
        assert fs.cross_entropy(FLAT, np.zeros((1, 3)), where=NOTHING) == 0

    def test_smoothing_counts_the_included_classes(self) -> None:
        smooth = fs.cross_entropy([[1.0, 7.0, 3.0]], [0], where=OUT_OF_MASK, label_smoothing=0.5)
        assert float(smooth) == pytest.approx(float(fs.cross_entropy([1.0, 3.0], [0.75, 0.25])))

    def test_a_certain_label(self) -> None:
        assert fs.binary_cross_entropy([INF], [1]) == 0

    def test_no_logits(self) -> None:
        assert np.isnan(fs.cross_entropy([-INF, -INF], 0))
        value, grad = fs.cross_entropy_value_and_grad([-INF, -INF], 0, empty="zero")
        assert value == INF
        assert not grad.any()


# --- optax ------------------------------------------------

SHAPE = (3, 4, 5)
AXES = (-1, 0, 1, (0, 2), (1, 2))  # ascending: the index of a class in several axes is that of their own order
OPTAX = ("index", "probabilities", "safe", "divergence", "binary")


def draw(seed: int) -> SimpleNamespace:
    """Draw a loss, logits, targets, cotangents, an axis, a mask and smoothing."""
    rng = np.random.default_rng(seed)
    loss = OPTAX[seed % len(OPTAX)]
    axis = -1 if loss in ("safe", "binary") else AXES[rng.integers(len(AXES))]
    axes = axis if isinstance(axis, tuple) else (axis % 3,)
    batch = tuple(n for k, n in enumerate(SHAPE) if k not in axes)
    c = int(np.prod([SHAPE[k] for k in axes]))
    mask = rng.random(SHAPE) < 0.8 if loss not in ("safe", "binary") and rng.random() < 0.5 else None
    x = rng.normal(0, rng.choice([0.5, 3, 20]), SHAPE)
    t = rng.random(SHAPE)
    y = rng.integers(c, size=batch)
    smoothing = float(rng.choice([0, 0.1, 1])) if loss == "index" else 0.0
    chosen = np.moveaxis(np.eye(c)[y].reshape(*batch, *(SHAPE[k] for k in axes)), range(len(batch), 3), axes)
    if mask is not None:  # what is excluded must have no target, and each row something that is not excluded
        mask |= chosen > 0
        t *= mask
    if loss == "safe":
        x[rng.random(SHAPE) < 0.2] = -INF
        x[..., 0] = 0
        t[x == -INF] = 0
    g = rng.normal(size=SHAPE if loss == "binary" else batch)
    return SimpleNamespace(loss=loss, x=x, t=t, y=y, chosen=chosen, g=g, axis=axis, mask=mask, smoothing=smoothing)


@cache
def optaxs(seed: int) -> tuple[Array, Array]:
    """Return optax's losses, and jax's gradient of their sum with the cotangents."""
    jax, optax = pytest.importorskip("jax"), pytest.importorskip("optax")
    case = draw(seed)

    def losses(x: Any) -> Any:
        at = {"axis": case.axis, "where": case.mask}
        if case.loss == "divergence":
            return optax.kl_divergence(jax.nn.log_softmax(x, **at), case.t, **at)
        if case.loss == "binary":
            return optax.sigmoid_binary_cross_entropy(x, case.t)
        if case.loss == "safe":
            return optax.safe_softmax_cross_entropy(x, case.t)
        if case.loss == "probabilities":
            return optax.softmax_cross_entropy(x, case.t, **at)
        if case.smoothing:
            return optax.softmax_cross_entropy(x, optax.smooth_labels(case.chosen, case.smoothing, **at), **at)
        return optax.softmax_cross_entropy_with_integer_labels(x, case.y, **at)

    with jax.enable_x64(True):
        value, pull = jax.vjp(losses, case.x)
        return np.asarray(value), np.asarray(pull(case.g)[0])


def against_optax(seeds: range) -> None:
    for seed in seeds:
        value, grad = optaxs(seed)
        case = draw(seed)
        options = {"where": case.mask, "reduction": "none", "grad_output": case.g}
        if case.loss == "divergence":
            ours = fs.kl_divergence_value_and_grad(case.x, case.t, case.axis, **options)
        elif case.loss == "binary":
            ours = fs.binary_cross_entropy_value_and_grad(case.x, case.t, case.axis, **options)
        else:
            target = case.y if case.loss == "index" else case.t
            ours = fs.cross_entropy_value_and_grad(case.x, target, case.axis, label_smoothing=case.smoothing, **options)
        what = f"seed {seed}, {case.loss}, axis {case.axis}"
        np.testing.assert_allclose(ours.value, value, rtol=1e-12, atol=1e-12, err_msg=what)
        np.testing.assert_allclose(ours.grad, grad, rtol=1e-12, atol=1e-12, err_msg=what)


def test_optax(room: Room) -> None:
    against_optax(range(25))


@pytest.mark.nightly
def test_optax_often(room: Room) -> None:
    against_optax(range(1000, 2000))


# --- scikit-learn ------------------------------------------------
#
# The grid of its own tests of HalfMultinomialLoss: dtypes, weights, buffers, layouts, threads, values of its choice.


def half(n_classes: int) -> Any:
    return pytest.importorskip("sklearn._loss").HalfMultinomialLoss(n_classes=n_classes)


def against_scikit_learn(rows: int, classes: int, bound: float, dtype: np.dtype, weighted: bool, order: str) -> None:
    rng = np.random.default_rng(42)
    x = rng.uniform(-bound, bound, (rows, classes)).astype(dtype, order)
    y = (np.arange(rows) % classes).astype(dtype)
    weight = np.linspace(1, rows, rows, dtype=dtype) if weighted else None
    theirs, given = half(classes), {"y_true": y, "raw_prediction": x, "sample_weight": weight}
    for a in (x, y):
        a.flags.writeable = False  # as its memory maps are
    ours: dict[str, Any] = {"sample_weight": weight, "reduction": "none"}
    labels = y.astype(int)
    size = 1 if weight is None else weight[:, None]  # theirs rounds p before it subtracts
    eps = 16 * float(np.finfo(dtype).eps)
    for threads in (1, 2):
        with fs.num_threads(threads):
            value = fs.cross_entropy(x, labels, **ours)
            grad_out, hess_out = np.empty_like(x), np.empty_like(x)
            three = fs.cross_entropy_value_grad_hess(x, labels, **ours, grad_out=grad_out, hess_out=hess_out)
            two = fs.cross_entropy_value_and_grad(x, labels, **ours)
            proba = fs.softmax(x)
        assert three.grad is grad_out
        assert three.hess is hess_out
        loss = theirs.loss(**given, n_threads=threads)
        both = theirs.loss_gradient(**given, n_threads=threads)
        gradient, hessian = theirs.gradient_hessian(**given, n_threads=threads)
        with_proba, probabilities = theirs.gradient_proba(**given, n_threads=threads)
        for actual, expected, scale in (
            (value, loss, bound * np.ravel(size)), (two.value, both[0], bound * np.ravel(size)),
            (two.grad, theirs.gradient(**given, n_threads=threads), size), (two.grad, both[1], size),
            (three.grad, gradient, size), (three.hess, hessian, size),
            (two.grad, with_proba, size), (proba, probabilities, 1),
        ):  # fmt: skip
            assert actual.dtype == expected.dtype == dtype
            assert (np.abs(actual - expected) <= eps * scale).all()


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_half_multinomial_loss(room: Room, dtype: np.dtype, weighted: bool, order: str) -> None:
    against_scikit_learn(20, 3, 5, dtype, weighted, order)


@pytest.mark.nightly
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("weighted", [False, True], ids=["even", "weighted"])
def test_half_multinomial_loss_often(room: Room, dtype: np.dtype, weighted: bool, order: str) -> None:
    for rows in (1, 2, 5, 100, 1001):
        for classes in (2, 3, 5, 10, 97):
            for bound in (5, 10, 100):
                against_scikit_learn(rows, classes, bound, dtype, weighted, order)


def test_half_multinomial_loss_at_values_of_its_own(room: Room) -> None:
    for x, y in (([0.2, 0.5, 0.3], 0), ([0.2, 0.5, 0.3], 1), ([0.2, 0.5, 0.3], 2), ([1e4, 0, 7e-7], 2)):
        expected = half(3)(y_true=np.array([float(y)]), raw_prediction=np.array([x]))
        assert float(fs.cross_entropy(x, y)) == pytest.approx(float(expected), rel=1e-15)
    certain = np.where(np.eye(3, dtype=bool), np.exp(10), -np.exp(10))
    assert (fs.cross_entropy(certain, np.arange(3), reduction="none") == 0).all()
    # Of two classes it is the binary one, and so is ours.
    z = np.random.default_rng(0).normal(size=20)
    binomial = pytest.importorskip("sklearn._loss").HalfBinomialLoss()
    labels = np.arange(20) % 2
    expected, slope = binomial.loss_gradient(y_true=labels.astype(float), raw_prediction=z)
    two = fs.cross_entropy_value_and_grad(np.stack([-z / 2, z / 2], -1), labels, reduction="none")
    one = fs.binary_cross_entropy_value_and_grad(z, labels, reduction="none")
    for value, grad in ((two.value, two.grad[:, 1]), one):
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        np.testing.assert_allclose(grad, slope, rtol=1e-13)
