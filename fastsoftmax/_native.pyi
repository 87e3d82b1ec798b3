"""The compiled binding, csrc/_native.pyx."""

from collections.abc import Sequence
from typing import Any

import numpy as np

def instruction_sets() -> tuple[str, ...]: ...
def operations() -> tuple[str, ...]: ...
def pool_size() -> int: ...
def tuned(**sizes: int) -> dict[str, int]: ...
def build() -> tuple[str, str]: ...
def count_ignored(kernel: Kernel, labels: np.ndarray[Any, Any], classes: int, ignore: int, threads: int) -> int: ...
def weigh_rows(n: int, labels: Any, ignore: int, weight: Any, rows: Any, threads: int) -> float: ...
def quick_loss(
    kernel: Kernel,
    logits: Any,
    target: Any,
    grad_out: Any,
    reduction: str,
    scale: float,
    empty: float,
    ignore: int,
    gradient: bool,
    threads: int,
    narrow: bool,
) -> tuple[Any, Any] | None: ...

class Kernel:
    def __init__(
        self, isa: str, op: str, dtype: np.dtype[Any], in_kinds: Sequence[str], out_kinds: Sequence[str]
    ) -> None: ...
    def __call__(
        self,
        ins: Sequence[Any],
        outs: Sequence[Any],
        params: tuple[float, ...],
        threads: int,
        where: Any = None,
        factor: float = 1.0,
        softcap: float = 0.0,
        poison: bool = False,
        chain: dict[int, float] | None = None,
        cleared: int = -1,
    ) -> None: ...
    def quick(
        self, ins: tuple[Any, ...], outs: tuple[Any, ...], params: tuple[float, ...], threads: int, axis: int = -1
    ) -> list[Any] | None: ...
