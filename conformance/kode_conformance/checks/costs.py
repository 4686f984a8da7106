"""MSG-5 and TC-1: the cost of saving, in bytes, by the length of the stored list."""

from __future__ import annotations

import itertools
import random
import statistics
from collections.abc import Awaitable, Callable, Mapping
from typing import Final, NamedTuple

from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.instruments.costs import HOOK, Meter, meter, sending
from kode_conformance.registry import check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_core.model import Message, Timeline, ToolCallRecord
from kode_core.protocols import ExtendedStore

SHORT: Final = 50
LONG: Final = {Tier.QUICK: 600, Tier.STANDARD: 3000, Tier.THOROUGH: 10_000}
_LONG_FOR_THE_SLOW: Final = 300
_SLOW_S: Final = 1.0
"""A store that takes longer for the short lists is spared the long ones, and some rounds."""
_ROUNDS: Final = 3
_FEW_ROUNDS: Final = 2
_SHARE: Final = 6
"""The share of the long list that a save may write more than with a short list: one part in so many. Pages, trees that
are a level deeper and lists that are kept in chunks stay below it; lists that are written again do not.
"""
_RARE: Final = 20
"""One call in so many may write more: it compacts, or moves a log into its data file."""
_TRIES: Final = 3
_LEAST: Final = 100
"""A counter that sees fewer bytes of a call says nothing about it."""

CostedCall = Callable[[ExtendedStore], Awaitable[object]]


