"""Processes for the tests of moves: ``killed`` ends itself with SIGKILL at a commit, and ``writer`` writes agents.

killed SOURCE TARGET COUNT AFTER: copies, or imports an archive, and is killed before or after commit number COUNT.
writer URL: writes twenty agents, in every way, until a line comes on stdin; prints a line when it has begun.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Sequence
from typing import Any

from kode_conformance.values import samples

from kode_core import ExtendedStore, KodeError, Message, copy_store, create_extended_store, import_archive
from kode_core.batch import Batch
from kode_core.layers import Layer

TEMPLATE = "written"


class Killing(Layer):
    """Kills this process at one commit."""

    left = 0
    after = False

    async def commit(self, batches: Sequence[Batch]) -> Any:
        Killing.left -= 1
        if Killing.left == 0 and not self.after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = await self.inner.commit(batches)
        if Killing.left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found


async def killed(source: str, target: str, count: str, after: str) -> None:
    Killing.left, Killing.after = int(count), after == "after"
    async with create_extended_store(target, layers=[Killing]) as new:
        if source.endswith(".jsonl"):
            await import_archive(new, source, existing="replace", at_once=1)
            return
        async with create_extended_store(source) as old:
            await copy_store(old, new, existing="replace", delete=True, at_once=1)


async def writer(url: str) -> None:
    done = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with create_extended_store(url) as store:
        await asyncio.gather(*(_write(store, f"live-{i:02}", i) for i in range(20)))
        print("begun", flush=True)
        reading = loop.run_in_executor(None, sys.stdin.readline)
        reading.add_done_callback(lambda _: done.set())
        rng = random.Random(1)
        while not done.is_set():
            await asyncio.gather(*(_write(store, f"live-{rng.randrange(20):02}", rng.randrange(10)) for _ in range(5)))
            await asyncio.sleep(0.02)
        print("ended", flush=True)


async def _write(store: ExtendedStore, agent_id: str, way: int) -> None:
    try:
        if not await store.exists(agent_id):
            await store.save_info(agent_id, samples.info(agent_id, template_id=TEMPLATE))
        text = os.urandom(3).hex()
        if way == 0:
            await store.delete(agent_id)
        elif way == 1:
            await store.save_todos(agent_id, samples.todos(text))
        elif way == 2:
            await store.put_document(agent_id, "notes", text[:1], text, tags={"t": text})
        elif way == 3:
            await store.save_snapshot(agent_id, samples.snapshot(text[:1], count=3))
        elif way == 4:
            await store.emit(agent_id, "text_chunk", {"delta": text})
        elif way == 5:
            await store.pop_messages(agent_id, 1)
        else:
            await store.save_turn(agent_id, append=[Message.user(text)], events=[samples.event(int(text, 16))])
    except KodeError as exc:
        print(exc, file=sys.stderr)


if __name__ == "__main__":
    tasks: dict[str, Any] = {"killed": killed, "writer": writer}
    asyncio.run(tasks[sys.argv[1]](*sys.argv[2:]))
