"""What may be relied on: names, docstrings, and what an import costs."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import kode_conformance
import kode_postgres
import kode_sqlite
import pytest

import kode_core
from kode_core.engine import Connects, Engine, Notifies

ROOT = Path(__file__).parents[1]
AUTHORING = [
    "kode_core.authoring.calls",
    "kode_core.authoring.clock",
    "kode_core.authoring.closing",
    "kode_core.authoring.contexts",
    "kode_core.authoring.files",
    "kode_core.authoring.matching",
    "kode_core.authoring.modes",
    "kode_core.authoring.opening",
    "kode_core.authoring.options",
    "kode_core.authoring.parallel",
    "kode_core.authoring.paths",
    "kode_core.authoring.reading",
    "kode_core.authoring.values",
    "kode_core.authoring.waiting",
    "kode_core.authoring.watching",
    "kode_core.batch",
    "kode_core.codec",
    "kode_core.engine",
    "kode_core.engines.record.engine",
    "kode_core.engines.record.store",
    "kode_core.errors",
    "kode_core.layers",
    "kode_core.plugins",
    "kode_conformance",
    "kode_conformance.servers",
    "kode_conformance.servers.faults",
    "kode_conformance.testclass",
]
"""Modules that authors of stores and testers rely on, each of which has a section in the reference."""
PUBLIC = [
    *AUTHORING,
    "kode_core",
    "kode_core.config",
    "kode_core.engines.record.layout",
    "kode_core.formats.anthropic_messages",
    "kode_core.formats.openai_chat",
    "kode_core.formats.openai_messages",
    "kode_core.hybrid.engine",
    "kode_core.ids",
    "kode_core.model",
    "kode_core.protocols",
    "kode_core.query",
    "kode_core.report",
    "kode_core.sync",
    "kode_postgres",
    "kode_postgres.testing.servers",
    "kode_sqlite",
]


def modules_of(package: ModuleType) -> Iterator[str]:
    yield package.__name__
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith("__main__"):
            yield module.name


MODULES = [
    name for package in (kode_core, kode_postgres, kode_sqlite, kode_conformance) for name in modules_of(package)
]


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_is_there(name: str) -> None:
    """Every module has a docstring, and whatever __all__ names is in it, once."""
    module = importlib.import_module(name)
    assert module.__doc__, name
    exported = getattr(module, "__all__", [])
    assert len(set(exported)) == len(exported)
    assert [missing for missing in exported if not hasattr(module, missing)] == []


def documented(name: str, thing: Any, home: str) -> Iterator[str]:
    """Names of what has no docstring of its own, below *thing* too."""
    if not (inspect.isclass(thing) or inspect.isroutine(thing)):
        return
    if not thing.__doc__ or not thing.__doc__.strip():
        yield name
    if inspect.isclass(thing) and thing.__module__.startswith(home):
        for member, value in vars(thing).items():
            routine = value.__func__ if isinstance(value, classmethod | staticmethod) else value
            if isinstance(value, property):
                routine = value.fget
            if member.startswith("_") or not inspect.isfunction(routine):
                continue
            if any(hasattr(said, member) for said in (Engine, Notifies, Connects)) and thing not in (
                Engine,
                Notifies,
                Connects,
            ):  # said there
                continue
            if not inspect.getdoc(getattr(thing, member)) and not routine.__doc__:
                yield f"{name}.{member}"


@pytest.mark.parametrize("name", PUBLIC)
def test_public_names_have_docstrings(name: str) -> None:
    """Every public class, method and function says what its signature cannot."""
    module = importlib.import_module(name)
    exported = getattr(module, "__all__", None)
    assert exported, f"{name} has no __all__"
    found = [missing for n in exported for missing in documented(n, getattr(module, n), name.partition(".")[0])]
    assert found == []


def test_the_namespace_holds_nothing_else() -> None:
    """``from kode_core import`` offers submodules and what __all__ names, nothing by accident."""
    names = {
        name for name, value in vars(kode_core).items() if not name.startswith("_") and not inspect.ismodule(value)
    }
    assert names - set(kode_core.__all__) == {"annotations"}


def test_the_three_layers_are_one_store() -> None:
    """The store of the core has every method of the protocols, with the same parameters and defaults."""
    from kode_core.store.facade import EngineStore

    for name, method in inspect.getmembers(kode_core.ExtendedStore, inspect.isfunction):
        if name.startswith("_"):
            continue
        ours, promised = (inspect.signature(f).parameters for f in (getattr(EngineStore, name), method))
        assert list(ours) == list(promised), name
        assert [p.default for p in ours.values()] == [p.default for p in promised.values()], name


def test_the_modules_for_authors_are_one_list() -> None:
    """The architecture names all packages of the core but those that import-linter forbids to authors of stores."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (forbidden,) = (one["forbidden_modules"] for one in contracts if one["name"].startswith("authors of stores"))
    page = (ROOT / "docs" / "architecture.md").read_text()
    _, _, text = page.partition("Authors of stores import")
    named = {f"kode_core.{name}" for name in re.findall(r"`(?:kode_core)?\.([\w.]+)`", text.partition(";")[0])}
    packages = {f"kode_core.{module.name}" for module in pkgutil.iter_modules(kode_core.__path__)}
    allowed = packages - set(forbidden) - {"kode_core.engines"} | {"kode_core.engines.record"}
    assert named == allowed


