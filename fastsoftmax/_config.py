"""What runs here: version, backend, instruction set, threads."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np

from . import _backends, _threads
from ._version import __version__


def config() -> dict[str, Any]:
    """Return the facts that :func:`show_config` prints."""
    backend = _backends.current()
    facts: dict[str, Any] = {
        "version": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "backend": backend.name,
        "threads": _threads.get_num_threads(),
    }
    for name, reason in _backends.available_backends().items():
        facts[f"backend {name}"] = "usable" if reason is None else f"not usable: {reason}"
        facts |= {} if reason is not None else getattr(_backends.find(name), "facts", dict)()
    return facts


def show_config() -> None:
    """Print version, backend, instruction set, threads, threading layer and build flags.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.show_config()  # doctest: +ELLIPSIS
    version: ...
    """
    for key, value in config().items():
        print(f"{key}: {value}")
