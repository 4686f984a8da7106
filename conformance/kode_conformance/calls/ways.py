"""Records through every method that writes them, and back through every method and instance that gives them."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.context import Context, Violation, difference
from kode_conformance.histories.answers import answer
from kode_conformance.histories.looks import all_pages
from kode_conformance.histories.model import StoreModel
from kode_conformance.instruments.pace import in_time
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import Holds, Values, fields_of, full, of_agent, put, rows, value_in
from kode_conformance.values.kinds import Gives, Kind, ReadMethod, WriteMethod, kinds
from kode_conformance.values.spoiling import spoil, whole_copy
from kode_core.model import AgentInfo, Message, Record, Timeline, TodoSnapshot, ToolCallRecord
from kode_core.protocols import ExtendedStore
from kode_core.query import SessionInfo

__all__ = ["all_come_back", "at_once", "brief", "changes_come_back", "come_back", "first", "held", "spoilt_come_back"]

_ROWS: Final = 32
"""How many records of a kind there are in a round."""
_AT_ONCE: Final = 16
_SHOWN: Final = 60

Rows = Mapping[type[Record], Sequence[Any]]


class _Written(NamedTuple):
    """Records of one kind that one method wrote under one agent."""

    agent_id: str
    kind: Kind
    by: str
    records: Sequence[Any]


async def come_back(ctx: Context, values: Values, *, once: bool = False, shares: bool = False) -> None:
    """Write records that hold every value in every field, by every method; they must come back exactly everywhere.

    *once* takes one method that writes each kind, and reads once; in quick runs *shares* gives each record to every
    other method that writes its kind.
    """
    thin = ctx.settings.tier is Tier.QUICK
    await all_come_back(ctx, {record: rows(record, values, thin=thin) for record in kinds()}, once=once, shares=shares)


async def all_come_back(ctx: Context, every: Rows, *, once: bool = False, shares: bool = False, much: str = "") -> None:
    """The same for these records: in rounds, as many as there is time for, in an order of the run's seed.

    *much* is the name of a call with large records: all are in one round, and read in pairs of method and instance.
    """
    most = max(map(len, every.values())) if much else _ROWS
    starts = list(range(0, max(map(len, every.values())), most))
    ctx.rng.shuffle(starts)
    for number, start in enumerate(in_time(ctx, starts)):
        part = {record: found[start : start + most] for record, found in every.items()}
        a_round = _Round(ctx, f"{much}{start}", {record: found for record, found in part.items() if found})
        a_round.reads_all = ctx.settings.tier > Tier.QUICK and not much
        await a_round.run(once=once, shares=shares, forks=not once and (number == 0 or ctx.settings.tier > Tier.QUICK))


async def changes_come_back(
    ctx: Context, phases: Sequence[Rows], *, turning: bool = False, large: bool = False
) -> None:
    """Write records, and then others in their place, by every method; another instance must see each change.

    *turning* lets each method write over the records of another. In quick runs, turns that write *large* records have
    no other parts.
    """
    for record in in_time(ctx, ctx.rng.sample([*phases[0]], len(phases[0]))):
        only = [{record: rows_of[record]} for rows_of in phases]
        await _Round(ctx, record.__name__, only[0]).changes(only, turning=turning, large=large)


async def spoilt_come_back(ctx: Context, phases: Sequence[Rows]) -> None:
    """The same, but the caller changes every argument and every result of the store at once."""
    for record in in_time(ctx, ctx.rng.sample([*phases[0]], len(phases[0]))):
        only = [{record: rows_of[record]} for rows_of in phases]
        await _Round(ctx, record.__name__, only[0], spoils=True).changes(only)


class _Round:
    def __init__(self, ctx: Context, name: str, records: Rows, *, spoils: bool = False) -> None:
        self._ctx = ctx
        self._spoils = spoils
        self._name = name
        self._records = records
        self._model = StoreModel()
        self._written: list[_Written] = []
        self._shares = ctx.settings.tier is Tier.QUICK
        self.reads_all = not self._shares
        self._views = 2 if "PERSISTENT" in ctx.harness.lacks else 3

    async def run(self, *, once: bool, shares: bool, forks: bool) -> None:
        self._shares, other = self._shares and shares, await self._ctx.another()
        for kind in (kinds()[record] for record in self._records):
            every = kind.writers if self._ctx.settings.tier is Tier.QUICK else _writers(kind)
            for number, writer in enumerate(every[:1] if once else every):
                await self._write(kind, writer, number)
        if forks and "EXTENDED" not in self._ctx.harness.lacks:
            await self._fork()
        if not once or self._views == 2:
            await self._read([("", self._ctx.store), (" in another instance", other)][once:], int(once))
        await self._ctx.close(other)
        if self._views > 2:
            await self._read([(" after reopening", await self._ctx.reopen())], 2)

    async def changes(self, phases: Sequence[Rows], *, turning: bool = False, large: bool = False) -> None:
        self._shares, other = False, await self._ctx.another()
        for phase, self._records in enumerate(phases):
            self._written.clear()
            for kind in (kinds()[record] for record in self._records):
                every = kind.writers if large and self._ctx.settings.tier is Tier.QUICK else _writers(kind)
                for slot in range(len(every)):
                    writer = every[(slot + phase * turning) % len(every)]
                    await self._write(kind, writer, slot, f"{self._name}-{slot}")
            for i, written in enumerate(self._written):
                readers = [r for r in written.kind.readers if self._can(r)]
                if self._spoils:
                    await self._read_twice(other, written, readers, phase)
                    continue
                readers = [r for r in readers if r.gives is not Gives.KEYED]
                reader = readers[(phase + i) % len(readers)]
                how = f"{reader.method} in another instance, of what {written.by} wrote"
                await self._compare(other, written, reader, f"{how}, after {phase} changes" if phase else how)
        await self._ctx.close(other)

    async def _read_twice(
        self, other: ExtendedStore, written: _Written, readers: Sequence[ReadMethod], phase: int
    ) -> None:
        """Change every answer of the store at once; it has to be right again for the next reader."""
        for again in ("", ", once more"):
            for reader in readers:
                for store, where in ((self._ctx.store, ""), (other, " in another instance")):
                    how = f"{reader.method}{where}{again}, of what {written.by} wrote"
                    case = f"{how}, after {phase} changes; whatever was saved or given before was changed by the caller"
                    await self._compare(store, written, reader, case)

    # --- writing

    async def _write(self, kind: Kind, writer: WriteMethod, number: int, agent_id: str = "") -> None:
        found = self._records[kind.record]
        if self._shares and len(kind.writers) > 1:  # each record by every other method
            found = found[number % 2 :: 2]
        by = writer.method
        if writer.method == "save_turn":
            by = f"save_turn({writer.parameter}={', …' if writer.in_company else ''})"
        agent_id = agent_id or f"{self._name}-{by}"
        if writer.many:
            await self._call(writer, agent_id, found)
            self._written.append(_Written(agent_id, kind, by, found))
        elif kind.is_single:
            owned = {f"{agent_id}-{i}": of_agent(record, f"{agent_id}-{i}") for i, record in enumerate(found)}
            await at_once(self._call(writer, its_id, record) for its_id, record in owned.items())
            self._written += [_Written(its_id, kind, by, [record]) for its_id, record in owned.items()]
        else:
            await at_once((self._call(writer, agent_id, record) for record in found), 1 if _is_log(kind) else _AT_ONCE)
            self._written.append(_Written(agent_id, kind, by, found))

    async def _call(self, writer: WriteMethod, agent_id: str, given: Any) -> None:
        rest = _rest(writer, agent_id) if writer.in_company else {}
        getattr(self._model, writer.method)(agent_id, **{writer.parameter: given}, **rest)
        mine = whole_copy(given) if self._spoils else given
        try:
            await getattr(self._ctx.store, writer.method)(agent_id, **{writer.parameter: mine}, **rest)
        except Exception as exc:
            blamed = await self._blamed(writer, list(given) if writer.many else [given])
            raise Violation(
                f"{writer.method}({writer.parameter}=…) of {blamed} raised {type(exc).__name__}: {exc}"
            ) from exc
        if self._spoils:
            spoil(mine)

    async def _blamed(self, writer: WriteMethod, records: Sequence[Any]) -> str:
        """The first field whose value alone is refused."""
        for i, record in enumerate(records):
            for field in fields_of(type(record)):
                agent_id = f"{self._name}-blamed"
                try:
                    value = value_in(record, field)
                except LookupError:
                    continue
                alone = of_agent(put(full(type(record), i), field, value), agent_id)
                try:
                    given = [alone] if writer.many else alone
                    await getattr(self._ctx.store, writer.method)(agent_id, **{writer.parameter: given})
                except Exception:  # noqa: BLE001 - whatever the store raises where it should not
                    return f"a record whose {field.name} is {value!a:.100}"
        return f"{len(records)} records"

    async def _fork(self) -> None:
        """An agent with all that a fork takes along, and its fork."""
        parent = f"{self._name}-parent"
        for kind in map(kinds().__getitem__, self._records):
            writer = min((w for w in kind.writers if w.method != "save_turn"), key=lambda w: not w.many)
            found = [of_agent(record, parent) for record in self._records[kind.record]]
            keyed = any(reader.gives is Gives.KEYED for reader in kind.readers)
            calls: Sequence[Any] = [found] if writer.many else found if keyed else found[-1:]
            await at_once(self._call(writer, parent, given) for given in calls)
        if AgentInfo not in self._records:
            await self._call(WriteMethod("save_info", "info", many=False), parent, of_agent(full(AgentInfo), parent))
        (fork,) = await self._ctx.store.batch_fork(parent, 1)
        info = await self._ctx.store.load_info(fork)
        self._ctx.true(info is not None, "the fork has no info")
        assert info is not None
        self._model.fork(self._model.agents[parent], parent, info)
        for agent_id, by in ((parent, "save and a fork"), (fork, "batch_fork")):
            self._written += [_Written(agent_id, kinds()[record], by, []) for record in self._records]

    # --- reading

    async def _read(self, views: Sequence[tuple[str, ExtendedStore]], seen: int) -> None:
        """Read through these instances; so many were *seen* before."""
        for j, (where, store) in enumerate(views, seen):
            for i, written in enumerate(self._written):
                for reader in self._readers(written, i, j):
                    await self._compare(store, written, reader, f"{reader.method}{where}, of what {written.by} wrote")
            if "QUERYABLE" not in self._ctx.harness.lacks:
                await self._sessions(store, where)

    def _readers(self, written: _Written, i: int, j: int) -> Sequence[ReadMethod]:
        """The readers for the *i*-th list of records and the *j*-th instance.

        A quick run takes enough of them to pair each two of writer, reader and instance; other runs take all.
        """
        found = [reader for reader in written.kind.readers if self._can(reader)]
        if self.reads_all:
            return found
        if not written.kind.is_single and written.records:
            return [found[(i + j) % len(found)]]
        return [found[i % len(found)]] if (i + j) % self._views == 0 else []

    def _can(self, reader: ReadMethod) -> bool:
        return reader.gives not in (Gives.PAGE, Gives.FOUND) or "QUERYABLE" not in self._ctx.harness.lacks

    async def _compare(self, store: ExtendedStore, written: _Written, reader: ReadMethod, how: str) -> None:
        try:
            await self._compared(store, written, reader, how)
        except Violation:
            raise
        except Exception as exc:
            raise Violation(f"{how}: it raised {type(exc).__name__}: {exc}") from exc

    async def _compared(self, store: ExtendedStore, written: _Written, reader: ReadMethod, how: str) -> None:
        agent_id, method = written.agent_id, getattr(store, reader.method)
        if reader.gives is Gives.KEYED:
            key = next(f for f in fields_of(written.kind.record) if f.holds is Holds.KEY)
            for record in written.records:
                self._ctx.equal(self._taken(await method(agent_id, value_in(record, key))), record, how)
        elif reader.gives in (Gives.LIST, Gives.ONE):
            self._ctx.equal(self._taken(await method(agent_id)), held(self._model, reader.method, agent_id), how)
        elif reader.gives is Gives.STREAM:
            wanted = held(self._model, reader.method, agent_id)
            self._ctx.equal(await first(self._ctx, method(agent_id), len(wanted), how, self._taken), wanted, how)
        else:
            filters: Any = {"agent_id": agent_id, "order": "asc"}
            if reader.gives is Gives.FOUND:
                got = [self._taken(record) async for record in method(**filters)]
            else:
                got = self._taken(await all_pages(method, **filters, limit=1000))
            load = next(r.method for r in written.kind.readers if r.gives is Gives.LIST)
            numbered = list(enumerate(held(self._model, load, agent_id)))
            if "created_at" in written.kind.record.__struct_fields__:
                numbered.sort(key=lambda one: one[1].created_at)
            else:  # the time is the store's, and stays with a record that moves
                got.sort(key=lambda one: one.position)
            self._ctx.equal(got, [record for _, record in numbered], how)
            self._ctx.equal([r.position for r in got], [i for i, _ in numbered], f"positions of {how}")

    def _taken(self, found: Any) -> Any:
        """The store's result; where the caller changes it, a copy from before."""
        if not self._spoils:
            return found
        kept = whole_copy(found)
        spoil(found)
        return kept

    async def _sessions(self, store: ExtendedStore, where: str) -> None:
        wanted = {agent_id: held(self._model, "load_info", agent_id) for agent_id in self._model.listed()}
        for how, found in (
            ("query_sessions", await all_pages(store.query_sessions, limit=1000)),
            ("iter_sessions", [session async for session in store.iter_sessions()]),
        ):
            got = {session.agent_id: session for session in found}
            for agent_id, info in wanted.items():
                self._ctx.true(agent_id in got, f"{how}{where} does not give the session {agent_id}")
                for name in set(AgentInfo.__struct_fields__) & set(SessionInfo.__struct_fields__):
                    problem = difference(getattr(got[agent_id], name), getattr(info, name), name)
                    self._ctx.true(problem is None, f"a session of {how}{where}: {problem}")


