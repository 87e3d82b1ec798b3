"""Where PyTorch differs at the edges, and where it does not: the table in docs/edges.rst, both columns of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import fastsoftmax as fs

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
