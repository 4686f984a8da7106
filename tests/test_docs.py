"""The documentation is true: its code runs, its links lead somewhere, and it names all there is to name."""

from __future__ import annotations

import ast
import asyncio
import inspect
import os
import re
import secrets
import shlex
import sqlite3
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import closing, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import msgspec
import pytest
from kode_postgres.testing.servers import shared_server

import kode_core
from conformance.tests.zoo.base import load_mutants
from kode_core import errors
from kode_core.config import StoreOptions
from kode_core.plugins import registry
from plugins.postgres.tests.conftest import had

ROOT = Path(__file__).parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "plugins").glob("*/README.md")),
    ROOT / "conformance" / "README.md",
]
RUN_AS_A_WHOLE = {ROOT / "docs" / "tutorial.md"}  # by test_tutorial.py, with all that it prints
LANGUAGES = {"python", "console", "sh", "sql", "toml", "powershell", "bat", "json", "yaml", "mermaid", ""}


class Block(NamedTuple):
    line: int
    language: str
    skip: str
    source: str
    text: str


def blocks(page: Path) -> Iterator[Block]:
    """The fenced blocks of a page."""
    opened: tuple[int, str] | None = None
    lines: list[str] = []
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            if opened is None:
                opened, lines = (number, line[3:].strip()), []
            else:
                language, _, skip = opened[1].partition(" skip:")
                language, _, source = language.partition(" from ")
                yield Block(opened[0], language.strip(), skip.strip(), source, "\n".join(lines) + "\n")
                opened = None
        elif opened is not None:
            lines.append(line)
    assert opened is None, f"{page}: a block is not closed"


@pytest.fixture(autouse=True)
def settings(request: pytest.FixtureRequest, alone: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What readers of a page have set before: those of the PostgreSQL guide have a server, and say so once."""
    page = getattr(getattr(request.node, "callspec", None), "params", {}).get("page")
    if page is not None and page.name == "from-the-kode-sdk.md":
        with tarfile.open(ROOT / "tests/data/kode-sdk-2.7.0/sqlite-store.tar.gz") as archive:
            archive.extractall(filter="data")
        Path("sqlite").rename("old")
    if page is not None and page.name == "langgraph.md":
        with closing(sqlite3.connect("checkpoints.db")) as db:
            db.executescript((ROOT / "tests/data/langgraph/checkpoints.sql").read_text())
    if page is None or page.name != "postgres.md":
        yield
        return
    server = had(shared_server)
    name = f"kode_{secrets.token_hex(6)}"
    asyncio.run(server.execute(f"CREATE DATABASE {name}"))
    address = urlsplit(server.url(name))
    for variable, value in {
        "KODE_STORE_TYPE": "postgres",
        "POSTGRES_HOST": address.hostname,
        "POSTGRES_PORT": address.port,
        "POSTGRES_DB": name,
        "POSTGRES_USER": address.username,
        "POSTGRES_PASSWORD": address.password,
    }.items():
        monkeypatch.setenv(variable, str(value))
    yield
    asyncio.run(server.execute(f"DROP DATABASE {name} WITH (FORCE)"))


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_blocks_say_what_they_are(page: Path) -> None:
    """Every block has a language, one that does not run says why, and a quotation is still true."""
    for block in blocks(page):
        assert block.language in LANGUAGES, f"{page}:{block.line}: {block.language!r}"
        if "skip" in block.text.split("\n")[0]:
            assert block.skip
        if block.source:
            source = (ROOT / block.source).read_text()
            assert block.text in source, f"{page}:{block.line}: {block.source} says something else"


WITH_PYTHON = [p for p in PAGES if p not in RUN_AS_A_WHOLE and any(b.language == "python" for b in blocks(p))]


@pytest.mark.parametrize("page", WITH_PYTHON, ids=name_of)
def test_python_runs(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Python of a page runs from top to bottom, and prints what the page says it prints."""
    added: list[object] = []
    add = registry.add

    def noted(plugin: object, *name: str) -> None:
        add(plugin, *name)
        added.append(plugin)

    monkeypatch.setattr(registry, "add", noted)
    try:
        run_page(page)
    finally:
        for plugin in added:
            registry.remove(plugin)


def run_page(page: Path) -> None:
    printed: dict[str, Any] = {}
    namespace: dict[str, Any] = {"__name__": "docs"}
    previous = ""
    with asyncio.Runner() as runner:
        for block in blocks(page):
            if block.language == "python" and not block.skip and not block.source:
                previous = run(runner, block, page, namespace)
            elif block.language == "" and printed is not None and says_prints(page, block):
                assert wherever(previous) == wherever(block.text), f"{page}:{block.line}"


def wherever(text: str) -> str:
    """What is printed, whichever backends are installed."""
    return re.sub(r"\(installed: [a-z, ]+\)", "(installed: …)", text)


def says_prints(page: Path, block: Block) -> bool:
    """Whether the line before a block promises that it is what was printed."""
    lines = page.read_text().splitlines()[: block.line - 1]
    return bool(lines) and "prints" in " ".join(lines[-2:])


def run(runner: asyncio.Runner, block: Block, page: Path, namespace: dict[str, Any]) -> str:
    source = "\n" * block.line + block.text
    code = compile(source, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    out = StringIO()
    with redirect_stdout(out):
        if code.co_flags & inspect.CO_COROUTINE:
            function = eval(code, namespace)
            runner.run(function)
        else:
            exec(code, namespace)
    return out.getvalue()


COMMANDS = [
    (page, block)
    for page in PAGES
    if page not in RUN_AS_A_WHOLE
    for block in blocks(page)
    if block.language == "console" and not block.skip
]


@pytest.mark.parametrize(("page", "block"), COMMANDS, ids=[f"{name_of(p)}:{b.line}" for p, b in COMMANDS])
def test_commands_run(page: Path, block: Block, tmp_path: Path) -> None:
    """The kode commands of a page succeed on a store with something in it; pip and make lines name what exists."""
    asyncio.run(fill())
    env = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "120"}
    for line in block.text.splitlines():
        if not line.startswith("$ "):
            continue
        command = line[2:].split(" #")[0].strip()
        words = shlex.split(command)
        if words[0] == "kode":
            done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, check=False, input="y\n")
            assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
        elif words[0] == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
            assert words[1] in targets, line
        elif words[0] == "pip":
            for package in (re.sub(r"\[.*", "", word) for word in words[2:] if not word.startswith("-")):
                assert (
                    package
                    in {
                        "kode-agent",
                        "kode-inspector",
                        "kode-otel",
                        *(f"kode-{n}" for n in ("core", "sqlite", "postgres", "mongo", "dynamodb", "conformance")),
                    }
                    or (ROOT / package / "pyproject.toml").is_file()
                ), line
        else:
            assert words[0] in ("git", "cd", "python", "pytest"), line


