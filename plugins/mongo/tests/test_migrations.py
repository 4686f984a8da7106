"""A store that version 1 made gets the indexes of this version when it is opened, however long they take to make."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest
from kode_conformance.servers import had
from kode_conformance.values import samples
from kode_mongo import MongoStore, migrations
from kode_mongo.options import MongoOptions
from kode_mongo.schema import INDEXES, ITEMS, META, SCHEMA_VERSION, script
from kode_mongo.testing.servers import LocalServer, Server

from kode_core.errors import SchemaVersionError, StoreClosedError, StoreReadOnlyError, StoreUnavailableError
from plugins.mongo.tests.mongosh import run_in_mongosh

VERSION_1: Final = (Path(__file__).parent / "version_1.js").read_text()
"""The indexes of version 1, as it printed them. Never made anew."""
OPEN: Final = """
import asyncio, sys
from kode_mongo import MongoStore

async def main():
    async with MongoStore(sys.argv[1], database=sys.argv[2], command_timeout_millis=300, timeout_ms=2000) as store:
        print(len(await store.load_messages("a0")))

asyncio.run(main())
"""
"""A process that opens the store and reads."""
SOON: Final[dict[str, Any]] = {"command_timeout_millis": 500, "connection_timeout_millis": 3_000, "timeout_ms": 4_000}


async def make_old(server: Server, database: str) -> None:
    """Write what version 1 wrote, with its indexes only: documents are the same since."""
    async with MongoStore(server.uri, database=database) as store:
        for n in range(5):
            calls = [samples.tool_call(i, name="fs_read") for i in range(4)]
            await store.save_turn(f"a{n}", append=samples.rich_messages(), tool_calls=calls, events=samples.events(9))
    with server.client() as client:
        for name in client[database].list_collection_names():
            client[database][name].drop_indexes()
        client[database][f"kode_{META}"].delete_one({"_id": "schema"})
        run_in_mongosh(client[database], VERSION_1)
        assert client[database][f"kode_{META}"].find_one({"_id": "schema"}) == {"_id": "schema", "version": 1}


@pytest.fixture
async def old(server: Server, database: str) -> str:
    """The name of a database that version 1 made."""
    await make_old(server, database)
    return database


def indexes(server: Server, database: str) -> dict[str, Any]:
    """The indexes of each collection."""
    with server.client() as client:
        names = client[database].list_collection_names()
        return {name: client[database][name].index_information() for name in names}


def version_of(server: Server, database: str) -> int:
    with server.client() as client:
        found = client[database][f"kode_{META}"].find_one({"_id": "schema"})
    return int(found["version"]) if found else 0


async def see_all(store: MongoStore) -> None:
    """See that all that version 1 wrote is read, found and written on."""
    assert len(await store.load_messages("a0")) == len(samples.rich_messages())
    assert len(await store.query_messages(role="system")) == 5
    assert len(await store.query_messages(content_type="image", agent_id="a3")) == 1
    assert len(await store.query_tool_calls(is_error=False)) == 20
    channels = [event.event.channel async for event in store.read_events("a1", channel="monitor")]
    assert channels == [event.event.channel for event in samples.events(9) if event.event.channel == "monitor"]
    await store.append_messages("a0", samples.messages(1))
    assert (await store.check_consistency()).consistent


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
async def test_a_store_of_version_1(server: Server, old: str, driver: Any) -> None:
    """All is read as before, and the indexes are those of a new store; a second opening changes nothing."""
    async with MongoStore(server.uri, database=old, driver=driver) as store:
        await see_all(store)
    found = indexes(server, old)
    async with MongoStore(server.uri, database=f"{old}_new"):
        pass
    new = indexes(server, f"{old}_new")
    with server.client() as client:
        client.drop_database(f"{old}_new")
    assert found == new
    assert version_of(server, old) == SCHEMA_VERSION
    async with MongoStore(server.uri, database=old, driver=driver, create=False) as store:
        await store.load_messages("a0")


async def test_many_at_once(server: Server, old: str) -> None:
    """Ten stores that open it at once all succeed, and each index is made once."""
    stores = [MongoStore(server.uri, database=old, driver=("motor", "pymongo")[n % 2]) for n in range(10)]  # type: ignore[arg-type]
    await asyncio.gather(*(store.open() for store in stores))
    await see_all(stores[0])
    await asyncio.gather(*(store.close() for store in stores))
    assert sum(len(found) for found in indexes(server, old).values()) == len(INDEXES) + 4


async def test_the_printed_commands(server: Server, old: str) -> None:
    """Without the permission of its options a store names the command, and changes nothing; then it opens."""
    before = indexes(server, old)
    with pytest.raises(StoreUnavailableError, match=r"version 1 and create is off; .*kode schema 'mongo:.*' --print"):
        await MongoStore(server.uri, database=old, create=False).open()
    assert (indexes(server, old), version_of(server, old)) == (before, 1)
    with server.client() as client:
        run_in_mongosh(client[old], script(MongoOptions(database=old)))
    async with MongoStore(server.uri, database=old, create=False) as store:
        await see_all(store)


async def test_a_user_who_may_not_make_indexes(server: Server, old: str) -> None:
    """The error names the command that somebody else has to run; then the user works."""
    actions = ["find", "insert", "update", "remove"]
    allowed = [{"resource": {"db": old, "collection": ""}, "actions": actions}]
    with server.client() as client:
        client[old].command("createRole", "writer", privileges=allowed, roles=[])
        client[old].command("createUser", "limited", pwd="pw", roles=["writer"])
        mine = server.uri.replace(server.uri.split("//")[1].split("@")[0], "limited:pw").replace("=admin", f"={old}")
        with pytest.raises(StoreReadOnlyError, match="of version 1, and the user lacks the right .* --print"):
            await MongoStore(mine, database=old).open()
        run_in_mongosh(client[old], script(MongoOptions(database=old)))
        async with MongoStore(mine, database=old) as store:
            await see_all(store)
        client[old].command("dropUser", "limited")
        client[old].command("dropRole", "writer")


async def test_a_newer_version_is_refused(server: Server, old: str) -> None:
    """And nothing is changed."""
    before = indexes(server, old)
    with server.client() as client:
        client[old][f"kode_{META}"].update_one({"_id": "schema"}, {"$set": {"version": SCHEMA_VERSION + 1}})
    with pytest.raises(SchemaVersionError, match=f"has schema {SCHEMA_VERSION + 1}, and .* up to {SCHEMA_VERSION}"):
        await MongoStore(server.uri, database=old).open()
    assert indexes(server, old) == before


async def test_a_server_that_is_too_old(server: Server, old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its conditions of indexes cannot say what is rare: the error says which server can."""
    monkeypatch.setattr(migrations, "_OLDEST", 1_000)
    with pytest.raises(StoreUnavailableError, match=r"needs MongoDB 6\.0"):
        await MongoStore(server.uri, database=old).open()


