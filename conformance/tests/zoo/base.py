"""The parts of mutants and angels: three sound bases with a part replaced, and the register of mutants."""

from __future__ import annotations

import asyncio
import functools
import importlib
import os
import pkgutil
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, TypeVar, cast

from kode_conformance import Handle, Space, StoreHarness
from kode_conformance.builtin import JsonHarness
from kode_conformance.context import Context
from kode_conformance.registry import Capability, Check
from kode_conformance.settings import Tier
from kode_sqlite.engine import SqliteEngine
from kode_sqlite.options import SqliteOptions
from kode_sqlite.testing.harness import SqliteHarness

from kode_core import Store
from kode_core.backends.json_files.engine import JsonFilesEngine
from kode_core.backends.json_files.folder import Folder
from kode_core.backends.memory.engine import MemoryEngine, MemorySpace
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.opened import checked_layers
from kode_core.plugins import EngineLayer, registry
from kode_core.query import MessageQuery, RowQuery, SessionQuery, page_cursor
from kode_core.store import EngineStore

Witness = Callable[[Context], Awaitable[object]]
"""Uses a store and tells what it saw; on a mutant it sees something else than on a sound store."""

T = TypeVar("T", bound=type)

_spaces: dict[str, MemorySpace] = {}


def needs_processes(check: Check) -> bool:
    """True if the check starts processes: such checks are slow, and a part of a store does not travel to them."""
    if check.needs & Capability.CROSS_PROCESS or check.clauses[0] == "OPS-11":
        return True
    return check.run.__module__.rpartition(".")[2] in {"big_crashes", "crashes", "durability"}


class Wrapper:
    """A store around a store: it leaves every attribute that it does not define to ``inner``."""

    __slots__ = ("inner",)

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    async def __aenter__(self) -> Any:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.inner.close()


class ZooHarness(StoreHarness):
    """A sound store with ``part`` in it: a Layer around its engine, an EngineStore over it, a Wrapper around the store,
    or one of the engine's own classes."""

    part: ClassVar[type] = Layer

    def code_of(self, store: Store) -> Sequence[str]:
        """The store's own code: in this tree only the zoo, and not the suite."""
        here = Path(__file__).parent
        return [*(place for place in super().code_of(store) if not here.is_relative_to(place)), f"{here}{os.sep}"]

    async def sound(self, handle: Handle) -> Engine:
        """The engine of the base."""
        raise NotImplementedError

    async def _engine(self, handle: Handle, layers: Sequence[EngineLayer] = ()) -> Engine:
        engine = await self.sound(handle)
        if issubclass(self.part, Layer):
            engine = cast(Engine, self.part(engine))
        for layer in (*registry.layers(SqliteOptions()), *layers):
            engine = layer(engine)
        return engine

    async def open(self, handle: Handle) -> Store:
        return await self.open_with(handle)

    async def open_with(self, handle: Handle, *, layers: Any = (), **options: Any) -> Store:
        kind = self.part if issubclass(self.part, EngineStore) else EngineStore
        store = kind(functools.partial(self._engine, handle, checked_layers(layers)), **options)
        try:
            await store.open()
        except BaseException:  # a cancelled open goes on without its caller, and its store would never be closed
            await asyncio.shield(store.close())
            raise
        return cast(Store, self.part(store)) if issubclass(self.part, Wrapper) else store


class OnMemory(ZooHarness):
    """Over the memory engine. Written records survive a reopening, for as long as the process lives."""

    lacks = frozenset({"CROSS_PROCESS", "PERSISTENT"})

    async def provision(self, space: Space) -> Handle:
        _spaces[space.name] = MemorySpace()
        return {"name": space.name}

    async def sound(self, handle: Handle) -> Engine:
        return MemoryEngine(_spaces.setdefault(handle["name"], MemorySpace()))

    async def destroy(self, handle: Handle) -> None:
        _spaces.pop(handle["name"], None)


class OnJson(ZooHarness, JsonHarness):
    """Over the JSON files engine."""

    async def sound(self, handle: Handle) -> Engine:
        kind = self.part if issubclass(self.part, Folder) else Folder
        folder = kind(Path(handle["base_dir"]), durable=False, wait_ms=10_000)
        engine = JsonFilesEngine(folder)
        try:
            await engine.run(folder.open)
        except BaseException:
            await asyncio.shield(engine.close())
            raise
        return engine


