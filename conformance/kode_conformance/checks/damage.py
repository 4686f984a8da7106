"""OPS-4, OPS-2, QRY-9: stored records that are damaged: named, left out, and never a reason for other calls to fail."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from msgspec.structs import replace

from kode_conformance.checks.lifecycle import fill
from kode_conformance.context import Context, Unverified, Violation, difference
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.instruments.pace import in_time
from kode_conformance.kills.writes import LOOKS, Portrait, portrait
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.batch import AgentSummary, ListRows
from kode_core.codec import Body
from kode_core.engine import Engine
from kode_core.errors import CorruptRecordError, KodeError
from kode_core.layers import Layer
from kode_core.protocols import ExtendedStore, QueryableStore

_E = Capability.EXTENDED
_BAD: Final = "a"
_SOUND: Final = "b"
_PAGES: Final = 40


class Damaging(Layer):
    """Changes bodies of one agent when they are read, as if bytes had changed on the device.

    Attributes:
        verbs: the reads that return changed bodies.
        kind: the list or kind of documents to change; None for all.
    """

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.verbs: frozenset[str] = frozenset()
        self.kind: str | None = None

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        found = await call(*args, **kwargs)
        if verb not in self.verbs:
            return found
        names = [*filter(_is_text, args[:2]), *(["documents"] if verb == "docs_in" else [])]
        if names:
            is_meant = names[0] == _BAD and self.kind in (None, *names[1:2])
            return _damaged(found) if is_meant else found
        if isinstance(found, (list, tuple)):  # of a search over many agents
            shown = [_damaged(one) if getattr(one, "agent_id", None) == _BAD else one for one in found]
            if isinstance(found, tuple):
                return tuple(shown)
            found[:] = shown
        return found


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _other_text(text: str) -> str:
    """The text with one letter changed; a text that a layer encrypted may have no "e", and one that was not
    asked for is empty.
    """
    if not text:
        return text
    place = text.find("e")
    place = len(text) // 2 if place < 0 else place
    return f"{text[:place]}{'y' if text[place] == 'x' else 'x'}{text[place + 1 :]}"


def _damaged(found: Any) -> Any:
    if isinstance(found, Body):
        return Body(_other_text(found.text), found.digest)
    if isinstance(found, ListRows):
        return replace(found, rows=[(_damaged(body), at) for body, at in found.rows])
    if isinstance(found, AgentSummary):
        return found if found.info is None else replace(found, info=_damaged(found.info))
    if isinstance(found, (list, tuple)):
        return [_damaged(found[0]), *found[1:]] if found else found
    name = next((name for name in ("body", "info", "doc") if hasattr(found, name)), None)
    return found if name is None else replace(found, **{name: _damaged(getattr(found, name))})


PARTS: Final[dict[str, tuple[frozenset[str], str | None, tuple[str, ...]]]] = {
    "messages": (frozenset({"rows", "rows_at"}), "messages", ("messages",)),
    "tool calls": (frozenset({"rows", "rows_at"}), "tool_calls", ("tool calls",)),
    "todos": (frozenset({"docs"}), "todos", ("todos",)),
    "windows": (frozenset({"docs"}), "windows", ("windows",)),
    "compressions": (frozenset({"docs"}), "compressions", ("compressions",)),
    "recovered files": (frozenset({"docs"}), "recovered", ("recovered files",)),
    "media": (frozenset({"docs"}), "media", ("media",)),
    "snapshots": (frozenset({"docs"}), "snapshots", ("snapshots",)),
    "events": (frozenset({"events", "last_event"}), None, ("events",)),
    "info": (frozenset({"summary", "find_sessions"}), None, ("info",)),
    "documents": (frozenset({"docs", "docs_in"}), "documents", ("documents",)),
}
"""By part of an agent: the reads that show it, its kind, and the loads that then fail."""


def damaged_parts() -> dict[str, tuple[frozenset[str], str | None, tuple[str, ...]]]:
    """The parts that the store keeps."""
    return {part: how for part, how in PARTS.items() if part != "documents" or keeps_documents()}


async def damaging(ctx: Context) -> tuple[ExtendedStore, Damaging]:
    layers: list[Damaging] = []

    def put(engine: Engine) -> Engine:
        layers.append(Damaging(engine))
        return layers[-1]

    store = await ctx.another(put)
    return store, layers[-1]


async def damage_each_part(ctx: Context) -> AsyncIterator[tuple[str, ExtendedStore]]:
    """One store after the other in which another part of the agent ``a`` is damaged, with the name of the part."""
    for part, (verbs, kind, _) in damaged_parts().items():
        store, layer = await damaging(ctx)
        layer.verbs, layer.kind = verbs, kind
        yield part, store
        await ctx.close(store)


@check("OPS-4", "OPS-2", needs=_E, under=(Dimension.DAMAGE, Dimension.CHANGES))
async def damage_of_any_kind_is_named_and_stays_where_it_is(ctx: Context) -> None:
    """Whichever part of an agent is damaged, reading that part raises CorruptRecordError that names the agent, the
    check finds it, and its other parts and all other agents can be read, searched and written.
    """
    for agent_id in (_BAD, _SOUND):
        await fill(ctx.store, agent_id)
    before = {agent_id: await portrait(ctx.store, agent_id) for agent_id in (_BAD, _SOUND)}
    store, layer = await damaging(ctx)
    for part, (verbs, kind, unreadable) in damaged_parts().items():
        layer.verbs, layer.kind = verbs, kind
        for name, look in LOOKS.items():
            if name in unreadable:
                error = await ctx.raises(
                    CorruptRecordError, look(store, _BAD), f"reading the {name} with damaged {part}"
                )
                ctx.true(repr(_BAD) in error.record, f"the error must name the agent, got {error.record!r}")
            elif name not in ("exists", "listed"):
                ctx.equal(await look(store, _BAD), before[_BAD][name], f"the {name} beside damaged {part}")
        ctx.equal(await portrait(store, _SOUND), before[_SOUND], f"another agent beside damaged {part}")
        found = await store.check_consistency()
        named = {(issue.code, issue.agent_id) for issue in found.issues}
        ctx.true(("corrupt_record", _BAD) in named, f"the check must find damaged {part}; it found {sorted(named)}")
        ctx.true({agent for _, agent in named} == {_BAD}, f"the check blames other agents for damaged {part}: {named}")
        if part == "snapshots":
            for snapshot in before[_BAD]["snapshots"]:
                one = store.load_snapshot(_BAD, snapshot.id)
                await ctx.raises(CorruptRecordError, one, f"loading {snapshot.id!r} with damaged snapshots")
        await _see_calls_of_the_others(ctx, store, part)
    layer.verbs = frozenset()
    ctx.equal(await portrait(store, _BAD), before[_BAD], "the agent after its bytes are right again")


async def _see_calls_of_the_others(ctx: Context, store: ExtendedStore, part: str) -> None:
    """Calls that are about many agents, and writes to a sound one."""
    try:
        await store.list()
        for query in (store.query_sessions, store.query_messages, store.query_tool_calls):
            page = await query()
            agents = {record.agent_id for record in page}
            ctx.true(_SOUND in agents, f"{query.__name__} with damaged {part} of {_BAD!r} gave agents {sorted(agents)}")
        await store.get_metrics()
        await store.save_turn("new", append=samples.messages(1), info=samples.info("new", template_id="new"))
        ctx.equal(
            await store.delete_many(template_id="new"), 1, f"how many were deleted with damaged {part} of another"
        )
    except KodeError as exc:
        raise Violation(
            f"with damaged {part} of {_BAD!r} a call for others raised {type(exc).__name__}: {exc}"
        ) from exc


class _Said(logging.Handler):
    """Collects the log messages meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


