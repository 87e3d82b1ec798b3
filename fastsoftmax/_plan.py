"""The plan: turns any call into rows.  The only file that knows shapes, and the one voice of all errors.

The way of an array is a straight line::

    call -> as_real -> Frame (axes) -> Output (out=, aliasing) -> execute -> kernel -> result

A kernel sees operands of shape ``(n1, n2, c)``: two batch dimensions and the classes.  Most arrays collapse
to that without a copy.  What does not (byte order, misalignment, more than two irreducible batch dimensions; another
dtype than the computing one, a mask, a softcap or any stride for a backend that does not know of such things)
is *staged*: loaded block by block into a contiguous tile, computed there, and stored back.
"""

from __future__ import annotations

import functools
import itertools
import math
import operator
from collections.abc import Iterator, Sequence, Set
from typing import Any

import numpy as np

from . import _backends, _threads
from ._ops import CLASS, LABEL, ONE, OPS, ROW, SQUARE, Array, Op

F4, F8 = np.dtype(np.float32), np.dtype(np.float64)

# Bytes of one staged tile: a few of them fit a 1 MiB second-level cache.
TILE_BYTES = 1 << 18

EMPTY = {"nan": 0.0, "zero": 1.0}

# Outputs that are derivatives by the logits, and how many times: the chain rule's factor of staged logits goes in.
DERIVATIVES = {"dx": 1, "slope": 1, "hess": 2, "hv": 2, "h": 2}

# What an excluded class has, whatever the row holds, if it is no derivative, which is 0.
EXCLUDED = {"softmax": 0.0, "log_softmax": -np.inf}

# Scales that the kernels take: within, no constant of their argument reduction leaves the range of float32.
SCALES = (2.0**-64, 2.0**64)


# --- arguments --------------------------------------------------------------------------------------------------


def as_array(name: str, value: Any) -> Array:
    """Return ``value`` as an ndarray without copying where that is possible."""
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} is a masked array, which is not supported; pass where=~{name}.mask")
    if not hasattr(value, "__array__") and hasattr(value, "__dlpack__"):
        return np.from_dlpack(value)
    try:
        return np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{name} cannot be made an array: {error}") from None


def is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Tell whether ``dtype`` is ml_dtypes' bfloat16, without importing ml_dtypes."""
    return dtype.kind == "V" and dtype.name == "bfloat16"


def _is_float(dtype: np.dtype[Any]) -> bool:
    """Tell whether results can be of this dtype."""
    return (dtype.kind == "f" and dtype.itemsize <= 8) or is_bfloat16(dtype)


def as_real(name: str, value: Any) -> Array:
    """Return ``value`` as an ndarray of one of the real dtypes the library reads."""
    a = as_array(name, value)
    if a.dtype.kind in "iub" or _is_float(a.dtype):
        return a
    raise TypeError(
        f"{name} has dtype {a.dtype}; expected float16, bfloat16, float32 or float64 "
        "(integers and bools are converted to float64)"
    )


def result_dtype(*arrays: Array) -> np.dtype[Any]:
    """Return the dtype of the result of a function of these arrays: floats promote, integers are float64."""
    native = (a.dtype.newbyteorder("=") if a.dtype.kind == "f" else a.dtype for a in arrays)
    dtypes: set[np.dtype[Any]] = {F8 if d.kind in "iub" else d for d in native}
    if len(dtypes) == 1:
        return dtypes.pop()
    if any(is_bfloat16(d) for d in dtypes):
        return F8 if F8 in dtypes else F4
    result: np.dtype[Any] = np.result_type(*dtypes)
    return result


