"""Only errors of this library reach the caller (OPS-17), whatever is given; and then nothing was written."""

from __future__ import annotations

import asyncio
import base64
import inspect
import math
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from datetime import datetime, timedelta, tzinfo
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import pytest

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    CompressionRecord,
    ConfigurationError,
    DeleteDocument,
    ExtendedStore,
    HistoryWindow,
    InvalidArgumentError,
    KodeError,
    MediaCacheRecord,
    Message,
    PutDocument,
    RecoveredFile,
    Snapshot,
    StorageError,
    Timeline,
    TodoSnapshot,
    ToolCallRecord,
    create_extended_store,
)
from kode_core.jsonvalue import decode_json, encode_json

URLS: Final = ("memory:", "sqlite:///agents.db", "json:///store")


class Dict(dict[str, Any]):
    """A dict that is none to JSON."""


class Hostile:
    """An object whose own methods fail."""

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("must not be compared")

    def __hash__(self) -> int:
        raise RuntimeError("must not be hashed")

    def __repr__(self) -> str:
        raise RuntimeError("must not be shown")

    def __bool__(self) -> bool:
        raise RuntimeError("must not be asked")

    def __len__(self) -> int:
        raise RuntimeError("must not be counted")

    def __fspath__(self) -> str:
        raise RuntimeError("is no path")


class Nameless:
    """A key whose own name cannot be had."""

    def __repr__(self) -> str:
        raise RuntimeError("must not be shown")


class HostileList(list[Any]):
    """A list that cannot be read."""

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("must not be read")


class HostileZone(tzinfo):
    """A time zone that fails."""

    def utcoffset(self, _: datetime | None) -> timedelta:
        raise RuntimeError("must not be read")

    def tzname(self, _: datetime | None) -> str:
        raise RuntimeError("must not be read")

    def dst(self, _: datetime | None) -> timedelta:
        raise RuntimeError("must not be read")


class HostileMapping(Mapping[str, Any]):
    """A mapping that cannot be read."""

    def __getitem__(self, key: str) -> Any:
        raise RuntimeError("must not be read")

    def __iter__(self) -> Iterator[str]:
        raise RuntimeError("must not be read")

    def __len__(self) -> int:
        return 1


def event() -> Timeline:
    """A sound event."""
    return Timeline(1, Bookmark(1, 1), AgentEvent("progress", "x", {}))


