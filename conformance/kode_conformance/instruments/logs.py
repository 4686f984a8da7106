"""A log as it must be read: entries with the offsets that the store returned, and each part that can be read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from kode_conformance.context import Context
from kode_conformance.values.many import same
from kode_core.model import Bookmark, StoredEvent, Timeline
from kode_core.protocols import ExtendedStore

__all__ = ["Asked", "Log"]


class Asked(NamedTuple):
    """The request of a reader; the answer is in the order of offsets if it gives one."""

    since: int | None = None
    after_offset: int | None = None
    channel: Any = None

    def arguments(self) -> dict[str, Any]:
        """As ``read_events`` takes them."""
        since = None if self.since is None else Bookmark(self.since, 0)
        given = {"since": since, "after_offset": self.after_offset, "channel": self.channel}
        return {name: value for name, value in given.items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._asdict().items() if value is not None) or "all"


class Log:
    """The entries of one agent.

    Attributes:
        entries: (offset, entry), ascending.
    """

    def __init__(self, agent_id: str = "a") -> None:
        self.agent_id = agent_id
        self.entries: list[tuple[int, Timeline]] = []

    async def append(self, ctx: Context, store: ExtendedStore, timelines: Sequence[Timeline]) -> list[int]:
        """Append new entries; the store must return new offsets, in their order."""
        offsets = list(await store.append_events(self.agent_id, timelines))
        self.note(ctx, offsets, timelines)
        return offsets

    def note(self, ctx: Context, offsets: Sequence[int], timelines: Sequence[Timeline]) -> None:
        """Note appended entries with the offsets that the store returned."""
        ctx.equal(len(offsets), len(timelines), "how many offsets append_events returned")
        for i, (before, offset) in enumerate(zip([self.last, *offsets], offsets, strict=False), 1):
            ctx.true(
                before is None or offset > before,
                f"offset {offset} of entry {i} of {len(offsets)} in one append must be above the one before, {before}",
            )
        self.entries += zip(offsets, timelines, strict=True)

    @property
    def last(self) -> Any:
        """The highest offset, None without any."""
        return self.entries[-1][0] if self.entries else None

    @property
    def offsets(self) -> list[int]:
        """Every offset."""
        return [offset for offset, _ in self.entries]

    def part(self, asked: Asked) -> list[tuple[int, Timeline]]:
        """The entries that *asked* selects, in its order."""
        found = [
            (offset, entry)
            for offset, entry in self.entries
            if (asked.since is None or entry.bookmark.seq > asked.since)
            and (asked.after_offset is None or offset > asked.after_offset)
            and (asked.channel is None or entry.event.channel == asked.channel)
        ]
        return found if asked.after_offset is not None else sorted(found, key=lambda e: (e[1].bookmark.seq, e[0]))

    async def see(self, ctx: Context, store: ExtendedStore, asked: Asked, when: str = "") -> None:
        """Check that the store gives the entries that *asked* selects."""
        found = [event async for event in store.read_events(self.agent_id, **asked.arguments())]
        self.compare(ctx, found, self.part(asked), f"read_events({asked}) of {len(self.entries)} events{when}")

    def compare(
        self, ctx: Context, found: Sequence[StoredEvent], wanted: Sequence[tuple[int, Timeline]], what: str
    ) -> None:
        """*found* must be *wanted*: the same entries with their offsets, in this order."""
        same(ctx, [_named(event.offset, event) for event in found], [_named(*entry) for entry in wanted], what)
        same(ctx, list(found), [entry for _, entry in wanted], what)


def _named(offset: int, entry: Timeline) -> tuple[str, int, str, int]:
    return "offset", offset, f"{entry.event.channel}, seq", entry.bookmark.seq
