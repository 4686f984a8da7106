"""Where a store connects, and as who: where psql would, from the same URL, service, variables and password file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import pytest
from kode_postgres.passfile import password_in
from kode_postgres.target import Target, target_of

from kode_core import create_extended_store
from kode_core.errors import ConfigurationError
from plugins.postgres.tests.test_plugin import options_of

SERVICES: Final = """
# several
[all] # and a comment
host=10.0.0.1
port=11
user=service
password=of+service%20
dbname=of_service
application_name=booker
  connect_timeout=8
[twice]
host=10.0.0.1
host=10.0.0.2
port=11
port=12
[twice]
user=never
[port]
port=11
[empty]
host=10.0.0.1
port=
[nested]
host=10.0.0.1
service=port
[file]
servicefile=/no/such
[blank]
user = me
[none]
sslmode
[odd]
frobnicate=s3cret
"""


def target(url: str | None, variables: Mapping[str, str] | None = None, **options: Any) -> Target:
    given = options_of(url) if url and not options else options_of({"type": "postgres", "dsn": url, **options})
    return target_of(given, variables or {})


def answer(found: Target) -> dict[str, Any]:
    """The finished answer for the first host, by libpq's names."""
    given = found.arguments(found.hosts[0])
    password = given["password"]
    return {
        "host": ",".join(host.name for host in found.hosts),
        "port": ",".join(str(host.port) for host in found.hosts),
        "user": given["user"],
        "dbname": given["database"],
        "password": password() if callable(password) else password,
        "app": found.settings["application_name"],
        "timeout": found.options.connection_timeout_millis / 1000,
    }


