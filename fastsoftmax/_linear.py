"""The faces of a linear layer fused with the cross-entropy: a block of rows of logits at a time, never all of them.

The products are BLAS's, through NumPy; the kernels work on a block in place.  A block is of whole rows, since a row's
softmax needs all its logits.  So every block multiplies by all of ``w``: the larger the blocks, the better.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _plan
from ._losses import ValueAndGrad, _Loss, cross_entropy, cross_entropy_value_and_grad
from ._ops import Array
from ._second_order import ValueAndTangent, cross_entropy_hvp, cross_entropy_jvp

__all__ = [
    "linear_cross_entropy",
    "linear_cross_entropy_hvp",
    "linear_cross_entropy_jvp",
    "linear_cross_entropy_value_and_grad",
]

# What a call may allocate beyond its results, by default: with the kernels' own tiles less than 64 MB.
DEFAULT_BYTES = 62_000_000

# A piece of w, or of its gradient, that is converted or added at a time: loss and gradients of x (2048, 512) and
# w (50257, 512), float32, took 1.38, 1.28 and 1.29 times the three products alone with 1, 2 and 4 MB.
PIECE_BYTES = 1 << 21


class _Layer:
    """One call: arguments checked, rows in blocks, and the products with them.

    Parameters
    ----------
    buffers
        How many blocks of logits are needed at a time.
    gradient
        Whether sums over rows of the shape of ``w`` are needed.
    tangents
        Directions in ``x``, ``w`` and ``bias`` by their names, None for 0.
    """

    def __init__(
        self, x: Any, w: Any, target: Any, bias: Any, *, sample_weight: Any, reduction: Any, max_bytes: Any,
        buffers: int, gradient: bool = False, tangents: dict[str, Any] | None = None, **options: Any,
    ) -> None:  # fmt: skip
        self.x, self.w = _plan.as_real("x", x), _plan.as_real("w", w)
        if not self.x.ndim:
            raise ValueError("x has shape (); expected (..., D)")
        self.batch, d = self.x.shape[:-1], self.x.shape[-1]
        if self.w.ndim != 2 or self.w.shape[1] != d:
            raise ValueError(f"w has shape {self.w.shape} but x has {self.x.shape}; expected (C, {d}), a row per class")
        c = self.w.shape[0]
        self.bias = None if bias is None else _plan.as_real("bias", bias)
        if self.bias is not None and self.bias.shape != (c,):
            raise ValueError(f"bias has shape {self.bias.shape}; expected ({c},), one number per class")
        self.tangents = [
            self._direction(name, value, like)
            for (name, value), like in zip((tangents or {}).items(), (self.x, self.w, self.bias))
        ]
        arrays = [a for a in (self.x, self.w, self.bias, *self.tangents) if a is not None]
        self.dtype = _plan.computing_dtype(_plan.result_dtype(*arrays))
        # The logits as far as their shape goes, so that the loss checks all the other arguments.
        logits = np.broadcast_to(np.zeros((), self.dtype), (*self.batch, c))
        self.loss = _Loss(
            logits, target, -1, sample_weight=sample_weight, reduction=reduction, scale=1.0, where=None, empty="nan",
            **options,
        )  # fmt: skip
        self.options = {**options, "reduction": "none"}
        self.divisor = self.loss.divisor()
        ignored = self.loss.ignored
        # Ignored rows take no part at all: 0 times a NaN in them would be NaN.
        self.kept = None if ignored is None else np.flatnonzero(~ignored.reshape(-1))
        self.rows = math.prod(self.batch) if self.kept is None else self.kept.size
        self._share(max_bytes, buffers, gradient)

    @staticmethod
    def _direction(name: str, value: Any, like: Array | None) -> Array | None:
        if value is None:
            return None
        a = _plan.as_real(name, value)
        if like is None:
            raise ValueError(f"{name} is given but bias is not; pass bias, if only zeros")
        if a.shape != like.shape:
            raise ValueError(f"{name} has shape {a.shape}; expected {like.shape}")
        return a

    def _share(self, max_bytes: Any, buffers: int, gradient: bool) -> None:
        """Choose the rows of a block and the classes of a piece so that all temporaries are within ``max_bytes``."""
        c, d = self.w.shape
        size = self.dtype.itemsize
        matrices = [a for a in (self.w, *self.tangents[1:2]) if a is not None]
        copied = sum(not self._ready(a) for a in matrices)
        # Per row: logits, with directions a piece of them; blocks of x and its tangent that are copies; of the results.
        pieces = max(1, min(c, PIECE_BYTES // max(1, d * size)))
        moved = self.tangents[1:2] != [] and self.tangents[1] is not None
        blocks = sum(not self._whole(a) for a in (self.x, *self.tangents[:1]) if a is not None)
        blocks += gradient * (1 + bool(copied) + moved)
        per_row = size * (buffers * c + (pieces if buffers > 1 else 0) + blocks * d)
        fixed = size * d * pieces * (gradient + copied)
        sums = size * c * d if gradient and _plan.result_dtype(self.w) != self.dtype else 0  # rounded at the end
        fixed += sums
        least = per_row + fixed
        if max_bytes is None:
            limit = max(DEFAULT_BYTES + sums, least)
        else:
            try:
                limit = operator.index(max_bytes)
            except TypeError:
                raise TypeError(f"max_bytes is {max_bytes!r}; expected an int or None") from None
            if limit < least:
                raise ValueError(
                    f"max_bytes is {limit}; expected at least {least}, for a row of {c} logits and a piece of w"
                )
        most = max(1, (limit - fixed) // max(1, per_row))
        # Blocks of equal size: a short last one would cost as much of BLAS's time as a long one, nearly.
        self.height = -(-self.rows // max(1, -(-self.rows // most)))
        self.pieces = pieces

    def _whole(self, a: Array) -> bool:
        """Tell whether blocks of an array of rows are views for BLAS."""
        if self.kept is not None:
            return False
        return self._ready(a) if a.ndim == 2 else a.dtype == self.dtype and a.flags.carray

    def _ready(self, a: Array) -> bool:
        """Tell whether BLAS takes a matrix as it lies in memory."""
        if a.dtype != self.dtype or not a.flags.aligned or not a.size:
            return False
        (outer, inner), size = a.strides, a.itemsize
        lengths = a.shape
        if outer == size and inner != size:
            (inner, outer), lengths = a.strides, lengths[::-1]
        return inner == size and outer >= size * lengths[1] and outer % size == 0

    def empty(self, columns: int) -> Array:
        """Return memory for a block of so many columns."""
        return np.empty((self.height, columns), self.dtype)

    def blocks(self) -> Iterator[Any]:
        """Yield the rows of each block: a slice, or their numbers where some are ignored."""
        for start in range(0, self.rows, max(1, self.height)):
            part = slice(start, min(start + self.height, self.rows))
            yield part if self.kept is None else self.kept[part]

    def take(self, a: Array, rows: Any) -> Array:
        """Return rows of an array, which has the batch's axes and one more, as a matrix for BLAS."""
        if len(self.batch) <= 1 or a.flags.c_contiguous:
            block = a.reshape(math.prod(self.batch), a.shape[-1])[rows]
        else:
            numbers = np.arange(rows.start, rows.stop) if isinstance(rows, slice) else rows
            block = a[np.unravel_index(numbers, self.batch)]
        return block if self._ready(block) else np.ascontiguousarray(block, self.dtype)

    def arguments(self, rows: Any) -> tuple[Array, dict[str, Any]]:
        """Return the target and the options of a block's loss."""
        target, weights = self.loss.target, self.loss.rows
        target = target.reshape(-1)[rows] if self.loss.indexed else self.take(target, rows)
        each = None if isinstance(weights, float) else weights.reshape(-1)[rows]
        return target, {**self.options, "sample_weight": each}

    def upstream(self, grad_output: Any) -> Any:
        """Return the gradients with respect to the rows' losses: a number, or one per row."""
        upstream = self.loss.upstream(grad_output, self.divisor)
        return upstream.reshape(-1).astype(self.dtype) if isinstance(upstream, np.ndarray) else upstream

    def parts(self, m: Array) -> Iterator[tuple[slice, Array]]:
        """Yield slices of the classes and a matrix's rows there for BLAS: all at once, or copies of pieces."""
        if self._ready(m):
            yield slice(0, len(m)), m
            return
        for start in range(0, len(m), self.pieces):
            part = slice(start, start + self.pieces)
            yield part, np.ascontiguousarray(m[part], self.dtype)

    def logits(self, x: Array, out: Array) -> Array:
        """Compute a block's logits."""
        z = out[: len(x)]
        for part, w in self.parts(self.w):
            np.matmul(x, w.T, out=z[:, part])
        if self.bias is not None:
            z += self.bias.astype(self.dtype, copy=False)
        return z

    def direction(self, x: Array, rows: Any, out: Array) -> tuple[Array, Array | None]:
        """Compute how a block's logits change along the tangents; return the block of the tangent of x, too."""
        tx, tw, tbias = self.tangents
        dz = out[: len(x)]
        block = None if tx is None else self.take(tx, rows)
        if block is None:
            dz[...] = 0
        else:
            for part, w in self.parts(self.w):
                np.matmul(block, w.T, out=dz[:, part])
        if tw is not None:
            for start in range(0, len(tw), self.pieces):
                part = slice(start, start + self.pieces)
                dz[:, part] += np.matmul(x, np.ascontiguousarray(tw[part], self.dtype).T)
        if tbias is not None:
            dz += tbias.astype(self.dtype, copy=False)
        return dz, block

    def pulled_back(self, dz: Array, m: Array) -> Array:
        """Return ``dz @ m``."""
        whole = None
        for part, w in self.parts(m):
            product = np.matmul(dz[:, part], w)
            whole = product if whole is None else np.add(whole, product, out=whole)
        return np.zeros((len(dz), m.shape[1]), self.dtype) if whole is None else whole


