"""Faults that show only after a certain change: an index or a copy that one way of writing does not update."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from kode_core.model import Message, TextBlock
from kode_core.query import Page
from kode_core.store import EngineStore

_shared: defaultdict[str, dict[str, dict[str, Any]]] = defaultdict(dict)


class Shares(EngineStore):
    """Keeps dicts that all instances of one place share."""

    def __init__(self, opener: Any, **options: Any) -> None:
        super().__init__(opener, **options)
        self._dicts = _shared[opener.args[0]["name"]]

    def shared(self, name: str) -> dict[str, Any]:
        return self._dicts.setdefault(name, {})


async def a_role_that_was_changed(ctx: Context) -> object:
    """Changes the role of a message and nothing else, and asks for the old one."""
    await ctx.store.save_messages("a", [Message("user", [TextBlock("x")])])
    await ctx.store.save_messages("a", [Message("assistant", [TextBlock("x")])])
    return [len(await ctx.store.query_messages(agent_id="a", role=role)) for role in ("user", "assistant")]


@mutant("QRY-2", killed_by="queries_after_each_change_of_a_list", witness=a_role_that_was_changed)
class IndexesContentsAnew(Shares):
    """Writes the index entry of a role only when the content of a message at its position is another one."""

    async def save_messages(self, agent_id: str, messages: Sequence[Any], *, fence: Any = None) -> None:
        await super().save_messages(agent_id, messages, fence=fence)
        old = self.shared("roles").get(agent_id, [])
        self.shared("roles")[agent_id] = [
            (m.content, old[i][1] if i < len(old) and old[i][0] == m.content else m.role)
            for i, m in enumerate(messages)
        ]

    async def query_messages(self, **filters: Any) -> Page[Any]:
        role = filters.get("role")
        if role is None or filters.get("agent_id") not in self.shared("roles"):
            return await super().query_messages(**filters)
        found = await super().query_messages(**{name: v for name, v in filters.items() if name != "role"})
        roles = self.shared("roles")[filters["agent_id"]]
        return Page(m for m in found if m.position < len(roles) and roles[m.position][1] == role)


async def a_value_of_another_type(ctx: Context) -> object:
    """Saves False where 0 was, and asks for both."""
    for value in (0, False):
        await ctx.store.save_info("a", samples.info("a", metadata={"n": value}))
    return [len(await ctx.store.query_sessions(metadata={"n": value})) for value in (0, False)]


@mutant("QRY-2", killed_by="queries_after_each_change_of_an_info", witness=a_value_of_another_type)
class ComparesMetadata(Shares):
    """Writes the index of metadata only when it is not equal to the one before: ``False == 0``."""

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await super().save_info(agent_id, info, fence=fence)
        if self.shared("indexed").get(agent_id) != info.metadata:
            self.shared("indexed")[agent_id] = info.metadata

    async def query_sessions(self, **filters: Any) -> Page[Any]:
        wanted = filters.pop("metadata", None)
        found = await super().query_sessions(**filters)
        if wanted is None:
            return found
        return Page(s for s in found if self._has(s, wanted))

    def _has(self, session: Any, wanted: Any) -> bool:
        known = self.shared("indexed").get(session.agent_id, session.metadata)
        return all(
            key in known and known[key] == value and isinstance(known[key], bool) is isinstance(value, bool)
            for key, value in wanted.items()
        )


async def a_window_with_other_stats(ctx: Context) -> object:
    """Saves a window again with nothing changed but its stats."""
    window = samples.window("w")
    await ctx.store.save_history_window("a", window)
    await ctx.store.save_history_window("a", window.replace(stats=window.stats.replace(token_count=0)))
    return [found.stats.token_count for found in await ctx.store.load_history_windows("a")]


@mutant("MSG-8", killed_by="loads_after_each_change_of_a_document", witness=a_window_with_other_stats)
class SavesAWindowWithNews(EngineStore):
    """Does not write a window again that has the same messages, events and time."""

    async def save_history_window(self, agent_id: str, window: Any, *, fence: Any = None) -> None:
        for old in await self.load_history_windows(agent_id):
            if (old.id, old.messages, old.events, old.timestamp) == (
                window.id,
                window.messages,
                window.events,
                window.timestamp,
            ):
                return
        await super().save_history_window(agent_id, window, fence=fence)


async def a_channel_between_bounds(ctx: Context) -> object:
    """Reads one channel after an offset and a seq."""
    offsets = await ctx.store.append_events("a", [samples.event(i, ("control", "progress")[i % 2]) for i in range(6)])
    since = samples.event(1).bookmark
    return [
        e.bookmark.seq
        async for e in ctx.store.read_events("a", since=since, after_offset=offsets[0], channel="progress")
    ]


@mutant("EVT-5", killed_by="parts_of_a_log_after_each_append", witness=a_channel_between_bounds)
class KnowsTwoBounds(EngineStore):
    """Gives all channels when a read names a seq and an offset as well."""

    def read_events(
        self, agent_id: str, *, since: Any = None, after_offset: Any = None, channel: Any = None
    ) -> AsyncIterator[Any]:
        if since is not None and after_offset is not None:
            channel = None
        return super().read_events(agent_id, since=since, after_offset=after_offset, channel=channel)


async def a_user_of_an_agent_made_anew(ctx: Context) -> object:
    """Deletes an agent and makes it anew by a turn, for another user, and asks for the first."""
    await ctx.store.save_info("a", samples.info("a"))
    await ctx.store.delete("a")
    await ctx.store.save_turn("a", info=samples.info("a", metadata={"userId": "v"}))
    return [len(await ctx.store.query_sessions(user_id=user)) for user in ("u-1", "v")]


@mutant("LIFE-4", killed_by="queries_after_each_end_and_fork", witness=a_user_of_an_agent_made_anew)
class FindsTheUserBefore(Shares):
    """Finds an agent that was deleted and made anew by a turn under the user that it had before, too."""

    async def save_info(self, agent_id: str, info: Any, *, fence: Any = None) -> None:
        await super().save_info(agent_id, info, fence=fence)
        self.shared("users")[agent_id] = info.metadata.get("userId")
        self.shared("gone").pop(agent_id, None)

    async def save_turn(self, agent_id: str, **parts: Any) -> None:
        await super().save_turn(agent_id, **parts)
        if parts.get("info") is not None:
            self.shared("users")[agent_id] = parts["info"].metadata.get("userId")

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        if agent_id in self.shared("users"):
            self.shared("gone")[agent_id] = self.shared("users").pop(agent_id)

    async def query_sessions(self, **filters: Any) -> Page[Any]:
        found = await super().query_sessions(**filters)
        user = filters.pop("user_id", None)
        if user is None:
            return found
        also = await super().query_sessions(**filters)
        known = {session.agent_id for session in found}
        return Page(
            [*found, *(s for s in also if s.agent_id not in known and self.shared("gone").get(s.agent_id) == user)]
        )


async def a_state_after_a_shrunk_list(ctx: Context) -> object:
    """Shortens the list of tool calls twice, with an upsert in between."""
    calls = [samples.tool_call(i) for i in range(3)]
    await ctx.store.save_tool_call_records("a", calls)
    await ctx.store.save_tool_call_records("a", calls[:2])
    await ctx.store.upsert_tool_call_records("a", [samples.tool_call(0, name="other")])
    return (await ctx.store.aggregate_stats("a")).tool_calls_by_name


@mutant("QRY-2", killed_by="queries_after_pairs_of_changes", witness=a_state_after_a_shrunk_list)
class CountsNamesByDifferences(Shares):
    """Does not count the name that an upsert takes away when the save before it made the list shorter."""

    async def save_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        old = await self.load_tool_call_records(agent_id)
        await super().save_tool_call_records(agent_id, records, fence=fence)
        self.shared("shrunk")[agent_id] = 0 < len(records) < len(old)
        self.shared("stale").pop(agent_id, None)

    async def upsert_tool_call_records(self, agent_id: str, records: Sequence[Any], *, fence: Any = None) -> None:
        before = await self.aggregate_stats(agent_id)
        await super().upsert_tool_call_records(agent_id, records, fence=fence)
        if self.shared("shrunk").pop(agent_id, False):
            self.shared("stale")[agent_id] = before.tool_calls_by_name
        else:
            self.shared("stale").pop(agent_id, None)

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        self.shared("shrunk").pop(agent_id, None)
        self.shared("stale").pop(agent_id, None)

    async def aggregate_stats(self, agent_id: str) -> Any:
        found = await super().aggregate_stats(agent_id)
        return replace(found, tool_calls_by_name=self.shared("stale").get(agent_id, found.tool_calls_by_name))
