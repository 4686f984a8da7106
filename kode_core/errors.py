"""Every error that kode_core raises on purpose.

::

    KodeError
    ├── ConfigurationError (ValueError)      an option, URL, variable or kode.toml is wrong
    │   ├── PluginError
    │   │   ├── UnknownBackendError          no such backend, or its package is not installed
    │   │   ├── AmbiguousBackendError        two distributions provide one name
    │   │   ├── BackendImportError (ImportError)
    │   │   ├── IncompatibleBackendError     it does not fit this kode-core
    │   │   └── DisabledBackendError         blocked by KODE_DISABLE_PLUGINS
    │   └── ForeignStoreError                the KODE SDK for TypeScript wrote what is there
    ├── InvalidArgumentError (ValueError)    an id, filter, limit, record type … of a call
    │   ├── InvalidValueError                a value that JSON cannot carry exactly
    │   └── PayloadTooLargeError             larger than the backend can hold
    ├── ArchiveError (ValueError)            a file of exported agents is damaged or cut short
    ├── AgentNotFoundError (LookupError)
    │   └── AgentDeletedError                it was deleted while its events were followed
    ├── ConflictError                        the agent has changed; nothing was written
    ├── StoreClosedError (RuntimeError)
    ├── UnsupportedError (NotImplementedError)   this backend cannot do that
    ├── LockError
    │   ├── LockUnavailableError             somebody else holds the lease
    │   └── LockLostError                    the lease ended; nothing was written
    └── StorageError
        ├── StoreUnavailableError (ConnectionError)
        ├── StoreBusyError                   other writers kept it locked for too long
        ├── StoreTimeoutError (TimeoutError) the deadline passed; nothing was written
        ├── StoreFullError (OSError)         no room left; nothing was written
        ├── StoreReadOnlyError (OSError)
        ├── OutcomeUnknownError              it may have been written, or not
        ├── CorruptRecordError               stored bytes are not what was written
        │   └── DecryptionError              its key is missing, or it was changed or moved
        └── SchemaVersionError               written by a newer version

Each carries what a program needs to react: ``retry`` says whether the same call may be tried again.
No message contains a secret; stored payloads are never quoted, only the path to them.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, ClassVar

__all__ = [
    "AgentDeletedError",
    "AgentNotFoundError",
    "AmbiguousBackendError",
    "ArchiveError",
    "BackendImportError",
    "ConfigurationError",
    "ConflictError",
    "CorruptRecordError",
    "DisabledBackendError",
    "ForeignStoreError",
    "IncompatibleBackendError",
    "InvalidArgumentError",
    "InvalidValueError",
    "KodeError",
    "LockError",
    "LockLostError",
    "LockUnavailableError",
    "OutcomeUnknownError",
    "PayloadTooLargeError",
    "PluginError",
    "Retry",
    "SchemaVersionError",
    "StorageError",
    "StoreBusyError",
    "StoreClosedError",
    "StoreFullError",
    "StoreReadOnlyError",
    "StoreTimeoutError",
    "StoreUnavailableError",
    "UnknownBackendError",
    "UnsupportedError",
]


class Retry(Enum):
    """Whether the failed call may be made again."""

    NEVER = "never"
    """The same call will fail again: change the arguments or the environment first."""
    LATER = "later"
    """Nothing was written; the same call may succeed later."""
    CHECK = "check"
    """It may have been written: read before you repeat."""


class KodeError(Exception):
    """Base of all errors of this library.

    Attributes:
        deleted: how many sessions ``delete_many`` had deleted when this error ended it (LIFE-5).
    """

    retry: ClassVar[Retry] = Retry.NEVER
    deleted: int = 0


class ConfigurationError(KodeError, ValueError):
    """The configuration names something that does not exist or has the wrong type."""


class PluginError(ConfigurationError):
    """A backend could not be found or used."""


class UnknownBackendError(PluginError):
    """No installed distribution provides a backend of that name.

    Attributes:
        without_name: the end of the message, behind the name, which in a malformed URL may be a part of a secret; the
            whole message if it has no such name.
    """

    def __init__(self, problem: str, without_name: str = "") -> None:
        super().__init__(problem)
        self.without_name = without_name or problem


class AmbiguousBackendError(PluginError):
    """More than one installed distribution provides a backend of that name."""


class BackendImportError(PluginError, ImportError):
    """The backend is installed, but importing it failed; the cause is attached."""


class IncompatibleBackendError(PluginError):
    """The plugin does not follow the interface of this version of kode-core."""


class DisabledBackendError(PluginError):
    """The backend is switched off by ``KODE_DISABLE_PLUGINS``."""


class ForeignStoreError(ConfigurationError):
    """The KODE SDK for TypeScript wrote the data in this place, and this library would only see an empty store in it.

    Nothing was changed. Use a separate place for this library, and import the data.

    Attributes:
        place: the file or folder.
    """

    def __init__(self, place: str, backend: str) -> None:
        super().__init__(
            f"{place} was written by the KODE SDK for TypeScript, whose format is another one; it was left as it is: "
            f"open a {backend} store at a new place, and bring the data over with: "
            f"kode import --from kode-sdk {place} --store …"
        )
        self.place = place


class InvalidArgumentError(KodeError, ValueError):
    """An argument has the wrong type or value; nothing was read or written."""


class InvalidValueError(InvalidArgumentError):
    """A value inside a record cannot be stored exactly (VAL-2); nothing was written.

    Attributes:
        record: the name of the record, as in ``message 3`` or ``tool call 'call_7'``.
        path: the place in the record, as a JSON path such as ``$.result.rows[2].price``.
    """

    def __init__(self, record: str, path: str, problem: str) -> None:
        super().__init__(f"{record}: {path}: {problem}")
        self.record = record
        self.path = path


class ArchiveError(KodeError, ValueError):
    """An archive of agents is damaged, cut short, or of a format that this version does not read.

    Agents before the line that is wrong may have been imported; nothing of the agent to which the line belongs was.

    Attributes:
        line: the number of the line that is wrong, from 1.
        problem: the fault of the line.
        brought: the number of agents that were read whole before it, and imported, known or refused.
    """

    def __init__(self, line: int, problem: str, brought: int | None = None) -> None:
        done = "" if brought is None else f"; the {brought:,} agents before it are done" if brought else ""
        super().__init__(f"line {line:,} of the archive: {problem}{done}")
        self.line = line
        self.problem = problem
        self.brought = brought or 0


class PayloadTooLargeError(InvalidArgumentError):
    """A record is larger than the backend can hold; nothing was written."""


class AgentNotFoundError(KodeError, LookupError):
    """The call needs an agent whose info was saved, and no agent has that id.

    Attributes:
        near: the id that was probably meant, if it was looked for and found.
    """

    def __init__(self, agent_id: str, near: str | None = None) -> None:
        self.agent_id = agent_id
        self.near = near
        super().__init__(self._sentence(agent_id))

    def _sentence(self, agent_id: str) -> str:
        if self.near is not None:
            return f"no agent {agent_id!r} in this store; did you mean {self.near!r}?"
        return f"no agent {agent_id!r} in this store: save_info was never called for it, or it was deleted"


class AgentDeletedError(AgentNotFoundError):
    """The agent was deleted while its events were followed (EVT-10); a new follower waits for the next of that id."""

    def _sentence(self, agent_id: str) -> str:
        return (
            f"agent {agent_id!r} was deleted while its events were followed, and the stream ends; call follow_events "
            "again to wait for the next agent of that id"
        )


class ConflictError(KodeError):
    """The agent, or a document, is not in the state that the write demands (VER-2, DOC-2); nothing was written.

    Load it again, make the change anew, and demand the version of that load.

    Attributes:
        agent_id: the agent.
        version: the version that the agent or the document has now, ``ABSENT`` if it does not exist.
        collection: the collection of the document; None if the agent itself has changed.
        key: the key of the document in it; None likewise.
    """

    def __init__(
        self, agent_id: str, version: str, problem: str, *, collection: str | None = None, key: str | None = None
    ) -> None:
        super().__init__(f"agent {agent_id!r}: {problem}")
        self.agent_id = agent_id
        self.version = version
        self.collection = collection
        self.key = key


class StoreClosedError(KodeError, RuntimeError):
    """The store was closed; open a new one."""


class UnsupportedError(KodeError, NotImplementedError):
    """The backend of this store has no such operation; nothing was done."""


class LockError(KodeError):
    """Base of the two errors about leases."""

    def __init__(self, agent_id: str, problem: str) -> None:
        super().__init__(f"agent {agent_id!r}: {problem}")
        self.agent_id = agent_id


class LockUnavailableError(LockError):
    """Another holder has the lease (LOCK-2)."""

    retry = Retry.LATER


class LockLostError(LockError):
    """The lease of this write ended before the write; nothing was written (LOCK-5)."""


class StorageError(KodeError):
    """The storage engine could not do the requested operation."""


class StoreUnavailableError(StorageError, ConnectionError):
    """The database or folder cannot be reached or opened; nothing was written."""

    retry = Retry.LATER


class StoreBusyError(StorageError):
    """Other writers kept the database locked for longer than this store waits; nothing was written."""

    retry = Retry.LATER


class StoreTimeoutError(StorageError, TimeoutError):
    """The deadline passed before the call was done; nothing was written.

    For a call in steps (OPS-16) this applies to the step that was late.
    """

    retry = Retry.LATER


class StoreFullError(StorageError, OSError):
    """No room is left on the device or in the quota; nothing was written."""

    retry = Retry.LATER


class StoreReadOnlyError(StorageError, OSError):
    """This process may not write the database or folder; nothing was written."""


class OutcomeUnknownError(StorageError):
    """The connection or deadline ended while a write was being committed: it was applied completely or not at all.

    Attributes:
        timelines: after ``emit`` and ``emit_many``, the entries (``Timeline``) that may be stored, with their
            numbers. Append them again with ``append_events``, which stores none of them twice (EVT-4, EVT-8).
    """

    retry = Retry.CHECK
    timelines: Sequence[Any] = ()


class CorruptRecordError(StorageError):
    """Stored bytes differ from the written ones (OPS-4). Other records stay readable; nothing is overwritten.

    Attributes:
        record: the name of the record, as in ``message 3 of agent 'a'``.
    """

    def __init__(self, record: str, problem: str) -> None:
        super().__init__(f"{record}: {problem}")
        self.record = record


class DecryptionError(CorruptRecordError):
    """A record that cannot be decrypted: its key is missing or another one, it was changed, or moved from elsewhere.

    Records that are stored as plain text, where plain text is refused, raise it, too.
    """


class SchemaVersionError(StorageError):
    """The database was written by a newer version of its backend; upgrade the package."""
