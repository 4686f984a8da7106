"""MSG-4 with clocks that differ, on the engines of the core, of SQLite and DuckDB, and on records."""

from __future__ import annotations

from kode_conformance.builtin import JsonHarness, MemoryHarness
from kode_duckdb.testing.harness import DuckdbHarness
from kode_sqlite.testing.harness import HybridHarness, SqliteHarness

from tests.memory_records import RecordsHarness, RoomyHarness, TogetherHarness
from tests.message_times import MessageTimes


class TestMemory(MessageTimes):
    harness = MemoryHarness()


class TestJson(MessageTimes):
    harness = JsonHarness()


class TestSqlite(MessageTimes):
    harness = SqliteHarness()


class TestHybrid(MessageTimes):
    harness = HybridHarness()


class TestDuckdb(MessageTimes):
    harness = DuckdbHarness()


class TestRecords(MessageTimes):
    harness = RecordsHarness()


class TestTogether(MessageTimes):
    harness = TogetherHarness()


class TestRoomy(MessageTimes):
    harness = RoomyHarness()
