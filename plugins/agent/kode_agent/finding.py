"""The store that callers give, and the agents that they name: what is wrong with them, said at once."""

from __future__ import annotations

from typing import Any, Final

from kode_core import AgentNotFoundError, ExtendedStore, InvalidArgumentError
from kode_core.nearby import agent_not_found

__all__ = ["UnknownAgentError", "checked_store", "unknown_agent"]

_HOW: Final = "open one with: async with create_extended_store(URL) as store"
_NEEDED: Final = ("create_agent", "save_turn", "acquire_agent_lock", "follow_events", "load_tool_call_records")


class UnknownAgentError(AgentNotFoundError):
    """No agent has the id."""

    def _sentence(self, agent_id: str) -> str:
        hint = f"did you mean {self.near!r:.120}? " if self.near else ""
        return f"no agent {agent_id!r} in this store; {hint}Agent.create and resume_or_create make one"


def checked_store(store: Any) -> ExtendedStore:
    """*store*, if it is an open store whose methods are awaited.

    Raises:
        InvalidArgumentError: it is something else; the message says what to pass. A URL is not shown: it may have a
            password.
    """
    kind = type(store)
    if isinstance(store, str):
        raise InvalidArgumentError(f"store is an open store, not a URL; {_HOW}")
    if kind.__module__.partition(".sync")[0] == "kode_core" and ".sync" in kind.__module__:
        raise InvalidArgumentError(f"store is one of kode_core.sync, and an agent needs one with async methods; {_HOW}")
    if kind.__name__ == "StoreOpening":
        raise InvalidArgumentError(f"store is not open yet; {_HOW}, or with: store = await create_extended_store(URL)")
    missing = next((name for name in _NEEDED if not callable(getattr(store, name, None))), None)
    if missing is not None or isinstance(store, type):
        raise InvalidArgumentError(
            f"store is an open store with the methods of ExtendedStore, and {kind.__name__} has no "
            f"{missing or 'state'}; {_HOW}"
        )
    opened: ExtendedStore = store
    return opened


async def unknown_agent(store: ExtendedStore, agent_id: str) -> UnknownAgentError:
    """The error for an id that no agent has, with a near one if there is one."""
    return UnknownAgentError(agent_id, (await agent_not_found(store, agent_id)).near)
