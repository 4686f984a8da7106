"""Looks for stored ids: where the ids with a prefix begin, and whether an id is among them."""

from __future__ import annotations

import sys

from kode_core.engine import Engine
from kode_core.ids import MAX_AGENT_ID_BYTES

__all__ = ["below", "is_stored"]


async def is_stored(engine: Engine, agent_id: str) -> bool:
    """Whether a record of any kind is stored for the agent; a page of ids is read, however many begin with this one."""
    after = below(agent_id)
    while page := await engine.stored_ids(after, 2):
        if agent_id in page or page[-1] > agent_id:
            return agent_id in page
        after = page[-1]
    return False


def below(prefix: str) -> str | None:
    """A text below all ids with the prefix, close to the first of them; None for the empty prefix."""
    if not prefix:
        return None
    code = ord(prefix[-1]) - 1
    if not code:
        return prefix[:-1] or None
    text = prefix[:-1] + chr(0xD7FF if 0xD800 <= code < 0xE000 else code)
    return text + chr(sys.maxunicode) * ((MAX_AGENT_ID_BYTES - len(text.encode())) // 4)