TAKEN: Final[list[tuple[str | None, dict[str, str], dict[str, Any]]]] = [
    # of the authority and the query the same
    ("postgres://u:pw@h/k?port=5", {}, {"host": "h", "port": "5", "user": "u", "password": "pw", "dbname": "k"}),
    ("postgres://u@h/k?port=5", {"PGPORT": "6"}, {"port": "5"}),
    ("postgres://u@h:4/k?port=5", {"PGPORT": "6"}, {"port": "5"}),
    ("postgres://u@h,i/k?port=1,5", {"PGPORT": "6"}, {"host": "h,i", "port": "1,5"}),
    ("postgres://u@h:4/k?host=i", {}, {"host": "i", "port": "4"}),
    ("postgres://u@h/k?dbname=k2", {"PGDATABASE": "k3"}, {"dbname": "k2"}),
    ("postgres://u@h/k?database=k2", {}, {"dbname": "k2"}),
    ("postgres://u:pw@h/k?user=bob", {"PGUSER": "v"}, {"user": "bob", "password": "pw"}),
    ("postgres://u:no@h/k?password=pw", {"PGPASSWORD": "v"}, {"password": "pw"}),
    ("postgres://u@h/k?port=5&port=6", {}, {"port": "6"}),
    # what stands there and is empty
    ("postgres://u@h/?dbname=k2", {}, {"dbname": "k2"}),
    ("postgres://u@h?dbname=k2", {}, {"dbname": "k2"}),
    ("postgres://u@h/", {"PGDATABASE": "k2"}, {"dbname": "k2"}),
    ("postgres://u@h/", {}, {"dbname": "u"}),
    ("postgres://u@h/?dbname=", {"PGDATABASE": "k2"}, {"dbname": "u"}),
    ("postgres://u@h/k?port=", {"PGPORT": "7"}, {"port": "5432"}),
    ("postgres://@h/k", {"PGUSER": "v"}, {"user": "v"}),
    ("postgres://u:@h/k", {"PGPASSWORD": "pw"}, {"password": "pw"}),
    ("postgres://u:@h/k", {}, {"password": None}),
    # several hosts
    ("postgres://u@h,i/k", {"PGPORT": "9"}, {"port": "5432,5432"}),
    ("postgres://u@h,i/k?port=9", {}, {"port": "9,9"}),
    ("postgres://u@h:1,i/k", {"PGPORT": "9"}, {"port": "1,5432"}),
    ("postgres://u@[::1]:1,h:2/k", {}, {"host": "::1,h", "port": "1,2"}),
    (None, {"PGHOST": "h,i", "PGPORT": "1,2", "PGUSER": "v"}, {"host": "h,i", "port": "1,2", "dbname": "v"}),
    ("postgres://u@%2Ftmp%2Fx:7/k", {}, {"host": "/tmp/x", "port": "7"}),
    ("postgres://u@/k?host=/cloudsql/a:b:c", {}, {"host": "/cloudsql/a:b:c"}),
    # letters that stand for others
    ("postgres://u:a+b%2Bc%20@h/k+k", {}, {"password": "a+b+c ", "dbname": "k+k"}),
    ("postgres://u@h/k?application_name=a%2Bb+c", {}, {"app": "a+b+c"}),
    ("postgres://u@h/k?%70assword=pw", {}, {"password": "pw"}),
    # services
    (
        "postgres://?service=all",
        {"PGHOST": "v", "PGPORT": "9", "PGUSER": "v", "PGDATABASE": "v", "PGAPPNAME": "v", "PGCONNECT_TIMEOUT": "9"},
        {
            "host": "10.0.0.1",
            "port": "11",
            "user": "service",
            "password": "of+service%20",
            "dbname": "of_service",
            "app": "booker",
            "timeout": 8,
        },
    ),
    ("postgres:///?service=all", {}, {"host": "10.0.0.1", "dbname": "of_service"}),
    (None, {"PGSERVICE": "all"}, {"host": "10.0.0.1", "dbname": "of_service"}),
    ("postgres://u@/", {"PGSERVICE": "all"}, {"user": "u", "dbname": "of_service", "port": "11"}),
    ("postgres://u@h/k?service=port", {"PGPORT": "9"}, {"host": "h", "port": "11"}),
    ("postgres://u@h:4/k?service=port", {}, {"port": "4"}),
    ("postgres://u@h/k?service=twice", {}, {"host": "h", "port": "11", "user": "u"}),
    ("postgres://u@/k?service=twice", {}, {"host": "10.0.0.1", "port": "11"}),
    ("postgres://u@h/k?service=empty", {"PGPORT": "9"}, {"port": "5432"}),
    ("postgres://u@h/k?service=all&connect_timeout=3", {"PGCONNECT_TIMEOUT": "9"}, {"timeout": 3}),
    ("postgres://u@h/k?connect_timeout=5", {"PGSERVICE": "all", "PGCONNECT_TIMEOUT": "9"}, {"timeout": 5}),
    # the name of the application
    ("postgres://u@h/k?fallback_application_name=last", {"PGAPPNAME": "v"}, {"app": "v"}),
    ("postgres://u@h/k?fallback_application_name=last&application_name=", {"PGAPPNAME": "v"}, {"app": "last"}),
    ("postgres://u@h/k?fallback_application_name=last", {}, {"app": "last"}),
    # variables that are not looked at
    ("postgres://u@h:1/k", {"PGPORT": "s3cret"}, {"port": "1"}),
    ("postgres://u@h/k?target_session_attrs=any", {"PGTARGETSESSIONATTRS": "s3cret"}, {"host": "h"}),
]
"""What stands before the last is what libpq was given; the last is where it went, and as who.

``database`` is a name of this store's for ``dbname``.
"""
AS_OPTION: Final[list[tuple[str | None, dict[str, str], dict[str, Any]]]] = [
    ("postgres://u@h:/k", {"PGPORT": "7"}, {"port": "7"}),
    ("postgres://u@h%2Ci/k", {"PGPORT": "9"}, {"host": "h,i", "port": "9,9"}),
]
"""The same of URLs that have to be given as the option dsn: the rules of all backends' URLs are stricter."""


@pytest.fixture
def services(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "services").write_text(SERVICES)
    return {"PGSERVICEFILE": str(tmp_path / "services"), "PGPASSFILE": str(tmp_path / "none")}


