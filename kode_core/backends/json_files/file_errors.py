"""Errors of the JSON files engine."""

from __future__ import annotations

from kode_core.batch import Batch
from kode_core.errors import CorruptRecordError, StorageError, StoreUnavailableError

__all__ = ["UnreadableFileError", "UnresolvedError"]


class UnresolvedError(StorageError):
    """The agent's last write waits for the decision of the store that commits its other part."""

    def __init__(self, batch: Batch) -> None:
        super().__init__(
            f"agent {batch.agent_id!r}: a crash left a write whose outcome only the database knows; "
            "open this folder together with the database that it belongs to"
        )
        self.batch = batch


class UnreadableFileError(CorruptRecordError, StoreUnavailableError):
    """This process may not read the file of one agent.

    Other agents are not affected: to them it is damage of that one agent.
    """
