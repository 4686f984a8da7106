"""``kode diff``: what two conversations have in common, and where they part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import Annotated, Any, Final, NamedTuple

import typer
from rich.text import Text

from kode_core.cli.conversation import arguments, brief
from kode_core.cli.known import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, open_store
from kode_core.cli.options import agent_argument
from kode_core.cli.output import count, is_whole, one_line, print_json, print_note, printed, show, visible, wire
from kode_core.cli.queries import run
from kode_core.codec import encode, to_dict
from kode_core.errors import InvalidArgumentError
from kode_core.model import Json, Message
from kode_core.protocols import ExtendedStore

__all__ = ["EXAMPLES", "diff"]

EXAMPLES: Final = (
    "kode diff tau-000-0 tau-000-1",
    "kode diff agt-fork",
    "kode diff agt-1@snapshot-3",
    "kode diff agt-1@before agt-1@after --exit-code",
)

_ALIGNED: Final = 2_000
"""The most messages of a part that are aligned with each other: that takes time with their product."""
_SHOWN: Final = 200


class _Side(NamedTuple):
    name: str
    messages: Sequence[Message]
    metadata: dict[str, Json]


class _Change(NamedTuple):
    """A part of both conversations: equal, or replaced; positions are of the first message in each."""

    is_equal: bool
    first: int
    firsts: Sequence[Message]
    second: int
    seconds: Sequence[Message]


def diff(
    a: Annotated[str, agent_argument("An agent, or AGENT@SNAPSHOT.", "A")],
    b: Annotated[str | None, agent_argument("The other one.", "B")] = None,
    full: Annotated[bool, typer.Option("--full", help="Show all messages that differ, unshortened.")] = False,
    exit_code: Annotated[bool, typer.Option("--exit-code", help="End with 1 if they differ.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare the messages and the metadata of A and B.

    Without B, a fork A is compared with the agent that it was forked from, and a snapshot A with its agent as it is
    now. A minus sign marks a message that only the first one has, and a plus sign one that only the second
    one has.
    """
    first, second = run(_sides(store, a, b))
    changes = _changes(first.messages, second.messages)
    keys = sorted(first.metadata.keys() | second.metadata.keys())
    metadata = [
        key
        for key in keys
        if first.metadata.get(key) != second.metadata.get(key)
        or (key in first.metadata) is not (key in second.metadata)
    ]
    if as_json:
        print_json(_plain(first, second, changes, metadata))
    else:
        show(Text(f"--- {visible(first.name)}", "red"), Text(f"+++ {visible(second.name)}", "green"))
        lines = [*_metadata_lines(first, second, metadata, full), *_lines(changes, full)]
        if lines:
            show(*lines)
        equal = sum(len(change.firsts) for change in changes if change.is_equal)
        removed = sum(len(change.firsts) for change in changes if not change.is_equal)
        added = sum(len(change.seconds) for change in changes if not change.is_equal)
        print_note(f"{count(equal, 'equal message')}, {removed:,} only in the first, {added:,} only in the second")
    if exit_code and (metadata or any(not change.is_equal for change in changes)):
        raise typer.Exit(1)


async def _sides(target: str | None, a: str, b: str | None) -> tuple[_Side, _Side]:
    async with open_store(target) as store:
        if b is not None:
            return await _side(store, a), await _side(store, b)
        agent_id, snapshot_id = await _split(store, a)
        if snapshot_id is not None:
            return await _side(store, a), await _side(store, agent_id)
        info = await store.load_info(agent_id)
        if info is None:
            await require_agent(store, agent_id)
        if info is None or not info.lineage:
            raise InvalidArgumentError(f"agent {agent_id!r:.80} was not forked from another one: name B, too")
        return await _side(store, info.lineage[-1]), await _side(store, agent_id)


async def _split(store: ExtendedStore, name: str) -> tuple[str, str | None]:
    """The agent and the snapshot that *name* means; an agent whose id has the sign comes first."""
    agent_id, sign, snapshot_id = name.rpartition("@")
    if not sign or not agent_id or not snapshot_id or await store.exists(name):
        return name, None
    return agent_id, snapshot_id