WRONG: Final[tuple[Callable[[], Any], ...]] = (
    lambda: None,
    lambda: 5,
    lambda: -1,
    lambda: 10**40,
    lambda: 10**5000,
    lambda: [10**5000],
    lambda: True,
    lambda: math.nan,
    lambda: math.inf,
    lambda: 1.5,
    lambda: b"bytes",
    lambda: "text",
    lambda: "",
    lambda: "\ud800",
    lambda: "nul\0",
    lambda: "x" * 5000,
    list,
    lambda: [5],
    lambda: ["text"],
    lambda: [None],
    lambda: (),
    dict,
    lambda: Dict(a=1),
    lambda: {5: 5},
    lambda: set(),
    lambda: object(),
    lambda: (n for n in range(3)),
    lambda: Message,
    lambda: Message("user", 5),  # type: ignore[arg-type]
    lambda: [Message(5, ())],  # type: ignore[arg-type]
    lambda: [Message("user", [Hostile()])],  # type: ignore[list-item]
    lambda: [Message("user", "\ud83d\ude00")],
    lambda: [ToolCallRecord(id=5, name="x")],  # type: ignore[arg-type]
    lambda: [ToolCallRecord(id=[], name=Hostile())],  # type: ignore[arg-type]
    lambda: [ToolCallRecord(id="x", name="x", approval=None)],  # type: ignore[arg-type]
    lambda: [ToolCallRecord(id="x", name="x", created_at=10**30)],
    lambda: AgentInfo(agent_id="a", template_id="t", metadata={Nameless(): 1}),  # type: ignore[dict-item]
    lambda: AgentInfo(agent_id="a", template_id="t", created_at=10**5000),
    lambda: AgentInfo(agent_id="a", template_id=5),  # type: ignore[arg-type]
    lambda: AgentInfo(agent_id="a", template_id="t", metadata=None),  # type: ignore[arg-type]
    lambda: AgentInfo(agent_id="a", template_id="t", metadata={5: 1}),  # type: ignore[dict-item]
    lambda: AgentInfo(agent_id="a", template_id="t", created_at="now"),  # type: ignore[arg-type]
    lambda: AgentInfo(agent_id="a", template_id="t", lineage=5),  # type: ignore[arg-type]
    lambda: TodoSnapshot(todos=5),  # type: ignore[arg-type]
    lambda: HistoryWindow(id=5),  # type: ignore[arg-type]
    lambda: HistoryWindow(id="w", messages="text"),
    lambda: HistoryWindow(id="w", timestamp="now"),  # type: ignore[arg-type]
    lambda: CompressionRecord(id=Hostile(), window_id="w"),  # type: ignore[arg-type]
    lambda: [PutDocument(Hostile(), [], object(), 5)],  # type: ignore[arg-type]
    lambda: [PutDocument("c", "k", {1: Hostile()})],  # type: ignore[dict-item]
    lambda: [DeleteDocument("c", "k", Hostile())],  # type: ignore[arg-type]
    lambda: {"k": Message("user", [Hostile()])},  # type: ignore[list-item]
    lambda: {"k": Message.user("hi"), "\ud800": Message.user("hi")},
    lambda: {Nameless(): Message.user("hi")},
    lambda: {"k": Hostile()},
    HostileMapping,
    lambda: HostileList([1]),
    lambda: datetime(2025, 1, 1, tzinfo=HostileZone()),
    lambda: RecoveredFile(path=5, content="x"),  # type: ignore[arg-type]
    lambda: RecoveredFile(path="p", content="x", mtime=math.nan),
    lambda: Snapshot(id=None),  # type: ignore[arg-type]
    lambda: Snapshot(id="s", created_at=None),  # type: ignore[arg-type]
    lambda: [MediaCacheRecord(key=5, provider="p", mime_type="m", size_bytes=1)],  # type: ignore[arg-type]
    lambda: Bookmark("a", "b"),  # type: ignore[arg-type]
    lambda: Bookmark(10**30, 0),
    lambda: [event().replace(bookmark=None)],
    lambda: [event().replace(cursor="x")],
    lambda: event().replace(event=None),
    Hostile,
    lambda: [Hostile()],
)

GIVEN: Final[Mapping[str, Callable[[], Any]]] = {
    "agent_id": lambda: "a",
    "messages": lambda: [Message.user("hi")],
    "append": lambda: [Message.user("hi")],
    "records": list,
    "tool_calls": list,
    "upsert_tool_calls": list,
    "events": lambda: [event()],
    "timeline": lambda: event(),
    "timelines": lambda: [event()],
    "window": lambda: HistoryWindow(id="w"),
    "record": lambda: CompressionRecord(id="c", window_id="w"),
    "file": lambda: RecoveredFile(path="p", content="x"),
    "info": lambda: AgentInfo(agent_id="a", template_id="t"),
    "snapshot_id": lambda: "s",
    "tenant": lambda: "t",
    "count": lambda: 1,
    "ttl_ms": lambda: 1000,
    "wait_ms": lambda: 0,
    "prefix": lambda: "",
    "target": lambda: "backup",
    "channel": lambda: "progress",
    "after_offset": lambda: 0,
    "since": lambda: Bookmark(0, 0),
    "type": lambda: "x",
    "message": lambda: Message.user("hi"),
    "position": lambda: 0,
    "length": lambda: 0,
    "metadata": dict,
    "collection": lambda: "c",
    "key": lambda: "k",
    "value": lambda: 1,
    "documents": lambda: [PutDocument("c", "k", 1)],
    "tags": lambda: {"run": "r1"},
}
FILTERS: Final[Mapping[str, tuple[str, ...]]] = {
    "sessions": (
        *("agent_id", "template_id", "user_id", "metadata", "created_after", "created_before"),
        *("updated_after", "updated_before", "sort_by", "order", "limit", "offset", "cursor", "no_such_filter"),
    ),
    "messages": ("agent_id", "role", "content_type", "created_after", "created_before", "limit", "cursor"),
    "tool_calls": ("agent_id", "tool_name", "state", "is_error", "has_approval", "created_after", "order", "offset"),
}
GROUPED: Final = ("by", "utc_offset_minutes", "durations")
WRITES: Final = (
    *("save_", "append_", "upsert_", "delete", "batch_", "emit", "pop_", "truncate_", "replace_"),
    *("create_", "import_", "update_", "fork", "put_", "write_", "prune"),
)