def computing_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in which a result of ``dtype`` is computed: 16-bit floats are computed in float32."""
    return F8 if dtype == F8 else F4


def chosen_dtype(dtype: Any, natural: np.dtype[Any]) -> np.dtype[Any]:
    """Return the result's dtype: the ``dtype=`` argument, or the natural one."""
    if dtype is None:
        return natural
    try:
        chosen: np.dtype[Any] = np.dtype(dtype)
    except TypeError:
        chosen = dtype  # no dtype at all
    else:
        if _is_float(chosen):
            return chosen
    raise TypeError(f"dtype is {chosen}; expected float16, bfloat16, float32 or float64")


def real_number(name: str, value: Any) -> float:
    """Return ``value`` as a finite float."""
    try:
        number = float("" if isinstance(value, str | bytes) else value)
    except (TypeError, ValueError):
        raise TypeError(f"{name} is {value!r}; expected a real number") from None
    except OverflowError:  # an int with more than 308 digits
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is {number}; expected a finite number")
    return number


def one_of(name: str, value: Any, known: Sequence[str]) -> str:
    """Return ``value`` if it is one of the known words."""
    if isinstance(value, str) and value in known:
        return value
    raise ValueError(f"{name} is {value!r}; expected one of {', '.join(map(repr, known))}")


# --- axes -------------------------------------------------------------------------------------------------------


class Frame:
    """How an array of one shape is seen as rows: which axes are classes, which are the batch.

    Parameters
    ----------
    shape
        Shape of the operand that the function's axis refers to.
    axis
        An int, a tuple of ints, or None for all axes.

    Raises
    ------
    numpy.exceptions.AxisError
        If an axis does not exist.
    """

    __slots__ = ("axes", "batch_shape", "c", "class_shape", "nbatch", "perm", "r", "shape")

    def __init__(self, shape: tuple[int, ...], axis: Any) -> None:
        # A scalar is one row of one class; NumPy's own reductions take axis 0 and -1 of it, too.
        ndim = max(len(shape), 1)
        self.shape = shape
        full = shape or (1,)
        if axis is None:
            axes = tuple(range(ndim))
        else:
            try:
                axes = (operator.index(axis),)
            except TypeError:
                try:
                    axes = tuple(operator.index(a) for a in axis)
                except TypeError:
                    raise TypeError(f"axis is {axis!r}; expected an int, a tuple of ints or None") from None
            for a in axes:
                if not -ndim <= a < ndim:
                    raise np.exceptions.AxisError(a, len(shape))
            axes = tuple(a % ndim for a in axes)
            if len(set(axes)) < len(axes):
                raise ValueError(f"axis is {axis!r}; expected no axis twice")
        self.axes = axes
        batch = tuple(k for k in range(ndim) if k not in axes)
        self.nbatch = len(batch)
        self.perm = batch + axes
        self.batch_shape = tuple(full[k] for k in batch)
        self.class_shape = tuple(full[k] for k in axes)
        self.r = math.prod(self.batch_shape)
        self.c = math.prod(self.class_shape)

    def rows(self, a: Array) -> Array:
        """View an array of the frame's shape as batch axes followed by class axes."""
        return (a if self.shape else a.reshape(1)).transpose(self.perm)

    def kept_shape(self) -> tuple[int, ...]:
        """Return the frame's shape with every class axis of length 1 (``keepdims=True``)."""
        return tuple(1 if k in self.axes else n for k, n in enumerate(self.shape))


def batch_view(name: str, value: Any, shape: tuple[int, ...], frame: Frame) -> Any:
    """View an ``out`` of ``shape`` (the batch, with or without axes of length 1) as the batch."""
    if not isinstance(value, np.ndarray) or isinstance(value, np.ma.MaskedArray):
        return value
    if value.shape != shape:
        raise ValueError(f"{name} has shape {value.shape}; expected {shape}")
    return np.asarray(value).reshape(frame.batch_shape)


def per_row(name: str, value: Any, frame: Frame) -> Array:
    """Return a real operand with one number per row: of the batch's shape, of keepdims' shape, or a scalar."""
    a = as_real(name, value)
    if a.shape == frame.batch_shape:
        return a
    if a.shape == frame.kept_shape():
        return a.reshape(frame.batch_shape)
    if a.ndim == 0:
        return np.broadcast_to(a, frame.batch_shape)
    raise ValueError(f"{name} has shape {a.shape}; expected {frame.batch_shape}, one number per row, or a scalar")


