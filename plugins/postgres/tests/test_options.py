"""Options of sessions, and libpq's parameters and variables: each holds, or is refused by its name."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlsplit

import asyncpg
import pytest
from kode_conformance.values import samples
from kode_postgres import PostgresStore
from kode_postgres.dsn import read_dsn
from kode_postgres.engine import PostgresEngine
from kode_postgres.testing.servers import Server
from kode_postgres.variables import VARIABLES

from kode_core import ConfigurationError, StoreBusyError, create_extended_store
from plugins.postgres.tests.test_plugin import options_of

LIBPQ = """
host hostaddr port dbname user password passfile require_auth channel_binding connect_timeout client_encoding
options application_name fallback_application_name keepalives keepalives_idle keepalives_interval
keepalives_count tcp_user_timeout replication gssencmode sslmode requiressl sslnegotiation sslcompression
sslcert sslkey sslkeylogfile sslpassword sslcertmode sslrootcert sslcrl sslcrldir sslsni requirepeer
ssl_min_protocol_version ssl_max_protocol_version min_protocol_version max_protocol_version krbsrvname gsslib
gssdelegation scram_client_key scram_server_key service servicefile target_session_attrs load_balance_hosts
oauth_issuer oauth_client_id oauth_client_secret oauth_scope
"""
"""All that the manual of PostgreSQL 18 has (section 34.1.2)."""
LIBPQ_VARIABLES = """
PGHOST PGSSLNEGOTIATION PGHOSTADDR PGPORT PGDATABASE PGUSER PGPASSWORD PGPASSFILE PGREQUIREAUTH PGCHANNELBINDING
PGSERVICE PGSERVICEFILE PGOPTIONS PGAPPNAME PGSSLMODE PGREQUIRESSL PGSSLCOMPRESSION PGSSLCERT PGSSLKEY PGSSLCERTMODE
PGSSLROOTCERT PGSSLCRL PGSSLCRLDIR PGSSLSNI PGREQUIREPEER PGSSLMINPROTOCOLVERSION PGSSLMAXPROTOCOLVERSION
PGGSSENCMODE PGKRBSRVNAME PGGSSLIB PGGSSDELEGATION PGCONNECT_TIMEOUT PGCLIENTENCODING PGTARGETSESSIONATTRS
PGLOADBALANCEHOSTS PGMINPROTOCOLVERSION PGMAXPROTOCOLVERSION PGDATESTYLE PGTZ PGGEQO PGSYSCONFDIR PGLOCALEDIR
"""
"""All that the manual of PostgreSQL 18 has (section 34.15)."""


def engine_of(store: Any) -> PostgresEngine:
    engine = store._context.engine
    assert isinstance(engine, PostgresEngine)
    return engine


async def settings_of(store: Any, *names: str) -> list[str]:
    found = await engine_of(store).connections.read(
        lambda s: s.fetch("SELECT current_setting(n) FROM unnest($1::text[]) n", names)
    )
    return [row[0] for row in found]


# --- Sessions ---------------------------------------------------------------------------------------------------------


async def test_sessions_have_the_settings_that_are_given(
    server: Server, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And those that the store makes. The application's name is the option's, or the URL's, or the variable's."""
    names = ("application_name", "work_mem", "kode.note", "synchronous_commit", "statement_timeout")
    given = {"work_mem": "5MB", "kode.note": 'it\'s "all" one', "synchronous_commit": "remote_apply"}
    options: dict[str, Any] = {"schema": schema, "server_settings": given, "command_timeout_millis": 3000}
    async with create_extended_store(f"{server.dsn}?application_name=url", application_name="mine", **options) as store:
        assert await settings_of(store, *names) == ["mine", *given.values(), "5s"]
        await store.append_messages("a", samples.messages(1))
    monkeypatch.setenv("PGAPPNAME", "variable")
    for query, name in (
        ("application_name=url", "url"),
        ("fallback_application_name=last", "variable"),
        ("", "variable"),
    ):
        async with create_extended_store(f"{server.dsn}?schema={schema}&{query}") as store:
            assert await settings_of(store, "application_name") == [name]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("statement_timeout", "it follows from command_timeout_millis"),
        ("Idle_In_Transaction_Session_Timeout", "it follows from command_timeout_millis"),
        ("lock_timeout", "see lock_wait_millis"),
        ("default_transaction_isolation", "the store chooses it"),
        ("application_name", "it is an option"),
        ("client_encoding", "it is UTF-8"),
        ("client_connection_check_interval", "the store chooses it"),
    ],
)
def test_settings_that_the_store_makes_are_refused(name: str, says: str) -> None:
    """By their names, also in a URL's ``options``: none is overwritten without a word."""
    with pytest.raises(
        ConfigurationError, match=f"server_settings has {name.lower()}, which cannot be set there: {says}"
    ):
        options_of({"type": "postgres", "server_settings": {name: "s3cret"}})
    for form in (f"-c%20{name}%3Ds3cret", f"-c{name}%3Ds3cret", f"--{name.replace('_', '-')}%3Ds3cret"):
        with pytest.raises(ConfigurationError, match=f"in options, has {name.lower()}, .*: {says}") as caught:
            read_dsn(f"postgres://h/d?options=-cwork_mem%3D5MB%20{form}")
        assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "given", [{"a b": "x"}, {"work_mem": 5}, {"work_mem": "a\0b"}, {"a;b": "x"}, ["x"], "x", {"": ""}]
)
def test_settings_are_names_and_texts(given: Any) -> None:
    """Others are refused before anything is connected to."""
    with pytest.raises(ConfigurationError, match="server_settings"):
        options_of({"type": "postgres", "server_settings": given})


