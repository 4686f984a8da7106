"""The documentation names all there is to name, and nothing that is not there."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import typer

import kode_core
from kode_core.cli.app import app
from kode_core.config import StoreOptions
from kode_core.plugins import Hooks, registry
from tests.test_docs import PAGES, ROOT, blocks, name_of
from tests.test_public_api import AUTHORING


def test_every_hook_is_in_a_guide() -> None:
    """Every hook that a plugin may implement is in the guides."""
    guides = "".join(page.read_text() for page in (ROOT / "docs" / "guides").glob("*.md"))
    hooks = [name for name in vars(Hooks) if name.startswith("kode_")]
    assert len(hooks) >= 3
    for name in hooks:
        assert name in guides, name


def test_every_exported_name_is_in_the_reference() -> None:
    """A page of the reference has a line for each name of kode_core and for each module that authors rely on."""
    reference = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    lines = set(re.findall(r"^::: ([\w.]+)$", reference, flags=re.MULTILINE))
    for name in kode_core.__all__:
        assert f"kode_core.{name}" in lines, name
    for module in AUTHORING:
        assert module in lines, module


def test_every_page_has_a_place() -> None:
    """The navigation of the site has every page of the documentation, once."""
    nav = re.findall(r"^ +- (?:[^:#]+: )?([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), flags=re.MULTILINE)
    pages = {str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").rglob("*.md")}
    pages = {page for page in pages if not page.startswith("examples/")}
    made = {"contributing/index.md", "changelog.md"}  # of CONTRIBUTING.md and CHANGELOG.md
    assert sorted(nav) == sorted(pages | made)


ENVIRONMENT = re.compile(r"(?:KODE|POSTGRES|MONGODB)_[A-Z0-9_]*[A-Z0-9]|PG[A-Z]{2,}")
NOT_READ = {"KODE_STORE_UR", "KODE_SQLITE_CACHE_KIB", "KODE_POSTGRES_SERVICE_HOST", "KODE_POSTGRES_PORT_5432_TCP"}
"""Variables that a guide names because they are wrong, an example, or not meant for kode_core."""


def variables_in_code() -> set[str]:
    """The environment variables that a string of the code names."""
    folders = [ROOT / "kode_core", ROOT / "conformance", *(ROOT / "plugins").glob("*/kode_*")]
    files = [ROOT / "conftest.py", *(file for folder in folders for file in folder.rglob("*.py"))]
    trees = [ast.parse(file.read_text()) for file in files]
    strings = {
        node.value
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    from kode_postgres.variables import VARIABLES

    return {text for text in strings if ENVIRONMENT.fullmatch(text)} | VARIABLES


def test_environment_variables_are_documented() -> None:
    """Every variable that the code names is in the documentation, and every one of the documentation is read."""
    text = "".join(page.read_text() for page in PAGES if page.name != "CHANGELOG.md")
    code = variables_in_code()
    missing = sorted(name for name in code if not re.search(rf"\b{name}\b", text))
    assert missing == []
    named = set(re.findall(rf"\b(?:{ENVIRONMENT.pattern})(?![A-Z0-9_<])", text))
    for name in named - code - NOT_READ:
        is_file = name.removesuffix("_FILE") in code
        assert is_file or name in Path(ROOT / ".ci" / "run").read_text() or is_option(name.removesuffix("_FILE")), name


def is_option(name: str) -> bool:
    """Whether a variable is KODE_<BACKEND>_<OPTION> of an option that exists."""
    _, _, rest = name.partition("KODE_")
    backend, _, option = rest.partition("_")
    if backend.lower() not in registry.names():
        return False
    options = (registry.backend(backend.lower()).options, StoreOptions)
    return option.lower() in {field.name for one in options for field in msgspec.structs.fields(one)}


def kode_commands(page: Path) -> Iterator[str]:
    """The kode commands that a page names: inside a line, and in blocks of which only some are run."""
    for block in blocks(page):
        if block.language in ("sh", "console", "yaml"):
            yield from re.findall(r"^(?:\$ |.*- run: )?(kode .+)$", block.text, flags=re.MULTILINE)
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    yield from (" ".join(command.split()) for command in re.findall(r"`(kode\s[^`]+)`", text))


@pytest.mark.parametrize("page", [page for page in PAGES if any(kode_commands(page))], ids=name_of)
def test_kode_commands_exist(page: Path) -> None:
    """Every kode command that a page names is one, and has the options that the page gives it."""
    group: Any = typer.main.get_command(app)
    context = group.make_context("kode", [], resilient_parsing=True)
    for line in kode_commands(page):
        words = shlex.split(line.split(" #")[0].split(" | ")[0].split(" > ")[0])[1:]
        while words and words[0] in ("--store", "-s", "--tenant"):
            words = words[2:]
        if words[:1] in (["COMMAND"], ["--version"], ["--help"]) or not words:
            continue
        command = group.get_command(context, words[0])
        assert command is not None, f"{page}: {line}"
        inner = command.make_context(words[0], [], context, resilient_parsing=True)
        options = {name for p in command.get_params(inner) for name in (*p.opts, *p.secondary_opts)}
        for word in words[1:]:
            if word.startswith("-") and word != "-":
                assert word.partition("=")[0] in options, f"{page}: {line}"