# --- outputs ----------------------------------------------------------------------------------------------------


def _overlaps_itself(a: Array) -> bool:
    """Tell whether any two elements share memory."""
    if a.flags.forc or not a.size:  # NumPy gives empty arrays zero strides
        return False
    reach = a.itemsize
    for stride, n in sorted((abs(s), n) for s, n in zip(a.strides, a.shape, strict=True) if n > 1):
        if stride < reach:
            break
        reach += stride * (n - 1)
    else:
        return False
    # No slice or transpose of an array comes here, but as_strided's views do, of which few are sound: look at each.
    steps = (np.arange(n) * s for s, n in zip(a.strides, a.shape, strict=True))
    places = np.sort(functools.reduce(np.add.outer, steps, np.zeros((), np.intp)), axis=None)
    return bool((np.diff(places) < a.itemsize).any())


class Output:
    """Where one result goes: a new array, the caller's ``out``, or a temporary if ``out`` overlaps an input."""

    __slots__ = ("array", "aside", "dtype", "given", "name", "shape")

    def __init__(self, name: str, given: Any, shape: tuple[int, ...], dtype: np.dtype[Any], dtype_free: bool) -> None:
        self.name, self.given, self.shape, self.dtype = name, given, shape, dtype
        self.array: Array
        if given is None:
            return
        if not isinstance(given, np.ndarray) or isinstance(given, np.ma.MaskedArray):
            raise TypeError(f"{name} is a {type(given).__name__}; expected a NumPy array of shape {shape}")
        if given.shape != shape:
            raise ValueError(f"{name} has shape {given.shape}; expected {shape}")
        if given.dtype != dtype:
            choosable = dtype_free and given.dtype.isnative and _is_float(given.dtype)
            fix = f" (pass dtype={given.dtype.name!r} to choose the result's dtype)" if choosable else ""
            raise TypeError(f"{name} has dtype {given.dtype}; expected {dtype}{fix}")
        if not given.flags.writeable:
            raise ValueError(f"{name} is read-only; expected a writeable array")
        if _overlaps_itself(given):
            raise ValueError(f"{name} has elements that share memory; expected an array without")

    def open(self, inputs: Sequence[Any], others: Sequence[Output]) -> None:
        """Choose the memory that the kernel writes to.  Called once all arguments have been checked."""
        given = self.given
        beside = [
            o for o in others if given is not None and o.given is not None and np.may_share_memory(given, o.given)
        ]
        for other in beside:
            if np.shares_memory(given, other.given):
                raise ValueError(f"{self.name} shares memory with {other.name}; expected another array")
        if given is None or beside or any(self._clashes(a) for a in inputs):
            self.aside = True
            self.array = np.empty(self.shape, self.dtype)
        else:
            self.aside = False
            # Not as np.matrix, whose views keep two axes whatever they are asked: kernels would write beside them.
            self.array = np.asarray(given)

    def _clashes(self, a: Any) -> bool:
        """Tell whether ``a`` overlaps the output without being exactly the same memory."""
        given = self.given
        if not isinstance(a, np.ndarray) or not np.may_share_memory(a, given):
            return False
        same = (
            a.__array_interface__["data"][0] == given.__array_interface__["data"][0]
            and a.shape == given.shape
            and a.strides == given.strides
            and a.dtype == given.dtype
        )
        return not same

    def close(self) -> Any:
        """Return the result: the caller's array, a new one, or a scalar."""
        if self.given is not None:
            if self.aside:
                np.asarray(self.given)[...] = self.array
            return self.given
        return self.array if self.array.ndim else self.array[()]


# --- execution --------------------------------------------------------------------------------------------------


