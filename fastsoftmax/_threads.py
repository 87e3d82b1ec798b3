"""How many threads a call may use."""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_override: ContextVar[int | None] = ContextVar("fastsoftmax_threads", default=None)
_default: int | None = None


def _cgroup_quota() -> float | None:
    """Return the CPU quota of the process's control group in CPUs, or None if there is none (or no Linux)."""
    try:  # version 2
        with open("/sys/fs/cgroup/cpu.max") as f:
            quota, period = f.read().split()[:2]
    except (OSError, ValueError):
        try:  # version 1
            with open("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") as f:
                quota = f.read().strip()
            with open("/sys/fs/cgroup/cpu/cpu.cfs_period_us") as f:
                period = f.read().strip()
        except OSError:
            return None
    if quota in ("max", "-1"):
        return None
    try:
        return int(quota) / int(period)
    except (ValueError, ZeroDivisionError):
        return None


def detect() -> int:
    """Return the default number of threads.

    ``FASTSOFTMAX_NUM_THREADS``, else ``OMP_NUM_THREADS`` (its first level), else the CPUs that the affinity mask
    allows, never more than the control group's quota, rounded up.
    """
    for variable in ("FASTSOFTMAX_NUM_THREADS", "OMP_NUM_THREADS"):
        text = os.environ.get(variable, "").split(",")[0].strip()
        if not text:
            continue
        if text.isdecimal() and int(text) > 0:
            return int(text)
        if variable == "FASTSOFTMAX_NUM_THREADS":
            raise ValueError(f"{variable} is {text!r}; expected a positive integer")
    try:
        cpus = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        cpus = os.cpu_count() or 1
    quota = _cgroup_quota()
    return cpus if quota is None else max(1, min(cpus, math.ceil(quota)))


def _checked(n: Any) -> int:
    try:
        count = operator.index(n)
    except TypeError:
        raise TypeError(f"n is {n!r}; expected a positive integer") from None
    if count < 1:
        raise ValueError(f"n is {count}; expected a positive integer")
    return count


def get_num_threads() -> int:
    """Return the largest number of threads that a call made here and now uses.

    Small arrays use fewer: starting threads would take longer than the work.

    Returns
    -------
    int
        The number set by :func:`num_threads` or :func:`set_num_threads`, else the default.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> fs.get_num_threads() >= 1
    True
    """
    global _default
    n = _override.get()
    if n is not None:
        return n
    if _default is None:
        _default = detect()
    return _default


def set_num_threads(n: int) -> None:
    """Set the number of threads for the whole process.

    Parameters
    ----------
    n : int
        The largest number of threads that a call may use.

    Raises
    ------
    TypeError, ValueError
        If ``n`` is not a positive integer.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> before = fs.get_num_threads()
    >>> fs.set_num_threads(1)
    >>> fs.get_num_threads()
    1
    >>> fs.set_num_threads(before)
    """
    global _default
    _default = _checked(n)


@contextmanager
def num_threads(n: int) -> Iterator[None]:
    """Limit the number of threads inside a ``with`` block, for the current thread or asynchronous task.

    Parameters
    ----------
    n : int
        The largest number of threads that a call may use.

    Raises
    ------
    TypeError, ValueError
        If ``n`` is not a positive integer.

    Examples
    --------
    >>> import fastsoftmax as fs
    >>> with fs.num_threads(1):
    ...     fs.get_num_threads()
    1
    """
    token = _override.set(_checked(n))
    try:
        yield
    finally:
        _override.reset(token)