async def fill() -> None:
    """The stores that the commands of the documentation speak of."""
    for url in ("sqlite:///data/agents.db", "sqlite:///data/hybrid.db?file_store_base_dir=data/hybrid-files"):
        async with kode_core.create_extended_store(url) as store:
            await store.save_turn(
                "agt-1",
                append=[kode_core.Message.user("hi")],
                info=kode_core.AgentInfo(agent_id="agt-1", template_id="assistant"),
                upsert_tool_calls=[kode_core.ToolCallRecord(id="c", name="bash", state="FAILED", is_error=True)],
            )
    async with kode_core.create_extended_store("sqlite:///data/agents.db") as store:
        await store.put_document("agt-1", "notes", "2025-06-01", {"text": "a note"})


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    """Links to files and headings of the repository lead to what is there."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)]+)\)", text):
        if target.startswith("http"):
            continue
        path, _, heading = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{page}: {target}"
        if heading:
            assert heading in headings(file), f"{page}: {target}; there are {sorted(headings(file))}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_tables_are_whole(page: Path) -> None:
    """A table begins with a head and the line below it; an empty line inside a table makes its rows plain text."""
    text = re.sub(r"^( *)```.*?^\1```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert re.fullmatch(r"\|(?: *:?-+:? *\|)+", [*table.splitlines(), ""][1]), table.splitlines()[0]


def headings(page: Path) -> set[str]:
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    found = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_every_option_is_documented() -> None:
    """Every option of the store and of the backends is in the guides."""
    from kode_dynamodb import DynamoDBOptions
    from kode_mongo import MongoOptions
    from kode_postgres import PostgresOptions
    from kode_sqlite import SqliteOptions

    from kode_core.backends.json_files.plugin import JsonOptions

    guides = "".join(page.read_text() for page in (ROOT / "docs" / "guides").glob("*.md"))
    for options in (StoreOptions, SqliteOptions, JsonOptions, PostgresOptions, MongoOptions, DynamoDBOptions):
        for field in msgspec.structs.fields(options):
            assert f"`{field.name}`" in guides, f"{options.__name__}.{field.name}"


def test_every_error_is_in_the_tree() -> None:
    """The tree at the top of the errors module names every error."""
    assert errors.__doc__ is not None
    for name in errors.__all__:
        if name != "Retry":
            assert name in errors.__doc__, name


def test_the_kill_matrix_is_of_today() -> None:
    """It has every faulty store, and the check that is there for it."""
    page = (ROOT / "docs" / "kill-matrix.md").read_text()
    mutants = load_mutants()
    for mutant in mutants:
        assert re.search(
            rf"^\| {mutant.name} \| .* \| {mutant.clause} \| `{re.escape(mutant.killed_by)}`( \(standard\))? \|",
            page,
            re.MULTILINE,
        )
    assert f"{len(mutants)} faulty stores, {len(mutants)} of them killed" in page
