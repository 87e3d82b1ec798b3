"""Write the pages of the API reference from ``fastsoftmax.__all__`` and the table of operations.

Nothing is listed here by name: a new function or operation appears in the documents by itself.
"""

from __future__ import annotations

import inspect
from pathlib import Path

import fastsoftmax
from fastsoftmax._ops import OPS, Op

GENERATED = Path("api") / "generated"

# The heading of the functions of a module; those of any other module come last.
HEADINGS = {
    "_forward": "Forward",
    "_derivatives": "Derivatives",
    "_losses": "Losses",
    "_divergences": "Losses",
    "_second_order": "Losses, second order",
    "_linear": "Linear layer and loss",
}
OTHERS = "Backends, threads, introspection"

KINDS = {
    "(c)": "a row",
    "()": "a number per row",
    "()i": "a class index per row",
    "c": "a number per class",
    "(c,c)": "a matrix per row",
}
ULP_KINDS = {
    "result": "of the result",
    "unit": "of max(1, abs(result))",
    "term": "of the row's largest term",
}


def heading(name: str) -> str:
    """Return the heading under which a public name stands."""
    module = getattr(getattr(fastsoftmax, name), "__module__", "").rpartition(".")[2]
    return HEADINGS.get(module, OTHERS)


def names() -> dict[str, list[str]]:
    """Return the public names by heading."""
    groups: dict[str, list[str]] = {title: [] for title in (*HEADINGS.values(), OTHERS)}
    for name in fastsoftmax.__all__:
        groups[heading(name)].append(name)
    return groups


def functions_page() -> str:
    """Return the page of the public names."""
    lines = ["Functions", "=========", "", ".. currentmodule:: fastsoftmax", ""]
    for title, members in names().items():
        lines += [title, "-" * len(title), "", ".. autosummary::", "   :toctree: .", ""]
        lines += [f"   {name}" for name in members] + [""]
    return "\n".join(lines)


def _operands(pairs: tuple[tuple[str, str], ...]) -> str:
    return ", ".join(f"``{name}``: {KINDS.get(kind, kind)}" for name, kind in pairs)


def _entry(op: Op) -> list[str]:
    public = ", ".join(f":func:`~fastsoftmax.{name}`" for name in op.public) or "internal"
    return [
        op.name,
        "-" * len(op.name),
        "",
        *inspect.cleandoc(op.definition.__doc__ or "").splitlines(),
        "",
        f":In: {_operands(op.ins)}",
        f":Out: {_operands(op.outs)}",
        *([f":Extras: {_operands(op.extras)}"] if op.extras else []),
        f":Parameters: {', '.join(f'``{p}``' for p in op.params) or 'none'}",
        f":Promise: {op.ulp:g} ULP {ULP_KINDS.get(op.ulp_kind, op.ulp_kind)}",
        f":Traffic: {op.bytes_moved} per element of a row, read or written",
        f":Functions: {public}",
        "",
    ]


def operations_page() -> str:
    """Return the page of the table of operations."""
    lines = ["Operations", "==========", "", "What the backends compute: the table in ``fastsoftmax/_ops.py``.", ""]
    for op in OPS.values():
        lines += _entry(op)
    return "\n".join(lines)


def pages() -> dict[str, str]:
    """Return the generated pages by file name."""
    return {"functions.rst": functions_page(), "operations.rst": operations_page()}


def write(docs: Path) -> None:
    """Write the pages below ``docs``; what has not changed is left alone, what names nothing any more is removed."""
    folder = docs / GENERATED
    folder.mkdir(parents=True, exist_ok=True)
    for stub in folder.glob("fastsoftmax.*.rst"):
        if stub.stem.partition(".")[2] not in fastsoftmax.__all__:
            stub.unlink()
    for name, text in pages().items():
        page = folder / name
        if not page.exists() or page.read_text() != text:
            page.write_text(text)