class Staging:
    """What happens to logits on their way into a tile: sign, softcap, mask."""

    __slots__ = ("factor", "ignore", "poison", "smoothing", "softcap", "where")

    def __init__(
        self,
        where: Array | None,
        softcap: float | None,
        factor: float,
        poison: bool,
        smoothing: float = 0.0,
    ) -> None:
        self.where = where  # bool, broadcast to the frame's shape
        self.softcap = softcap
        self.factor = factor  # multiplies the logits first
        self.poison = poison  # rows whose included logits are all -inf become nan (empty="nan")
        self.smoothing = smoothing  # of the targets, evenly over the included classes
        self.ignore: int | None = None  # if not None, the targets of a probability kernel are class indices

    def options(self, op: Op, where: Array | None) -> dict[str, Any]:
        """Return the same as a backend's keywords, for its view of the mask."""
        cleared = next((k for k, (name, kind) in enumerate(op.ins) if (name, kind) == ("y", ROW)), -1)
        slope = self.factor if self.softcap is None else 1.0
        return {
            "where": where, "factor": self.factor, "softcap": self.softcap or 0.0, "poison": self.poison,
            "cleared": -1 if where is None else cleared,
            "chain": {k: _power(slope, DERIVATIVES[n]) for k, (n, _) in enumerate(op.outs) if n in DERIVATIVES},
        }  # fmt: skip


def execute(
    op: Op,
    frame: Frame,
    ins: Sequence[Any],
    outs: Sequence[Array],
    params: dict[str, float],
    dtype: np.dtype[Any],
    *,
    where: Array | None = None,
    softcap: float | None = None,
    smoothing: float = 0.0,
) -> None:
    """Compute ``op`` on rows in ``dtype``.

    ``ins`` and ``outs`` follow the table; extras may be left out.  ROW operands have the frame's shape, ONE and LABEL
    operands its batch shape (a ONE may be a float, the same for every row), CLASS operands are vectors (or 1.0), SQUARE
    outputs have the batch shape followed by two class axes.
    """
    staging = None
    scale = params.get("scale", 1.0)
    direct = SCALES[0] <= scale <= SCALES[1]
    if op.ins[0][0] == "x" and "scale" in op.params and (where is not None or softcap is not None or not direct):
        # The kernels reduce scale * x exactly for any usual scale.  A sign moves into the logits, exactly; an extreme
        # scale, or 0, is multiplied into them.
        poison = where is not None and "empty" in op.params and params["empty"] == EMPTY["nan"]
        if where is not None and "empty" in op.params:
            params = {**params, "empty": EMPTY["zero"]}
        if softcap is not None:
            staging = Staging(where, softcap, scale, poison)
            params = {**params, "scale": 1.0}
        else:
            usual = SCALES[0] <= abs(scale) <= SCALES[1]
            staging = Staging(where, None, math.copysign(1.0, scale) if usual else scale, poison)
            params = {**params, "scale": abs(scale) if usual else 1.0}
        if smoothing:
            # Even over the included classes, whose number differs from row to row.
            staging.smoothing = smoothing
            params = {**params, "spread": smoothing}
    room = _backends.current()
    views = [_view(frame, kind, a) for (_, kind), a in zip(op.ins, ins, strict=True)]
    reads = room.reads.get(dtype, frozenset())
    with np.errstate(all="ignore"):
        # One number per row, or per class: converted here, so that it does not make the plan stage the rows.
        views = [
            a if kind not in (ONE, CLASS) or _ready(a, kind, dtype, reads) else a.astype(dtype)
            for (_, kind), a in zip(op.ins, views)
        ]
    results = op.results[: len(outs)]
    targets = [_view(frame, kind, a) for (_, kind), a in zip(results, outs, strict=True)]
    values = tuple(params[p] for p in op.params)
    kernel = room.kernel(op.name, dtype)
    threads = _threads.get_num_threads()
    # The losses compute what is capped in float64; a tanh in float32 is left to NumPy.
    native = staging is None or (room.masks and (staging.softcap is None or dtype == F8))
    kinds, operands = [*op.ins, *results], views + targets
    if native and all(_ready(a, kind, dtype, reads) for (_, kind), a in zip(kinds, operands)):
        if where is not None:
            kinds, operands = [*kinds, ("where", ROW)], [*operands, frame.rows(where)]
        shape = _collapsed_shape(frame, kinds, operands, room.strided)
        if shape is not None:
            operands = [_reshape(kind, a, *shape, frame.c) for (_, kind), a in zip(kinds, operands)]
            options: dict[str, Any] = {}
            if staging is not None:
                mask = None if where is None else operands.pop()
                options = staging.options(op, mask)
            kernel(operands[: len(op.ins)], operands[len(op.ins) :], values, threads, **options)
            return
    if staging is not None and staging.smoothing and not native:
        # The tile of targets takes it, as probabilities.
        if "ignore" in op.params:
            op, staging.ignore = OPS[op.name.replace("_index", "_probs")], int(params["ignore"])
            kernel = room.kernel(op.name, dtype)
        params = {**params, "keep": 1.0, "spread": 0.0}
        values = tuple(params[p] for p in op.params)
    with np.errstate(all="ignore"):
        _execute_staged(op, frame, views, targets, values, dtype, kernel, threads, staging, native)


