"""Every call of every operation is throttled, done in part, refused or cut off in turn; and a process dies at each.

At the tier ``quick`` three calls of some operations meet one of the faults each, others with another ``--kode-seed``;
``make chaos`` has all.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

import pytest
from kode_conformance.kills.writes import (
    FORK,
    LOOKS,
    WRITES,
    Expected,
    Portrait,
    Write,
    expected,
    portrait,
    seed,
    write_on,
)
from kode_conformance.values import samples
from kode_dynamodb import DynamoDBOptions
from kode_dynamodb.connection import connect
from kode_dynamodb.records import DynamoRecords, open_records
from kode_dynamodb.testing.servers import MotoServer
from kode_dynamodb.values import agent_of, items_pk, parts_pk
from msgspec.structs import asdict

from kode_core import ExtendedStore, create_extended_store
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.state import OpenedHead
from kode_core.engines.record.store import KeyRange
from kode_core.errors import KodeError, Retry, StorageError
from plugins.dynamodb.tests.conftest import emulator, options_on
from plugins.dynamodb.tests.gateway import FAULTS, Fault, Gateway

pytestmark = [pytest.mark.slow, pytest.mark.chaos]

TIMES: Final = {"connection_timeout_millis": 1_000, "command_timeout_millis": 5_000}
LEFT: Final = "kode_core.engines.record.io.LEFT_SECONDS"
FOR_EVER: Final = 10**6
QUICK: Final = {
    False: ("append_messages", "large turn", "delete of much", "fork of much", "lock"),
    True: ("save_turn",),
}
"""The operations of the tier ``quick``, without and with transactions."""


@pytest.fixture(params=[False, True], ids=["one by one", "transactions"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> DynamoDBOptions:
    """Of a table of its own, for which what is large is small: it lies beside the head, in parts."""
    write = request.getfixturevalue("write") if "write" in request.fixturenames else None
    print(f"--kode-seed {request.config.getoption('kode_seed')}")
    is_quick = request.config.getoption("kode_tier") == "quick"
    if is_quick and (request.param if write is None else write.name not in QUICK[request.param]):
        pytest.skip("runs at --kode-tier standard")
    monkeypatch.setattr("kode_core.engines.record.writer._SETTLE_SECONDS", 0)
    monkeypatch.setattr("kode_core.engines.record.writer._SETTLE_EVENTS_SECONDS", 0)
    monkeypatch.setattr("kode_core.engines.record.recovery.FORK_DEAD_SECONDS", 0)
    monkeypatch.setattr(DynamoRecords, "inline_bytes", 4_000)
    monkeypatch.setattr(DynamoRecords, "part_bytes", 6_000)
    given = {**asdict(options_on(emulator(MotoServer))), **TIMES, "transactions": request.param}
    return DynamoDBOptions(**given)


@pytest.fixture
async def gateway(how: DynamoDBOptions) -> AsyncIterator[Gateway]:
    assert how.endpoint_url is not None
    async with Gateway(int(how.endpoint_url.rpartition(":")[2])) as gateway:
        yield gateway


async def opened(how: DynamoDBOptions, gateway: Gateway | None = None, **more: Any) -> ExtendedStore:
    """A store that is open, straight to the emulator, or by way of the gateway."""
    given = {**asdict(how), **more}
    if gateway is not None:
        given["endpoint_url"] = f"http://127.0.0.1:{gateway.port}"
    given = {name: value for name, value in given.items() if value is not None}
    store = await create_extended_store(type="dynamodb", **given)
    await store.exists("nobody")
    return store


# --- Operations -------------------------------------------------------------------------------------------------------


async def _large_turn(store: ExtendedStore, agent_id: str) -> None:
    await store.save_turn(
        agent_id,
        append=[samples.message(40), samples.message(41, "y" * 7_000)],
        upsert_tool_calls=[samples.tool_call(0, state="SEALED")],
        info=samples.info(agent_id, metadata={"notes": "n" * 2_000}),
        events=samples.events(1, 50),
    )


async def _seed_large(store: ExtendedStore, agent_id: str) -> None:
    await seed(store, agent_id)
    await _large_turn(store, agent_id)


async def _locked(store: ExtendedStore, agent_id: str) -> None:
    lease = await store.acquire_agent_lock(agent_id, ttl_ms=60_000)
    await lease.renew()
    await store.append_messages(agent_id, samples.messages(1, 30), fence=lease)
    with suppress(StorageError):  # the append is what is judged
        await lease.release()


FORK_OF_MUCH: Final = Write("fork of much", lambda store, agent_id: store.batch_fork(agent_id, 2), _seed_large)
OPERATIONS: Final = [
    *WRITES,
    FORK,
    Write("large turn", _large_turn),
    Write("delete of much", lambda store, agent_id: store.delete(agent_id), _seed_large),
    FORK_OF_MUCH,
    Write("lock", _locked),
]


async def _followed(store: ExtendedStore, agent_id: str) -> list[Any]:
    found = []
    async for event in store.follow_events(agent_id):
        found.append(event.offset)
        if len(found) == 2:
            break
    return found


async def _issues(store: ExtendedStore, agent_id: str) -> Any:
    return (await store.check_consistency(agent_id)).issues


READS: Final = {
    "portrait": lambda store, agent_id: portrait(store, agent_id),
    "sessions": lambda store, agent_id: store.query_sessions(agent_id=agent_id),
    "messages": lambda store, agent_id: store.query_messages(agent_id=agent_id),
    "tool calls": lambda store, agent_id: store.query_tool_calls(agent_id=agent_id),
    "stats": lambda store, agent_id: store.aggregate_stats(agent_id),
    "list": lambda store, agent_id: store.list(agent_id),
    "follow": _followed,
    "check": _issues,
}


# --- Judgement --------------------------------------------------------------------------------------------------------


async def left(how: DynamoDBOptions, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What there is after a sweep that no head refers to."""
    with monkeypatch.context() as patched:
        patched.setattr(LEFT, 0)
        records = await open_records(how)
        engine = RecordEngine(records)
        try:
            await engine.sweep()
            return await _needless(records)
        finally:
            await engine.close()


