"""The client: shared by the stores of a process, and how every call on it is bounded, tried again and told of.

botocore repeats nothing by itself here: whether a call may be made again is known above, and not there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import aioboto3
from aiobotocore.config import AioConfig

from kode_core.authoring.calls import made
from kode_core.authoring.parallel import each
from kode_core.errors import ConfigurationError, KodeError, StoreBusyError
from kode_dynamodb.errors import DRIVER_ERRORS, is_in_doubt, is_refused, is_throttled, is_transient, to_kode_error
from kode_dynamodb.options import DynamoDBOptions

__all__ = ["ALL", "AT_ONCE", "LOOKING", "Connection", "Record", "Sizes", "connect", "first_of"]

Record: TypeAlias = dict[str, Any]
"""An item as the service takes it: ``{"pk": {"S": "…"}, …}``."""

_IN_ALL: Final = 32
AT_ONCE: Final = 8
"""How many requests one call makes side by side: others get their turn between them."""
_GET_AT_ONCE: Final = 100
_WRITE_AT_ONCE: Final = 25
_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5


class Sizes(NamedTuple):
    """How many items the first page of a query has at most, and how many each later one."""

    first: int
    later: int


ALL: Final = Sizes(1000, 1000)
"""For a query of which everything is wanted."""
LOOKING: Final = Sizes(100, 1000)
"""For a query that looks for something, however much of it is wanted: what is usual is soon found at low cost, and what
is rare in few pages."""


def first_of(limit: int) -> Sizes:
    """For a query whose first items are wanted, so many."""
    size = min(max(limit, 1), ALL.first)
    return Sizes(size, size)


class Connection:
    """A client for one table, and the rules of its use.

    Attributes:
        place: where the table is, for messages.
        units: what was consumed, by ``read`` and ``write``, if it is counted.
    """

    def __init__(self, client: Any, options: DynamoDBOptions, release: Callable[[], Awaitable[None]]) -> None:
        self.place = options.place
        self.table = options.table
        self.units: Counter[str] = Counter()
        self._client = client
        self._release = release
        self._seconds = (options.connection_timeout_millis + options.command_timeout_millis) / 1000
        self._connect_s = options.connection_timeout_millis / 1000
        self._counted = {"ReturnConsumedCapacity": "TOTAL"} if options.count_units else {}
        self._gate = asyncio.Semaphore(min(_IN_ALL, options.max))

    # --- calls

    async def read(self, name: str, **arguments: Any) -> Record:
        """Make a call that changes nothing."""
        return await self._run(name, {**arguments, **self._counted}, again=True, writes=False)

    async def ask(self, name: str, **arguments: Any) -> Record:
        """Make a call that changes nothing and is not about items."""
        return await self._run(name, arguments, again=True, writes=False)

    async def repeat(self, name: str, **arguments: Any) -> bool:
        """Make a call that writes and may be made again although it was applied; False when its condition fails."""
        return await self._written(name, arguments, again=True)

    async def write(self, name: str, **arguments: Any) -> bool:
        """Make a call that writes, once; False when its condition fails.

        Raises:
            OutcomeUnknownError: nobody can say whether it was applied.
        """
        return await self._written(name, arguments, again=False)

    async def _written(self, name: str, arguments: Mapping[str, Any], *, again: bool) -> bool:
        try:
            await self._run(name, {**arguments, **self._counted}, again=again, writes=True)
        except _RefusedError:
            return False
        return True

    async def _run(self, name: str, arguments: Mapping[str, Any], *, again: bool, writes: bool) -> Record:
        if not name.startswith(("batch_", "transact_")):
            arguments = {"TableName": self.table, **arguments}
        try:
            found = await self._persistent(lambda: getattr(self._client, name)(**arguments), again=again)
        except KodeError:  # some are OSErrors, too
            raise
        except DRIVER_ERRORS as exc:
            if is_refused(exc):
                raise _RefusedError from exc
            raise to_kode_error(exc, self.place, writes=writes) from exc
        if self._counted:
            self._count(found, "write" if writes else "read")
        return found

    async def _persistent(self, call: Callable[[], Awaitable[Record]], *, again: bool) -> Record:
        """Make a call; make it again while the service throttles, and, if it may be, when the connection broke.

        Each time has its own limit: one for all would end in a pause after some, and nobody could say of what was
        throttled that it was not written.
        """
        patience = _Patience()
        while True:
            try:
                async with self._gate, asyncio.timeout(self._seconds):
                    return await made(call)
            except TimeoutError:
                raise  # it took as long as all times together may
            except DRIVER_ERRORS as exc:
                if is_throttled(exc):
                    is_due = patience.lasts(self._seconds)
                else:
                    is_safe = is_transient(exc) and (again or not is_in_doubt(exc))
                    is_due = is_safe and patience.lasts(self._connect_s)
                if not is_due:
                    raise
            await patience.pause()

    def _count(self, found: Record, kind: str) -> None:
        consumed: Any = found.get("ConsumedCapacity") or []
        for one in consumed if isinstance(consumed, list) else [consumed]:
            self.units[kind] += one.get("CapacityUnits", 0)

    # --- items

    async def pages(
        self, *, limit: int | None = None, sizes: Sizes | None = None, **arguments: Any
    ) -> AsyncIterator[list[Record]]:
        """All items of a query, or the first so many, in pages of these sizes, or of a megabyte at most."""
        count, start, size = 0, Record(), sizes and sizes.first
        while limit is None or count < limit:
            left = size if limit is None else limit - count
            most = {} if left is None else {"Limit": left}
            page = await self.read("query", **arguments, **start, **most)
            yield page["Items"]
            if not page.get("LastEvaluatedKey"):
                break
            count, start = count + len(page["Items"]), {"ExclusiveStartKey": page["LastEvaluatedKey"]}
            size = sizes and sizes.later

    async def query(self, *, limit: int | None = None, **arguments: Any) -> list[Record]:
        """All items of a query, or the first so many."""
        return [item async for page in self.pages(limit=limit, **arguments) for item in page]

    async def get(self, key: Record, **arguments: Any) -> Record | None:
        """An item as it is now."""
        found = await self.read("get_item", Key=key, ConsistentRead=True, **arguments)
        return found.get("Item")

    async def get_all(self, keys: Sequence[Record], *, consistent: bool = True) -> list[Record]:
        """Those of these items that there are, once each, in any order."""
        keys = list({(key["pk"]["S"], key["sk"]["S"]): key for key in keys}.values())  # twice is refused
        pieces = [keys[i : i + _GET_AT_ONCE] for i in range(0, len(keys), _GET_AT_ONCE)]
        found = await each(lambda piece: self._get_some(piece, consistent=consistent), pieces, at_once=AT_ONCE)
        return [item for some in found for item in some]

    async def _get_some(self, keys: Sequence[Record], *, consistent: bool) -> list[Record]:
        wanted: Record = {self.table: {"Keys": list(keys), "ConsistentRead": consistent}}
        found: list[Record] = []
        patience = _Patience()
        while wanted:
            page = await self.read("batch_get_item", RequestItems=wanted)
            found += page["Responses"].get(self.table, [])
            left = page.get("UnprocessedKeys") or {}
            if left:
                went_on = len(left[self.table]["Keys"]) < len(wanted[self.table]["Keys"])
                await self._wait_for_more(patience, went_on=went_on)
            wanted = left
        return found

    async def delete_all(self, keys: Sequence[Record]) -> None:
        """Delete items, whatever they are by now."""
        await self._write_all([{"DeleteRequest": {"Key": key}} for key in keys], again=True)

    async def put_all(self, items: Sequence[Record]) -> None:
        """Put items, whatever is there; each call is made once.

        Raises:
            OutcomeUnknownError: nobody can say whether all were put, or whether some still will be.
        """
        await self._write_all([{"PutRequest": {"Item": item}} for item in items], again=False)

    async def _write_all(self, requests: Sequence[Record], *, again: bool) -> None:
        pieces = [requests[i : i + _WRITE_AT_ONCE] for i in range(0, len(requests), _WRITE_AT_ONCE)]
        await each(lambda piece: self._write_some(piece, again=again), pieces, at_once=AT_ONCE)

    async def _write_some(self, requests: Sequence[Record], *, again: bool) -> None:
        wanted: Record = {self.table: requests}
        patience = _Patience()
        while wanted:
            arguments = {"RequestItems": wanted, **self._counted}
            page = await self._run("batch_write_item", arguments, again=again, writes=True)
            left = page.get("UnprocessedItems") or {}
            if left:
                await self._wait_for_more(patience, went_on=len(left[self.table]) < len(wanted[self.table]))
            wanted = left

    async def _wait_for_more(self, patience: _Patience, *, went_on: bool) -> None:
        """Wait before what the service left undone is asked for again."""
        if went_on:
            patience.renew()
        elif not patience.lasts(self._seconds):
            raise StoreBusyError(f"{self.place}: the service kept throttling, and left a part of a batch undone")
        await patience.pause()

    async def close(self) -> None:
        """Close the client, unless others use it, or it is the caller's."""
        await self._release()


