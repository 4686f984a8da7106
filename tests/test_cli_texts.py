"""``kode messages --contains`` and ``--metadata``, and ``kode text-index``."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from kode_core import JsonStore
from kode_core.cli.app import app
from kode_core.model import Message, ToolResultBlock
from kode_core.store import message_search


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A store of JSON files with results of tools."""
    asyncio.run(_fill(tmp_path / "agents"))
    return tmp_path / "agents"


async def _fill(folder: Path) -> None:
    async with JsonStore(folder) as store:
        said = [Message("user", [ToolResultBlock("t", f"Result {i}")], metadata={"trace": i % 7}) for i in range(300)]
        await store.save_messages("a", said)


def kode(*args: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, args)
    return result.exit_code, result.stdout, f"{result.stderr}{result.exception or ''}"


def test_messages_are_found_by_texts(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page is filled, however many messages one call reads; counts, groups and metadata go together with a text."""
    monkeypatch.setattr(message_search, "MOST_SCANNED", 64)
    at = ("--store", f"json:///{folder}")
    code, out, _ = kode("messages", "--contains", "RESULT 1", "--limit", "5", "--order", "asc", "--json", *at)
    assert code == 0
    assert [one["position"] for one in json.loads(out)["messages"]] == [1, 10, 11, 12, 13]
    code, out, _ = kode("messages", "--contains", "result 2", "--json", "--order", "asc", "--offset", "100", *at)
    assert [one["position"] for one in json.loads(out)["messages"]] == [i for i in range(300) if f"{i}"[0] == "2"][100:]
    code, out, _ = kode("messages", "--contains", "result 29", "--metadata", "trace=3", "--json", *at)
    assert [one["position"] for one in json.loads(out)["messages"]] == [297, 290]
    code, out, _ = kode("messages", "--metadata", "trace=3", "--count", *at)
    assert out == f"{sum(i % 7 == 3 for i in range(300))}\n"
    code, out, err = kode("messages", "--contains", "", *at)
    assert code != 0
    assert "contains is empty" in err


def test_a_store_without_such_an_index_says_so(folder: Path) -> None:
    """``kode text-index`` of another backend is refused, and ``kode doctor`` says how texts are found."""
    code, _, err = kode("text-index", "add", "--store", f"json:///{folder}")
    assert code != 0
    assert "has no index of texts: a search reads messages" in err
    code, _, err = kode("text-index", "mend", "--store", f"json:///{folder}")
    assert "none of status, add, rebuild, drop" in err
    assert (
        "text search  reads the messages that other filters leave" in kode("doctor", "--store", f"json:///{folder}")[1]
    )
