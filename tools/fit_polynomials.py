"""Derive the polynomial coefficients and constants of the exp and log kernels.

The vectorised kernels evaluate four short polynomials and reduce their arguments with
a few split constants.  This script computes all of them from scratch, offline and
deterministically, so that no number in the kernels has to be taken on trust:

``exp_f32``, ``exp_f32_top``, ``exp_f64``
    ``exp(r) = 1 + (r + r**2 * q(r))`` for ``|r| <= ln(2)/2 * (1 + 2**-10)``.  The
    coefficients of 1 and ``r`` are exactly one; only ``q`` is fitted.  The margin on the
    interval covers the rounding of the argument reduction.  ``exp_f32_top`` is evaluated in
    float64, for the largest term of a row of float32: its error would be the whole row's.
``exp_f32_by_16``, ``exp_f32_by_8``, ``exp_f64_by_16``
    The same for ``|r| <= ln(2)/32`` (16), where ``2**(j/16)`` is looked up.
``log_f64``
    ``log((1+s)/(1-s)) = 2*s + s*z*P(z)`` with ``z = s**2`` and ``s = f/(2+f)`` for
    ``1+f`` in ``[sqrt(1/2), sqrt(2)]``, hence ``|s| <= 3 - 2*sqrt(2)``.
``log1p_f64``
    The same for ``1+f`` in ``[1, 2]``, hence ``s <= 1/3``.
``log1p_f32``
    ``log(1+f) = f - f**2/2 + f**3 * P(f)`` for ``1+f`` in ``[sqrt(1/2), 3/2]``: without a division, for vectors of
    floats.

Each fit minimises the maximum *relative* error with the Remez exchange algorithm.  Simply
rounding the coefficients of the minimax polynomial to the working precision would spoil
it, so they are rounded one at a time, lowest power (largest contribution) first, and the
remaining coefficients are fitted again after each rounding to absorb its error.

Run without arguments to print every number as a C hex-float literal and as the text of
`float.hex`; the errors shown are those of the polynomials in exact arithmetic, without
the rounding errors of their evaluation.  Run with ``--check`` to verify that the library
sources contain exactly these numbers.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import mpmath as mp  # type: ignore[import-untyped]

Real: TypeAlias = Any  # An mpmath.mpf; mpmath ships no type information.
RealFunction: TypeAlias = Callable[[Real], Real]

DECIMAL_DIGITS = 40  # Working precision, over twice that of a float64.
FIT_POINTS = 1024  # Even, so that the symmetric interval is not sampled at its centre.
MEASURE_POINTS = 8192
MAX_EXCHANGES = 60
LEVEL_TOLERANCE = 1e-9

F32_BITS = 24
F64_BITS = 53

REPOSITORY = Path(__file__).resolve().parent.parent
C_HEADER = "csrc/constants.h"
NUMBA_MODULES = "fastsoftmax/_numba_*.py"


@dataclass(frozen=True)
class Constant:
    """A named number, exactly representable in its format.

    Attributes
    ----------
    name : str
        Suggested name in the sources.
    value : float
        The number itself.
    bits : int
        Significand width of the format, 24 (float32) or 53 (float64).
    """

    name: str
    value: float
    bits: int

    @property
    def c_literal(self) -> str:
        """The number as a C hexadecimal floating literal."""
        significand, exponent = self.value.hex().split("p")
        significand = significand.rstrip("0").rstrip(".") if "." in significand else significand
        return f"{significand}p{exponent}{'f' if self.bits == F32_BITS else ''}"


@dataclass(frozen=True)
class Problem:
    """A fit of ``fixed(x) + x**shift * poly(x)`` to ``function(x)`` in relative error.

    Attributes
    ----------
    name : str
        Name of the fit.
    coefficient_prefix : str
        Stem of the coefficient names, which a number follows.
    first_index : int
        Number following the stem in the name of the lowest coefficient.
    lower, upper : mpf
        Ends of the interval.
    function, fixed : callable
        The function to approximate and the part of the approximation that is given.
    shift : int
        Power of ``x`` that multiplies the fitted polynomial.
    count : int
        Number of coefficients to fit.
    bits : int
        Significand width of the format of the coefficients.
    required : bool
        Whether the library uses the fit, or it is shown for comparison only.
    """

    name: str
    coefficient_prefix: str
    first_index: int
    lower: Real
    upper: Real
    function: RealFunction
    fixed: RealFunction
    shift: int
    count: int
    bits: int
    required: bool


@dataclass(frozen=True)
class Fit:
    """The outcome of a `Problem`.

    Attributes
    ----------
    problem : Problem
        What was fitted.
    coefficients : list of Constant
        Rounded coefficients, lowest power first.
    minimax_error, rounded_error : mpf
        Maximum relative error before and after rounding the coefficients.
    """

    problem: Problem
    coefficients: list[Constant]
    minimax_error: Real
    rounded_error: Real


def round_to_bits(value: Real, bits: int) -> Real:
    """Round to nearest with the given number of significant bits."""
    with mp.workprec(bits):
        return +value


def polynomial(coefficients: Sequence[Real], x: Real) -> Real:
    """Evaluate a polynomial, lowest power first, by Horner's rule."""
    result = mp.mpf(0)
    for coefficient in reversed(coefficients):
        result = result * x + coefficient
    return result