async def test_a_setting_that_the_server_refuses(server: Server, schema: str) -> None:
    """The error has the server's words, and is the store's."""
    with pytest.raises(Exception, match="unrecognized configuration parameter") as caught:
        await PostgresStore(server.dsn, schema=schema, server_settings={"no_such_setting": "1"}).open()
    assert type(caught.value).__module__.startswith("kode_core")
    assert "server_settings=***" in repr(options_of({"type": "postgres", "server_settings": {"a": "s3cret"}}))


async def test_how_long_a_locked_agent_is_waited_for(server: Server, schema: str) -> None:
    """As long as the option says: short for one store, and for another one until it is free."""
    con = await asyncpg.connect(server.dsn)
    options: dict[str, Any] = {"schema": schema}
    async with (
        PostgresStore(server.dsn, lock_wait_millis=300, **options) as hasty,
        PostgresStore(server.dsn, lock_wait_millis=20_000, command_timeout_millis=1000, **options) as patient,
    ):
        await hasty.append_messages("a", samples.messages(1))
        await (await hasty.acquire_agent_lock("a")).release()
        async with con.transaction():
            await con.execute(f'SELECT 1 FROM "{schema}".kode_agents FOR UPDATE')
            await con.execute(f'SELECT 1 FROM "{schema}".kode_leases FOR UPDATE')
            for call in (hasty.append_messages("a", samples.messages(1)), hasty.acquire_agent_lock("a")):
                with pytest.raises(StoreBusyError, match="kept the agent locked"):
                    await call
            waiting = asyncio.ensure_future(patient.append_messages("a", samples.messages(1, 1)))
            locking = asyncio.ensure_future(patient.acquire_agent_lock("a"))
            await asyncio.sleep(2)  # more than the time that one statement may take
            assert not waiting.done() and not locking.done()
        await waiting
        await (await locking).release()
        assert await hasty.load_messages("a") == samples.messages(2)
    await con.close()


# --- Parameters and variables of libpq --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LIBPQ.split())
def test_every_parameter_holds_or_is_refused_by_its_name(name: str) -> None:
    """Whichever way the URL is given; what is refused is named, and what was given for it is not quoted."""
    url = f"postgres://h/d?{name}=s3cret"

    def problem(what: Any) -> str | None:
        try:
            options_of(what)
        except ConfigurationError as exc:
            return str(exc)
        return None

    problems = [
        problem(url),
        problem({"type": "postgres", "dsn": url}),
        problem({"type": "postgres", "connection": url}),
    ]
    if None in problems:
        assert problems == [None] * 3
        assert read_dsn(url).parameters[name].text == "s3cret"
    for said in filter(None, problems):
        assert name in said
        assert "s3cret" not in said


