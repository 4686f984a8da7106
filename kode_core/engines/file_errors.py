"""The errors that are the JSON files engine's own."""

from __future__ import annotations

from kode_core.batch import Batch
from kode_core.errors import CorruptRecordError, StorageError, StoreUnavailableError

__all__ = ["UnreadableFileError", "UnresolvedError"]


class UnresolvedError(StorageError):
    """The agent's last write waits for the word of the store that commits the other part of it."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(
            f"agent {batch.agent_id!r}: a crash left a write whose outcome only the database knows; "
            "open this folder together with the database that it belongs to"
        )
        self.batch = batch


class UnreadableFileError(CorruptRecordError, StoreUnavailableError):
    """The system does not let this process read the file of one agent. To the others it is as damage of that one."""
