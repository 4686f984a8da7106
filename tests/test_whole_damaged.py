"""A damaged document of an agent is named by the calls that take the agent whole."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest

from kode_core import AgentInfo, CorruptRecordError, Message, copy_store, create_extended_store
from kode_core.engine import Engine
from kode_core.layers.encryption import encrypted

LAYERS: list[list[Callable[[Engine], Engine]]] = [[], [encrypted({"k": b"\7" * 32})]]
DAMAGE = (
    "body = substr(body, 1, length(body) - 3)",
    "body = x'ff00'",
    "body = 12",
    "digest = x'00112233445566778899aabbccddeeff'",
    "digest = x'00'",
    "digest = 5",
    "time = 'x'",
)


@pytest.mark.parametrize("change", DAMAGE)
@pytest.mark.parametrize("layers", LAYERS, ids=["plain", "encrypted"])
async def test_a_damaged_document_is_named(change: str, layers: Any, tmp_path: Path) -> None:
    """And is not taken for one that others keep changing; the other agents are copied."""
    url = f"sqlite:///{tmp_path}/a.db"
    async with create_extended_store(url, layers=layers) as store:
        for agent_id in ("a", "b"):
            info = AgentInfo(agent_id=agent_id, template_id="t")
            await store.save_turn(agent_id, append=[Message.user("x")], info=info)
            await store.put_document(agent_id, "c", "k", {"v": 1})
    with closing(sqlite3.connect(tmp_path / "a.db")) as db, db:
        db.execute(f"UPDATE kode_docs SET {change} WHERE agent_id = 'a' AND key = 'c/k'")
    async with (
        create_extended_store(url, layers=layers) as store,
        create_extended_store(f"sqlite:///{tmp_path}/b.db") as target,
    ):
        with pytest.raises(CorruptRecordError, match="documents? 'c/k' of agent 'a'"):
            await store.load_agent("a")
        with suppress(CorruptRecordError):  # a fork takes bodies along without reading them
            await store.fork("a", documents=True)
        report = await copy_store(store, target, agent_id=["a", "b"])
        assert report.outcomes == {"damaged": 1, "copied": 1}
        assert "'c/k' of agent 'a'" in report.troubles[0].reason
