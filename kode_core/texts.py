"""The texts of messages, and whether one of them contains another text (QRY-12)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from kode_core.ids import NOT_TEXT
from kode_core.model import FileBlock, Message, ReasoningBlock, TextBlock, ToolResultBlock, ToolUseBlock, UnknownBlock
from kode_core.pace import Pace

__all__ = ["MAX_CONTAINS", "contains_text", "folded", "indexed_form", "searched_text", "texts_of"]

MAX_CONTAINS: Final = 10_000
"""The most characters of a text to look for."""
_PIECE: Final = 2**16


def folded(text: str) -> str:
    """*text* in the form in which texts are compared: Unicode's full case folding, character by character.

    The folded form of a text that contains another one contains the folded form of that one.
    """
    return text.casefold()


def texts_of(message: Message) -> Iterator[str]:
    """The texts of a message, each of which is searched by itself."""
    for block in message.content:
        if isinstance(block, TextBlock):
            yield block.text
        elif isinstance(block, ReasoningBlock):
            yield block.reasoning
        elif isinstance(block, ToolUseBlock):
            yield from _strings(block.input)
        elif isinstance(block, ToolResultBlock):
            yield from _strings(block.content)
        elif isinstance(block, FileBlock):
            yield from _strings(block.filename)
        elif isinstance(block, UnknownBlock):
            yield from _strings([value for key, value in block.data.items() if key != "type"])


def _strings(value: Any) -> Iterator[str]:
    """The strings of a JSON value at any depth; keys are none."""
    todo = [value]
    while todo:
        one = todo.pop()
        if type(one) is str:
            yield one
        elif type(one) is list:
            todo.extend(one)
        elif type(one) is dict:
            todo.extend(one.values())


async def contains_text(message: Message, needle: str, pace: Pace) -> bool:
    """Whether a text of the message contains *needle*, which is folded."""
    for text in texts_of(message):
        if len(text) <= _PIECE:
            if needle in folded(text):
                return True
        elif await _is_in_long(text, needle, pace):
            return True
        await pace.yield_to_loop()
    return False


async def _is_in_long(text: str, needle: str, pace: Pace) -> bool:
    """The same of one text, piece by piece; each piece begins with the end of the one before."""
    end = ""
    for start in range(0, len(text), _PIECE):
        piece = end + folded(text[start : start + _PIECE])
        if needle in piece:
            return True
        end = piece[len(piece) - len(needle) + 1 :] if len(needle) > 1 else ""
        await pace.yield_to_loop()
    return False


# --- for indexes ------------------------------------------------------------------------------------------------------


def indexed_form(text: str) -> str:
    """A folded text as indexes have it: without characters that databases or their tokenizers do not take.

    If a folded text contains another one, its indexed form contains the indexed form of that one; the reverse need not
    hold.
    """
    return NOT_TEXT.sub("\ufffd", text)


def searched_text(message: Message, most: int) -> str | None:
    """The texts of a message, folded, as an index has them; None if they have more than *most* characters."""
    texts, size = list[str](), 0
    for text in texts_of(message):
        size += len(text) + 1
        if size > most:
            return None
        texts.append(text)
    return indexed_form(folded("\n".join(texts)))
