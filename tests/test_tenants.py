"""Views of tenants: names and ids, errors, closing, layers, observers, the synchronous store, and the command line."""

from __future__ import annotations

import asyncio
import gc
import inspect
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
from kode_conformance.values import samples

from kode_core import (
    ConfigurationError,
    ExtendedStore,
    InvalidArgumentError,
    LockUnavailableError,
    MemoryStore,
    ScopedStore,
    StoreBusyError,
    StoreClosedError,
    UnsupportedError,
    create_extended_store,
    full_agent_id,
    tenant_of,
)
from kode_core.batch import DocKind, Found
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.operation import Operation
from kode_core.query import RowQuery, SessionQuery
from kode_core.store.scope import ScopedEngine
from kode_core.sync import open_store
from kode_core.tenants import prefix_of

STORES = ("memory", "json", "sqlite", "hybrid")


def opened(kind: str, folder: Path, **options: Any) -> Any:
    if kind == "memory":
        return create_extended_store(type="memory", **options)
    if kind == "json":
        return create_extended_store(type="json", base_dir=str(folder / "json"), **options)
    more = {"file_store_base_dir": str(folder / "files")} if kind == "hybrid" else {}
    return create_extended_store(type="sqlite", db_path=str(folder / "agents.db"), **more, **options)


# --- names and ids ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tenant", ["acme", "a/b", "..", "@x", "é", "a b\n'", "%41", "x" * 128, "😀" * 10])
@pytest.mark.parametrize("agent_id", ["a", "@b/c", "x/y/../z", "'\n", "@", "@/", "ü" * 30])
def test_a_full_id_has_its_tenant_and_id(tenant: str, agent_id: str) -> None:
    full = full_agent_id(tenant, agent_id)
    assert tenant_of(full) == (tenant, agent_id)
    assert full.startswith(prefix_of(tenant))


@pytest.mark.parametrize("other", ["a", "@a", "@a/", "@/a", "@a b/c", "@%41/c", "@%zz/c", "@%ff/c", "a/@b/c", "@é/a"])
def test_other_ids_have_no_tenant(other: str) -> None:
    assert tenant_of(other) is None


def test_no_prefix_begins_with_another_one() -> None:
    prefixes = [prefix_of(name) for name in ("a", "a/", "a/b", "a%", "a%2F", "a.", "A", "@a", "é", "e\u0301")]
    assert not [(one, two) for one in prefixes for two in prefixes if one != two and two.startswith(one)]


# --- every verb -------------------------------------------------------------------------------------------------------


def test_a_scope_has_every_verb_and_no_other_one() -> None:
    """A verb that an engine gains must be written down for scopes: by itself it does not exist there."""
    wanted = {name for name in vars(Layer) if not name.startswith("_")} - {"around", "connection_use", "finds_within"}
    assert wanted <= {name for name in dir(ScopedEngine) if not name.startswith("_")}
    assert not issubclass(ScopedEngine, Layer)
    assert isinstance(ScopedEngine(_engine(), "t", is_owner=False), Engine)


def _engine() -> Any:
    from kode_core.backends.memory.engine import MemoryEngine, MemorySpace

    return MemoryEngine(MemorySpace())


