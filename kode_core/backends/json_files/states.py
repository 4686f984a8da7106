"""Writes a state of an agent as a new file, with nothing that was replaced."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from kode_core.authoring.modes import PRIVATE
from kode_core.backends.json_files.byte_ranges import batches_of
from kode_core.backends.json_files.files import replace_file
from kode_core.backends.json_files.frames import Frame, first_line, frame_bytes, parsed_line
from kode_core.backends.json_files.marks import BLANK, SYNCED, Mark, pair_bytes, this_boot
from kode_core.codec import Body
from kode_core.engines.state import AgentState

__all__ = ["write_state"]


def write_state(
    path: Path, state: AgentState, text: Callable[[Body], Body], *, durable: bool, mode: int = PRIVATE
) -> None:
    """Write a file to *path* that contains only *state*, with the text of each body taken from *text*."""
    line = first_line(state.agent_id, state.log.next_offset)
    parsed = parsed_line(line)
    end = len(line)

    def chunks() -> Iterator[bytes]:
        nonlocal end
        yield line
        for batch, outcome in batches_of(state, text):
            data = frame_bytes(Frame("apply", batch, outcome), end, parsed.seed)[1]
            end += len(data)
            yield data

    def marks() -> tuple[int, bytes]:
        marks = (Mark(end, SYNCED if durable else this_boot()), BLANK)
        return parsed.marks_at, pair_bytes(marks, parsed.seed)

    replace_file(path, chunks(), durable=durable, mode=mode, ending=marks)