class _Patience:
    """How long something is made again since it failed, with pauses that grow."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew: something was done."""
        self._failed_at: float | None = None
        self._pause = _PAUSE_S

    def lasts(self, seconds: float) -> bool:
        """Whether it failed less than so long ago for the first time."""
        now = time.monotonic()
        if self._failed_at is None:
            self._failed_at = now
        return now - self._failed_at < seconds

    async def pause(self) -> None:
        """Wait for a random part of the pause."""
        await asyncio.sleep(random.uniform(0, self._pause))  # noqa: S311
        self._pause = min(self._pause * 2, _LONGEST_PAUSE_S)


class _RefusedError(Exception):
    """The condition of a write did not hold."""


# --- Clients ----------------------------------------------------------------------------------------------------------


class _Shared:
    """A client, and how many stores use it."""

    def __init__(self, options: DynamoDBOptions) -> None:
        self.users = 0
        self.opened = asyncio.ensure_future(_opened(options))

    async def close(self) -> None:
        """Close it as soon as it is open; nothing where it cannot be opened."""
        await asyncio.wait([self.opened])
        if not self.opened.cancelled() and self.opened.exception() is None:
            context, _ = self.opened.result()
            await context.__aexit__(None, None, None)


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Any, ...], _Shared]] = WeakKeyDictionary()
_closing: set[asyncio.Future[None]] = set()