def sample_points(lower: Real, upper: Real, count: int) -> list[Real]:
    """Ascending Chebyshev points of the interval, both ends included, zero left out."""
    centre, radius = (lower + upper) / 2, (upper - lower) / 2
    points = [centre - radius * mp.cos(mp.pi * j / (count - 1)) for j in range(count)]
    points[0], points[-1] = lower, upper
    return [x for x in points if x != 0]


def alternating_extrema(errors: Sequence[Real], count: int) -> list[int]:
    """Select `count` large extrema of alternating sign, the largest among them.

    Parameters
    ----------
    errors : sequence of mpf
        Error at each sample point.
    count : int
        Number of extrema wanted.

    Returns
    -------
    list of int
        Ascending indices into `errors`.
    """
    extrema: list[int] = []
    for i, error in enumerate(errors):
        if error == 0:
            continue
        if not extrema or (error > 0) != (errors[extrema[-1]] > 0):
            extrema.append(i)
        elif abs(error) > abs(errors[extrema[-1]]):
            extrema[-1] = i
    while len(extrema) > count:
        sizes = [abs(errors[i]) for i in extrema]
        smallest = sizes.index(min(sizes))
        if smallest in (0, len(sizes) - 1):
            del extrema[smallest]
        elif len(extrema) == count + 1:
            del extrema[0 if sizes[0] < sizes[-1] else -1]
        else:  # Drop an inner extremum with its smaller neighbour, so that signs alternate.
            first = smallest - 1 if sizes[smallest - 1] < sizes[smallest + 1] else smallest
            del extrema[first : first + 2]
    if len(extrema) < count:
        raise ArithmeticError(f"only {len(extrema)} alternating extrema, {count} needed")
    return extrema


def remez(
    points: Sequence[Real], targets: Sequence[Real], weights: Sequence[Real], count: int
) -> tuple[list[Real], Real]:
    """Minimise the maximum of ``abs(weight * poly(point) - target)`` over the points.

    Parameters
    ----------
    points, targets, weights : sequence of mpf
        Sample points, the values to approximate there, and the nonzero factors of the
        polynomial.  The weights may change sign.
    count : int
        Number of coefficients of the polynomial.

    Returns
    -------
    coefficients : list of mpf
        Best coefficients, lowest power first.
    error : mpf
        Maximum absolute error over the points.
    """
    # The best error alternates relative to the sign of the weight: flip the points where
    # the weight is negative, so that it plainly alternates.
    targets = [t if w > 0 else -t for t, w in zip(targets, weights, strict=True)]
    weights = [abs(w) for w in weights]

    last = len(points) - 1
    reference = [round(last * (1 - float(mp.cos(mp.pi * j / count))) / 2) for j in range(count + 1)]
    for _ in range(MAX_EXCHANGES):
        matrix = mp.matrix(count + 1, count + 1)
        right = mp.matrix(count + 1, 1)
        for row, i in enumerate(reference):
            for power in range(count):
                matrix[row, power] = weights[i] * points[i] ** power
            matrix[row, count] = (-1) ** row
            right[row] = targets[i]
        solution = mp.lu_solve(matrix, right)
        coefficients, level = [solution[k] for k in range(count)], abs(solution[count])

        errors = [w * polynomial(coefficients, x) - t for x, t, w in zip(points, targets, weights, strict=True)]
        largest = max(abs(error) for error in errors)
        if largest <= level * (1 + LEVEL_TOLERANCE):
            return coefficients, largest
        reference = alternating_extrema(errors, count + 1)
    raise ArithmeticError(f"no convergence in {MAX_EXCHANGES} exchanges")


