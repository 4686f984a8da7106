"""PgBouncer, which many have in front of their server."""

from __future__ import annotations

import shutil
import signal
import socket
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

from kode_conformance.servers import Account, LocalProcess, NoServerError, ServerProcess, free_port, scratch_folder
from kode_postgres.testing.servers import Server

REMEDY = "run apt-get install pgbouncer"
CONFIG = """\
[databases]
* = host={host} port={server_port}
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = scram-sha-256
auth_file = {users}
admin_users = {user}
pool_mode = {pool_mode}
default_pool_size = {pool_size}
max_client_conn = 200
"""


class Bouncer(Server, LocalProcess):
    """A pool of *pool_size* connections for each database of *server*.

    In the mode ``transaction`` all clients share them, a transaction at a time.

    Its address is in ``dsn``; ``url("pgbouncer")`` is the console.
    """

    def __init__(self, server: Server, pool_size: int = 4, pool_mode: str = "transaction") -> None:
        program = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")
        if program is None:
            raise NoServerError("there is no pgbouncer on this machine", REMEDY)
        home = scratch_folder("bouncer")
        self._account = Account(root_is_refused=True)
        self._process = ServerProcess(home / "log", self._account)
        self._command = [program, str(home / "pgbouncer.ini")]
        self.port = free_port()
        parts = urlsplit(server.dsn)
        host, port = parts.hostname, parts.port or 5432
        self._configure(home, host, port, parts.username, parts.password, pool_size, pool_mode)
        super().__init__(parts._replace(netloc=f"{parts.username}:{parts.password}@127.0.0.1:{self.port}").geturl())

    def _configure(self, home: Path, host, server_port, user, password, pool_size, pool_mode) -> None:
        users = home / "users"
        users.write_text(f'"{user}" "{password}"\n')
        text = CONFIG.format(
            host=host,
            server_port=server_port,
            port=self.port,
            users=users,
            user=user,
            pool_size=pool_size,
            pool_mode=pool_mode,
        )
        (home / "pgbouncer.ini").write_text(text)
        self._account.own(home)

    @property
    def log(self) -> str:
        return self._process.log.read_text()

    def start(self) -> Self:
        self._process.start(self._command, self._is_ready)
        return self

    def _is_ready(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def restart(self) -> None:
        self._process.stop(signal.SIGTERM)
        self.start()

    def close(self) -> None:
        self._process.stop(signal.SIGTERM)