class _Sums:
    """Results of the shapes of x, w and bias, summed over blocks."""

    def __init__(self, layer: _Layer) -> None:
        self.layer = layer
        whole = layer.kept is None
        dtype = layer.dtype
        self.x = (np.empty if whole else np.zeros)(layer.x.shape, _plan.result_dtype(layer.x))
        self.rows = self.x.reshape(math.prod(layer.batch), layer.x.shape[-1])
        self.w = (np.empty if layer.rows else np.zeros)(layer.w.shape, dtype)
        self.bias = None if layer.bias is None else np.zeros(layer.bias.shape, dtype)
        self.started = False
        self.piece = np.empty((layer.pieces, layer.w.shape[1]), dtype)

    def put_x(self, rows: Any, *products: tuple[Array, Array]) -> None:
        """Set rows of the result for x to the sum of products."""
        first, *others = (self.layer.pulled_back(*pair) for pair in products)
        for other in others:
            first += other
        self.rows[rows] = first

    def add_w(self, dz: Array, x: Array) -> None:
        """Add ``dz.T @ x``, a piece at a time: NumPy cannot add a product, and all of it is as large as the result."""
        for start in range(0, len(self.w), self.layer.pieces):
            part = self.w[start : start + self.layer.pieces]
            piece = np.matmul(
                dz[:, start : start + len(part)].T, x, out=self.piece[: len(part)] if self.started else part
            )
            if self.started:
                part += piece
        self.started = True

    def add_bias(self, dz: Array) -> None:
        """Add the sum over the rows."""
        if self.bias is not None:
            self.bias += np.matmul(np.ones(len(dz), dz.dtype), dz)

    def close(self) -> tuple[Array, Array, Array | None]:
        """Return the results in the dtypes of x, w and bias."""
        layer = self.layer
        bias = None
        if layer.bias is not None and self.bias is not None:
            bias = self.bias.astype(_plan.result_dtype(layer.bias), copy=False)
        return self.x, self.w.astype(_plan.result_dtype(layer.w), copy=False), bias


