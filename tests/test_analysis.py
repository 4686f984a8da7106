"""The questions of the guide about analysis, answered from the runs of the demo."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import duckdb

from kode_core import create_extended_store
from kode_core.formats.openai_chat import ChatConverter, import_conversation, read_conversations
from kode_core.formats.parquet import TABLES, export_parquet
from tests.test_docs import ROOT, blocks

PAGE = ROOT / "docs" / "guides" / "analysis.md"
RUNS = ROOT / "docs" / "examples" / "tau-airline" / "gpt-4o-airline.json.gz"


async def test_the_answers_of_the_guide(tmp_path: Path) -> None:
    """Each statement runs in DuckDB as it stands, and gives the lines below it."""
    async with create_extended_store("memory:") as store:
        converter = ChatConverter(template="tau-airline", prefix="tau")
        for raw in read_conversations(RUNS):
            await import_conversation(store, converter.convert(raw))
        report = await export_parquet(store, tmp_path / "tables")
    assert report.counts == {"message": 5308, "toolCall": 1164, "event": 6362}
    os.chdir(tmp_path / "tables")
    asked = 0
    found = list(blocks(PAGE))
    with duckdb.connect() as db:
        for block, answer in pairwise(found):
            if block.language == "sql":
                result = db.sql(block.text)
                lines = [" | ".join(result.columns), *(" | ".join(map(str, row)) for row in result.fetchall())]
                assert answer.text.splitlines() == lines, f"{PAGE}:{block.line}"
                asked += 1
    assert asked == 5


def test_the_guide_names_all_columns() -> None:
    """Every column of every table, and none that is not there."""
    text = PAGE.read_text()
    for name, columns in TABLES.items():
        section = text.split(f"`{name}.parquet`")[1].split(".parquet`")[0]
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        assert [column for row in rows for column in row.replace("`", "").replace(",", " ").split()] == [
            column.name for column in columns
        ]
