"""No part of a password is told, however malformed the configuration is that holds it (OPS-12)."""

from __future__ import annotations

import random
import sys
import traceback
from collections.abc import Awaitable, Callable, Iterator, Mapping
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any, Final

import pytest
from kode_mongo import MongoStore
from kode_postgres import PostgresStore
from msgspec.structs import replace

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    ConfigurationError,
    ExtendedStore,
    InvalidValueError,
    KodeError,
    Message,
    Record,
    Snapshot,
    Timeline,
    ToolCallRecord,
    ToolUseBlock,
    create_extended_store,
    from_dict,
)
from kode_core.cli import main
from kode_core.config import Configured, configure
from kode_core.direct import JsonStore, MemoryStore
from kode_core.plugins import registry

HEAD, TAIL = "Tr0ub4dor", "Xk9zQw7v"
SPECIAL: Final = ("", *"?/#@:%&=+ []'\"\\é⁄\n\t", "%2")
SCHEMES: Final = (
    *("postgres", "postgresql", "mongodb", "mongodb+srv", "mongo", "dynamodb", "sqlite", "json", "memory"),
    *("redis", "POSTGRES", "postgresq", ""),
)
PLACES: Final = (
    *("127.0.0.1:1/db", "[::1]:1/db", "a:1,b:2/db", "h", "h/", "h:99999999/db", "eu-central-1/table", "[::1/db"),
    "h/d?max=3",
)
PARAMETERS: Final = ("max=many", "sslmode=x", "x", "max=1&max=2", "no=1", "tls=")
OPTIONS: Final = ("password", "max", "port", "w", "x")
WRAPS: Final = (
    *("{}", "{}", "{}", '"{}"', "'{}'", "DATABASE_URL={}", "export A={}", " {}", "{}\n", "<{}>", "-{}", "url: {}"),
)
OF_SERVERS: Final = frozenset({"postgres", "mongo", "dynamodb"})
"""Elsewhere a URL that is accepted names a path, which may have any name."""


def told(error: BaseException | None) -> str:
    """All that an error shows, its causes included."""
    words = []
    while error is not None:
        words += [str(error), repr(error), "".join(traceback.format_exception(error)), repr(error.args)]
        error = error.__cause__ or error.__context__
    return "\n".join(words)


def leaks(text: str) -> bool:
    return HEAD in text or TAIL in text


def urls(count: int) -> Iterator[str]:
    """URLs with a password that are malformed in one way or two."""
    chance = random.Random(17)
    for _ in range(count):
        scheme, secret = chance.choice(SCHEMES), HEAD + chance.choice(SPECIAL) + TAIL
        user = chance.choice(("kode", "", "a b", "kode@corp"))
        start = chance.choice(("://", "://", "://", ":/", ":", "//", ":///", " ://", "", ":////"))
        url = f"{scheme}{start}{user}:{secret}@{chance.choice(PLACES)}"
        if chance.random() < 0.3:
            url += f"{'&' if '?' in url else '?'}{chance.choice(PARAMETERS)}"
        if chance.random() < 0.2:
            url += f"{'&' if '?' in url else '?'}{chance.choice(OPTIONS)}={secret}"
        edit = chance.random()
        if edit < 0.25:  # a character of the structure is another one, or missing
            places = [i for i, char in enumerate(url) if char in ":/@?"]
            place = chance.choice(places)
            url = url[:place] + chance.choice(("", "/", ":", "?", "#", ";", "\\", "%40", "@")) + url[place + 1 :]
        yield chance.choice(WRAPS).format(url)


def ways(url: str, folder: Path) -> Iterator[tuple[Any, Mapping[str, str]]]:
    """Where a URL may be given: target and environment."""
    yield url, {}
    yield {"url": url}, {}
    yield {"type": url}, {}
    yield None, {"KODE_STORE_URL": url}
    yield None, {"KODE_STORE_TYPE": url}
    yield None, {"KODE_STORE_TYPE": "postgres", "KODE_POSTGRES_DSN": url}
    yield None, {"KODE_STORE_TYPE": "mongo", "MONGODB_URI": url}
    yield None, {"KODE_STORE_URL_FILE": url}
    yield None, {"KODE_CONFIG": url}
    for kind, option in (("postgres", "dsn"), ("postgres", "host"), ("mongo", "uri"), ("mongo", "host")):
        yield {"type": kind, option: url}, {}
        yield {"type": kind, "connection": {option: url}}, {}
    yield {"type": "postgres", "connection": url}, {}
    yield {"type": "dynamodb", "endpoint_url": url}, {}
    yield {"type": "dynamodb", "region": url}, {}
    yield {"type": "dynamodb", "connection": url}, {}
    yield {"type": "sqlite", url: 1}, {}
    yield {"type": "sqlite", "durability": url}, {}
    yield {"type": "sqlite", "readers": url}, {}
    (folder / "kode.toml").write_text(f"[stores.default]\nurl = {url}\n")
    yield None, {"KODE_CONFIG": str(folder / "kode.toml")}


