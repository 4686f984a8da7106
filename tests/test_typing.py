"""Programs of users that type checkers accept, with the mistakes that they must refuse.

A line of ``tests/typing`` that ends in ``# refused: CODE`` is a mistake: mypy reports it with that code, and pyright in
its own words. Both accept every other line, and every ``assert_type``.
"""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import pytest
from kode_dynamodb import DynamoDBOptions
from kode_mongo import MongoOptions
from kode_postgres import PostgresOptions
from kode_sqlite import SqliteOptions

import kode_core
from kode_core.backends.json_files.plugin import JsonOptions
from kode_core.backends.memory.plugin import MemoryOptions
from kode_core.config import StoreOptions
from kode_core.factory import StoreKeywords

ROOT = Path(__file__).parents[1]
PROGRAMS = sorted((ROOT / "tests/typing").glob("*.py"))
SOURCES = [ROOT, *sorted((ROOT / "plugins").iterdir()), ROOT / "conformance", ROOT / "docs/examples/duckdb-store"]

Refused = dict[tuple[str, int], set[str]]
"""The codes of the errors at each line of each program."""

pytestmark = pytest.mark.slow


def meant() -> Refused:
    return {
        (program.name, number): {match[1]}
        for program in PROGRAMS
        for number, line in enumerate(program.read_text().splitlines(), 1)
        if (match := re.search(r"  # refused: ([a-z-]+)$", line))
    }


def test_mypy() -> None:
    """mypy, as strict as it can be, refuses the mistakes with the codes that they state, and nothing else."""
    done = subprocess.run(
        (sys.executable, "-m", "mypy", "--strict", "--output", "json", *PROGRAMS),
        cwd=ROOT,
        env={**os.environ, "MYPYPATH": os.pathsep.join(map(str, SOURCES))},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    found: Refused = defaultdict(set)
    for error in map(json.loads, done.stdout.splitlines()):
        if error["severity"] == "error":
            found[Path(error["file"]).name, error["line"]].add(error["code"])
    assert found, done.stdout + done.stderr
    assert {line: codes & found[line] or found[line] for line, codes in meant().items()} == meant()
    assert found.keys() == meant().keys()


def test_pyright(tmp_path: Path) -> None:
    """pyright refuses the same lines."""
    pyright = shutil.which("pyright", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if pyright is None:
        pytest.skip("pyright is not installed: its package fetches itself from npm's registry at its first run")
    settings = {
        "include": ["programs"],
        "extraPaths": list(map(str, SOURCES)),
        "pythonVersion": "3.11",
        "typeCheckingMode": "standard",
    }
    shutil.copytree(ROOT / "tests/typing", tmp_path / "programs")
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = (pyright, "--project", tmp_path, "--pythonpath", sys.executable, "--outputjson")
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    if not done.stdout.startswith("{"):
        pytest.skip(f"pyright does not run here: {(done.stderr or done.stdout)[-300:]}")
    assert json.loads(done.stdout)["summary"]["filesAnalyzed"] == len(PROGRAMS)
    errors = [error for error in json.loads(done.stdout)["generalDiagnostics"] if error["severity"] == "error"]
    found = {(Path(error["file"]).name, error["range"]["start"]["line"] + 1): error["message"] for error in errors}
    assert {line: message for line, message in found.items() if line not in meant()} == {}
    assert meant().keys() - found.keys() == set()


@pytest.mark.parametrize(
    ("store", "options"),
    [
        ("MemoryStore", MemoryOptions),
        ("JsonStore", JsonOptions),
        ("SqliteStore", SqliteOptions),
        ("PostgresStore", PostgresOptions),
        ("MongoStore", MongoOptions),
        ("DynamoDBStore", DynamoDBOptions),
    ],
)
def test_keywords_are_the_options(store: str, options: type[msgspec.Struct]) -> None:
    """The keywords that a store's class takes are the options of its backend and of all stores, with their types, and
    the layers and observers.
    """
    constructor = getattr(kode_core, store).__init__
    named = inspect.signature(constructor).parameters.keys() - {"self", "options"}
    (keywords,) = get_args(get_type_hints(constructor)["options"])
    hints: dict[str, Any] = {**get_type_hints(options), **get_type_hints(StoreOptions)}
    fields = [field.name for struct in (options, StoreOptions) for field in msgspec.structs.fields(struct)]
    given = get_type_hints(keywords)
    extension = {name: get_type_hints(StoreKeywords)[name] for name in ("layers", "observers")}
    assert given == {name: hints[name] for name in fields if name not in named} | extension
