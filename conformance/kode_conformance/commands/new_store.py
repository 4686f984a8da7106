"""``kode new-store``: a project to write a store in."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib.metadata import entry_points, version
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Annotated, Final, NamedTuple

import typer
from rich.text import Text

from kode_conformance.commands.skeleton import Skeleton, import_lines, skeleton_of
from kode_core.cli.output import show, visible
from kode_core.engine import Engine
from kode_core.errors import ConfigurationError, InvalidArgumentError
from kode_core.installed import FIRST_PARTY
from kode_core.plugins import GROUP
from kode_core.protocols import Store

__all__ = ["EXAMPLES", "new_store"]

EXAMPLES: Final = {
    "new-store": (
        "kode new-store duckdb",
        "kode new-store acme --protocol --into ~/projects",
    ),
}

_NAME: Final = re.compile(r"[a-z][a-z0-9]*(-[a-z0-9]+)*")
_LONGEST: Final = 20
_TAKEN: Final = ("core", "conformance")
"""Names whose distributions are no stores."""


class _Kind(NamedTuple):
    """One of the two ways to write a store.

    Attributes:
        module: the template, and the module, of the class to be written.
        suffix: how its name ends.
        written: the methods of the protocol that the template has.
        create: the function that opens such a store.
        lacks: the capabilities that it does not have, as Python.
        steps: methods that are best written together, one step after the other, and the areas of the contract that
            can then be looked at.
    """

    module: str
    protocol: type
    suffix: str
    written: frozenset[str]
    create: str
    lacks: str
    steps: tuple[tuple[str, str], ...]


_ENGINE: Final = _Kind(
    module="engine",
    protocol=Engine,
    suffix="Engine",
    written=frozenset({"close"}),
    create="create_extended_store",
    lacks='{"ANY_OF", "DOCUMENTS", "PRUNING", "SCOPES", "TAGS"}',
    steps=(
        ("docs, and commit of documents and of delete", "TODO HIS MED"),
        ("events, last_event, and commit of events", "EVT"),
        (
            "summary, rows, rows_at, outline, and commit of lists and info: its preconditions, op_id",
            "MSG TC TURN VAL SNAP",
        ),
        ("agent_ids, stored_ids, find_sessions, find_rows, stats, totals", "INFO VER LIFE QRY"),
        ("acquire_lease, renew_lease, release_lease, fork, and the fence of commit", "LOCK FORK ID"),
        ("probes, inspect, backup", "OPS DUR"),
        ("finds_any_of, and queries with several values of a filter; remove ANY_OF from lacks", "QRY"),
        (
            "keeps_documents, docs_in, demands and places of documents in commit; remove DOCUMENTS from lacks",
            "DOC",
        ),
        ("finds_within, and queries of a range of agents (Within); remove SCOPES from lacks", "SCOPE"),
        ("finds_docs, find_docs, and the terms of documents in commit; remove TAGS from lacks", "DOC"),
        ("checks_demands, and what commit demands of documents, info and contents", "LIFE FORK VER"),
        ("drops_events, and commit of drop_events; remove PRUNING from lacks", "LIFE"),
    ),
)
_PROTOCOL: Final = _Kind(
    module="store",
    protocol=Store,
    suffix="Store",
    written=frozenset(),
    create="create_store",
    lacks='{"EXTENDED", "QUERYABLE"}',
    steps=(
        ("save_todos, load_todos", "TODO"),
        ("append_event, append_events, read_events, last_bookmark, follow_events", "EVT"),
        ("save_messages, append_messages, load_messages", "MSG"),
        ("save_tool_call_records, upsert_tool_call_records, load_tool_call_records", "TC"),
        (
            "save_history_window, load_history_windows, save_compression_record, load_compression_records, "
            "save_recovered_file, load_recovered_files, save_media_cache, load_media_cache",
            "HIS MED",
        ),
        ("save_snapshot, load_snapshot, list_snapshots, save_info, load_info", "SNAP INFO"),
        ("exists, delete, list", "LIFE ID"),
        ("save_turn", "TURN VAL OPS DUR"),
    ),
)


def new_store(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The backend's name, as in duckdb: a word, or several-words.")
    ],
    protocol: Annotated[
        bool,
        typer.Option(
            "--protocol/--engine",
            help="Write the Store protocol itself, or an Engine, of which the core makes a store.",
            show_default="engine",
        ),
    ] = False,
    into: Annotated[Path, typer.Option(metavar="DIR", help="The folder to make the project's folder in.")] = Path(),
) -> None:
    """Make a project for a store of your own, with the tests that judge it.

    It can be installed and judged at once; a method that is not written yet fails with its name. An engine is less work
    than the protocol, and gives queries, locks, forks and metrics too.
    """
    _check_name(name)
    folder = into.expanduser() / f"kode-{name}"
    if folder.exists():
        raise ConfigurationError(f"{folder} exists already; take another name, or make it --into another folder")
    kind = _PROTOCOL if protocol else _ENGINE
    try:
        for path, text in _project(name, kind).items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text, "utf-8")
    except OSError as exc:
        raise ConfigurationError(f"{folder} cannot be made: {exc.strerror}") from exc
    _tell(folder, name, kind)


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        raise InvalidArgumentError(
            f"{name!r} cannot name a backend: it takes lower case letters and digits, and '-' between words, as in "
            f"duckdb or acme-cloud; at most {_LONGEST} characters"
        )
    found = next((entry for entry in entry_points(group=GROUP) if entry.name == name), None)
    if found is not None:
        owner = found.dist.name if found.dist else found.value
        raise InvalidArgumentError(f"there is a backend {name} already, of {owner}; take another name")
    if name in FIRST_PARTY or name in _TAKEN:
        raise InvalidArgumentError(f"kode-{name} is the name of another package; take another name")


# --- The files --------------------------------------------------------------------------------------------------------


def _project(name: str, kind: _Kind) -> dict[str, str]:
    """The contents of the project's files, by path."""
    package = f"kode_{name.replace('-', '_')}"
    prefix = "".join(word.capitalize() for word in name.split("-"))
    skeleton = skeleton_of(kind.protocol, prefix + kind.suffix, kind.written)
    values = _values(name, kind, skeleton) | {"package": package, "prefix": prefix}
    places = {
        "common/pyproject.toml": "pyproject.toml",
        "common/README.md": "README.md",
        "common/gitignore": ".gitignore",
        "common/conformance.yml": ".github/workflows/conformance.yml",
        "common/__init__.py": f"{package}/__init__.py",
        "common/options.py": f"{package}/options.py",
        "common/testing/__init__.py": f"{package}/testing/__init__.py",
        "common/testing/harness.py": f"{package}/testing/harness.py",
        "common/test_conformance.py": "tests/test_conformance.py",
        f"{kind.module}/plugin.py": f"{package}/plugin.py",
        f"{kind.module}/{kind.module}.py": f"{package}/{kind.module}.py",
    }
    filled = {path: _filled(template, values) for template, path in places.items()}
    return {**filled, f"{package}/py.typed": ""}


