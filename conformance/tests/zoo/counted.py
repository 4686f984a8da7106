"""Stores whose numbers of messages do not follow each change of a list (MSG-6)."""

from __future__ import annotations

from typing import Any

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import seen, the
from kode_core.model import Message
from kode_core.query import Page
from kode_core.store import EngineStore


@mutant(
    "MSG-6",
    killed_by="every_change_of_a_list_is_counted",
    source="a column message_count that append and save keep, and the statement of a pop does not",
    witness=seen(
        lambda s: s.save_turn("a", info=samples.info("a"), messages=samples.messages(5)),
        lambda s: s.pop_messages("a", 2),
        lambda s: the("message_count", s.query_sessions()),
        lambda s: s.save_messages("a", samples.messages(2)),
        lambda s: the("message_count", s.query_sessions()),
    ),
)
class CountsPoppedMessages(EngineStore):
    """Counts popped messages in the sessions of a query until the whole list is saved."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._popped: dict[str, int] = {}

    async def pop_messages(self, agent_id: str, count: int = 1, **how: Any) -> list[Message]:
        popped = await super().pop_messages(agent_id, count, **how)
        self._popped[agent_id] = self._popped.get(agent_id, 0) + len(popped)
        return popped

    async def save_messages(self, agent_id: str, messages: Any, **how: Any) -> None:
        await super().save_messages(agent_id, messages, **how)
        self._popped.pop(agent_id, None)

    async def query_sessions(self, **filters: Any) -> Any:
        page = await super().query_sessions(**filters)
        rows = [replace(row, message_count=row.message_count + self._popped.get(row.agent_id, 0)) for row in page]
        return Page(rows, page.next_cursor, page.left_out)


async def _count_of_a_fork(store: Any) -> list[int]:
    fork = await store.fork("a", length=2)
    return [(await store.load_session(fork)).message_count, (await store.load_info(fork)).message_count]


@mutant(
    "MSG-6",
    killed_by="every_change_of_a_list_is_counted",
    source="INSERT INTO agents SELECT … FROM agents: the number is copied with the row of the parent",
    witness=seen(
        lambda s: s.save_turn("a", info=samples.info("a"), messages=samples.messages(5)), lambda s: _count_of_a_fork(s)
    ),
)
class ForksHaveTheCountOfTheParent(EngineStore):
    """Gives the session of a fork of a few messages the number of messages that its parent had."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._counts: dict[str, int] = {}

    async def fork(self, agent_id: str, *target: Any, **how: Any) -> str:
        fork = await super().fork(agent_id, *target, **how)
        info = await self.load_info(agent_id)
        if info is not None and how.get("length") is not None:
            self._counts[fork] = info.message_count
        return fork

    async def load_session(self, agent_id: str) -> Any:
        session = await super().load_session(agent_id)
        count = self._counts.get(agent_id)
        return session if count is None or session is None else replace(session, message_count=count)