def measure_error(problem: Problem, coefficients: Sequence[Real]) -> Real:
    """Maximum relative error of the approximation on a dense grid."""
    largest = mp.mpf(0)
    for x in sample_points(problem.lower, problem.upper, MEASURE_POINTS):
        exact = problem.function(x)
        approximation = problem.fixed(x) + x**problem.shift * polynomial(coefficients, x)
        largest = max(largest, abs(approximation / exact - 1))
    return largest


def solve(problem: Problem) -> Fit:
    """Fit the polynomial and round its coefficients one by one, refitting the rest."""
    points = sample_points(problem.lower, problem.upper, FIT_POINTS)
    exact = [problem.function(x) for x in points]
    weights = [x**problem.shift / y for x, y in zip(points, exact, strict=True)]
    targets = [1 - problem.fixed(x) / y for x, y in zip(points, exact, strict=True)]

    minimax: list[Real] = []
    rounded: list[Real] = []
    for remaining in range(problem.count, 0, -1):
        coefficients, _ = remez(points, targets, weights, remaining)
        minimax = minimax or coefficients
        value = round_to_bits(coefficients[0], problem.bits)
        rounded.append(value)
        # Move the rounded term over to the target and divide the rest by one power of x.
        targets = [t - w * value for t, w in zip(targets, weights, strict=True)]
        weights = [w * x for w, x in zip(weights, points, strict=True)]

    return Fit(
        problem=problem,
        coefficients=[
            Constant(f"{problem.coefficient_prefix}{problem.first_index + k}", float(c), problem.bits)
            for k, c in enumerate(rounded)
        ],
        minimax_error=measure_error(problem, minimax),
        rounded_error=measure_error(problem, rounded),
    )


def exp_problem(bits: int, count: int, required: bool, name: str | None = None, steps: int = 1) -> Problem:
    """Fit of ``exp(r) = 1 + r + r**2 * q(r)`` with `count` coefficients in ``q``, for powers of ``2**(1/steps)``."""
    radius = mp.ln2 / (2 * steps) * (1 + mp.mpf(2) ** -10)
    name = name or f"exp_f{32 if bits == F32_BITS else 64}" + (f"_by_{steps}" if steps > 1 else "")
    return Problem(
        name=f"{name}: 1 + (r + r^2 q(r)), q of degree {count - 1}",
        coefficient_prefix=f"{name.upper()}_C" if required else f"{name.upper()}_ALT_C",
        first_index=2,
        lower=-radius,
        upper=radius,
        function=mp.exp,
        fixed=lambda r: 1 + r,
        shift=2,
        count=count,
        bits=bits,
        required=required,
    )


def log_problem(bits: int, count: int, required: bool) -> Problem:
    """Fit of ``log((1+s)/(1-s)) / s = 2 + z * P(z)``, as a function of ``z = s**2``."""

    def function(z: Real) -> Real:
        s = mp.sqrt(z)
        return 2 * mp.atanh(s) / s

    name = f"log_f{32 if bits == F32_BITS else 64}"
    return Problem(
        name=f"{name}: 2 s + s z P(z), z = s^2, P of degree {count - 1}",
        coefficient_prefix=f"{name.upper()}_P" if required else f"{name.upper()}_ALT_P",
        first_index=0,
        lower=mp.mpf(0),
        upper=(3 - 2 * mp.sqrt(2)) ** 2,
        function=function,
        fixed=lambda z: mp.mpf(2),
        shift=1,
        count=count,
        bits=bits,
        required=required,
    )


