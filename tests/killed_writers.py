"""Files of SQLite as a killed writer leaves them: with a hot journal, or with a log."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

__all__ = ["digests", "leave_half_written"]

_WRITER = """
import os, sqlite3, sys
path, mode, *statements = sys.argv[1:]
db = sqlite3.connect(path, isolation_level=None)
db.execute(f"PRAGMA journal_mode = {mode}").fetchall()
db.execute("PRAGMA cache_size = 1")
db.execute("PRAGMA cache_spill = 1")
db.execute("BEGIN")
for statement in statements:
    db.execute(statement)
db.execute("CREATE TABLE many_pages AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 200)"
           " SELECT i, zeroblob(4000) AS filling FROM n")
if mode == "wal":
    db.execute("COMMIT")
os.kill(os.getpid(), 9)
"""


def digests(folder: Path) -> dict[str, str]:
    """A digest of each file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def leave_half_written(path: Path, mode: str, *statements: str) -> dict[str, str]:
    """Kill a writer after the statements: in the transaction (``delete``), or behind its commit (``wal``).

    Returns the digests of the folder. In the mode ``delete`` the file of the database has pages of the transaction.
    """
    before = path.read_bytes()
    subprocess.run([sys.executable, "-c", _WRITER, str(path), mode, *statements], check=False, timeout=120)
    side = path.with_name(f"{path.name}{'-wal' if mode == 'wal' else '-journal'}")
    assert side.stat().st_size > 4096
    path.with_name(f"{path.name}-shm").unlink(missing_ok=True)
    assert mode == "wal" or path.read_bytes()[: len(before)] != before
    return digests(path.parent)
