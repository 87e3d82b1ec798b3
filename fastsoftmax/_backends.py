"""The seam: the only file that knows which backends exist.

A backend is a module of this package with the same seven doors:

``name``
    What ``use_backend`` and ``FASTSOFTMAX_BACKEND`` call it.
``strided``
    Whether its kernels take operands with any strides; if not, the plan hands them contiguous rows only.
``reads``
    For each computing dtype, the names of the other dtypes in which its kernels read and write ROW and ONE operands as
    they are, each operand in its own; the plan converts the rest.  Each result is rounded once.
``masks``
    Whether its kernels take the options of logits as keywords; if not, the plan does what they ask for.  The first
    input z is multiplied by ``factor``; with ``softcap`` (in float64 only) it becomes ``softcap * tanh(z / softcap)``;
    classes where ``where``, a bool per element, is False are excluded (-inf); with ``poison`` a row whose included
    logits are all -inf is NaN.  The input of number ``cleared`` (if not -1) is made 0 where a class is excluded.  With
    ``where`` the parameter ``spread`` is what the included classes of a row share, not what each class gets.  Outputs
    whose numbers are in the dict ``chain`` are multiplied by its value (with a softcap by the slope of what has become
    of z), where they are not 0, and cleared where a class is excluded.
``why_not()``
    None if it can run here, else a sentence that says why not and how to get it.
``quick(op, ins, outs, params)``
    The straight case without the plan, for calls so small that Python's share would be most of it: the list of outputs,
    or None if the operands are not of the simplest kind.  A backend without such a way returns None.
``kernel(op, dtype)``
    The function that computes one row of the table: ``kernel(ins, outs, params, threads)``, with operands of
    shape ``(n1, n2, c)``, ``(n1, n2)`` or ``(c,)``, or floats.  ``outs`` may go on with some or all of the extras.

Deleting a backend's module and its name in ``BACKENDS`` deletes the backend.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol, cast

import numpy as np

Kernel = Callable[..., None]

# In the order of preference of "auto".
BACKENDS = ("cython", "numba", "numpy")

# The instruction sets of the compiled backend, weakest first.
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")


class Backend(Protocol):
    """The doors of a backend module."""

    name: str
    strided: bool
    reads: Mapping[np.dtype[Any], frozenset[str]]
    masks: bool

    def why_not(self) -> str | None:
        """Return None if the backend can run, else the reason."""

    def quick(
        self, op: str, ins: tuple[Any, ...], outs: tuple[Any, ...], params: tuple[float, ...], axis: int = -1
    ) -> list[Any] | None:
        """Compute the straight case, or return None."""

    def kernel(self, op: str, dtype: np.dtype[Any]) -> Kernel:
        """Return the kernel of one operation and dtype."""


class BackendUnavailableError(ImportError):
    """A backend that was asked for by name cannot run here."""


def _known(name: str, source: str, known: Sequence[str]) -> str:
    if name not in known:
        raise ValueError(f"{source} is {name!r}; expected one of {', '.join(map(repr, known))}")
    return name


def _asked_for(variable: str, known: Sequence[str], default: str) -> str:
    """Return what an environment variable asks for.

    The command line cannot report an error in it: the package is imported before any of its code runs.
    """
    try:
        return _known(os.environ.get(variable) or default, variable, known)
    except ValueError as error:
        if os.path.basename(sys.argv[0]) == "fastsoftmax" or (sys.argv[0] == "-m" and "fastsoftmax" in sys.orig_argv):
            print(f"fastsoftmax: error: {error}", file=sys.stderr)
            sys.exit(2)
        raise


# Read once, when the package is imported: a misspelt name must not wait for the first call.
_requested = _asked_for("FASTSOFTMAX_BACKEND", ("auto", *BACKENDS), "auto")
isa_cap = _asked_for("FASTSOFTMAX_ISA", INSTRUCTION_SETS, INSTRUCTION_SETS[-1])

_modules: dict[str, Backend] = {}
_override: ContextVar[Backend | None] = ContextVar("fastsoftmax_backend", default=None)
_default: Backend | None = None


def _module(name: str) -> Backend:
    """Import a backend's module; the modules import what they need only when asked whether they can run."""
    if name not in _modules:
        _modules[name] = cast(Backend, importlib.import_module(f".{'_' + name}", __package__))
    return _modules[name]


def find(name: str) -> Backend:
    """Return the backend of that name, or the first usable one for "auto".

    Raises
    ------
    ValueError
        If the name is unknown.
    BackendUnavailableError
        If the backend cannot run here.
    """
    _known(name, "backend", ("auto", *BACKENDS))
    reasons = {}
    for candidate in BACKENDS if name == "auto" else (name,):
        backend = _module(candidate)
        reason = backend.why_not()
        if reason is None:
            return backend
        reasons[candidate] = reason
    raise BackendUnavailableError("; ".join(f"backend {n!r} cannot run: {r}" for n, r in reasons.items()))


def current() -> Backend:
    """Return the backend that a call made here and now uses."""
    global _default
    backend = _override.get()
    if backend is not None:
        return backend
    if _default is None:
        _default = find(_requested)
    return _default


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Compute with one backend inside a ``with`` block.

    The choice holds for the current thread or asynchronous task only, so that blocks in several of them do not
    disturb each other.

    Parameters
    ----------
    name : {"cython", "numba", "numpy", "auto"}
        The backend.  "auto" takes the first usable one in that order.

    Raises
    ------
    ValueError
        If the name is unknown.
    BackendUnavailableError
        If the backend was asked for by name and cannot run; the message says why.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> with fs.use_backend("numpy"):
    ...     fs.softmax([0.0, 0.0])
    array([0.5, 0.5])
    """
    token = _override.set(find(name))
    try:
        yield
    finally:
        _override.reset(token)


def available_backends() -> dict[str, str | None]:
    """Tell for every backend whether it can run.

    Returns
    -------
    dict
        The backends' names, in the order in which "auto" tries them; the value is None for a usable backend,
        otherwise the reason why it cannot run.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.available_backends()["numpy"] is None
    True
    """
    return {name: _module(name).why_not() for name in BACKENDS}
