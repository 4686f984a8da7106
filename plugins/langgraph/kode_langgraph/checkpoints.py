"""Checkpoints and writes of threads, for the loop in which the store lives.

A thread is an agent. Its collections, and the parts of their keys:

- ``checkpoints``: namespace, checkpoint. The values of the channels are packed, by reference to items.
- ``writes``: namespace, checkpoint, task, number.
- ``runs``: run, namespace, checkpoint. The order in which the checkpoints of a run are found.
- ``items`` and ``thread``: the log (see ``items``).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Final

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_metadata,
    writes_sort_key,
)

from kode_core import (
    ABSENT,
    ConflictError,
    Document,
    DocumentWrite,
    ExtendedStore,
    PutDocument,
    now_ms,
)
from kode_langgraph.found import (
    CHECKPOINTS,
    RUNS,
    WRITES,
    busy,
    just,
    latest,
    new_info,
    newest_first,
    one,
    record_of,
    runs_of,
    stored_of,
)
from kode_langgraph.items import Draft, Known, KnownThreads, load_items, lost, missing
from kode_langgraph.keys import TEMPLATE, agent_of, config_of, document_pages, key_of, keys_of, place_of
from kode_langgraph.packing import Serial, guard, pack, positions, unpack
from kode_langgraph.projection import is_message, message_of

__all__ = ["Checkpoints"]

_ATTEMPTS: Final = 200


class Checkpoints:
    """The checkpoints of one saver.

    Args:
        messages: the channel whose messages are the conversation; None if there is none.
    """

    def __init__(self, messages: str | None) -> None:
        self._messages = messages
        self.known = KnownThreads()

    # --- writes

    async def put(
        self,
        store: ExtendedStore,
        serial: Serial,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, its new items and the messages that are said for the first time, in one commit."""
        thread, ns, parent = place_of(config)
        agent_id, checkpoint_id = agent_of(thread), checkpoint["id"]
        about = get_checkpoint_metadata(config, metadata)
        run = str(about.get("run_id") or "")
        key = key_of(ns, checkpoint_id)
        deltas = [str(channel) for channel in about.get("counters_since_delta_snapshot") or ()]
        bare = {name: value for name, value in checkpoint.items() if name != "channel_values"}
        stored = {
            "ns": ns,
            "parent": parent,
            "run": run,
            "deltas": deltas,
            "checkpoint": serial.whole(bare),
            "metadata": serial.whole(about),
        }
        known = self.known.of(agent_id)
        async with known.lock:
            for _ in range(_ATTEMPTS):
                await self._learn(store, serial, agent_id, known, ns, parent)
                if self._messages in deltas:
                    await known.learn_all_said(store, agent_id, serial)
                draft = Draft(known, serial, grows=True)
                values = await self._packed(serial, draft, known, ns, checkpoint, new_versions)
                if self._messages in new_versions and self._messages not in checkpoint["channel_values"]:
                    await self._say_writes(store, serial, draft, agent_id, ns, parent)
                documents: list[DocumentWrite] = [PutDocument(CHECKPOINTS, key, {**stored, "values": values})]
                if run:
                    documents.append(PutDocument(RUNS, key_of(run, ns, checkpoint_id), None))
                said = [message_of(message, ns, checkpoint_id) for message in draft.said if is_message(message)]
                listed = checkpoint["channel_values"].get(self._messages or "")
                calls = known.calls.records(
                    [message for message in draft.said if is_message(message)],
                    listed if type(listed) is list else (),
                    now_ms(),
                )
                if await self._commit(store, agent_id, thread, known, draft, documents, said, calls):
                    known.keep(ns, checkpoint["channel_versions"], values)
                    return config_of(thread, ns, checkpoint_id)
        raise busy(thread)

    async def _packed(
        self,
        serial: Serial,
        draft: Draft,
        known: Known,
        ns: str,
        checkpoint: Checkpoint,
        new_versions: ChannelVersions,
    ) -> list[list[Any]]:
        packed: list[list[Any]] = []
        for channel, value in checkpoint["channel_values"].items():
            version = str(checkpoint["channel_versions"].get(channel))
            kept = None if channel in new_versions else known.kept(ns, channel, version)
            if kept is not None:
                draft.uses = True
                packed.append([channel, kept])
                continue
            draft.channel = channel
            inner = getattr(value, "value", value) if channel == self._messages else value
            draft.is_saying = channel == self._messages and type(inner) is list and any(map(is_message, inner))
            packed.append([channel, await pack(value, serial, draft, always=draft.is_saying)])
        draft.is_saying = False
        return packed

    async def _say_writes(
        self, store: ExtendedStore, serial: Serial, draft: Draft, agent_id: str, ns: str, parent: str | None
    ) -> None:
        """Say the messages of a DeltaChannel, which are in the writes to the checkpoint before."""
        if parent is None or self._messages is None:
            return
        for _, channel, value in await self._writes(store, serial, agent_id, key_of(ns, parent), {self._messages}):
            said = [each for each in (value if type(value) is list else [value]) if is_message(each)]
            if said and channel == self._messages:
                draft.channel, draft.is_saying = channel, True
                await pack(said, serial, draft, always=True)
                draft.is_saying = False

    async def put_writes(
        self,
        store: ExtendedStore,
        serial: Serial,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str,
    ) -> None:
        """Store the writes of a task in one commit; one that is stored already stays, but for errors and interrupts."""
        thread, ns, checkpoint_id = place_of(config)
        agent_id, task = agent_of(thread), key_of(ns, checkpoint_id or "", task_id)
        known = self.known.of(agent_id)
        there: set[str] = set()
        async with known.lock:
            for _ in range(_ATTEMPTS):
                await known.refresh(store, agent_id)
                draft = Draft(known, serial, grows=False)
                puts: dict[str, PutDocument] = {}
                for i, (channel, value) in enumerate(writes):
                    number = WRITES_IDX_MAP.get(channel, i)
                    key = f"{task}/{number}"
                    if number >= 0 and key in there:
                        continue
                    packed = await pack(value, serial, draft)
                    stored = {"task": task_id, "path": task_path, "number": number, "channel": channel, "value": packed}
                    puts[key] = PutDocument(WRITES, key, stored, ABSENT if number >= 0 else None)
                if not puts or await self._commit(store, agent_id, thread, known, draft, [*puts.values()]):
                    return
                there = {key async for key in keys_of(store, agent_id, WRITES, f"{task}/")}
        raise busy(thread)

    async def _commit(
        self,
        store: ExtendedStore,
        agent_id: str,
        thread: str,
        known: Known,
        draft: Draft,
        documents: list[DocumentWrite],
        said: Sequence[Any] = (),
        calls: Sequence[Any] = (),
    ) -> bool:
        """Write documents, and the head if they refer to the log; False if another process was first."""
        guarded = draft.uses or not known.exists or any(put.collection == CHECKPOINTS for put in documents)
        writes = [*documents, *draft.writes()] if guarded else documents
        try:
            if known.exists and not said and not calls:
                versions = await store.write_documents(agent_id, writes)
                version = versions[-1] if guarded else known.version
            else:
                info = None if known.exists else await new_info(store, agent_id, thread)
                await store.save_turn(agent_id, append=said, upsert_tool_calls=calls, info=info, documents=writes)
                version = None
        except ConflictError:
            known.version = None
            return False
        except BaseException:
            known.version = None  # it may have been done or not
            raise
        if guarded:
            learned = known.is_learned
            draft.accept(version)
            known.is_learned = learned or any(put.collection == CHECKPOINTS for put in documents)
        return True

    async def _learn(
        self, store: ExtendedStore, serial: Serial, agent_id: str, known: Known, ns: str, parent: str | None
    ) -> None:
        """Know the head, and the items of the checkpoints that a new one is likely to share items with."""
        await known.refresh(store, agent_id)
        if known.is_learned or not known.exists:
            return
        found = [await store.load_document(agent_id, CHECKPOINTS, key_of(ns, parent))] if parent else []
        if ns:
            found.append(await latest(store, agent_id, ""))
        runs = [run for document in found if document is not None for run in runs_of(document)]
        await load_items(store, agent_id, runs, serial, known)
        known.is_learned = True

    # --- reads

    async def get_tuple(self, store: ExtendedStore, serial: Serial, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that *config* names, or the latest of its namespace."""
        thread, ns, checkpoint_id = place_of(config)
        agent_id = agent_of(thread)
        known = self.known.of(agent_id)
        async with known.lock:
            await known.refresh(store, agent_id)
            while True:
                found = await one(store, agent_id, ns, checkpoint_id)
                if found is None:
                    return None
                result = await self._tuple(store, serial, thread, found, known)
                if result is not None:
                    known.keep(ns, result.checkpoint["channel_versions"], stored_of(found)["values"])
                    known.is_learned = known.is_learned or known.exists
                    return result

    async def _tuple(
        self, store: ExtendedStore, serial: Serial, thread: str, found: Document, known: Known | None = None
    ) -> CheckpointTuple | None:
        """The tuple of a checkpoint; None if the checkpoint was removed meanwhile."""
        agent_id, record = agent_of(thread), record_of(found)
        runs = runs_of(found)
        items = await load_items(store, agent_id, runs, serial, known)
        position = missing(runs, items)
        if position is not None:
            again = await store.load_document(agent_id, CHECKPOINTS, found.key)
            if again is not None and again.version == found.version:
                raise lost(agent_id, position)
            return None
        stored = stored_of(found)
        with guard(record):
            checkpoint: Any = serial.value(serial.open(stored["checkpoint"][1:]))
            metadata = serial.value(serial.open(stored["metadata"][1:]))
            checkpoint["channel_values"] = {
                channel: await unpack(packed, serial, items) for channel, packed in stored["values"]
            }
            ns, parent = stored["ns"], stored["parent"]
        return CheckpointTuple(
            config=config_of(thread, ns, checkpoint["id"]),
            checkpoint=checkpoint,
            metadata=metadata,
            parent_config=config_of(thread, ns, parent) if parent else None,
            pending_writes=await self._writes(store, serial, agent_id, found.key),
        )

    async def _writes(
        self,
        store: ExtendedStore,
        serial: Serial,
        agent_id: str,
        checkpoint_key: str,
        channels: set[str] | None = None,
    ) -> list[tuple[str, str, Any]]:
        """The writes to a checkpoint, in the order in which a run applies them."""
        found: list[Document] = []
        async for page in document_pages(store, agent_id, WRITES, prefix=f"{checkpoint_key}/"):
            found += page
        writes: list[Any] = []
        for document in found:
            stored: Any = document.value
            with guard(record_of(document)):
                if channels is None or stored["channel"] in channels:
                    order = writes_sort_key(stored["path"], stored["task"], stored["number"])
                    writes.append((order, stored, [*positions(stored["value"])], document))
        items = await load_items(store, agent_id, [run for write in writes for run in write[2]], serial)
        result = []
        for _, stored, runs, document in sorted(writes, key=lambda write: write[0]):
            position = missing(runs, items)
            if position is not None:
                raise lost(agent_id, position)
            with guard(record_of(document)):
                result.append((stored["task"], stored["channel"], await unpack(stored["value"], serial, items)))
        return result

    async def iterate(
        self,
        store: ExtendedStore,
        serial: Serial,
        config: RunnableConfig | None,
        wanted: Mapping[str, Any] | None,
        before: RunnableConfig | None,
        limit: int | None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints of a thread, or of all threads, each thread's newest first."""
        threads = just(place_of(config)[0]) if config else self.threads(store)
        left = limit
        async with aclosing(threads):
            async for thread in threads:
                async for found in newest_first(store, agent_of(thread), config, before):
                    if left == 0:
                        return
                    stored = stored_of(found)
                    about = serial.read(stored["metadata"], record_of(found))
                    if wanted and any(name not in about or about[name] != value for name, value in wanted.items()):
                        continue
                    result = await self._tuple(store, serial, thread, found)
                    if result is not None:
                        yield result
                        left = None if left is None else left - 1

    async def threads(self, store: ExtendedStore) -> AsyncGenerator[str]:
        """All threads. A copy that is not finished still has the name of its source, and is left out."""
        async for session in store.iter_sessions(template_id=TEMPLATE):
            thread = str(session.metadata.get("threadId"))
            if agent_of(thread) == session.agent_id:
                yield thread

    async def delta_history(
        self, store: ExtendedStore, serial: Serial, config: RunnableConfig, channels: Sequence[str]
    ) -> dict[str, Any]:
        """The writes to each channel by the ancestors of a checkpoint, back to the nearest one that has its value."""
        thread, ns, checkpoint_id = place_of(config)
        agent_id = agent_of(thread)
        at = await one(store, agent_id, ns, checkpoint_id)
        left = set(channels)
        writes: dict[str, list[Any]] = {channel: [] for channel in channels}
        history: dict[str, Any] = {channel: {"writes": writes[channel]} for channel in channels}
        while at is not None and left:
            stored = stored_of(at)
            if not stored["parent"]:
                break
            at = await store.load_document(agent_id, CHECKPOINTS, key_of(ns, stored["parent"]))
            if at is None:
                break
            for write in reversed(await self._writes(store, serial, agent_id, at.key, left)):
                writes[write[1]].append(write)
            stored = stored_of(at)
            for channel, packed in stored["values"]:
                if channel in left:
                    with guard(record_of(at)):
                        runs = [*positions(packed)]
                    items = await load_items(store, agent_id, runs, serial)
                    position = missing(runs, items)
                    if position is not None:
                        raise lost(agent_id, position)
                    with guard(record_of(at)):
                        history[channel]["seed"] = await unpack(packed, serial, items)
                    left.discard(channel)
        for each in writes.values():
            each.reverse()
        return history
