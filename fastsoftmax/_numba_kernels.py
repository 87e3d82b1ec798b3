"""The kernels of the Numba backend, one body per operation.

Numba's own vectoriser is not used.  ``Lanes`` is a Numba type for a vector register and the functions of the first
section are a vocabulary over it, each a line or two of LLVM: the loops below say how they are vectorised, in the
words of the C kernels.  Three things follow:

* Sums and fused operations are written out and no ``fastmath`` flag is set anywhere, so no compiler may reorder or
  contract them: a row's bits are the same in the serial and the parallel kernel, whatever is inlined where.
* One text serves both dtypes and both ways to lay rows over lanes (below).
* LLVM has nothing to discover, compiles in half the time, and uses 512-bit registers where there are some (left to
  itself it stops at 256 bits on Intel's server cores).

Every operation is compiled for the layouts that it meets, told apart by the type of its last argument, ``way``:

``ALONG``
    The lanes of a vector are neighbouring classes of one row; a number per row is a float64.
``ACROSS``
    For few classes.  A block of rows is transposed into a tile that stays in the first-level cache; the lanes of a
    vector are one class of neighbouring rows, and a number per row is a lane of a vector of float64.
``(rooms, words, rows)``
    For many classes, in kernels that are marked ``in_blocks``: as ``ALONG``, but block by block, by all threads at once
    if there are few rows.  See "long rows" below.

Only what loads, folds and writes a row knows about it; the arithmetic in between reads the same.

The terms of a row are kept as ``exp(scale (x - m)) * 2**OFFSET``.  The offset cancels in the quotients that are the
results, no term is subnormal, and a result that is gets rounded once.

Kernels in other modules (``MODULES`` in ``_numba.py``) are written in this one's words and compiled by its ``kernel``
and ``in_parallel``, which make Numba's cache on disk notice a change here, too.  Constants do not count: it does not
notice a change of the number that is imported below.
"""

from __future__ import annotations

import hashlib
import math
import operator
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llvmlite import ir
from llvmlite.binding import get_host_cpu_features
from numba import config, njit, prange, types
from numba.extending import intrinsic, lower_builtin, models, overload, register_model, type_callable

from ._ops import UNIT_SUM_BAND

# mypy: ignore-errors
# Numba compiles these functions for types of its own, which no annotation describes.

ALONG: tuple[int, ...] = ()
ACROSS: tuple[int, ...] = (0,)

VECTOR_BYTES = 64  # one AVX-512 register; LLVM splits it where registers are shorter
MAX_FEW = 256  # classes that the tile of the layout ACROSS has room for

# --- constants, derived and checked by tools/fit_polynomials.py ---------------------------------------------------

LOG2E = float.fromhex("0x1.71547652b82fep+0")
LN2_HI = float.fromhex("0x1.62e42fefa39efp-1")
LN2_LO = float.fromhex("0x1.abc9e3b39803fp-56")


def _floats(text: str) -> tuple[float, ...]:
    return tuple(map(float.fromhex, text.split()))


# exp(r) = 1 + (r + r**2 q(r)): the coefficients of q, lowest power first.
EXP_Q = {
    types.float32: _floats("0x1.fffffcp-2 0x1.555492p-3 0x1.5558b4p-5 0x1.123998p-7 0x1.6a48bcp-10"),
    types.float64: _floats(
        "0x1.000000000000ap-1 0x1.5555555555508p-3 0x1.555555555074ep-5 0x1.11111111253d9p-7 0x1.6c16c184532bp-10 "
        "0x1.a01a013496b32p-13 0x1.a01999b82d934p-16 0x1.71df130ff0949p-19 0x1.28adb644589fap-22 "
        "0x1.ad97823e68db9p-26"
    ),
}
# log((1 + s) / (1 - s)) = 2 s + s z P(z) with z = s**2: the coefficients of P.
LOG_P = _floats(
    "0x1.5555555555592p-1 0x1.999999997ff63p-2 0x1.24924941db485p-2 0x1.c71c521a19e4ap-3 0x1.74663ba339d33p-3 "
    "0x1.39a20ba58bcc9p-3 0x1.2f025183ae0a9p-3"
)

_inlined = {"nogil": True, "forceinline": True, "error_model": "numpy"}
helper = njit(**_inlined)

# --- the vocabulary: a vector type and what can be said about it --------------------------------------------------

LLVM_TYPE = {
    types.float32: ir.FloatType(),
    types.float64: ir.DoubleType(),
    types.int64: ir.IntType(64),
    types.boolean: ir.IntType(1),
    types.int16: ir.IntType(16),
    types.uint16: ir.IntType(16),
}
# How 16-bit floats come: Numba has neither, so that their bits are passed, and the sign says which they are.
FLOAT16, BFLOAT16 = types.int16, types.uint16
I32, I64 = ir.IntType(32), ir.IntType(64)


class Lanes(types.Type):
    """A vector of ``count`` elements."""

    def __init__(self, element: Any, count: int) -> None:
        self.element, self.count = element, count
        super().__init__(name=f"Lanes({element}, {count})")


@register_model(Lanes)
class _LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Lanes) -> None:
        super().__init__(dmm, fe_type, ir.VectorType(LLVM_TYPE[fe_type.element], fe_type.count))


def _is_half(pointer: Any) -> bool:
    return pointer.dtype in (FLOAT16, BFLOAT16)


def _element(pointer: Any) -> Any:
    """Return the type in which a pointer's elements are computed."""
    return types.float32 if _is_half(pointer) else pointer.dtype


def _count(pointer: Any) -> int:
    """Return the number of lanes for elements of a pointer's type."""
    return VECTOR_BYTES * 8 // _element(pointer).bitwidth


def _vector(pointer: Any) -> Lanes:
    return Lanes(_element(pointer), _count(pointer))


def _row_type(pointer: Any, way: Any, element: Any = types.float64) -> Any:
    """Return the type of a number per row in one of the two layouts."""
    return Lanes(element, _count(pointer)) if len(way) == 1 else element


def _splat(builder: Any, value: Any, count: int) -> Any:
    vector = ir.VectorType(value.type, count)
    undefined = ir.Constant(vector, ir.Undefined)
    one = builder.insert_element(undefined, value, I32(0))
    return builder.shuffle_vector(one, undefined, ir.Constant(ir.VectorType(I32, count), [0] * count))


def _shuffle(builder: Any, a: Any, b: Any, lanes: Sequence[int]) -> Any:
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(I32, len(lanes)), list(lanes)))


def _convert(context: Any, builder: Any, value: Any, source: Any, target: Any) -> Any:
    """Convert a number to another type, or to a vector of it in every lane."""
    if source == target:
        return value
    if isinstance(target, Lanes):
        return _splat(builder, context.cast(builder, value, source, target.element), target.count)
    return context.cast(builder, value, source, target)


def _common(*operands: Any) -> Any:
    """Return the type in which operands meet: numbers follow vectors, and are float64 among themselves."""
    vectors = {t for t in operands if isinstance(t, Lanes)}
    if len(vectors) > 1:
        return None
    return vectors.pop() if vectors else types.float64


def _call(builder: Any, name: str, *args: Any) -> Any:
    """Call an LLVM intrinsic that is overloaded on its first argument's type."""
    kind = args[0].type
    element = kind.element if isinstance(kind, ir.VectorType) else kind
    suffix = {ir.FloatType(): "f32", ir.DoubleType(): "f64", ir.IntType(1): "i1"}[element]
    if isinstance(kind, ir.VectorType):
        suffix = f"v{kind.count}{suffix}"
    result = element if ".reduce." in name else kind
    function = builder.module.globals.get(f"{name}.{suffix}")
    if function is None:
        function = ir.Function(builder.module, ir.FunctionType(result, [a.type for a in args]), f"{name}.{suffix}")
    return builder.call(function, args)


def _elementwise(emit: Callable[..., Any], *operands: Any) -> Any:
    """Make an intrinsic whose operands and result have their common type."""
    result = _common(*operands)
    if result is None:
        return None

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        values = [_convert(context, builder, a, t, result) for a, t in zip(args, signature.args)]
        return emit(builder, *values)

    return result(*operands), codegen


def _operator(symbol: Any, emit: Callable[..., Any], *, boolean: bool = False) -> None:
    """Define a binary operator on vectors, or on a vector and a number."""

    @type_callable(symbol)
    def typing(context: Any) -> Any:
        def typer(a: Any, b: Any) -> Any:
            if not (isinstance(a, Lanes) or isinstance(b, Lanes)):
                return None
            common = _common(a, b)
            return Lanes(types.boolean, common.count) if boolean and common else common

        return typer

    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        common = _common(*signature.args)
        return emit(
            builder, common.element, *(_convert(context, builder, v, t, common) for v, t in zip(args, signature.args))
        )

    for operands in ((Lanes, Lanes), (Lanes, types.Number), (types.Number, Lanes)):
        lower_builtin(symbol, *operands)(lower)


_operator(operator.add, lambda builder, _, a, b: builder.fadd(a, b))
_operator(operator.sub, lambda builder, _, a, b: builder.fsub(a, b))
_operator(operator.mul, lambda builder, _, a, b: builder.fmul(a, b))
_operator(operator.truediv, lambda builder, _, a, b: builder.fdiv(a, b))
_operator(operator.and_, lambda builder, _, a, b: builder.and_(a, b))
_operator(operator.or_, lambda builder, _, a, b: builder.or_(a, b))


def _comparison(symbol: Any, text: str) -> None:
    def emit(builder: Any, element: Any, a: Any, b: Any) -> Any:
        if isinstance(element, types.Float):
            return (builder.fcmp_unordered if text == "!=" else builder.fcmp_ordered)(text, a, b)
        return builder.icmp_signed(text, a, b)

    _operator(symbol, emit, boolean=True)


for _symbol, _text in (
    (operator.gt, ">"), (operator.lt, "<"), (operator.le, "<="), (operator.eq, "=="), (operator.ne, "!="),
):  # fmt: skip
    _comparison(_symbol, _text)


@intrinsic
def fma(typingctx, a, b, c):
    """Return ``a b + c``, rounded once.  Without such an instruction LLVM calls the C library: slow, but the same."""
    return _elementwise(lambda builder, *v: _call(builder, "llvm.fma", *v), a, b, c)


@intrinsic
def rint(typingctx, a):
    """Round to the nearest integer."""
    return _elementwise(lambda builder, v: _call(builder, "llvm.rint", v), a)


@intrinsic
def absolute(typingctx, a):
    """Return ``|a|``."""
    return _elementwise(lambda builder, v: _call(builder, "llvm.fabs", v), a)


@intrinsic
def larger(typingctx, a, b):
    """Return ``a if a > b else b``: one instruction on x86.  A NaN in b is passed on, one in a is forgotten."""
    return _elementwise(lambda builder, x, y: builder.select(builder.fcmp_ordered(">", x, y), x, y), a, b)


@intrinsic
def smaller(typingctx, a, b):
    """Return ``a if a < b else b``; a NaN in b is passed on."""
    return _elementwise(lambda builder, x, y: builder.select(builder.fcmp_ordered("<", x, y), x, y), a, b)


@intrinsic
def select(typingctx, condition, a, b):
    """Return a where the condition holds, else b."""
    result = _common(a, b)
    if isinstance(condition, Lanes) and result == types.float64:
        result = Lanes(types.float64, condition.count)
    if isinstance(a, (types.Integer, Lanes)):
        result = a

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, y = (_convert(context, builder, v, t, result) for v, t in zip(args[1:], signature.args[1:]))
        return builder.select(args[0], x, y)

    return result(condition, a, b), codegen


@intrinsic
def zero_like(typingctx, v):
    """Return a vector of zeros."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return ir.Constant(args[0].type, [0.0] * v.count)

    return v(v), codegen


@intrinsic
def above(typingctx, a, b):
    """Tell where ``a > b`` or a is NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.fcmp_unordered(">", *args)

    return Lanes(types.boolean, a.count)(a, b), codegen


@intrinsic
def negated(typingctx, condition):
    """Return the opposite of a condition."""
    return condition(condition), lambda context, builder, signature, args: builder.not_(args[0])


@intrinsic
def any_of(typingctx, condition):
    """Tell whether a condition holds in any lane."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _call(builder, "llvm.vector.reduce.or", args[0]) if isinstance(condition, Lanes) else args[0]

    return types.boolean(condition), codegen


@intrinsic
def lanes(typingctx, pointer):
    """Return the number of lanes of a vector of a pointer's elements, a constant."""
    return types.intp(pointer), lambda *_: I64(_count(pointer))


@intrinsic
def is_single(typingctx, kind):
    """Tell whether elements are float32, a constant: the branches not taken vanish."""
    element = kind.element if isinstance(kind, Lanes) else _element(kind)
    return types.boolean(kind), lambda *_: ir.IntType(1)(element == types.float32)


@intrinsic
def widen(typingctx, v):
    """Convert a vector to float64."""
    result = Lanes(types.float64, v.count)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[0] if v == result else builder.fpext(args[0], context.get_value_type(result))

    return result(v), codegen


@intrinsic
def spread(typingctx, pointer, value):
    """Round a number per row to the dtype of a pointer, in every lane that belongs to the row."""
    result = _vector(pointer)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if not isinstance(value, Lanes):
            return _convert(context, builder, args[1], value, result)
        return args[1] if value == result else builder.fptrunc(args[1], context.get_value_type(result))

    return result(pointer, value), codegen