async def paged(store: QueryableStore, what: str, how: Mapping[str, Any], limit: int) -> tuple[list[Any], list[str]]:
    """The records on all pages of a query, and the names that the pages leave out."""
    found: list[Any] = []
    left_out: list[str] = []
    cursor: str | None = None
    for _ in range(_PAGES):
        page = await getattr(store, f"query_{what}")(**how, limit=limit, cursor=cursor)
        found += page
        left_out += page.left_out
        cursor = page.next_cursor
        if cursor is None:
            break
    return found, left_out


@contextmanager
def _listened() -> Iterator[_Said]:
    said, root = _Said(), logging.getLogger()
    root.addHandler(said)
    try:
        yield said
    finally:
        root.removeHandler(said)


@check("QRY-9", "OPS-4", needs=Capability.QUERYABLE, under=(Dimension.DAMAGE, Dimension.ITEMS))
async def queries_leave_out_what_is_damaged_and_name_it(ctx: Context) -> None:
    """A query over many agents with some damaged records finds every other record, once, over all its pages; a page
    names the records that it left out, and an iterator names them in the log.
    """
    if not ctx.harness.has("corrupt"):
        raise Unverified("the harness has no hook corrupt")
    for agent_id in ("a", "b", "c"):
        await ctx.store.save_turn(agent_id, messages=samples.messages(3), info=samples.info(agent_id))
    await ctx.close(ctx.store)  # until then a store may have its writes in a second place, and read them from there
    await ctx.harness.corrupt(ctx.handle, "b")
    store = await ctx.another()
    wanted = sorted((agent, i) for agent in ("a", "b", "c") for i in range(3) if (agent, i) != ("b", 0))
    for limit in (1, 2, 100):
        messages, left_out = await paged(store, "messages", {}, limit)
        found = [(message.agent_id, message.position) for message in messages]
        ctx.equal(sorted(found), wanted, f"what pages of {limit} messages give")
        named = [name for name in left_out if "message 0" in name and "'b'" in name]
        ctx.equal(
            (len(named), len(left_out)), (1, 1), f"how often pages of {limit} name what they left out: {left_out}"
        )
    with _listened() as said:
        found = sorted([(message.agent_id, message.position) async for message in store.iter_messages()])
    ctx.equal(found, wanted, "what the iterator gives")
    ctx.true(any("'b'" in line for line in said.lines), f"the log must name what the iterator left out: {said.lines}")
    ctx.equal(sorted([session.agent_id for session in await store.query_sessions()]), ["a", "b", "c"], "the sessions")
    ctx.equal(
        [m.agent_id for m in await store.query_messages(agent_id="c")], ["c"] * 3, "the messages of a sound agent"
    )


