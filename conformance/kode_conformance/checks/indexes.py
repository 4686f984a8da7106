"""QRY-2, QRY-8: filters after every kind of change, so that no index holds records that are gone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, cast

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.histories.answers import answer, content_types
from kode_conformance.histories.model import StoreModel
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_core.model import AgentInfo, Message, TextBlock, ToolCallApproval, ToolCallRecord, ToolUseBlock, UnknownBlock

_T: Final = samples.T0


def _info(template: str, created_at: int = _T, **metadata: Any) -> AgentInfo:
    return samples.info("a", template_id=template, created_at=created_at, metadata=metadata)


def _call(i: int, name: str, state: str, **changes: Any) -> ToolCallRecord:
    return samples.tool_call(i, name=name, state=state, created_at=_T + i, **changes)


_TEXT, _USE, _NEW = TextBlock("x"), ToolUseBlock("c", "t", {}), UnknownBlock({"type": "hologram"})
_TALK: Final = [Message("user", [_TEXT]), Message("assistant", [_TEXT, _USE]), Message("tool", [_NEW])]
_CALLS: Final = [
    _call(0, "bash", "PENDING"),
    _call(1, "edit", "FAILED", is_error=True),
    _call(2, "bash", "APPROVAL_REQUIRED", approval=ToolCallApproval(required=True)),
]
_DONE: Final = _call(0, "edit", "COMPLETED", is_error=False, approval=ToolCallApproval(required=True))

_CHANGES: Final[Sequence[tuple[str, str, dict[str, Any]]]] = (
    ("the first save", "save_turn", {"info": _info("t1", userId="u1", k=1), "messages": _TALK, "tool_calls": _CALLS}),
    ("another value of each key", "save_info", {"info": _info("t2", userId="u2", k=2)}),
    ("values of other types", "save_info", {"info": _info("t2", userId=["u2"], k=[1], K="2")}),
    ("the same info again", "save_info", {"info": _info("t2", userId=["u2"], k=[1], K="2")}),
    ("keys that are gone", "save_info", {"info": _info("t1", k=None)}),
    ("an earlier created_at, in a turn", "save_turn", {"info": _info("t1", _T - 5, userId="u1", k=2)}),
    ("messages in another order", "save_messages", {"messages": _TALK[::-1]}),
    ("a message with another role", "save_messages", {"messages": [_TALK[0].replace(role="system"), *_TALK[1:]]}),
    ("a message without a block", "save_messages", {"messages": [_TALK[0], Message("assistant", [_USE]), _TALK[2]]}),
    ("fewer messages", "save_messages", {"messages": _TALK[:1]}),
    ("messages at the end", "append_messages", {"messages": _TALK[1:]}),
    ("a message in a turn", "save_turn", {"append": [_TALK[2]]}),
    ("no messages", "save_messages", {"messages": []}),
    ("a call that went on", "upsert_tool_call_records", {"records": [_DONE]}),
    (
        "a call that failed, in a turn",
        "save_turn",
        {"upsert_tool_calls": [_DONE.replace(is_error=True, state="FAILED")]},
    ),
    ("calls in another order", "save_tool_call_records", {"records": _CALLS[::-1]}),
    ("fewer calls", "save_tool_call_records", {"records": _CALLS[1:2]}),
    ("a call of another time", "save_turn", {"tool_calls": [_CALLS[1].replace(created_at=_T - 9)]}),
    ("no calls", "save_tool_call_records", {"records": []}),
    ("everything again", "save_turn", {"info": _info("t1", userId="u1", k=1), "messages": _TALK, "tool_calls": _CALLS}),
)


_PLACE: Final = {"sessions": "message_count", "messages": "position", "tool_calls": "position"}


def _filters() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every filter, with each value that something has at some time."""
    of_sessions: dict[str, Sequence[Any]] = {
        "template_id": ("t1", "t2"),
        "user_id": ("u1", "u2"),
        "metadata": (
            {"k": 1},
            {"k": 2},
            {"k": [1]},
            {"k": None},
            {"K": "2"},
            {"userId": ["u2"]},
            {"k": 2, "userId": "u1"},
        ),
        "created_after": (_T, _T - 5),
        "created_before": (_T, _T - 4),
    }
    of_calls: dict[str, Sequence[Any]] = {
        "tool_name": ("bash", "edit"),
        "state": ("PENDING", "FAILED", "APPROVAL_REQUIRED", "COMPLETED"),
        "is_error": (True, False),
        "has_approval": (True, False),
        "created_after": (_T, _T + 1),
        "created_before": (_T, _T + 2),
    }
    of_messages: dict[str, Sequence[Any]] = {
        "role": ("user", "assistant", "tool", "system"),
        "content_type": ("text", "tool_use", "hologram"),
    }
    for kind, known in (("sessions", of_sessions), ("tool_calls", of_calls), ("messages", of_messages)):
        yield from ((kind, {name: value}) for name, values in known.items() for value in values)


