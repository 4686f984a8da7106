"""The session and the version of an agent, and changes of its info that lose no change of another writer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import asdict, replace

from kode_core.batch import AgentSummary, Applied, Fence, Info
from kode_core.errors import AgentNotFoundError, ConflictError, InvalidArgumentError
from kode_core.jsonvalue import type_name
from kode_core.metadata import elements_of, mapping_of
from kode_core.model import AgentInfo
from kode_core.pace import Pace
from kode_core.query import Session
from kode_core.store.context import Context
from kode_core.store.reader import decoded_info, session_in
from kode_core.store.rows import info_of
from kode_core.store.versions import unchanged, version_of
from kode_core.store.writer import Writer, until_written

__all__ = ["Sessions"]


class Sessions:
    """Reads sessions and versions, and creates and changes infos."""

    def __init__(self, context: Context, writer: Writer) -> None:
        self._context = context
        self._writer = writer

    async def load(self, agent_id: str) -> Session | None:
        """The agent's session; None without info."""
        summary = await self._context.engine.summary(agent_id)
        session = await session_in(summary, Pace())
        if summary is None or session is None:
            return None
        return Session(**asdict(session), tool_call_count=summary.tool_calls.count, version=version_of(summary))

    async def version(self, agent_id: str) -> str:
        """The agent's version."""
        return version_of(await self._context.engine.summary(agent_id))

    async def create(self, agent_id: str, fence: Fence | None, info: AgentInfo) -> None:
        """Save the info of an agent that has none."""
        written = await info_of(agent_id, info)

        async def attempt(_: int) -> Info | None:
            summary = await self._context.engine.summary(agent_id)
            if summary is not None and summary.info is not None:
                await self._writer.check_held(agent_id, fence)
                raise ConflictError(agent_id, version_of(summary), "it has an info already")
            return await self._committed(agent_id, summary, fence, written)

        async with self._writer.in_turn(agent_id):
            await until_written(attempt)

    async def update_info(
        self, agent_id: str, fence: Fence | None, metadata: Mapping[str, Any], remove: Sequence[str]
    ) -> AgentInfo:
        """Set and remove keys of the metadata; returns the info as it is stored then."""
        changes, gone = _checked(metadata, remove)

        async def attempt(_: int) -> AgentInfo | None:
            summary = await self._context.engine.summary(agent_id)
            if summary is None or summary.info is None:
                await self._writer.check_held(agent_id, fence)
                raise AgentNotFoundError(agent_id)
            info = await decoded_info(agent_id, summary.info.body, Pace())
            merged = {**{key: value for key, value in info.metadata.items() if key not in gone}, **changes}
            changed = replace(info, metadata=merged)
            if await self._committed(agent_id, summary, fence, await info_of(agent_id, changed)) is None:
                return None
            return replace(changed, message_count=summary.messages.count)

        async with self._writer.in_turn(agent_id):
            return await until_written(attempt)

    async def _committed(
        self, agent_id: str, summary: AgentSummary | None, fence: Fence | None, info: Info
    ) -> Info | None:
        """Write *info* if the agent is still as *summary* says; None if it is not."""
        batch = self._context.batch(agent_id, fence=fence, info=info, **unchanged(summary))
        return info if isinstance(await self._context.commit(batch), Applied) else None


def _checked(metadata: object, remove: object) -> tuple[dict[str, Any], frozenset[str]]:
    changes = mapping_of(metadata, "metadata")
    gone = elements_of(remove, "remove", "a list of keys", (list, tuple, set, frozenset))
    for key in gone:
        if type(key) is not str:
            raise InvalidArgumentError(f"remove must be a list of str, got {type_name(type(key))} in it")
    both = sorted(set(gone) & set(changes))
    if both:
        raise InvalidArgumentError(f"metadata sets the key {both[0]!r:.80} and remove removes it: do one of the two")
    return changes, frozenset(gone)