class _Ids(Layer):
    """Notes the ids that reach the engine, and fails or leaves out on demand."""

    seen: list[str]
    fails = False

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.seen = []

    async def around(self, verb: str, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else None
        if isinstance(first, str) and verb != "agent_ids":
            self.seen.append(first)
        if self.fails and verb == "rows":
            raise StoreBusyError(f"agent {args[0]!r} is kept locked, and so is '{args[0]}'")
        result = await call(*args, **kwargs)
        return Found(result, [f"message 3 of agent {'@acme/a'!r}"]) if verb == "find_rows" else result


async def test_errors_and_names_of_damaged_records_have_the_ids_of_the_view() -> None:
    layers: list[_Ids] = []

    def make(engine: Engine) -> Engine:
        layers.append(_Ids(engine))
        return layers[-1]

    async with create_extended_store(type="memory", layers=[make]) as store:
        assert isinstance(store, ScopedStore)
        view = store.scoped("acme")
        await view.append_messages("a", samples.messages(2))
        await view.append_messages("x@acme/y", samples.messages(1))
        assert (await view.query_messages()).left_out == ("message 3 of agent 'a'",)
        layers[0].fails = True
        with pytest.raises(StoreBusyError) as caught:
            await view.load_messages("a")
        assert str(caught.value) == "agent 'a' is kept locked, and so is 'a'"
        with pytest.raises(StoreBusyError, match="agent 'x@acme/y' is"):
            await view.load_messages("x@acme/y")
        layers[0].fails = False
        async with view.acquire_agent_lock("a"):
            with pytest.raises(LockUnavailableError) as locked:
                await store.scoped("acme").acquire_agent_lock("a")
        assert locked.value.agent_id == "a"
        assert "@" not in str(locked.value)
        assert {tenant_of(one) for one in layers[0].seen} == {("acme", "a"), ("acme", "x@acme/y")}


# --- closing, memory, layers, observers -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STORES)
async def test_a_view_need_not_be_closed(kind: str, tmp_path: Path) -> None:
    """A thousand views, each dropped after a call, warn of nothing and hold nothing; what they wrote is there."""
    async with opened(kind, tmp_path) as store:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for i in range(200):
                await store.scoped(f"t{i % 7}").append_event(f"a{i}", samples.event(i))
            gc.collect()
        assert len(store._context._views) < 10
        assert [len(await store.scoped(f"t{i}").list(include_without_info=True)) for i in range(7)] == [29] * 4 + [
            28
        ] * 3
        assert await store.list("@t3/", include_without_info=True) == sorted(f"@t3/a{i}" for i in range(3, 200, 7))
    with pytest.raises(StoreClosedError):
        store.scoped("late")


async def test_closing_the_store_waits_for_writes_of_views_whose_callers_left(tmp_path: Path) -> None:
    store = await opened("sqlite", tmp_path)
    writes = [
        asyncio.ensure_future(store.scoped(f"t{i}").save_messages("a", samples.messages(3_000))) for i in range(5)
    ]
    await asyncio.sleep(0.01)
    for write in writes:
        write.cancel()
    await store.close()
    async with opened("sqlite", tmp_path) as again:
        counts = [await again.scoped(f"t{i}").count_messages() for i in range(5)]
    assert set(counts) <= {0, 3_000}


async def test_a_store_and_its_views_share_their_memory() -> None:
    """What a view has written, the store saves again without reading it, within one limit for all (OPS-14)."""
    async with MemoryStore(memory_limit_bytes=300_000) as store:
        for i in range(50):
            await store.scoped(f"t{i}").save_messages("a", samples.messages(50))
        assert 0 < store._memory.size <= 300_000
        assert store._memory.get("@t49/a", next(iter(_lists()))) is not None


def _lists() -> Any:
    from kode_core.batch import ListKind

    return ListKind


async def test_observers_see_the_tenant_and_the_id_in_it(tmp_path: Path) -> None:
    seen: list[Operation] = []
    async with opened("sqlite", tmp_path, observers=[seen.append]) as store:
        await store.scoped("acme").append_messages("a", samples.messages(3))
        await store.append_messages("a", samples.messages(1))
    first, second = seen
    assert (first.tenant, first.agent_id, first.rows) == ("acme", "a", 3)
    assert (second.tenant, second.agent_id, second.rows) == (None, "a", 1)
    assert first.store.startswith("tenant 'acme' of sqlite")


async def test_a_store_may_be_opened_as_one_tenant(tmp_path: Path) -> None:
    """The option ``tenant`` opens a scope that owns its engine."""
    async with opened("sqlite", tmp_path, tenant="acme") as one, opened("sqlite", tmp_path) as whole:
        await one.append_messages("a", samples.messages(1))
        assert await whole.scoped("acme").load_messages("a") == samples.messages(1)
        with pytest.raises(UnsupportedError, match="tenant 'acme' alone"):
            one.scoped("inner")
        with pytest.raises(UnsupportedError, match="all tenants"):
            await one.backup(tmp_path / "copy")
        assert not (tmp_path / "copy").exists()
    for wrong in ("", "a\0", "x" * 129, 5):
        with pytest.raises(ConfigurationError, match="tenant"):
            await opened("sqlite", tmp_path, tenant=wrong)


async def test_an_engine_without_ranges_has_no_scopes() -> None:
    """Such a store refuses every call of a view, and goes on itself."""

    class Old(Layer):
        finds_within = False  # type: ignore[assignment]

    async with create_extended_store(type="memory", layers=[Old]) as store:
        assert isinstance(store, ScopedStore)
        view = store.scoped("acme")
        for call in (view.load_messages("a"), view.append_messages("a", samples.messages(1)), view.list()):
            with pytest.raises(UnsupportedError, match="has no scopes"):
                await call
        assert (await view.health_check()).healthy is False
        await store.append_messages("a", samples.messages(1))


class _Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    "tenant", ["", None, 5, b"acme", _Text("acme"), "\ud800", "a\0", "é" * 22, ["acme"], "x" * 10**6]
)
async def test_wrong_tenants_are_refused(tenant: Any) -> None:
    async with MemoryStore() as store:
        with pytest.raises(InvalidArgumentError, match="tenant must"):
            store.scoped(tenant)