@pytest.fixture(params=URLS)
async def store(request: pytest.FixtureRequest) -> AsyncIterator[ExtendedStore]:
    async with create_extended_store(request.param, timeout_ms=20_000) as opened:
        await opened.save_turn("a", append=[Message.user("hi")], info=AgentInfo(agent_id="a", template_id="t"))
        yield opened


async def used(call: Callable[[], Any]) -> BaseException | None:
    """What a call raises, whatever it returns: a coroutine, an iterator, a lock."""
    try:
        found = call()
        if hasattr(found, "__anext__"):
            with suppress(TimeoutError):  # who follows an agent waits for its next event
                await asyncio.wait_for(anext(found, None), 0.02)
            await found.aclose()
        elif hasattr(found, "__aenter__"):
            async with found:
                pass
        elif inspect.isawaitable(found):
            await found
    except Exception as exc:
        return exc
    return None


def calls(store: ExtendedStore) -> list[tuple[str, dict[str, Any], str]]:
    """Each method with each of its parameters."""
    found = []
    for name, method in inspect.getmembers(store, inspect.ismethod):
        if name.startswith("_") or name in {"close", "open", "health_check", "get_metrics"}:
            continue
        parameters = inspect.signature(method).parameters
        if "filters" in parameters:
            kind = name.partition("_")[2] if name != "delete_many" else "sessions"
            own = GROUPED if name.startswith("group_") else ()
            found += [(name, {"by": "day"} if own else {}, one) for one in (*own, *FILTERS[kind])]
            continue
        defaults: dict[str, Any] = {"snapshot": TodoSnapshot() if name == "save_todos" else Snapshot(id="s")}
        if name == "append_messages_once":
            defaults["messages"] = {"k": Message.user("hi")}
        for wrong in parameters:
            needed = {
                parameter: defaults[parameter] if parameter in defaults else GIVEN[parameter]()
                for parameter, how in parameters.items()
                if how.default is inspect.Parameter.empty
            }
            found.append((name, needed, wrong))
    return found


async def raw_errors(store: ExtendedStore) -> list[str]:
    """What else than errors of the library the calls of a store raise: for the stores of plugins."""
    raw = []
    for name, needed, wrong in calls(store):
        for make in WRONG:
            value = make()
            error = await used(lambda: getattr(store, name)(**{**needed, wrong: value}))  # noqa: B023
            if error is not None and not isinstance(error, KodeError):
                raw.append(f"{name}({wrong}={type(value).__name__}): {type(error).__name__}: {error}")
    return raw


async def holdings(store: ExtendedStore) -> Any:
    return (
        await store.load_messages("a"),
        await store.load_info("a"),
        await store.load_tool_call_records("a"),
        [event async for event in store.read_events("a")],
        await store.list_documents("a", "c"),
        await store.load_todos("a"),
        await store.list(),
    )


CUTS: Final = ("pop_messages", "truncate_messages", "replace_message")


async def test_wrong_arguments(store: ExtendedStore) -> None:
    """Every argument of every method may be of any type: an error of the library says so, and nothing was written."""
    raw, written = [], []
    before = await holdings(store)
    for name, needed, wrong in calls(store):
        for make in WRONG:
            value = make()
            error = await used(lambda: getattr(store, name)(**{**needed, wrong: value}))  # noqa: B023
            if error is not None and not isinstance(error, KodeError):
                raw.append(f"{name}({wrong}={type(value).__name__}): {type(error).__name__}: {error}")
            if not name.startswith(WRITES):
                continue
            after = await holdings(store)
            if error is not None and after != before:
                written.append(f"{name}({wrong}={type(value).__name__}): {error}")
            before = after
            if error is None and name in {"delete", "delete_many", "save_messages", "save_turn", *CUTS}:
                await store.save_turn("a", messages=[Message.user("hi")], info=GIVEN["info"]())
                before = await holdings(store)
    assert not raw + written, "\n".join(dict.fromkeys(raw + written))


