"""MSG-5, TC-1: the cost of saves that change a list now here and now there."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from kode_conformance.checks.costs import LONG, SHORT, Talk, see_costs
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import check
from kode_core.protocols import ExtendedStore

_Change = Callable[[Talk], Any]


def _at(place: int) -> _Change:
    """A save of messages of which one was replaced."""

    def change(talk: Talk) -> Any:
        talk.messages[place] = talk.message()
        return talk.save()

    return change


def _call_at(place: int) -> _Change:
    def change(talk: Talk) -> Any:
        talk.calls[place] = talk.calls[place].replace(result=talk.message().text)
        return talk.save_calls()

    return change


def _upserted_at(place: int) -> _Change:
    def change(talk: Talk) -> Any:
        changed = talk.calls[place] = talk.calls[place].replace(result=talk.message().text)
        return lambda store: store.upsert_tool_call_records(talk.agent_id, [changed])

    return change


def _more(talk: Talk) -> Any:
    talk.messages += [talk.message(), talk.message()]
    return talk.save()


def _fewer(talk: Talk) -> Any:
    del talk.messages[-2:]
    return talk.save()


def _appended(talk: Talk) -> Any:
    added = [talk.message()]
    talk.messages += added
    return lambda store: store.append_messages(talk.agent_id, added)


def _turn(talk: Talk) -> Any:
    added = [talk.message()]
    talk.messages += added

    async def save(store: ExtendedStore) -> None:
        await store.save_turn(talk.agent_id, append=added)

    return save


def _in_turns(*changes: _Change) -> _Change:
    """One of the changes after the other, for each agent from the first on."""
    going: dict[str, Iterator[_Change]] = {}

    def change(talk: Talk) -> Any:
        return next(going.setdefault(talk.agent_id, itertools.cycle(changes)))(talk)

    return change


def _orders() -> Mapping[str, _Change]:
    return {
        "save_messages with the first and the last replaced in turns": _in_turns(_at(0), _at(-1)),
        "save_messages with the last and one in the middle replaced in turns": _in_turns(_at(-1), _at(20)),
        "append_messages and save_messages with the first replaced in turns": _in_turns(_appended, _at(0)),
        "save_messages of a list that grows and shrinks in turns": _in_turns(_more, _fewer),
        "save_turn, save_messages with the first replaced, and append_messages in turns": _in_turns(
            _turn, _at(0), _appended
        ),
        "save_tool_call_records with the first and the last changed in turns": _in_turns(_call_at(0), _call_at(-1)),
        "upsert_tool_call_records of the first and save_tool_call_records with the last changed in turns": _in_turns(
            _upserted_at(0), _call_at(-1)
        ),
    }


_UNDER: Final = (Dimension.ORDERS, Dimension.COSTS, Dimension.CHANGES, Dimension.INSTANCES)


@check("MSG-5", "TC-1", under=_UNDER)
async def saving_in_turns_costs_what_changed(ctx: Context) -> None:
    """Saves that change the beginning and the end of a list in turns, or add and replace, by whichever method, write no
    more the longer the list is.
    """
    await see_costs(ctx, (LONG[ctx.settings.tier], 500), (SHORT, 500), _orders())
