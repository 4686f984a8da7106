"""``make bench ARGS=text``: searches for texts, with the index of texts and without, on SQLite and on PostgreSQL.

``ARGS="text postgres"`` measures one of them. ``messages=1000000`` and ``characters=500`` choose the size of the store
and of each message; without them it has 100,000 messages of some 120 characters. A store of a tenth of that comes
first, so that growth shows. The searches without the index are made in the same store, before it is made. SQLite counts
the steps of its machine, PostgreSQL pages. ``bench/text.json`` has all figures.
"""

from __future__ import annotations

import asyncio
import json
import random
import statistics
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Final

from kode_core import ExtendedStore, Message
from kode_core.config import configure
from kode_core.plugins import registry
from tests.benchmarks.backends import BACKENDS, Backend, Options, opened
from tests.benchmarks.measure import seconds
from tests.benchmarks.million import pages, steps

__all__ = ["OPTIONS", "PLACES", "run"]

PLACES: Final = ("sqlite", "postgres")
MESSAGES: Final = 100_000
CHARACTERS: Final = 120
OPTIONS: Final = ("messages=", "characters=")
_AGENTS: Final = 100
_AT_ONCE: Final = 1_000
_SHARES: Final = (10, 1)
_ROUNDS: Final = 3
_APPENDS: Final = 40
_RARE: Final = "zqx"
"""Stands in one message of each agent but the last ones, and in the newest of none."""

Search = Callable[[ExtendedStore], Awaitable[Sequence[Any]]]


class _Texts:
    """Texts of words that look like words: 4,000 of them, the first ones much more often than the last ones."""

    def __init__(self) -> None:
        self._draw = draw = random.Random(7)
        parts = [first + second for first in "bcdfghjklmnprstvw" for second in "aeiou"]
        self._words = ["".join(draw.choices(parts, k=draw.randint(1, 4))) for _ in range(4_000)]
        self._weights = [1 / (rank + 3) for rank in range(4_000)]

    def some(self, count: int, characters: int) -> list[str]:
        words = self._draw.choices(self._words, self._weights, k=count * max(1, characters // 6))
        size = max(1, characters // 6)
        return [" ".join(words[i * size : (i + 1) * size]) for i in range(count)]


async def _fill(store: ExtendedStore, texts: _Texts, messages: int, characters: int) -> float:
    """Append the messages, and return the seconds that the store took."""
    took = 0.0
    for start in range(0, messages, _AT_ONCE):
        said = texts.some(_AT_ONCE, characters)
        if start == messages // 10 // _AT_ONCE * _AT_ONCE:
            said[7] += f" {_RARE}-needle"
        agent = f"agent-{start // _AT_ONCE % _AGENTS}"
        made = [Message.user(text) for text in said]
        began = time.perf_counter()
        await store.append_messages(agent, made)
        took += time.perf_counter() - began
        sys.stderr.write(f"\r{start:,} of {messages:,} messages ")
        sys.stderr.flush()
    sys.stderr.write("\n")
    return took


async def _all_pages(store: ExtendedStore, text: str) -> list[Any]:
    """What a caller does who wants the messages wherever they are: follow the cursors."""
    found = list[Any]()
    cursor = None
    while True:
        page = await store.query_messages(contains=text, limit=100, **({"cursor": cursor} if cursor else {}))
        found += page
        cursor = page.next_cursor
        if cursor is None:
            return found


async def _appends(store: ExtendedStore, texts: _Texts, characters: int) -> float:
    """The seconds of some appends of ten messages, and of what follows in the background."""
    began = time.perf_counter()
    for i in range(_APPENDS):
        await store.append_messages(f"agent-{i}", [Message.user(text) for text in texts.some(10, characters)])
    while (await store.get_metrics()).storage.texts_waiting:
        await asyncio.sleep(0.01)
    return time.perf_counter() - began


async def _size(options: Options) -> int:
    async with opened(options) as store:
        return (await store.get_metrics()).storage.db_size_bytes or 0


async def _measured(backend: Backend, messages: int, characters: int) -> dict[str, Any]:
    """All figures of one store."""
    texts = _Texts()
    counting = steps if backend.name == "sqlite" else pages
    async with backend.space() as options:
        found: dict[str, Any] = {"backend": backend.name, "messages": messages, "characters": characters}
        async with opened({**options, "durability": "fast"}) as store:
            found["fill"] = await _fill(store, texts, messages, characters)
        await backend.settle(options)
        found["bytes"] = await _size(options)
        async with opened(options) as store:
            found["append"] = await _appends(store, texts, characters)
            found["scan"] = await seconds(lambda _: _all_pages(store, f"{_RARE.upper()}-NEEDLE"))
        async with counting(options) as count:
            found["scan work of one call"] = await count(lambda s: s.query_messages(contains=f"{_RARE}-needle"))
        configured = configure({**options}, {}, registry.backend, {})
        assert configured.backend.text_index is not None
        began = time.perf_counter()
        await configured.backend.text_index(configured.options, "add", lambda done, total: _tell(done, total))
        found["build"] = time.perf_counter() - began
        await backend.settle(options)
        found["bytes with the index"] = await _size(options)
        async with opened(options) as store:
            page = await _all_pages(store, f"{_RARE.upper()}-NEEDLE")
            assert len(page) == 1, page
            found["search"] = statistics.median(
                [await seconds(lambda _: _all_pages(store, f"{_RARE}-needle")) for _ in range(_ROUNDS)]
            )
            found["search of a common word"] = await seconds(lambda _: store.query_messages(contains=_common(texts)))
            found["append with the index"] = await _appends(store, texts, characters)
        async with counting(options) as count:
            found["search work"] = await count(lambda s: s.query_messages(contains=f"{_RARE}-needle"))
    return found


def _common(texts: _Texts) -> str:
    return next(word for word in texts._words if len(word) > 5)


def _tell(done: int, total: int | None) -> None:
    sys.stderr.write(f"\r{done:,} of {total or 0:,} indexed ")
    sys.stderr.flush()


async def _every(places: Sequence[str], messages: int, characters: int) -> AsyncIterator[dict[str, Any]]:
    for name in places:
        async with BACKENDS[name].available() as backend:
            for share in _SHARES:
                yield {"version": backend.version, **await _measured(backend, messages // share, characters)}


def _row(found: dict[str, Any]) -> str:
    more = (found["bytes with the index"] - found["bytes"]) / found["bytes"]
    cells = [
        f"{found['backend']}, {found['messages']:,}",
        f"{found['scan'] * 1000:,.0f} ms",
        f"{found['search'] * 1000:,.1f} ms",
        f"{found['scan'] / found['search']:,.0f} times",
        f"{found['search work']:,}",
        f"{found['build']:,.0f} s ({found['build'] / found['fill']:.1f} times)",
        f"{more:+.0%}",
        f"{found['append with the index'] / found['append']:.1f} times",
    ]
    return f"| {' | '.join(cells)} |"


async def run(options: Sequence[str]) -> int:
    """Measure and print the table."""
    given = dict(option.split("=", 1) for option in options if "=" in option)
    places = [name for name in PLACES if name in options] or PLACES
    messages, characters = int(given.get("messages", MESSAGES)), int(given.get("characters", CHARACTERS))
    every = []
    print("| messages | all found without | with the index | | steps, pages | build, to the appends | size | appends |")
    print(f"|---|{'---:|' * 7}")
    async for found in _every(places, messages, characters):
        every.append(found)
        sys.stderr.write("\n")
        print(_row(found), flush=True)
    path = Path("bench/text.json")
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(every, indent=1) + "\n")
    return 0