async def forged(store: ExtendedStore, method: str, key: list[Any]) -> str:
    """A cursor with a sound checksum for another place: who knows the format can make one."""
    page = await getattr(store, method)(limit=1)
    fields = decode_json(base64.urlsafe_b64decode(page.next_cursor + "==")[4:].decode())
    raw = encode_json([*fields[:2], *key], "cursor").encode()
    return base64.urlsafe_b64encode(blake2b(raw, digest_size=4).digest() + raw).rstrip(b"=").decode()


SESSION_KEYS: Final[tuple[list[Any], ...]] = (
    *(["x", "y"], [None, None], [10**30, "a"], [{}, []], [1.5, "a"], [1, "\0"], [1, "\ud800"], [1, ""], [True, "a"]),
    *([1, "a" * 300], [-(2**63) - 1, "a"], [1], [1, "a", 1], [], [[1], "a"]),
)
MESSAGE_KEYS: Final[tuple[list[Any], ...]] = ([1, "a", "0"], [1, "a", None], [1, "a", 2**63], [1, 2, 3], [1, "a", 1.0])
GARBAGE: Final = ("", "=", "x", "%%%", "é", "\ud800", "\0", "A" * 100_000, "W1tb" * 2000, "bnVsbA", "a b\n")


async def test_forged_cursors(store: ExtendedStore) -> None:
    """A cursor travels through clients: each of its parts is looked at before the engine sees it."""
    await store.save_turn("b", append=[Message.user("x")], info=AgentInfo(agent_id="b", template_id="t"))
    for method, keys in (("query_sessions", SESSION_KEYS), ("query_messages", MESSAGE_KEYS)):
        cursors = [await forged(store, method, key) for key in keys]
        for cursor in (*cursors, *GARBAGE):
            with pytest.raises(InvalidArgumentError, match="cursor"):
                await getattr(store, method)(limit=1, cursor=cursor)
    page = await store.query_sessions(limit=1)
    with pytest.raises(InvalidArgumentError, match="belongs to another query"):
        await store.query_sessions(limit=1, cursor=page.next_cursor, order="asc")


PATHS: Final = ("nul\0", "~nosuchuser/x", "\ud800/x", "x" * 300, "/".join("y" * 200 for _ in range(30)), "a\udcff")

MAKES: Final = ({"type": "sqlite"}, {"type": "json"}, {"type": "sqlite", "db_path": "ok.db"})


@pytest.mark.parametrize("path", PATHS, ids=ascii)
@pytest.mark.parametrize(
    "make", [{"type": "sqlite"}, {"type": "json"}, {"type": "sqlite", "db_path": "ok.db"}], ids=str
)
async def test_odd_paths(path: str, make: dict[str, Any], tmp_path: Path) -> None:
    """A path that the system does not take is an error in the configuration, and nothing is made."""
    option = "base_dir" if make["type"] == "json" else "file_store_base_dir" if "db_path" in make else "db_path"
    with pytest.raises(ConfigurationError):
        async with create_extended_store({**make, option: path}):
            pass
    assert list(tmp_path.iterdir()) == []


# --- Systems that refuse ----------------------------------------------------------------------------------------------

CHILD: Final = """
import asyncio, os, resource, sys
from pathlib import Path
from kode_core import *

RAW = []

async def tried(what, call):
    try:
        return await call
    except KodeError as exc:
        return exc
    except Exception as exc:
        RAW.append(f"{what}: {type(exc).__name__}: {exc}")

async def opened(target, **options):
    async with create_extended_store(target, **options) as store:
        await store.append_messages("a", [Message.user("x")])

def end():
    print("\\n".join(RAW))
    sys.exit(bool(RAW))
"""

