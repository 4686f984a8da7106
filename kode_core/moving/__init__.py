"""Agents on the move: from one store into another, into an archive and back."""

from __future__ import annotations

from kode_core.moving.copying import PassReport, copy_store
from kode_core.moving.exporting import export_archive
from kode_core.moving.importing import import_archive
from kode_core.moving.outcomes import CopyReport, MovedAgent
from kode_core.moving.verifying import verify_copy

__all__ = ["CopyReport", "MovedAgent", "PassReport", "copy_store", "export_archive", "import_archive", "verify_copy"]
