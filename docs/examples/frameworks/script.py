"""A plain script: several threads write through one store, while one of them follows the events."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

from kode_core import AgentEvent, Bookmark, Message, Timeline
from kode_core.sync import SyncStore, open_store


def work(store: SyncStore, worker: int) -> None:
    """Add ten messages, each under the lock, and announce the end."""
    for number in range(10):
        with store.acquire_agent_lock("agt-1", wait_ms=60_000):
            store.append_messages("agt-1", [Message.user(f"worker {worker}, message {number}")])
    store.append_event(
        "agt-1", Timeline(worker, Bookmark(worker, 0), AgentEvent("monitor", "done", {"worker": worker}))
    )


def main(url: str) -> None:
    """Run four workers, and print who is done as they end."""
    with open_store(url) as store, ThreadPoolExecutor() as pool:
        for worker in range(4):
            pool.submit(work, store, worker)
        with store.follow_events("agt-1") as events:
            done = sorted(events.next(timeout=60).event.data["worker"] for _ in range(4))
        print("done:", done)
        print("messages:", len(store.load_messages("agt-1")))


if __name__ == "__main__":
    main(sys.argv[1])