def linear_cross_entropy(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    z_loss: float = 0.0,
    max_bytes: int | None = None,
) -> Any:
    r"""Cross-entropy of a linear layer, :math:`L(x w^T + b)`, without its logits in memory.

    Parameters
    ----------
    x : array_like of shape (..., D)
        The layer's inputs, in rows; of any strides and real dtype.
    w : array_like of shape (C, D)
        The layer's weights, a row per class.
    target : array_like
        Class indices of shape (...), or probabilities of shape (..., C), as for :func:`cross_entropy`.
    bias : array_like of shape (C,), optional
        Added to each row of the logits.
    weight, sample_weight, ignore_index, label_smoothing, reduction, softcap, z_loss
        As for :func:`cross_entropy`.
    max_bytes : int, optional
        Bounds the memory for blocks of logits and other temporaries that grow with C or D.  The default is 62 MB, or
        what a block of one row takes.

    Returns
    -------
    scalar, or ndarray of shape (...) with ``reduction="none"``
        The loss in nats; float32, or float64 if any argument is float64.

    Raises
    ------
    IndexError
        If a label is out of bounds.
    TypeError, ValueError
        For arguments of a wrong kind, shape or range, and a ``max_bytes`` into which no row fits.

    Notes
    -----
    float16 and bfloat16 are computed in float32.  The products are computed by the BLAS that NumPy uses, with its
    threads: unlike the other functions' results, these depend in their last bits on it, and on ``max_bytes``.  Given
    the logits of a row, its loss is within 2 ULP.  An ignored row of ``x`` may hold anything.

    Examples
    --------
    >>> import numpy as np, fastsoftmax as fs
    >>> x, w = np.eye(2), np.log([[1.0, 2.0], [3.0, 2.0]])
    >>> np.exp(-fs.linear_cross_entropy(x, w, [1, 0], reduction="none"))
    array([0.75, 0.5 ])
    """
    layer = _Layer(
        x, w, target, bias, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction, softcap=softcap, z_loss=z_loss, max_bytes=max_bytes,
        buffers=1,
    )  # fmt: skip
    losses = np.zeros(math.prod(layer.batch), layer.loss.loss_dtype)
    with np.errstate(all="ignore"):
        buffer = layer.empty(len(layer.w))
        for rows in layer.blocks():
            z = layer.logits(layer.take(layer.x, rows), buffer)
            labels, options = layer.arguments(rows)
            losses[rows] = cross_entropy(z, labels, **options)
    return layer.loss.reduced(losses.reshape(layer.batch)[()], layer.divisor)


