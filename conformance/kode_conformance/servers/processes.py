"""Servers that a store is tested against: started here, and gone with the process that started them.

A :class:`ServerProcess` is a database server with its data in a temporary folder. It ends when the interpreter does,
and also when the interpreter is killed: a guardian, one for all servers of a process, sees to that. Tests can kill it
with all its processes, hold it, and start it again.
"""

from __future__ import annotations

import atexit
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Final, Self, TypeVar

from kode_conformance.servers import guardian

__all__ = [
    "Account",
    "LocalProcess",
    "NoServerError",
    "ServerFailedError",
    "ServerProcess",
    "Startable",
    "free_port",
    "had",
    "scratch_folder",
]

T = TypeVar("T")
NOBODY: Final = 65534
_PORTS: Final = range(15000, 32000)
"""Below the ports of outgoing connections, so that a restarted server finds its port free."""


class NoServerError(RuntimeError):
    """No server can be had on this machine.

    Attributes:
        reason: why.
        remedy: what to do about it, with a command.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(f"{reason}; {remedy}")
        self.reason, self.remedy = reason, remedy


def had(make: Callable[[], T], *, optional: bool = False) -> T:
    """The server that *make* gives. Without one the test is skipped, with a reason that says how to make it run.

    In CI, where everything has to be there that is not *optional*, it fails.
    """
    import pytest

    try:
        return make()
    except NoServerError as exc:
        if os.environ.get("CI") == "true" and not optional:
            pytest.fail(str(exc))
        pytest.skip(str(exc))


class ServerFailedError(RuntimeError):
    """A server did not start or stop; the message ends with its output."""


class Account:
    """The user that a server runs as: the current user, or ``nobody`` where a server refuses to run as root.

    Attributes:
        uid: None for the current user.
    """

    def __init__(self, *, root_is_refused: bool = False) -> None:
        self.uid = NOBODY if root_is_refused and os.geteuid() == 0 else None

    def run(self, command: Sequence[str], env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run a command to its end as this user.

        Raises:
            OSError: it cannot be run, for instance because this user cannot reach it.
        """
        return subprocess.run(  # noqa: S603
            command, env=env, user=self.uid, group=self.uid, extra_groups=self._groups, cwd="/",
            stdin=subprocess.DEVNULL, capture_output=True, text=True,
        )  # fmt: skip

    def popen(self, command: Sequence[str], env: Mapping[str, str] | None, log: IO[bytes]) -> subprocess.Popen[bytes]:
        """Start a server as this user, away from the terminal and its Ctrl-C."""
        return subprocess.Popen(  # noqa: S603
            command, env=env, user=self.uid, group=self.uid, extra_groups=self._groups, cwd="/",
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip

    @property
    def _groups(self) -> list[int] | None:
        return None if self.uid is None else []

    def can_reach(self, folder: Path) -> bool:
        """True if this user may enter *folder*."""
        return self.uid is None or all(f.stat().st_mode & 0o001 for f in (folder, *folder.resolve().parents))

    def own(self, path: Path) -> None:
        """Give *path* and all below it to this user."""
        if self.uid is not None:
            for found in (path, *path.rglob("*")):
                os.chown(found, self.uid, self.uid, follow_symlinks=False)


def free_port() -> int:
    """A port of 127.0.0.1 without a listener."""
    for port in _PORTS[int.from_bytes(os.urandom(2), "big") % (len(_PORTS) // 2) :]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise NoServerError("no port is free", "end some of the servers that listen on 127.0.0.1")


class _Household:
    """The servers of this process, the folder of their data, and the guardian."""

    def __init__(self) -> None:
        self.owner = os.getpid()
        self.folder = Path(tempfile.mkdtemp(prefix="kode-servers-", dir=self._place()))
        self.folder.chmod(0o711)
        self.servers: list[ServerProcess] = []
        command = [sys.executable, "-I", "-S", guardian.__file__, str(self.folder)]
        self._guardian = subprocess.Popen(  # noqa: S603
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd="/",
            start_new_session=True,
        )  # fmt: skip
        atexit.register(self.close)

    @staticmethod
    def _place() -> str:
        """Where temporary files are, or a place that other users can reach, too."""
        account = Account(root_is_refused=True)
        places = [Path(tempfile.gettempdir()), Path("/var/tmp"), Path("/tmp")]  # noqa: S108
        return str(next((place for place in places if place.is_dir() and account.can_reach(place)), places[0]))

    def tell(self, line: str) -> None:
        assert self._guardian.stdin is not None
        self._guardian.stdin.write(f"{line}\n".encode())
        self._guardian.stdin.flush()

    def close(self) -> None:
        if os.getpid() != self.owner:
            return
        for server in self.servers:
            if server.is_running:
                server.stop(server.quick, 5)
        assert self._guardian.stdin is not None
        self._guardian.stdin.close()
        self._guardian.wait(30)


_household: _Household | None = None


def _home() -> _Household:
    global _household
    if _household is None or _household.owner != os.getpid():
        _household = _Household()
    return _household


def scratch_folder(name: str) -> Path:
    """A new folder that is removed when this process has ended, and that servers can reach."""
    return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=_home().folder))


class ServerProcess:
    """A server and the processes that it starts.

    Attributes:
        quick: the signal that ends it at once and in good order, as far as it has one.
        log: the file of its output.
    """

    def __init__(self, log: Path, account: Account, *, quick: signal.Signals = signal.SIGTERM) -> None:
        self.log, self.account, self.quick = log, account, quick
        self._process: subprocess.Popen[bytes] | None = None
        self._home = _home()
        self._home.servers.append(self)

    @property
    def is_running(self) -> bool:
        """True if it has been started and has not ended."""
        if self._process is not None and os.getpid() != self._home.owner:  # a fork may look, and cannot wait
            return guardian.is_alive(self._process.pid)
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        """The process that was started; its children come and go."""
        assert self._process is not None, "the server was not started"
        return self._process.pid

    def start(
        self, command: Sequence[str], ready: Callable[[], bool], *, env: Mapping[str, str] | None = None,
        seconds: float = 30,
    ) -> None:  # fmt: skip
        """Start it, and return when it is *ready*.

        Raises:
            ServerFailedError: it ended, or was not ready in time.
        """
        with self.log.open("ab") as log:
            begin = log.tell()
            self._process = self.account.popen(command, env, log)
        self._home.tell(f"+ {self.pid} {int(self.quick)}")
        end = time.monotonic() + seconds
        while not ready():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > end:
                self.kill()
                said = self.log.read_bytes()[begin:][-2000:].decode(errors="replace")
                raise ServerFailedError(f"{command[0]} {'ended' if ended else 'was not ready in time'}: {said}")
            time.sleep(0.005)

    def stop(self, number: signal.Signals, seconds: float = 30) -> None:
        """Ask it to end, and see that it does: after *seconds* it is killed."""
        if self.is_running:
            everything = list(guardian.tree(self.pid))
            guardian.send([self.pid], number)
            guardian.send(everything, signal.SIGCONT)
            if not self._wait(everything, seconds):
                self.kill()
        self._forget()

    def kill(self) -> None:
        """Kill it with all its processes at once, as a loss of power does; return when they are gone."""
        if self.is_running:
            guardian.send([self.pid], signal.SIGSTOP)  # from here on it starts no more processes
            everything = list(guardian.tree(self.pid))
            guardian.send(everything, signal.SIGKILL)
            self._wait(everything, 30)
        self._forget()

    def pause(self) -> None:
        """Stop all its processes: connections stay open, and get no answer."""
        guardian.send([self.pid], signal.SIGSTOP)
        guardian.send(list(guardian.tree(self.pid)), signal.SIGSTOP)

    def resume(self) -> None:
        """End a pause."""
        guardian.send(list(guardian.tree(self.pid)), signal.SIGCONT)

    def _wait(self, everything: list[int], seconds: float) -> bool:
        assert self._process is not None
        end = time.monotonic() + seconds
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return guardian.wait_gone(everything, end - time.monotonic())

    def _forget(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._home.tell(f"- {self.pid}")
            self._process = None


class Startable(ABC):
    """A server that a test starts: used with ``with``, or with ``start`` and ``close``."""

    @abstractmethod
    def start(self) -> Self:
        """Start it, and return when it can be used."""

    @abstractmethod
    def close(self) -> None:
        """End it, and remove its files."""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, where: TracebackType | None
    ) -> None:
        self.close()


class LocalProcess(Startable):
    """A server that is a :class:`ServerProcess` of this one."""

    _process: ServerProcess

    @property
    def is_running(self) -> bool:
        """True if it has been started and has not ended."""
        return self._process.is_running

    def pause(self) -> None:
        """Stop all its processes, so that connections stay open and get no answer."""
        self._process.pause()

    def resume(self) -> None:
        """End a pause."""
        self._process.resume()
