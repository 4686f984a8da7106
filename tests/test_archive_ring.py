"""Archives from backend to backend, around all of them: the agents have the same lines at the end (``make suites``)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from time import perf_counter
from typing import Final

import pytest

from kode_core import export_archive, import_archive
from tests.moving_agents import HOSTILE_IDS, fill, full, hostile
from tests.test_moving_ring import recorded, store_of

RING: Final = ("postgres", "mongo", "dynamodb-local", "json", "sqlite")
RUNS: Final = 200


def agent_lines_of(archive: Path) -> Iterator[bytes]:
    """The lines between the header and the trailer, which alone name the store."""
    with archive.open("rb") as file:
        last = file.readline()
        for line in file:
            if not last.startswith(b'{"kode":"archive"'):
                yield last
            last = line


@pytest.mark.suites
async def test_archives_go_around_all_backends(tmp_path: Path) -> None:
    """The 200 recorded runs, every record and hostile values; DynamoDB is Amazon's own local version."""
    async with AsyncExitStack() as stack:
        source = await stack.enter_async_context(store_of("sqlite", "first", tmp_path))
        await recorded(source, RUNS)
        await fill(source, hostile("hostile"), *(full(one) for one in HOSTILE_IDS))
        count = RUNS + 1 + len(HOSTILE_IDS)
        before = tmp_path / "0.jsonl"
        await export_archive(source, before)
        for number, backend in enumerate(RING, 1):
            target = await stack.enter_async_context(store_of(backend, f"ring{number}", tmp_path))
            began = perf_counter()
            report = await import_archive(target, before)
            imported = perf_counter()
            assert report.outcomes == {"copied": count}, (backend, report.troubles[:3])
            after = tmp_path / f"{number}.jsonl"
            report = await export_archive(target, after)
            assert report.outcomes == {"copied": count}, (backend, report.troubles[:3])
            print(f"{backend}: import {imported - began:.1f} s, export {perf_counter() - imported:.1f} s")
            lines = zip(agent_lines_of(before), agent_lines_of(after), strict=True)
            assert all(one == other for one, other in lines), backend
            before = after