async def _side(store: ExtendedStore, name: str) -> _Side:
    agent_id, snapshot_id = await _split(store, name)
    if snapshot_id is not None:
        snapshot = await store.load_snapshot(agent_id, snapshot_id)
        if snapshot is None:
            await require_agent(store, agent_id)
            raise InvalidArgumentError(f"agent {agent_id!r:.80} has no snapshot {snapshot_id!r:.80}")
        return _Side(name, snapshot.messages, {})
    messages, info = await store.load_messages(agent_id), await store.load_info(agent_id)
    if not messages and info is None:
        await require_agent(store, agent_id)
    return _Side(name, messages, {} if info is None else dict(info.metadata))


# --- comparing --------------------------------------------------------------------------------------------------------


def _changes(a: Sequence[Message], b: Sequence[Message]) -> list[_Change]:
    """The parts in their order. A common beginning and end are found first: most conversations part once."""
    one, two = [_key(message) for message in a], [_key(message) for message in b]
    least = min(len(one), len(two))
    begin = next((i for i in range(least) if one[i] != two[i]), least)
    end = next((i for i in range(least - begin) if one[-1 - i] != two[-1 - i]), least - begin)
    i, j = len(a) - end, len(b) - end
    parts = [(True, 0, begin, 0, begin), *_middle(one, two, begin, i, j), (True, i, len(a), j, len(b))]
    return [_Change(is_equal, p, a[p:q], r, b[r:s]) for is_equal, p, q, r, s in parts if p < q or r < s]


def _middle(
    one: Sequence[bytes], two: Sequence[bytes], begin: int, i: int, j: int
) -> Iterator[tuple[bool, int, int, int, int]]:
    if max(i, j) - begin > _ALIGNED:
        yield False, begin, i, begin, j
        return
    matcher = SequenceMatcher(None, one[begin:i], two[begin:j], autojunk=False)
    for tag, p, q, r, s in matcher.get_opcodes():
        yield tag == "equal", begin + p, begin + q, begin + r, begin + s


def _key(message: Message) -> bytes:
    """The digest of a message, without its place and time."""
    return encode(Message, message, "a message").digest


# --- showing ----------------------------------------------------------------------------------------------------------


def _metadata_lines(a: _Side, b: _Side, names: Sequence[str], full: bool) -> Iterator[Text]:
    for name in names:
        for sign, side, style in (("-", a, "red"), ("+", b, "green")):
            if name in side.metadata:
                text = arguments({name: side.metadata[name]})
                yield Text(f"{sign} metadata {visible(text) if full else one_line(text)}", style)


def _lines(changes: Sequence[_Change], full: bool) -> Iterator[Text]:
    shown = 0
    for change in changes:
        if change.is_equal:
            yield Text(f"  … {count(len(change.firsts), 'equal message')} …", "dim")
            continue
        for sign, start, side, style in (
            ("-", change.first, change.firsts, "red"), ("+", change.second, change.seconds, "green"),
        ):  # fmt: skip
            for i, message in enumerate(side):
                shown += 1
                if is_whole(full) or shown <= _SHOWN:
                    yield Text(f"{sign} #{start + i} {visible(message.role)}: {_body(message, full)}", style)
    if not is_whole(full) and shown > _SHOWN:
        yield Text(f"  … {shown - _SHOWN:,} more messages that differ (--full)", "dim")


def _body(message: Message, full: bool) -> str:
    if not full:
        return brief(message)
    return visible(printed(to_dict(message).get("content")))


def _plain(a: _Side, b: _Side, changes: Sequence[_Change], names: Sequence[str]) -> dict[str, Any]:
    parts = []
    for change in changes:
        part: dict[str, Any] = {"equal": change.is_equal, "aFrom": change.first, "bFrom": change.second}
        if change.is_equal:
            part["count"] = len(change.firsts)
        else:
            part |= {"a": [wire(one) for one in change.firsts], "b": [wire(one) for one in change.seconds]}
        parts.append(part)
    metadata = {
        name: {key: side.metadata[name] for key, side in (("a", a), ("b", b)) if name in side.metadata}
        for name in names
    }
    return {"a": a.name, "b": b.name, "messages": parts, "metadata": metadata}