def _view(frame: Frame, kind: str, a: Any) -> Any:
    """View an operand with its batch axes first and, if it has classes, the class axes last."""
    if not isinstance(a, np.ndarray):
        return a
    if kind == ROW:
        return frame.rows(a)
    if kind == CLASS:
        return a
    return a if frame.shape else a.reshape((*frame.batch_shape, *a.shape[a.ndim :]) if kind != SQUARE else (1, 1))


def _ready(a: Any, kind: str, dtype: np.dtype[Any], reads: Set[str]) -> bool:
    """Tell whether a kernel can read or write the operand's elements as they lie in memory."""
    if not isinstance(a, np.ndarray):
        return True
    if not a.flags.aligned:
        return False
    if a.dtype == (np.int64 if kind == LABEL else dtype):
        return True
    return kind in (ROW, ONE) and a.dtype.name in reads and a.dtype.isnative


def _collapsed_shape(
    frame: Frame, kinds: Sequence[tuple[str, str]], views: Sequence[Any], strided: bool
) -> tuple[int, int] | None:
    """Return two batch lengths to which all operands collapse without a copy, or None if there are none."""
    arrays = [(kind, a) for (_, kind), a in zip(kinds, views) if isinstance(a, np.ndarray)]
    if all(a.flags.c_contiguous for _, a in arrays):
        return 1, frame.r
    if not strided:
        return None
    for kind, a in arrays:
        if kind in (ROW, CLASS):
            classes = (
                [
                    (n, s)
                    for n, s in zip(
                        a.shape[a.ndim - len(frame.class_shape) :], a.strides[a.ndim - len(frame.class_shape) :]
                    )
                    if n > 1
                ]
                if kind == ROW
                else []
            )
            if any(s != t * n for (_, s), (n, t) in itertools.pairwise(classes)):
                return None
        elif kind == SQUARE and not a[(0,) * frame.nbatch].flags.c_contiguous:
            return None
    strides = [a.strides for kind, a in arrays if kind != CLASS]
    lengths: list[int] = []
    last = -1
    for k, n in enumerate(frame.batch_shape):
        if n == 1:
            continue
        if lengths and all(s[last] == s[k] * n for s in strides):
            lengths[-1] *= n
        else:
            lengths.append(n)
        last = k
    if len(lengths) > 2:
        return None
    return (1, *lengths)[-2:] if lengths else (1, 1)  # type: ignore[return-value]