def test_every_variable_of_libpq_is_known() -> None:
    """Each is read by the driver, or kept here, or refused."""
    assert set(LIBPQ_VARIABLES.split()) == VARIABLES


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGCHANNELBINDING", "require"),
        ("PGGSSENCMODE", "require"),
        ("PGREQUIREAUTH", "scram-sha-256"),
        ("PGREQUIREPEER", "postgres"),
        ("PGREQUIRESSL", "1"),
        ("PGSSLCRLDIR", "/crl"),
        ("PGSSLCERTMODE", "require"),
        ("PGHOSTADDR", "10.0.0.1"),
        ("PGGSSDELEGATION", "1"),
        ("PGLOADBALANCEHOSTS", "random"),
        ("PGSSLCOMPRESSION", "1"),
        ("PGSSLSNI", "0"),
        ("PGMINPROTOCOLVERSION", "3.2"),
    ],
)
async def test_a_variable_is_never_dropped(server: Server, name: str, value: str, monkeypatch: Any) -> None:
    """A variable that the driver does not read is refused by its name, where it asks for anything."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"the variable {name} is set, and the driver, asyncpg") as caught:
        await PostgresStore(server.dsn).open()
    assert value in ("0", "1", "3.2") or value not in str(caught.value)  # these are in any sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("PGCONNECT_TIMEOUT", "s3cret"),
        ("PGCONNECT_TIMEOUT", "0"),
        ("PGSSLMODE", "s3cret"),
        ("PGSSLNEGOTIATION", "s3cret"),
        ("PGSSLMINPROTOCOLVERSION", "s3cret"),
        ("PGSSLMAXPROTOCOLVERSION", "s3cret"),
        ("PGTARGETSESSIONATTRS", "s3cret"),
        ("PGGSSLIB", "s3cret"),
        ("PGSSLCERT", "/no/s3cret"),
        ("PGSSLKEY", "/no/s3cret"),
        ("PGSSLROOTCERT", "/no/s3cret"),
        ("PGSSLCRL", "/no/s3cret"),
    ],
)
async def test_a_malformed_variable_is_named(server: Server, name: str, value: str, monkeypatch: Any) -> None:
    """At once, and its value is not shown."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError, match=f"the variable {name} ") as caught:
        await PostgresStore(server.dsn).open()
    assert "s3cret" not in str(caught.value)


async def test_the_variable_of_the_port(server: Server, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is looked at where neither a URL nor an option has a port."""
    url = urlsplit(server.dsn)
    for port in ("s3cret", "70000", "0"):
        monkeypatch.setenv("PGPORT", port)
        with pytest.raises(
            ConfigurationError, match="the variable PGPORT has a value that is no number of a"
        ) as caught:
            await PostgresStore(url._replace(netloc=url.netloc.rpartition(":")[0]).geturl()).open()
        assert port == "0" or port not in str(caught.value)
        async with PostgresStore(server.dsn, schema=schema) as store:
            assert await store.list() == []


async def test_the_variable_of_the_time_to_connect(
    server: Server, schema: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``PGCONNECT_TIMEOUT`` counts where neither the options nor the URL say how long to try."""

    async def seconds(url: str, **options: Any) -> float:
        async with PostgresStore(url, schema=schema, **options) as store:
            return engine_of(store).connections.connect_s

    assert await seconds(server.dsn) == 5
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "7")
    assert await seconds(server.dsn) == 7
    assert await seconds(f"{server.dsn}?connect_timeout=8") == 8
    assert await seconds(server.dsn, connection_timeout_millis=9000) == 9


