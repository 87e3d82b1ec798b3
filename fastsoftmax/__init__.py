"""Softmax, log-softmax, logsumexp, their derivatives and fused cross-entropy losses on NumPy arrays."""

from ._backends import BackendUnavailableError, available_backends, use_backend
from ._config import show_config
from ._derivatives import (
    log_softmax_jacobian,
    log_softmax_jvp,
    log_softmax_vjp,
    logsumexp_jvp,
    logsumexp_vjp,
    softmax_jacobian,
    softmax_jvp,
    softmax_vjp,
)
from ._forward import log_softmax, logsumexp, softmax
from ._losses import ValueAndGrad, cross_entropy, cross_entropy_value_and_grad
from ._threads import get_num_threads, num_threads, set_num_threads
from ._version import __version__

__all__ = [
    "BackendUnavailableError",
    "ValueAndGrad",
    "__version__",
    "available_backends",
    "cross_entropy",
    "cross_entropy_value_and_grad",
    "get_num_threads",
    "log_softmax",
    "log_softmax_jacobian",
    "log_softmax_jvp",
    "log_softmax_vjp",
    "logsumexp",
    "logsumexp_jvp",
    "logsumexp_vjp",
    "num_threads",
    "set_num_threads",
    "show_config",
    "softmax",
    "softmax_jacobian",
    "softmax_jvp",
    "softmax_vjp",
    "use_backend",
]
