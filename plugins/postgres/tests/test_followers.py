"""Followers: the cost of one more does not grow with those that there are."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from typing import Any

import asyncpg
import pytest
from kode_conformance.values import samples
from kode_postgres import PostgresStore
from kode_postgres import watch as listen
from kode_postgres.engine import PostgresEngine
from kode_postgres.testing.servers import LocalServer, Server


def engine_of(store: PostgresStore) -> PostgresEngine:
    engine = store._context.engine
    assert isinstance(engine, PostgresEngine)
    return engine


class Followers:
    """Tasks that follow one agent each, and the offsets that they have seen."""

    def __init__(self, store: PostgresStore) -> None:
        self._store = store
        self.seen: dict[str, list[int]] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}

    async def begin(self, agent_id: str) -> None:
        """Begin to follow, and return when the server tells of the agent."""
        self.seen[agent_id] = []

        async def follow() -> None:
            async with aclosing(self._store.follow_events(agent_id)) as events:
                async for event in events:
                    self.seen[agent_id].append(event.offset)

        self.tasks[agent_id] = asyncio.ensure_future(follow())
        listener = engine_of(self._store)._listener
        assert listener is not None
        await until(lambda: agent_id in listener.reported)

    async def end(self, *agent_ids: str) -> None:
        tasks = [self.tasks.pop(agent_id) for agent_id in agent_ids or list(self.tasks)]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def until(question: Any) -> None:
    async with asyncio.timeout(20):
        while not question():
            await asyncio.sleep(0.005)


NOTES = """
CREATE TABLE "{0}".notes (agent_id text);
CREATE FUNCTION "{0}".note() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN INSERT INTO "{0}".notes VALUES (NEW.agent_id); RETURN NULL; END $$;
CREATE TRIGGER note AFTER INSERT OR UPDATE ON "{0}".kode_followers FOR EACH ROW EXECUTE FUNCTION "{0}".note();
"""


async def test_a_follower_is_noted_by_itself(server: Server, schema: str) -> None:
    """Sixty agents are followed one after the other, some are left and followed again: each time one row is written."""
    con = await asyncpg.connect(server.dsn)
    try:
        async with PostgresStore(server.dsn, schema=schema, follow_poll_ms=600_000) as store:
            await con.execute(NOTES.format(schema))
            followers = Followers(store)
            agents = [f"a{n}" for n in range(60)]
            for agent_id in agents:
                await followers.begin(agent_id)
            await followers.end(*agents[:20])
            for agent_id in agents[:10]:
                await followers.begin(agent_id)
            noted = [row[0] for row in await con.fetch(f'SELECT agent_id FROM "{schema}".notes')]
            assert sorted(noted) == sorted([*agents, *agents[:10]])

            await store.append_events("a5", samples.events(2))
            await store.append_events("a40", samples.events(1))
            await until(lambda: followers.seen["a5"] and followers.seen["a40"])
            assert (followers.seen["a5"], followers.seen["a40"]) == ([1, 2], [1])
            await followers.end()
    finally:
        await con.close()


async def test_they_are_noted_again_before_their_time_is_over(
    server: Server, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that are followed, and none that was left; a row has its new time in each."""
    monkeypatch.setattr(listen, "_NOTED_AGAIN_S", 0.2)
    async with PostgresStore(server.dsn, schema=schema) as store:
        followers = Followers(store)
        for agent_id in ("a", "b", "c"):
            await followers.begin(agent_id)
        await followers.end("b")
        times = f'SELECT agent_id, expires FROM "{schema}".kode_followers'
        await asyncio.sleep(0.3)
        before = dict(await server.execute(times))
        async with asyncio.timeout(20):
            while (after := dict(await server.execute(times)))["a"] == before["a"]:
                await asyncio.sleep(0.05)
        assert {agent_id for agent_id in "abc" if after[agent_id] > before[agent_id]} == {"a", "c"}
        await followers.end()


async def test_a_notification_is_looked_up(server: Server, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With many agents followed it is compared with none of them, and wakes the one that it is for."""
    async with PostgresStore(server.dsn, schema=schema, follow_poll_ms=600_000) as store:
        followers = Followers(store)
        for n in range(30):
            await followers.begin(f"a{n}")
        made = 0
        payload_of = listen.payload_of

        def counted(agent_id: str) -> str:
            nonlocal made
            made += 1
            return payload_of(agent_id)

        monkeypatch.setattr(listen, "payload_of", counted)
        for n in range(5):
            await store.append_event("a7", samples.event(n))
        await until(lambda: followers.seen["a7"] == [1, 2, 3, 4, 5])
        assert made == 0
        await followers.end()


async def test_who_follows_again_after_a_break_misses_nothing(server: Server, schema: str) -> None:
    """The connection that listens is ended: every agent that is followed is noted anew over the next one."""
    async with PostgresStore(server.dsn, schema=schema, follow_poll_ms=600_000) as store:
        followers = Followers(store)
        for agent_id in ("a", "b"):
            await followers.begin(agent_id)
        listener = engine_of(store)._listener
        assert listener is not None
        await server.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND query LIKE '%kode_followers%'"
        )
        await until(lambda: not listener.reported)
        await store.append_event("a", samples.event(1))
        await until(lambda: {"a", "b"} <= set(listener.reported))
        await store.append_event("b", samples.event(1))
        await until(lambda: followers.seen == {"a": [1], "b": [1]})
        await followers.end()


async def test_the_connection_that_listens_comes_on_top(server: Server, schema: str) -> None:
    """There are ``max`` connections for calls, and one more while somebody follows, however many do."""
    async with PostgresStore(server.dsn, schema=schema, max=2, application_name=f"on top {schema}") as store:
        followers = Followers(store)
        for n in range(5):
            await followers.begin(f"a{n}")
        await asyncio.gather(*(store.load_messages(f"a{n}") for n in range(20)))
        there = f"SELECT count(*) FROM pg_stat_activity WHERE application_name = 'on top {schema}'"
        used = (await store.get_metrics()).connections
        assert used is not None
        assert (await server.execute(there))[0][0] == used.open == 3
        assert used.most == 2
        await followers.end()


async def test_a_full_queue_of_notifications_fails_no_write() -> None:
    """A listener that stays in a transaction keeps the queue full; followed agents are written, and followed."""
    with LocalServer(settings={"max_notify_queue_pages": 64}) as small:
        con, stuck = await asyncpg.connect(small.dsn), await asyncpg.connect(small.dsn)
        try:
            async with PostgresStore(small.dsn) as store:
                followers = Followers(store)
                await followers.begin("a")
                await stuck.execute("LISTEN other")
                await stuck.execute("BEGIN")
                await stuck.execute("SELECT 1")
                with pytest.raises(asyncpg.ProgramLimitExceededError):
                    for _ in range(200):
                        await con.execute("SELECT pg_notify('other', repeat('x', 7000))")
                for n in range(3):
                    await store.append_event("a", samples.event(n))
                await until(lambda: followers.seen["a"] == [1, 2, 3])
                await followers.end()
        finally:
            await con.close()
            stuck.terminate()