def test_modules_are_short() -> None:
    """A module of the core, of a plugin or of the suite has at most about 400 lines."""
    folders = (ROOT / "kode_core", *ROOT.glob("plugins/*/kode_*"), ROOT / "conformance/kode_conformance")
    assert len(folders) > 10
    long = {
        str(path.relative_to(ROOT)): lines
        for folder in folders
        for path in folder.rglob("*.py")
        if (lines := path.read_text().count("\n")) > 420 and path.parts[-3:-1] != ("sync", "methods")  # generated
    }
    assert long == {}


def test_an_import_loads_no_driver() -> None:
    """``import kode_core`` loads no backend, no driver and no tool of the command line."""
    code = "import sys, kode_core; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    unwanted = {"sqlite3", "aiosqlite", "asyncpg", "motor", "pymongo", "aioboto3", "kode_sqlite", "typer", "rich"}
    assert unwanted & set(loaded) == set()
    assert {"kode_core", "msgspec"} <= set(loaded)


def test_stores_can_be_imported_from_the_core() -> None:
    """Every store for direct use, also of a distribution of its own, which is imported when it is asked for."""
    from kode_core import DynamoDBStore, JsonStore, MemoryStore, MongoStore, PostgresStore, SqliteStore

    stores = (DynamoDBStore, JsonStore, MemoryStore, MongoStore, PostgresStore, SqliteStore)
    assert all(issubclass(store, kode_core.ExtendedStore) for store in stores)
    assert {store.__name__ for store in stores} <= set(dir(kode_core))
    script = "import sys, kode_core as k; dir(k); print([m for m in sys.modules if m[:5] == 'kode_' and '.' not in m])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "['kode_core']"


def test_a_store_whose_distribution_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is an ImportError that names what to install, and dir() does not offer it."""
    monkeypatch.setitem(kode_core._STORES, "AcmeStore", ("kode_acme_that_is_not_there", "kode-acme"))
    with pytest.raises(ImportError, match="AcmeStore comes with kode-acme.*pip install kode-acme"):
        from kode_core import AcmeStore  # type: ignore[attr-defined]  # noqa: F401
    assert "AcmeStore" not in dir(kode_core)
    with pytest.raises(AttributeError, match="has no attribute 'NoStore'"):
        _ = kode_core.NoStore  # type: ignore[attr-defined]


@pytest.mark.parametrize("protocol", [kode_core.Store, kode_core.QueryableStore, kode_core.ExtendedStore])
def test_an_incomplete_store_cannot_be_made(protocol: Any) -> None:
    """A subclass of a protocol that leaves methods out is told which; nothing of it would return None and lose data."""

    async def load_messages(self: Any, agent_id: str) -> list[Any]:
        return []

    partial = type("Partial", (protocol,), {"load_messages": load_messages})
    with pytest.raises(TypeError, match=r"abstract class Partial .*append_event.*save_messages"):
        partial()


def test_a_store_by_its_methods_is_a_store() -> None:
    """A class that only has the methods is a store as well."""
    names = [name for name, _ in inspect.getmembers(kode_core.Store, inspect.isfunction) if not name.startswith("_")]
    duck = type("Duck", (), {name: lambda self: None for name in names})
    assert isinstance(duck(), kode_core.Store)
    assert not isinstance(duck(), kode_core.ExtendedStore)
