"""VAL-2: what every method that writes refuses."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from enum import IntEnum, StrEnum
from typing import Any, Final

from kode_conformance.calls.methods import drive
from kode_conformance.calls.ways import held
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import keeps_documents
from kode_conformance.histories.model import StoreModel
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.fields import Field, Holds, fields_of, full, of_agent, put
from kode_conformance.values.kinds import Kind, WriteMethod, kinds
from kode_conformance.values.payloads import PAYLOADS
from kode_core.errors import InvalidArgumentError, InvalidValueError, KodeError
from kode_core.model import AgentEvent, AgentRecords, Message, PutDocument
from kode_core.protocols import ExtendedStore

_D = Dimension
_REFUSED: Final = [payload for payload in PAYLOADS if not payload.is_json and "5000" not in payload.name]
_ALWAYS: Final = [payload for payload in _REFUSED if payload.name in ("nan", "datetime_aware")]


_TOPS: Final = [
    payload._replace(name=f"{payload.name}, by itself", value=next(iter(payload.value.values())))
    for payload in _REFUSED
    if len(payload.value) == 1 and not payload.name.endswith("_key")
]
"""The same, where they are the whole value of a field."""


_KEYS: Final = [
    payload._replace(name=f"{payload.name}, at the top") for payload in _REFUSED if payload.name.endswith("_key")
]
"""Keys that are refused, where they are the first keys of a field."""


def _free(kind: Kind) -> Sequence[Field]:
    """The fields for JSON, of the record itself and one of each record inside that is saved alone as well."""
    loose = (Holds.JSON, Holds.DICT, Holds.SPREAD)
    fields = [field for field in fields_of(kind.record) if field.holds in loose]
    return list({(f.path[0] if f.path[0] in ("messages", "events") else f.path): f for f in fields}.values())


@check("VAL-2", "TURN-1", tier=Tier.STANDARD, under=(_D.ORDERS,))
async def every_method_refuses_what_json_cannot_carry(ctx: Context) -> None:
    """Every method that writes refuses values that JSON cannot carry, wherever in its records they are; of the other
    records of the call, and of all other parts of a turn, nothing is written.
    """
    model, number = StoreModel(), 0
    for kind in kinds().values():
        writer = kind.writers[0]
        record = of_agent(full(kind.record), "a")
        getattr(model, writer.method)("a", **writer.given(record))
        await getattr(ctx.store, writer.method)("a", **writer.given(record))
    cases = [(kind, writer) for kind in kinds().values() for writer in kind.writers]
    for kind, writer in in_time(ctx, cases):
        for field in _free(kind):
            number += 2
            turn = [_REFUSED[i % len(_REFUSED)] for i in range(number, number + 2)]
            rest = _REFUSED if writer.method != "save_turn" else turn
            tops = _TOPS if field.holds is Holds.JSON and writer.method != "save_turn" else ()
            for payload in (*_ALWAYS, *rest, *tops, *_KEYS):
                is_whole = field.holds is Holds.JSON or payload in _KEYS
                value = payload.value if is_whole else {"new": payload.value}
                bad = put(full(kind.record, 1), field, value)
                alone = {writer.parameter: [bad] if writer.many else of_agent(bad, "a")}
                call = alone if payload not in (*_ALWAYS, *turn) else _call(kind, writer, bad)
                what = f"{payload.name} in {field.name}, given to {writer.method}({writer.parameter}=)"
                await ctx.raises(InvalidValueError, getattr(ctx.store, writer.method)("a", **call), what)
        await _unchanged(ctx, model, f"after {writer.method}({writer.parameter}=) refused")


_Give = Callable[[ExtendedStore, Any], Awaitable[object]]


def _others() -> Mapping[str, _Give]:
    """The other methods that write JSON of the caller's, each given a value: they take no record of a kind, or write
    one only where there is none, or under a key, or in the place of another.
    """
    asked = {
        "update_info": lambda store, value: store.update_info("a", {"new": value}),
        "create_agent": lambda store, value: store.create_agent("b", samples.info("b", metadata={"new": value})),
        "replace_message": lambda store, value: store.replace_message("a", 0, _message(value)),
        "import_agent": lambda store, value: store.import_agent("b", _records(value)),
        "emit": lambda store, value: store.emit("a", "type", {"new": value}),
        "emit_many": lambda store, value: store.emit_many("a", [AgentEvent("progress", "type", {"new": value})]),
    }
    if keeps_documents():
        asked |= {
            "append_messages_once": lambda store, value: store.append_messages_once("a", {"k": _message(value)}),
            "put_document": lambda store, value: store.put_document("a", "c", "k", value),
            "write_documents": lambda store, value: store.write_documents("a", [PutDocument("c", "k", value)]),
            "save_turn(documents=)": lambda store, value: store.save_turn(
                "a", documents=[PutDocument("c", "k", value)]
            ),
        }
    return asked


def _message(value: Any) -> Message:
    return samples.message().replace(metadata={"new": value})


def _records(value: Any) -> AgentRecords:
    return AgentRecords(agent_id="b", messages=[_message(value)], message_times=[samples.T0])


_TEXTS: Final[Mapping[str, _Give]] = {
    "the text of replace_message": lambda store, text: store.replace_message("a", 0, samples.message(text=text)),
    "template_id of create_agent": lambda store, text: store.create_agent("b", samples.info("b", template_id=text)),
    "the type of emit": lambda store, text: store.emit("a", text),
    "a key of update_info": lambda store, text: store.update_info("a", {"sound": 1, text: 2}),
    "a key of emit": lambda store, text: store.emit("a", "type", {"sound": 1, text: 2}),
}
"""Texts and names of keys that these methods take."""
_HALVES: Final = ("\ud83d\ude00", "x\ud83d\ude00y", "\udbff\udfff", "\ud800\udc00", "\ude00\ud83d\ude00")
"""Texts of which two adjacent code points form a surrogate pair."""


@check("VAL-2", "INFO-4", "INFO-5", "MSG-11", "MSG-12", "EVT-8", "DOC-1", needs=Capability.EXTENDED, under=(_D.ORDERS,))
async def methods_without_records_refuse_what_json_cannot_carry(ctx: Context) -> None:
    """Updates of metadata, edits, emits, documents, imports and calls that create an agent refuse each value that JSON
    cannot carry, alone, as a key and inside others, and texts of surrogates that JSON would join; nothing is written.
    """
    await ctx.store.save_turn("a", info=samples.info("a"), messages=samples.messages(2), events=samples.events(1))
    before = await ctx.store.load_agent("a")
    ctx.true(before is not None, "an agent must be there before calls are refused")
    cases = [(name, give, one.name, one.value) for name, give in _others().items() for one in (*_REFUSED, *_TOPS)]
    cases += [(name, give, "a pair of surrogates", text) for name, give in _TEXTS.items() for text in _HALVES]
    cases += [(name, give, "a pair of surrogates", text) for name, give in _others().items() for text in _HALVES]
    ctx.rng.shuffle(cases)
    for name, give, what, value in in_time(ctx, cases):
        await ctx.raises(InvalidValueError, give(ctx.store, value), f"{what}, given to {name}")
    ctx.equal(await ctx.store.load_agent("a"), before, "the agent after values were refused")
    ctx.equal(await ctx.store.load_agent("b"), None, "an agent of which all was refused")


class _Word(StrEnum):
    WORD = "active"


class _Number(IntEnum):
    SEVEN = 7


class _Text(str):
    __slots__ = ()


_TYPED: Final[Mapping[Holds, Sequence[Any]]] = {
    Holds.TEXT: (_Word.WORD, _Text("x"), b"x", "\ud83d\ude00"),
    Holds.KEY: (_Word.WORD, _Text("x"), "\ud83d\ude00"),
    Holds.WHOLE: (_Number.SEVEN, True, 7.0, "7"),
    Holds.NUMBER: (_Number.SEVEN, True, "7"),
    Holds.TIME: (_Number.SEVEN, True, 7.0),
    Holds.BOOL: (1, 0, "true", _Number.SEVEN),
}
"""Values that look like what a field holds and are of another type, or of another text where JSON joins a pair."""


def _typed(field: Field) -> Sequence[Any]:
    if field.holds is Holds.CHOICE:
        choice = field.options[0]
        return (StrEnum("Choice", {"ONE": choice}).ONE, _Text(choice)) if isinstance(choice, str) else ()  # type: ignore[attr-defined]
    return _TYPED.get(field.holds, ())


@check("VAL-2", "ID-4", "OPS-17", absence_ok=True, under=(_D.LOOKALIKES, _D.INSTANCES))
async def every_field_refuses_what_is_of_another_type(ctx: Context) -> None:
    """A value that is nearly of the type of its field, a member of an Enum, an instance of a subclass of str, True for
    a number or 7.0 for 7, is refused in every field of every record, by every method, and nothing is written. So is a
    text of two surrogates that JSON would join.
    """
    cases = [(kind, writer) for kind in kinds().values() for writer in kind.writers]
    for kind, writer in in_time(ctx, cases):
        for field in fields_of(kind.record):
            for value in _typed(field):
                call = _call(kind, writer, put(full(kind.record, 1), field, value))
                what = f"{value!r} of {type(value).__name__} in {field.name}, given to {writer.method}"
                refused = getattr(ctx.store, writer.method)("b", **call)
                error = await ctx.raises(KodeError, refused, what)
                is_right = isinstance(error, (InvalidValueError, InvalidArgumentError))
                ctx.true(is_right, f"{what} raised {type(error).__name__}")
    await _unchanged(ctx, StoreModel(), "after values of other types were refused", "b")


def _call(kind: Kind, writer: WriteMethod, bad: Any) -> dict[str, Any]:
    """The call with the bad record among good ones; of a turn, next to all other parts that go with it."""
    several = [full(kind.record, 2), bad, full(kind.record, 3)]
    call: dict[str, Any] = {writer.parameter: several if writer.many else of_agent(bad, "a")}
    if writer.method == "save_turn":
        for other in kinds().values():
            if other is not kind:
                part = next((w for w in other.writers if w.method == "save_turn"), None)
                if part is not None:
                    call |= part.given(of_agent(full(other.record, 4), "a"))
    return call


async def _unchanged(ctx: Context, model: StoreModel, when: str, agent_id: str = "a") -> None:
    for kind in kinds().values():
        method = kind.whole.method
        found = await drive(getattr(ctx.store, method), {"agent_id": agent_id})
        ctx.equal(found, held(model, method, agent_id), f"{method}, {when}")
