"""The other libraries of ``fastsoftmax bench``.

A peer is a function ``peer(op, operands, threads)`` that returns a call without arguments, whose result
:func:`numpy.asarray` can read (or a pair of such), or None if the library has no such operation.  What it can prepare
(conversion, compilation, memory for the output) it does before it returns.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .._ops import Array

Call = Callable[[], Any]
Peer = Callable[[str, Sequence[Array], int], Call | None]


def _bound(function: Callable[..., Any] | None, operands: Sequence[Any]) -> Call | None:
    return None if function is None else lambda: function(*operands)


# --- plain NumPy ----------------------------------------------------------------------------------


def idiom_softmax(x: Array) -> Array:
    """Softmax as everybody writes it."""
    e: Array = np.exp(x - x.max(-1, keepdims=True))
    e /= e.sum(-1, keepdims=True)
    return e


def _idiom_log_softmax(x: Array) -> Any:
    z = x - x.max(-1, keepdims=True)
    return z - np.log(np.exp(z).sum(-1, keepdims=True))


def _idiom_logsumexp(x: Array) -> Any:
    m = x.max(-1, keepdims=True)
    return np.log(np.exp(x - m).sum(-1)) + m[:, 0]


def _idiom_cross_entropy(x: Array, y: Array) -> Any:
    return -_idiom_log_softmax(x)[np.arange(len(y)), y]


def idiom_value_and_grad(x: Array, y: Array) -> tuple[Array, Array]:
    """Losses per row, and their gradient, as everybody writes them."""
    p = idiom_softmax(x)
    rows = np.arange(len(y))
    losses = -np.log(p[rows, y])
    p[rows, y] -= 1
    return losses, p


def _idiom_softmax_vjp(p: Array, g: Array) -> Any:
    return p * (g - (p * g).sum(-1, keepdims=True))


def _idiom_log_softmax_vjp(logp: Array, g: Array) -> Any:
    return g - np.exp(logp) * g.sum(-1, keepdims=True)


def idiom(op: str, operands: Sequence[Array], threads: int) -> Call | None:
    """Plain NumPy, on one thread."""
    del threads
    functions: dict[str, Callable[..., Any]] = {
        "softmax": idiom_softmax,
        "log_softmax": _idiom_log_softmax,
        "logsumexp": _idiom_logsumexp,
        "cross_entropy": _idiom_cross_entropy,
        "cross_entropy_value_and_grad": idiom_value_and_grad,
        "softmax_jvp": _idiom_softmax_vjp,
        "softmax_vjp": _idiom_softmax_vjp,
        "log_softmax_vjp": _idiom_log_softmax_vjp,
    }
    return _bound(functions.get(op), operands)


# --- libraries ------------------------------------------------------------------------------------


def scipy(op: str, operands: Sequence[Array], threads: int) -> Call | None:
    """SciPy, on one thread."""
    del threads
    special = importlib.import_module("scipy.special")
    if op not in ("softmax", "log_softmax", "logsumexp"):
        return None
    function = getattr(special, op)
    return lambda: function(*operands, axis=-1)


def torch(op: str, operands: Sequence[Array], threads: int) -> Call | None:
    """PyTorch, into memory that is reused where it takes an ``out``."""
    torch = importlib.import_module("torch")
    torch.set_num_threads(threads)
    a = [torch.from_numpy(operand) for operand in operands]
    out, rows = torch.empty_like(a[0]), torch.empty_like(a[0][:, 0])
    entropy = torch.nn.functional.cross_entropy
    aten = torch.ops.aten

    def cross_entropy() -> Any:
        with torch.no_grad():
            return entropy(a[0], a[1], reduction="none")

    def value_and_grad() -> Any:
        losses = entropy(leaf, a[1], reduction="none")
        return losses.detach(), torch.autograd.grad(losses, leaf, ones)[0]

    leaf, ones = a[0].detach().requires_grad_(), torch.ones_like(rows)
    calls: dict[str, Call] = {
        "softmax": lambda: torch.softmax(a[0], -1, out=out),
        "log_softmax": lambda: torch.log_softmax(a[0], -1, out=out),
        "logsumexp": lambda: torch.logsumexp(a[0], -1, out=rows),
        "cross_entropy": cross_entropy,
        "cross_entropy_value_and_grad": value_and_grad,
        "softmax_vjp": lambda: aten._softmax_backward_data.out(a[1], a[0], -1, a[0].dtype, grad_input=out),
        "log_softmax_vjp": lambda: aten._log_softmax_backward_data.out(a[1], a[0], -1, a[0].dtype, out=out),
    }
    return calls.get(op)


def jax(op: str, operands: Sequence[Array], threads: int) -> Call | None:
    """JAX, compiled."""
    # Read once, when the first array is made; the flags in XLA_FLAGS have no effect on the pool's size.
    os.environ["PJRT_NPROC"] = os.environ["NPROC"] = str(threads)
    jax = importlib.import_module("jax")
    jnp = importlib.import_module("jax.numpy")
    jax.config.update("jax_enable_x64", True)

    def losses(x: Any, y: Any) -> Any:
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], -1)[:, 0]

    def value_and_grad(x: Any, y: Any) -> Any:
        value, pullback = jax.vjp(lambda logits: losses(logits, y), x)
        return value, pullback(jnp.ones_like(value))[0]

    functions: dict[str, Callable[..., Any]] = {
        "softmax": jax.nn.softmax,
        "log_softmax": jax.nn.log_softmax,
        "logsumexp": lambda x: jax.nn.logsumexp(x, axis=-1),
        "cross_entropy": losses,
        "cross_entropy_value_and_grad": value_and_grad,
        "softmax_jvp": lambda p, t: p * (t - (p * t).sum(-1, keepdims=True)),
        "softmax_vjp": lambda p, g: p * (g - (p * g).sum(-1, keepdims=True)),
        "log_softmax_vjp": lambda logp, g: g - jnp.exp(logp) * g.sum(-1, keepdims=True),
    }
    if op not in functions:
        return None
    compiled = jax.jit(functions[op])
    arrays = [jnp.asarray(operand) for operand in operands]
    return lambda: jax.block_until_ready(compiled(*arrays))


def onnxruntime(op: str, operands: Sequence[Array], threads: int) -> Call | None:
    """ONNX Runtime, with inputs and outputs bound to memory that is reused."""
    ort = importlib.import_module("onnxruntime")
    helper = importlib.import_module("onnx.helper")
    nodes: dict[str, tuple[str, dict[str, Any]]] = {
        "softmax": ("Softmax", {"axis": -1}),
        "log_softmax": ("LogSoftmax", {"axis": -1}),
        "logsumexp": ("ReduceLogSumExp", {"axes": [-1], "keepdims": 0}),
        "cross_entropy": ("SoftmaxCrossEntropyLoss", {"reduction": "none"}),
    }
    if op not in nodes:
        return None
    kind, attributes = nodes[op]
    x = operands[0]
    out = np.empty(x.shape if op.endswith("softmax") else x.shape[:1], x.dtype)

    def declared(name: str, array: Array) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    names = ["x", "y"][: len(operands)]
    graph = helper.make_graph(
        [helper.make_node(kind, names, ["out"], **attributes)],
        op,
        [declared(name, array) for name, array in zip(names, operands)],
        [declared("out", out)],
    )
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # Threads that wait by spinning would take the processors from whoever has the next turn.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in zip(names, operands):
        binding.bind_input(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
    binding.bind_output("out", "cpu", 0, out.dtype.type, out.shape, out.ctypes.data)

    def call() -> Array:
        session.run_with_iobinding(binding)
        return out

    return call


# Name on the command line: name in the table, packages that it needs (its own first), function.
PEERS: dict[str, tuple[str, tuple[str, ...], Peer]] = {
    "idiom": ("NumPy idiom", ("numpy",), idiom),
    "scipy": ("SciPy", ("scipy",), scipy),
    "torch": ("PyTorch", ("torch",), torch),
    "jax": ("JAX", ("jax",), jax),
    "onnxruntime": ("ONNX Runtime", ("onnxruntime", "onnx"), onnxruntime),
}