@check("OPS-2", "OPS-4", needs=_E, under=(Dimension.DAMAGE,))
async def agents_without_info_are_checked(ctx: Context) -> None:
    """A damaged record, and a tool use without its result, are found also where no info was ever saved; agents that
    have only events or documents are looked at as well.
    """
    await ctx.store.save_messages("dangling", samples.rich_messages()[:5])
    await ctx.store.append_events("events", samples.events(2))
    await ctx.store.save_todos("todos", samples.todos("x"))
    await ctx.store.save_messages("damaged", samples.messages(3))
    found = await ctx.store.check_consistency()
    ctx.equal({issue.agent_id for issue in found.issues}, {"dangling"}, f"agents with issues, of {found.issues}")
    ctx.equal(found.agents_checked, 4, "how many agents were checked")
    if not ctx.harness.has("corrupt"):
        raise Unverified("the harness has no hook corrupt")
    await ctx.reopen()  # as above
    await ctx.harness.corrupt(ctx.handle, "damaged")
    store = await ctx.another()
    found = await store.check_consistency()
    named = sorted((issue.code, issue.agent_id) for issue in found.issues if issue.agent_id == "damaged")
    ctx.equal(named, [("corrupt_record", "damaged")], "the issues of an agent without info")
    ctx.true(
        not any("delete" in issue.message.lower() for issue in found.issues if issue.agent_id == "damaged"),
        f"no issue may advise to delete what can be read: {found.issues}",
    )
    ctx.equal(await ctx.store.list(), [], "the agents with info, after the check")


# --- bytes ------------------------------------------------------------------------------------------------------------


def _flip(data: bytearray, at: int) -> None:
    data[at] ^= 1 << (at % 7)


def _zero(data: bytearray, at: int) -> None:
    data[at] = 0


def _zeros(data: bytearray, at: int) -> None:
    data[at : at + 100] = bytes(len(data[at : at + 100]))


def _first_page(data: bytearray, at: int) -> None:
    data[:4096] = bytes(len(data[:4096]))


def _line_ends(data: bytearray, at: int) -> None:
    data[at : at + 3] = b"\n\n\n"


def _gone(data: bytearray, at: int) -> None:
    del data[at : at + 1 + at % 50]


