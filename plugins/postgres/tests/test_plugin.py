"""The plugin is light, and the package has what the guide promises."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import kode_postgres
import pytest
from kode_postgres import PostgresStore
from kode_postgres.options import PostgresOptions
from kode_postgres.plugin import kode_store_backend
from kode_postgres.target import target_of
from kode_postgres.testing.servers import Server

from kode_core.config import configure
from kode_core.errors import ConfigurationError
from kode_core.plugins import API, registry
from tests.test_cli import kode

SECRET = "s3cret-pa55"


def options_of(target: Any, environ: dict[str, str] | None = None, **options: Any) -> PostgresOptions:
    found = configure(target, options, registry.backend, environ or {}).options
    assert isinstance(found, PostgresOptions)
    return found.resolved()


def test_the_plugin_imports_no_driver() -> None:
    """Loading the plugin, importing the package and printing the schema do not import asyncpg."""
    script = (
        "import sys, kode_postgres, kode_postgres.plugin as p; p.kode_store_backend().schema(p.PostgresOptions());"
        "print('asyncpg' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "False"


def test_the_backend_says_what_it_is() -> None:
    """The backend has the name of its entry point and the API of this core."""
    backend = kode_store_backend()
    assert (backend.name, backend.api, backend.gives) == ("postgres", API, "engine")


def test_the_public_names() -> None:
    """The package has a store for direct use and its options."""
    assert kode_postgres.__all__ == ["PostgresOptions", "PostgresStore"]


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_a_url_is_a_dsn_and_options(scheme: str) -> None:
    """Of a URL, libpq's parameters go to the driver, and the others are options."""
    url = f"{scheme}://me:{SECRET}@db.example:5433/agents?sslmode=require&schema=bots&max=3&channel_binding=prefer"
    options = options_of(url)
    assert options.dsn == f"postgresql://me:{SECRET}@db.example:5433/agents?sslmode=require&channel_binding=prefer"
    assert (options.schema, options.max) == ("bots", 3)
    assert options.address == "postgres at db.example:5433/agents"
    assert SECRET not in repr(options)


def test_the_variables_of_the_sdk() -> None:
    """The SDK's variables give the connection, those of the backend everything."""
    environ = {
        "KODE_STORE_TYPE": "postgres",
        "POSTGRES_HOST": "h",
        "POSTGRES_PORT": "1234",
        "POSTGRES_DB": "d",
        "POSTGRES_USER": "u",
        "POSTGRES_PASSWORD": SECRET,
        "KODE_POSTGRES_TABLE_PREFIX": "bot_",
    }
    options = options_of(None, environ)
    assert (options.host, options.port, options.database, options.user) == ("h", 1234, "d", "u")
    assert (options.password, options.table_prefix) == (SECRET, "bot_")
    assert SECRET not in repr(options)


def test_the_connection_of_the_guide() -> None:
    """The guide's nested connection works; what is given beside it wins; mistakes in it are told."""
    connection = {"host": "h", "max": 20, "idle_timeout_millis": 30_000, "connection_timeout_millis": 2000}
    options = options_of({"type": "postgres", "connection": connection, "max": 5})
    assert (options.host, options.max, options.connection_timeout_millis) == ("h", 5, 2000)
    assert options_of({"type": "postgres", "connection": "postgres://h/d"}).dsn == "postgres://h/d"
    with pytest.raises(ConfigurationError, match="connection has no option 'hots'; did you mean 'host'"):
        options_of({"type": "postgres", "connection": {"hots": "h"}})
    with pytest.raises(ConfigurationError, match="connection: option port: Expected `?int"):
        options_of({"type": "postgres", "connection": {"port": "x"}})


@pytest.mark.parametrize("name", ["a b", 'a"b', "1a", "", "a\n", "é"])
def test_names_that_are_no_identifiers(name: str) -> None:
    """Schema and prefix are plain identifiers."""
    for option in ("schema", "table_prefix"):
        with pytest.raises(ConfigurationError, match=f"option {option} of backend 'postgres'"):
            options_of({"type": "postgres", option: name})