# --- Indexes that take longer than a call may -------------------------------------------------------------------------


class HaltingServer(LocalServer):
    """A server whose making of indexes can be held up."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--setParameter", "enableTestCommands=1"]

    @contextmanager
    def halted(self) -> Iterator[Any]:
        """Inside, no index of a collection that is not empty becomes ready; gives a client."""
        with self.client() as client:
            hold = {"configureFailPoint": "hangAfterStartingIndexBuild"}
            client.admin.command({**hold, "mode": "alwaysOn"})
            try:
                yield client
            finally:
                client.admin.command({**hold, "mode": "off"})


@pytest.fixture(params=[False, True], ids=["set", "standalone"])
def halting(request: pytest.FixtureRequest) -> Iterator[HaltingServer]:
    with had(lambda: HaltingServer(standalone=request.param)) as server:
        yield server


def waiting(client: Any) -> list[Any]:
    """The commands that wait for indexes, also those whose client left. Of long ones the server shows the beginning."""
    found = client.admin.command("currentOp")["inprog"]
    return [op for op in found if "createIndexes" in str(op.get("command")) and "connectionId" in op]


def is_made(client: Any, database: str) -> bool:
    """Whether the server makes indexes of items."""
    stats = client[database].command("collStats", f"kode_{ITEMS}")
    return bool(stats.get("indexBuilds"))


async def until_made(client: Any, database: str) -> None:
    async with asyncio.timeout(30):
        while not await asyncio.to_thread(is_made, client, database):
            await asyncio.sleep(0.05)


@pytest.mark.parametrize("driver", ["motor", "pymongo"])
async def test_no_time_limit_ends_it(halting: HaltingServer, driver: Any) -> None:
    """Openers wait beyond the time limits of calls and of opening, with one command each; then all are open."""
    await make_old(halting, "old")
    stores = [MongoStore(halting.uri, database="old", driver=driver, **SOON) for _ in range(3)]
    with halting.halted() as client:
        opening = asyncio.gather(*(store.open() for store in stores))
        reading = asyncio.ensure_future(stores[0].load_messages("a0"))
        await until_made(client, "old")
        end = time.monotonic() + 6
        while time.monotonic() < end:
            assert not opening.done()
            await asyncio.sleep(0.2)
        assert not reading.done()
        assert 0 < len(await asyncio.to_thread(waiting, client)) <= len(stores)
        assert version_of(halting, "old") == 1
    await opening
    assert len(await reading) == len(samples.rich_messages())
    await see_all(stores[1])
    assert version_of(halting, "old") == SCHEMA_VERSION
    await asyncio.gather(*(store.close() for store in stores))


async def test_a_process_that_is_killed(halting: HaltingServer) -> None:
    """The server goes on with what a process began that was killed, and the next one waits for that."""
    await make_old(halting, "old")
    with halting.halted() as client:
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", OPEN, halting.uri, "old")
        await until_made(client, "old")
        process.kill()
        await process.wait()
        store = MongoStore(halting.uri, database="old", **SOON)
        opening = asyncio.ensure_future(store.open())
        await asyncio.sleep(1)
        assert not opening.done()
        assert await asyncio.to_thread(is_made, client, "old")
    await opening
    await see_all(store)
    await store.close()


async def test_closing_ends_it(halting: HaltingServer) -> None:
    """A store that is closed meanwhile is closed at once, and others work; the next one is opened when all is made."""
    await make_old(halting, "old")
    with halting.halted() as client:
        store = MongoStore(halting.uri, database="old", **SOON)
        opening = asyncio.ensure_future(store.open())
        await until_made(client, "old")
        async with asyncio.timeout(30):
            await store.close()
        with pytest.raises(StoreClosedError):
            await opening
    async with MongoStore(halting.uri, database="old") as store:
        await see_all(store)


async def test_a_server_that_is_killed_meanwhile(halting: HaltingServer) -> None:
    """The store that waited is told, or waits on; the next one finds the indexes, or makes them."""
    await make_old(halting, "old")
    with halting.halted() as client:
        store = MongoStore(halting.uri, database="old", connection_timeout_millis=20_000, command_timeout_millis=300)
        opening = asyncio.ensure_future(store.open())
        await until_made(client, "old")
        await asyncio.to_thread(halting.kill)
        await asyncio.to_thread(halting.start)  # without the hold, which was of the process that is gone
        await opening
    await see_all(store)
    await store.close()
    assert version_of(halting, "old") == SCHEMA_VERSION