@pytest.mark.parametrize(
    ("way", "url", "variables", "expected"),
    [*(("url", *case) for case in TAKEN), *(("dsn", *case) for case in [*TAKEN, *AS_OPTION])],
)
def test_a_store_goes_where_psql_goes(
    way: str, url: str | None, variables: dict[str, str], expected: dict[str, Any], services: dict[str, str]
) -> None:
    """The URL's query counts before its authority, then the service, then variables, then defaults."""
    found = answer(target(url, {**services, **variables}, **({"max": 3} if way == "dsn" else {})))
    assert {name: found[name] for name in expected} == expected


REFUSED: Final[list[tuple[str | None, dict[str, str], str]]] = [
    ("postgres://u@h/k?port=99999", {}, "the dsn has a port that is no number of a port from 1 to 65535"),
    ("postgres://u@h:99999/k", {}, "port that is no number of a port|host or host:port"),
    ("postgres://u@h/k?port=0", {}, "the dsn has a port that is no number"),
    ("postgres://u@h/k", {"PGPORT": "99999"}, "the variable PGPORT has a value that is no number of a port"),
    ("postgres://u@h,i,j/k?port=1,2", {}, "the dsn has a port with another count of numbers than there are hosts"),
    ("postgres://u@h/k", {"PGPORT": "5,6"}, "the variable PGPORT has a value with another count"),
    ("postgres://u@h/k?user=", {}, "the dsn has a user that is empty"),
    ("postgres://u@h/k?sslmode=", {}, "the dsn has a sslmode that is none of"),
    ("postgres://u@h/k?connect_timeout=", {}, "the dsn has a connect_timeout that is no number"),
    ("postgres://u@h/k?sslnegotiation=direct", {}, "sslnegotiation that asks for TLS at once, and sslmode prefer"),
    ("postgres://u@h/k?password=s3cret=", {}, "has a password with a second = in it"),
    ("postgres://u:s3cret%zz@h/k", {}, "has a password with a % that no two digits follow"),
    ("postgres://u@h/k?application_name=%e9", {}, "has an application_name that is not UTF-8"),
    ("postgres://u@a..b/k", {}, "the dsn has a host that is no name, address or folder"),
    ("postgres://u@/k?host=h:5433", {}, "the dsn has a host that is no name, address or folder"),
    ("postgres://u@/k?host=[::1]", {}, "the dsn has a host that is no name, address or folder"),
    (None, {"PGHOST": "postgres://u:s3cret@h"}, "the variable PGHOST has a value that is no name, address or folder"),
    ("postgres://u@h/k", {"PGTARGETSESSIONATTRS": "s3cret"}, "the variable PGTARGETSESSIONATTRS has a value that is"),
    ("postgres://?service=nested", {}, r"the service has service, which no service can have \(\S+, line 25\)"),
    ("postgres://?service=file", {}, "the service has servicefile, which no service can have"),
    ("postgres://?service=blank", {}, r"no blank before the = \(\S+, line 29\)"),
    ("postgres://?service=none", {}, "the service has a line that is no parameter"),
    ("postgres://?service=odd", {}, "the service has a line that is no parameter"),
    ("postgres://?service=s3cret", {}, "a service that is not defined in"),
]
"""What psql does not go anywhere with; nor the store with a text that is not UTF-8, which libpq passes on."""


@pytest.mark.parametrize(("url", "variables", "says"), REFUSED)
def test_a_store_refuses_what_psql_refuses(
    url: str | None, variables: dict[str, str], says: str, services: dict[str, str]
) -> None:
    """The parameter is named, before anything is connected to, and its value is not quoted."""
    with pytest.raises(ConfigurationError, match=says) as caught:
        target(url, {**services, **variables})
    assert "s3cret" not in str(caught.value)


NUL: Final = "k\0default_transaction_read_only\0on"