NO_FOLDER: Final = """
Path("gone").mkdir(); os.chdir("gone"); os.rmdir(os.getcwd())
async def main():
    targets = (None, "sqlite:///x.db", "json:///x", Path("x.db"), Path("x"), "x.db", "name", {"type": "sqlite"})
    for target in targets:
        found = await tried(target, opened(target))
        if not isinstance(found, ConfigurationError) or "working directory was removed" not in str(found):
            RAW.append(f"{target}: {found!r}")
    for kind in ("sqlite", "json"):
        found = await tried(kind, opened(f"{kind}:///{sys.argv[1]}/{kind}"))
        if found is not None:
            RAW.append(f"an absolute path: {found!r}")
asyncio.run(main()); end()
"""

NO_DESCRIPTORS: Final = """
async def main():
    url, hard = sys.argv[2], resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    store = await create_extended_store(url, timeout_ms=5000)
    kept = []
    for n in range(5):
        await store.append_messages("a", [Message.user(str(n))])
        kept.append(str(n))
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1, hard))
    for n in range(5, 8):
        if await tried("append", store.append_messages("a", [Message.user(str(n))])) is None:
            kept.append(str(n))
    event = Timeline(1, Bookmark(1, 1), AgentEvent("progress", "x", {}))
    for name, *args in (
        ("load_messages", "new"), ("append_event", "new", event), ("list",), ("query_messages",), ("get_metrics",),
        ("check_consistency",), ("batch_fork", "a", 1), ("acquire_agent_lock", "a"), ("backup", "elsewhere"),
        ("delete", "new"), ("health_check",), ("save_messages", "b", [Message.user("x")]),
    ):
        await tried(name, getattr(store, name)(*args))
    await tried("half a pair", store.save_messages("half", [Message.user("\\ud83d")]))
    await tried("a misspelt filter", store.query_messages(rol="user"))
    await tried("a misspelt option", opened(f"{url}?tiemout_ms=5"))
    await tried("open", opened(url))
    await tried("open another", opened(url.replace("store", "other")))
    resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
    have = [message.text for message in await store.load_messages("a")]
    if have != kept:
        RAW.append(f"acknowledged {kept}, and there is {have}")
    await store.close()
asyncio.run(main()); end()
"""

NO_ROOM: Final = """
async def main():
    url = sys.argv[2]
    store = await create_extended_store(url, timeout_ms=5000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, resource.RLIM_INFINITY))
    kept, errors = [], []
    for n in range(20):
        error = await tried("append", store.append_messages("a", [Message.user(f"{n} " + "x" * 150_000)]))
        (errors.append(error) if error else kept.append(n))
    await tried("backup", store.backup("elsewhere"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    have = [int(message.text.split()[0]) for message in await store.load_messages("a")]
    if have != kept or not errors:
        RAW.append(f"acknowledged {kept}, and there is {have}; {len(errors)} errors")
    await store.append_messages("a", [Message.user("and on")])
    await store.close()
asyncio.run(main()); end()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc as Linux has them")
@pytest.mark.parametrize("url", ["sqlite:///store.db", "json:///store"])
@pytest.mark.parametrize("script", [NO_FOLDER, NO_DESCRIPTORS, NO_ROOM], ids=["folder", "descriptors", "room"])
def test_a_system_that_refuses(script: str, url: str, tmp_path: Path) -> None:
    """No working directory, no descriptor, no room: each call ends in an error of the library, and keeps its word."""
    command = [sys.executable, "-c", CHILD + script, str(tmp_path), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, cwd=tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stdout + done.stderr


@pytest.mark.parametrize("mode", [0o000, 0o444, 0o555])
@pytest.mark.parametrize("backend", ["sqlite", "json"])
async def test_a_folder_without_access(unprivileged: Path, backend: str, mode: int) -> None:
    """Where a process has no rights, a store cannot be opened, and the error is one of the library."""
    folder = unprivileged / "shut"
    folder.mkdir()
    folder.chmod(mode)
    try:
        for path in (folder / "store.db", folder / "deeper" / "store.db"):
            with pytest.raises(StorageError):
                async with create_extended_store(f"{backend}:///{path}") as store:
                    await store.append_messages("a", [Message.user("x")])
    finally:
        folder.chmod(0o755)