def _text(number: int, size: int) -> str:
    """Text that no compression makes much shorter, another for each number."""
    return random.Random(number).randbytes(size // 2).hex()  # noqa: S311


class Talk:
    """An agent with lists of *count* records, and the contents of its lists."""

    def __init__(self, agent_id: str, count: int, size: int) -> None:
        self.agent_id, self.count, self.size = agent_id, count, size
        self._numbers = itertools.count()
        self.messages = [self.message(size) for _ in range(count)]
        self.calls = [self.call(size) for _ in range(count)]

    @property
    def whole(self) -> int:
        """The minimum size of one of its lists, in bytes."""
        return self.count * self.size

    def message(self, size: int = 500) -> Message:
        """Another message."""
        return samples.message(text=_text(next(self._numbers), size))

    def call(self, size: int = 500) -> ToolCallRecord:
        """Another tool call."""
        number = next(self._numbers)
        return samples.tool_call(number, result=_text(number, size))

    def event(self) -> Timeline:
        """Another event."""
        number = next(self._numbers)
        return samples.event(number, text=_text(number, 500))

    async def begin(self, store: ExtendedStore) -> None:
        """Save all of it, and a log as long."""
        events = [samples.event(-number - 1, text=_text(number, self.size)) for number in range(self.count)]
        await store.save_info(self.agent_id, samples.info(self.agent_id))
        await store.save_messages(self.agent_id, self.messages)
        await store.save_tool_call_records(self.agent_id, self.calls)
        for start in range(0, self.count, 500):
            await store.append_events(self.agent_id, events[start : start + 500])

    def save(self) -> CostedCall:
        """A save of the messages as they are now."""
        return lambda store: store.save_messages(self.agent_id, self.messages)

    def save_calls(self) -> CostedCall:
        """A save of the tool calls as they are now."""
        return lambda store: store.save_tool_call_records(self.agent_id, self.calls)


# --- the calls --------------------------------------------------------------------------------------------------------


Change = Callable[[Talk], CostedCall]
"""Changes the records of an agent, and returns the call that saves them."""


def _one_more(talk: Talk) -> CostedCall:
    talk.messages.append(talk.message())
    return talk.save()


def replaced_at(place: int) -> Change:
    """A save of messages after the message at *place* was replaced."""

    def change(talk: Talk) -> CostedCall:
        talk.messages[place] = talk.message()
        return talk.save()

    return change


def _cut(talk: Talk) -> CostedCall:
    del talk.messages[-3:]
    return talk.save()


def _appended(talk: Talk) -> CostedCall:
    added = [talk.message(), talk.message()]
    talk.messages += added
    return lambda store: store.append_messages(talk.agent_id, added)


def _one_more_call(talk: Talk) -> CostedCall:
    talk.calls.append(talk.call())
    return talk.save_calls()


def _last_call_changed(talk: Talk) -> CostedCall:
    talk.calls[-1] = talk.calls[-1].replace(state="FAILED", result=_text(len(talk.calls), 500))
    return talk.save_calls()


def call_changed_at(place: int) -> Change:
    """A save of tool calls after the call at *place* got another result."""

    def change(talk: Talk) -> CostedCall:
        talk.calls[place] = talk.calls[place].replace(result=talk.message().text)
        return talk.save_calls()

    return change


def first_call_upserted(talk: Talk) -> CostedCall:
    """An upsert of the first tool call."""
    changed = talk.calls[0] = talk.calls[0].replace(result=talk.message().text)
    return lambda store: store.upsert_tool_call_records(talk.agent_id, [changed])


def _cut_calls(talk: Talk) -> CostedCall:
    del talk.calls[-2:]
    return talk.save_calls()


def _upserted(talk: Talk) -> CostedCall:
    changed = talk.calls[-1].replace(state="SEALED", result=_text(-len(talk.calls), 500))
    added = talk.call()
    talk.calls[-1:] = [changed, added]
    return lambda store: store.upsert_tool_call_records(talk.agent_id, [changed, added])


def _turn(talk: Talk) -> CostedCall:
    message, call, event = talk.message(), talk.call(), talk.event()
    talk.messages.append(message)
    talk.calls.append(call)
    todos = samples.todos(message.text)
    return lambda store: store.save_turn(
        talk.agent_id, append=[message], upsert_tool_calls=[call], todos=todos, events=[event]
    )


def _whole_turn(talk: Talk) -> CostedCall:
    talk.messages.append(talk.message())
    talk.calls.append(talk.call())
    return lambda store: store.save_turn(talk.agent_id, messages=talk.messages, tool_calls=talk.calls)


_LISTS: Final[Mapping[str, Change]] = {
    "save_messages of a list with one more at its end": _one_more,
    "save_messages of the same list again": Talk.save,
    "save_messages of a list whose last message was replaced": replaced_at(-1),
    "save_messages of a list whose sixth message from its end was replaced": replaced_at(-6),
    "save_messages of a list whose first message was replaced": replaced_at(0),
    "append_messages of two": _appended,
    "save_messages of a list that lost its last three": _cut,
    "save_tool_call_records of a list with one more at its end": _one_more_call,
    "save_tool_call_records of the same list again": Talk.save_calls,
    "save_tool_call_records of a list whose last call changed": _last_call_changed,
    "upsert_tool_call_records of the last call and of another": _upserted,
    "save_tool_call_records of a list whose first call changed": call_changed_at(0),
    "upsert_tool_call_records of the first call": first_call_upserted,
    "save_tool_call_records of a list that lost its last two": _cut_calls,
    "save_turn that adds one record to each list": _turn,
    "save_turn of both lists with one more at their ends": _whole_turn,
}
"""Changes of the two lists after which most records stay where they were."""


def _events(talk: Talk) -> CostedCall:
    events = [talk.event(), talk.event()]
    return lambda store: store.append_events(talk.agent_id, events)


def _event(talk: Talk) -> CostedCall:
    event = talk.event()
    return lambda store: store.append_event(talk.agent_id, event)


def _info(talk: Talk) -> CostedCall:
    info = samples.info(talk.agent_id, metadata={"userId": talk.message().text[:20]})
    return lambda store: store.save_info(talk.agent_id, info)


def _todos(talk: Talk) -> CostedCall:
    todos = samples.todos(talk.message().text)
    return lambda store: store.save_todos(talk.agent_id, todos)


_BLIND: Final[Mapping[str, Change]] = {
    "append_messages of two": _appended,
    "append_events of two": _events,
    "append_event": _event,
    "save_info": _info,
    "save_todos": _todos,
    "save_snapshot": lambda talk: lambda store: store.save_snapshot(talk.agent_id, samples.snapshot()),
    "save_history_window": lambda talk: lambda store: store.save_history_window(talk.agent_id, samples.window()),
    "save_compression_record": lambda talk: (
        lambda store: store.save_compression_record(talk.agent_id, samples.compression())
    ),
    "save_recovered_file": lambda talk: lambda store: store.save_recovered_file(talk.agent_id, samples.recovered()),
    "save_media_cache": lambda talk: lambda store: store.save_media_cache(talk.agent_id, [samples.media()]),
}
"""Writes whose arguments contain no stored records."""


# --- the comparison ---------------------------------------------------------------------------------------------------

_Costs = dict[str, list[int]]
"""By counter, what each round of a call cost."""


class _Growth(NamedTuple):
    """A cost that grows with the list, and whether the backend's own counter saw it."""

    sentence: str
    is_backends: bool


class _Comparison:
    """The costs of calls for an agent with short lists, and for one with long ones."""

    def __init__(self, ctx: Context, short: Talk, long: Talk, *, rounds: int, memory: bool) -> None:
        self._ctx, self._short, self._long, self._rounds, self._memory = ctx, short, long, rounds, memory
        self._limit = long.whole // _SHARE

    async def see(self, meter: Meter, calls: Mapping[str, Change], case: str) -> None:
        """Make each call some times, by the instances in turn: none may cost more with the long lists, by any counter,
        nor may all together.

        A server's counter includes its own maintenance and the writes of other clients. A growth that this counter
        alone shows is measured again once the server is quiet.

        Raises:
            Unverified: no counter sees the writes.
        """
        found = await self._growth(meter, calls, case)
        for _ in range(_TRIES - 1):
            if found is None or not found.is_backends:
                break
            await meter.wait_until_quiet()
            found = await self._growth(meter, calls, case)
        self._ctx.true(found is None, "" if found is None else found.sentence)

    async def _growth(self, meter: Meter, calls: Mapping[str, Change], case: str) -> _Growth | None:
        all_short: _Costs = {}
        all_long: _Costs = {}
        for name, change in calls.items():
            short = await self._measured(meter, self._short, change)
            long = await self._measured(meter, self._long, change)
            for counter, before in short.items():
                usual = (statistics.median_low(before), statistics.median_low(long[counter]))
                if grown := self._grown(*usual, counter, f"{name}, {case},"):
                    return grown
                all_short.setdefault(counter, []).extend(before)
                all_long.setdefault(counter, []).extend(long[counter])
        telling = [counter for counter, costs in all_short.items() if sum(costs) > _LEAST * len(costs)]
        if not telling:
            raise Unverified("how much the store writes cannot be counted from outside: the harness has no hook costs")
        every = f"each of these {len(calls)} calls, {case},"
        found = (self._grown(_mean(all_short[one]), _mean(all_long[one]), one, every) for one in telling)
        return next(filter(None, found), None)

    async def _measured(self, meter: Meter, talk: Talk, change: Change) -> _Costs:
        costs: _Costs = {}
        for store in itertools.islice(itertools.cycle(meter.stores), self._rounds):
            call = change(talk)
            for counter, cost in (await meter.cost(lambda: call(store), memory=self._memory)).items():  # noqa: B023
                costs.setdefault(counter, []).append(cost)
        return costs

    def _grown(self, before: int, after: int, counter: str, what: str) -> _Growth | None:
        if after <= before + self._limit:
            return None
        sentence = (
            f"{what} costs {before:,} {counter} where there are {self._short.count} records of a kind, and {after:,} "
            f"where there are {self._long.count:,} records, {self._long.whole:,} bytes together"
        )
        return _Growth(sentence, is_backends=counter == HOOK)


def _mean(costs: list[int]) -> int:
    """The average cost of a call, without the dearest few."""
    kept = sorted(costs)[: len(costs) - len(costs) // _RARE]
    return sum(kept) // len(kept)


async def see_costs(ctx: Context, long: tuple[int, int], short: tuple[int, int], calls: Mapping[str, Change]) -> None:
    """The calls cost about the same with lists of both (count, size), by one instance and by two in turns."""
    with sending() as sent:
        both = await meter(ctx, sent, instances=2)
        first = Meter(ctx, both.stores[:1], both.layers[:1], sent)
        few = Talk("short", *short)
        await few.begin(first.stores[0])
        is_slow = first.seconds > _SLOW_S
        many = Talk("long", min(long[0], _LONG_FOR_THE_SLOW) if is_slow else long[0], long[1])
        await many.begin(first.stores[0])
        in_memory = calls is _BLIND and first.is_in_memory
        comparison = _Comparison(ctx, few, many, rounds=_FEW_ROUNDS if is_slow else _ROUNDS, memory=in_memory)
        await comparison.see(first, calls, "by the instance that wrote them")
        await comparison.see(both, calls, "by two instances in turns")
    for talk in (few, many):
        ctx.equal(await ctx.store.load_messages(talk.agent_id), talk.messages, "the messages in the end")
        ctx.equal(await ctx.store.load_tool_call_records(talk.agent_id), talk.calls, "the tool calls in the end")


# --- the checks -------------------------------------------------------------------------------------------------------

_UNDER: Final = (Dimension.COSTS, Dimension.ITEMS, Dimension.CHANGES, Dimension.INSTANCES)


@check("MSG-5", "TC-1", under=_UNDER)
async def saving_costs_what_changed(ctx: Context) -> None:
    """A save of a list that kept its beginning writes no more the longer that is, for messages and tool calls, however
    the end changed and whichever instance saved it before.
    """
    await see_costs(ctx, (LONG[ctx.settings.tier], 500), (SHORT, 500), _LISTS)


@check("MSG-5", "TC-1", tier=Tier.STANDARD, under=(*_UNDER, Dimension.LENGTHS))
async def saving_costs_what_changed_next_to_large_records(ctx: Context) -> None:
    """A save of a small change writes no more for the large records that stay in the list."""
    await see_costs(ctx, (20, 50_000), (SHORT, 50), _LISTS)


@check("MSG-5", "EVT-1", "MSG-8", under=_UNDER)
async def what_is_saved_beside_long_lists_costs_the_same(ctx: Context) -> None:
    """An append writes no more the longer the list or the log is, and a save of another kind writes neither again."""
    await see_costs(ctx, (LONG[ctx.settings.tier], 500), (SHORT, 500), _BLIND)
