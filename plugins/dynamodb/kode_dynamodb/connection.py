"""The client: shared by the stores of a process, and how every call on it is bounded, tried again and told of.

botocore repeats nothing by itself here: whether a call may be made again is known above, and not there.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

import aioboto3
from aiobotocore.config import AioConfig

from kode_core.engines.calls import made
from kode_core.engines.record_io import each
from kode_core.errors import ConfigurationError
from kode_dynamodb.errors import DRIVER_ERRORS, is_in_doubt, is_refused, is_throttled, is_transient, to_kode_error
from kode_dynamodb.options import DynamoDBOptions

__all__ = ["AT_ONCE", "Connection", "Record", "connect"]

Record: TypeAlias = dict[str, Any]
"""An item as the service takes it: ``{"pk": {"S": "…"}, …}``."""

_IN_ALL: Final = 32
AT_ONCE: Final = 8
"""How many requests one call makes side by side: others get their turn between them."""
_GET_AT_ONCE: Final = 100
_WRITE_AT_ONCE: Final = 25


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
            async with self._gate, asyncio.timeout(self._seconds):
                found = await self._persistent(lambda: getattr(self._client, name)(**arguments), again=again)
        except DRIVER_ERRORS as exc:
            if is_refused(exc):
                raise _RefusedError from exc
            raise to_kode_error(exc, self.place, writes=writes) from exc
        if self._counted:
            self._count(found, "write" if writes else "read")
        return found

    async def _persistent(self, call: Callable[[], Awaitable[Record]], *, again: bool) -> Record:
        """Make a call; make it again while the service throttles, and, if it may be, when the connection broke."""
        until: float | None = None
        pause = 0.02
        while True:
            try:
                return await made(call)
            except DRIVER_ERRORS as exc:
                until = time.monotonic() + self._connect_s if until is None else until
                is_safe = again or not is_in_doubt(exc)
                is_due = is_throttled(exc) or (is_safe and is_transient(exc))
                if not is_due or time.monotonic() > until:
                    raise
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
            pause = min(pause * 2, 0.5)

    def _count(self, found: Record, kind: str) -> None:
        consumed: Any = found.get("ConsumedCapacity") or []
        for one in consumed if isinstance(consumed, list) else [consumed]:
            self.units[kind] += one.get("CapacityUnits", 0)

    # --- items

    async def query(self, *, limit: int | None = None, **arguments: Any) -> list[Record]:
        """All items of a query, or the first so many, page by page."""
        found: list[Record] = []
        start: Record = {}
        while limit is None or len(found) < limit:
            most = {} if limit is None else {"Limit": limit - len(found)}
            page = await self.read("query", **arguments, **start, **most)
            found += page["Items"]
            if not page.get("LastEvaluatedKey"):
                break
            start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
        return found

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
        until, pause = time.monotonic() + self._seconds, 0.01
        while wanted:
            page = await self.read("batch_get_item", RequestItems=wanted)
            found += page["Responses"].get(self.table, [])
            wanted = page.get("UnprocessedKeys") or {}
            pause = await self._wait_for_more(until, pause) if wanted else pause
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
        until, pause = time.monotonic() + self._seconds, 0.01
        while wanted:
            arguments = {"RequestItems": wanted, **self._counted}
            page = await self._run("batch_write_item", arguments, again=again, writes=True)
            wanted = page.get("UnprocessedItems") or {}
            pause = await self._wait_for_more(until, pause) if wanted else pause

    async def _wait_for_more(self, until: float, pause: float) -> float:
        """Wait before what the service left undone is asked for again; how long to wait the next time."""
        if time.monotonic() > until:
            raise to_kode_error(TimeoutError(), self.place, writes=False)
        await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
        return min(pause * 2, 1.0)

    async def close(self) -> None:
        """Close the client, unless others use it, or it is the caller's."""
        await self._release()


class _RefusedError(Exception):
    """The condition of a write did not hold."""


# --- Clients ----------------------------------------------------------------------------------------------------------


class _Shared:
    """A client, and how many stores use it."""

    def __init__(self, options: DynamoDBOptions) -> None:
        self.users = 0
        self.opened = asyncio.ensure_future(_opened(options))


_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[tuple[Any, ...], _Shared]] = WeakKeyDictionary()


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
            context, _ = await shared.opened
            await context.__aexit__(None, None, None)

    try:
        _, client = await asyncio.shield(shared.opened)
    except BaseException as exc:
        shared.users -= 1
        if clients.get(key) is shared and not shared.users:
            clients.pop(key)
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