def shown(configured: Configured) -> str:
    """All that a configuration shows of itself."""
    place = getattr(configured.options, "address", "")
    resolved = getattr(configured.options, "resolved", lambda: configured.options)()
    places = f"{place} {getattr(resolved, 'place', '')}"
    return f"{configured!r} {configured.source} {configured.options!r} {resolved!r} {places}"


def test_malformed_urls(tmp_path: Path) -> None:
    """Some thousand URLs, each malformed in another way, given in each place where a URL may be given."""
    found: list[str] = []
    chance = random.Random(23)
    for url in urls(800):
        for target, environ in chance.sample(list(ways(url, tmp_path)), 4):
            try:
                configured = configure(target, {}, registry.backend, environ)
                text = shown(configured) if configured.backend.name in OF_SERVERS else ""
            except Exception as exc:
                text = told(exc) if isinstance(exc, KodeError) else f"{HEAD} {type(exc).__name__}: {exc}"
            if leaks(text):
                found.append(f"{target!r} {dict(environ)}: {text[:200]}")
    assert not found, "\n".join(found[:40])


SECRET: Final = HEAD + TAIL
NOBODY: Final = (  # nobody listens there, and what the drivers say of it is told in other words
    f"postgres://kode:{SECRET}@127.0.0.1:1/db",
    f"postgres://kode:{HEAD}%2F{TAIL}@127.0.0.1:1/db?sslmode=disable",
    f"postgres://kode:{SECRET}@127.0.0.1:1,127.0.0.1:2/db",
    f"postgres://127.0.0.1:1/db?user=kode&password={SECRET}",
    f"postgres://kode:{SECRET}@no-such-host.invalid/db",
    f"postgres://kode:{SECRET}@127.0.0.1:1/db?sslrootcert=/no/such/file&sslmode=verify-full&sslpassword={SECRET}",
    f"postgres://kode:{SECRET}@127.0.0.1:1/db?target_session_attrs={SECRET}",
    f"postgres://kode:{SECRET}@127.0.0.1:1/db?gsslib={SECRET}",
    f"postgres://kode:{SECRET}@127.0.0.1:1/db?sslnegotiation={SECRET}",
    f"mongodb://kode:{SECRET}@127.0.0.1:1/db",
    f"mongodb://kode:{SECRET}@127.0.0.1:99999/db",
    f"mongodb://kode:{SECRET}@127.0.0.1:1/db?authMechanism={SECRET}",
    f"mongodb://kode:{SECRET}@127.0.0.1:1/db?tlsCertificateKeyFilePassword={SECRET}&tls=true",
    f"mongodb://kode:{SECRET}@127.0.0.1:1/db?w={SECRET}",
    f"mongodb://kode:{SECRET}@127.0.0.1:1/db?replicaSet=%00",
    f"mongodb://kode:{SECRET}%@127.0.0.1:1/db",
    f"mongodb+srv://kode:{SECRET}@no-such-host.invalid/db",
    f"dynamodb://eu-central-1/kode?secret_access_key={SECRET}&access_key_id={SECRET}&endpoint_url=http://127.0.0.1:1",
    f"dynamodb://eu-central-1/kode?endpoint_url=http://kode:{SECRET}%40127.0.0.1:1",
)


@pytest.mark.parametrize("url", NOBODY, ids=[url.replace(SECRET, "…")[:60] for url in NOBODY])
async def test_drivers(url: str, caplog: pytest.LogCaptureFixture) -> None:
    """What a driver says of a server that is not there, or of a parameter that is wrong, tells no password."""
    options = {"connection_timeout_millis": 300, "command_timeout_millis": 300}
    with pytest.raises(KodeError) as caught:
        async with create_extended_store(url, **options):
            pass
    assert not leaks(told(caught.value) + caplog.text)


WRONG: Final = (5, 1.5, True, [SECRET], {"a": SECRET}, SECRET.encode(), f"{SECRET}\0", f"{SECRET}\ud800", object())


@pytest.mark.parametrize("value", WRONG, ids=lambda value: type(value).__name__)
def test_options_of_the_wrong_type(value: Any) -> None:
    """The value of an option is never told, whatever its type, given by itself or in connection."""
    for kind in sorted(OF_SERVERS):
        backend = registry.backend(kind)
        for option in backend.options.__struct_fields__:
            for given in ({option: value}, {"connection": {option: value}}):
                try:
                    text = shown(configure({"type": kind, **given}, {}, registry.backend, {}))
                except KodeError as exc:
                    text = told(exc)
                assert not leaks(text), (kind, given)


def test_stores_for_direct_use() -> None:
    """A store shows where it is, and not how it got there."""
    for store in (
        PostgresStore({"host": "h", "user": "u", "password": SECRET}),
        PostgresStore(f"postgres://u:{SECRET}@h/d"),
        MongoStore(f"mongodb://u:{SECRET}@h/d"),
        MongoStore({"host": "h", "password": lambda: SECRET}),
    ):
        assert not leaks(repr(store))
    with pytest.raises(ConfigurationError) as caught:
        PostgresStore(f"postgres://u:{HEAD}@{TAIL}@h/d")
    assert not leaks(told(caught.value))