def log1p_quotient_problem(count: int) -> Problem:
    """Fit of the same as `log_problem` for mantissas in [1, 2], in float64."""
    base = log_problem(F64_BITS, count, required=True)
    return replace(
        base,
        name=f"log1p_f64: 2 s + s z P(z), z = s^2 up to 1/9, P of degree {count - 1}",
        coefficient_prefix="LOG1P_F64_P",
        upper=mp.mpf(1) / 9,
    )


def log1p_problem(count: int, required: bool) -> Problem:
    """Fit of ``log(1+f) / f = 1 - f/2 + f**2 * P(f)``, in float32."""
    return Problem(
        name=f"log1p_f32: f - f^2/2 + f^3 P(f), P of degree {count - 1}",
        coefficient_prefix="LOG1P_F32_P" if required else "LOG1P_F32_ALT_P",
        first_index=0,
        lower=mp.sqrt(0.5) - 1,
        upper=mp.mpf("0.5"),
        function=lambda f: mp.log(1 + f) / f,
        fixed=lambda f: 1 - f / 2,
        shift=2,
        count=count,
        bits=F32_BITS,
        required=required,
    )


def all_problems() -> list[Problem]:
    """Every fit, those the library uses and those shown for comparison."""
    return [
        exp_problem(F32_BITS, 5, required=True),
        exp_problem(F32_BITS, 6, required=False),
        exp_problem(F32_BITS, 2, required=True, steps=16),
        exp_problem(F32_BITS, 3, required=True, steps=8),
        exp_problem(F64_BITS, 6, required=True, name="exp_f32_top"),
        exp_problem(F64_BITS, 10, required=True),
        exp_problem(F64_BITS, 11, required=False),
        exp_problem(F64_BITS, 6, required=True, steps=16),
        log_problem(F64_BITS, 7, required=True),
        log_problem(F64_BITS, 6, required=False),
        log1p_quotient_problem(9),
        log1p_problem(9, required=True),
        log1p_problem(8, required=False),
    ]


def reduction_constants() -> list[Constant]:
    """``log2(e)`` and the splits of ``ln(2)`` used by the argument reductions.

    With a fused multiply-add the high part has full width.  Without one its low bits are
    zero, so that ``n * hi`` is exact for ``abs(n) < 2**9`` in float32 (15 bits kept) and
    for ``abs(n) < 2**12`` in float64 (41 bits kept).
    """
    log2e = 1 / mp.ln(2)
    ln2 = mp.ln(2)
    constants: list[Constant] = []
    for bits, bits_kept, suffix in ((F32_BITS, 15, "F32"), (F64_BITS, 41, "F64")):
        constants.append(Constant(f"LOG2E_{suffix}", float(round_to_bits(log2e, bits)), bits))
        for width, variant in ((bits, "FMA"), (bits_kept, "NOFMA")):
            high = round_to_bits(ln2, width)
            low = round_to_bits(ln2 - high, bits)
            constants.append(Constant(f"LN2_HI_{suffix}_{variant}", float(high), bits))
            constants.append(Constant(f"LN2_LO_{suffix}_{variant}", float(low), bits))
    return constants


def powers_of_two(bits: int, steps: int) -> list[Constant]:
    """``2**(j / steps)`` in two parts; and what is between the first and the last of them, in float64."""
    name = f"EXP2_F{32 if bits == F32_BITS else 64}_BY_{steps}"
    constants = [Constant(f"EXP2_MIDDLE_{steps}", float(mp.mpf(2) ** (mp.mpf(steps - 1) / (2 * steps))), F64_BITS)]
    for j in range(steps):
        power = mp.mpf(2) ** (mp.mpf(j) / steps)
        high = round_to_bits(power, bits)
        constants.append(Constant(f"{name}_HI_{j}", float(high), bits))
        constants.append(Constant(f"{name}_LO_{j}", float(round_to_bits(power - high, bits)), bits))
    return constants


def numbers_in_c(text: str) -> set[float]:
    """Values of the hex-float literals in C source text, comments aside."""
    code = re.sub(r"/\*.*?\*/|//[^\n]*", " ", text, flags=re.DOTALL)
    digits = r"(?:[0-9a-fA-F]+\.?[0-9a-fA-F]*|\.[0-9a-fA-F]+)"
    literals = re.findall(rf"(?<!\w)[-+]?0[xX]{digits}[pP][-+]?[0-9]+", code)
    return {float.fromhex(literal) for literal in literals}