async def test_variables_of_a_session(server: Server, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They reach the server, as libpq sends them, unless an option has the same setting."""
    for name, value in (("PGTZ", "Asia/Tokyo"), ("PGDATESTYLE", "SQL, DMY"), ("PGGEQO", "off")):
        monkeypatch.setenv(name, value)
    names = ("TimeZone", "DateStyle", "geqo")
    async with PostgresStore(server.dsn, schema=schema) as store:
        assert await settings_of(store, *names) == ["Asia/Tokyo", "SQL, DMY", "off"]
    async with PostgresStore(server.dsn, schema=schema, server_settings={"TimeZone": "Europe/Oslo"}) as store:
        assert await settings_of(store, *names) == ["Europe/Oslo", "SQL, DMY", "off"]


async def test_services(server: Server, schema: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A service of the URL, or of ``PGSERVICE``, gives what the URL does not have; with the rules of a URL."""
    url = urlsplit(server.dsn)
    where = f"host={url.hostname}\nport={url.port}\nuser={url.username}\ndbname={url.path[1:]}"
    (tmp_path / "mine").write_text(
        f"# several\n[other]\nhost=nowhere.invalid\n[bookings]\n{where}\npassword={url.password}\n"
        "application_name=booker\nconnect_timeout=8\noptions=-c work_mem=5MB\n[vain]\nhostaddr=s3cret\n"
    )
    names = ("application_name", "work_mem")

    async def found(target: str, **options: Any) -> list[Any]:
        async with create_extended_store(target, schema=schema, **options) as store:
            return [*await settings_of(store, *names), engine_of(store).connections.connect_s]

    file = f"servicefile={quote(str(tmp_path / 'mine'))}"
    assert await found(f"postgres://?service=bookings&{file}") == ["booker", "5MB", 8]
    assert await found(f"{server.dsn}?service=other&{file}") == ["kode", "4MB", 5]
    monkeypatch.setenv("PGSERVICE", "bookings")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "mine"))
    assert await found("postgres:", application_name="own") == ["own", "5MB", 8]
    assert await found("postgres://?connect_timeout=9&application_name=url") == ["url", "5MB", 9]
    with pytest.raises(ConfigurationError, match=r"a service that is not defined in \S+mine"):
        await found("postgres://?service=s3cret")
    with pytest.raises(ConfigurationError, match="has hostaddr, which the driver") as caught:
        await found("postgres://?service=vain")
    assert "s3cret" not in str(caught.value)
    monkeypatch.delenv("PGSERVICEFILE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PGSYSCONFDIR", str(tmp_path))
    (tmp_path / "mine").rename(tmp_path / "pg_service.conf")
    assert await found("postgres:") == ["booker", "5MB", 8]


async def test_the_variable_of_settings(server: Server, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``PGOPTIONS`` reaches the server where the URL has no ``options``, and is held to the same rules."""
    monkeypatch.setenv("PGOPTIONS", "-c work_mem=5MB")
    async with PostgresStore(server.dsn, schema=schema, server_settings={"temp_buffers": "2MB"}) as store:
        assert await settings_of(store, "work_mem", "temp_buffers", "application_name") == ["5MB", "2MB", "kode"]
    async with PostgresStore(f"{server.dsn}?options=-cwork_mem%3D6MB", schema=schema) as store:
        assert await settings_of(store, "work_mem") == ["6MB"]
    monkeypatch.setenv("PGOPTIONS", "-c statement_timeout=77s")
    with pytest.raises(
        ConfigurationError, match="the variable PGOPTIONS has statement_timeout, which cannot"
    ) as caught:
        await PostgresStore(server.dsn, schema=schema).open()
    assert "77" not in str(caught.value)


NOTHING_ASKED: Final = (
    ("PGCHANNELBINDING", "prefer"),
    ("PGGSSENCMODE", "disable"),
    ("PGLOADBALANCEHOSTS", "disable"),
    ("PGMAXPROTOCOLVERSION", "latest"),
    ("PGCLIENTENCODING", "LATIN1"),
    ("PGOPTIONS", ""),
    ("PGSERVICE", ""),
    ("PGCONNECT_TIMEOUT", ""),
)


async def test_variables_that_ask_for_nothing(server: Server, schema: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are no reason to refuse, nor are any where a pool is given, which has been made already."""
    for name, value in NOTHING_ASKED:
        monkeypatch.setenv(name, value)
    async with PostgresStore(server.dsn, schema=schema) as store:
        assert await store.list() == []
    monkeypatch.setenv("PGREQUIREAUTH", "scram-sha-256")
    async with asyncpg.create_pool(server.dsn, max_size=2, min_size=0) as pool, PostgresStore(pool=pool) as store:
        assert await store.exists("a") is False