@pytest.mark.parametrize(
    "name", ["host", "user", "password", "dbname", "application_name", "fallback_application_name", "options"]
)
def test_no_text_ends_early(name: str, services: dict[str, str]) -> None:
    """A NUL would end it on its way to the server, which would take the rest for settings of the session."""
    evil = quote(NUL, safe="")
    urls = [f"postgres://u@h/d?{name}={evil}"]
    urls += {
        "host": [f"postgres://u@%2F{evil}/d"],
        "user": [f"postgres://{evil}@h/d"],
        "password": [f"postgres://u:{evil}@h/d"],
        "dbname": [f"postgres://u@h/{evil}"],
    }.get(name, [])
    for url in urls:
        for given in (url, {"type": "postgres", "dsn": url}, {"type": "postgres", "connection": url}):
            with pytest.raises(ConfigurationError, match=f"has an? {name} with a NUL in it"):
                options_of(given)
    option = {"dbname": "database"}.get(name, name)
    if name in ("options", "fallback_application_name"):
        return
    with pytest.raises(ConfigurationError, match=option) as caught:
        target(None, {"PGHOST": "h", "PGUSER": "u"}, **{option: NUL})
    assert "read_only" not in str(caught.value)
    Path(services["PGSERVICEFILE"]).write_text(f"[s]\n{name}={NUL}\n")
    with pytest.raises(ConfigurationError, match=f"the service has an? {name} with a NUL in it"):
        target("postgres://u@h/d?service=s", services)


def test_an_option_counts_before_all(services: dict[str, str]) -> None:
    """Each for itself: next to another host the URL's port stays, as psql's --host has it."""
    options = {"host": "i", "database": "d", "user": "me", "password": "mine", "application_name": "own"}
    found = answer(target("postgres://u:pw@h:4/k", {**services, "PGHOST": "v"}, **options))
    expected = {"host": "i", "port": "4", "user": "me", "dbname": "d", "password": "mine", "app": "own", "timeout": 5}
    assert found == expected
    assert target("postgres://u@h:4/k", services, port=6).hosts[0].port == 6
    assert target("postgres://u@h:4/k", services, host="[::1]").hosts[0].name == "::1"


def test_the_place_is_where_it_goes(services: dict[str, str]) -> None:
    """Messages name the host that was found, whichever way, and no secret."""
    for url, variables, place in (
        ("postgres://u:s3cret@h:4/k?port=5&dbname=d", {}, "postgres at h:5/d"),
        ("postgres://?service=all", {}, "postgres at 10.0.0.1:11/of_service"),
        ("postgres://u@[::1],h/k", {"PGPORT": "7"}, "postgres at [::1],h/k"),
        (None, {"PGHOST": "v", "PGPORT": "7"}, "postgres at v:7"),
        ("postgres://u@/", {}, "postgres at the default host"),
    ):
        assert target(url, {**services, **variables}).options.address == place


# --- The password file ------------------------------------------------------------------------------------------------

LINES: Final = r"""
# db:1:k:u:commented
db:1:k:u:first
db:1:k:u:second
db:2:*:u:any database
*:3:k:*:any host or user
a\:b:1:k:u:colon\:and\\backslash
localhost:1:k:u:socket
/tmp/own:1:k:u:own folder
\*:9:k:u:a star
short:1:k
db:5:k:u:with:colons
  db:6:k:u:blanks
"""


@pytest.mark.parametrize(
    ("host", "port", "database", "user", "password"),
    [
        ("db", 1, "k", "u", "first"),
        ("db", 1, "k", "other", None),
        ("db", 2, "whatever", "u", "any database"),
        ("whatever", 3, "k", "whoever", "any host or user"),
        ("a:b", 1, "k", "u", "colon:and\\backslash"),
        ("localhost", 1, "k", "u", "socket"),
        ("/tmp/own", 1, "k", "u", "own folder"),
        ("x", 9, "k", "u", None),
        ("short", 1, "k", "u", None),
        ("db", 5, "k", "u", "with:colons"),
        ("db", 6, "k", "u", None),
    ],
)
def test_the_line_of_a_password_file(
    tmp_path: Path, host: str, port: int, database: str, user: str, password: str | None
) -> None:
    """It is the one that libpq takes."""
    file = tmp_path / "passwords"
    file.write_text(LINES)
    file.chmod(0o600)
    assert password_in(str(file), host, port, database, user) == password


