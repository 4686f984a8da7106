"""The plugins of the guide on layers and observers: they run, are found, and the suite judges a store with them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from kode_extras.latencies import Latencies

from kode_core import (
    create_extended_store,
)
from kode_core.plugins import registry

EXTRAS = Path(__file__).parents[1] / "docs" / "examples" / "kode-extras"


@contextmanager
def added(plugin: object) -> Iterator[None]:
    registry.add(plugin)
    try:
        yield
    finally:
        registry.remove(plugin)


async def test_calls_are_measured() -> None:
    """Each call is in its bucket, with its error."""
    observer = Latencies()
    with added(observer):
        async with create_extended_store("memory:") as store:
            await store.load_messages("a")
            await store.load_messages("a")
            with pytest.raises(Exception, match="agent"):
                await store.batch_fork("nobody", 1)
    text = observer.text()
    assert 'kode_operation_ms_count{backend="memory",operation="load_messages",error="none"} 2' in text
    assert 'kode_operation_ms_bucket{backend="memory",operation="load_messages",error="none",le="+Inf"} 2' in text
    assert 'operation="batch_fork",error="AgentNotFoundError"' in text


def test_installed_plugins_are_found(tmp_path: Path) -> None:
    """After pip install every store of a process has the observer, without a line in the program."""
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", str(tmp_path / "site"), str(EXTRAS)], check=True, timeout=120)
    program = """
import asyncio, sys
sys.path.insert(0, "site")
from kode_core import Message, create_extended_store
async def main():
    async with create_extended_store("sqlite:///agents.db") as store:
        await store.append_messages("a", [Message.user("hi")])
        from kode_extras.latencies import of_this_process
        print(of_this_process.text())
asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert 'operation="append_messages",error="none"} 1' in done.stdout