def numbers_in_python(text: str) -> set[float]:
    """Values of the float literals and `float.hex` texts, alone or in lists, in Python source text."""
    values: set[float] = set()
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.Constant):
            continue
        if isinstance(node.value, float):
            values.update((node.value, -node.value))
        elif isinstance(node.value, str):
            for word in node.value.lower().split():
                if re.fullmatch(r"[-+]?0x[0-9a-f]+(\.[0-9a-f]*)?p[-+]?[0-9]+", word):
                    values.add(float.fromhex(word))
    return values


def needed_in_python(constant: Constant) -> bool:
    """Whether the Numba kernels use a constant.

    They have FMA, derive the float32 splits from those of float64, take the logarithms of floats in float64, and look
    nothing up.
    """
    return not (
        constant.name.endswith(("_NOFMA", "_F32", "_F32_FMA"))
        or constant.name.startswith(("EXP_F32_TOP", "LOG1P_", "EXP2_"))
        or "_BY_" in constant.name
    )


def check_sources(constants: Sequence[Constant]) -> int:
    """Compare the sources with the derived numbers.

    Parameters
    ----------
    constants : sequence of Constant
        The numbers that each source file must contain.

    Returns
    -------
    int
        Exit code: 1 if a number is missing from a file that exists, else 0.
    """
    exit_code = 0
    for path, numbers_in in ((C_HEADER, numbers_in_c), (NUMBA_MODULES, numbers_in_python)):
        sources = sorted(REPOSITORY.glob(path))
        if not sources:
            print(f"{path}: not found, skipped")
            continue
        present = set().union(*(numbers_in(source.read_text(encoding="utf-8")) for source in sources))
        needed = [c for c in constants if path == C_HEADER or needed_in_python(c)]
        missing = [constant for constant in needed if constant.value not in present]
        if missing:
            exit_code = 1
            print(f"{path}: {len(missing)} of {len(needed)} numbers missing:")
            for constant in missing:
                print(f"  {constant.name} = {constant.c_literal} ({constant.value.hex()})")
        else:
            print(f"{path}: all {len(needed)} numbers present")
    return exit_code


def print_constants(constants: Sequence[Constant]) -> None:
    """Print names, C literals and Python `float.hex` texts in columns."""
    for constant in constants:
        print(f"  {constant.name:<17} {constant.c_literal:>24}  {constant.value.hex():>24}")


def print_report(fits: Sequence[Fit], constants: Sequence[Constant]) -> None:
    """Print all fits with their errors, then the constants."""
    for fit in fits:
        note = "" if fit.problem.required else "  (for comparison only)"
        print(f"{fit.problem.name}{note}")
        print(
            f"  log2 max relative error: {float(mp.log(fit.rounded_error, 2)):.3f}"
            f" (unrounded minimax {float(mp.log(fit.minimax_error, 2)):.3f})"
        )
        print_constants(fit.coefficients)
        print()
    print("log2(e), ln(2) = hi + lo, and powers of two likewise")
    print_constants(constants)
    by_name = {constant.name: constant.value for constant in constants}
    for name, high in by_name.items():
        if name.startswith("LN2_HI"):
            residual = mp.ln(2) - mp.mpf(high) - mp.mpf(by_name[name.replace("HI", "LO")])
            split = name.removeprefix("LN2_HI_")
            print(f"  log2 |ln(2) - hi - lo| {split}: {float(mp.log(abs(residual), 2)):.2f}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--check",
        action="store_true",
        help=f"verify that {C_HEADER} and {NUMBA_MODULES}, where present, hold these numbers",
    )
    options = parser.parse_args(arguments)

    with mp.workdps(DECIMAL_DIGITS):
        problems = [p for p in all_problems() if p.required or not options.check]
        fits = [solve(problem) for problem in problems]
        constants = reduction_constants()
        for bits, steps in ((F32_BITS, 16), (F32_BITS, 8), (F64_BITS, 16)):
            constants += powers_of_two(bits, steps)
        if options.check:
            return check_sources([c for fit in fits for c in fit.coefficients] + constants)
        print_report(fits, constants)
    return 0


if __name__ == "__main__":
    sys.exit(main())