@check(
    *("QRY-2", "QRY-8", "MSG-6", "QRY-7"),
    needs=Capability.QUERYABLE,
    under=(Dimension.CHANGES, Dimension.INSTANCES, Dimension.ORDERS),
)
async def filters_follow_every_change(ctx: Context) -> None:
    """After each kind of change, values that are replaced, of another type or gone, lists that shrink, move and grow,
    by each method, every filter finds each current record, at its place, and none that is gone; the same holds after a
    delete.
    """
    model, other = StoreModel(), await ctx.another()
    standing: dict[str, Any] = {"info": samples.info("z"), "messages": _TALK[1:], "tool_calls": _CALLS[:1]}
    model.save_turn("z", **standing)
    await other.save_turn("z", **standing)
    for when, method, given in _CHANGES:
        getattr(model, method)("a", **given)
        await getattr(ctx.store, method)("a", **given)
        await _look(ctx, other, model, f"after {when}")
    if "EXTENDED" not in ctx.harness.lacks:
        (fork,) = await ctx.store.batch_fork("a", 1)
        info = await ctx.store.load_info(fork)
        ctx.true(info is not None, "the fork has no info")
        model.fork(model.agents["a"], "a", cast(AgentInfo, info))
        await _look(ctx, other, model, "after a fork")
        model.delete(fork)
        await ctx.store.delete(fork)
        await _look(ctx, other, model, "after the fork was deleted")
    model.delete("a")
    await ctx.store.delete("a")
    await _look(ctx, other, model, "after a delete")


async def _look(ctx: Context, store: Any, model: StoreModel, when: str) -> None:
    for kind, filters in _filters():
        found = await getattr(store, f"query_{kind}")(**filters)
        got = sorted((one.agent_id, getattr(one, _PLACE[kind])) for one in found)
        ctx.equal(got, _wanted(model, kind, filters), f"query_{kind}({filters}), {when}")
    wanted: Any = answer(model, "aggregate_stats", ("a",), {}, whole=True)
    stats = await store.aggregate_stats("a")
    for name in wanted.__struct_fields__:
        count, right = getattr(stats, name), getattr(wanted, name)
        if isinstance(right, dict):  # in any order
            count, right = dict(sorted(count.items())), dict(sorted(right.items()))
        ctx.equal(count, right, f"{name} of aggregate_stats, {when}")


def _wanted(model: StoreModel, kind: str, filters: dict[str, Any]) -> list[tuple[str, Any]]:
    if kind != "messages":
        found: Any = answer(model, f"query_{kind}", (), filters, whole=True)
        return sorted((one.agent_id, getattr(one, _PLACE[kind])) for one in found)
    ((name, value),) = filters.items()
    rows = [(a, i, m) for a, agent in model.agents.items() for i, m in enumerate(agent.messages)]
    return sorted((a, i) for a, i, message in rows if value in _values(message, name))


def _values(message: Message, name: str) -> set[str]:
    return {message.role} if name == "role" else content_types(message)