async def _needless(records: DynamoRecords) -> list[str]:
    keys = list[tuple[str, str]]()
    start: dict[str, Any] = {}
    while True:
        page = await records.connection.read("scan", ConsistentRead=True, ProjectionExpression="pk, sk", **start)
        keys += [(one["pk"]["S"], one["sk"]["S"]) for one in page["Items"]]
        if not page.get("LastEvaluatedKey"):
            break
        start = {"ExclusiveStartKey": page["LastEvaluatedKey"]}
    found = [f"a note: {pk} {sk}" for pk, sk in keys if pk.startswith("left")]
    agents = [agent_of({"pk": {"S": pk}}) for pk, _ in keys if pk.startswith("a#")]
    used = set[str]()
    for head in [OpenedHead(record) for agent_id in agents for record in await records.heads([agent_id])]:
        place = head.record.place
        used |= {items_pk(place)["S"], parts_pk(place)["S"]}
        if not head.state.is_settled:
            found.append(f"not settled: {place}")
        items = await records.items(place, KeyRange(first="a", last="z", bodies=False))
        named = {(item.key, item.rev) for item in items if item.parts}
        named |= set() if head.state.info is None else {(f"i/{head.state.info[0]}", head.state.info[1])}
        found += [f"a part: {place} {part}" for part in await records.part_keys(place, "a", "z") if part not in named]
    return found + sorted({f"at an old place: {pk}" for pk, _ in keys if pk[:2] in ("i#", "p#") and pk not in used})


async def allowed_of(store: ExtendedStore, write: Write) -> Expected:
    """What a write may leave of its agent; a fork leaves all as it was."""
    if write is not FORK_OF_MUCH:
        return await expected(store, write)
    await write.prepare(store, "source")
    found = await portrait(store, "source")
    return Expected(found, found)


async def wrong_forks(store: ExtendedStore, source: Portrait) -> list[str]:
    """The agents whose ids are none of the test's, and that are no copies."""
    found = []
    for agent_id in await store.list("agt-"):
        for kind in ("messages", "tool calls"):
            found += [agent_id] if await LOOKS[kind](store, agent_id) != source[kind] else []
    return found


async def opened_in_time(how: DynamoDBOptions, gateway: Gateway, **hasty: Any) -> ExtendedStore:
    """A store that waits for little, which is too little for its opening where the machine is busy."""
    for _ in range(10):
        with suppress(StorageError):
            return await opened(how, gateway, **hasty)
    return await opened(how, gateway, **hasty)


async def outcome(call: Any) -> tuple[bool | None, KodeError | None]:
    """Whether a write was done, None where nobody knows; with the error, which must be one of ours."""
    try:
        async with asyncio.timeout(20):
            await call
    except StorageError as exc:
        return (None if exc.retry is Retry.CHECK else False), exc
    return True, None


async def judged(store: ExtendedStore, agent_id: str, allowed: Expected, done: bool | None, when: str) -> None:
    found = await portrait(store, agent_id)
    problem = allowed.problem(found, done=bool(done))
    assert problem is None, f"{when}: {problem}"
    if done is False and allowed.before != allowed.after:
        assert allowed.problem(found, done=True), f"{when}: it is there, and was said not to be written"
    await write_on(store, agent_id, 1000)
    assert (await store.check_consistency(agent_id)).issues == (), when


def numbers(request: pytest.FixtureRequest) -> Iterator[int]:
    """Of the calls that meet something at this tier; where that is all of them, without end."""
    if request.config.getoption("kode_tier") == "quick":
        return iter(range(1 + request.config.getoption("kode_seed") % 5, 16, 5))
    return itertools.count(1)


def faults_at(number: int, request: pytest.FixtureRequest, faults: Sequence[Fault] = FAULTS) -> Sequence[Fault]:
    """Those that the n-th call meets at this tier."""
    count = {"quick": 1, "standard": 3, "thorough": len(faults)}[request.config.getoption("kode_tier")]
    first = number * 3 + request.config.getoption("kode_seed") + len(request.node.name)
    return [faults[(first + n) % len(faults)] for n in range(count)]


