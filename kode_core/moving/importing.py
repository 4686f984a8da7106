"""The agents of an archive into a store."""

from __future__ import annotations

from contextlib import aclosing
from pathlib import Path
from typing import IO

from kode_core.engine import Progress, unwatched
from kode_core.errors import ArchiveError
from kode_core.moving.files import MAX_LINE, opened_to_read
from kode_core.moving.lines import fingerprint
from kode_core.moving.outcomes import CopyReport, Existing, MovedAgent, OnAgent, Sum, checked_existing
from kode_core.moving.placing import moved, place
from kode_core.moving.reading import Archive, Unpacked
from kode_core.moving.selecting import checked_at_once, in_order
from kode_core.protocols import ExtendedStore

__all__ = ["check_header", "import_archive"]


async def check_header(source: str | Path) -> None:
    """Raise as :func:`import_archive` does, unless the file begins with the header of an archive."""
    async with opened_to_read(source, MAX_LINE) as lines:
        await Archive(lines).read_header()


async def import_archive(
    store: ExtendedStore | None,
    source: str | Path | IO[bytes],
    *,
    existing: Existing = "refuse",
    skip_damaged: bool = False,
    at_once: int = 2,
    on_agent: OnAgent | None = None,
    progress: Progress = unwatched,
) -> CopyReport:
    """Write the agents of an archive into *store*, each in one piece, with their times, seqs and documents.

    An agent that the store has already, with equal records, is known and left alone: an import that was interrupted is
    started again.

    Args:
        store: the store to write; None only reads and reports.
        source: the file, or a binary file that is open; compressed or not.
        existing: ``refuse`` reports an agent of whose id other records are stored, ``skip`` leaves it as it is, and
            ``replace`` writes the agent in its place, in one write.
        skip_damaged: report a damaged agent and go on with the next one, instead of raising.
        at_once: the number of agents that are held in memory at the same time.
        on_agent: called with the outcome of each agent.
        progress: called with the number of agents that are done, and None.

    Raises:
        ArchiveError: a line is wrong; it has the number of the line and of the agents before it.
        InvalidArgumentError: the file cannot be read, or an argument is wrong.
    """
    how, added = checked_existing(existing), Sum(on_agent)
    checked_at_once(at_once)

    done = 0
    async with opened_to_read(source, MAX_LINE) as lines:
        archive = Archive(lines, skip_damaged=skip_damaged)

        async def put(one: Unpacked | MovedAgent) -> MovedAgent:
            if isinstance(one, MovedAgent):
                return one
            if store is None:
                return moved(one.records, one.taken, "importable")
            # another version may have written the same records in another way
            taken = one.taken if archive.is_own else await fingerprint(one.records)
            return await place(store, one.records, taken, how)

        try:
            async with aclosing(in_order(archive.agents(), put, at_once)) as outcomes:
                async for outcome in outcomes:
                    added.add(outcome)
                    done += 1
                    progress(done, None)
        except ArchiveError as exc:
            raise ArchiveError(exc.line, exc.problem, done) from None
    return added.report()
