"""What the documents say is so: examples run, commands and files exist, nothing is forgotten."""

from __future__ import annotations

import doctest
import importlib.util
import re
import shlex
import tomllib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

import fastsoftmax as fs
from fastsoftmax import _cli
from fastsoftmax._ops import OPS

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").glob("*.rst")) + sorted((ROOT / "docs" / "decisions").glob("*.rst"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *PAGES]
HOSTS = {"keepachangelog.com", "semver.org"}


def relative(path: Path) -> str:
    return str(path.relative_to(ROOT))


def fenced(document: Path, language: str) -> list[str]:
    """Return the code blocks of a Markdown document."""
    return re.findall(rf"^```{language}\n(.*?)^```$", document.read_text(), re.DOTALL | re.MULTILINE)


def commands() -> list[list[str]]:
    """Return the words of every command in a block, without variables that precede it."""
    found = []
    for document in (ROOT / "README.md", ROOT / "CONTRIBUTING.md"):
        for block in fenced(document, "bash"):
            for line in block.splitlines():
                words = shlex.split(line, comments=True)
                while words:
                    end = words.index("&&") if "&&" in words else len(words)
                    command, words = words[:end], words[end + 1 :]
                    while command and re.match(r"[A-Z_]+=", command[0]):
                        command = command[1:]
                    found.append(command)
    return [command for command in found if command]


def examples(document: Path) -> str:
    return "\n".join(fenced(document, "python")) if document.suffix == ".md" else document.read_text()


@pytest.mark.parametrize("document", [p for p in DOCUMENTS if ">>> " in p.read_text()], ids=relative)
def test_examples(document: Path) -> None:
    test = doctest.DocTestParser().get_doctest(
        examples(document), {"np": np, "fs": fs}, relative(document), str(document), 0
    )
    report: list[str] = []
    failed = doctest.DocTestRunner(verbose=False).run(test, out=report.append).failed
    assert not failed, "".join(report)


def test_readme_has_examples_and_the_two_commands() -> None:
    assert len(fenced(ROOT / "README.md", "python")) >= 4
    first, second, *_ = fenced(ROOT / "README.md", "bash")
    assert first == 'python -m pip install ".[demo]" && python -m fastsoftmax demo\n'
    assert second == 'python -m pip install ".[test]" && python -m pytest -n 2\n'


@pytest.mark.parametrize("command", commands(), ids=" ".join)
def test_commands(command: list[str]) -> None:
    """Subcommands and options exist, and so do extras, files and folders."""
    if command[:3] == ["python", "-m", "fastsoftmax"]:
        _cli._parser().parse_args(command[3:])  # raises if it does not understand
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for word in command:
        extra = re.fullmatch(r"(?:\.|fastsoftmax)\[(\w+)\]", word)
        assert extra is None or extra[1] in extras
        if re.fullmatch(r"(?:\w[\w.-]*/)+[\w.-]+|\w+", word) and (ROOT / word.split("/")[0]).is_dir() and "/" in word:
            assert "_build" in word or (ROOT / word).exists(), f"{word} does not exist"


@pytest.mark.parametrize("document", [p for p in DOCUMENTS if p.name != "CHANGELOG.md"], ids=relative)
def test_files_exist(document: Path) -> None:
    for word in re.findall(r"(?<!:)`([\w.]+(?:/[\w.*-]+)+|\w+\.md)`", document.read_text()):
        if "NAME" not in word and "_build" not in word:
            assert list(ROOT.glob(word.rstrip("/"))) or word.startswith("fastsoftmax."), f"{word} does not exist"


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_environment_variables_exist(document: Path) -> None:
    code = "".join(p.read_text() for folder in ("fastsoftmax", "tests") for p in (ROOT / folder).rglob("*.py"))
    for variable in set(re.findall(r"FASTSOFTMAX_[A-Z_]+", document.read_text())):
        assert f'"{variable}"' in code, f"nothing reads {variable}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=relative)
def test_documents_hold_anywhere(document: Path) -> None:
    """No absolute path, no link to a host that readers do not need, no gap left to fill in."""
    text = document.read_text()
    assert not re.findall(r"(?<![\w.`*/:<>)\]}-])/[a-z]+/[\w./-]*", text)
    assert set(re.findall(r"https?://([\w.-]+)", text)) <= HOSTS
    assert not re.findall(r"^@\w+@$", text, re.MULTILINE)


def test_changelog_has_the_version() -> None:
    assert re.search(rf"^## \[{re.escape(fs.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def reference() -> ModuleType:
    """Import docs/reference.py."""
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_reference_lists_what_is_public(tmp_path: Path) -> None:
    module: Any = reference()
    assert sorted(name for group in module.names().values() for name in group) == fs.__all__
    module.write(tmp_path)
    functions = (tmp_path / module.GENERATED / "functions.rst").read_text()
    operations = (tmp_path / module.GENERATED / "operations.rst").read_text()
    assert re.findall(r"^   ([\w]+)$", functions, re.MULTILINE) == [n for g in module.names().values() for n in g]
    assert re.findall(r"^(\w+)\n-+$", operations, re.MULTILINE) == list(OPS)
    for op in OPS.values():
        if op.public:
            assert module.heading(op.public[0]) != module.OTHERS, f"{op.public[0]} stands under no heading"


def test_an_operation_takes_four_files() -> None:
    """The package's own module lists no operation, as CONTRIBUTING.md promises: it exports what the faces do."""
    text = (ROOT / "fastsoftmax" / "__init__.py").read_text()
    assert not [name for op in OPS.values() for name in op.public if re.search(rf"\b{name}\b,|\"{name}\"", text)]


def test_decisions_have_five_lines() -> None:
    for page in (ROOT / "docs" / "decisions").glob("[0-9]*.rst"):
        assert re.findall(r"^:(\w+):", page.read_text(), re.MULTILINE) == ["Problem", "Decision", "Why", "Also", "Cost"]
        assert page.read_text().startswith(f"{int(page.name[:3])}. ")
