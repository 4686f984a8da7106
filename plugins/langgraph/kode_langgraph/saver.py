"""The checkpoint saver: LangGraph's interface, twice, over the checkpoints of a store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from kode_core import ExtendedStore
from kode_langgraph.checkpoints import Checkpoints
from kode_langgraph.home import BorrowedHome, Home, OwnHome
from kode_langgraph.packing import Serial
from kode_langgraph.removal import Removal

__all__ = ["KodeSaver"]


class KodeSaver(BaseCheckpointSaver[str]):
    """Keeps the checkpoints of graphs in a store of kode-core, from any event loop and any thread.

    :meth:`from_url` opens a store of the saver's own. This constructor takes an open store, which the caller closes;
    synchronous calls then need another thread than the one of the store's event loop.

    Args:
        store: any store that keeps documents.
        serde: LangGraph's serializer of values, ``JsonPlusSerializer()`` unless given.
        messages: the channel whose messages also become messages and tool calls of the thread's agent, for queries,
            commands and statistics; None for none. With an ``EncryptedSerializer`` none do, as they are not encrypted.
    """

    def __init__(
        self,
        store: ExtendedStore,
        *,
        serde: SerializerProtocol | None = None,
        messages: str | None = "messages",
    ) -> None:
        super().__init__(serde=serde)
        self._begin(BorrowedHome(store), messages)

    @classmethod
    def from_url(
        cls,
        url: object = None,
        *,
        serde: SerializerProtocol | None = None,
        messages: str | None = "messages",
        **options: Any,
    ) -> Self:
        """A saver with a store of its own: ``KodeSaver.from_url("sqlite:///data/agents.db")``.

        It takes what :func:`kode_core.create_extended_store` takes, and checks it at once. The store opens at its first
        use, in a thread with an event loop of its own. Use the saver with ``with`` or ``async with``, or call
        :meth:`close` at the end.

        Raises:
            ConfigurationError: the configuration is wrong; the message says what to change.
        """
        saver = cls.__new__(cls)
        BaseCheckpointSaver.__init__(saver, serde=serde)
        saver._begin(OwnHome(url, options), messages)
        return saver

    def _begin(self, home: Home, messages: str | None) -> None:
        self.home = home
        self._checkpoints = Checkpoints(None if Serial(self.serde).encrypts else messages)
        self._removal = Removal(self._checkpoints)

    def open(self) -> Self:
        """Open the store now instead of at its first use."""
        self.home.open()
        return self

    def close(self) -> None:
        """Close the store, if it is the saver's own."""
        self.home.close()

    def __enter__(self) -> Self:
        try:
            return self.open()
        except BaseException:
            self.close()
            raise

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__) if self.home.is_own else self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    def get_next_version(self, current: Any, channel: None) -> str:
        """A greater version, with a random end: two branches of a thread never give one version to two values."""
        number = 0 if current is None else int(str(current).split(".")[0])
        return f"{number + 1:032}.{random.randrange(10**16):016}"  # noqa: S311 - no secret

    # --- coroutines

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The checkpoint that *config* names, or the latest of its namespace.

        Raises:
            CorruptRecordError: it is damaged.
        """
        return await self.home.call(lambda store: self._checkpoints.get_tuple(store, Serial(self.serde), config))

    async def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the base class names it so
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The checkpoints of a thread, or of all threads, each thread's newest first."""
        serial = Serial(self.serde)
        stream = self.home.stream(lambda s: self._checkpoints.iterate(s, serial, config, filter, before, limit))
        async for found in stream:
            yield found

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint, with the new items of its values, in one commit."""
        serial = Serial(self.serde)
        return await self.home.call(
            lambda store: self._checkpoints.put(store, serial, config, checkpoint, metadata, new_versions)
        )

    async def aput_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """Store the writes of a task in one commit; one that is stored already stays, but for errors and interrupts."""
        serial = Serial(self.serde)
        await self.home.call(
            lambda store: self._checkpoints.put_writes(store, serial, config, writes, task_id, task_path)
        )

    async def adelete_thread(self, thread_id: str) -> None:
        """Remove a thread with all that it has, its messages and tool calls too."""
        await self.home.call(lambda store: self._removal.delete_thread(store, str(thread_id)))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Remove the checkpoints of runs that have ended, in all threads; the messages of the agents stay."""
        await self.home.call(lambda store: self._removal.delete_for_runs(store, run_ids))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy a thread with all that it has.

        Raises:
            ConflictError: the target exists.
        """
        await self.home.call(
            lambda store: self._removal.copy_thread(store, str(source_thread_id), str(target_thread_id))
        )

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Remove all of some threads, or all checkpoints but the latest of each namespace, and what that one needs."""
        await self.home.call(lambda store: self._removal.prune(store, thread_ids, strategy))

    async def aget_delta_channel_history(self, *, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, Any]:
        """The writes to channels by the ancestors of a checkpoint, back to the nearest that has the channel's value."""
        serial = Serial(self.serde)
        return await self.home.call(lambda store: self._checkpoints.delta_history(store, serial, config, channels))

    # --- the same for synchronous code

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """As :meth:`aget_tuple`."""
        return self.home.call_sync(lambda store: self._checkpoints.get_tuple(store, Serial(self.serde), config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,  # noqa: A002 - the base class names it so
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """As :meth:`alist`."""
        serial = Serial(self.serde)
        return self.home.stream_sync(lambda s: self._checkpoints.iterate(s, serial, config, filter, before, limit))

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """As :meth:`aput`."""
        serial = Serial(self.serde)
        return self.home.call_sync(
            lambda store: self._checkpoints.put(store, serial, config, checkpoint, metadata, new_versions)
        )

    def put_writes(
        self, config: RunnableConfig, writes: Sequence[tuple[str, Any]], task_id: str, task_path: str = ""
    ) -> None:
        """As :meth:`aput_writes`."""
        serial = Serial(self.serde)
        self.home.call_sync(
            lambda store: self._checkpoints.put_writes(store, serial, config, writes, task_id, task_path)
        )

    def delete_thread(self, thread_id: str) -> None:
        """As :meth:`adelete_thread`."""
        self.home.call_sync(lambda store: self._removal.delete_thread(store, str(thread_id)))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """As :meth:`adelete_for_runs`."""
        self.home.call_sync(lambda store: self._removal.delete_for_runs(store, run_ids))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """As :meth:`acopy_thread`."""
        self.home.call_sync(
            lambda store: self._removal.copy_thread(store, str(source_thread_id), str(target_thread_id))
        )

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """As :meth:`aprune`."""
        self.home.call_sync(lambda store: self._removal.prune(store, thread_ids, strategy))

    def get_delta_channel_history(self, *, config: RunnableConfig, channels: Sequence[str]) -> Mapping[str, Any]:
        """As :meth:`aget_delta_channel_history`."""
        serial = Serial(self.serde)
        return self.home.call_sync(lambda store: self._checkpoints.delta_history(store, serial, config, channels))
