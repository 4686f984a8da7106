"""Several stores of one process on a file that other processes use, too."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest
from kode_conformance import samples

from kode_core import create_store

_OTHER = """
import asyncio, sys
from kode_conformance import samples
from kode_core import create_store

async def main():
    async with await create_store(type="sqlite", db_path=sys.argv[1]) as store:
        await store.append_messages("a", samples.messages(1, 1))

asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="locks of POSIX")
@pytest.mark.parametrize("later", [1, 2])
def test_a_later_store_leaves_the_locks_of_the_first(tmp_path: Path, later: int) -> None:
    """A process that ends does not remove the log of another one, in which several stores were opened (DUR-1)."""
    path = tmp_path / "agents.db"
    log = Path(f"{path}-wal")

    async def run() -> None:
        async with await create_store(type="sqlite", db_path=str(path)) as first:
            await first.append_messages("a", samples.messages(1))
            for _ in range(later):
                async with await create_store(type="sqlite", db_path=str(path)) as store:
                    assert await store.load_messages("a") == samples.messages(1)
            before = log.stat().st_ino
            subprocess.run([sys.executable, "-c", _OTHER, str(path)], timeout=60, check=True)
            assert log.stat().st_ino == before
            assert await first.load_messages("a") == samples.messages(2)
            await first.append_messages("a", samples.messages(1, 2))
        async with await create_store(type="sqlite", db_path=str(path)) as last:
            assert await last.load_messages("a") == samples.messages(3)

    asyncio.run(run())
