"""Checkpoints that LangGraph's own savers keep in SQLite and PostgreSQL, read without LangGraph."""

from __future__ import annotations

from kode_core.formats.langgraph.reading import Checkpoints, Stored, Written, open_checkpoints
from kode_core.formats.langgraph.threads import open_threads
from kode_core.formats.langgraph.values import DELTA, Foreign, Said, decoded, encoded, value_of

__all__ = [
    "DELTA",
    "Checkpoints",
    "Foreign",
    "Said",
    "Stored",
    "Written",
    "decoded",
    "encoded",
    "open_checkpoints",
    "open_threads",
    "value_of",
]
