"""The finished calls of stores, as observers see them."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

__all__ = ["Observer", "Operation"]


class Operation(msgspec.Struct, frozen=True, kw_only=True):
    """A finished call of a store. It holds no contents of records.

    Attributes:
        name: the method, as in ``save_messages``.
        duration_ms: from the call to its end.
        error: the class name of the exception that ended it; None if it succeeded.
        agent_id: the agent that the call was for, as the caller gave it; None if it concerned many, or if the caller
            gave no text.
        backend: the name of the backend, as in ``sqlite``; empty if the store was never open.
        store: the place of the contents, without secrets, as in ``sqlite at data/agents.db``; empty as above, or if
            the engine's repr fails.
    """

    name: str
    duration_ms: float
    error: str | None = None
    agent_id: str | None = None
    backend: str = ""
    store: str = ""


Observer = Callable[[Operation], object]
"""Called after every call; an exception that it raises is logged and dropped."""
