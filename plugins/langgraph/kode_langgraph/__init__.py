"""LangGraph over any store of kode-core: checkpoints (:class:`KodeSaver`) and long-term memory (:class:`KodeStore`)."""

from __future__ import annotations

from kode_langgraph.memory import KodeStore
from kode_langgraph.saver import KodeSaver

__all__ = ["KodeSaver", "KodeStore"]