def test_a_password_file_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Editors of Windows write one; it is no part of the first line."""
    file = tmp_path / "passwords"
    file.write_text("\ufeffdb:1:k:u:secret\r\n", encoding="utf-8")
    file.chmod(0o600)
    assert password_in(str(file), "db", 1, "k", "u") == "secret"


def test_a_password_file_that_others_can_read(tmp_path: Path) -> None:
    """Nothing in it is taken, and the warning names the file alone; one that is not there is none."""
    file = tmp_path / "passwords"
    file.write_text(LINES)
    file.chmod(0o640)
    with pytest.warns(UserWarning, match="can be read by others, and is not read: run chmod 0600"):
        assert password_in(str(file), "db", 1, "k", "u") is None
    with pytest.warns(UserWarning, match="is no plain file"):
        assert password_in(str(tmp_path), "db", 1, "k", "u") is None
    assert password_in(str(tmp_path / "none"), "db", 1, "k", "u") is None


def test_each_host_has_the_password_of_its_line(tmp_path: Path) -> None:
    """A folder where servers of this machine have their sockets is ``localhost``; an empty password is none."""
    file = tmp_path / "passwords"
    file.write_text("h:1:*:*:one\ni:2:*:*:two\nlocalhost:*:*:*:three\n")
    file.chmod(0o600)
    for url, variables in (
        ("postgres://u@h:1,i:2,%2Ftmp:3/k", {"PGPASSFILE": str(file)}),
        ("postgres://u:@h:1,i:2,%2Ftmp:3/k", {"PGPASSFILE": str(file), "PGPASSWORD": ""}),
        (f"postgres://u@h:1,i:2,%2Ftmp:3/k?passfile={file}&password=", {"PGPASSFILE": "/no/such", "PGPASSWORD": "x"}),
    ):
        found = target(url, variables)
        assert [found.arguments(host)["password"]() for host in found.hosts] == ["one", "two", "three"]


# --- The driver -------------------------------------------------------------------------------------------------------


async def test_the_driver_looks_for_nothing(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to a URL that says all, variables that lead elsewhere change nothing; a service leads where it says."""
    where = "select current_database(), current_setting('application_name')"
    given = answer(target(database))
    (tmp_path / "services").write_text(
        "[s]\n" + "".join(f"{name}={given[name]}\n" for name in ("host", "port", "user", "password", "dbname"))
    )
    with monkeypatch.context() as patch:
        for name, value in (
            *(("PGHOST", "nowhere.invalid"), ("PGPORT", "1"), ("PGUSER", "nobody"), ("PGPASSWORD", "wrong")),
            *(("PGDATABASE", "nowhere"), ("PGSSLMODE", "verify-full"), ("PGTARGETSESSIONATTRS", "read-only")),
            *(("PGPASSFILE", "/no/such"), ("PGAPPNAME", "variable"), ("PGSERVICEFILE", str(tmp_path / "services"))),
        ):
            patch.setenv(name, value)
        for url in (database, "postgres://?service=s", f"postgres://u@h:1/k?service=s&{query(given)}"):
            options = "sslmode=prefer&target_session_attrs=any&application_name=mine"
            whole = f"{url}{'&' if '?' in url else '?'}{options}"
            async with create_extended_store(whole) as store:
                engine: Any = store._context.engine
                assert tuple(await engine.connections.read(lambda s: s.fetchrow(where))) == (given["dbname"], "mine")


def query(given: Mapping[str, Any]) -> str:
    names = ("host", "port", "user", "password", "dbname")
    return "&".join(f"{name}={quote(str(given[name]), safe='')}" for name in names if given[name])