def command(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """All that a command says."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(sys, "argv", ["kode", *arguments])
        sys.exit(main())
    out, err = capsys.readouterr()
    return out + err


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands tell no more than the library."""
    for url in urls(25):
        for arguments in (("--store", url, "sessions"), ("sessions", "--store", url), ("schema", url, "--print")):
            said = command(capsys, *arguments)
            assert said, arguments
            if not url.lower().startswith(("sqlite", "json", "memory")):
                assert not leaks(said), arguments
        monkeypatch.setenv("KODE_STORE_URL", url.replace("\0", ""))
        assert not leaks(command(capsys, "doctor"))
        monkeypatch.delenv("KODE_STORE_URL")


SECRET: Final = HEAD + TAIL
EVENT: Final = {"cursor": 1, "bookmark": {"seq": 1, "timestamp": 1}}


class Rude:
    """Fails at whatever an error might do with it."""

    def _fail(self, *_: object) -> Any:
        raise RuntimeError(SECRET)

    __eq__ = __hash__ = __repr__ = __str__ = __bool__ = __len__ = _fail  # type: ignore[assignment]


class RudeZone(tzinfo):
    """A time zone whose code fails when a time is written."""

    def utcoffset(self, moment: datetime | None) -> timedelta:
        raise RuntimeError(SECRET)


HELD: Final[Mapping[str, Callable[[], Any]]] = {
    "text": lambda: SECRET,
    "bytes": SECRET.encode,
    "dict": lambda: {"password": SECRET},
    "set": lambda: {SECRET},
    "tuple": lambda: (SECRET,),
    "object": Rude,
    "time": lambda: datetime(2026, 1, 1, tzinfo=RudeZone()),
    "number": lambda: 10**5_000,
    "keys": lambda: {(SECRET,): 1},
}


@pytest.mark.parametrize("kind", HELD)
async def test_what_a_record_holds_is_told_in_no_refusal(kind: str) -> None:
    """A value in any field of any record, however odd, is named by its place and its type alone (OPS-12, OPS-17)."""
    refused = 0
    async with MemoryStore() as store:
        for cls, save in saves(store).items():
            base = base_of(cls)
            for name in cls.__struct_fields__:
                value = HELD[kind]()
                try:
                    await save(replace(base, **{name: value}))
                except KodeError as exc:
                    assert not leaks(told(exc).replace(f"'{SECRET}'", "") if name == "agent_id" else told(exc)), name
                    assert len(str(exc)) < 500
                    refused += 1
                except TypeError:  # the class itself refuses
                    refused += 1
    assert refused > 5


def saves(store: ExtendedStore) -> Mapping[type[Record], Callable[[Any], Awaitable[Any]]]:
    """How records of each class are saved."""
    return {
        ToolUseBlock: lambda block: store.save_messages("a", [Message("assistant", [block])]),
        Message: lambda message: store.save_messages("a", [message]),
        AgentInfo: lambda info: store.save_info("a", info),
        ToolCallRecord: lambda record: store.save_tool_call_records("a", [record]),
        AgentEvent: lambda event: store.append_event("a", Timeline(1, Bookmark(1, 1), event)),
        Timeline: lambda timeline: store.append_event("a", timeline),
        Snapshot: lambda snapshot: store.save_snapshot("a", snapshot),
    }


def base_of(cls: type[Record]) -> Any:
    """A sound record of each class."""
    return {
        ToolUseBlock: ToolUseBlock(id="i", name="n", input={}),
        Message: Message.user("x"),
        AgentInfo: AgentInfo(agent_id="a", template_id="t"),
        ToolCallRecord: ToolCallRecord(id="c", name="n"),
        AgentEvent: AgentEvent("monitor", "x", {}),
        Timeline: Timeline(1, Bookmark(1, 1), AgentEvent("monitor", "x", {})),
        Snapshot: Snapshot(id="s", messages=[], created_at=1),
    }[cls]


def test_a_dict_that_fits_no_record_is_not_quoted() -> None:
    """What from_dict refuses, which may be what was stored, is not quoted either."""
    wire = {**EVENT, "event": {"channel": SECRET, "type": "t"}}
    with pytest.raises(
        InvalidValueError, match="expected one of progress, control, monitor, got another text"
    ) as caught:
        from_dict(Timeline, wire)
    assert not leaks(told(caught.value))


async def test_errors_are_short_however_long_what_they_are_about(tmp_path: Path) -> None:
    """A key, a path or an id of millions of characters makes no error of millions."""
    long = "k" * 5_000_000
    async with JsonStore(tmp_path / "store") as store:
        for call in (
            lambda: store.save_messages("a", [Message("user", [ToolUseBlock(id="i", name="n", input={long: {1}})])]),
            lambda: store.backup(tmp_path / long),
            lambda: store.backup("/".join([str(tmp_path), *["k" * 100] * 50_000])),
            lambda: store.save_info("a", AgentInfo(agent_id=long, template_id="t")),
            lambda: store.load_messages(long),
        ):
            with pytest.raises(KodeError) as caught:
                await call()
            assert len(str(caught.value)) < 1_500