def _more(data: bytearray, at: int) -> None:
    data[at:at] = b'{"x":1}\n\0'


_DAMAGES: Final = (_flip, _zero, _zeros, _first_page, _line_ends, _gone, _more)


async def _looked(store: ExtendedStore, agent_id: str) -> Portrait:
    """Every part of an agent that can be read, and the error of every part that cannot.

    Raises:
        Violation: an error of another library.
    """

    async def one(look: Callable[[ExtendedStore, str], Awaitable[Any]]) -> Any:
        try:
            return await look(store, agent_id)
        except KodeError as exc:
            return exc
        except Exception as exc:
            raise Violation(f"reading a damaged agent raised {type(exc).__name__}: {exc}") from exc

    return {kind: await one(look) for kind, look in LOOKS.items()}


@check(
    "OPS-4", "DUR-1", needs=_E | Capability.PERSISTENT, tier=Tier.STANDARD, stochastic=True, under=(Dimension.DAMAGE,)
)
async def damaged_bytes_are_never_taken_for_right_ones(ctx: Context) -> None:
    """Reading an agent's file in which bytes were changed, removed, zeroed or inserted ends in CorruptRecordError or in
    the right data, also after more was written; other agents are not affected, and no write removes existing data.
    """
    if not ctx.harness.has("files_of"):
        raise Unverified("the harness has no hook files_of")
    rounds = [(number, damage) for number in range(max(1, ctx.effort.examples // 50)) for damage in _DAMAGES]
    for number, damage in in_time(ctx, rounds):
        agent_id = f"agt-{number}-{damage.__name__.strip('_').replace('_', '-')}"
        await fill(ctx.store, agent_id)
        for i in range(5):
            await ctx.store.append_messages(agent_id, samples.messages(1, 100 + i))
        await ctx.store.save_messages(_SOUND, samples.messages(2))
        before = await portrait(ctx.store, agent_id)
        await ctx.close(ctx.store)
        at = _damage(ctx, await ctx.harness.files_of(ctx.handle, agent_id), damage)
        ctx.store = await ctx.another()
        what = f"after {damage.__name__.strip('_')} at byte {at}"
        await _see_damage(ctx, agent_id, before, what)
        await _write_and_look_again(ctx, agent_id, before, what)
    await ctx.store.check_consistency()


def _damage(ctx: Context, files: Sequence[Path], damage: Callable[[bytearray, int], None]) -> int:
    """Damage one of the files, not in its last part: a torn end is what a crash leaves."""
    path = ctx.rng.choice(list(files))
    data = bytearray(path.read_bytes())
    at = ctx.rng.randrange(len(data) * 3 // 4)
    damage(data, at)
    path.write_bytes(data)
    return at


async def _see_damage(ctx: Context, agent_id: str, before: Portrait, what: str) -> bool:
    found = await _looked(ctx.store, agent_id)
    wrong = {
        kind: difference(value, before[kind])
        for kind, value in found.items()
        if not isinstance(value, CorruptRecordError) and difference(value, before[kind]) is not None
    }
    wrong.pop("listed", None)  # the log names the agents that are left out
    ctx.true(not wrong, f"{what} the agent reads otherwise than it was written, without an error: {wrong}")
    is_damaged = any(isinstance(value, CorruptRecordError) for value in found.values())
    ctx.equal(await ctx.store.load_messages(_SOUND), samples.messages(2), f"another agent {what}")
    named = {issue.agent_id for issue in (await ctx.store.check_consistency(agent_id)).issues}
    ctx.true(
        not is_damaged or agent_id in named,
        f"{what} reading raises CorruptRecordError; the check names {sorted(named)}",
    )
    await ctx.store.query_messages()
    return is_damaged


async def _write_and_look_again(ctx: Context, agent_id: str, before: Portrait, what: str) -> None:
    """Check that writes are refused or only add records, and remove none."""
    after = dict(before)
    try:
        await ctx.store.append_messages(agent_id, samples.messages(1, 777))
        after["messages"] = [*before["messages"], samples.message(777)]
        after["info"] = before["info"].replace(message_count=len(after["messages"]))
    except KodeError:
        pass
    await ctx.reopen()
    await _see_damage(ctx, agent_id, after, f"{what}, then written to,")
