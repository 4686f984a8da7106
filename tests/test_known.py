"""Ids that no agent has: they are looked for in a range, however many ids begin like them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import ParamSpec, TypeVar

import pytest
from kode_conformance.values import samples

from kode_core import AgentNotFoundError, Message, create_extended_store
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.cli.known import is_known, require_agent
from kode_core.engine import Engine
from kode_core.ids import can_begin
from kode_core.layers import Layer
from kode_core.query import Within
from kode_core.store.facade import EngineStore

P = ParamSpec("P")
T = TypeVar("T")

AGENTS = 1_200


class Counted(Layer):
    """Counts the ids and sessions that reads of many agents give."""

    finds_within = True
    found = 0

    async def around(self, verb: str, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        result = await call(*args, **kwargs)
        if verb in ("agent_ids", "stored_ids", "find_sessions"):
            self.found += len(result)  # type: ignore[arg-type]
        return result


class Old(Counted):
    """Finds no ranges of agents."""

    finds_within = False


COUNTED = Counted(MemoryEngine())


@pytest.fixture(params=[None, "t"])
async def store(request: pytest.FixtureRequest) -> AsyncIterator[EngineStore]:
    """A store of many agents whose ids begin alike, or a view of one."""

    async def opened() -> Engine:
        return COUNTED

    COUNTED.inner = MemoryEngine()
    async with EngineStore(opened) as whole:
        view = whole if request.param is None else whole.scoped(request.param)
        for n in range(AGENTS):
            await view.save_info(f"agt-{n:04}", samples.info(f"agt-{n:04}"))
        await view.save_messages("half", [Message.user("x")])
        COUNTED.found = 0
        yield view


async def test_an_id_is_looked_for_in_a_range(store: EngineStore) -> None:
    """An id that begins all others, one in the middle, one after all, and one without info."""
    for agent_id in ("a", "agt-", "agt-0000x", "agt-9", "zzz", "hal", "half ", "\U0010ffff" * 64):
        assert not await is_known(store, agent_id)
    for agent_id in ("agt-0000", "agt-1199", "half"):
        assert await is_known(store, agent_id)
    assert COUNTED.found < 40


async def test_a_near_id_is_looked_for_among_a_thousand(store: EngineStore) -> None:
    """Of the ids that begin alike, a page is read, and of all ids another one."""
    with pytest.raises(AgentNotFoundError, match="did you mean 'agt-0990'"):
        await require_agent(store, "agt-09900")
    assert COUNTED.found < 1_100
    with pytest.raises(AgentNotFoundError, match="no agent 'a' in this store: save_info"):
        await require_agent(store, "a")
    assert COUNTED.found < 3_400


async def test_an_engine_without_ranges_has_near_ids() -> None:
    """They are looked for among the agents that changed last."""

    async def opened() -> Engine:
        return Old(MemoryEngine())

    async with EngineStore(opened) as old:
        await old.save_info("agt-0001", samples.info("agt-0001"))
        with pytest.raises(AgentNotFoundError, match="did you mean 'agt-0001'"):
            await require_agent(old, "agt-00011")


def test_no_id_begins_with_a_longer_text() -> None:
    """Engines that bound the length of a key, as DynamoDB does, are not asked for such a range."""
    assert can_begin("x" * 300) and can_begin("\U0010ffff" * 75)
    for text in ("x" * 301, "\U0010ffff" * 76, "\0", "\ud800"):
        assert not can_begin(text)


@pytest.mark.parametrize("url", ["memory:", "json:///store", "sqlite:///a.db"])
@pytest.mark.parametrize(
    "prefix", ["x" * 301, "\U0010ffff" * 75, "a\0", "a\ud800"], ids=["long", "last", "nul", "surrogate"]
)
async def test_a_range_that_no_id_can_be_in_is_empty(url: str, prefix: str) -> None:
    """Nothing is found, in a view of a tenant, too, where the prefix has the tenant in front."""
    async with create_extended_store(url) as store:
        view = store.scoped("t" * 40)
        for one in (store, view):
            await one.save_turn("a", messages=samples.messages(1), info=samples.info("a"))
            for within in (Within(prefix), Within("b")):
                assert list(await one.query_sessions(agent_id=within)) == []
                assert list(await one.query_messages(agent_id=within)) == []
                assert await one.count_sessions(agent_id=within) == 0
                assert await one.group_messages("day", agent_id=within) == []


def test_the_end_of_a_range_is_above_all_ids() -> None:
    """It is no longer than an engine can index; there is no least text above ids that begin with the last character."""
    last = "\U0010ffff"
    assert "a" < Within("a").end <= "b"
    for prefix in (last, last * 75):
        assert last * 75 < Within(prefix).end
        assert len(Within(prefix).end.encode()) <= 304