# --- every method -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", STORES)
async def test_a_million_of_others_are_not_read(kind: str, tmp_path: Path) -> None:
    """Queries of a view pass the engine rows of its own tenant alone, whatever the order."""
    seen: list[str] = []

    class Found(Layer):
        async def find_rows(self, query: Any) -> Any:
            rows = await super().find_rows(query)
            seen.extend(row.agent_id for row in rows)
            return rows

        async def find_sessions(self, query: Any) -> Any:
            rows = await super().find_sessions(query)
            seen.extend(row.agent_id for row in rows)
            return rows

    async with opened(kind, tmp_path, layers=[Found]) as store:
        for tenant in ("a", "acme", "acmf", "b"):
            for i in range(5):
                view = store.scoped(tenant)
                await view.save_info(f"{i}", samples.info(f"{i}"))
                await view.append_messages(f"{i}", samples.messages(3))
        view = store.scoped("acme")
        for order in ("asc", "desc"):
            assert len([m async for m in view.iter_messages(order=order)]) == 15
            assert [s.agent_id async for s in view.iter_sessions(order=order, sort_by="message_count")]
        assert await view.count_messages(role="user") + await view.count_messages(role="assistant") == 15
        assert {tenant_of(one)[0] for one in seen if tenant_of(one)} == {"acme"}  # type: ignore[index]


# --- other ways in ----------------------------------------------------------------------------------------------------


def test_the_synchronous_store_has_views(tmp_path: Path) -> None:
    with open_store(type="sqlite", db_path=str(tmp_path / "agents.db")) as store:
        view = store.scoped("acme")
        view.append_messages("a", samples.messages(2))
        with view.acquire_agent_lock("a"), store.acquire_agent_lock("a"):
            view.append_messages("a", samples.messages(1))
        assert [m.agent_id for m in view.iter_messages()] == ["a"] * 3
        assert store.list(include_without_info=True) == ["@acme/a"]
        with pytest.raises(InvalidArgumentError, match="tenant must"):
            store.scoped("")
        with pytest.raises(UnsupportedError):
            view.scoped("inner")
        other = store.scoped("acme")
        view.close()
        view.close()
        with pytest.raises(StoreClosedError):
            view.load_messages("a")
        assert len(other.load_messages("a")) == 3
    with pytest.raises(StoreClosedError):
        other.load_messages("a")
    other.close()


def kode(*args: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "kode_core.cli", *args], capture_output=True, text=True, cwd=cwd)


async def test_the_command_line_sees_one_tenant(tmp_path: Path) -> None:
    async with opened("sqlite", tmp_path) as store:
        for name in ("acme", "other"):
            await store.scoped(name).save_info("a", samples.info("a"))
            await store.scoped(name).append_messages("a", samples.messages(2))
    where = ("--store", "sqlite:///agents.db")
    found = await asyncio.to_thread(lambda: kode(*where, "--tenant", "acme", "sessions", "--json", cwd=tmp_path))
    assert [s["agentId"] for s in json.loads(found.stdout)["sessions"]] == ["a"]
    deleted = await asyncio.to_thread(lambda: kode(*where, "--tenant", "acme", "delete", "a", "--yes", cwd=tmp_path))
    assert deleted.returncode == 0, deleted.stderr
    (tmp_path / "kode.toml").write_text('[stores.default]\nurl = "sqlite:///agents.db"\ntenant = "other"\n')
    listed = await asyncio.to_thread(lambda: kode("sessions", "--json", cwd=tmp_path))
    assert [s["agentId"] for s in json.loads(listed.stdout)["sessions"]] == ["a"]
    for wrong in ("", "\0"[:0] or "x" * 129):
        refused = await asyncio.to_thread(lambda: kode(*where, "--tenant", wrong, "sessions", cwd=tmp_path))  # noqa: B023
        assert refused.returncode == 2
        assert "tenant" in refused.stderr
        assert "Traceback" not in refused.stderr


async def test_queries_of_engines_have_ranges() -> None:
    """The range of a tenant ends before the next character after its slash."""
    engine = _engine()
    scope = ScopedEngine(engine, "t", is_owner=True)
    assert scope._query(SessionQuery()).agent_id.end == "@t0"  # type: ignore[union-attr]
    query = scope._query(RowQuery(kind="messages", agent_id=("a", "b"), after=(1, "a", 2)))
    assert (query.agent_id, query.after) == (("@t/a", "@t/b"), (1, "@t/a", 2))
    assert await scope.docs("a", DocKind.TODOS) == []
    await scope.close()


def test_the_view_has_the_methods_of_the_protocol() -> None:
    promised = [name for name, _ in inspect.getmembers(ExtendedStore, inspect.isfunction) if not name.startswith("_")]
    assert all(hasattr(MemoryStore().scoped("t"), name) for name in promised)
