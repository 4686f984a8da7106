"""The client that a process's stores share, and how every call is limited, tried again, and its errors translated.

botocore's own retries are off: only the caller knows whether a call may be repeated.
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

from kode_core.authoring.calls import call_driver
from kode_core.authoring.parallel import each
from kode_core.errors import ConfigurationError, KodeError, StoreBusyError
from kode_dynamodb.errors import DRIVER_ERRORS, is_in_doubt, is_refused, is_throttled, is_transient, to_kode_error
from kode_dynamodb.options import DynamoDBOptions

__all__ = ["ALL", "AT_ONCE", "LOOKING", "Connection", "Record", "Sizes", "connect", "first_of"]

Record: TypeAlias = dict[str, Any]
"""An item in the service's form: ``{"pk": {"S": "…"}, …}``."""

_IN_ALL: Final = 32
AT_ONCE: Final = 8
"""The number of parallel requests of one call. It leaves room for the requests of other calls."""
_GET_AT_ONCE: Final = 100
_WRITE_AT_ONCE: Final = 25
_PAUSE_S: Final = 0.02
_LONGEST_PAUSE_S: Final = 0.5


class Sizes(NamedTuple):
    """The most items on the first page of a query, and on each later one."""

    first: int
    later: int


ALL: Final = Sizes(1000, 1000)
"""The page sizes of a query whose caller wants all items."""
LOOKING: Final = Sizes(100, 1000)
"""The page sizes of a search: a common item is found on the small first page at low cost, a rare one in few pages."""


def first_of(limit: int) -> Sizes:
    """The page sizes of a query whose caller wants the first *limit* items."""
    size = min(max(limit, 1), ALL.first)
    return Sizes(size, size)


class Connection:
    """A client for one table and the rules for its use.

    Attributes:
        place: the address of the table, for messages.
        units: the consumed units by ``read`` and ``write``, if they are counted.
    """

    def __init__(self, client: Any, options: DynamoDBOptions, release: Callable[[], Awaitable[None]]) -> None:
        self.address = options.address
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
        """Make a call that reads items."""
        return await self._run(name, {**arguments, **self._counted}, again=True, writes=False)

    async def ask(self, name: str, **arguments: Any) -> Record:
        """Make a call about the table, whose units are not counted."""
        return await self._run(name, arguments, again=True, writes=False)

    async def repeat(self, name: str, **arguments: Any) -> bool:
        """Make a call that writes and is safe to repeat, even if it was applied. False if its condition fails."""
        return await self._written(name, arguments, again=True)

    async def put(self, **arguments: Any) -> Record | None:
        """Put an item, safely again. Returns the item that it replaces, empty without one; None if its condition fails.

        A put that is repeated after a lost answer may find its own item, and then fails by its condition.
        """
        given = {**arguments, "ReturnValues": "ALL_OLD", **self._counted}
        try:
            found = await self._run("put_item", given, again=True, writes=True)
        except _RefusedError:
            return None
        return found.get("Attributes") or {}

    async def write(self, name: str, **arguments: Any) -> bool:
        """Make a call that writes, once. False if its condition fails.

        Raises:
            OutcomeUnknownError: the write may or may not have been applied.
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
            raise to_kode_error(exc, self.address, writes=writes) from exc
        if self._counted:
            self._count(found, "write" if writes else "read")
        return found

    async def _persistent(self, call: Callable[[], Awaitable[Record]], *, again: bool) -> Record:
        """Make a call, again while the service throttles and, if it is safe, when the connection broke.

        Each attempt has its own timeout. A timeout over all attempts could fire between two of them, and a throttled
        write would then be in doubt.
        """
        patience = _Patience()
        while True:
            try:
                async with self._gate, asyncio.timeout(self._seconds):
                    return await call_driver(call)
            except TimeoutError:
                raise  # one attempt took as long as all may take together
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
        """All items of a query, or the first *limit*, in pages of these sizes; a page has a megabyte at most."""
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
        """All items of a query, or the first *limit*."""
        return [item async for page in self.pages(limit=limit, **arguments) for item in page]

    async def get(self, key: Record, **arguments: Any) -> Record | None:
        """An item, by a consistent read."""
        found = await self.read("get_item", Key=key, ConsistentRead=True, **arguments)
        return found.get("Item")

    async def get_all(self, keys: Sequence[Record], *, consistent: bool = True) -> list[Record]:
        """The items that exist under these keys, once each, in any order."""
        keys = list({(key["pk"]["S"], key["sk"]["S"]): key for key in keys}.values())  # no key twice
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
        """Delete items unconditionally."""
        await self._write_all([{"DeleteRequest": {"Key": key}} for key in keys], again=True)

    async def put_all(self, items: Sequence[Record]) -> None:
        """Put items unconditionally. Each call is made once.

        Raises:
            OutcomeUnknownError: some items may not have been put, or may still arrive.
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
        """Wait before a request for the items that the service left undone."""
        if went_on:
            patience.renew()
        elif not patience.lasts(self._seconds):
            raise StoreBusyError(f"{self.address}: the service kept throttling, and left a part of a batch undone")
        await patience.pause()

    async def close(self) -> None:
        """Close the client, unless other stores use it or it is the caller's."""
        await self._release()


class _Patience:
    """Limits the time for retries since the first failure, with growing pauses."""

    def __init__(self) -> None:
        self.renew()

    def renew(self) -> None:
        """Begin anew, after a success."""
        self._failed_at: float | None = None
        self._pause = _PAUSE_S

    def lasts(self, seconds: float) -> bool:
        """Whether the first failure was less than this long ago."""
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
    """A client, and the number of stores that use it."""

    def __init__(self, options: DynamoDBOptions) -> None:
        self.users = 0
        self.opened = asyncio.ensure_future(_opened(options))

    async def close(self) -> None:
        """Close the client as soon as it is open, if it can be opened."""
        await asyncio.wait([self.opened])
        if not self.opened.cancelled() and self.opened.exception() is None:
            context, _ = self.opened.result()
            await context.__aexit__(None, None, None)


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Any, ...], _Shared]] = WeakKeyDictionary()
_closing: set[asyncio.Future[None]] = set()


async def connect(options: DynamoDBOptions) -> Connection:
    """A connection. Stores of one event loop with the same options share its client.

    Raises:
        ConfigurationError: the options do not fit together, or credentials are missing.
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
            closing = asyncio.ensure_future(shared.close())  # the abandoned client may still be opening
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
        return ConfigurationError(f"{options.address}: the endpoint's URL or the region cannot be used")
    return to_kode_error(exc, options.address, writes=False)


def _key(options: DynamoDBOptions) -> tuple[Any, ...]:
    """The options that a shared client depends on."""
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