def _reshape(kind: str, a: Any, n1: int, n2: int, c: int) -> Any:
    """Give an operand the shape that a kernel expects; a view, since the strides have been checked."""
    if not isinstance(a, np.ndarray) or kind == CLASS:
        return a
    if kind == ROW:
        return a.reshape(n1, n2, c)
    if kind == SQUARE:
        return a.reshape(n1, n2, c, c)
    return a.reshape(n1, n2)


def _blocks(batch_shape: tuple[int, ...], rows: int) -> Iterator[tuple[Any, ...]]:
    """Yield indices that cut the batch into blocks of about ``rows`` rows: whole trailing axes, a slice of one.

    They end in an ellipsis, so that what they select is a view even where it has no axes left.
    """
    inner = len(batch_shape)
    size = 1
    while inner > 0 and size * batch_shape[inner - 1] <= rows:
        inner -= 1
        size *= batch_shape[inner]
    if inner == 0:
        yield (...,)
        return
    step = max(1, rows // size)
    for lead in np.ndindex(batch_shape[: inner - 1]):
        for start in range(0, batch_shape[inner - 1], step):
            yield (*lead, slice(start, start + step), ...)


def _execute_staged(
    op: Op,
    frame: Frame,
    views: Sequence[Any],
    targets: Sequence[Any],
    values: tuple[float, ...],
    dtype: np.dtype[Any],
    kernel: _backends.Kernel,
    threads: int,
    staging: Staging | None,
    native: bool,
) -> None:
    """Load a block of rows into contiguous tiles, compute there, store it back; then the next one.

    What else happens to logits is left to a kernel that does it, whose bits must not depend on the layout.
    """
    c = frame.c
    outs = op.results[: len(targets)]
    width = c * c if any(kind == SQUARE for _, kind in op.outs) else c
    rows = max(1, TILE_BYTES // (width * dtype.itemsize))
    mask = None if staging is None or staging.where is None else frame.rows(staging.where)
    for index in _blocks(frame.batch_shape, rows):
        tiles: list[Any] = []
        included = None
        slope = None
        for (name, kind), a in zip(op.ins, views):
            if not isinstance(a, np.ndarray):
                tiles.append(a)
                continue
            if kind == CLASS:
                tiles.append(np.ascontiguousarray(a, dtype))
                continue
            part = a[index]
            if name == "t" and staging is not None and staging.smoothing and not native:
                assert included is not None
                tiles.append(_smoothed(part, included, tiles[0], staging))
            elif kind == ROW:
                tile = np.empty((1, part.size // c, c), dtype)
                _copy(tile.reshape(part.shape), part)
                if staging is not None and name == "x":
                    included = None if mask is None else mask[index].reshape(1, -1, c)
                    slope = None if native else _stage_logits(tile, included, staging)
                elif name == "y" and included is not None and not native:
                    np.putmask(tile, ~included, 0)
                tiles.append(tile)
            else:
                flat = np.empty((1, part.size), np.int64 if kind == LABEL else dtype)
                _copy(flat.reshape(part.shape), part)
                tiles.append(flat)
        results = [
            np.empty(
                (1, math.prod(part.shape[: part.ndim - _class_axes(kind, frame)]), *_tail(kind, c)),
                np.int64 if kind == LABEL else dtype,
            )
            for (_, kind), a in zip(outs, targets)
            for part in (a[index],)
        ]
        kernel(
            tiles, results, values, threads, **(staging.options(op, included) if staging is not None and native else {})
        )
        for (name, kind), tile, a in zip(outs, results, targets):
            order = 0 if native else DERIVATIVES.get(name, 0)
            if order and slope is not None:
                # An ignored row's gradient is 0 whatever the row, and so its slope, holds.
                np.multiply(tile, _power(slope, order), out=tile, where=tile != 0)
            if (order or op.name in EXCLUDED) and included is not None and kind != ONE and not native:
                excluded = ~(included if kind == ROW else included[..., None, :] & included[..., None])
                np.putmask(tile, excluded, EXCLUDED.get(op.name, 0.0))
            part = a[index]
            _copy(part, tile.reshape(part.shape))


def _class_axes(kind: str, frame: Frame) -> int:
    return {ROW: len(frame.class_shape), SQUARE: 2}.get(kind, 0)


def _tail(kind: str, c: int) -> tuple[int, ...]:
    return {ROW: (c,), SQUARE: (c, c)}.get(kind, ())


def _copy(to: Array, source: Array) -> None:
    """Copy with conversion; overflow to inf is its result, and no error: the caller has switched warnings off."""
    np.copyto(to, source, casting="unsafe")


def _stage_logits(tile: Array, included: Array | None, staging: Staging) -> Array | float | None:
    """Apply factor, softcap and mask to a tile of logits; return the derivative of the result by the logits."""
    slope: Array | float | None = None
    if staging.softcap is not None:
        # c tanh(s x / c), whose slope s (1 - tanh^2) = 4 s e / (1 + e)^2 with e = exp(-2 |s x / c|) does not cancel.
        tile *= staging.factor / staging.softcap
        e = np.exp(-2 * np.abs(tile))
        slope = 4 * staging.factor * e / (1 + e) ** 2
        np.tanh(tile, out=tile)
        tile *= staging.softcap
    elif staging.factor != 1:
        tile *= staging.factor
        slope = staging.factor
    if included is not None:
        if staging.poison:
            # "all -inf" is nan by default, "nothing included" is not: tell them apart before the mask hides it.
            lost = included.any(-1) & ((tile == -np.inf) | ~included).all(-1)
            tile[lost] = np.nan
        np.putmask(tile, ~included, -np.inf)
    return slope


def _power(slope: Any, order: int) -> Any:
    """Return the slope or its square; not by **, which raises an error where floats overflow."""
    return slope if order == 1 else slope * slope


def _smoothed(target: Array, included: Array, x: Array, staging: Staging) -> Array:
    """Return a tile of smoothed targets; x is the tile of logits, which is cleared where the row is ignored."""
    q = np.zeros_like(x)
    rows, c = q.shape[1:]
    if staging.ignore is None:
        q[...] = target.reshape(1, rows, c)
    else:
        y = target.reshape(-1)
        ignored = y == staging.ignore
        q[0, np.arange(rows), np.where(ignored, 0, y)] = 1
    count = included.sum(-1, keepdims=True)
    q *= 1 - staging.smoothing
    q += included * (staging.smoothing / np.maximum(count, 1))
    if staging.ignore is not None:
        q[0, ignored] = 0
        x[0, ignored] = 0
    return q


def total(values: Array) -> Any:
    """Return the sum of a vector, in an order that does not depend on the number of threads."""
    done = _backends.current().quick("total", (values,), (None,), ())
    if done is not None:
        return done[0][()]
    out = np.empty((), values.dtype)
    execute(OPS["total"], Frame(values.shape, -1), [values], [out], {}, values.dtype)
    return out[()]


def run(
    op_name: str,
    frame: Frame,
    ins: Sequence[Any],
    outs: Sequence[Output],
    params: dict[str, float],
    dtype: np.dtype[Any],
    **options: Any,
) -> tuple[Any, ...]:
    """Open the outputs, compute, close them."""
    op = OPS[op_name]
    for k, output in enumerate(outs):
        output.open([*ins, options.get("where")], outs[:k])
    if frame.r and frame.c:
        execute(op, frame, ins, [o.array for o in outs], params, dtype, **options)
    elif frame.r:
        # No classes: sums over nothing.  Only a log of one is not 0.
        for output in outs:
            output.array[...] = (
                -np.inf
                if output.name == "logsumexp"
                or (op.name.startswith("logsumexp") and output.name != "sign" and op.ins[0][0] == "x")
                else 0
            )
    return tuple(o.close() for o in outs)
