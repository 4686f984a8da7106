"""Followers of the logs of a history: each must see every appended event once, by offset (EVT-7).

One that is told that its agent was deleted (EVT-10) is followed by another, which goes on behind it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kode_conformance.context import Violation, difference
from kode_conformance.histories.answers import stored_event
from kode_conformance.histories.model import Logged, StoreModel
from kode_conformance.instruments.patience import within
from kode_conformance.values import samples
from kode_core.errors import AgentDeletedError
from kode_core.model import Bookmark, StoredEvent

__all__ = ["Followers"]

_LAST_SEQ: Final = 2**40


class _Follower:
    """One reader that never ends, unless its agent is deleted."""

    def __init__(self, store: Any, agent_id: str, how: Mapping[str, Any]) -> None:
        self.agent_id = agent_id
        self.how = how
        self.last = how.get("after_offset", 0)
        self._store = store
        self._stream: Any = store.follow_events(agent_id, **how)

    def wants(self, logged: Logged) -> bool:
        """True if the follower must get the event, and has not seen it yet."""
        since, channel = self.how.get("since"), self.how.get("channel")
        return (
            (logged.offset or 0) > self.last
            and (since is None or logged.timeline.bookmark.seq > since.seq)
            and channel in (None, logged.timeline.event.channel)
        )

    async def see(self, logged: Logged, log: Sequence[Logged], seconds: float) -> None:
        """The next event must be this one of the log, in time."""
        said = f"follow_events({self.agent_id!r}{''.join(f', {k}={v!r}' for k, v in self.how.items())})"
        try:
            async with within(seconds):
                got = await self._next(log)
        except TimeoutError:
            raise Violation(f"{said} did not yield the event at {logged.offset} within {seconds:g} s") from None
        except StopAsyncIteration:
            raise Violation(f"{said} ended, though nobody stopped it") from None
        found = difference(got, stored_event(logged))
        if found is not None:
            raise Violation(f"{said} yielded another event than the next one: {found}")
        self.last = logged.offset

    async def _next(self, log: Sequence[Logged]) -> StoredEvent:
        try:
            got: StoredEvent = await anext(self._stream)
        except AgentDeletedError:
            if any(logged.offset == self.last for logged in log):
                raise Violation(f"the event at {self.last} is stored, and its follower reported a delete") from None
            await self._stream.aclose()
            self._stream = self._store.follow_events(self.agent_id, **{**self.how, "after_offset": self.last})
            got = await anext(self._stream)
        return got

    async def close(self) -> None:
        """Stop it."""
        await self._stream.aclose()


class Followers:
    """All followers of a history, on a store of their own."""

    def __init__(self, store: Any, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._all: list[_Follower] = []
        self._turn = 0

    async def catch_up(self, model: StoreModel) -> None:
        """Let all of them see what they did not see yet; the first events of an agent bring new ones."""
        known = {follower.agent_id for follower in self._all}
        for agent_id, agent in list(model.agents.items()):
            if agent.events and agent_id not in known:
                self._follow(agent_id, agent.events)
        for follower in self._all:
            log = model.agents[follower.agent_id].events
            for logged in log:
                if follower.wants(logged):
                    await follower.see(logged, log, self._seconds)

    def _follow(self, agent_id: str, log: list[Logged]) -> None:
        """Some of all ways to follow, others for each agent."""
        self._turn += 1
        after, since = log[0].offset or 0, Bookmark(log[0].timeline.bookmark.seq, 0)
        ways: list[dict[str, Any]] = [
            {},
            {"since": since},
            {"channel": "progress"},
            {"after_offset": after},
            {"since": since, "channel": "control"},
            {"after_offset": after, "since": since},
        ]
        for how in (ways[0], *(ways[(self._turn + i) % len(ways)] for i in (1, 3))):
            self._all.append(_Follower(self._store, agent_id, how))

    async def finish(self, model: StoreModel, store: Any) -> None:
        """One event more in each log, which must be what each follower sees next."""
        for agent_id in dict.fromkeys(follower.agent_id for follower in self._all):
            for channel in ("progress", "control"):
                event = samples.event(_LAST_SEQ, channel)
                model.append_event(agent_id, event).offset = await store.append_event(agent_id, event)
        await self.catch_up(model)

    async def close(self) -> None:
        """Stop all of them."""
        for follower in self._all:
            await follower.close()
