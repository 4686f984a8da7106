"""A conversation as text for a person."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from rich.text import Text

from kode_core.cli.output import is_whole, one_line, printed, visible
from kode_core.cli.times import moment, zone
from kode_core.codec import to_dict
from kode_core.model import (
    ContentBlock,
    Json,
    Message,
    ReasoningBlock,
    StoredMessage,
    TextBlock,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)

__all__ = ["arguments", "brief", "conversation_texts", "described"]

_TEXT_SHOWN: Final = 1_200
_VALUE_SHOWN: Final = 300
_ROLE_STYLES: Final = {"user": "bold cyan", "assistant": "bold green", "system": "bold magenta"}


def conversation_texts(messages: Sequence[Message], *, full: bool) -> Iterator[Text]:
    """Each message in order, under a line with its position, role and time.

    In a terminal long parts are cut unless *full*.
    """
    full = is_whole(full)
    for i, message in enumerate(messages):
        text = Text("\n" if i else "")
        text.append(f"#{i} {visible(message.role)}", _ROLE_STYLES.get(message.role, "bold"))
        text.append(f"  {moment(message.created_at)} {zone()}\n" if isinstance(message, StoredMessage) else "\n", "dim")
        for block in message.content:
            text.append_text(_block(block, full))
        text.right_crop()
        yield text


def _block(block: ContentBlock, full: bool) -> Text:
    if isinstance(block, TextBlock):
        return Text(_cut(block.text, _TEXT_SHOWN, full) + "\n")
    if isinstance(block, ReasoningBlock):
        return Text(_cut(block.reasoning, _TEXT_SHOWN, full) + "\n", "italic dim")
    if isinstance(block, ToolUseBlock):
        call = f"{visible(block.name)}({_cut(arguments(block.input), _VALUE_SHOWN, full)})"
        return Text.assemble(("-> ", "bold yellow"), call, "\n")
    if isinstance(block, ToolResultBlock):
        result = _cut(printed(block.content), _VALUE_SHOWN, full)
        return Text.assemble(("<- ", "bold red" if block.is_error else "bold yellow"), result or "(nothing)", "\n")
    return Text(f"[{described(block)}]\n")


def _cut(text: str, length: int, full: bool) -> str:
    if full or len(text) <= length:
        return visible(text, lines=True).rstrip("\n")
    return f"{visible(text[:length], lines=True).rstrip()} … {len(text) - length:,} more characters (--full)"


def arguments(value: Json) -> str:
    """The input of a tool call, as in a program: ``city="Rome", days=3``."""
    if type(value) is not dict:
        return printed(value)
    return ", ".join(f"{name}={_literal(item)}" for name, item in value.items())


def _literal(value: Json) -> str:
    return printed([value])[1:-1]


def described(block: ContentBlock) -> str:
    """A medium, or a block that this version does not know: its type and where it is."""
    fields = block.data if isinstance(block, UnknownBlock) else to_dict(block)
    where = next((str(fields[name]) for name in ("filename", "url", "file_id") if fields.get(name)), "")
    return one_line(f"{fields['type']} {where}".strip())


def brief(message: Message) -> str:
    """A message in one line."""
    return " ".join(_brief_parts(message.content))


def _brief_parts(blocks: Iterable[ContentBlock]) -> Iterable[str]:
    for block in blocks:
        if isinstance(block, TextBlock):
            yield one_line(block.text)
        elif isinstance(block, ToolUseBlock):
            yield one_line(f"-> {block.name}({arguments(block.input)})")
        elif isinstance(block, ToolResultBlock):
            yield one_line(f"<- {printed(block.content)}")
        else:
            yield f"[{described(block)}]"
