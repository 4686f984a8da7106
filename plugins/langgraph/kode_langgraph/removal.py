"""Whole threads: their removal, copies, and the removal of checkpoints with the items that no other one refers to."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from typing import Any, Final

from kode_core import (
    ABSENT,
    AgentNotFoundError,
    ConflictError,
    DeleteDocument,
    Document,
    DocumentWrite,
    ExtendedStore,
    InvalidArgumentError,
    PutDocument,
    StoreBusyError,
)
from kode_langgraph.checkpoints import Checkpoints
from kode_langgraph.found import CHECKPOINTS, RUNS, WRITES, record_of, runs_of, stored_of
from kode_langgraph.items import HEAD, ITEMS, merged, new_epoch
from kode_langgraph.keys import agent_of, document_pages, key_of, keys_of
from kode_langgraph.packing import guard, positions

__all__ = ["Removal"]

_STEP: Final = 500
_ATTEMPTS: Final = 200


class Removal:
    """Removes and copies the threads of one saver."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints = checkpoints

    async def delete_thread(self, store: ExtendedStore, thread: str) -> None:
        """Remove a thread with all that it has."""
        agent_id = agent_of(thread)
        await store.delete(agent_id)
        self._checkpoints.known.drop(agent_id)

    async def copy_thread(self, store: ExtendedStore, source_thread: str, target_thread: str) -> None:
        """Copy a thread in one commit; the second write only names the copy, and is done again by a repetition."""
        source, target = agent_of(source_thread), agent_of(target_thread)
        info = await store.load_info(target)
        if info is None:
            try:
                await store.fork(source, target, documents=True)
            except AgentNotFoundError:
                return
        elif info.metadata.get("threadId") != source_thread:
            raise ConflictError(target, ABSENT, "the thread exists, so that no copy can take its id")
        await store.update_info(target, {"threadId": target_thread})

    async def delete_for_runs(self, store: ExtendedStore, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints of runs, in all threads."""
        runs = [str(run) for run in run_ids]
        if not runs:
            return
        threads = self._threads_of(store)
        async with aclosing(threads):
            async for thread in threads:
                agent_id = agent_of(thread)
                doomed = {
                    key.partition("/")[2]
                    for run in runs
                    async for key in keys_of(store, agent_id, RUNS, key_of(run, ""))
                }
                await self._drop(store, agent_id, doomed)

    def _threads_of(self, store: ExtendedStore) -> Any:
        """The threads that may have checkpoints of a run: all of them, as documents are found by agent."""
        return self._checkpoints.threads(store)

    async def prune(self, store: ExtendedStore, thread_ids: Sequence[str], strategy: str) -> None:
        """Remove all checkpoints of threads, or all that the latest one of each namespace does not need."""
        if strategy not in ("keep_latest", "delete"):
            raise InvalidArgumentError(f"strategy must be 'keep_latest' or 'delete', got {strategy!r:.60}")
        for thread in map(str, thread_ids):
            if strategy == "delete":
                await self.delete_thread(store, thread)
                continue
            agent_id = agent_of(thread)
            by_ns: dict[str, list[str]] = {}
            async for key in keys_of(store, agent_id, CHECKPOINTS):
                by_ns.setdefault(key.partition("/")[0], []).append(key)
            doomed: set[str] = set()
            for keys in by_ns.values():
                doomed |= {*keys[:-1]} - await _needed(store, agent_id, keys[-1])
            await self._drop(store, agent_id, doomed)

    async def _drop(self, store: ExtendedStore, agent_id: str, doomed: set[str]) -> None:
        """Remove checkpoints, then the items that no other checkpoint refers to.

        A crash in between leaves items that no one reads; the next removal of the thread finds them.
        """
        if not doomed:
            return
        for key in sorted(doomed):
            await self._drop_one(store, agent_id, key)
        known = self._checkpoints.known.of(agent_id)
        async with known.lock:
            for _ in range(_ATTEMPTS):
                known.version = None
                await known.refresh(store, agent_id)
                if not known.exists:
                    return
                dead = await _dead_chunks(store, agent_id)
                if not dead:
                    return
                head: Any = {"lines": known.lines, "epoch": new_epoch()}
                writes = [PutDocument(*HEAD, head, known.version), *dead[:_STEP]]
                try:
                    await store.write_documents(agent_id, writes)
                except ConflictError:
                    continue
                known.version = None
                for i in range(_STEP, len(dead), _STEP):
                    await store.write_documents(agent_id, dead[i : i + _STEP])
                return
        raise StoreBusyError(f"other processes kept writing to agent {agent_id!r}; prune it again")

    async def _drop_one(self, store: ExtendedStore, agent_id: str, key: str) -> None:
        """Remove a checkpoint with its writes, in one commit unless these are very many."""
        found = await store.load_document(agent_id, CHECKPOINTS, key)
        if found is None:
            return
        gone: list[DocumentWrite] = [DeleteDocument(CHECKPOINTS, key)]
        stored = stored_of(found)
        if stored["run"]:
            gone.append(DeleteDocument(RUNS, f"{key_of(stored['run'])}/{key}"))
        gone += [DeleteDocument(WRITES, each) async for each in keys_of(store, agent_id, WRITES, f"{key}/")]
        for i in range(0, len(gone), _STEP):
            await store.write_documents(agent_id, gone[i : i + _STEP])


async def _needed(store: ExtendedStore, agent_id: str, key: str) -> set[str]:
    """The ancestors of a checkpoint from which the values of its DeltaChannels are made."""
    needed: set[str] = set()
    at = await store.load_document(agent_id, CHECKPOINTS, key)
    if at is None:
        return needed
    stored = stored_of(at)
    left = {*stored.get("deltas", ())} - {channel for channel, _ in stored["values"]}
    while left and stored["parent"]:
        at = await store.load_document(agent_id, CHECKPOINTS, key_of(stored["ns"], stored["parent"]))
        if at is None:
            break
        needed.add(at.key)
        stored = stored_of(at)
        left -= {channel for channel, _ in stored["values"]}
    return needed


async def _dead_chunks(store: ExtendedStore, agent_id: str) -> list[DocumentWrite]:
    """The removals of the chunks of items that no checkpoint, and no write to one, refers to.

    The messages of a DeltaChannel stay, so that they are not said again.
    """
    runs, has_deltas = await _runs_of(store, agent_id, CHECKPOINTS)
    live = merged([*runs, *(await _runs_of(store, agent_id, WRITES))[0]])
    dead: list[DocumentWrite] = []
    async for page in document_pages(store, agent_id, ITEMS, limit=200):
        for document in page:
            chunk: Any = document.value
            with guard(f"document {document.key!r} of collection 'items'"):
                first, last, said = int(chunk["first"]), int(document.key), bool(chunk["said"])
            at = bisect_left(live, (first, first))
            before = at > 0 and live[at - 1][1] >= first
            spared = has_deltas and said
            if not before and not spared and (at == len(live) or live[at][0] > last):
                dead.append(DeleteDocument(ITEMS, document.key))
    return dead


async def _runs_of(store: ExtendedStore, agent_id: str, collection: str) -> tuple[list[tuple[int, int]], bool]:
    """The items that the documents of a collection refer to, and if one of them has a DeltaChannel."""
    runs: list[tuple[int, int]] = []
    has_deltas = False
    async for page in document_pages(store, agent_id, collection, limit=200):
        runs = merged([*runs, *(run for document in page for run in _refers(document))])
        if collection == CHECKPOINTS:
            has_deltas = has_deltas or any(stored_of(document)["deltas"] for document in page)
    return runs, has_deltas


def _refers(document: Document) -> Iterable[tuple[int, int]]:
    if document.collection == CHECKPOINTS:
        return runs_of(document)
    stored: Any = document.value
    with guard(record_of(document)):
        return [*positions(stored["value"])]
