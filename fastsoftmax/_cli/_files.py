"""Reading and writing .npy files that may be larger than memory."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from .. import _plan
from .._ops import Array
from ._common import CliError


def open_array(path: Path) -> Array:
    """Map a .npy file of real numbers into memory.

    Raises
    ------
    CliError
        If there is no such file, if it is not a whole .npy file, or holds something else than real numbers.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(6)
        if magic != b"\x93NUMPY":
            raise CliError(f"{path} is not a .npy file; expected an array written by numpy.save")
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise CliError(f"cannot read {path}: {error.strerror or error}") from None
    except (ValueError, EOFError) as error:
        raise CliError(f"cannot read {path}: it is truncated, damaged or holds Python objects ({error})") from None
    try:
        return _plan.as_real(str(path), np.asarray(array))
    except TypeError as error:
        raise CliError(error) from None


def blocks(shape: tuple[int, ...], size: int) -> Iterator[tuple[Any, ...]]:
    """Yield slices, one for each axis, that cut an array into blocks of at most ``size`` elements.

    A block holds the trailing axes as far as they fit, a part of the axis before them, and one step of the others.
    """
    cuts = []
    for n in reversed(shape):
        step = max(1, min(n, size))
        cuts.append([slice(start, min(start + step, n)) for start in range(0, n, step)])
        size //= max(1, n)
    return itertools.product(*reversed(cuts))


def check_targets(targets: dict[str, Path], inputs: list[Path]) -> None:
    """Raise if a file cannot be written where the options say, or would overwrite an input or another output."""
    seen: dict[Path, str] = {}
    for option, path in targets.items():
        if not path.parent.is_dir():
            raise CliError(f"{option} {path}: there is no directory {path.parent}")
        if path.is_dir():
            raise CliError(f"{option} {path} is a directory; expected the name of a file")
        if not os.access(path.parent, os.W_OK):
            raise CliError(f"{option} {path}: the directory {path.parent} is not writable")
        for source in inputs:
            if path.exists() and source.exists() and path.samefile(source):
                raise CliError(f"{option} {path} is an input; expected another file")
        other = seen.setdefault(path.resolve(), option)
        if other != option:
            raise CliError(f"{option} {path} is also the target of {other}; expected two files")


@contextmanager
def written_beside(targets: dict[str, Path]) -> Iterator[dict[str, Path]]:
    """Create a temporary file beside each target; rename them at the end, or remove them if anything goes wrong.

    A link is followed, so that it still is one afterwards.
    """
    finals = {key: path.resolve() for key, path in targets.items()}
    drafts = {key: path.with_name(f".{path.name}.{os.getpid()}.tmp") for key, path in finals.items()}
    created = []
    try:
        for draft in drafts.values():
            draft.touch(exist_ok=False)
            created.append(draft)
        yield drafts
        for key, draft in drafts.items():
            os.replace(draft, finals[key])
            created.remove(draft)
    finally:
        for draft in created:
            draft.unlink(missing_ok=True)


def create_array(path: Path, dtype: np.dtype[Any], shape: tuple[int, ...]) -> np.memmap[Any, Any]:
    """Create a .npy file and map it for writing.

    Raises
    ------
    OSError
        If the disk is full: now, rather than by a fatal signal when a page is written back.
    """
    array = np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    return array
