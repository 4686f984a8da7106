"""Files that are written again with other bodies of events. Everything here blocks."""

from __future__ import annotations

from collections.abc import Sequence

from kode_core.backends.json_files.files import translated
from kode_core.backends.json_files.folder import Folder, UnresolvedError
from kode_core.backends.json_files.frames import Located
from kode_core.backends.json_files.journal import Journal
from kode_core.backends.json_files.states import write_state
from kode_core.batch import EventRange
from kode_core.codec import Body
from kode_core.rewriting import EventBody

__all__ = ["rewrite_events"]


def rewrite_events(folder: Folder, agent_id: str, changes: Sequence[EventBody]) -> None:
    """Write the agent's file again with its live contents and other bodies of events; its stripe is held.

    An event that has another digest than it is said to have stays as it is.
    """
    journal = folder.journal(agent_id)
    with journal.turn, translated(journal.path):
        journal.refresh()
        if journal.prepared is not None:
            raise UnresolvedError(journal.prepared)
        if journal.end:
            _rewrite(journal, changes, durable=folder.durable, mode=folder.mode)


def _rewrite(journal: Journal, changes: Sequence[EventBody], *, durable: bool, mode: int) -> None:
    with journal.reading() as reader:
        if journal.damage is not None:
            raise journal.damage
        log, changed = journal.state.log, dict[int, Body]()
        for one in changes:
            found = log.read(EventRange(order="offset", after=(0, one.offset - 1), limit=1))
            if found and found[0].offset == one.offset and found[0].body.digest == one.expect:
                assert isinstance(found[0].body, Located)
                changed[found[0].body.start] = one.body

        def text(body: Body) -> Body:
            other = changed.get(body.start) if isinstance(body, Located) else None
            return reader.raw(body) if other is None else other

        write_state(journal.path, journal.state, text, durable=durable, mode=mode)
    journal.refresh()
