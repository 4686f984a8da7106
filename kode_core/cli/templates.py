"""Groups of tool calls by the template of their agents, which stores do not keep with the calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

from kode_core.protocols import ExtendedStore
from kode_core.query import MAX_VALUES, Durations, Group

__all__ = ["grouped_calls"]

_TEMPLATE: Final = "template_id"


def grouped_calls(store: ExtendedStore) -> Callable[..., Awaitable[Sequence[Group]]]:
    """``store.group_tool_calls``, which also takes ``template_id``: groups by agent are put together.

    Calls of agents without info are in the group of the empty template.
    """

    async def group(by: Sequence[Any], **filters: Any) -> Sequence[Group]:
        if _TEMPLATE not in by:
            return await store.group_tool_calls(by, **filters)
        inner: Any = list(dict.fromkeys(["agent_id" if name == _TEMPLATE else name for name in by]))
        found = await store.group_tool_calls(inner, **filters)
        templates = await _templates(store, sorted({str(one.values["agent_id"]) for one in found}))
        together: dict[tuple[str | bool, ...], Group] = {}
        for one in found:
            known = {**one.values, _TEMPLATE: templates.get(str(one.values["agent_id"]), "")}
            values = {name: known[name] for name in by}
            key = tuple(values.values())
            together[key] = _added(together.get(key), Group(values=values, count=one.count, durations=one.durations))
        return [together[key] for key in sorted(together)]

    return group


async def _templates(store: ExtendedStore, ids: list[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for start in range(0, len(ids), MAX_VALUES):
        some = ids[start : start + MAX_VALUES]
        found |= {one.agent_id: one.template_id for one in await store.query_sessions(agent_id=some, limit=MAX_VALUES)}
    return found


def _added(one: Group | None, other: Group) -> Group:
    if one is None:
        return other
    return Group(values=one.values, count=one.count + other.count, durations=_both(one.durations, other.durations))


def _both(one: Durations | None, other: Durations | None) -> Durations | None:
    if one is None or other is None:
        return one or other
    return Durations(
        count=one.count + other.count,
        total_ms=one.total_ms + other.total_ms,
        max_ms=max(one.max_ms, other.max_ms),
    )