# --- Tests ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("write", OPERATIONS, ids=lambda write: write.name)
async def test_a_call_that_fails_once_does_no_harm(
    write: Write,
    how: DynamoDBOptions,
    gateway: Gateway,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is throttled or done in part is done to the end; what is in doubt is there whole or not at all, once."""
    async with await opened(how) as direct, await opened(how, gateway):  # which keeps the client: making one takes long
        allowed = await allowed_of(direct, write)
        for number in numbers(request):
            for fault in faults_at(number, request):
                agent_id, when = f"a-{secrets.token_hex(4)}", f"call {number}: {fault.name}"
                await write.prepare(direct, agent_id)
                async with await opened(how, gateway) as store:
                    gateway.arm(fault, number)
                    done, exc = await outcome(write.act(store, agent_id))
                    met = gateway.met
                gateway.arm(None)
                assert done or not (fault.is_harmless and met), f"{when}: {exc!r}"
                await judged(direct, agent_id, allowed, done, when)
            if not met:
                break
        await direct.query_sessions()
        assert "fork" not in write.name or await wrong_forks(direct, allowed.before) == []
    assert await left(how, monkeypatch) == []


@pytest.mark.parametrize("write", OPERATIONS, ids=lambda write: write.name)
async def test_a_service_that_fails_from_some_call_on_leaves_nothing_half_done(
    write: Write,
    how: DynamoDBOptions,
    gateway: Gateway,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It throttles for ever, or is gone, from whichever call on: errors are typed, and say whether it was written.

    What is cut off until the store is closed does no more than a process that died at that call.
    """
    hasty = {"connection_timeout_millis": 300, "command_timeout_millis": 500, "timeout_ms": 3_000}
    async with await opened(how) as direct, await opened_in_time(how, gateway, **hasty):
        allowed = await allowed_of(direct, write)
        for number in numbers(request):
            for fault in faults_at(number, request):
                agent_id, when = f"a-{secrets.token_hex(4)}", f"from call {number} on: {fault.name}"
                await write.prepare(direct, agent_id)
                async with await opened_in_time(how, gateway, **hasty) as store:
                    gateway.arm(fault, number, count=FOR_EVER)
                    done, exc = await outcome(write.act(store, agent_id))
                met = gateway.met
                gateway.arm(None)
                await judged(direct, agent_id, allowed, done, f"{when}, {exc!r}")
            if not met:
                break
        await direct.query_sessions()
        assert "fork" not in write.name or await wrong_forks(direct, allowed.before) == []
    assert await left(how, monkeypatch) == []


@pytest.mark.parametrize("read", READS)
async def test_a_read_that_fails_once_is_made_again(
    read: str, how: DynamoDBOptions, gateway: Gateway, request: pytest.FixtureRequest
) -> None:
    """Whatever becomes of whichever of its calls."""
    look: Callable[..., Any] = READS[read]
    async with await opened(how) as direct, await opened(how, gateway):
        await _seed_large(direct, "a")
        wanted = await look(direct, "a")
        for number in numbers(request):
            for fault in faults_at(number, request):
                async with await opened(how, gateway) as store:
                    gateway.arm(fault, number)
                    assert await look(store, "a") == wanted, f"call {number}: {fault.name}"
                    met = gateway.met
            if not met:
                break


async def test_a_table_that_was_made_in_part_is_made_to_the_end(
    how: DynamoDBOptions, gateway: Gateway, request: pytest.FixtureRequest
) -> None:
    """Who makes it dies at whichever call, or meets a service that fails there: the next one does what is missing."""
    hasty = {"connection_timeout_millis": 300, "command_timeout_millis": 500}
    counts = (FOR_EVER,) if request.config.getoption("kode_tier") == "quick" else (1, FOR_EVER)
    for number, count in itertools.product(range(1, 7), counts):
        for fault in faults_at(number + (count == 1), request):
            fresh = replaced(how, table=f"kode-{secrets.token_hex(6)}")
            gateway.arm(fault, number, count=count)
            done, exc = await outcome(opened_and_closed(fresh, gateway, **hasty))
            assert done or count == FOR_EVER or not fault.is_harmless, f"call {number}: {fault.name}: {exc!r}"
            gateway.arm(None)
            async with await opened(fresh) as store:
                await store.append_messages("a", samples.messages(1))
            connection = await connect(fresh)
            found = await connection.ask("describe_time_to_live")
            await connection.close()
            when = f"call {number}, {count} times: {fault.name}, {exc!r}"
            assert found["TimeToLiveDescription"]["TimeToLiveStatus"] == "ENABLED", when


async def opened_and_closed(how: DynamoDBOptions, gateway: Gateway, **more: Any) -> None:
    await (await opened(how, gateway, **more)).close()


def replaced(how: DynamoDBOptions, **changes: Any) -> DynamoDBOptions:
    return DynamoDBOptions(**{**asdict(how), **changes})
