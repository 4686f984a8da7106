"""The package for Parquet is imported outside of the event loop."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from kode_core import Message, create_extended_store
from kode_core.formats.parquet import export_parquet, exporting


async def test_pyarrow_is_imported_in_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its import takes a second, in which the loop would serve no other task."""
    pytest.importorskip("pyarrow")
    threads = list[int]()
    arrow = exporting._Arrow

    def noted() -> Any:
        threads.append(threading.get_ident())
        return arrow()

    monkeypatch.setattr(exporting, "_Arrow", noted)
    async with create_extended_store("memory:") as store:
        await store.append_messages("a", [Message.user("x")])
        await export_parquet(store, tmp_path / "tables")
    assert threads
    assert threading.get_ident() not in threads
