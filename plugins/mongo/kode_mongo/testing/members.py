"""A replica set of several members for tests, whose replication can be held and whose members can be killed."""

from __future__ import annotations

import shutil
import signal
import time
from contextlib import suppress
from typing import Any, Final, Self

import pymongo
from kode_conformance.servers import Account, ServerFailedError, ServerProcess, Startable, free_port, scratch_folder
from pymongo.errors import PyMongoError

from kode_mongo.testing.servers import find_program

__all__ = ["LocalSet"]

_SET: Final = "rs0"
_SETTINGS: Final = (
    *("--replSet", _SET, "--bind_ip", "127.0.0.1", "--wiredTigerCacheSizeGB", "0.25", "--nounixsocket"),
    *("--oplogSize", "64", "--setParameter", "enableTestCommands=1"),
    *("--setParameter", "diagnosticDataCollectionEnabled=false"),
)
_ELECTION: Final = {"electionTimeoutMillis": 2000, "heartbeatIntervalMillis": 300}


class LocalSet(Startable):
    """Members on loopback, without users. An election takes some two seconds.

    Attributes:
        uri: the address of all members.
    """

    def __init__(self, members: int = 3) -> None:
        self._program = find_program()
        self._home = scratch_folder("mongo-set")
        self._ports = [free_port() for _ in range(members)]
        logs = [self._home / f"log-{port}" for port in self._ports]
        self._processes = [ServerProcess(log, Account(), quick=signal.SIGTERM) for log in logs]
        hosts = ",".join(f"127.0.0.1:{port}" for port in self._ports)
        self.uri = f"mongodb://{hosts}/?replicaSet={_SET}"

    def start(self) -> Self:
        """Start all members, and return when one of them takes writes."""
        for number in range(len(self._ports)):
            self.start_member(number)
        members = [{"_id": number, "host": f"127.0.0.1:{port}"} for number, port in enumerate(self._ports)]
        with self.member(0) as client:
            client.admin.command("replSetInitiate", {"_id": _SET, "members": members, "settings": _ELECTION})
        self.primary()
        return self

    def start_member(self, number: int) -> None:
        """Start a member, for the first time or again."""
        folder = self._home / f"data-{self._ports[number]}"
        folder.mkdir(exist_ok=True)
        command = [str(self._program), "--dbpath", str(folder), "--port", str(self._ports[number]), *_SETTINGS]
        self._processes[number].start(command, lambda: self._is(number, "ping"))

    def member(self, number: int) -> pymongo.MongoClient[dict[str, Any]]:
        """A client of one member only. It waits a few seconds at most, as a paused member does not answer."""
        return pymongo.MongoClient(
            "127.0.0.1",
            self._ports[number],
            directConnection=True,
            serverSelectionTimeoutMS=1000,
            connectTimeoutMS=1000,
            socketTimeoutMS=5000,
        )

    def _is(self, number: int, command: str, field: str = "ok") -> bool:
        with self.member(number) as client, suppress(PyMongoError):
            return bool(client.admin.command(command)[field])
        return False

    def primary(self, *, other_than: int | None = None) -> int:
        """The number of the member that takes writes. Waits until one does."""
        end = time.monotonic() + 60
        while time.monotonic() < end:
            for number, process in enumerate(self._processes):
                if number != other_than and process.is_running and self._is(number, "hello", "isWritablePrimary"):
                    return number
            time.sleep(0.1)
        raise ServerFailedError("no member became the primary in time")

    def hold_replication(self, primary: int, *, held: bool) -> None:
        """Stop or resume the replication from the primary to the other members."""
        for number, process in enumerate(self._processes):
            if number != primary and process.is_running:
                with self.member(number) as client:
                    mode = "alwaysOn" if held else "off"
                    client.admin.command("configureFailPoint", "stopReplProducer", mode=mode)

    def step_down(self) -> int:
        """Make the primary step down, even if the other members lack writes; its number."""
        number = self.primary()
        with self.member(number) as client, suppress(PyMongoError):  # the server may close its connections
            client.admin.command("replSetStepDown", 5, secondaryCatchUpPeriodSecs=1, force=True)
        return number

    def kill(self, number: int) -> None:
        """SIGKILL a member."""
        self._processes[number].kill()

    def pause(self, number: int) -> None:
        """SIGSTOP a member: its connections stay open, and it does not answer."""
        self._processes[number].pause()

    def resume(self, number: int) -> None:
        """SIGCONT a member."""
        self._processes[number].resume()

    def heal(self) -> None:
        """Run all members, resume replication, and wait for a primary."""
        for number, process in enumerate(self._processes):
            if process.is_running:
                process.resume()
            else:
                self.start_member(number)
        self.hold_replication(-1, held=False)
        self.primary()

    def close(self) -> None:
        """Kill all members, and remove their data."""
        for process in self._processes:
            process.kill()
        shutil.rmtree(self._home, ignore_errors=True)