def linear_cross_entropy_value_and_grad(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    bias: ArrayLike | None = None,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    z_loss: float = 0.0,
    max_bytes: int | None = None,
    grad_output: ArrayLike | None = None,
) -> ValueAndGrad:
    r"""Cross-entropy of a linear layer and its gradients, without the logits in memory.

    With G the gradient by the logits (:func:`cross_entropy_value_and_grad`), the gradients by ``x``, ``w`` and ``bias``
    are :math:`G w`, :math:`G^T x` and :math:`G^T 1`.

    Parameters
    ----------
    x : array_like of shape (..., D)
        The layer's inputs, in rows; of any strides and real dtype.
    w : array_like of shape (C, D)
        The layer's weights, a row per class.
    target : array_like
        Class indices of shape (...), or probabilities of shape (..., C), as for :func:`cross_entropy`.
    bias : array_like of shape (C,), optional
        Added to each row of the logits.
    weight, sample_weight, ignore_index, label_smoothing, reduction, softcap, z_loss
        As for :func:`cross_entropy`.
    max_bytes : int, optional
        Bounds the memory for blocks of logits and other temporaries that grow with C or D.  The default is 62 MB, or
        what a block of one row takes.  If ``w`` is not of the computing dtype, its gradient is summed in that; this sum
        counts, too, and is added to the default.
    grad_output : array_like, optional
        The upstream gradient: a scalar, or one number per row with ``reduction="none"``.

    Returns
    -------
    ValueAndGrad
        The named pair ``(value, grad)``; ``grad`` is the tuple of the gradients by ``x``, ``w`` and ``bias``, of their
        shapes and dtypes (float64 for integers; None without ``bias``).

    Raises
    ------
    IndexError
        If a label is out of bounds.
    TypeError, ValueError
        For arguments of a wrong kind, shape or range, and a ``max_bytes`` into which no row fits.

    Notes
    -----
    float16 and bfloat16 are computed in float32, and each result is rounded once.  The products are BLAS's, as in
    :func:`linear_cross_entropy`.  An ignored row of ``x`` may hold anything: its gradient is 0, and it does not
    contribute to those of ``w`` and ``bias``.

    Examples
    --------
    >>> import numpy as np, fastsoftmax as fs
    >>> value, (dx, dw, db) = fs.linear_cross_entropy_value_and_grad([[2.0]], [[0.0], [0.0]], [1], [0.0, 0.0])
    >>> dw
    array([[ 1.],
           [-1.]])
    """
    layer = _Layer(
        x, w, target, bias, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction, softcap=softcap, z_loss=z_loss, max_bytes=max_bytes,
        buffers=1, gradient=True,
    )  # fmt: skip
    upstream = layer.upstream(grad_output)
    losses = np.zeros(math.prod(layer.batch), layer.loss.loss_dtype)
    with np.errstate(all="ignore"):
        sums, buffer = _Sums(layer), layer.empty(len(layer.w))
        for rows in layer.blocks():
            block = layer.take(layer.x, rows)
            z = layer.logits(block, buffer)
            labels, options = layer.arguments(rows)
            g = upstream[rows] if isinstance(upstream, np.ndarray) else upstream
            losses[rows] = cross_entropy_value_and_grad(z, labels, grad_output=g, grad_out=z, **options).value
            sums.put_x(rows, (z, layer.w))
            sums.add_w(z, block)
            sums.add_bias(z)
        return ValueAndGrad(layer.loss.reduced(losses.reshape(layer.batch)[()], layer.divisor), sums.close())