def _values(name: str, kind: _Kind, skeleton: Skeleton) -> dict[str, str]:
    return {
        "name": name,
        "distribution": f"kode-{name}",
        "variable": name.upper().replace("-", "_"),
        "module": kind.module,
        "create": kind.create,
        "lacks": kind.lacks,
        "core": _compatible("kode-core"),
        "conformance": _compatible("kode-conformance"),
        "steps": "\n".join(_step(number, *step) for number, step in enumerate(kind.steps, 1)),
        "first": _only(kind.steps[0][1]),
        "imports": import_lines(skeleton.imports),
        "aliases": "".join(f"{alias}\n" for alias in skeleton.aliases) + "\n",
        "methods": skeleton.methods,
    }


def _step(number: int, methods: str, areas: str) -> str:
    """A row of the table of steps."""
    return f"| {number} | {methods} | `{_only(areas)}` |"


def _only(areas: str) -> str:
    return " ".join(f"--only {area}" for area in areas.split())


def _filled(template: str, values: Mapping[str, str]) -> str:
    text = files("kode_conformance").joinpath("templates", *f"{template}.tmpl".split("/")).read_text("utf-8")
    return Template(text).substitute(values)


def _compatible(distribution: str) -> str:
    """The version range that a new project may depend on."""
    major, minor = version(distribution).split(".")[:2]
    return f">={major}.{minor},<{int(major) + 1}" if major != "0" else f">=0.{minor},<0.{int(minor) + 1}"


# --- What to do next --------------------------------------------------------------------------------------------------


def _tell(folder: Path, name: str, kind: _Kind) -> None:
    todo = folder / f"kode_{name.replace('-', '_')}" / f"{kind.module}.py"
    show(
        Text(visible(f"{folder} is made. Next:")),
        Text(),
        Text(visible(f"  cd {folder}")),
        Text("  pip install -e '.[test]'"),
        Text(f"  kode conformance {name} --tier quick {_only(kind.steps[0][1])}"),
        Text(),
        Text(visible(f"Then write the methods in {todo} until nothing fails: each says what it must do.")),
        Text("README.md has the order of work, and kode conformance --explain EVT-2 tells of a clause."),
    )
