"""Derivatives along a direction and second derivatives of the losses, against what knows nothing of their formulas."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from checks import LD, assert_close, assert_same_bits
from rooms import Room

import fastsoftmax as fs
from fastsoftmax._ops import Array

R, C = 6, 9
RNG = np.random.default_rng(0)
X, U = RNG.normal(0, 2, (R, C)), RNG.normal(size=(R, C))
Y, SOFT = RNG.integers(C, size=R), RNG.random((R, C))
WEIGHT, ROWS = RNG.uniform(0.5, 2, C), np.array([1.0, 0.0, 2.0, -1.0, 0.5, 1.0])
MASK = (RNG.random((R, C)) < 0.8) | (np.arange(C) == Y[:, None])
PARTLY = np.where(np.arange(R) % 3, Y, -100)

OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weights": {"weight": WEIGHT, "label_smoothing": 0.2, "reduction": "sum"},
    "zloss": {"z_loss": 0.1, "sample_weight": ROWS, "reduction": "sum"},
    "softcap": {"softcap": 3.0, "weight": WEIGHT, "z_loss": 0.05, "label_smoothing": 0.1},
    "mask": {"where": MASK, "label_smoothing": 0.3, "weight": WEIGHT, "z_loss": 0.2},
    "mask-softcap": {"where": MASK, "label_smoothing": 0.3, "weight": WEIGHT, "softcap": 5.0},
    "mask-even": {"where": MASK, "label_smoothing": 1.0, "sample_weight": ROWS, "reduction": "sum"},
}
TARGETS = {"index": Y, "probabilities": SOFT, "ignored": PARTLY}
GRID = [
    pytest.param(TARGETS[t], o, id=f"{t}-{name}")
    for t in TARGETS
    for name, o in OPTIONS.items()
    if not (t == "probabilities" and "where" in o)  # mass on an excluded class: the loss is infinite
]
SCALES = (1.0, 0.7, -1.3, 0.0)


def central(f: Any, x: Array, u: Array, h: float = 2.0**-13) -> Any:
    """Return the derivative of f at x along u, from differences of fourth order."""
    near, far = f(x + h * u) - f(x - h * u), f(x + 2 * h * u) - f(x - 2 * h * u)
    return (8 * near - far) / (12 * h)


def close(actual: Any, expected: Any, what: str, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance, err_msg=what)


@pytest.mark.parametrize(("target", "options"), GRID)
def test_against_differences_and_each_other(room: Room, target: Array, options: dict[str, Any]) -> None:
    moving = np.where(MASK, U, 0) if "where" in options else U
    for scale in SCALES:
        every = {**options, "scale": scale}

        def gradient(x: Array, every: dict[str, Any] = every) -> Array:
            return fs.cross_entropy_value_and_grad(x, target, **every).grad

        value, grad = fs.cross_entropy_value_and_grad(X, target, **every)
        jvp = fs.cross_entropy_jvp(X, target, U, **every)
        close(jvp.value, value, "value of the jvp")
        close(jvp.tangent, (grad * moving).sum(), "tangent = <gradient, direction>")
        hv = fs.cross_entropy_hvp(X, target, U, **every)
        close(hv, central(gradient, X, moving), "hvp and differences", 1e-8)
        h = fs.cross_entropy_hessian(X, target, **every)
        assert h.shape == (R, C, C)
        close(np.einsum("rij,rj->ri", h, moving), hv, "Hessian @ direction")
        close(h, np.swapaxes(h, 1, 2), "symmetry")
        three = fs.cross_entropy_value_grad_hess(X, target, **every)
        close(three.value, value, "value of three")
        close(three.grad, grad, "gradient of three")
        close(three.hess, np.einsum("rii->ri", h), "diagonal")


def test_two_of_the_three_have_the_bits_of_value_and_grad(room: Room, dtype: np.dtype) -> None:
    for r, c in ((17, 10), (3, 97), (2, 4099)):
        x = np.random.default_rng(1).normal(0, 5, (r, c)).astype(dtype)
        y = np.arange(r) % c
        for target in (y, np.random.default_rng(2).random((r, c)).astype(dtype)):
            for options in ({}, {"label_smoothing": 0.1}, {"z_loss": 0.1, "reduction": "sum"}):
                value, grad = fs.cross_entropy_value_and_grad(x, target, **options)
                three = fs.cross_entropy_value_grad_hess(x, target, **options)
                assert_same_bits(three.value, value)
                assert_same_bits(three.grad, grad)


def test_symmetry_of_the_hvp(room: Room, dtype: np.dtype) -> None:
    x, u, v = (np.random.default_rng(k).normal(size=(5, 40)).astype(dtype) for k in range(3))
    for options in ({}, {"z_loss": 0.1}, {"softcap": 2.0}):
        a = (u.astype(LD) * fs.cross_entropy_hvp(x, np.arange(5), v, **options)).sum(-1)
        b = (v.astype(LD) * fs.cross_entropy_hvp(x, np.arange(5), u, **options)).sum(-1)
        assert (np.abs(a - b) <= 64 * np.finfo(dtype).eps).all()


def test_gauss_newton_differs_where_it_should(room: Room) -> None:
    """Without z-loss and softcap the Hessian is p.s.d. and blind to the label; with them it is exact, and neither."""
    h = fs.cross_entropy_hessian(X, Y)
    assert np.linalg.eigvalsh(h).min() >= -1e-15
    assert_same_bits(h, fs.cross_entropy_hessian(X, (Y + 1) % C))
    capped = fs.cross_entropy_hessian(3 * X, Y, softcap=1.0)
    assert np.linalg.eigvalsh(capped).min() < -1e-4
    assert np.abs(capped - fs.cross_entropy_hessian(3 * X, (Y + 1) % C, softcap=1.0)).max() > 1e-4
    assert np.linalg.eigvalsh(fs.cross_entropy_hessian(X - 20, Y, z_loss=0.1)).min() < -1e-2


# --- kinds, orders, memory ------------------------------------------------


def test_kinds(room: Room, dtype: np.dtype) -> None:
    x = X.astype(dtype)
    p = fs.softmax(x).astype(LD)
    exact = fs.cross_entropy_value_grad_hess(x, Y, reduction="none").hess
    assert_close(exact, p * (1 - p), 8, p, "p (1 - p)")
    for kind, factor in (("upper", 2), ("friedman", C / (C - 1))):
        three = fs.cross_entropy_value_grad_hess(x, Y, reduction="none", kind=kind)
        assert_close(three.hess, exact.astype(LD) * factor, 2, what=kind)
        assert_same_bits(three.grad, fs.cross_entropy_value_grad_hess(x, Y, reduction="none").grad)
    one = fs.cross_entropy_value_grad_hess(x[:, :1], np.zeros(R, int), kind="friedman")
    assert not one.hess.any()
    diagonal = np.einsum("ri,ij->rij", 2 * exact.astype(float), np.eye(C))
    assert np.linalg.eigvalsh(diagonal - fs.cross_entropy_hessian(x, Y, reduction="none")).min() > -1e-6, "no bound"


def test_kinds_multiply_the_exact_diagonal_whatever_the_options(room: Room) -> None:
    for options in OPTIONS.values():
        exact = fs.cross_entropy_value_grad_hess(X, Y, **options).hess
        close(fs.cross_entropy_value_grad_hess(X, Y, kind="upper", **options).hess, 2 * exact, str(options))


def test_order(room: Room, dtype: np.dtype) -> None:
    x = np.random.default_rng(0).normal(size=(70, 30)).astype(dtype)
    y = np.arange(70) % 30
    expected = fs.cross_entropy_value_grad_hess(x, y)
    for options in ({}, {"softcap": 30.0}):
        expected = fs.cross_entropy_value_grad_hess(x, y, **options)
        _, grad, hess = fs.cross_entropy_value_grad_hess(x, y, order="F", **options)
        for a, b in ((grad, expected.grad), (hess, expected.hess)):
            assert a.flags.f_contiguous
            assert not a.flags.c_contiguous
            assert_same_bits(a, b)
            assert np.may_share_memory(a.ravel("F"), a)
    assert expected.grad.flags.c_contiguous


@pytest.mark.parametrize("target", [Y, SOFT], ids=["index", "probabilities"])
@pytest.mark.parametrize("name", ["plain", "softcap", "mask"])
def test_in_place(room: Room, target: Array, name: str) -> None:
    options = OPTIONS[name] if not (target is SOFT and name == "mask") else {"where": MASK}
    expected = fs.cross_entropy_value_grad_hess(X, target, **options)
    for out in ("grad_out", "hess_out"):
        x = X.copy()
        result = fs.cross_entropy_value_grad_hess(x, target, **options, **{out: x})
        assert (result.grad if out == "grad_out" else result.hess) is x
        assert_same_bits(result.grad, expected.grad)
        assert_same_bits(result.hess, expected.hess)
    # One array for the gradient, the targets' for the diagonal.
    if target is SOFT:
        x, t = X.copy(), SOFT.copy()
        result = fs.cross_entropy_value_grad_hess(x, t, **options, grad_out=x, hess_out=t)
        assert_same_bits(result.grad, expected.grad)
        assert_same_bits(result.hess, expected.hess)
    expected_hv = fs.cross_entropy_hvp(X, target, U, **options)
    for k in (0, 1):
        operands = [X.copy(), U.copy()]
        out = fs.cross_entropy_hvp(operands[0], target, operands[1], **options, out=operands[k])
        assert out is operands[k]
        assert_same_bits(out, expected_hv)
    overlapping = np.concatenate([X.ravel(), np.zeros(C)])
    x = overlapping[: R * C].reshape(R, C)
    out = overlapping[C:].reshape(R, C)
    assert_same_bits(fs.cross_entropy_hvp(x, target, U, **options, out=out), expected_hv)


@pytest.mark.parametrize("factor", ["weight", "sample_weight", "grad_output", "where"])
def test_softcap_over_a_factor(factor: str) -> None:
    """Of several blocks the first must not be written over what the others need."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(300, 17)), rng.integers(17, size=300)
    out = np.zeros((300, 17, 17))
    given = out.reshape(-1)[: {"weight": 17, "where": 17 * 300 // 8 + 1}.get(factor, 300)]
    given = given.view(bool)[: x.size].reshape(x.shape) if factor == "where" else given
    given[...] = rng.random(given.shape) > 0.3
    options: dict[str, Any] = {"softcap": 2.0, "reduction": "none", "label_smoothing": 0.1, factor: given}
    expected = fs.cross_entropy_hessian(x, y, **options)
    assert_same_bits(fs.cross_entropy_hessian(x, y, **options, out=out), expected)


def test_softcap_in_blocks_of_any_axis(room: Room, dtype: np.dtype) -> None:
    """Several blocks, classes anywhere: the bits are those of the rows alone."""
    x = np.random.default_rng(3).normal(0, 3, (3, 40, 700)).astype(dtype)
    u = np.random.default_rng(4).normal(size=x.shape).astype(dtype)
    y = np.random.default_rng(5).integers(40, size=(3, 700))
    v = np.random.default_rng(6).random((3, 700)).astype(dtype)
    options: dict[str, Any] = {"softcap": 4.0, "z_loss": 0.01, "reduction": "none"}
    hv = fs.cross_entropy_hvp(x, y, u, 1, sample_weight=v, grad_output=v, **options)
    value, tangent = fs.cross_entropy_jvp(x, y, u, 1, sample_weight=v, **options)
    three = fs.cross_entropy_value_grad_hess(x, y, 1, sample_weight=v, grad_output=v, **options)
    h = fs.cross_entropy_hessian(x[..., :7], y[:, :7], 1, sample_weight=v[:, :7], **options)
    for i, j in ((0, 0), (2, 699), (1, 350)):
        row = x[i, :, j], y[i, j], u[i, :, j]
        one: dict[str, Any] = {**options, "sample_weight": v[i, j]}
        assert_same_bits(fs.cross_entropy_hvp(*row, grad_output=v[i, j], **one), hv[i, :, j])
        assert_same_bits(np.stack(fs.cross_entropy_jvp(*row, **one)), np.stack([value[i, j], tangent[i, j]]))
        alone = fs.cross_entropy_value_grad_hess(*row[:2], grad_output=v[i, j], **one)
        assert_same_bits(alone.hess, three.hess[i, :, j])
        assert_same_bits(alone.grad, three.grad[i, :, j])
        if j < 7:
            assert_same_bits(fs.cross_entropy_hessian(*row[:2], **one), h[i, j])


def test_memory_of_a_fused_call(room: Room) -> None:
    """No temporary of the logits' size, with or without options."""
    import tracemalloc

    x, y = np.zeros((4000, 1000), np.float32), np.zeros(4000, int)
    grad, hess = np.empty_like(x), np.empty_like(x)
    for options in ({}, {"softcap": 3.0}, {"where": np.arange(1000) < 400, "label_smoothing": 0.1}):
        for rows in (9, 4000):  # the first time for Numba's compiler
            part = slice(rows)
            tracemalloc.start()
            fs.cross_entropy_hvp(x[part], y[part], x[part], **options, out=grad[part])
            fs.cross_entropy_jvp(x[part], y[part], x[part], **options)
            fs.cross_entropy_value_grad_hess(x[part], y[part], **options, grad_out=grad[part], hess_out=hess[part])
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak < x.nbytes * 0.7, f"{peak / x.nbytes:.2f} of the logits, {options}"


# --- edges ------------------------------------------------


def test_values_at_the_edges(room: Room, dtype: np.dtype) -> None:
    inf, nan = np.inf, np.nan
    x = np.array([[0, 1, -inf], [nan, 0, 0], [-inf] * 3, [inf, 0, 0]], dtype)
    u = np.array([[1, 2, nan]] * 4, dtype)
    y = np.zeros(4, int)
    for empty in ("nan", "zero"):
        options: dict[str, Any] = {"empty": empty, "reduction": "sum"}
        hv, h = fs.cross_entropy_hvp(x, y, u, **options), fs.cross_entropy_hessian(x, y, **options)
        hess = fs.cross_entropy_value_grad_hess(x, y, **options).hess
        tangent = fs.cross_entropy_jvp(x, y, u, empty=empty, reduction="none").tangent
        assert np.isfinite(hv[0]).all()
        assert hv[0, 2] == h[0, 2].any() == h[0, :, 2].any() == hess[0, 2] == 0
        assert np.isfinite(tangent[0])
        for broken in (1, 3):
            for a in (hv, h, hess, tangent):
                assert np.isnan(a[broken]).all()
        for a in (hv, h, hess, tangent):
            assert (np.isnan(a[2]) if empty == "nan" else a[2] == 0).all()
    ignored = np.full(4, -100)
    for a in (
        *fs.cross_entropy_jvp(x, ignored, u, reduction="none"), fs.cross_entropy_hvp(x, ignored, u, reduction="sum"),
        fs.cross_entropy_hessian(x, ignored), fs.cross_entropy_value_grad_hess(x, ignored).hess,
        fs.cross_entropy_hvp(x, ignored, u, softcap=3.0), fs.cross_entropy_hessian(x, ignored, softcap=3.0),
        fs.cross_entropy_value_grad_hess(x, ignored, softcap=3.0).hess,
    ):  # fmt: skip
        assert not np.any(a), "an ignored row has derivatives"
    masked = fs.cross_entropy_hessian(x, y, where=[True, True, False], reduction="sum")
    assert not masked[:, 2].any()
    assert not masked[:, :, 2].any()


def test_one_class_dominates(room: Room, dtype: np.dtype) -> None:
    """What is next to 0 keeps its digits."""
    for lead in (20.0, 60.0):
        x = np.array([[lead, 0, 0]], dtype)
        e = np.exp(LD(-lead))
        rest = 2 * e / (1 + 2 * e)
        three = fs.cross_entropy_value_grad_hess(x, [0])
        assert_close(three.hess[0, 0], np.asarray(rest * (1 - rest)), 4, what="p (1 - p)")
        h = fs.cross_entropy_hessian(x, [0])
        assert_close(h[0, 0, 0], np.asarray(rest * (1 - rest)), 4, what="Hessian")
        u = np.array([[1, 0, 0]], dtype)
        assert_close(fs.cross_entropy_hvp(x, [0], u)[0, 0], np.asarray(rest * (1 - rest)), 4, what="hvp")
        assert_close(fs.cross_entropy_jvp(x, [0], u).tangent, np.asarray(-rest), 4, what="jvp")


def test_errors_before_anything_is_written(room: Room) -> None:
    out = np.full((R, C), 7.0)
    calls = [
        (ValueError, "kind is 'xgboost'; expected one of 'exact', 'upper', 'friedman'",
         lambda: fs.cross_entropy_value_grad_hess(X, Y, kind="xgboost", grad_out=out)),
        (ValueError, "order is 'K'; expected one of 'C', 'F'",
         lambda: fs.cross_entropy_value_grad_hess(X, Y, order="K", grad_out=out)),
        (ValueError, r"hess_out has shape \(6, 8\); expected \(6, 9\)",
         lambda: fs.cross_entropy_value_grad_hess(X, Y, grad_out=out, hess_out=np.zeros((6, 8)))),
        (ValueError, "hess_out shares memory with grad_out; expected another array",
         lambda: fs.cross_entropy_value_grad_hess(X, Y, grad_out=out, hess_out=out[::-1])),
        (IndexError, r"target\[0\] = 9 is out of bounds for 9 classes",
         lambda: fs.cross_entropy_hvp(X, np.full(R, 9), U, out=out)),
        (ValueError, r"v has shape \(5, 9\); expected \(6, 9\), the shape of logits",
         lambda: fs.cross_entropy_hvp(X, Y, U[1:], out=out)),
        (ValueError, r"t has shape \(5, 9\); expected \(6, 9\), the shape of logits",
         lambda: fs.cross_entropy_jvp(X, Y, U[1:])),
        (ValueError, r"out has shape \(6, 9\); expected \(6, 9, 9\)",
         lambda: fs.cross_entropy_hessian(X, Y, out=out)),
        (ValueError, "grad_output has shape",
         lambda: fs.cross_entropy_hvp(X, Y, U, grad_output=np.ones(3), out=out)),
    ]  # fmt: skip
    for error, message, call in calls:
        with pytest.raises(error, match=message):
            call()
    assert (out == 7).all()


def test_a_scale_whose_square_overflows(room: Room) -> None:
    """The curvature of what has one class is 0 whatever the scale; of others it is infinite, and no error."""
    for scale in (1e300, -1e300):
        assert not fs.cross_entropy_hessian(np.zeros((2, 1)), [0, 0], scale=scale).any()
        assert np.isinf(fs.cross_entropy_hessian([0.0, 0.0], 0, scale=scale)).all()
        assert np.isinf(fs.cross_entropy_value_grad_hess([0.0, 0.0], 0, scale=scale).hess).all()


def test_broadcast_directions_and_dtypes(room: Room) -> None:
    one_hot = np.arange(C) == 2
    assert_same_bits(fs.cross_entropy_hvp(X, Y, one_hot), fs.cross_entropy_hvp(X, Y, np.tile(1.0 * one_hot, (R, 1))))
    x = X.astype(np.float32)
    assert fs.cross_entropy_hvp(x, Y, U.astype(np.float32)).dtype == np.float32
    assert fs.cross_entropy_hvp(x, Y, U).dtype == np.float64
    assert fs.cross_entropy_hvp(x, Y, U, weight=WEIGHT).dtype == np.float64
    value, tangent = fs.cross_entropy_jvp(x, Y, U.astype(np.float32))
    assert value.dtype == tangent.dtype == np.float32
    assert fs.cross_entropy_hvp(3.0, 0, 1.0) == 0
    assert fs.cross_entropy_hvp(3.0, 0, 1.0, softcap=2.0) == 0
    assert fs.cross_entropy_hessian(3.0, 0, softcap=2.0).shape == (1, 1)


def test_capped_logits_of_any_dtype(room: Room) -> None:
    for x in (X > 0, (3 * X).astype(np.int8), X.astype(np.float16), X.astype(">f4")):
        expected = fs.cross_entropy_hvp(x.astype(np.float64), Y, U, softcap=3.0)
        assert_same_bits(fs.cross_entropy_hvp(x, Y, U, softcap=3.0), expected)
    labels = np.zeros(3, np.int64)
    assert (fs.cross_entropy_value_grad_hess(labels, labels, (), softcap=3.0).hess == 0).all()


def test_named_tuples() -> None:
    assert fs.cross_entropy_jvp(X, Y, U)._fields == ("value", "tangent")
    assert fs.cross_entropy_value_grad_hess(X, Y)._fields == ("value", "grad", "hess")


# --- referees ------------------------------------------------


def test_scikit_learn(room: Room, dtype: np.dtype) -> None:
    """HalfMultinomialLoss: the same loss, gradient and diagonal."""
    loss = pytest.importorskip("sklearn._loss").HalfMultinomialLoss
    rng = np.random.default_rng(0)
    for n, c in ((1, 3), (50, 3), (20, 40)):
        x, weight = rng.normal(0, 3, (n, c)).astype(dtype), rng.random(n).astype(dtype)
        y = rng.integers(c, size=n)
        grad, hess = loss(n_classes=c).gradient_hessian(y.astype(dtype), x, sample_weight=weight)
        ours = fs.cross_entropy_value_grad_hess(x, y, sample_weight=weight, reduction="sum")
        eps = 32 * np.finfo(dtype).eps
        np.testing.assert_allclose(ours.grad, grad, rtol=0, atol=eps)
        np.testing.assert_allclose(ours.hess, hess, rtol=0, atol=eps)


TORCH = [
    {}, {"weight": WEIGHT}, {"label_smoothing": 0.2, "weight": WEIGHT}, {"label_smoothing": 0.3, "reduction": "sum"},
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")
@pytest.mark.parametrize("options", TORCH, ids=lambda o: "-".join(o) or "plain")
@pytest.mark.parametrize("target", [Y, PARTLY, SOFT], ids=["index", "ignored", "probabilities"])
def test_torch_double_backward(target: Array, options: dict[str, Any]) -> None:
    torch = pytest.importorskip("torch")
    given = {k: torch.tensor(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}

    def loss(x: Any) -> Any:
        return torch.nn.functional.cross_entropy(x, torch.tensor(target), **given)

    x = torch.tensor(X)
    h = torch.autograd.functional.hessian(loss, x).numpy()
    ours = fs.cross_entropy_hessian(X, target, **options)
    for i in range(R):
        for j in range(R):
            close(h[i, :, j], ours[i] if i == j else 0 * ours[i], f"rows {i} and {j}")
    hv = torch.autograd.functional.hvp(loss, x, torch.tensor(U))[1].numpy()
    close(fs.cross_entropy_hvp(X, target, U, **options), hv, "double backward")
    close(
        fs.cross_entropy_jvp(X, target, U, **options).tangent, torch.func.jvp(loss, (x,), (torch.tensor(U),))[1], "jvp"
    )


@pytest.mark.nightly
def test_jax_forward_over_reverse() -> None:
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    with jax.enable_x64(True):

        def loss(x: Any) -> Any:
            z = 5.0 * jnp.tanh(0.7 * x / 5.0)
            lse = jax.nn.logsumexp(z, axis=-1)
            return (lse - jnp.take_along_axis(z, Y[:, None], 1)[:, 0] + 0.1 * lse**2).mean()

        tangent = jax.jvp(loss, (X,), (U,))[1]
        hv = jax.jvp(jax.grad(loss), (X,), (U,))[1]
    options: dict[str, Any] = {"softcap": 5.0, "scale": 0.7, "z_loss": 0.1}
    close(fs.cross_entropy_jvp(X, Y, U, **options).tangent, tangent, "jvp")
    close(fs.cross_entropy_hvp(X, Y, U, **options), hv, "jvp of grad")