@intrinsic
def rounded(typingctx, pointer, value):
    """Round float64 numbers to the precision of a pointer's dtype."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if _element(pointer) == types.float64:
            return args[1]
        kind = args[1].type
        single = ir.VectorType(ir.FloatType(), kind.count) if isinstance(value, Lanes) else ir.FloatType()
        return builder.fpext(builder.fptrunc(args[1], single), kind)

    return value(pointer, value), codegen


@intrinsic
def power_of_two(typingctx, t):
    """Return ``2**k`` for ``t = magic + bias + k``: the low bits of t are the exponent's."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        width, shift = (32, 23) if t.element == types.float32 else (64, 52)
        integers = ir.VectorType(ir.IntType(width), t.count)
        bits = builder.bitcast(args[0], integers)
        return builder.bitcast(builder.shl(bits, ir.Constant(integers, [shift] * t.count)), args[0].type)

    return t(t), codegen


@intrinsic
def exponent_and_mantissa(typingctx, u):
    """Return k and f with ``u = 2**k f`` and f from sqrt(1/2) to sqrt(2), for normal float64 numbers u > 0."""
    result = types.UniTuple(u, 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = u.count if isinstance(u, Lanes) else None

        def constant(value: int) -> Any:
            return ir.Constant(ir.VectorType(I64, count), [value] * count) if count else I64(value)

        bits = builder.bitcast(args[0], constant(0).type)
        k = builder.ashr(builder.sub(bits, constant(0x3FE6A09E667F3BCD)), constant(52))
        f = builder.bitcast(builder.sub(bits, builder.shl(k, constant(52))), args[0].type)
        return context.make_tuple(builder, result, [builder.sitofp(k, args[0].type), f])

    return result(u), codegen


def _horner(builder: Any, x: Any, coefficients: Sequence[float]) -> Any:
    def constant(c: float) -> Any:
        return ir.Constant(x.type, [c] * x.type.count) if isinstance(x.type, ir.VectorType) else ir.Constant(x.type, c)

    result = constant(coefficients[-1])
    for c in reversed(coefficients[:-1]):
        result = _call(builder, "llvm.fma", result, x, constant(c))
    return result


@intrinsic
def exp_q(typingctx, r):
    """Return ``q(r)`` with ``exp(r) = 1 + (r + r**2 q(r))``."""
    return r(r), lambda context, builder, signature, args: _horner(builder, args[0], EXP_Q[r.element])


@intrinsic
def log_p(typingctx, z):
    """Return ``P(z)`` with ``log((1 + s) / (1 - s)) = 2 s + s z P(z)``, ``z = s**2``."""
    return z(z), lambda context, builder, signature, args: _horner(builder, args[0], LOG_P)


# --- memory -------------------------------------------------------------------------------------------------------


@intrinsic
def pointer_to(typingctx, array):
    """Return the address of an array's elements: unlike an array it is no counted reference."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.make_array(array)(context, builder, args[0]).data

    return types.CPointer(array.dtype)(array), codegen


@intrinsic
def scratch(typingctx, pointer):
    """Reserve a tile for ``MAX_FEW`` classes of as many rows as there are lanes, on the stack.

    For 16-bit floats there is room for a whole row in float32.
    """
    result = types.CPointer(_element(pointer))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        size = LONG if _is_half(pointer) else MAX_FEW * _count(pointer)
        with builder.goto_entry_block():
            tile = builder.alloca(ir.ArrayType(LLVM_TYPE[result.dtype], size))
        tile.align = VECTOR_BYTES
        return builder.bitcast(tile, context.get_value_type(result))

    return result(pointer), codegen


@intrinsic
def same(typingctx, a, b):
    """Tell whether two pointers are equal."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.icmp_unsigned("==", *(builder.ptrtoint(p, I64) for p in args))

    return types.boolean(a, b), codegen


@intrinsic
def offset(typingctx, pointer, count):
    """Move a pointer by a number of elements."""
    return pointer(pointer, count), lambda context, builder, signature, args: builder.gep(args[0], [args[1]])


def _prefetcher(write: int, level: int = 1) -> Any:
    @intrinsic
    def prefetch(typingctx, pointer, at):
        """Ask for a cache line that will be needed soon; addresses out of bounds do no harm."""

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.FunctionType(ir.VoidType(), [ir.IntType(8).as_pointer(), I32, I32, I32])
            name = "llvm.prefetch.p0"
            function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
            address = builder.bitcast(builder.gep(args[0], [args[1]]), kind.args[0])
            builder.call(function, [address, I32(write), I32(4 - level), I32(1)])
            return context.get_dummy_value()

        return types.none(pointer, types.intp), codegen

    return prefetch


prefetch, prefetch_write, prefetch_next = _prefetcher(0), _prefetcher(1), _prefetcher(0, level=2)


def _vector_at(builder: Any, pointer: Any, index: Any, vector: Any) -> Any:
    return builder.bitcast(builder.gep(pointer, [index]), vector.as_pointer())


def _first_lanes(builder: Any, left: Any, count: int) -> Any:
    """Return the mask of the first ``left`` lanes."""
    numbers = ir.Constant(ir.VectorType(I32, count), list(range(count)))
    return builder.icmp_signed("<", numbers, _splat(builder, builder.trunc(left, I32), count))


def _letter(vector: Any) -> str:
    return "i" if isinstance(vector.element, ir.IntType) else "f"


def _masked_load(builder: Any, address: Any, vector: Any, size: int, mask: Any, fill: Any) -> Any:
    name = f"llvm.masked.load.v{vector.count}{_letter(vector)}{size * 8}.p0"
    kind = ir.FunctionType(vector, [address.type, I32, mask.type, vector])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    return builder.call(function, [address, I32(size), mask, fill])


def _masked_store(builder: Any, value: Any, address: Any, size: int, mask: Any) -> None:
    name = f"llvm.masked.store.v{value.type.count}{_letter(value.type)}{size * 8}.p0"
    kind = ir.FunctionType(ir.VoidType(), [value.type, address.type, I32, mask.type])
    function = builder.module.globals.get(name) or ir.Function(builder.module, kind, name)
    builder.call(function, [value, address, I32(size), mask])


def _load(builder: Any, pointer: Any, index: Any, left: Any, vector: Any, size: int, fill: Any) -> Any:
    """Load a vector, of which only the first ``left`` elements exist."""
    address = _vector_at(builder, pointer, index, vector)
    with builder.if_else(builder.icmp_signed(">=", left, I64(vector.count)), likely=True) as (then, otherwise):
        with then:
            full = builder.load(address)
            full.align = size
            full_block = builder.block
        with otherwise:
            part = _masked_load(builder, address, vector, size, _first_lanes(builder, left, vector.count), fill)
            part_block = builder.block
    result = builder.phi(vector)
    result.add_incoming(full, full_block)
    result.add_incoming(part, part_block)
    return result


def _store(builder: Any, value: Any, pointer: Any, index: Any, left: Any, size: int) -> None:
    address = _vector_at(builder, pointer, index, value.type)
    with builder.if_else(builder.icmp_signed(">=", left, I64(value.type.count)), likely=True) as (then, otherwise):
        with then:
            builder.store(value, address).align = size
        with otherwise:
            _masked_store(builder, value, address, size, _first_lanes(builder, left, value.type.count))


@intrinsic
def load(typingctx, pointer, at, left, fill):
    """Load a vector; lanes from ``left`` on take the value ``fill``."""
    result = _vector(pointer)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        filled = _convert(context, builder, args[3], fill, result)
        size = pointer.dtype.bitwidth // 8
        return _load(builder, *args[:3], context.get_value_type(result), size, filled)

    return result(pointer, types.intp, types.intp, fill), codegen


@intrinsic
def existing(typingctx, pointer, left):
    """Tell which lanes of a vector exist if ``left`` elements do."""
    result = Lanes(types.boolean, _count(pointer))

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = I64(result.count)
        left = builder.select(builder.icmp_signed("<", args[1], count), args[1], count)
        return _first_lanes(builder, left, result.count)

    return result(pointer, types.intp), codegen


@intrinsic
def store(typingctx, pointer, at, left, value):
    """Store the first ``left`` lanes of a vector."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, args[3], *args[:3], pointer.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.none(pointer, types.intp, types.intp, value), codegen


# --- 16-bit floats ------------------------------------------------------------------------------------------------
#
# On their bits, but where the processor converts float16: LLVM would call a library for the others.  Its conversion of
# bfloat16 takes subnormal numbers for 0.

CONVERTS_HALF = not (config.CPU_NAME or config.CPU_FEATURES) and get_host_cpu_features().get("f16c", False)


def _expanded(builder: Any, pointer: Any, v: Any) -> Any:
    """Convert a vector of a pointer's elements to the type in which they are computed."""
    if not _is_half(pointer):
        return v
    halves, words, floats = (ir.VectorType(t, v.type.count) for t in (ir.HalfType(), I32, ir.FloatType()))
    if pointer.dtype == FLOAT16 and CONVERTS_HALF:
        return builder.fpext(builder.bitcast(v, halves), floats)

    def constant(value: Any, kind: Any = words) -> Any:
        return ir.Constant(kind, [value] * v.type.count)

    bits = builder.zext(v, words)
    if pointer.dtype == BFLOAT16:
        return builder.bitcast(builder.shl(bits, constant(16)), floats)
    size = builder.shl(builder.and_(bits, constant(0x7FFF)), constant(13))
    # A product by 2**112 moves the exponent's bias, of subnormal numbers, too, and exactly.
    scaled = builder.bitcast(builder.fmul(builder.bitcast(size, floats), constant(2.0**112, floats)), words)
    # What had the largest exponent is infinite, or NaN.
    special = builder.icmp_unsigned(">=", size, constant(0x7C00 << 13))
    scaled = builder.select(special, builder.or_(scaled, constant(0x7F800000)), scaled)
    sign = builder.shl(builder.and_(bits, constant(0x8000)), constant(16))
    return builder.bitcast(builder.or_(scaled, sign), floats)


def _packed(builder: Any, pointer: Any, v: Any) -> Any:
    """Round a vector to the nearest of a pointer's elements, ties to even; the opposite of :func:`_expanded`."""
    if not _is_half(pointer):
        return v
    halves, words, floats = (ir.VectorType(t, v.type.count) for t in (ir.HalfType(), I32, ir.FloatType()))
    if pointer.dtype == FLOAT16 and CONVERTS_HALF:
        return builder.bitcast(builder.fptrunc(v, halves), ir.VectorType(ir.IntType(16), v.type.count))

    def constant(value: Any, kind: Any = words) -> Any:
        return ir.Constant(kind, [value] * v.type.count)

    bits = builder.bitcast(v, words)
    nan = builder.fcmp_unordered("!=", v, v)
    shift = 16 if pointer.dtype == BFLOAT16 else 13
    size = builder.and_(bits, constant(0x7FFFFFFF))
    even = builder.and_(builder.lshr(size, constant(shift)), constant(1))
    rounded_up = builder.add(builder.add(size, even), constant((1 << (shift - 1)) - 1))
    if pointer.dtype == BFLOAT16:
        result = builder.lshr(rounded_up, constant(16))
        quiet = 0x7FC0
    else:
        # The bias; from 2**16 - 16 on infinite; below 2**-14 the addition of 1/2 rounds to multiples of 2**-24.
        result = builder.lshr(builder.sub(rounded_up, constant(112 << 23)), constant(13))
        result = builder.select(builder.icmp_unsigned(">=", size, constant(0x477FF000)), constant(0x7C00), result)
        sum_ = builder.fadd(builder.bitcast(size, floats), constant(0.5, floats))
        small = builder.sub(builder.bitcast(sum_, words), constant(0x3F000000))
        result = builder.select(builder.icmp_unsigned("<", size, constant(0x38800000)), small, result)
        quiet = 0x7E00
    result = builder.select(nan, constant(quiet), result)
    result = builder.or_(result, builder.lshr(builder.and_(bits, constant(0x80000000)), constant(16)))
    return builder.trunc(result, ir.VectorType(ir.IntType(16), v.type.count))


@intrinsic
def load_half(typingctx, pointer, at, left):
    """Load a vector of 16-bit floats as float32; lanes from ``left`` on are 0."""
    result = _vector(pointer)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        vector = ir.VectorType(LLVM_TYPE[pointer.dtype], result.count)
        return _expanded(
            builder, pointer, _load(builder, *args[:3], vector, 2, ir.Constant(vector, [0] * result.count))
        )

    return result(pointer, types.intp, types.intp), codegen


@intrinsic
def store_half(typingctx, pointer, at, left, value):
    """Round the first ``left`` lanes of a vector of float32 to 16-bit floats and store them."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _store(builder, _packed(builder, pointer, args[3]), *args[:3], 2)
        return context.get_dummy_value()

    return types.none(pointer, types.intp, types.intp, value), codegen


@helper
def unpack_row(p, c, tile):
    """Convert a row of 16-bit floats to float32."""
    for k in range(0, c, lanes(p)):
        prefetch(p, k + 2 * AHEAD * lanes(p))
        store(tile, k, c - k, load_half(p, k, c - k))


@helper
def pack_row(p, c, tile):
    """Round a row of float32 to 16-bit floats."""
    for k in range(0, c, lanes(p)):
        store_half(p, k, c - k, load(tile, k, c - k, 0.0))


# --- a row in its layout: what depends on ``way`` -----------------------------------------------------------------


@intrinsic
def rows_at_once(typingctx, pointer, way):
    """Return how many rows one vector touches, a constant."""
    return types.intp(pointer, way), lambda *_: I64(_count(pointer) if len(way) == 1 else 1)


def _transposed(builder: Any, rows: list[Any], size: int) -> list[Any]:
    """Transpose blocks of size x size elements, side by side in ``size`` vectors; its own inverse."""
    count = rows[0].type.count
    step = size // 2
    while step:
        for i in range(size):
            if not i & step:
                a, b = rows[i], rows[i + step]
                rows[i] = _shuffle(builder, a, b, [k if not k & step else count + k - step for k in range(count)])
                rows[i + step] = _shuffle(
                    builder, a, b, [k + step if not k & step else count + k for k in range(count)]
                )
        step //= 2
    return rows


def _transposers(part: int) -> tuple[Any, Any]:
    """Make the intrinsics that move a block of rows, as many as lanes, into a tile and back.

    A row contributes at most ``1 / part`` of a vector: with few classes several rows share one, and less is left to
    shuffle.
    """

    @intrinsic
    def load_block(typingctx, pointer, stride, rows, classes, tile):
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            source, stride, rows, classes, tile = args
            count = _count(pointer)
            size, item = count // part, pointer.dtype.bitwidth // 8
            piece = ir.VectorType(LLVM_TYPE[pointer.dtype], size)
            zero = ir.Constant(piece, [0 if _is_half(pointer) else 0.0] * size)
            mask = _first_lanes(builder, classes, size)
            last = builder.sub(rows, I64(1))
            pieces = []
            for i in range(count):
                # Lanes without a row of their own repeat the last one.
                row = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
                address = _vector_at(builder, source, builder.mul(row, stride), piece)
                pieces.append(_expanded(builder, pointer, _masked_load(builder, address, piece, item, mask, zero)))
            vectors = []
            for j in range(size):
                group = pieces[j::size]
                while len(group) > 1:
                    both = range(2 * group[0].type.count)
                    group = [_shuffle(builder, a, b, both) for a, b in zip(group[::2], group[1::2])]
                vectors += group
            for j, v in enumerate(_transposed(builder, vectors, size)):
                builder.store(v, _vector_at(builder, tile, I64(j * count), v.type)).align = VECTOR_BYTES
            return context.get_dummy_value()

        return types.none(pointer, types.intp, types.intp, types.intp, tile), codegen

    @intrinsic
    def store_block(typingctx, pointer, stride, rows, classes, tile):
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            target, stride, rows, classes, tile = args
            count = _count(pointer)
            size, item = count // part, pointer.dtype.bitwidth // 8
            vector = ir.VectorType(LLVM_TYPE[_element(pointer)], count)
            mask = _first_lanes(builder, classes, size)
            vectors = []
            for j in range(size):
                vectors.append(builder.load(_vector_at(builder, tile, I64(j * count), vector)))
                vectors[-1].align = VECTOR_BYTES
            vectors = _transposed(builder, vectors, size)
            for i in range(count):
                v = vectors[i % size]
                first = i // size * size
                v = v if part == 1 else _shuffle(builder, v, v, range(first, first + size))
                v = _packed(builder, pointer, v)
                with builder.if_then(builder.icmp_signed("<", I64(i), rows), likely=True):
                    address = _vector_at(builder, target, builder.mul(I64(i), stride), v.type)
                    _masked_store(builder, v, address, item, mask)
            return context.get_dummy_value()

        return types.none(pointer, types.intp, types.intp, types.intp, tile), codegen

    return load_block, store_block


load_block_1, store_block_1 = _transposers(1)
load_block_2, store_block_2 = _transposers(2)
load_block_4, store_block_4 = _transposers(4)

# Not inlined: a few hundred instructions, called once for a block of rows.
subroutine = njit(nogil=True, error_model="numpy")


@subroutine
def load_tile(p, rows, c, tile):
    """Transpose a block of rows into a tile, and fetch the next block: the hardware sees no pattern in short rows."""
    count = lanes(p)
    if 4 * c <= count:
        load_block_4(p, c, rows, c, tile)
    elif 2 * c <= count:
        load_block_2(p, c, rows, c, tile)
    else:
        for k in range(0, c, count):
            for i in range(count, 2 * count):
                prefetch(p, i * c + k)
            load_block_1(offset(p, k), c, rows, c - k, offset(tile, k * count))


@subroutine
def store_tile(p, rows, c, tile):
    """Transpose a tile back into a block of rows."""
    count = lanes(p)
    if 4 * c <= count:
        store_block_4(p, c, rows, c, tile)
    elif 2 * c <= count:
        store_block_2(p, c, rows, c, tile)
    else:
        for k in range(0, c, count):
            for i in range(count, 2 * count):
                prefetch_write(p, i * c + k)
            store_block_1(offset(p, k), c, rows, c - k, offset(tile, k * count))


def open_row(p, r, left, c, tile, way):
    """Return where to read row r, or the rows from r on."""


def out_row(p, r, c, tile, way):
    """Return where to write row r; the row is complete after :func:`close_row`."""


def close_row(p, r, left, c, tile, way):
    """Bring what was written to :func:`out_row` to its place."""


@overload(open_row, jit_options=_inlined)
def _open_row(p, r, left, c, tile, way):
    def across(p, r, left, c, tile, way):
        load_tile(offset(p, r * c), min(left, lanes(p)), c, tile)
        return tile

    def unpacked(p, r, left, c, tile, way):
        unpack_row(offset(p, r * c), c, tile)
        return tile

    def as_it_lies(p, r, left, c, tile, way):
        return offset(p, r * c)

    return across if len(way) == 1 else unpacked if _is_half(p) else as_it_lies


@overload(out_row, jit_options=_inlined)
def _out_row(p, r, c, tile, way):
    def in_tile(p, r, c, tile, way):
        return tile

    def as_it_lies(p, r, c, tile, way):
        return offset(p, r * c)

    return in_tile if len(way) == 1 or _is_half(p) else as_it_lies


@overload(close_row, jit_options=_inlined)
def _close_row(p, r, left, c, tile, way):
    def across(p, r, left, c, tile, way):
        store_tile(offset(p, r * c), min(left, lanes(p)), c, tile)

    def packed(p, r, left, c, tile, way):
        pack_row(offset(p, r * c), c, tile)

    def as_it_lies(p, r, left, c, tile, way):
        pass

    return across if len(way) == 1 else packed if _is_half(p) else as_it_lies


@intrinsic
def fold_max(typingctx, p, v, way):
    """Return the maximum per row of a vector of maxima."""
    result = _row_type(p, way)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        m = args[1]
        if len(way) == 1:
            return m if v == result else builder.fpext(m, context.get_value_type(result))
        count = v.count
        while count > 1:
            count //= 2
            low, high = (_shuffle(builder, m, m, range(k, k + count)) for k in (0, count))
            m = builder.select(builder.fcmp_ordered(">", low, high), low, high)
        m = builder.extract_element(m, I32(0))
        return m if m.type == ir.DoubleType() else builder.fpext(m, ir.DoubleType())

    return result(p, v, way), codegen


@intrinsic
def fold_best(typingctx, p, key, value, way):
    """Return per row the value that goes with the largest key."""
    result = _row_type(p, way)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        keys, values = args[1:3]
        count = 1 if len(way) == 1 else key.count
        while count > 1:
            count //= 2
            (a, b), (x, y) = (
                [_shuffle(builder, v, v, range(k, k + count)) for k in (0, count)] for v in (keys, values)
            )
            first = builder.fcmp_ordered(">=", a, b)
            keys, values = builder.select(first, a, b), builder.select(first, x, y)
        values = values if len(way) == 1 else builder.extract_element(values, I32(0))
        kind = context.get_value_type(result)
        return values if values.type == kind else builder.fpext(values, kind)

    return result(p, key, value, way), codegen


def _two_sum(builder: Any, a: Any, b: Any) -> tuple[Any, Any]:
    s = builder.fadd(a, b)
    bb = builder.fsub(s, a)
    return s, builder.fadd(builder.fsub(a, builder.fsub(s, bb)), builder.fsub(b, bb))


@intrinsic
def fold_sum(typingctx, p, hi, lo, way):
    """Return the sum per row of vectors ``hi + lo``, as such a pair of numbers."""
    result = types.UniTuple(_row_type(p, way), 2)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        high, low = args[1:3]
        count = hi.count
        while count > 1 and len(way) != 1:
            count //= 2
            (a, b), (x, y) = ([_shuffle(builder, v, v, range(k, k + count)) for k in (0, count)] for v in (high, low))
            if _element(p) == types.float32:
                high, low = builder.fadd(a, b), builder.fadd(x, y)
            else:
                high, error = _two_sum(builder, a, b)
                low = builder.fadd(builder.fadd(x, y), error)
        if len(way) != 1:
            high, low = (builder.extract_element(v, I32(0)) for v in (high, low))
        return context.make_tuple(builder, result, [high, low])

    return result(p, hi, lo, way), codegen


@intrinsic
def fold_any(typingctx, p, condition, way):
    """Tell for each row whether a condition holds in any of its lanes."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return args[1] if len(way) == 1 else _call(builder, "llvm.vector.reduce.or", args[1])

    return _row_type(p, way, types.boolean)(p, condition, way), codegen


@intrinsic
def one_per_row(typingctx, p, v, way):
    """Return a vector that is the same in all lanes of a row as a float64 number per row."""
    result = _row_type(p, way)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = args[1] if len(way) == 1 else builder.extract_element(args[1], I32(0))
        kind = context.get_value_type(result)
        return value if value.type == kind else builder.fpext(value, kind)

    return result(p, v, way), codegen


def _trap(builder: Any) -> None:
    """Abort: numbers per row are floats, and only a branch that is never taken has one where rows of halves are."""
    builder.call(builder.module.declare_intrinsic("llvm.trap", (), ir.FunctionType(ir.VoidType(), [])), ())


@intrinsic
def per_row(typingctx, p, known, value, r, left, way):
    """Return the operand's numbers for the rows from r on; ``value`` for all if the operand is not an array."""
    result = _row_type(p, way)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, known, value, r, left, _ = args
        kind = context.get_value_type(result)
        if _is_half(p):
            _trap(builder)
            return ir.Constant(kind, ir.Undefined)
        constant = _convert(context, builder, value, types.float64, result)
        with builder.if_else(known) as (then, otherwise):
            with then:
                if len(way) == 1:
                    narrow = ir.VectorType(LLVM_TYPE[p.dtype], _count(p))
                    zero = ir.Constant(narrow, [0.0] * narrow.count)
                    loaded = _load(builder, pointer, r, left, narrow, p.dtype.bitwidth // 8, zero)
                else:
                    loaded = builder.load(builder.gep(pointer, [r]))
                if loaded.type != kind:
                    loaded = builder.fpext(loaded, kind)
                block = builder.block
            with otherwise:
                other = builder.block
        phi = builder.phi(kind)
        phi.add_incoming(loaded, block)
        phi.add_incoming(constant, other)
        return phi

    return result(p, types.boolean, types.float64, types.intp, types.intp, way), codegen


@intrinsic
def labels(typingctx, p, y, r, left, way):
    """Return the labels of the rows from r on."""
    result = _row_type(p, way, types.int64)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, r, left = args[1:4]
        if len(way) != 1:
            return builder.load(builder.gep(pointer, [r]))
        vector = ir.Constant(context.get_value_type(result), ir.Undefined)
        last = builder.sub(left, I64(1))
        for i in range(_count(p)):
            row = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
            value = builder.load(builder.gep(pointer, [builder.add(r, row)]))
            vector = builder.insert_element(vector, value, I32(i))
        return vector

    return result(p, y, types.intp, types.intp, way), codegen


@intrinsic
def put_row(typingctx, p, r, left, value, way):
    """Round a number per row and store it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, r, left, v = args[:4]
        kind = LLVM_TYPE[p.dtype]
        if _is_half(p):
            _trap(builder)
        elif len(way) == 1:
            vector = ir.VectorType(kind, _count(p))
            v = v if v.type == vector else builder.fptrunc(v, vector)
            _store(builder, v, pointer, r, left, p.dtype.bitwidth // 8)
        else:
            builder.store(v if v.type == kind else builder.fptrunc(v, kind), builder.gep(pointer, [r]))
        return context.get_dummy_value()

    return types.none(p, types.intp, types.intp, value, way), codegen


@intrinsic
def put_class(typingctx, p, to, r, left, value, way):
    """Store a class per row, given as a float64 number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, r, left, value = args[1:5]
        if len(way) != 1:
            builder.store(builder.fptosi(value, I64(0).type), builder.gep(pointer, [r]))
            return context.get_dummy_value()
        last = builder.sub(left, I64(1))
        for i in reversed(range(value.type.count)):  # beyond the last row, to its place, before it
            row = builder.select(builder.icmp_signed("<", I64(i), last), I64(i), last)
            place = builder.fptosi(builder.extract_element(value, I32(i)), I64(0).type)
            builder.store(place, builder.gep(pointer, [builder.add(r, row)]))
        return context.get_dummy_value()

    return types.none(p, to, types.intp, types.intp, value, way), codegen


@intrinsic
def gather(typingctx, p, index, stride, lane, way):
    """Return ``p[index * stride + i * lane]`` for the row of lane i."""
    result = _row_type(p, way)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, index, stride, lane = args[:4]

        def element(k: Any, i: int) -> Any:
            at = builder.add(builder.mul(k, stride), builder.mul(I64(i), lane))
            value = builder.load(builder.gep(pointer, [at]))
            return value if value.type == ir.DoubleType() else builder.fpext(value, ir.DoubleType())

        if len(way) != 1:
            return element(index, 0)
        vector = ir.Constant(context.get_value_type(result), ir.Undefined)
        for i in range(result.count):
            vector = builder.insert_element(vector, element(builder.extract_element(index, I32(i)), i), I32(i))
        return vector

    return result(p, index, types.intp, types.intp, way), codegen


@intrinsic
def scatter(typingctx, p, index, value, way):
    """Write a number per row to the class ``index`` of the row at p."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer, index, value = args[:3]
        kind, count = LLVM_TYPE[p.dtype], _count(p)

        def put(k: Any, v: Any) -> None:
            builder.store(v if v.type == kind else builder.fptrunc(v, kind), builder.gep(pointer, [k]))

        if len(way) == 1:
            for i in range(count):
                k = builder.mul(builder.extract_element(index, I32(i)), I64(count))
                put(builder.add(k, I64(i)), builder.extract_element(value, I32(i)))
        else:
            put(index, value)
        return context.get_dummy_value()

    return types.none(p, index, value, way), codegen


@intrinsic
def only(typingctx, good, v, special, way):
    """Return v in the lanes of good rows, else ``special``; ALONG, the caller has seen to it that the row is good."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(*args[:3]) if len(way) == 1 else args[1]

    return v(good, v, special, way), codegen


@helper
def element_at(p, at):
    """Return one element, which is the same for every row, in all lanes."""
    return spread(p, widened(p, at))


@intrinsic
def widened(typingctx, p, at):
    """Return one element as a float64 number."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        value = builder.load(builder.gep(args[0], [args[1]]))
        return value if value.type == ir.DoubleType() else builder.fpext(value, ir.DoubleType())

    return types.float64(p, types.intp), codegen


@helper
def class_weight(w, count, at, left, way):
    """Return the weights of the classes of a vector; a single weight is every class's."""
    if count == 1:
        return element_at(w, 0)
    if len(way) == 1:
        return element_at(w, at // lanes(w))
    return load(w, at, left, 0.0)


@helper
def fill_row(p, n, value, way):
    """Write the same number to a whole row."""
    v = spread(p, value)
    for k in range(0, n, lanes(p)):
        store(p, k, n - k, v)


# --- exact sums ---------------------------------------------------------------------------------------------------


@helper
def two_sum(a, b):
    """Return ``a + b`` rounded and what the rounding lost."""
    s = a + b
    bb = s - a
    return s, (a - (s - bb)) + (b - bb)


@helper
def two_product(a, b):
    """Return ``a b`` rounded and what the rounding lost."""
    p = a * b
    return p, fma(a, b, -1.0 * p)


@helper
def add_product(hi, lo, a, b):
    """Return ``hi + lo + a b`` in two parts."""
    product, lost = two_product(a, b)
    s, error = two_sum(hi, product)
    return s, lo + (error + lost)


@helper
def collapse(hi, lo):
    """Return ``hi + lo``, where lo is meaningless if hi is infinite."""
    return select(absolute(hi) < math.inf, hi + lo, hi)


@helper
def accumulate(p, hi, lo, a):
    """Add a to the sum ``hi + lo``.  For float32 a float64 is enough; for float64 the errors are summed up, too."""
    if is_single(p):
        return hi + a, lo
    s, error = two_sum(hi, a)
    return s, lo + error


@helper
def accumulate_product(p, hi, lo, a, b):
    """Add ``a b`` to a sum."""
    if is_single(p):
        return fma(a, b, hi), lo
    return add_product(hi, lo, a, b)


@helper
def nothing(p):
    """Return a vector of float64 zeros."""
    return widen(spread(p, 0.0))


# --- exponentials -------------------------------------------------------------------------------------------------
#
# By dtype: terms are multiplied by 2**OFFSET; below exp(-CUT) of the largest they are 0, far enough for the terms of
# 10**7 classes to vanish together; up to |scale m| = BIG the reduction of x itself is exact, beyond it x - m is for
# every x above the cut.  MAGIC + BIAS + n has n in its last bits and is exact.


@helper
def unscale(p):
    """Return ``2**-OFFSET``."""
    return 2.0**-64 if is_single(p) else 2.0**-512


@helper
def exp_constants(p, scale):
    """Return what the reduction needs of the scale.

    That is ``log2(e) scale``; ``h``, which is ``ln(2) / scale`` rounded; ``ln(2) - h scale``; and the scale in two
    parts.
    """
    h = rounded(p, LN2_HI / scale)
    near = rounded(p, scale)
    rest = fma(-h, scale, LN2_HI) + LN2_LO
    return spread(p, LOG2E * scale), spread(p, h), spread(p, rest), spread(p, near), spread(p, scale - near)


@helper
def row_frame(p, m, scale):
    """Return what a row is reduced by: its base (0 or m), the cut, counted from there, and the rounding constant."""
    if is_single(p):
        big, cut, magic = 256.0, 128.0, 1.5 * 2.0**23 + 127.0 + 64.0
    else:
        big, cut, magic = 2048.0, 1000.0, 1.5 * 2.0**52 + 1023.0 + 512.0
    base = select(absolute(m * scale) <= big, m * 0.0, m)
    n = rint((m - base) * scale * LOG2E)
    return spread(p, base), spread(p, (m - base) - cut / scale), spread(p, magic - n)


@helper
def reduce(v, constants, frame):
    """Return a, b and a power of two with ``exp(scale (v - base)) 2**(OFFSET - n_m) = exp(scale a + b) power``.

    The power is 0 below the cut.  ``a = d - n h`` is exact, b small.
    """
    log2e, h, rest, _, scale_lo = constants
    base, cut, magic = frame
    d = larger(cut, v - base)
    t = fma(d, log2e, magic)
    n = magic - t
    reduced = fma(n, h, d)
    correction = n * rest
    if is_single(v):
        correction = fma(reduced, scale_lo, correction)
    power = power_of_two(t)
    return reduced, correction, select(above(d, cut), power, zero_like(power))


@helper
def less_one(a, scale, b):
    """Return w, ``exp(scale a + b) - 1`` rounded, and a part of it that is rounded before."""
    r = fma(a, scale, b)
    # Were r to stand in the sum, its rounding would show: floats had errors up to 1.012 ULP.
    small = fma(r * r, exp_q(r), b)
    return fma(a, scale, small), small


@helper
def exp_parts(v, constants, frame):
    """Return w and a power of two whose product ``(1 + w) power`` is the term of a logit."""
    a, b, power = reduce(v, constants, frame)
    return less_one(a, constants[3], b)[0], power


@helper
def exp_terms(v, constants, frame):
    """Return the terms of a vector of logits."""
    w, power = exp_parts(v, constants, frame)
    return fma(w, power, power)


@helper
def exp_one(p, x, constants, frame, way):
    """Return the term of one logit per row, bit for bit that of :func:`exp_terms`."""
    return one_per_row(p, exp_terms(spread(p, x), constants, frame), way)


@helper
def exp_top(p, m, constants, frame, way):
    """Return the term of the largest logit, what its last rounding lost, and what the rounding before that lost."""
    a, b, power = reduce(spread(p, m), constants, frame)
    w, small = less_one(a, constants[3], b)
    w_lo = fma(a, constants[3], -1.0 * w) + small
    e = fma(w, power, power)
    lost = fma(w, power, power - e)
    return one_per_row(p, e, way), one_per_row(p, lost, way), one_per_row(p, w_lo * power, way)


@helper
def log_pair(u, c, shift):
    """Return ``log(2**-shift u + c)`` in two parts, for small c."""
    k, a = exponent_and_mantissa(u)
    f = a - 1.0
    s = f / (f + 2.0)
    z = s * s
    small = fma(-1.0 * s, f - z * log_p(z), c / u)
    k = k - shift
    hi, lo = two_product(k, LN2_HI)
    hi, error = two_sum(hi, f)
    return two_sum(hi, fma(k, LN2_LO, small) + (lo + error))


@helper
def log1p_pair(t, t_lo):
    """Return ``log(1 + t + t_lo)`` in two parts, for t >= 0."""
    u = t + 1.0
    c = select(t < 1.0, t - (u - 1.0), 1.0 - (u - t))
    return log_pair(u, c + t_lo, 0.0)


# --- long rows ----------------------------------------------------------------------------------------------------
#
# A row of more than LONG classes is computed in blocks.  Every pass over it is a *part*, a function of a range of
# classes, and the parts' results are merged in the order of the blocks, whoever computed them: the bits depend on
# the length of the row alone.  All threads run the kernel on the same row at once.  In each pass they take blocks
# until none is left and wait until all are done; a thread that comes late finds nothing to take, reads the results,
# and holds up nobody.  The passes are numbered; each has its place in the row's *room*: how many blocks are taken,
# how many done, and the results.

BLOCK = 1 << 14  # classes
LONG = 4 * BLOCK
LARGEST, CHECKED, TERMS, OTHERS, PICKED, SECOND, FOUND, FOUND_NAN, TARGETS, AIMED, WRITTEN = range(11)
HEAD, RESULTS = 16, 5  # int64 before the results of a pass, so that they share no cache line; float64 per block


def room_size(c: int) -> tuple[int, int]:
    """Return the 8-byte words that a row of c classes needs for a pass, and for all."""
    words = HEAD + RESULTS * -(-c // BLOCK)
    return words, (WRITTEN + 1) * words


def _word(builder: Any, room: Any, at: Any, kind: Any) -> Any:
    """Return the address of a word of a room."""
    return builder.gep(builder.inttoptr(room, kind.as_pointer()), [at])


@intrinsic
def row_way(typingctx, way, r):
    """Return the layout in row r: a long row has a room of its own."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        if len(way) != 3:
            return args[0]
        rooms, words, rows = (builder.extract_value(args[0], i) for i in range(3))
        row = builder.mul(builder.mul(words, I64(8 * (WRITTEN + 1))), args[1])
        return context.make_tuple(builder, way, [builder.add(rooms, row), words, rows])

    return way(way, types.intp), codegen


@intrinsic
def take_block(typingctx, room):
    """Return the number of the next block that nobody has taken."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", _word(builder, args[0], I64(0), I64(0).type), I64(1), "monotonic")

    return types.int64(types.int64), codegen


@intrinsic
def end_block(typingctx, room):
    """Count a block that is done."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.atomic_rmw("add", _word(builder, args[0], I64(8), I64(0).type), I64(1), "release")
        return context.get_dummy_value()

    return types.none(types.int64), codegen


@intrinsic
def blocks_done(typingctx, room):
    """Return how many blocks are done, and let other threads run if this has to be asked again and again."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(_word(builder, args[0], I64(8), I64(0).type), "acquire", 8)

    return types.int64(types.int64), codegen


@intrinsic
def give_way(typingctx):
    """Let another thread have the core: with fewer cores than threads it may be the one that is waited for."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kind = ir.FunctionType(I32, [])
        function = builder.module.globals.get("sched_yield") or ir.Function(builder.module, kind, "sched_yield")
        builder.call(function, [])
        return context.get_dummy_value()

    return types.none(), codegen


@intrinsic
def put_results(typingctx, room, k, values):
    """Write the results of block k."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.add(builder.mul(args[1], I64(RESULTS)), I64(HEAD))
        for i in range(RESULTS):
            address = _word(builder, args[0], builder.add(first, I64(i)), ir.DoubleType())
            builder.store(builder.extract_value(args[2], i), address)
        return context.get_dummy_value()

    return types.none(types.int64, types.int64, values), codegen


@intrinsic
def results_of(typingctx, room, k):
    """Read the results of block k."""
    result = types.UniTuple(types.float64, RESULTS)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        first = builder.add(builder.mul(args[1], I64(RESULTS)), I64(HEAD))
        addresses = [_word(builder, args[0], builder.add(first, I64(i)), ir.DoubleType()) for i in range(RESULTS)]
        return context.make_tuple(builder, result, [builder.load(a) for a in addresses])

    return result(types.int64, types.int64), codegen


@helper
def wait_for_blocks(room, count):
    """Wait until all blocks of a pass are done."""
    turns = 0
    while blocks_done(room) < count:
        turns += 1
        if turns & 63 == 0:
            give_way()


@helper
def added(a, b):
    """Merge the results of two parts: two sums, each in two parts, and a maximum."""
    first, error = two_sum(a[0], b[0])
    second, error2 = two_sum(a[2], b[2])
    return first, a[1] + (b[1] + error), second, a[3] + (b[3] + error2), larger(a[4], b[4])


@helper
def first_best(a, b):
    """Merge the results of two parts: a value and the key that it goes with."""
    better = b[4] > a[4]
    return select(better, b[0], a[0]), 0.0, 0.0, 0.0, select(better, b[4], a[4])


def rows_of(first, last, step, ways):
    """Return the first rows to compute at once: of a chunk, or of all rows if all threads compute them together."""


def over_row(number, n, way, merge, part, args):
    """Compute a pass over a row of n elements: ``part(start, stop, way, *args)``, merged where it has several."""


def each_block(number, n, way, part, args):
    """Compute a pass over a row of n elements that has no result."""


@overload(rows_of, jit_options=_inlined)
def _rows_of(first, last, step, ways):
    def of_chunk(first, last, step, ways):
        return range(first, last, step)

    def of_all(first, last, step, ways):
        return range(ways[2]) if ways[2] > 0 else range(first, last)

    return of_all if len(ways) == 3 else of_chunk


@overload(over_row, jit_options=_inlined)
def _over_row(number, n, way, merge, part, args):
    def at_once(number, n, way, merge, part, args):
        return part(0, n, way, *args)

    def by_blocks(number, n, way, merge, part, args):
        room = way[0] + 8 * number * way[1]
        count = -(-n // BLOCK)
        k = take_block(room)
        while k < count:
            put_results(room, k, part(k * BLOCK, min((k + 1) * BLOCK, n), way, *args))
            end_block(room)
            k = take_block(room)
        wait_for_blocks(room, count)
        results = results_of(room, 0)
        for k in range(1, count):
            results = merge(results, results_of(room, k))
        return results

    return by_blocks if len(way) == 3 else at_once


@overload(each_block, jit_options=_inlined)
def _each_block(number, n, way, part, args):
    def at_once(number, n, way, part, args):
        part(0, n, way, *args)

    def by_blocks(number, n, way, part, args):
        room = way[0] + 8 * number * way[1]
        count = -(-n // BLOCK)
        k = take_block(room)
        while k < count:
            part(k * BLOCK, min((k + 1) * BLOCK, n), way, *args)
            end_block(room)
            k = take_block(room)
        wait_for_blocks(room, count)

    return by_blocks if len(way) == 3 else at_once


# --- what the operations share ------------------------------------------------------------------------------------

# A row's terms are kept for a gradient, in its place.  Where they cannot, because the targets are there, they are
# computed again, and rounded as if they had been kept: the bits must not depend on the place.
KEPT, AS_KEPT = 1, 2

# A kilobyte ahead, for what is read first and what is written first: 10 to 15 % of the time of a large array on a
# virtual machine.  Tiles need it not.
AHEAD = 16  # vectors


@helper
def max_part(start, stop, way, p):
    """Return the largest element per row."""
    count = lanes(p)
    a = spread(p, -math.inf)
    b, c, d = a, a, a
    k = start
    while k + 4 * count <= stop:
        if len(way) != 1:
            for i in range(AHEAD, AHEAD + 4):
                prefetch(p, k + i * count)
        a = larger(a, load(p, k, count, 0.0))
        b = larger(b, load(p, k + count, count, 0.0))
        c = larger(c, load(p, k + 2 * count, count, 0.0))
        d = larger(d, load(p, k + 3 * count, count, 0.0))
        k += 4 * count
    while k < stop:
        a = larger(a, load(p, k, stop - k, -math.inf))
        k += count
    return 0.0, 0.0, 0.0, 0.0, fold_max(p, larger(larger(a, b), larger(c, d)), way)


@helper
def row_max(p, n, way):
    """Return the largest element per row.  It is not finite if there is an infinite one and no NaN."""
    return over_row(LARGEST, n, way, added, max_part, (p,))[4]


@helper
def nan_part(start, stop, way, p):
    """Tell whether there is a NaN, by 1 or 0."""
    v = spread(p, 0.0)
    bad = v != v
    for k in range(start, stop, lanes(p)):
        v = load(p, k, stop - k, 0.0)
        bad = bad | (v != v)
    return 0.0, 0.0, 0.0, 0.0, select(fold_any(p, bad, way), 1.0, 0.0)


@helper
def checked_max(p, n, way):
    """Return :func:`row_max`, NaN for a row with a NaN if it was not finite, and whether it is finite."""
    m = row_max(p, n, way)
    ok = absolute(m) < math.inf
    if any_of(negated(ok)):
        m = select(over_row(CHECKED, n, way, added, nan_part, (p,))[4] != 0.0, math.nan, m)
    return m, ok


@helper
def exp_sum_part(start, stop, way, p, constants, frame, to, keep):
    """Return the sum of terms in two parts; if ``keep`` is KEPT, store the terms.

    What the last rounding of each term lost is summed up, too: it would be the largest error of a logarithm.  float64
    terms are less than 2 * 2**OFFSET: a sum that starts there is larger than any, and the error of an addition takes
    three operations instead of six.
    """
    onset = 0.0 if is_single(p) else 2.0**513
    hi = nothing(p) + onset
    lo = nothing(p)
    lost = spread(p, 0.0)
    for k in range(start, stop, lanes(p)):
        if not len(way):
            prefetch_next(p, stop + k)
        w, power = exp_parts(load(p, k, stop - k, -math.inf), constants, frame)
        e = fma(w, power, power)
        if keep == KEPT:
            if len(way) != 1:
                prefetch_write(to, k + AHEAD * lanes(p))
            store(to, k, stop - k, e)
        lost = lost + fma(w, power, power - e)
        s = hi + widen(e)
        if not is_single(p):
            lo = lo + (widen(e) - (s - hi))
        hi = s
    hi, lo = fold_sum(p, hi - onset, lo + widen(lost), way)
    return hi, lo, 0.0, 0.0, 0.0


@helper
def row_exp_sum(p, n, constants, frame, to, keep, way):
    """Return the sum of a row's terms in two parts; if ``keep`` is KEPT, store the terms."""
    hi, lo, _, _, _ = over_row(TERMS, n, way, added, exp_sum_part, (p, constants, frame, to, keep))
    return two_sum(hi, lo)


@helper
def rest_part(start, stop, way, p, constants, frame, top, to, kept):
    """Return the sum of all terms but those that equal the largest."""
    largest = spread(p, top)
    hi = nothing(p)
    lo = nothing(p)
    for k in range(start, stop, lanes(p)):
        if kept == KEPT:
            e = load(to, k, stop - k, 0.0)
            hi, lo = accumulate(p, hi, lo, widen(select(e == largest, zero_like(e), e)))
        else:
            w, power = exp_parts(load(p, k, stop - k, -math.inf), constants, frame)
            e = fma(w, power, power)
            power = select(e == largest, zero_like(e), e if kept == AS_KEPT else power)
            hi, lo = accumulate(p, hi, lo, widen(power))
            if kept != AS_KEPT:
                hi, lo = accumulate_product(p, hi, lo, widen(w), widen(power))
    hi, lo = fold_sum(p, hi, lo, way)
    return hi, lo, 0.0, 0.0, 0.0


@helper
def rest_of_row(p, n, constants, frame, top, to, kept, way):
    """Return the sum of all terms but the largest, added up without it.  For rows that one class dominates."""
    hi, lo, _, _, _ = over_row(OTHERS, n, way, added, rest_part, (p, constants, frame, top, to, kept))
    return two_sum(hi, lo)


@helper
def quotient(a, a_lo, b, b_lo):
    """Return ``(a + a_lo) / (b + b_lo)`` in two parts."""
    inverse = 1.0 / b
    q = a * inverse
    return two_sum(q, (fma(-1.0 * q, b, a) + (a_lo - q * b_lo)) * inverse)


@helper
def times(p, a, hi, lo):
    """Return ``a (hi + lo)``, with one rounding if p is float64; else lo is below what is kept."""
    if is_single(p):
        return a * hi
    return fma(a, hi, a * lo)


@helper
def pair_times(a, b, b_lo):
    """Return ``a (b + b_lo)`` in two parts."""
    hi, lo = two_product(a, b)
    return hi, fma(a, b_lo, lo)


@helper
def two_parts(p, hi, lo):
    """Return vectors of a pointer's dtype whose sum is ``hi + lo``."""
    a = rounded(p, hi)
    return spread(p, a), spread(p, (hi - a) + lo)


@helper
def without_maximum(m, value):
    """Return what a row without a finite maximum m becomes: NaN, or ``value`` if all of it is -inf."""
    return select(m == -math.inf, value, math.nan)


@helper
def row_sums(p, a, n, constants, frame, m, to, keep, way):
    """Return the sum of a row's terms, the same without the (first) largest, and the largest.

    All but the last are in two parts.  The largest term counts most; its own errors are taken out of both sums.
    """
    total, total_lo = row_exp_sum(a, n, constants, frame, to, keep, way)
    top, top_lo, top_more = exp_top(p, m, constants, frame, way)
    rest, error = two_sum(total, -1.0 * top)
    rest, rest_lo = two_sum(rest, error + (total_lo - top_lo))
    # The difference is exact enough unless little is left, as measured by the roundings of as many additions; then no
    # other term equals the largest.
    alone = rest <= total * ((n + 64) * (2.0**-32 if is_single(p) else 2.0**-44))
    if any_of(alone):
        again, again_lo = rest_of_row(a, n, constants, frame, top, to, keep, way)
        rest = select(alone, again, rest)
        rest_lo = select(alone, again_lo, rest_lo)
    return total, total_lo + top_more, rest, rest_lo, top, top_lo + top_more


@helper
def log_of_sum(p, a, n, constants, frame, m, to, keep, way):
    """Return the sum of a row's terms, that without the largest, the largest, and ``log(sum / largest)``.

    The first and the last are in two parts.  The logarithm has full relative precision even if one class dominates.
    """
    total, total_lo, rest, rest_lo, top, top_lo = row_sums(p, a, n, constants, frame, m, to, keep, way)
    ratio, ratio_lo = quotient(rest, rest_lo, top, top_lo)
    log, log_lo = log1p_pair(ratio, ratio_lo)
    return total, total_lo, rest, top, log, log_lo


@helper
def scaled_difference(a, b, scale):
    """Return ``scale (a - b)`` in two parts; the halves' difference does not overflow."""
    d, error = two_sum(a * 0.5, b * -0.5)
    hi, lo = two_product(d, 2.0 * scale)
    return hi, fma(error, 2.0 * scale, lo)


# --- forward ------------------------------------------------------------------------------------------------------

_STATE = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()


def _cached(**options: Any) -> Callable[[Any], Any]:
    """Make a decorator that compiles a function and keeps the result on disk, if there is a place to keep it.

    Numba takes a result from the disk if the file of the function is as it was.  What is kept is also marked with the
    state of this file, whose helpers the functions of other files are made of.
    """

    def decorate(function: Any) -> Any:
        try:
            compiled = njit(nogil=True, error_model="numpy", cache=True, **options)(function)
        except RuntimeError:  # neither the package's nor the user's cache directory can be written to
            return njit(nogil=True, error_model="numpy", **options)(function)
        if function.__module__ != __name__:
            kept = compiled._cache._cache_file
            kept._source_stamp = (kept._source_stamp, _STATE)
        return compiled

    return decorate


kernel = _cached()


def in_blocks(function: Any) -> Any:
    """Mark a kernel that can compute long rows block by block."""
    function.in_blocks = True
    return function


@helper
def softmax_part(start, stop, way, to, f, f_lo, unit, ok, special):
    """Divide terms by their sum, whose reciprocal is ``f + f_lo``."""
    for k in range(start, stop, lanes(to)):
        e = load(to, k, stop - k, 0.0)
        # The rounding of e can lift a result next to 1 above it, where an ULP is twice as large.
        store(to, k, stop - k, only(ok, smaller(1.0, fma(e, f, e * f_lo) * unit), special, way))


@in_blocks
@kernel
def softmax(x, y, c, first, last, scale, empty, ways):
    """``y = exp(scale x - lse(scale x))``."""
    px, py = pointer_to(x), pointer_to(y)
    tile = scratch(px)
    step = rows_at_once(px, ways)
    n = c * step
    constants = exp_constants(px, scale)
    unit = unscale(px)
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(px, r, last - r, c, tile, way)
        b = out_row(py, r, c, tile, way)
        m, ok = checked_max(a, n, way)
        bad = without_maximum(m, 0.0 if empty else math.nan)
        if any_of(ok):
            m = select(ok, m, 0.0)
            frame = row_frame(px, m, scale)
            total, total_lo = row_exp_sum(a, n, constants, frame, b, True, way)
            # Of one class the rounded term is its own sum: the result is 1.
            total_lo = (total_lo + exp_top(px, m, constants, frame, way)[2]) * (0.0 if c == 1 else 1.0)
            inverse, inverse_lo = quotient(1.0 / unit, 0.0, total, total_lo)
            f, f_lo = two_parts(px, inverse, inverse_lo)
            each_block(WRITTEN, n, way, softmax_part, (b, f, f_lo, unit, ok, spread(px, bad)))
        else:
            fill_row(b, n, bad, way)
        close_row(py, r, last - r, c, tile, way)


@helper
def log_softmax_part(start, stop, way, p, to, m, scale, minus_log, minus_log_lo, ok, special):
    """Write ``scale (x - m) - log``."""
    for k in range(start, stop, lanes(p)):
        v = widen(load(p, k, stop - k, 0.0))
        if is_single(p):
            z = fma(v - m, scale, minus_log)
        else:
            # Half of everything, for the difference of two halves does not overflow.
            d, error = two_sum(v * 0.5, m * -0.5)
            error = select(d == -math.inf, nothing(p), error)
            z = fma(d, 2.0 * scale, fma(error, 2.0 * scale, minus_log_lo) + minus_log)
        store(to, k, stop - k, only(ok, spread(p, z), special, way))


@in_blocks
@kernel
def log_softmax(x, y, c, first, last, scale, empty, ways):
    """``y = scale x - lse(scale x)``."""
    px, py = pointer_to(x), pointer_to(y)
    tile = scratch(px)
    step = rows_at_once(px, ways)
    n = c * step
    constants = exp_constants(px, scale)
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(px, r, last - r, c, tile, way)
        b = out_row(py, r, c, tile, way)
        m, ok = checked_max(a, n, way)
        bad = without_maximum(m, -math.inf if empty else math.nan)
        if any_of(ok):
            m = select(ok, m, 0.0)
            frame = row_frame(px, m, scale)
            sums = log_of_sum(px, a, n, constants, frame, m, a, False, way)
            minus_log, minus_log_lo = -1.0 * sums[4], -1.0 * sums[5]
            args = a, b, m, scale, minus_log, minus_log_lo, ok, spread(px, bad)
            each_block(WRITTEN, n, way, log_softmax_part, args)
        else:
            fill_row(b, n, bad, way)
        close_row(py, r, last - r, c, tile, way)


@in_blocks
@kernel
def logsumexp(x, s, c, first, last, scale, ways):
    """``s = log sum_c exp(scale x_c)``."""
    px, ps = pointer_to(x), pointer_to(s)
    tile = scratch(px)
    step = rows_at_once(px, ways)
    n = c * step
    constants = exp_constants(px, scale)
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(px, r, last - r, c, tile, way)
        m, ok = checked_max(a, n, way)
        value = m
        if any_of(ok):
            m = select(ok, m, 0.0)
            frame = row_frame(px, m, scale)
            sums = log_of_sum(px, a, n, constants, frame, m, a, False, way)
            hi, lo = two_product(m, scale)
            hi, error = two_sum(hi, sums[4])
            value = select(ok, collapse(hi, lo + (error + sums[5])), value)
        put_row(ps, r, last - r, value, way)


@helper
def included_part(start, stop, way, p, factors):
    """Tell whether there is a NaN, and return the largest element, among those whose factor is not 0."""
    excluded = spread(p, -math.inf)
    top = excluded
    nan = excluded != excluded
    for k in range(start, stop, lanes(p)):
        w = load(factors, k, stop - k, 0.0)
        v = select(w == 0.0, excluded, load(p, k, stop - k, -math.inf))
        top = larger(top, v)
        # The sums leave out terms whose exponential is 0; times a factor that is not finite such a term is NaN.
        nan = nan | (v != v) | (w != w) | ((absolute(w) == math.inf) & (v == -math.inf))
    return select(fold_any(p, nan, way), 1.0, 0.0), 0.0, 0.0, 0.0, fold_max(p, top, way)


@helper
def weighted_part(start, stop, way, p, factors, constants, frame, damp):
    """Return the sum of terms times factors in two parts, and that of the infinite ones."""
    zero, excluded = spread(p, 0.0), spread(p, -math.inf)
    hi, lo, infinite = nothing(p), nothing(p), nothing(p)
    for k in range(start, stop, lanes(p)):
        v, w = load(p, k, stop - k, -math.inf), load(factors, k, stop - k, 0.0)
        v = select(w == 0.0, excluded, v)
        infinite = infinite + widen(select((v == math.inf) | (absolute(w) == math.inf), w * math.inf, zero))
        e = exp_terms(v, constants, frame)
        hi, lo = accumulate_product(p, hi, lo, widen(e) * damp, widen(select(e == zero, zero, w)))
    hi, lo = fold_sum(p, hi, lo, way)
    return hi, lo, fold_sum(p, infinite, nothing(p), way)[0], 0.0, 0.0


@in_blocks
@kernel
def logsumexp_weighted(x, b, s, sign, c, first, last, scale, ways):
    """``total = sum_c b_c exp(scale x_c)``; ``s = log |total|`` and ``sign = sgn(total)``."""
    px, pb, ps, psign = pointer_to(x), pointer_to(b), pointer_to(s), pointer_to(sign)
    tile, factors = scratch(px), scratch(px)
    step = rows_at_once(px, ways)
    n = c * step
    constants = exp_constants(px, scale)
    # Terms are at most 2**OFFSET: this makes room for large factors, and k for small ones in the logarithm.
    damp, k_shift = (1.0, 0.0) if is_single(px) else (2.0**-256, 256.0)
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(px, r, last - r, c, tile, way)
        f = open_row(pb, r, last - r, c, factors, way)
        nans, _, _, _, m = over_row(LARGEST, n, way, added, included_part, (a, f))
        ok = absolute(m) < math.inf
        m0 = select(ok, m, 0.0)
        frame = row_frame(px, m0, scale)
        hi, lo, flood, _, _ = over_row(TERMS, n, way, added, weighted_part, (a, f, constants, frame, damp))
        total, total_lo = two_sum(hi, lo)
        total = select(absolute(hi) < math.inf, total, hi)
        largest, largest_lo, more = exp_top(px, m0, constants, frame, way)
        largest_lo = largest_lo + more
        unit = damp * damp
        ratio, ratio_lo = quotient(
            absolute(total), select(total < 0.0, -1.0 * total_lo, total_lo), largest * unit, largest_lo * unit
        )
        log, log_lo = log_pair(ratio, ratio_lo, k_shift)
        ph, pl = two_product(m0, scale)
        ph, error = two_sum(ph, log)
        value = collapse(ph, pl + (error + log_lo))
        value = select(absolute(total) < math.inf, value, absolute(total))
        value = select(total == 0.0, -math.inf, value)
        # An infinite logit has an infinite term, whose sign is its factor's; two signs make a NaN.
        total = select(ok, total, select(m == math.inf, flood, 0.0 * m0))
        value = select(ok, value, select(m == math.inf, absolute(flood), -math.inf))
        lost = nans != 0.0
        total = select(lost, math.nan, total)
        put_row(ps, r, last - r, select(lost, math.nan, value), way)
        put_row(psign, r, last - r, select(total > 0.0, 1.0, select(total < 0.0, -1.0, total)), way)


# --- derivatives, from the saved output ---------------------------------------------------------------------------


@helper
def centre_of(ref, dot, dot_lo, total, total_lo):
    """Return what the derivative rules subtract from ``t - ref``, the mean of that under p, in two parts.

    An error in it has the same sign in all elements: half an ULP is too much for a row that has to sum to 0.
    """
    short = (1.0 - total) - total_lo
    unit = absolute(short) <= UNIT_SUM_BAND
    mean, mean_lo = quotient(dot, dot_lo, select(unit, total, 1.0), select(unit, total_lo, 0.0))
    mean, mean_lo = select(unit, mean, collapse(dot, dot_lo) - ref * short), select(unit, mean_lo, 0.0)
    plain = absolute(dot) < math.inf
    return select(plain, mean, dot), select(plain, mean_lo, 0.0)


@helper
def minus(p, a, a_lo, b, b_lo):
    """Return ``a + a_lo - b - b_lo``, in two parts for float64; for float32 the first is enough."""
    if is_single(p):
        return a - b, a * 0.0
    d, error = two_sum(a, -1.0 * b)
    return d, select(absolute(d) < math.inf, error + (a_lo - b_lo), nothing(p))


@helper
def reference_part(start, stop, way, key, t):
    """Return t at a largest key, and that key."""
    best = spread(key, -math.inf)
    value = spread(key, 0.0)
    for k in range(start, stop, lanes(key)):
        v = load(key, k, stop - k, -math.inf)
        better = v > best
        best = select(better, v, best)
        value = select(better, load(t, k, stop - k, 0.0), value)
    return fold_best(key, best, value, way), 0.0, 0.0, 0.0, fold_max(key, best, way)


@helper
def reference_value(p, key, t, n, way):
    """Return t at a largest key of each row: any shift of t drops out, this one keeps small differences."""
    return over_row(PICKED, n, way, first_best, reference_part, (key, t))[0]


@helper
def plain_frame(p):
    """Return the frame of a row of log-probabilities, which are not reduced by their maximum."""
    return row_frame(p, 0.0, 1.0)


@helper
def probabilities(p, v, constants, frame):
    """Return ``exp(v)`` in float64; infinite far above 0, where no log-probability lies."""
    e = widen(exp_terms(v, constants, frame)) * unscale(p)
    return select(widen(v) > (40.0 if is_single(p) else 350.0), nothing(p) + math.inf, e)


@helper
def as_saved(p, v, constants, frame):
    """Return probabilities that were saved as such."""
    return widen(v)


@helper
def mean_part(start, stop, way, p, t, probability, nobody, constants, frame, ref):
    """Return ``sum p`` and ``<p, t - ref>``, each in two parts."""
    total, total_lo, dot, dot_lo = nothing(p), nothing(p), nothing(p), nothing(p)
    for k in range(start, stop, lanes(p)):
        w = probability(p, load(p, k, stop - k, nobody), constants, frame)
        h, h_lo = minus(p, widen(load(t, k, stop - k, 0.0)), nothing(p), ref, 0.0)
        total, total_lo = accumulate(p, total, total_lo, w)
        dot, dot_lo = accumulate_product(p, dot, dot_lo, w, select(w == 0.0, nothing(p), h))
        if not is_single(p):
            dot_lo = fma(w, h_lo, dot_lo)
    total, total_lo = fold_sum(p, total, total_lo, way)
    dot, dot_lo = fold_sum(p, dot, dot_lo, way)
    return total, total_lo, dot, dot_lo, 0.0


@helper
def softmax_jvp_part(start, stop, way, p, t, to, ref, centre, centre_lo, scale):
    """Write ``scale p (t - ref - centre)``."""
    for k in range(start, stop, lanes(p)):
        w = widen(load(p, k, stop - k, 0.0))
        h, h_lo = minus(p, widen(load(t, k, stop - k, 0.0)), nothing(p), ref, 0.0)
        h, h_lo = minus(p, h, h_lo, centre, centre_lo)
        z = times(p, w, h, h_lo) * scale
        store(to, k, stop - k, spread(p, select(w == 0.0, nothing(p), z)))


@in_blocks
@kernel
def softmax_jvp(p, t, y, c, first, last, scale, ways):
    """``y = scale p (t - <p, t>)``."""
    pp, pt, py = pointer_to(p), pointer_to(t), pointer_to(y)
    tile, other = scratch(pp), scratch(pp)
    step = rows_at_once(pp, ways)
    n = c * step
    constants, frame = exp_constants(pp, 1.0), plain_frame(pp)
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(pp, r, last - r, c, tile, way)
        b = open_row(pt, r, last - r, c, other, way)
        to = out_row(py, r, c, tile, way)
        ref = reference_value(pp, a, b, n, way)
        args = a, b, as_saved, 0.0, constants, frame, ref
        total, total_lo, dot, dot_lo, _ = over_row(SECOND, n, way, added, mean_part, args)
        centre, centre_lo = centre_of(ref, dot, dot_lo, total, total_lo)
        each_block(WRITTEN, n, way, softmax_jvp_part, (a, b, to, ref, centre, centre_lo, scale))
        close_row(py, r, last - r, c, tile, way)


@helper
def log_softmax_jvp_part(start, stop, way, p, t, to, ref, centre, centre_lo, scale):
    """Write ``scale (t - ref - centre)``."""
    for k in range(start, stop, lanes(p)):
        dead = widen(load(p, k, stop - k, 0.0)) == -math.inf
        h, h_lo = minus(p, widen(load(t, k, stop - k, 0.0)), nothing(p), ref, 0.0)
        z = minus(p, h, h_lo, centre, centre_lo)[0] * scale
        store(to, k, stop - k, spread(p, select(dead, nothing(p), z)))


@in_blocks
@kernel
def log_softmax_jvp(logp, t, y, c, first, last, scale, ways):
    """``y = scale (t - <p, t>)`` with ``p = exp(logp)``."""
    pp, pt, py = pointer_to(logp), pointer_to(t), pointer_to(y)
    tile, other = scratch(pp), scratch(pp)
    step = rows_at_once(pp, ways)
    n = c * step
    constants, frame = exp_constants(pp, 1.0), plain_frame(pp)
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(pp, r, last - r, c, tile, way)
        b = open_row(pt, r, last - r, c, other, way)
        to = out_row(py, r, c, tile, way)
        ref = reference_value(pp, a, b, n, way)
        args = a, b, probabilities, -math.inf, constants, frame, ref
        total, total_lo, dot, dot_lo, _ = over_row(SECOND, n, way, added, mean_part, args)
        centre, centre_lo = centre_of(ref, dot, dot_lo, total, total_lo)
        each_block(WRITTEN, n, way, log_softmax_jvp_part, (a, b, to, ref, centre, centre_lo, scale))
        close_row(py, r, last - r, c, tile, way)


@helper
def living_part(start, stop, way, p, g):
    """Return the sum of g over the classes that can occur, in two parts."""
    total, total_lo = nothing(p), nothing(p)
    for k in range(start, stop, lanes(p)):
        dead = widen(load(p, k, stop - k, 0.0)) == -math.inf
        h = select(dead, nothing(p), widen(load(g, k, stop - k, 0.0)))
        total, total_lo = accumulate(p, total, total_lo, h)
    total, total_lo = fold_sum(p, total, total_lo, way)
    return total, total_lo, 0.0, 0.0, 0.0


@helper
def log_softmax_vjp_part(start, stop, way, p, g, to, constants, frame, minus_total, scale):
    """Write ``scale (g - p sum(g))``."""
    for k in range(start, stop, lanes(p)):
        v = load(p, k, stop - k, 0.0)
        z = fma(probabilities(p, v, constants, frame), minus_total, widen(load(g, k, stop - k, 0.0))) * scale
        store(to, k, stop - k, spread(p, select(widen(v) == -math.inf, nothing(p), z)))


@in_blocks
@kernel
def log_softmax_vjp(logp, g, y, c, first, last, scale, ways):
    """``y = scale (g - p sum(g))`` with ``p = exp(logp)``."""
    pp, pg, py = pointer_to(logp), pointer_to(g), pointer_to(y)
    tile, other = scratch(pp), scratch(pp)
    step = rows_at_once(pp, ways)
    n = c * step
    constants, frame = exp_constants(pp, 1.0), plain_frame(pp)
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(pp, r, last - r, c, tile, way)
        b = open_row(pg, r, last - r, c, other, way)
        to = out_row(py, r, c, tile, way)
        total, total_lo, _, _, _ = over_row(SECOND, n, way, added, living_part, (a, b))
        args = a, b, to, constants, frame, -1.0 * collapse(total, total_lo), scale
        each_block(WRITTEN, n, way, log_softmax_vjp_part, args)
        close_row(py, r, last - r, c, tile, way)


@helper
def product_part(start, stop, way, p, t):
    """Return ``<p, t>`` in two parts."""
    dot, dot_lo = nothing(p), nothing(p)
    for k in range(start, stop, lanes(p)):
        w = widen(load(p, k, stop - k, 0.0))
        h = select(w == 0.0, nothing(p), widen(load(t, k, stop - k, 0.0)))
        dot, dot_lo = accumulate_product(p, dot, dot_lo, w, h)
    dot, dot_lo = fold_sum(p, dot, dot_lo, way)
    return dot, dot_lo, 0.0, 0.0, 0.0


@in_blocks
@kernel
def logsumexp_jvp(p, t, s, c, first, last, scale, ways):
    """``s = scale <p, t>``."""
    pp, pt, ps = pointer_to(p), pointer_to(t), pointer_to(s)
    tile, other = scratch(pp), scratch(pp)
    step = rows_at_once(pp, ways)
    n = c * step
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(pp, r, last - r, c, tile, way)
        b = open_row(pt, r, last - r, c, other, way)
        dot, dot_lo, _, _, _ = over_row(SECOND, n, way, added, product_part, (a, b))
        put_row(ps, r, last - r, collapse(dot, dot_lo) * scale, way)


@helper
def multiples_part(start, stop, way, p, to, f, f_lo):
    """Write ``p (f + f_lo)``."""
    for k in range(start, stop, lanes(p)):
        w = widen(load(p, k, stop - k, 0.0))
        store(to, k, stop - k, spread(p, select(w == 0.0, nothing(p), fma(w, f, w * f_lo))))


@in_blocks
@kernel
def logsumexp_vjp(p, g, g_all, y, c, first, last, scale, ways):
    """``y = scale g p``."""
    pp, pg, py = pointer_to(p), pointer_to(g), pointer_to(y)
    tile = scratch(pp)
    step = rows_at_once(pp, ways)
    n = c * step
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(pp, r, last - r, c, tile, way)
        to = out_row(py, r, c, tile, way)
        f, f_lo = two_product(per_row(pg, g.size > 0, g_all, r, last - r, way), scale)
        f_lo = select(absolute(f) < math.inf, f_lo, 0.0)
        each_block(WRITTEN, n, way, multiples_part, (a, to, f, f_lo))
        close_row(py, r, last - r, c, tile, way)


@kernel
def softmax_jacobian(p, j, c, first, last, scale, way):
    """``j = scale (diag(p) - p p^T)``; the diagonal is ``p_i`` times the sum of the other p."""
    pp, pj = pointer_to(p), pointer_to(j)
    for r in range(first, last):
        a = offset(pp, r * c)
        top = 0
        for i in range(c):
            if widened(a, i) > widened(a, top):
                top = i
        others, others_lo = 0.0, 0.0
        for i in range(c):
            others, error = two_sum(others, 0.0 if i == top else widened(a, i))
            others_lo += error
        total, total_lo = two_sum(others, widened(a, top))
        total_lo += others_lo
        unit = abs((total - 1.0) + total_lo) <= UNIT_SUM_BAND
        for i in range(c):
            v = widened(a, i)
            to = offset(pj, (r * c + i) * c)
            f = -(v * scale)
            for k in range(0, c, lanes(pp)):
                store(to, k, c - k, spread(pp, widen(load(a, k, c - k, 0.0)) * f))
            rest = others + others_lo if i == top else (total - v) + total_lo
            put_row(to, i, 1, v * (rest if unit else 1.0 - v) * scale, ALONG)


@kernel
def log_softmax_jacobian(logp, j, c, first, last, scale, way):
    """``j = scale (I - 1 p^T)``; rows of classes that cannot occur (logp = -inf) are 0."""
    pp, pj = pointer_to(logp), pointer_to(j)
    constants, frame = exp_constants(pp, 1.0), plain_frame(pp)
    for r in range(first, last):
        a = offset(pp, r * c)
        # The rows are all alike but for the diagonal: the last one is computed first.
        model = offset(pj, (r * c + c - 1) * c)
        for k in range(0, c, lanes(pp)):
            e = probabilities(pp, load(a, k, c - k, 0.0), constants, frame)
            store(model, k, c - k, spread(pp, e * -scale))
        for i in range(c):
            to = offset(pj, (r * c + i) * c)
            v = widened(a, i)
            if v == -math.inf:
                fill_row(to, c, 0.0, way)
            else:
                for k in range(0, c, lanes(pp)):
                    store(to, k, c - k, load(model, k, c - k, 0.0))
                put_row(to, i, 1, -math.expm1(v) * scale, ALONG)


# --- cross-entropy ------------------------------------------------------------------------------------------------
#
# With targets q the loss of a row is v (sum_c q_c (lse - z_c) + z_loss lse**2), its gradient
# scale v g ((sum of the other q + 2 z_loss lse) p_c - q_c (1 - p_c)): at the target nothing cancels.


@helper
def loss_of(v, linear, linear_lo, lse, lse_lo, zloss, m, ok, any_target, empty):
    """Return ``v (linear + zloss lse**2)``, and what rows without a finite maximum have instead."""
    if zloss != 0.0:
        square, square_lo = two_product(lse, lse)
        square_lo = fma(2.0 * lse, lse_lo, square_lo)
        linear, linear_lo = add_product(linear, fma(square_lo, zloss, linear_lo), square, zloss)
    hi, lo = two_product(linear, v)
    value = collapse(hi, fma(linear_lo, v, lo))
    endless = select(any_target == 0.0, zloss * math.inf if zloss != 0.0 else 0.0, math.inf) * v
    endless = select(empty != 0.0, endless, math.nan)
    return select(ok, select(lse == lse, value, math.nan), without_maximum(m, endless))


@helper
def raised(p, factor):
    """Return a small factor times a power of two, so that no product but the last is subnormal, and what undoes it."""
    power, threshold = (2.0**96, 2.0**-10) if is_single(p) else (2.0**512, 2.0**-300)
    small = absolute(factor) < threshold
    return select(small, factor * power, factor), select(small, 1.0 / power, 1.0)


@helper
def over_sum(p, total, total_lo, factor):
    """Return ``hi + lo`` and ``after``: a term e of a class times both is ``factor p_c``."""
    factor, after = raised(p, factor)
    inverse, inverse_lo = quotient(1.0, 0.0, total, total_lo)
    hi, lo = two_product(inverse, factor)
    return hi, fma(inverse_lo, factor, lo), after


@helper
def smoothing_part(start, stop, way, p, w, weight_count, m):
    """Return ``sum w`` and half of ``sum w (m - x)``, each in two parts."""
    s, s_lo, t, t_lo = nothing(p), nothing(p), nothing(p), nothing(p)
    at_m = spread(p, m)
    for k in range(start, stop, lanes(p)):
        wc = widen(class_weight(w, weight_count, k, stop - k, way))
        s, s_lo = accumulate(p, s, s_lo, wc)
        d = widen(at_m) * 0.5 - widen(load(p, k, stop - k, at_m)) * 0.5
        t, t_lo = accumulate_product(p, t, t_lo, wc, select(wc == 0.0, nothing(p), d))
    s, s_lo = fold_sum(p, s, s_lo, way)
    t, t_lo = fold_sum(p, t, t_lo, way)
    return s, s_lo, t, t_lo, 0.0


@helper
def smoothing_sums(p, a, n, c, w, weight_count, m, way):
    """Return ``sum w`` and half of ``sum w (m - x)``, which does not overflow."""
    s, s_lo, t, t_lo, _ = over_row(SECOND, n, way, added, smoothing_part, (a, w, weight_count, m))
    if weight_count == 1:
        product, lost = two_product(widened(w, 0), float(c))
        s, s_lo = s * 0.0 + product, s * 0.0 + lost
    return s, s_lo, t, t_lo


@helper
def first_part(start, stop, way, p, m):
    """Return minus the place of the first element that is m, or NaN."""
    count = lanes(p)
    at_m = spread(p, m)
    if len(way) == 1:
        place = spread(p, -math.inf)
        for k in range(stop - count, start - 1, -count):
            v = load(p, k, count, 0.0)
            place = select((v == at_m) | (v != v), spread(p, -1.0 * (k // count)), place)
        return 0.0, 0.0, 0.0, 0.0, fold_max(p, place, way)
    k = start
    found = False
    while k < stop and not found:
        v = load(p, k, stop - k, -math.inf)
        found = any_of((v == at_m) | (v != v))
        k += 0 if found else count
    while k < stop and widened(p, k) == widened(p, k) and widened(p, k) != m:
        k += 1
    return 0.0, 0.0, 0.0, 0.0, -1.0 * k if k < stop else -math.inf


@helper
def most_part(start, stop, way, p):
    """Return a number that is not 0 if there is a NaN, and the largest element."""
    most = spread(p, -math.inf)
    bad = most != most
    for k in range(start, stop, lanes(p)):
        v = load(p, k, stop - k, -math.inf)
        most = larger(most, v)
        bad = bad | (v != v)
    return select(fold_any(p, bad, way), 1.0, 0.0), 0.0, 0.0, 0.0, fold_max(p, most, way)


@helper
def found(number, n, way, a, m):
    """Return minus the place of the first element that is m, or NaN."""
    return over_row(number, n, way, added, first_part, (a, m))[4]


@helper
def put_extras(p, a, n, m, ok, lse, lse_lo, place, to_lse, to_top, r, left, way):
    """Store the logsumexp, and the place found or that of the first NaN, which still is one if a holds terms by now."""
    value = select(ok, collapse(lse, lse_lo), m)
    if to_lse.size > 0:
        put_row(pointer_to(to_lse), r, left, value, way)
    if to_top.size > 0:
        odd = (m == m) & (value != value)  # a NaN that m did not show, so that the first m was found
        if any_of(odd):
            place = select(odd, found(FOUND_NAN, n, way, a, math.nan), place)
        put_class(p, pointer_to(to_top), r, left, select(m == -math.inf, -1.0, -1.0 * place), way)


@helper
def put_aim(p, b, n, to_aim, r, left, way):
    """Store the class of the largest target."""
    if to_aim.size > 0:
        bad, _, _, _, most = over_row(TARGETS, n, way, added, most_part, (b,))
        most = select(bad != 0.0, math.nan, most)
        place = found(AIMED, n, way, b, most)
        put_class(p, pointer_to(to_aim), r, left, select(most == -math.inf, -1.0, -1.0 * place), way)


@helper
def picked_part(start, stop, way, p, index, stride, lane):
    """Return one element per row, as if it were a sum."""
    return gather(p, index, stride, lane, way), 0.0, 0.0, 0.0, 0.0


@helper
def plain_gradient_part(start, stop, way, to, f, f_lo, after, good, special):
    """Turn terms into ``p`` times a factor."""
    for k in range(start, stop, lanes(to)):
        e = load(to, k, stop - k, 0.0)
        store(to, k, stop - k, only(good, fma(e, f, e * f_lo) * after, special, way))


@helper
def smoothed_gradient_part(
    start, stop, way, to, w, weight_count, spread_, top, rest, total, all_q, extra, hi, lo, after, good, special
):
    """Turn terms into the gradient but for the target's share of it."""
    for k in range(start, stop, lanes(to)):
        e = widen(load(to, k, stop - k, 0.0))
        wc = widen(class_weight(w, weight_count, k, stop - k, way)) * spread_
        others = select(e == top, nothing(to) + rest, total - e)
        z = times(to, ((all_q - wc) + extra) * e - wc * others, hi, lo) * after
        store(to, k, stop - k, only(good, spread(to, z), special, way))


@helper
def index_rows(
    x, y, w, v, v_all, g, g_all, loss, dx, to_lse, to_top, c, first, last, scale, empty, keep, spread_, zloss, ignore,
    ways, gradient,
):  # fmt: skip
    """Compute the losses against class indices and, if asked, their gradients and extras."""
    px, py, pw, pv, pg = pointer_to(x), pointer_to(y), pointer_to(w), pointer_to(v), pointer_to(g)
    ploss, pdx = pointer_to(loss), pointer_to(dx)
    tile = scratch(px)
    step = rows_at_once(px, ways)
    n = c * step
    constants = exp_constants(px, scale)
    ignored_label = int(ignore)
    weight_stride = 1 if w.size > 1 else 0
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        label = labels(px, py, r, last - r, way)
        valid = label != ignored_label
        to = out_row(pdx, r, c, tile, way)
        skipped = not any_of(valid)
        if to_lse is not None:
            skipped = False
        if skipped:
            put_row(ploss, r, last - r, select(valid, 1.0, 0.0), way)
            if gradient:
                fill_row(to, n, 0.0, way)
                close_row(pdx, r, last - r, c, tile, way)
            continue
        a = open_row(px, r, last - r, c, tile, way)
        label = select(valid, label, 0)
        m, ok = checked_max(a, n, way)
        m0 = select(ok, m, 0.0)
        frame = row_frame(px, m0, scale)
        xy = over_row(PICKED, 1, way, added, picked_part, (a, label, step, 1))[0]
        wy = gather(pw, label, weight_stride, 0, way)
        row = per_row(pv, v.size > 0, v_all, r, last - r, way)
        weights, weights_lo, far, far_lo = wy * 0.0, wy * 0.0, wy * 0.0, wy * 0.0
        if spread_ != 0.0:
            weights, weights_lo, far, far_lo = smoothing_sums(px, a, n, c, pw, w.size, m0, way)
        place = m0
        if to_top is not None and to_top.size > 0:
            place = found(FOUND, n, way, a, m)  # now: terms may take the place of the logits
        total, total_lo, rest, top, log, log_lo = log_of_sum(px, a, n, constants, frame, m0, to, gradient, way)
        lse, lse_lo = add_product(log, log_lo, m0, scale)
        if to_lse is not None:
            put_extras(px, a, n, m, ok, lse, lse_lo, place, to_lse, to_top, r, last - r, way)
        target, target_lo = two_product(wy, keep)
        q = target + wy * spread_
        # spread sum_c w_c (lse - z_c) + w_y keep (lse - z_y)
        hi, lo = scaled_difference(m0, xy, scale)
        hi, error = two_sum(hi, log)
        lo = lo + (error + log_lo)
        near, near_lo = two_product(hi, target)
        near_lo = fma(hi, target_lo, fma(lo, target, near_lo))
        near = select(target == 0.0, 0.0, near)
        near_lo = select(target == 0.0, 0.0, near_lo)
        if spread_ != 0.0:
            even, even_lo = two_product(far, 2.0 * scale)
            even, even_lo = add_product(even, fma(far_lo, 2.0 * scale, even_lo), weights, log)
            even_lo = fma(weights, log_lo, fma(weights_lo, log, even_lo))
            near, near_lo = add_product(near, fma(even_lo, spread_, near_lo), even, spread_)
        all_q = target + spread_ * weights
        value = loss_of(row, near, near_lo, lse, lse_lo, zloss, m, ok, all_q, empty)
        put_row(ploss, r, last - r, select(valid, value, 0.0), way)
        if gradient:
            rate = row * per_row(pg, g.size > 0, g_all, r, last - r, way) * scale
            bad = select(valid, without_maximum(m, 0.0 if empty else math.nan), 0.0)
            good = valid & ok
            extra = 2.0 * zloss * lse
            special = spread(px, bad)
            hi, lo, after = over_sum(px, total, total_lo, rate)
            if not any_of(good):
                fill_row(to, n, bad, way)
            elif spread_ == 0.0:
                f, f_lo, f_after = over_sum(px, total, total_lo, (all_q + extra) * rate)
                f, f_lo = two_parts(px, f, f_lo)
                args = to, f, f_lo, spread(px, f_after), good, special
                each_block(WRITTEN, n, way, plain_gradient_part, args)
            else:
                each_block(
                    WRITTEN, n, way, smoothed_gradient_part,
                    (to, pw, w.size, spread_, top, rest, total, all_q, extra, hi, lo, after, good, special),
                )  # fmt: skip
            e = exp_one(px, xy, constants, frame, way)
            others = select(e == top, rest, total - e)
            at_target = times(px, (spread_ * (weights - wy) + extra) * e - q * others, hi, lo) * after
            scatter(to, label, select(good, at_target, bad), way)
            close_row(pdx, r, last - r, c, tile, way)


@in_blocks
@kernel
def cross_entropy_index(
    x, y, w, v, v_all, loss, lse, top, c, first, last, scale, empty, keep, spread_, zloss, ignore, way
):  # fmt: skip
    """Loss against class indices."""
    index_rows(
        x, y, w, v, v_all, v, v_all, loss, x, lse, top, c, first, last, scale, empty, keep, spread_, zloss, ignore,
        way, False,
    )  # fmt: skip


@in_blocks
@kernel
def cross_entropy_index_grad(
    x, y, w, v, v_all, g, g_all, loss, dx, lse, top, c, first, last, scale, empty, keep, spread_, zloss, ignore, way
):
    """Loss against class indices, and its gradient times g."""
    index_rows(
        x, y, w, v, v_all, g, g_all, loss, dx, lse, top, c, first, last, scale, empty, keep, spread_, zloss, ignore,
        way, True,
    )  # fmt: skip


@helper
def target_values(t, at, left, smoothing, way):
    """Return ``q = w (keep t + spread)`` for a vector of classes; 0 beyond the last."""
    w, weight_count, keep, spread_, plain = smoothing
    q = widen(load(t, at, left, 0.0))
    if not plain:
        q = fma(q, keep, spread_) * widen(class_weight(w, weight_count, at, left, way))
        q = select(existing(t, left), q, nothing(t))
    return q


@helper
def targets_part(start, stop, way, p, t, smoothing, m):
    """Return ``sum q`` and half of ``sum q (m - x)``, each in two parts, and 1 if a target is not 0."""
    q_sum, q_lo, far, far_lo = nothing(p), nothing(p), nothing(p), nothing(p)
    at_m = spread(p, m)
    half = widen(at_m) * 0.5
    any_target = at_m != at_m
    for k in range(start, stop, lanes(p)):
        q = target_values(t, k, stop - k, smoothing, way)
        q_sum, q_lo = accumulate(p, q_sum, q_lo, q)
        d = fma(widen(load(p, k, stop - k, at_m)), -0.5, half)
        far, far_lo = accumulate_product(p, far, far_lo, q, select(q == 0.0, nothing(p), d))
        any_target = any_target | (q != 0.0)
    q_sum, q_lo = fold_sum(p, q_sum, q_lo, way)
    far, far_lo = fold_sum(p, far, far_lo, way)
    return q_sum, q_lo, far, far_lo, select(fold_any(p, any_target, way), 1.0, 0.0)


@helper
def probs_gradient_part(start, stop, way, p, t, to, smoothing, kept, reduction, sums, rate, ok, special):
    """Write the gradient, from the terms if these are kept."""
    constants, frame = reduction
    top, rest, total, total_lo, all_q = sums
    if is_single(p):
        inverse, inverse_lo = quotient(1.0 / unscale(p), 0.0, total, total_lo)
        f, f_lo = two_parts(p, inverse, inverse_lo)
        factor, restore = raised(p, rate)
        times_rate, after = spread(p, factor), spread(p, restore)
        every, not_most = spread(p, all_q), spread(p, rest / total)
        for k in range(start, stop, lanes(p)):
            e = load(to, k, stop - k, 0.0) if kept else exp_terms(load(p, k, stop - k, 0.0), constants, frame)
            q = spread(p, target_values(t, k, stop - k, smoothing, way))
            e = fma(e, f, e * f_lo) * unscale(p)
            others = select(e > 0.5, not_most, 1.0 - e)
            z = ((every - q) * e - q * others) * times_rate * after
            store(to, k, stop - k, only(ok, z, special, way))
    else:
        hi, lo, after = over_sum(p, total, total_lo, rate)
        for k in range(start, stop, lanes(p)):
            e = load(to, k, stop - k, 0.0) if kept else exp_terms(load(p, k, stop - k, 0.0), constants, frame)
            e = widen(e)
            q = target_values(t, k, stop - k, smoothing, way)
            others = select(e == top, nothing(p) + rest, total - e)
            z = times(p, (all_q - q) * e - q * others, hi, lo)
            store(to, k, stop - k, only(ok, spread(p, z * after), special, way))


@helper
def probs_rows(
    x,
    t,
    w,
    v,
    v_all,
    g,
    g_all,
    loss,
    dx,
    to_lse,
    to_top,
    to_aim,
    c,
    first,
    last,
    scale,
    empty,
    keep,
    spread_,
    zloss,
    ways,
    gradient,
):
    """Compute the losses against probabilities and, if asked, their gradients and extras."""
    px, pt, pw, pv, pg = pointer_to(x), pointer_to(t), pointer_to(w), pointer_to(v), pointer_to(g)
    ploss, pdx = pointer_to(loss), pointer_to(dx)
    tile, other = scratch(px), scratch(px)
    step = rows_at_once(px, ways)
    n = c * step
    constants = exp_constants(px, scale)
    plain = keep == 1.0 and spread_ == 0.0 and w.size == 1 and widened(pw, 0) == 1.0
    smoothing = pw, w.size, keep, spread_, plain
    # Where the gradient takes the place of the targets, the terms have none: they are computed twice.
    kept = gradient and not same(pdx, pt)
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(px, r, last - r, c, tile, way)
        b = open_row(pt, r, last - r, c, other, way)
        to = out_row(pdx, r, c, tile, way)
        m, ok = checked_max(a, n, way)
        m0 = select(ok, m, 0.0)
        frame = row_frame(px, m0, scale)
        row = per_row(pv, v.size > 0, v_all, r, last - r, way)
        aims = a, b, smoothing, m0
        q_sum, q_lo, far, far_lo, aimed = over_row(SECOND, n, way, added, targets_part, aims)
        q_sum = collapse(q_sum, q_lo)
        place = m0
        if to_top is not None:
            if to_top.size > 0:
                place = found(FOUND, n, way, a, m)
            put_aim(px, b, n, to_aim, r, last - r, way)
        terms = KEPT if kept else AS_KEPT if gradient else 0
        total, total_lo, rest, top, log, log_lo = log_of_sum(px, a, n, constants, frame, m0, to, terms, way)
        lse, lse_lo = add_product(log, log_lo, m0, scale)
        if to_lse is not None:
            put_extras(px, a, n, m, ok, lse, lse_lo, place, to_lse, to_top, r, last - r, way)
        # sum_c q_c (scale (m - x_c) + log)
        hi, lo = two_product(far, 2.0 * scale)
        lo = fma(far_lo, 2.0 * scale, lo)
        even, even_lo = two_product(q_sum, log)
        hi, error = two_sum(hi, even)
        lo = lo + (error + fma(q_sum, log_lo, even_lo))
        put_row(ploss, r, last - r, loss_of(row, hi, lo, lse, lse_lo, zloss, m, ok, aimed, empty), way)
        if gradient:
            rate = row * per_row(pg, g.size > 0, g_all, r, last - r, way) * scale
            bad = without_maximum(m, 0.0 if empty else math.nan)
            if any_of(ok):
                all_q = q_sum + 2.0 * zloss * lse if zloss != 0.0 else q_sum
                sums = top, rest, total, total_lo, all_q
                args = a, b, to, smoothing, kept, (constants, frame), sums, rate, ok, spread(px, bad)
                each_block(WRITTEN, n, way, probs_gradient_part, args)
            else:
                fill_row(to, n, bad, way)
            close_row(pdx, r, last - r, c, tile, way)


@in_blocks
@kernel
def cross_entropy_probs(
    x, t, w, v, v_all, loss, lse, top, aim, c, first, last, scale, empty, keep, spread_, zloss, way
):  # fmt: skip
    """Loss against probabilities."""
    probs_rows(
        x, t, w, v, v_all, v, v_all, loss, x, lse, top, aim, c, first, last, scale, empty, keep, spread_, zloss, way,
        False,
    )  # fmt: skip


@in_blocks
@kernel
def cross_entropy_probs_grad(
    x, t, w, v, v_all, g, g_all, loss, dx, lse, top, aim, c, first, last, scale, empty, keep, spread_, zloss, way
):
    """Loss against probabilities, and its gradient times g."""
    probs_rows(
        x, t, w, v, v_all, g, g_all, loss, dx, lse, top, aim, c, first, last, scale, empty, keep, spread_, zloss, way,
        True,
    )  # fmt: skip


# --- reductions of per-row results --------------------------------------------------------------------------------


@helper
def total_part(start, stop, way, p):
    """Return a sum in two parts."""
    hi, lo = nothing(p), nothing(p)
    for k in range(start, stop, lanes(p)):
        hi, lo = accumulate(p, hi, lo, widen(load(p, k, stop - k, 0.0)))
    hi, lo = fold_sum(p, hi, lo, way)
    return hi, lo, 0.0, 0.0, 0.0


@in_blocks
@kernel
def total(x, s, c, first, last, ways):
    """``s = sum_c x_c``."""
    px, ps = pointer_to(x), pointer_to(s)
    tile = scratch(px)
    step = rows_at_once(px, ways)
    n = c * step
    for r in rows_of(first, last, step, ways):
        way = row_way(ways, r)
        a = open_row(px, r, last - r, c, tile, way)
        hi, lo, _, _, _ = over_row(TERMS, n, way, added, total_part, (a,))
        put_row(ps, r, last - r, collapse(hi, lo), way)


# --- the same on several threads ----------------------------------------------------------------------------------
#
# One function each: Numba caches neither closures nor functions that take a function.  They call the kernels above
# on ranges of rows, so that a row's way does not depend on the number of threads.

in_parallel = _cached(parallel=True)


@in_parallel
def softmax_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        softmax(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def log_softmax_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        log_softmax(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def logsumexp_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        logsumexp(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def logsumexp_weighted_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        logsumexp_weighted(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def softmax_jvp_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        softmax_jvp(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def log_softmax_jvp_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        log_softmax_jvp(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def log_softmax_vjp_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        log_softmax_vjp(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def logsumexp_jvp_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        logsumexp_jvp(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def logsumexp_vjp_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        logsumexp_vjp(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def softmax_jacobian_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        softmax_jacobian(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def log_softmax_jacobian_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        log_softmax_jacobian(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def cross_entropy_index_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_index(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def cross_entropy_index_grad_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_index_grad(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def cross_entropy_probs_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_probs(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def cross_entropy_probs_grad_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        cross_entropy_probs_grad(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)


@in_parallel
def total_parallel(operands, c, rows, chunk, params, way):
    """Compute chunks of rows on several threads."""
    for k in prange(-(-rows // chunk)):
        total(*operands, c, k * chunk, min((k + 1) * chunk, rows), *params, way)
