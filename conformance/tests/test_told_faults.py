"""A finding names the fault of the store, and not a similar one."""

from __future__ import annotations

from typing import Any

import pytest
from kode_conformance import Violation
from kode_conformance.kills.random_kills import AGENT, whole_turns
from kode_conformance.kills.writes import write_on
from kode_conformance.processes.scripts import write_turns
from kode_conformance.values import samples

from kode_core import MemoryStore


class HidesEvents:
    """A store whose log loses its first event as soon as there is another one."""

    def __init__(self, store: MemoryStore) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def read_events(self, agent_id: str) -> Any:
        found = [event async for event in self._store.read_events(agent_id)]
        for event in found if len(found) < 2 else found[1:]:
            yield event


async def test_a_turn_that_was_written_twice_is_no_half_turn() -> None:
    """Two copies of a turn's messages are called copies, and not a turn of which a part is missing."""
    async with MemoryStore() as store:
        await write_turns(store, AGENT, 0, 2)
        assert await whole_turns(store, "here") == 2
        await store.append_messages(AGENT, (await store.load_messages(AGENT))[-2:])

        with pytest.raises(Violation, match="here: a turn is stored more than once: 'turn 1 question'"):
            await whole_turns(store, "here")


async def test_offsets_of_a_log_are_all_shown() -> None:
    """An event that is gone shows in the offsets that the finding prints, not only in those before it."""
    async with MemoryStore() as store:
        first = await store.append_event("a", samples.event(1))

        with pytest.raises(Violation) as told:
            await write_on(HidesEvents(store), "a", 7)  # type: ignore[arg-type]

    offset = first + 1
    assert f"appended at {offset}, after [{first}]; then the log had the offsets [{offset}]" in str(told.value)
