"""A checkpoint saver for LangGraph: a thread is an agent, and its checkpoints are documents.

Collections of a thread's agent, and the parts of their keys:

- ``checkpoints``: namespace, checkpoint. The value has the checkpoint without its channels, and the keys of these.
- ``values``: namespace, channel, version. Checkpoints share the values of channels that have not changed.
- ``writes``: namespace, checkpoint, task, number.
- ``runs``: run, namespace, checkpoint. The second order, in which ``adelete_for_runs`` finds checkpoints.

The coroutines are implemented, as ``ainvoke`` and ``astream`` use them.
"""

from __future__ import annotations

import asyncio
import base64
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from hashlib import blake2b
from typing import Any
from urllib.parse import quote

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_checkpoint_metadata,
    writes_sort_key,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from kode_core import (
    ABSENT,
    AgentInfo,
    ConflictError,
    CorruptRecordError,
    DeleteDocument,
    Document,
    DocumentStore,
    DocumentWrite,
    ExtendedStore,
    PutDocument,
    agent_key,
)

TEMPLATE = "langgraph"
LONGEST_PART = 80


class DocumentSaver(BaseCheckpointSaver[str]):
    """Keeps checkpoints in a store that the caller opens and closes. Any number of processes may share it."""

    def __init__(self, store: ExtendedStore, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(serde=serde)
        self.store = store

    def get_next_version(self, current: str | None, channel: None) -> str:
        """A greater version, with a random end: two branches of a thread never give one version to two values."""
        number = 0 if current is None else int(str(current).split(".")[0])
        return f"{number + 1:032}.{random.randrange(10**16):016}"

    # --- Writes

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint and its new values in one commit."""
        thread, ns, parent = _place(config)
        agent_id, checkpoint_id = await self._agent(thread), checkpoint["id"]
        values = checkpoint["channel_values"]
        keys = {channel: _key(ns, channel, str(v)) for channel, v in checkpoint["channel_versions"].items()}
        puts = [
            PutDocument("values", keys.get(channel) or _key(ns, channel, str(version)), self._packed(values[channel]))
            for channel, version in new_versions.items()
            if channel in values
        ]
        told = get_checkpoint_metadata(config, metadata)
        run = str(told.get("run_id", ""))
        stored = {
            "ns": ns,
            "checkpoint": self._packed({**checkpoint, "channel_values": {}}),
            "metadata": self._packed(told),
            "parent": parent,
            "run": run,
            "values": keys,
            "uses_deltas": bool(told.get("counters_since_delta_snapshot")),
        }
        puts.append(PutDocument("checkpoints", _key(ns, checkpoint_id), stored))
        if run:
            puts.append(PutDocument("runs", _key(run, ns, checkpoint_id), None))
        await self.store.write_documents(agent_id, puts)
        return _config(thread, ns, checkpoint_id)

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store the writes of a task in one commit; one that is stored already stays, but for errors and interrupts."""
        thread, ns, checkpoint_id = _place(config)
        agent_id, task = await self._agent(thread), _key(ns, checkpoint_id or "", task_id)
        puts = []
        for i, (channel, value) in enumerate(writes):
            number = WRITES_IDX_MAP.get(channel, i)
            stored = {"task": task_id, "path": task_path, "number": number, "channel": channel}
            stored |= {"value": self._packed(value)}
            puts.append(PutDocument("writes", f"{task}/{number}", stored, ABSENT if number >= 0 else None))
        puts = list({put.key: put for put in puts}.values())
        while puts:
            there = {key async for key in _keys(self.store, agent_id, "writes", f"{task}/")}
            puts = [put for put in puts if put.expect is None or put.key not in there]
            with suppress(ConflictError):  # the same task in another process: look again
                await self.store.write_documents(agent_id, puts)
                return

    async def _agent(self, thread: str) -> str:
        """The agent of a thread, which has info, so that queries find it."""
        agent_id = _agent_of(thread)
        if not await self.store.exists(agent_id):
            info = AgentInfo(agent_id=agent_id, template_id=TEMPLATE, metadata={"threadId": thread})
            with suppress(ConflictError):  # another task was first
                await self.store.create_agent(agent_id, info)
        return agent_id

    # --- Reads

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that *config* names, or the latest of its namespace."""
        thread, ns, checkpoint_id = _place(config)
        if checkpoint_id:
            found = await self.store.load_document(_agent_of(thread), "checkpoints", _key(ns, checkpoint_id))
        else:
            page = await self.store.list_documents(
                _agent_of(thread), "checkpoints", prefix=_key(ns, ""), reverse=True, limit=1
            )
            if page.left_out:
                raise CorruptRecordError(page.left_out[0], "the newest checkpoint cannot be read")
            found = page[0] if page else None
        return None if found is None else await self._tuple(thread, found)

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the base class names it so
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints of a thread, or of all threads, each thread's newest first."""
        wanted = _part(get_checkpoint_id(config) or "") if config else ""
        last = _part(get_checkpoint_id(before) or "") if before else ""
        ns = config["configurable"].get("checkpoint_ns") if config else None
        threads = _just(_place(config)[0]) if config else self._threads()
        left = limit
        async for thread in threads:
            agent_id, prefix = _agent_of(thread), "" if ns is None else _key(ns, "")
            keys = [key async for key in _keys(self.store, agent_id, "checkpoints", prefix)]
            for key in sorted(keys, key=_id_in, reverse=True):
                if left == 0:
                    return
                if (wanted and _id_in(key) != wanted) or (last and _id_in(key) >= last):
                    continue
                found = await self.store.load_document(agent_id, "checkpoints", key)
                if found is None:
                    continue
                metadata = self._unpacked(found.value["metadata"])
                if filter and any(metadata.get(name) != value for name, value in filter.items()):
                    continue
                yield await self._tuple(thread, found)
                left = None if left is None else left - 1

    async def _threads(self) -> AsyncIterator[str]:
        """All threads. A copy that is not finished still has the name of its source, and is left out."""
        async for session in self.store.iter_sessions(template_id=TEMPLATE):
            thread = str(session.metadata.get("threadId"))
            if _agent_of(thread) == session.agent_id:
                yield thread

    async def _tuple(self, thread: str, found: Document) -> CheckpointTuple:
        agent_id, stored = _agent_of(thread), found.value
        channels = list(stored["values"])
        loads = [self.store.load_document(agent_id, "values", key) for key in stored["values"].values()]
        values = dict(zip(channels, await asyncio.gather(*loads), strict=True))
        checkpoint: Checkpoint = self._unpacked(stored["checkpoint"])
        checkpoint["channel_values"] = {name: self._unpacked(doc.value) for name, doc in values.items() if doc}
        writes = [doc.value async for doc in self.store.iter_documents(agent_id, "writes", prefix=f"{found.key}/")]
        writes.sort(key=lambda write: writes_sort_key(write["path"], write["task"], write["number"]))
        ns, parent = stored["ns"], stored["parent"]
        return CheckpointTuple(
            config=_config(thread, ns, checkpoint["id"]),
            checkpoint=checkpoint,
            metadata=self._unpacked(stored["metadata"]),
            parent_config=_config(thread, ns, parent) if parent else None,
            pending_writes=[(write["task"], write["channel"], self._unpacked(write["value"])) for write in writes],
        )

    # --- Whole threads

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove a thread with all that it has."""
        await self.store.delete(_agent_of(thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread in one commit; the second write only names the copy, and is done again by a repetition."""
        source, target = _agent_of(source_thread_id), _agent_of(target_thread_id)
        info = await self.store.load_info(target)
        if info is None:
            await self.store.fork(source, target, documents=True)
        elif info.metadata.get("threadId") != source_thread_id:
            raise ConflictError(target, ABSENT, "the thread exists, so that no copy can take its id")
        await self.store.update_info(target, {"threadId": target_thread_id})

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints of runs that have ended, in all threads: one commit for each thread."""
        async for thread in self._threads():
            agent_id = _agent_of(thread)
            doomed = {
                key.partition("/")[2]
                for run in run_ids
                async for key in _keys(self.store, agent_id, "runs", _key(run, ""))
            }
            await self._drop(agent_id, doomed)

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove all checkpoints of threads, or all but the latest of each namespace.

        A namespace whose latest checkpoint needs older ones, for a DeltaChannel, is left as it is.
        """
        for thread in thread_ids:
            if strategy == "delete":
                await self.adelete_thread(thread)
                continue
            agent_id = _agent_of(thread)
            by_ns: dict[str, list[str]] = {}
            async for key in _keys(self.store, agent_id, "checkpoints"):
                by_ns.setdefault(key.partition("/")[0], []).append(key)
            doomed: set[str] = set()
            for keys in by_ns.values():
                latest = await self.store.load_document(agent_id, "checkpoints", keys[-1])
                if latest is not None and not latest.value["uses_deltas"]:
                    doomed |= {*keys[:-1]}
            await self._drop(agent_id, doomed)

    async def _drop(self, agent_id: str, doomed: set[str]) -> None:
        """Remove checkpoints, their writes and the values that no other checkpoint has, in one commit.

        No run may go on from one of them meanwhile: its next checkpoint would share their values.
        """
        if not doomed:
            return
        kept: set[str] = set()
        gone: dict[tuple[str, str], None] = {}
        async for found in self.store.iter_documents(agent_id, "checkpoints"):
            if found.key not in doomed:
                kept |= {*found.value["values"].values()}
                continue
            gone["checkpoints", found.key] = None
            gone |= {("values", key): None for key in found.value["values"].values()}
            if found.value["run"]:
                gone["runs", f"{_key(found.value['run'])}/{found.key}"] = None
            gone |= {("writes", key): None async for key in _keys(self.store, agent_id, "writes", f"{found.key}/")}
        removals: list[DocumentWrite] = [
            DeleteDocument(*name) for name in gone if name[0] != "values" or name[1] not in kept
        ]
        await self.store.write_documents(agent_id, removals)

    # --- Values

    def _packed(self, value: Any) -> list[str]:
        kind, data = self.serde.dumps_typed(value)
        return [kind, base64.b64encode(data).decode()]

    def _unpacked(self, packed: Any) -> Any:
        return self.serde.loads_typed((packed[0], base64.b64decode(packed[1])))


# --- Names ------------------------------------------------------------------------------------------------------------


def _agent_of(thread: str) -> str:
    return agent_key(TEMPLATE, thread)


def _config(thread: str, ns: str, checkpoint_id: str) -> RunnableConfig:
    return {"configurable": {"thread_id": thread, "checkpoint_ns": ns, "checkpoint_id": checkpoint_id}}


def _place(config: RunnableConfig) -> tuple[str, str, str | None]:
    """The thread, the namespace and the checkpoint that a configuration names."""
    named = config["configurable"]
    return str(named["thread_id"]), named.get("checkpoint_ns", ""), get_checkpoint_id(config)


def _key(*parts: str) -> str:
    """A key of several parts, none of which has a slash; the order of ids of checkpoints is kept."""
    return "/".join(map(_part, parts))


def _part(text: str) -> str:
    """A part of a key: readable if it is short; otherwise a digest after a star, which is escaped in other parts."""
    escaped = quote(text, safe="")
    return escaped if len(escaped) <= LONGEST_PART else f"*{blake2b(text.encode(), digest_size=20).hexdigest()}"


def _id_in(key: str) -> str:
    """The part of the checkpoint in a key of the collection ``checkpoints``."""
    return key.partition("/")[2]


async def _keys(store: DocumentStore, agent_id: str, collection: str, prefix: str = "") -> AsyncIterator[str]:
    """All keys of a prefix, page by page."""
    cursor = None
    while True:
        page = await store.list_document_keys(agent_id, collection, prefix=prefix, limit=1_000, cursor=cursor)
        for key in page:
            yield key
        cursor = page.next_cursor
        if cursor is None:
            return


async def _just(thread: str) -> AsyncIterator[str]:
    yield thread
