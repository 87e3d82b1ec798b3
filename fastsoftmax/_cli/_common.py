"""What the subcommands share: errors, optional packages, a progress bar, JSON."""

from __future__ import annotations

import importlib
import json
import math
import sys
from typing import Any


class CliError(Exception):
    """An error of the user's: one line on stderr, exit status 2."""


class JobError(Exception):
    """The job was clear but cannot be done: one line on stderr, exit status 1."""


def need(module: str, purpose: str) -> Any:
    """Import a module of an optional package, or say what it is for and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise CliError(
            f"{purpose} needs {module.split('.')[0]}, which cannot be imported ({error}); "
            'install it with: pip install "fastsoftmax[demo]"'
        ) from None


class _NoBar:
    """The progress bar of a run that nobody watches."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def update(self, n: float = 1) -> None:
        """Count nothing."""

    def set_description(self, text: str) -> None:
        """Show nothing."""


def progress(total: float, unit: str) -> Any:
    """Return a progress bar for a ``with`` statement: tqdm's on a terminal, none elsewhere."""
    if not sys.stderr.isatty():
        return _NoBar()
    try:
        tqdm = importlib.import_module("tqdm")
    except ImportError:
        print('fastsoftmax: no progress bar without tqdm: pip install "fastsoftmax[demo]"', file=sys.stderr)
        return _NoBar()
    return tqdm.tqdm(total=total, unit=unit, unit_scale=True, leave=False, file=sys.stderr, dynamic_ncols=True)


def print_json(data: Any) -> None:
    """Print strict JSON; it has no nan and inf, so they become the strings "NaN", "Infinity" and "-Infinity"."""
    print(json.dumps(_plain(data), indent=2, allow_nan=False))


def _plain(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, (list, tuple)):
        return [_plain(value) for value in data]
    if isinstance(data, float) and not math.isfinite(data):
        return "NaN" if math.isnan(data) else "Infinity" if data > 0 else "-Infinity"
    return data if isinstance(data, (bool, int, float, str, type(None))) else str(data)


def duration(seconds: float) -> str:
    """Return a time with a unit that suits it: ``1.23 ms``."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 1:
            return f"{seconds * factor:.3g} {unit}"
    return f"{seconds * 1e6:.3g} us"
