"""Snapshots and forks of an agent as a tree, and two conversations side by side."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from kode_core import (
    AgentNotFoundError,
    CorruptRecordError,
    ExtendedStore,
    InvalidArgumentError,
    Message,
    SessionInfo,
    Snapshot,
    ToolResultBlock,
    ToolUseBlock,
    to_json,
)
from kode_core.nearby import agent_not_found
from kode_inspector.pages.agents import agent_of
from kode_inspector.rendering import inspector_of, render
from kode_inspector.text import preview

__all__ = ["compare", "family", "forks"]

_SEARCHED: Final = 5_000
_SNAPSHOTS: Final = 200
_COMPARED: Final = 2_000
_ROWS: Final = 300


@dataclass(slots=True)
class Branch:
    """An agent in the tree; ``known`` is False if only a lineage names it."""

    agent_id: str
    info: SessionInfo | None = None
    children: list[Branch] = field(default_factory=list)
    is_this: bool = False


async def family(request: Request) -> Response:
    """The agent's snapshots; the forks come in a moment, as they are searched for."""
    inspector = inspector_of(request)
    session = await agent_of(inspector, request.query_params.get("id", ""))
    found: list[Snapshot] = []
    problem = None
    try:
        found = await inspector.store.list_snapshots(session.agent_id)
    except CorruptRecordError as exc:
        problem = str(exc)
    rows = [(s.id, s.created_at, len(s.messages), s.metadata) for s in found[:_SNAPSHOTS]]
    return render(
        request,
        "family.html",
        session=session,
        tab="family",
        snapshots=rows,
        left_out=len(found) - len(rows),
        problem=problem,
    )


async def forks(request: Request) -> Response:
    """The tree of the agents that this one was forked from, and of its forks."""
    inspector = inspector_of(request)
    store = inspector.store
    session = await agent_of(inspector, request.query_params.get("id", ""))
    root_id = session.lineage[0] if session.lineage else session.agent_id
    root = await store.load_info(root_id)
    looked = 0
    known: dict[str, SessionInfo] = {session.agent_id: session}
    async for other in store.iter_sessions(
        template_id=session.template_id, sort_by="created_at", order="asc", created_after=root.created_at if root else 0
    ):
        looked += 1
        if root_id in other.lineage or other.agent_id == root_id:
            known[other.agent_id] = other
        if looked >= _SEARCHED or len(known) >= 500:
            break
    tree = _tree(known, session.agent_id)
    return render(
        request,
        "_forks.html",
        this=session.agent_id,
        root=tree,
        looked=looked,
        cut=looked >= _SEARCHED,
        count=len(known),
    )


def _tree(known: dict[str, SessionInfo], this: str) -> Branch:
    branches = {name: Branch(name, info, is_this=name == this) for name, info in known.items()}
    placed: set[str] = set()
    for info in list(known.values()):
        way = (*info.lineage[-50:], info.agent_id)
        for parent, child in pairwise(way):
            if child not in placed:
                placed.add(child)
                above = branches.setdefault(parent, Branch(parent))
                above.children.append(branches.setdefault(child, Branch(child)))
    lineage = known[this].lineage[-50:]
    return branches[lineage[0] if lineage else this]


# --- Side by side -----------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Row:
    """Messages at the same place of both sides; ``equal`` is a number of rows that are the same and folded."""

    kind: str
    left: tuple[int, Message] | None = None
    right: tuple[int, Message] | None = None
    equal: int = 0


async def compare(request: Request) -> Response:
    """Two agents, or an agent and a snapshot, side by side."""
    inspector = inspector_of(request)
    given = request.query_params
    sides = []
    problems: dict[str, str] = {}
    for name in ("a", "b"):
        agent_id, snapshot = given.get(name, ""), given.get(f"at_{name}", "")
        try:
            sides.append(await _side(inspector.store, agent_id, snapshot) if agent_id else None)
        except (AgentNotFoundError, InvalidArgumentError) as exc:
            problems[name] = str(exc)
            sides.append(None)
    rows: list[Row] = []
    cut = False
    left, right = sides
    if left is not None and right is not None:
        rows, cut = await asyncio.to_thread(_rows, left, right)
    return render(
        request,
        "compare.html",
        status=400 if problems else 200,
        given=given,
        problems=problems,
        rows=rows,
        cut=cut,
        both=left is not None and right is not None,
        most=_COMPARED,
        brief=_brief,
        same=all(row.kind == "equal" for row in rows),
        left_name=_name(given, "a"),
        right_name=_name(given, "b"),
    )


def _name(given: Any, side: str) -> str:
    snapshot = given.get(f"at_{side}")
    return f"{given.get(side, '')} at {snapshot}" if snapshot else str(given.get(side, ""))


async def _side(store: ExtendedStore, agent_id: str, snapshot_id: str) -> list[Message]:
    if await store.load_info(agent_id) is None:
        raise await agent_not_found(store, agent_id)
    if not snapshot_id:
        return await store.load_messages(agent_id, before=_COMPARED)
    snapshot: Snapshot | None = await store.load_snapshot(agent_id, snapshot_id)
    if snapshot is None:
        raise InvalidArgumentError(f"agent {agent_id!r} has no snapshot {snapshot_id[:80]!r}")
    return list(snapshot.messages[:_COMPARED])


def _rows(left: list[Message], right: list[Message]) -> tuple[list[Row], bool]:
    keys = [[_digest(message) for message in side] for side in (left, right)]
    rows: list[Row] = []
    for kind, i, j, k, m in SequenceMatcher(None, keys[0], keys[1], autojunk=False).get_opcodes():
        if kind == "equal":
            rows.append(Row("equal", (i, left[i]), (k, right[k]), equal=j - i))
            continue
        for n in range(max(j - i, m - k)):
            here = (i + n, left[i + n]) if i + n < j else None
            there = (k + n, right[k + n]) if k + n < m else None
            both = here is not None and there is not None
            rows.append(Row("changed" if both else "removed" if here else "added", here, there))
            if len(rows) >= _ROWS:
                return rows, True
    return rows, False


def _digest(message: Message) -> int:
    return hash(to_json(message))


def _brief(message: Message) -> list[tuple[str, str]]:
    """The message in lines: each a kind and a text."""
    lines = [("text", message.text[:3_000])] if message.text else []
    for block in message.content[:50]:
        if isinstance(block, ToolUseBlock):
            lines.append(("call", f"{block.name}({preview(block.input, 300)})"))
        elif isinstance(block, ToolResultBlock):
            lines.append(("result", preview(block.content, 600)))
    return lines or [("text", "(no text)")]