def linear_cross_entropy_jvp(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    bias: ArrayLike | None = None,
    tx: ArrayLike | None = None,
    tw: ArrayLike | None = None,
    tbias: ArrayLike | None = None,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    z_loss: float = 0.0,
    max_bytes: int | None = None,
) -> ValueAndTangent:
    r"""Cross-entropy of a linear layer and its derivative along a direction, without the logits in memory.

    The logits change by :math:`t_x w^T + x t_w^T + t_b`; the rest is :func:`cross_entropy_jvp`.

    Parameters
    ----------
    x : array_like of shape (..., D)
        The layer's inputs, in rows; of any strides and real dtype.
    w : array_like of shape (C, D)
        The layer's weights, a row per class.
    target : array_like
        Class indices of shape (...), or probabilities of shape (..., C), as for :func:`cross_entropy`.
    bias : array_like of shape (C,), optional
        Added to each row of the logits.
    tx, tw, tbias : array_like, optional
        The direction in ``x``, ``w`` and ``bias``, of their shapes; None is 0.
    weight, sample_weight, ignore_index, label_smoothing, reduction, softcap, z_loss
        As for :func:`cross_entropy`.
    max_bytes : int, optional
        As for :func:`linear_cross_entropy`.

    Returns
    -------
    ValueAndTangent
        The named pair ``(value, tangent)``.  With ``reduction="none"`` both have the batch's shape.

    Raises
    ------
    IndexError
        If a label is out of bounds.
    TypeError, ValueError
        For arguments of a wrong kind, shape or range, and a ``max_bytes`` into which no row fits.

    Notes
    -----
    The products are BLAS's, as in :func:`linear_cross_entropy`; given the logits and their tangents, a row's tangent
    has the promise of :func:`cross_entropy_jvp`.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> value, tangent = fs.linear_cross_entropy_jvp([[2.0]], [[0.0], [0.0]], [1], tw=[[1.0], [0.0]])
    >>> float(tangent)
    1.0
    """
    layer = _Layer(
        x, w, target, bias, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction, softcap=softcap, z_loss=z_loss, max_bytes=max_bytes,
        buffers=2, tangents={"tx": tx, "tw": tw, "tbias": tbias},
    )  # fmt: skip
    losses, slopes = np.zeros((2, math.prod(layer.batch)), layer.loss.loss_dtype)
    with np.errstate(all="ignore"):
        buffer, second = layer.empty(len(layer.w)), layer.empty(len(layer.w))
        for rows in layer.blocks():
            block = layer.take(layer.x, rows)
            z = layer.logits(block, buffer)
            dz, _ = layer.direction(block, rows, second)
            labels, options = layer.arguments(rows)
            losses[rows], slopes[rows] = cross_entropy_jvp(z, labels, dz, **options)
    results = (layer.loss.reduced(a.reshape(layer.batch)[()], layer.divisor) for a in (losses, slopes))
    return ValueAndTangent(*results)