async def connect(options: DynamoDBOptions) -> Connection:
    """A connection; stores of one event loop with the same options share its client.

    Raises:
        ConfigurationError: the options do not fit together, or there are no credentials.
    """
    if options.client is not None:
        return Connection(options.client, options, _nothing)
    loop = asyncio.get_running_loop()
    clients = _clients.setdefault(loop, {})
    key = _key(options)
    if key not in clients:
        clients[key] = _Shared(options)
    shared = clients[key]
    shared.users += 1

    async def release() -> None:
        shared.users -= 1
        if not shared.users:
            clients.pop(key, None)
            await shared.close()

    try:
        _, client = await asyncio.shield(shared.opened)
    except BaseException as exc:
        shared.users -= 1
        if clients.get(key) is shared and not shared.users:
            clients.pop(key)
            closing = asyncio.ensure_future(shared.close())  # what was given up may still be opening
            _closing.add(closing)
            closing.add_done_callback(_closing.discard)
        if isinstance(exc, (*DRIVER_ERRORS, ValueError)):
            raise _configuration_error(exc, options) from exc
        raise
    return Connection(client, options, release)


async def _nothing() -> None:
    return


def _configuration_error(exc: BaseException, options: DynamoDBOptions) -> Exception:
    if isinstance(exc, ValueError):
        return ConfigurationError(f"{options.place}: the endpoint's URL or the region cannot be used")
    return to_kode_error(exc, options.place, writes=False)


def _key(options: DynamoDBOptions) -> tuple[Any, ...]:
    """What makes a client another one."""
    credentials = (options.profile, options.access_key_id, options.secret_access_key, options.session_token)
    times = (options.max, options.connection_timeout_millis, options.command_timeout_millis)
    return (options.region, options.endpoint_url, *credentials, *times, id(options.session))


async def _opened(options: DynamoDBOptions) -> tuple[Any, Any]:
    config = AioConfig(
        connect_timeout=options.connection_timeout_millis / 1000,
        read_timeout=options.command_timeout_millis / 1000,
        max_pool_connections=options.max,
        retries={"total_max_attempts": 1, "mode": "standard"},
        parameter_validation=False,
        user_agent_extra="kode",
    )
    session = options.session or aioboto3.Session(
        aws_access_key_id=options.access_key_id,
        aws_secret_access_key=options.secret_access_key,
        aws_session_token=options.session_token,
        profile_name=options.profile,
    )
    make = getattr(session, "client", None) or session.create_client
    context = make("dynamodb", region_name=options.region, endpoint_url=options.endpoint_url, config=config)
    return context, await context.__aenter__()