def test_a_look_makes_no_tables(server: Server, schema: str) -> None:
    """A command that only looks refuses a database without tables, and leaves it without."""
    kode = str(Path(sys.executable).with_name("kode"))
    look = [kode, "--store", f"{server.dsn}?schema={schema}", "sessions"]
    done = subprocess.run(look, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert "is not a postgres store of kode" in done.stderr
    assert server.password not in done.stderr

    async def make() -> None:
        await (await PostgresStore(server.dsn, schema=schema).open()).close()

    asyncio.run(make())
    done = subprocess.run(look, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_the_schema_can_be_printed() -> None:
    """``kode schema`` prints SQL, without a connection; a backend that needs nothing says so."""
    kode = [str(Path(sys.executable).with_name("kode")), "schema"]

    def run(*arguments: str) -> tuple[int, str, str]:
        done = subprocess.run([*kode, *arguments], capture_output=True, text=True, timeout=60, check=False)
        return done.returncode, done.stdout, done.stderr

    code, out, _ = run("postgres", "--schema", "bots", "--print")
    assert code == 0
    assert out.startswith('BEGIN;\nCREATE SCHEMA IF NOT EXISTS "bots";\n')
    assert 'CREATE TABLE "bots"."kode_messages"' in out
    assert 'CREATE TABLE "bot_messages"' in run("postgres:?table_prefix=bot_", "--print")[1]
    assert run("json", "--print")[0::2] == (2, "error: backend 'json' has no schema to print\n")
    assert "give --print" in run("postgres")[2]
    code, out, _ = run("postgres", "--schema", "bots", "--from", "1", "--print")
    assert code == 0
    assert out.startswith('BEGIN;\nCREATE INDEX IF NOT EXISTS "kode_agents_counts" ON "bots"."kode_agents" ')
    assert out.endswith(
        "VALUES ('schema_version', 5) ON CONFLICT (key) DO UPDATE SET value = excluded.value;\nCOMMIT;\n"
    )
    assert "0, which has no tables, to 5; there is no version 6" in run("postgres", "--from", "6", "--print")[2]
    assert "leave out --from" in run("dynamodb://eu-central-1/agents", "--from", "1", "--print")[2]


@pytest.mark.parametrize(
    ("parameter", "says"),
    [
        ("channel_binding=require", "channel_binding, which the driver, asyncpg, does not know"),
        ("gssencmode=require", "gssencmode, which the driver, asyncpg, does not know"),
        ("sslcompression=1", "sslcompression, which the driver"),
        ("client_encoding=latin1", "client_encoding, which the driver"),
        ("sslmode=encrypt", "sslmode that is none of disable, allow"),
        ("target_session_attrs=x", "target_session_attrs that is none of any"),
        ("connect_timeout=0", "connect_timeout that is no number of seconds"),
        ("connect_timeout=soon", "connect_timeout that is no number of seconds"),
        ("port=x", "port that is no number of a port from 1 to 65535"),
        ("hostaddr=1.2.3.4", "hostaddr, which the driver, asyncpg, does not know; leave it out"),
        ("require_auth=scram-sha-256", "require_auth, which the driver, asyncpg, does not know; leave it out"),
        ("sslcrldir=/x", "sslcrldir, which the driver, asyncpg, does not know; leave it out"),
    ],
)
def test_a_parameter_is_never_dropped(parameter: str, says: str) -> None:
    """What the driver does not know is refused: a URL must not seem to protect what it does not."""
    with pytest.raises(ConfigurationError, match=says):
        options_of(f"postgres://h/d?{parameter}")
    with pytest.raises(ConfigurationError, match=says):
        options_of({"type": "postgres", "dsn": f"postgres://h/d?{parameter}"})


def test_parameters_reach_the_driver() -> None:
    """Those of TLS above all, a list of revoked certificates included."""
    kept = f"sslmode=verify-full&sslcrl={__file__}&sslrootcert={__file__}&target_session_attrs=read-write"
    options = options_of(f"postgres://h/d?{kept}&channel_binding=prefer&connect_timeout=3&application_name=x")
    target = target_of(options, {})
    given = target.arguments(target.hosts[0])
    assert parse_qs(urlsplit(given["dsn"]).query) == {"sslcrl": [__file__], "sslrootcert": [__file__]}
    assert (given["ssl"], target.wanted, target.settings) == ("verify-full", "read-write", {"application_name": "x"})
    assert options.resolved().connection_timeout_millis == 3000
    both = options_of("postgres://h/d?connect_timeout=3&connection_timeout_millis=50")
    assert both.resolved().connection_timeout_millis == 50


@pytest.mark.parametrize("host", ["postgres://u:s3cret@h", "u:s3cret@h", "h:5432", "", "a b", "h?x", "a,,b"])
def test_a_host_is_no_url(host: str) -> None:
    """A URL in the place of a host is refused, and not a word of it told."""
    with pytest.raises(ConfigurationError, match="host must be a name or an address alone") as caught:
        options_of({"type": "postgres", "host": host})
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("password", [5, b"x", ["x"], {}, True])
def test_a_password_is_a_text_or_a_function(password: object) -> None:
    """Anything else is refused with its type."""
    with pytest.raises(ConfigurationError, match=f"password must be a str, or a function.*{type(password).__name__}"):
        options_of({"type": "postgres", "password": password})


async def test_doctor_names_the_server(database: str) -> None:
    """Of a store that kode.toml names, it says which server that is, and no password."""
    where = urlsplit(database)
    place = f"postgres at {where.hostname}:{where.port}{where.path}"
    Path("kode.toml").write_text(f'[stores.production]\nurl = "{database}"\n')
    async with PostgresStore(database) as store:
        await store.list()
    out, _ = await asyncio.to_thread(kode, "doctor", "--store", "production")
    assert place in out.splitlines()[0]
    told = json.loads((await asyncio.to_thread(kode, "doctor", "--store", "production", "--json"))[0])
    assert told["store"]["address"] == place
    assert where.password is None or where.password not in out