def linear_cross_entropy_hvp(
    x: ArrayLike,
    w: ArrayLike,
    target: ArrayLike,
    bias: ArrayLike | None = None,
    vx: ArrayLike | None = None,
    vw: ArrayLike | None = None,
    vbias: ArrayLike | None = None,
    *,
    weight: ArrayLike | None = None,
    sample_weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    softcap: float | None = None,
    z_loss: float = 0.0,
    max_bytes: int | None = None,
    grad_output: ArrayLike | None = None,
) -> tuple[Array, Array, Array | None]:
    r"""Hessian of a linear layer's cross-entropy times a direction, jointly in ``x``, ``w`` and ``bias``.

    With :math:`V = v_x w^T + x v_w^T + v_b` the change of the logits, G their gradient and H V the product of the
    loss's Hessian (:func:`cross_entropy_hvp`), the products for ``x``, ``w`` and ``bias`` are
    :math:`H V\,w + G\,v_w`, :math:`(H V)^T x + G^T v_x` and :math:`(H V)^T 1`.

    Parameters
    ----------
    x : array_like of shape (..., D)
        The layer's inputs, in rows; of any strides and real dtype.
    w : array_like of shape (C, D)
        The layer's weights, a row per class.
    target : array_like
        Class indices of shape (...), or probabilities of shape (..., C), as for :func:`cross_entropy`.
    bias : array_like of shape (C,), optional
        Added to each row of the logits.
    vx, vw, vbias : array_like, optional
        The direction in ``x``, ``w`` and ``bias``, of their shapes; None is 0.
    weight, sample_weight, ignore_index, label_smoothing, reduction, softcap, z_loss
        As for :func:`cross_entropy`.
    max_bytes : int, optional
        As for :func:`linear_cross_entropy_value_and_grad`.
    grad_output : array_like, optional
        What the Hessian is multiplied by: a scalar, or one number per row with ``reduction="none"``.

    Returns
    -------
    tuple
        The products for ``x``, ``w`` and ``bias`` (None without it), of their shapes and dtypes.

    Raises
    ------
    IndexError
        If a label is out of bounds.
    TypeError, ValueError
        For arguments of a wrong kind, shape or range, and a ``max_bytes`` into which no row fits.

    Notes
    -----
    This is the exact Hessian, mixed terms included; it is symmetric, but not positive semi-definite: the loss is convex
    in the logits, not in ``x`` and ``w`` together.  The products are BLAS's, as in :func:`linear_cross_entropy`.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> hx, hw, _ = fs.linear_cross_entropy_hvp([[2.0]], [[0.0], [0.0]], [1], vw=[[1.0], [0.0]])
    >>> hx, hw
    (array([[0.5]]), array([[ 1.],
           [-1.]]))
    """
    layer = _Layer(
        x, w, target, bias, weight=weight, sample_weight=sample_weight, ignore_index=ignore_index,
        label_smoothing=label_smoothing, reduction=reduction, softcap=softcap, z_loss=z_loss, max_bytes=max_bytes,
        buffers=2, gradient=True, tangents={"vx": vx, "vw": vw, "vbias": vbias},
    )  # fmt: skip
    upstream = layer.upstream(grad_output)
    with np.errstate(all="ignore"):
        sums = _Sums(layer)
        buffer, second = layer.empty(len(layer.w)), layer.empty(len(layer.w))
        for rows in layer.blocks():
            block = layer.take(layer.x, rows)
            z = layer.logits(block, buffer)
            dz, moved = layer.direction(block, rows, second)
            labels, options = layer.arguments(rows)
            g = upstream[rows] if isinstance(upstream, np.ndarray) else upstream
            cross_entropy_hvp(z, labels, dz, grad_output=g, out=dz, **options)
            cross_entropy_value_and_grad(z, labels, grad_output=g, grad_out=z, **options)
            vw_here = layer.tangents[1]
            sums.put_x(rows, (dz, layer.w), *([] if vw_here is None else [(z, vw_here)]))
            sums.add_w(dz, block)
            if moved is not None:
                sums.add_w(z, moved)
            sums.add_bias(dz)
        return sums.close()
