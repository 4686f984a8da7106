"""MSG-5, TC-1: the cost of saves that change a list now here and now there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from kode_conformance.checks.costs import (
    LONG,
    SHORT,
    Change,
    CostedCall,
    Talk,
    call_changed_at,
    first_call_upserted,
    replaced_at,
    see_costs,
)
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.registry import check
from kode_conformance.settings import Tier
from kode_core.protocols import ExtendedStore


def _more(talk: Talk) -> CostedCall:
    talk.messages += [talk.message(), talk.message()]
    return talk.save()


def _fewer(talk: Talk) -> CostedCall:
    del talk.messages[-2:]
    return talk.save()


def _appended(talk: Talk) -> CostedCall:
    added = [talk.message()]
    talk.messages += added
    return lambda store: store.append_messages(talk.agent_id, added)


def _turn(talk: Talk) -> CostedCall:
    added = [talk.message()]
    talk.messages += added
    return lambda store: store.save_turn(talk.agent_id, append=added)


def _in_turns(*changes: Change) -> Change:
    """The changes one after the other, as one call."""

    def change(talk: Talk) -> CostedCall:
        async def save(store: ExtendedStore) -> None:
            for one in changes:
                await one(talk)(store)

        return save

    return change


_ORDERS: Final[Mapping[str, Change]] = {
    "save_messages with the first and the last replaced in turns": _in_turns(replaced_at(0), replaced_at(-1)),
    "save_messages with the last and one in the middle replaced in turns": _in_turns(replaced_at(-1), replaced_at(20)),
    "append_messages and save_messages with the first replaced in turns": _in_turns(_appended, replaced_at(0)),
    "save_messages of a list that grows and shrinks in turns": _in_turns(_more, _fewer),
    "save_turn, save_messages with the first replaced, and append_messages in turns": _in_turns(
        _turn, replaced_at(0), _appended
    ),
    "save_tool_call_records with the first and the last changed in turns": _in_turns(
        call_changed_at(0), call_changed_at(-1)
    ),
    "upsert_tool_call_records of the first and save_tool_call_records with the last changed in turns": _in_turns(
        first_call_upserted, call_changed_at(-1)
    ),
}
_UNDER: Final = (Dimension.ORDERS, Dimension.COSTS, Dimension.CHANGES, Dimension.INSTANCES)


@check("MSG-5", "TC-1", tier=Tier.STANDARD, under=_UNDER)
async def saving_in_turns_costs_what_changed(ctx: Context) -> None:
    """Saves that change the beginning and the end of a list in turns, or add and replace, by whichever method, write no
    more the longer the list is.
    """
    await see_costs(ctx, (LONG[ctx.settings.tier], 500), (SHORT, 500), _ORDERS)
