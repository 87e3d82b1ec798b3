"""One table says what the operations are.  What is missing elsewhere is a failure here that names the step.

The steps of adding an operation (CONTRIBUTING.md): 1 a row with its definition in ``fastsoftmax/_ops.py``,
2 a public function in a module of faces (``_forward.py`` and its like), 3 a C kernel in ``csrc/``,
4 a Numba kernel in ``_numba_kernels.py`` or its like.
"""

from __future__ import annotations

import doctest
import inspect

import numpy as np
import pytest
from cases import cases_for
from faces import call, faces
from rooms import Room
from saboteurs import SABOTEURS

import fastsoftmax as fs
from fastsoftmax import _backends
from fastsoftmax._ops import CLASS, LABEL, ONE, ROW, SQUARE, Op

STEP = {
    "cython": "step 3 of CONTRIBUTING.md: a C kernel in csrc/",
    "numba": "step 4 of CONTRIBUTING.md: a Numba kernel in fastsoftmax/_numba_kernels.py",
    "numpy": "step 1 of CONTRIBUTING.md: the definition in fastsoftmax/_ops.py",
}
PUBLIC = sorted({public for public, _ in faces()})


def test_every_room_serves_the_table(room: Room, op: Op, dtype: np.dtype) -> None:
    try:
        kernel = _backends.current().kernel(op.name, dtype)
    except Exception as error:  # whatever a backend raises for a kernel it lacks
        pytest.fail(f"{room.id} has no kernel {op.name!r} for {dtype}: {error!r}.  Missed: {STEP[room.backend]}")
    assert callable(kernel), f"{room.id}, {op.name}, {dtype}.  Missed: {STEP[room.backend]}"


def test_no_room_serves_more_than_the_table(room: Room) -> None:
    with pytest.raises(Exception, match="no_such_operation"):
        _backends.current().kernel("no_such_operation", np.dtype(np.float32))


def test_rows_of_the_table(op: Op) -> None:
    kinds = {ROW, ONE, LABEL, CLASS, SQUARE}
    assert {kind for _, kind in op.ins + op.outs} <= kinds
    assert {kind for _, kind in op.extras} <= {ONE, LABEL}
    assert op.ins[0][1] == ROW, "the first operand has the frame's shape"
    assert len({name for name, _ in op.ins}) == len(op.ins)
    assert 0 < op.ulp <= 4
    assert op.ulp_kind in ("result", "unit", "term")
    assert op.bytes_moved >= 1
    assert (op.definition.__doc__ or "").strip(), f"the definition of {op.name} has no docstring"
    parameters = inspect.signature(op.definition).parameters.values()
    positional = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
    assert positional == [name for name, _ in op.ins], "operands of the definition and of its row"
    assert tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY) == op.params


@pytest.mark.parametrize("name", PUBLIC)
def test_public_functions(name: str) -> None:
    step = f"Missed: step 2 of CONTRIBUTING.md: a public function {name!r}"
    assert name in fs.__all__, f"{step}, exported by fastsoftmax/__init__.py"
    function = getattr(fs, name, None)
    assert callable(function), step
    text = inspect.getdoc(function) or ""
    for section in ("Parameters", "Returns", "Raises", "Notes", "Examples"):
        assert f"{section}\n{'-' * len(section)}" in text, f"{step}: its docstring has no section {section!r}"
    assert ">>> " in text, f"{step}: its docstring has no doctest"
    described = text.partition("Returns\n-------")[0]
    for parameter in inspect.signature(function).parameters:
        assert parameter in described, f"{name} does not describe its parameter {parameter!r}"
    assert inspect.signature(function).return_annotation is not inspect.Signature.empty


def test_default_axis() -> None:
    for name in PUBLIC:
        assert inspect.signature(getattr(fs, name)).parameters["axis"].default == -1, name


def test_everything_exported_exists_and_has_a_doctest() -> None:
    finder = doctest.DocTestFinder(recurse=False)
    for name in fs.__all__:
        assert hasattr(fs, name)
        value = getattr(fs, name)
        if callable(value) and not (inspect.isclass(value) and issubclass(value, Exception)):
            assert any(t.examples for t in finder.find(value, name)), f"{name} has no doctest"
    assert sorted(fs.__all__) == fs.__all__


@pytest.mark.parametrize(("public", "op"), [pytest.param(p, o, id=f"{p}-{o.name}") for p, o in faces()])
def test_public_functions_reach_their_kernels(public: str, op: Op, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []
    with fs.use_backend("numpy"):
        numpy_room = _backends.current()
        honest = numpy_room.kernel

        def spy(name: str, dtype: np.dtype) -> _backends.Kernel:
            used.append(name)
            return honest(name, dtype)

        monkeypatch.setattr(numpy_room, "kernel", spy)
        ins, _ = cases_for(op)[0].build(op, np.dtype(np.float64))
        call(public, op, ins)
    assert op.name in used, f"{public} does not end in the kernel {op.name}, as the table says"


def test_every_operation_has_cases_and_saboteurs(op: Op) -> None:
    assert len(cases_for(op)) > 50
    assert any(op.name in s.ops for s in SABOTEURS), f"no saboteur attacks {op.name}: add one to tests/saboteurs.py"
    assert ("keep" in op.params) == ("spread" in op.params)


def test_backends_have_their_doors() -> None:
    for name in _backends.BACKENDS:
        module = _backends._module(name)
        assert module.name == name
        assert isinstance(module.strided, bool)
        assert isinstance(module.masks, bool)
        assert set(module.reads) <= {np.dtype(np.float32), np.dtype(np.float64)}
        assert callable(module.why_not)
        assert callable(module.kernel)
