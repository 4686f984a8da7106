"""The long-term memory of LangGraph: items under namespaces and keys, without vectors."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

from langgraph.store.base import (
    BaseStore,
    GetOp,
    Item,
    ListNamespacesOp,
    Op,
    PutOp,
    Result,
    SearchItem,
    SearchOp,
    TTLConfig,
    validate_op_namespace,
)

from kode_core import (
    AgentInfo,
    ConflictError,
    DeleteDocument,
    Document,
    DocumentWrite,
    ExtendedStore,
    InvalidArgumentError,
    PutDocument,
    StoreBusyError,
    now_ms,
)
from kode_langgraph.home import BorrowedHome, Home, OwnHome
from kode_langgraph.keys import part_of
from kode_langgraph.matching import check_filter, fits
from kode_langgraph.namespaces import (
    EXPIRING,
    ITEMS,
    MINUTE_MS,
    STEP,
    TEMPLATE,
    about_item,
    agent_of_namespace,
    documents_of,
    expiry_key,
    is_expired,
    metadata_of,
    namespaces_of,
    sweep,
    under,
    writes_of,
)
from kode_langgraph.saver import KodeSaver

__all__ = ["KodeStore"]

_ATTEMPTS: Final = 200


class KodeStore(BaseStore):
    """LangGraph's long-term memory in a store of kode-core, from any event loop and any thread.

    :meth:`from_url` opens a store of its own. This constructor takes an open store, which the caller closes, or a
    :class:`~kode_langgraph.KodeSaver`, whose store it shares.

    An expired item is not returned, listed or counted any more; :meth:`sweep_ttl` removes it.

    Args:
        store: any store that keeps documents, or a saver.
        ttl: ``default_ttl`` in minutes, and ``refresh_on_read``, which is on unless it says otherwise.
    """

    supports_ttl = True

    def __init__(self, store: ExtendedStore | KodeSaver, *, ttl: TTLConfig | None = None) -> None:
        self._begin(store.home if isinstance(store, KodeSaver) else BorrowedHome(store), ttl, own=False)

    @classmethod
    def from_url(cls, url: object = None, *, ttl: TTLConfig | None = None, **options: Any) -> Self:
        """A memory with a store of its own: ``KodeStore.from_url("sqlite:///data/agents.db")``.

        As :meth:`kode_langgraph.KodeSaver.from_url`.
        """
        memory = cls.__new__(cls)
        memory._begin(OwnHome(url, options), ttl, own=True)
        return memory

    def _begin(self, home: Home, ttl: TTLConfig | None, *, own: bool) -> None:
        self.home = home
        self.ttl_config = ttl
        self._is_own = own
        self._sweeper: _Sweeper | None = None

    def close(self) -> None:
        """End the sweeper, and close the store, if it is the memory's own."""
        self.stop_ttl_sweeper()
        if self._is_own:
            self.home.close()

    def __enter__(self) -> Self:
        try:
            self.home.open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return await asyncio.to_thread(self.__enter__) if self._is_own else self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, at: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    # --- operations

    def batch(self, ops: Iterable[Op]) -> list[Result]:
        """As :meth:`abatch`."""
        asked = self._checked(ops)
        return self.home.call_sync(lambda store: self._batch(store, asked))

    async def abatch(self, ops: Iterable[Op]) -> list[Result]:
        """Do several operations; reads come first, and the later of two puts of a key wins.

        The puts of one namespace are one commit.
        """
        asked = self._checked(ops)
        return await self.home.call(lambda store: self._batch(store, asked))

    def _checked(self, ops: Iterable[Op]) -> Sequence[Op]:
        asked = list(ops)
        for op in asked:
            if not isinstance(op, GetOp | SearchOp | PutOp | ListNamespacesOp):
                raise InvalidArgumentError(f"{type(op).__name__} is no operation of LangGraph's stores")
            validate_op_namespace(op)
            if isinstance(op, SearchOp):
                check_filter(op.filter)
            if isinstance(op, PutOp) and not op.namespace:
                raise InvalidArgumentError("an item needs a namespace of at least one label")
            if isinstance(op, SearchOp | ListNamespacesOp) and (op.limit < 0 or op.offset < 0):
                raise InvalidArgumentError(f"limit and offset must not be negative: {op.limit}, {op.offset}")
        return asked

    async def _batch(self, store: ExtendedStore, ops: Sequence[Op]) -> list[Result]:
        results: list[Result] = [None] * len(ops)
        puts: dict[tuple[str, ...], dict[str, PutOp]] = {}
        for i, op in enumerate(ops):
            if isinstance(op, GetOp):
                results[i] = await self._get(store, op)
            elif isinstance(op, SearchOp):
                results[i] = await self._search(store, op)
            elif isinstance(op, ListNamespacesOp):
                results[i] = await namespaces_of(store, op)
            else:
                puts.setdefault(tuple(op.namespace), {})[op.key] = op
        for namespace, by_key in puts.items():
            items = list(by_key.values())
            for first in range(0, len(items), STEP):
                await self._put(store, namespace, items[first : first + STEP])
        return results

    async def _get(self, store: ExtendedStore, op: GetOp) -> Item | None:
        agent_id = agent_of_namespace(op.namespace)
        found = await store.load_document(agent_id, ITEMS, part_of(op.key))
        if found is None or is_expired(found):
            return None
        if op.refresh_ttl:
            await self._refresh(store, agent_id, [found])
        about = about_item(found)
        return Item(namespace=tuple(op.namespace), **about)

    async def _search(self, store: ExtendedStore, op: SearchOp) -> list[SearchItem]:
        result: list[SearchItem] = []
        skipped = 0
        async for namespace in under(store, tuple(op.namespace_prefix)):
            if len(result) >= op.limit:
                break
            agent_id = agent_of_namespace(namespace)
            refreshed: list[Document] = []
            async for found in documents_of(store, agent_id, op.limit + op.offset if not op.filter else 1_000):
                about = about_item(found)
                if is_expired(found) or not fits(about["value"], op.filter):
                    continue
                skipped += 1
                if skipped <= op.offset:
                    continue
                if len(result) >= op.limit:
                    break
                result.append(SearchItem(namespace=namespace, **about))
                refreshed.append(found)
            if op.refresh_ttl and refreshed:
                await self._refresh(store, agent_id, refreshed)
        return result

    async def _put(self, store: ExtendedStore, namespace: tuple[str, ...], ops: Sequence[PutOp]) -> None:
        agent_id = agent_of_namespace(namespace)
        for _ in range(_ATTEMPTS):
            loads = [store.load_document(agent_id, ITEMS, part_of(op.key)) for op in ops]
            old = await asyncio.gather(*loads)
            writes = [write for op, found in zip(ops, old, strict=True) for write in writes_of(op, found)]
            if not writes:
                return
            info = None
            if any(isinstance(write, PutDocument) for write in writes) and not await store.exists(agent_id):
                info = AgentInfo(agent_id=agent_id, template_id=TEMPLATE, metadata=metadata_of(namespace))
            try:
                if info is not None:
                    with suppress(ConflictError):  # another writer was first
                        await store.create_agent(agent_id, info)
                await store.write_documents(agent_id, writes)
            except ConflictError:
                continue
            return
        raise StoreBusyError(f"other processes kept writing to the namespace {namespace!r:.200}; try again")

    async def _refresh(self, store: ExtendedStore, agent_id: str, found: Sequence[Document]) -> None:
        """Begin the time to live of items anew; an item that someone else writes meanwhile is left alone."""
        if not (self.ttl_config or {}).get("refresh_on_read", True):
            return
        for document in found:
            stored: Any = document.value
            if stored["ttl"] is None:
                continue
            span = stored["ttl"] * MINUTE_MS
            expires = now_ms() + int(span)
            if expires - stored["expires"] < span / 100:
                continue
            writes: list[DocumentWrite] = [
                PutDocument(ITEMS, document.key, {**stored, "expires": expires}, document.version),
                DeleteDocument(EXPIRING, expiry_key(stored["expires"], document.key)),
                PutDocument(EXPIRING, expiry_key(expires, document.key), None),
            ]
            with suppress(ConflictError):
                await store.write_documents(agent_id, writes)

    # --- time to live

    async def asweep_ttl(self) -> int:
        """Remove the expired items of all namespaces; returns their number."""
        return await self.home.call(sweep)

    def sweep_ttl(self) -> int:
        """As :meth:`asweep_ttl`."""
        return self.home.call_sync(sweep)

    def start_ttl_sweeper(self, sweep_interval_minutes: float | None = None) -> Future[None]:
        """Sweep now and then, in a thread, until :meth:`stop_ttl_sweeper` or :meth:`close`."""
        if self._sweeper is None or self._sweeper.future.done():
            given = sweep_interval_minutes or (self.ttl_config or {}).get("sweep_interval_minutes") or 5
            self._sweeper = _Sweeper(self, given * 60)
        return self._sweeper.future

    def stop_ttl_sweeper(self, timeout: float | None = None) -> bool:
        """End the sweeper; False if it had not ended after *timeout* seconds."""
        return self._sweeper is None or self._sweeper.stop(timeout)


class _Sweeper:
    """A thread that sweeps."""

    def __init__(self, memory: KodeStore, seconds: float) -> None:
        self.future: Future[None] = Future()
        self._memory = memory
        self._seconds = seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._work, name="kode-ttl-sweeper", daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            while not self._ended.wait(self._seconds):
                self._memory.sweep_ttl()
        except BaseException as exc:  # noqa: BLE001 - the future has it
            self.future.set_exception(exc)
        else:
            self.future.set_result(None)

    def stop(self, timeout: float | None) -> bool:
        self._ended.set()
        self._thread.join(timeout)
        return not self._thread.is_alive()