class OnSqlite(ZooHarness, SqliteHarness):
    """Over the SQLite engine."""

    async def sound(self, handle: Handle) -> Engine:
        kind = self.part if issubclass(self.part, SqliteEngine) else SqliteEngine
        return await kind.open(SqliteOptions(db_path=handle["db_path"], durability="fast"))


class PlainMemory(OnMemory):
    """The memory base with nothing wrong."""

    name = "plain memory"


class PlainJson(OnJson):
    """The JSON base with nothing wrong."""

    name = "plain json"


class PlainSqlite(OnSqlite):
    """The SQLite base with nothing wrong."""

    name = "plain sqlite"


PLAIN: Final[Mapping[type[ZooHarness], type[ZooHarness]]] = {
    OnMemory: PlainMemory,
    OnJson: PlainJson,
    OnSqlite: PlainSqlite,
}


class MemoryLayer(Layer):
    """A layer that reaches into the memory engine."""

    @property
    def space(self) -> MemorySpace:
        return cast(MemoryEngine, self.inner)._space


class CommittingLayer(MemoryLayer):
    """A layer that takes the place of the commit of one batch inside the memory engine."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        plain = inner._commit
        inner._commit = lambda batch: self.committing(batch, plain)

    def committing(self, batch: Any, commit: Callable[[Any], Any]) -> Any:
        """Commit *batch*, as *commit* does it without a fault."""
        raise NotImplementedError


class StreamWrapper:
    """A stream around the stream of a follower."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        return await anext(self.inner)

    async def aclose(self) -> None:
        await self.inner.aclose()


# --- the register -----------------------------------------------------------------------------------------------------


class Mutant(NamedTuple):
    """A faulty store.

    Attributes:
        clause: the clause it breaks.
        killed_by: the check that must find it.
        wrong: its fault, in a sentence.
        source: the real store with this fault; empty for a fault that was invented for the zoo.
        raises: a part of the error's message, for a fault that is an error where none is allowed.
        also: further checks that are known to find it.
        slow: True if its check takes more than five seconds on it.
        tier: the first tier at which the check finds it.
    """

    name: str
    clause: str
    killed_by: str
    wrong: str
    source: str
    harness: type[ZooHarness]
    base: type[ZooHarness]
    witness: Witness
    raises: str = ""
    also: tuple[str, ...] = ()
    slow: bool = False
    tier: Tier = Tier.QUICK

    @property
    def plain(self) -> type[ZooHarness]:
        """The same store without the fault."""
        return next(plain for base, plain in PLAIN.items() if issubclass(self.base, base))

    @property
    def is_of_the_sdk(self) -> bool:
        """True if a store of the KODE SDK has this fault."""
        return self.source.startswith("KODE SDK")


_MUTANTS: Final[dict[str, Mutant]] = {}


def mutant(
    clause: str,
    *,
    killed_by: str,
    witness: Witness,
    source: str = "",
    on: type[ZooHarness] = OnMemory,
    raises: str = "",
    also: tuple[str, ...] = (),
    slow: bool = False,
    tier: Tier = Tier.QUICK,
) -> Callable[[T], T]:
    """Register a class as the faulty part of a store; its docstring describes the fault.

    ``killed_by`` is the name of a check of the clause, or a whole id when the check is listed under another clause.
    The harness is made as ``Class.Harness``, so that other processes find it by its spec.
    """

    def register(part: T) -> T:
        name = part.__name__
        names = {"__module__": part.__module__, "__qualname__": f"{name}.Harness", "part": part, "name": name}
        harness = type("Harness", (on,), names)
        part.Harness = harness  # type: ignore[attr-defined]
        check_id = killed_by if "." in killed_by else f"{clause}.{killed_by}"
        wrong = " ".join((part.__doc__ or "").split())
        if name in _MUTANTS or not wrong:
            raise ValueError(f"{name} needs a name of its own and a docstring that says what is wrong")
        _MUTANTS[name] = Mutant(name, clause, check_id, wrong, source, harness, on, witness, raises, also, slow, tier)
        return part

    return register


def load_mutants() -> list[Mutant]:
    """All mutants, in the order of their modules."""
    package = importlib.import_module(__name__.rpartition(".")[0])
    for module in pkgutil.iter_modules(package.__path__):
        if module.name not in ("matrix", "causes", "rounds", "worth"):
            importlib.import_module(f"{package.__name__}.{module.name}")
    return list(_MUTANTS.values())


def cursor_after(query: SessionQuery | RowQuery, key: Sequence[Any]) -> str:
    """The cursor that a store gives with a page whose last record is at *key*."""
    return page_cursor(query, (*key, 0) if isinstance(query, MessageQuery) else (*key,))
