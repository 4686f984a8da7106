"""The blocks of a message's content."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, TypeAlias, get_args

import msgspec

from kode_core.model.base import Json, Record


class _Block(Record, frozen=True, kw_only=True, tag_field="type", rename=None):
    meta: dict[str, Json] | None = None


class TextBlock(_Block, frozen=True, tag="text"):
    """Plain text."""

    text: str


class ReasoningBlock(_Block, frozen=True, tag="reasoning"):
    """A model's reasoning before its answer."""

    reasoning: str


class _MediaBlock(_Block, frozen=True, kw_only=True):
    url: str | None = None
    file_id: str | None = None
    base64: str | None = None
    mime_type: str | None = None


class ImageBlock(_MediaBlock, frozen=True, tag="image"):
    """An image: by ``url``, by the provider's ``file_id``, or inline as ``base64`` with its ``mime_type``."""


class AudioBlock(_MediaBlock, frozen=True, tag="audio"):
    """A sound, given like an :class:`ImageBlock`."""


class VideoBlock(_MediaBlock, frozen=True, tag="video"):
    """A film, given like an :class:`ImageBlock`."""


class FileBlock(_MediaBlock, frozen=True, kw_only=True, tag="file"):
    """A document such as a PDF, given like an :class:`ImageBlock`, with the name to show for it."""

    filename: str | None = None


class ToolUseBlock(_Block, frozen=True, tag="tool_use"):
    """A model's request for a tool: ``id`` ties it to its result and to its :class:`ToolCallRecord`."""

    id: str
    name: str
    input: Json


class ToolResultBlock(_Block, frozen=True, tag="tool_result"):
    """A tool's result: a string, a list of blocks as JSON, or any other JSON value."""

    tool_use_id: str
    content: Json
    is_error: bool | None = None


class UnknownBlock(msgspec.Struct, frozen=True, gc=False):
    """A block whose type this version does not know, kept unchanged (VAL-6).

    Attributes:
        data: the whole block, its ``type`` included.
    """

    data: dict[str, Json]

    @property
    def type(self) -> str:
        """The block's type, as written."""
        return str(self.data["type"])


_KnownBlock: TypeAlias = (
    TextBlock | ReasoningBlock | ImageBlock | AudioBlock | VideoBlock | FileBlock | ToolUseBlock | ToolResultBlock
)
if TYPE_CHECKING:
    ContentBlock: TypeAlias = _KnownBlock | UnknownBlock
else:  # msgspec builds decoders from the annotations; unknown blocks take the codec's second path
    ContentBlock = _KnownBlock

KNOWN_BLOCKS: Final[tuple[type[Record], ...]] = get_args(_KnownBlock)
"""The classes of the content blocks that this version knows."""
BLOCKS: Final[tuple[type, ...]] = (*KNOWN_BLOCKS, UnknownBlock)
"""The classes of all content blocks."""
