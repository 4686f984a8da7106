"""A conversation folded for a glance: each call of a tool and its result in one row."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from rich.cells import cell_len
from rich.text import Text

from kode_core.cli.conversation import arguments, described
from kode_core.cli.output import is_whole, one_line, printed, visible
from kode_core.cli.times import moment
from kode_core.model import (
    Json,
    ReasoningBlock,
    StoredMessage,
    TextBlock,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
)

__all__ = ["Call", "calls_of", "folded"]

_ROLE_STYLES: Final = {"user": "bold cyan", "assistant": "bold green", "system": "bold magenta"}
_LINES: Final = 6
_WIDTH: Final = 600
_VALUE: Final = 160
_LEAST: Final = 24
"""A result that is cut to fewer characters is put into a line of its own."""
_SYSTEM: Final = 1


class Call(NamedTuple):
    """A call of a tool, from the request in a message, the result in a later one, and its record.

    Attributes:
        mark: what to look at: ``FAILED``, ``DENIED``, ``APPROVAL?`` or the state; ``ok`` if there is nothing.
        style: the colour of the mark.
        result: the result, or the error.
    """

    name: str
    input: Json
    mark: str
    style: str
    result: str | None
    duration_ms: float | None


def calls_of(messages: Sequence[StoredMessage], records: Sequence[ToolCallRecord]) -> Mapping[tuple[int, int], Call]:
    """The calls that *messages* request, by the positions of the message and the block.

    An id may occur several times: a request belongs to the first later result, and the records come in their order.
    """
    results: dict[str, list[tuple[int, ToolResultBlock]]] = {}
    for message in messages:
        for block in message.content:
            if isinstance(block, ToolResultBlock):
                results.setdefault(block.tool_use_id, []).append((message.position, block))
    kept: dict[str, list[ToolCallRecord]] = {}
    for one in records:
        kept.setdefault(one.id, []).append(one)
    calls = {}
    for message in messages:
        for i, block in enumerate(message.content):
            if isinstance(block, ToolUseBlock):
                later = [found for found in results.get(block.id, ()) if found[0] > message.position]
                if later:
                    results[block.id].remove(later[0])
                same = kept.get(block.id, [])
                record = same.pop(0) if len(same) > 1 else same[0] if same else None
                calls[message.position, i] = _call(block, later[0][1] if later else None, record)
    return calls


def _call(block: ToolUseBlock, result: ToolResultBlock | None, record: ToolCallRecord | None) -> Call:
    state = record.state if record is not None else None
    is_failed = state == "FAILED" or bool(result is not None and result.is_error)
    is_failed = is_failed or bool(record is not None and (record.is_error or record.error is not None))
    if state == "DENIED":
        mark, style = "DENIED", "bold red"
    elif is_failed:
        mark, style = "FAILED", "bold red"
    elif state == "APPROVAL_REQUIRED":
        mark, style = "APPROVAL?", "bold yellow"
    elif state in (None, "COMPLETED"):
        mark, style = ("ok", "green") if result is not None or state else ("no result", "yellow")
    else:
        mark, style = str(state), "yellow"
    text = None if result is None else printed(result.content)
    if text is None and record is not None:
        text = record.error if record.error is not None else None if record.result is None else printed(record.result)
    return Call(block.name, block.input, mark, style, text, None if record is None else record.duration_ms)


def folded(
    messages: Sequence[StoredMessage], records: Sequence[ToolCallRecord], *, full: bool = False
) -> Iterator[Text]:
    """Each message under a line with its position, role and time, without the results that a call's row has.

    A message that has nothing else is left out.
    """
    calls = calls_of(messages, records)
    requested = {block.id for message in messages for block in message.content if isinstance(block, ToolUseBlock)}
    begin = ""
    for message in messages:
        lines = list(_blocks(message, calls, requested, full=full))
        if lines or not message.content:
            head = Text(begin).append(
                f"#{message.position} {visible(message.role)}", _ROLE_STYLES.get(message.role, "bold")
            )
            begin = "\n"
            head.append(f"  {moment(message.created_at)}", "dim")
            yield Text("\n").join([head, *lines])


def _blocks(
    message: StoredMessage, calls: Mapping[tuple[int, int], Call], requested: set[str], *, full: bool
) -> Iterator[Text]:
    for i, block in enumerate(message.content):
        if isinstance(block, ToolUseBlock):
            yield _row(calls[message.position, i], full=full)
        elif isinstance(block, ToolResultBlock):
            if block.tool_use_id not in requested:
                mark = ("FAILED", "bold red") if block.is_error else ("result", "dim")
                yield Text.assemble("  ", mark, f"  {_value(printed(block.content), full)}")
        elif isinstance(block, TextBlock):
            yield Text(_cut(block.text, full, _SYSTEM if message.role == "system" else _LINES))
        elif isinstance(block, ReasoningBlock):
            yield Text(_cut(block.reasoning, full, 2), "italic dim")
        else:
            yield Text(f"[{described(block)}]")


def _row(call: Call, *, full: bool) -> Text:
    """The call and its result in one line, or in two if a terminal is too narrow for both."""
    took = "" if call.duration_ms is None else f"  {call.duration_ms:,.0f} ms"
    begin = f"  {call.mark}  {visible(call.name)}("
    given = arguments(call.input)
    result = None if call.result is None else call.result or "(nothing)"
    if full:
        row = Text.assemble("  ", (call.mark, call.style), f"  {visible(call.name)}({visible(given, lines=True)})")
        row.append(took, "dim")
        return row if result is None else row.append(f"\n      -> {visible(result, lines=True)}")
    if is_whole():
        row = Text.assemble("  ", (call.mark, call.style), f"  {visible(call.name)}({one_line(given)})")
        return row.append("" if result is None else f" -> {one_line(result)}").append(took, "dim")
    width = shutil.get_terminal_size().columns
    room = width - cell_len(begin) - len(took) - 1
    shown = one_line(given, max(8, min(_VALUE, room if result is None else max(room // 2, room - len(result) - 4))))
    row = Text.assemble("  ", (call.mark, call.style), f"  {visible(call.name)}({shown})")
    left = width - row.cell_len - len(took) - 4
    if result is None:
        return row.append(took, "dim")
    if left >= min(len(result), _LEAST):
        return row.append(f" -> {one_line(result, min(left, _VALUE))}").append(took, "dim")
    row.append(took, "dim")
    return row.append(f"\n      -> {one_line(result, min(max(8, width - 9), _VALUE))}")


def _value(text: str, full: bool) -> str:
    """A value in one line, or with *full* as it is."""
    return visible(text, lines=True) if full else one_line(text, _VALUE)


def _cut(text: str, full: bool, lines: int) -> str:
    """The first lines of a text, and how much was left out."""
    if is_whole(full):
        return visible(text, lines=True).rstrip("\n")
    short = "\n".join(text[:_WIDTH].splitlines()[:lines]).rstrip()
    left = len(text.rstrip()) - len(short)
    return visible(short, lines=True) + (f" … {left:,} more characters (--full)" if left > 0 else "")