def _writers(kind: Kind) -> Sequence[WriteMethod]:
    """The methods that write a kind, and each part of a turn once more, with a part of every other kind."""
    return (*kind.writers, *(w._replace(in_company=True) for w in kind.writers if w.method == "save_turn"))


def _rest(writer: WriteMethod, agent_id: str) -> dict[str, Any]:
    """The parts of a turn other than the kind that is written."""
    parts: dict[str, tuple[type[Record], Any]] = {
        "append": (Message, [samples.message(text="in company")]),
        "upsert_tool_calls": (ToolCallRecord, [samples.tool_call(1, id="in company")]),
        "events": (Timeline, [samples.event(2**40)]),
        "todos": (TodoSnapshot, samples.todos("in company")),
        "info": (AgentInfo, samples.info(agent_id)),
    }
    mine = next(kind.record for kind in kinds().values() for w in kind.writers if w[:2] == writer[:2])
    return {name: given for name, (record, given) in parts.items() if record is not mine}


def _is_log(kind: Kind) -> bool:
    return kind.record is Timeline


def _as_it_is(item: Any) -> Any:
    return item


async def first(ctx: Context, stream: Any, count: int, how: str, taken: Callable[[Any], Any] = _as_it_is) -> list[Any]:
    """So many items of an iterator, or all, each *taken* when it comes; one that follows does not end by itself."""
    found: list[Any] = []
    try:
        async with ctx.within():
            while len(found) < count:
                found.append(taken(await anext(stream)))
    except StopAsyncIteration:
        pass
    except TimeoutError:
        raise Violation(f"{how}: after {len(found)} of {count} events no further one comes") from None
    await stream.aclose()
    return found


async def at_once(calls: Iterable[Awaitable[object]], most: int = _AT_ONCE) -> None:
    """All calls, some of them at once."""
    rest = iter(calls)
    while some := list(itertools.islice(rest, most)):
        await asyncio.gather(*some)


def held(model: StoreModel, method: str, agent_id: str) -> Any:
    """The correct result of a method that reads all of an agent; events without their offsets."""
    log = [logged.timeline for logged in model.agents[agent_id].events]
    if method == "follow_events":
        return log
    if method == "read_events":
        return sorted(log, key=lambda timeline: timeline.bookmark.seq)
    return answer(model, method, (agent_id,), {}, whole=True)


def brief(name: str) -> str:
    """A name in a message: both of its ends where it is long."""
    if len(name) < _SHOWN:
        return ascii(name)
    return f"{name[:10]!a}…{name[-10:]!a} ({len(name)} characters, {len(name.encode('utf-8', 'replace'))} bytes)"
