"""VAL: every value of each table in every field of every kind, through every method that writes it or gives it back."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from string import ascii_lowercase
from typing import Any, Final

from kode_conformance.calls.ways import all_come_back, changes_come_back, come_back
from kode_conformance.context import Context
from kode_conformance.dimensions import FRACTIONS, INTEGERS, LOOKALIKES, TIMES, Dimension, lengths, text_of, twins
from kode_conformance.registry import check
from kode_conformance.settings import Tier
from kode_conformance.values.fields import (
    EQUAL,
    NEAR,
    Field,
    Holds,
    Values,
    alone,
    fields_of,
    full,
    made,
    of_agent,
    put,
    value_in,
)
from kode_conformance.values.kinds import Gives, Kind, ReadMethod, kinds
from kode_core.model import AgentInfo
from kode_core.protocols import ExtendedStore

_MAX_KEY: Final = 4096
_D = Dimension


def _twice(text: str) -> Any:
    return [text, {"k": text}]


def text_values(texts: Sequence[str], inside: Callable[[str], Any] = _twice) -> Values:
    """Texts as they are, and in dicts as keys and *inside* their values."""
    keys = [text for text in texts if _is_key(text)]

    def values(field: Field) -> Sequence[Any]:
        if field.holds in (Holds.TEXT, Holds.JSON):
            return texts
        if field.holds is Holds.KEY:
            return keys
        if field.holds in (Holds.DICT, Holds.SPREAD):
            return [{"newer" if text in field.options else text: inside(text)} for text in texts]
        return ()

    return values


def _is_key(text: str) -> bool:
    """True if ID-4 allows *text* as a key."""
    try:
        return "\0" not in text and 0 < len(text.encode()) <= _MAX_KEY
    except UnicodeEncodeError:
        return False


@check("VAL-1", "VAL-6", "ID-4", under=(_D.LOOKALIKES, _D.INSTANCES))
async def every_text_in_every_field(ctx: Context) -> None:
    """A text that looks like something else comes back as the same text from every field, as a value and as a key, by
    every method, from every instance, from forks, and after the store was opened again.
    """
    await come_back(ctx, text_values(LOOKALIKES), shares=True)


def number_values(field: Field) -> Sequence[Any]:
    numbers: tuple[int | float, ...] = (*INTEGERS, *FRACTIONS)
    if field.holds in (Holds.JSON, Holds.DICT, Holds.SPREAD):
        numbers = (*numbers, 2**63, 2**64, 10**40, 10**22 + 1, 10**400)
    if field.holds is Holds.JSON:
        return numbers
    if field.holds in (Holds.DICT, Holds.SPREAD):
        return [{"n": number, "m": [number, {"k": -number}]} for number in numbers]
    return {
        Holds.WHOLE: INTEGERS,
        Holds.NUMBER: numbers,
        Holds.TIME: (*TIMES, *INTEGERS),
        Holds.BOOL: (True, False),
    }.get(field.holds, ())


@check("VAL-1", "VAL-5", "HIS-1", "HIS-2", "SNAP-1", under=(_D.NUMBERS, _D.INSTANCES))
async def every_number_in_every_field(ctx: Context) -> None:
    """Numbers and times at the edges of their types come back to the last bit, whole or fractional as they were, from
    every field, by every method, from every instance, from forks, and after the store was opened again.
    """
    await come_back(ctx, number_values, shares=True)


_SHORT: Final = 8_193
_TEXTS: Final = 200
"""More texts than there are in a record."""
_WIDEST: Final = 100_001
"""Longer than the columns, index entries and lines of other systems, in quick runs."""


_TWO_BYTES: Final = {ord(letter): "é" for letter in ascii_lowercase}


@functools.cache
def _of_length(length: int, form: int) -> str:
    """A text that ends at a limit, one that has a character of four bytes across it, one whose letters have two bytes,
    and one that ends with half a pair, which UTF-8 cannot tell; each tells its length.
    """
    text = f"{length}:{text_of(length)}"[:length]
    return (text, f"{text[:-1]}\U0001f600", text[:6] + text[6:].translate(_TWO_BYTES), f"{text[:-1]}\udc80")[form % 4]


def _lengths(ctx: Context) -> Values:
    """Texts of each length in all forms; where time is short, in one form, which changes from field to field."""
    longest = {Tier.QUICK: 3073, Tier.STANDARD: 4097}.get(ctx.settings.tier, _SHORT)
    known = lengths(up_to=min(longest, _limit(ctx) // _TEXTS))

    def values(field: Field) -> Sequence[Any]:
        most = {Tier.QUICK: 0, Tier.STANDARD: 1025}.get(ctx.settings.tier, _SHORT)
        texts = [
            _of_length(length, form + i)
            for i, length in enumerate(known)
            for form in (range(4) if length <= most else [field.number])
        ]
        return text_values(list(dict.fromkeys(texts)), str)(field)

    return values


@check("VAL-1", "VAL-4", "ID-4", under=(_D.LENGTHS, _D.INSTANCES))
async def every_length_in_every_field(ctx: Context) -> None:
    """A text of any length comes back whole from every field, as a value and as a key, also where a character of
    several bytes begins within a limit and ends beyond it.
    """
    await come_back(ctx, _lengths(ctx), shares=True)


@check("VAL-4", "VAL-1", tier=Tier.STANDARD, under=(_D.LENGTHS,))
async def every_field_takes_long_texts(ctx: Context) -> None:
    """A text that is longer than columns and lines of other systems comes back whole from every field of every record,
    as a value and as a key, with characters of any width and halves of pairs.
    """
    long = [length for length in lengths() if length > _SHORT] if ctx.settings.tier > Tier.QUICK else [_WIDEST]
    most = _limit(ctx) // _TEXTS

    def values(field: Field) -> Sequence[Any]:
        longest = [_of_length(length, field.number + i) for i, length in enumerate(long) if length < most]
        forms = [_of_length(min(_SHORT, most), form) for form in range(4)]
        return text_values([*longest, *forms], str)(field) if _is_own(field) else ()

    await come_back(ctx, values, once=True)


def _limit(ctx: Context) -> int:
    return ctx.harness.limits.max_payload_bytes or 2**40


def _is_own(field: Field) -> bool:
    """True unless the field is a part of a record that is saved alone as well."""
    return not any(step in ("messages", "events") for step in field.path)


def _falsy(field: Field) -> Sequence[Any]:
    return {
        Holds.TEXT: ("",),
        Holds.WHOLE: (0,),
        Holds.NUMBER: (0, 0.0, -0.0),
        Holds.TIME: (0,),
        Holds.BOOL: (False,),
        Holds.JSON: (0, 0.0, False, "", [], {}),
        Holds.DICT: ({}, {"": None}),
        Holds.SPREAD: ({"newer": None}, {"newer": 0}),
    }.get(field.holds, ())


@check("VAL-3", "VAL-1", "VAL-6", under=(_D.EQUALS, _D.INSTANCES))
async def every_field_may_stand_alone(ctx: Context) -> None:
    """A field comes back where all others are absent, also when its value is falsy, and is absent where all others are
    set; lists inside records may be empty.
    """
    every: dict[type[Any], list[Any]] = {}
    for root in kinds():
        known = every[root] = []
        for field in fields_of(root):
            values = _falsy(field) if _is_own(field) else _falsy(field)[:1]
            known += [alone(field, value, len(known) + i) for i, value in enumerate(values)]
            if field.optional:
                known.append(put(full(root, len(known)), field, None))
    await all_come_back(ctx, every)


_INTERNAL: Final = (
    *("_id", "id", "rowid", "pk", "sk", "PK", "SK", "key", "kind", "type", "_type", "value", "data", "body", "payload"),
    *("doc", "_doc", "record", "content", "text", "name", "role", "state", "status", "user_id", "userId", "messages"),
    *("agentId", "agent_id", "agent", "position", "index", "order", "offset", "seq", "channel", "cursor", "event"),
    *("createdAt", "created_at", "updatedAt", "updated_at", "timestamp", "time", "ts", "ttl", "expires", "deleted"),
    *(
        "version",
        "_version",
        "__v",
        "_rev",
        "_etag",
        "revision",
        "digest",
        "hash",
        "checksum",
        "size",
        "count",
        "score",
    ),
    *(
        "extra",
        "meta",
        "metadata",
        "fields",
        "attributes",
        "path",
        "self",
        "cls",
        "args",
        "kwargs",
        "__class__",
        "None",
    ),
)
"""Names that stores give to fields that they add to a record."""


@check("VAL-6", "VAL-1", under=(_D.LOOKALIKES, _D.INSTANCES))
async def unknown_fields_may_have_any_name(ctx: Context) -> None:
    """Unknown fields, and keys of dicts, come back whatever they are called, also as stores call what they add to a
    record themselves, also hundreds of them in one dict, in the order given.
    """
    names = list(dict.fromkeys([*_INTERNAL, *LOOKALIKES, *twins()]))

    def values(field: Field) -> Sequence[Any]:
        if field.holds not in (Holds.DICT, Holds.SPREAD, Holds.JSON):
            return ()
        mine = [name for name in names if name not in field.options]
        texts: dict[str, Any] = {name: f"of {name}" for name in mine}
        return [texts, {name: i for i, name in enumerate(mine[::-1])}]

    await come_back(ctx, values, shares=True)


@check("VAL-1", "MSG-1", "TC-1", "EVT-4", "HIS-1", "INFO-1", under=(_D.EQUALS, _D.CHANGES, _D.INSTANCES))
async def a_change_of_one_field_is_a_change(ctx: Context) -> None:
    """When one field of a record changes to a value that many comparisons take for equal, such as 1 to 1.0 or to True,
    another order of keys or another lone surrogate, every method stores the new record; an event that differs in this
    way is another event.
    """

    def records(root: type[Any], equal: int, near: int) -> list[Any]:
        cells = {**{holds: v[equal] for holds, v in EQUAL.items()}, **{holds: v[near] for holds, v in NEAR.items()}}
        fields = [field for field in fields_of(root) if field.holds in cells and _is_own(field)]
        return [put(full(root, i), field, cells[field.holds]) for i, field in enumerate(fields)]

    phases = [(0, 0), (1, 0), (2, 0), (3, 1)]
    if ctx.settings.tier is not Tier.QUICK:
        phases += [(4, 2), (5, 3)]
    await changes_come_back(ctx, [{root: records(root, *phase) for root in kinds()} for phase in phases])


@check("VAL-6", "VAL-1", under=(_D.CHANGES, _D.INSTANCES))
async def what_was_loaded_can_be_saved(ctx: Context) -> None:
    """Records that one instance loaded, with every field, known or not, can be saved by another instance under another
    agent, by every method, and are the same there.
    """
    other = await ctx.another()
    for kind in kinds().values():
        first = kind.writers[-1]
        for number in range(2):
            agent_id, record = f"{kind.record.__name__}-{number}", full(kind.record, number)
            if isinstance(record, AgentInfo):
                record = record.replace(agent_id=agent_id)
            given = {first.parameter: [record] if first.many else record}
            await getattr(ctx.store, first.method)(agent_id, **given)
            for reader in kind.readers:
                if reader.gives in (Gives.LIST, Gives.ONE):
                    await _saved_again(ctx, other, kind, reader, agent_id)


async def _saved_again(ctx: Context, other: ExtendedStore, kind: Kind, reader: ReadMethod, agent_id: str) -> None:
    loaded = await getattr(other, reader.method)(agent_id)
    records = [loaded] if reader.gives is Gives.ONE else list(loaded)
    ctx.true(records and records != [None], f"{reader.method} must give what was saved")
    for writer in kind.writers:
        target = f"{agent_id}-{writer.method}-{writer.parameter}"
        owned = [of_agent(one, target) for one in records]
        for given in [owned] if writer.many else owned:
            await getattr(other, writer.method)(target, **{writer.parameter: given})
        found = await getattr(ctx.store, reader.method)(target)
        wanted = owned[0] if reader.gives is Gives.ONE else owned
        ctx.equal(found, wanted, f"what {reader.method} gave, saved again by {writer.method}({writer.parameter}=)")


# --- over what stood there --------------------------------------------------------------------------------------------

_WHOLE: Final = tuple(int(("1234567890" * 430)[:digits]) for digits in (19, 20, 39, 40, 100, 4300))
_FRACTIONS: Final = (1.2345678901234567e-300, -9.87654321098765e300, 0.30000000000000004, 123456789.12345679, 1e23)
_ODD_KEYS: Final = ("", " ", "a.b", "Key", "key", "KEY", "k" * 300, "\u00e9" * 600, "$set", "0")


def _nested(value: Any) -> Any:
    """A value in lists and dicts that are in one another, under keys of all kinds."""
    for key in _ODD_KEYS:
        value = {key: value, f"{key}s": [value if key == "0" else None]}
    return value


def _deep(levels: int) -> Any:
    """Lists and dicts in one another, as many levels as are said."""
    value: Any = [] if levels % 2 else {}
    for level in range(levels - 1):
        value = {"k": value} if level % 2 else [value]
    return value


_ODD: Final[tuple[dict[str, Any], ...]] = (
    *({"n": -number, "m": [{"": number}]} for number in _WHOLE),
    {"f": _FRACTIONS[0], "": [*_FRACTIONS, {"": [-fraction for fraction in _FRACTIONS]}]},
    {key: dict.fromkeys(_ODD_KEYS[::-1]) for key in _ODD_KEYS[:6]},
    {"newer": _nested({})},
    {"Key": {"key": [], "KEY": {}}, "key": {"Key": "", "KEY": 0}, "": {"": {"": False}}},
    {"newer": _deep(99)},
)


def _odd(field: Field) -> Sequence[Any]:
    falsy = (*_falsy(field), None) if field.optional else _falsy(field)
    if field.holds is Holds.JSON:
        return (*_WHOLE, *_FRACTIONS[:2], *_ODD[len(_WHOLE) :], _deep(100))
    if field.holds is Holds.SPREAD:
        return (*falsy, *({key: one[key] for key in one if key not in field.options} for one in _ODD))
    return (*falsy, *_ODD) if field.holds is Holds.DICT else falsy


@check("VAL-1", "VAL-3", under=(_D.NUMBERS, _D.LOOKALIKES, _D.LENGTHS, _D.INSTANCES))
async def odd_json_in_every_field(ctx: Context) -> None:
    """Whole numbers of up to 4,300 digits, fractions of 17, values of a hundred levels, keys that are empty, long or
    differ in case only, deep in one another, come back from every field that takes JSON, by every method, where all
    other fields are falsy or absent.
    """
    await come_back(ctx, _odd)


_OVER: Final[dict[Holds, tuple[Any, ...]]] = {
    Holds.TEXT: ("", "0", "\u00e9\0\n" * 400, " a "),
    Holds.WHOLE: (0, -1, 2**53 + 1, -(2**63)),
    Holds.NUMBER: (0, 0.1 + 0.2, -0.0, 10**19),
    Holds.TIME: (0, -1, 253_402_300_800_000, 999),
    Holds.BOOL: (False, True),
    Holds.JSON: ("", 0, -0.0, {}, [], False, {"": None}, 10**40),
    Holds.DICT: ({}, {"": 0}, {"Key": 1.0, "key": 1}, {"n": 10**40, "a.b": [{}, []]}),
    Holds.SPREAD: ({"newer": 0}, {"Newer": {}, "newer": ""}, {"": -0.0}, {"n": 10**40, "a.b": [{}, []]}),
}
"""Values that replace others; the first one replaces a full value."""


@check(
    "VAL-1", "VAL-3", "MSG-1", "TC-1", "TC-3", "HIS-1", "INFO-1", "MED-1", "TODO-1", under=(_D.CHANGES, _D.INSTANCES)
)
async def every_value_replaces_another(ctx: Context) -> None:
    """When one field of a record that stays full otherwise changes, from one value to another, to a falsy one, or to
    None, the new value comes back, whichever method wrote the record before and whichever replaces it.
    """

    def records(root: type[Any], phase: int) -> list[Any]:
        own = [field for field in fields_of(root) if _is_own(field) and _over(field)]
        found = [_with(full(root, i), [field], phase) for i, field in enumerate(own)]
        inner = [field for field in fields_of(root) if not _is_own(field)]
        return [*found, _with(full(root, len(found)), inner, phase)] if inner else found

    phases = 4 if ctx.settings.tier is Tier.QUICK else 9
    rows_of = [{root: records(root, phase) for root in kinds()} for phase in range(phases)]
    await changes_come_back(ctx, rows_of, turning=True)


_HOLLOW: Final[dict[Holds, Any]] = {
    Holds.TEXT: "",
    Holds.JSON: {"a": [], "b": [[], {}, ""]},
    Holds.DICT: {"": {}, "a": [], "b": [[], {}, ""]},
    Holds.SPREAD: {"newer": [[], {}, ""]},
}


@check("VAL-1", "VAL-3", "TURN-1", "TC-3", "TODO-1", under=(_D.CHANGES, _D.INSTANCES))
async def what_is_empty_replaces_what_is_full(ctx: Context) -> None:
    """Records without any item in their lists, and others with empty lists, dicts and texts inside their values, take
    the place of full ones, and full ones theirs, by every method.
    """

    def records(root: type[Any], *, is_full: bool) -> list[Any]:
        if is_full:
            return [full(root, i) for i in range(2)]
        empty = made(root, lambda field: value_in(full(root, 0), field), lambda _: ())
        hollow = made(root, lambda field: _HOLLOW.get(field.holds, value_in(full(root, 1), field)))
        return [empty, hollow]

    phases = [{root: records(root, is_full=phase % 2 == 0) for root in kinds()} for phase in range(4)]
    await changes_come_back(ctx, phases, turning=True)


def _over(field: Field) -> Sequence[Any]:
    if field.holds is Holds.KEY or field.name == "RecoveredFile.timestamp":
        return ()
    values = field.options if field.holds is Holds.CHOICE else _OVER.get(field.holds, ())
    return (*values[:1], None, *values[1:]) if field.optional else values


def _with(record: Any, fields: Sequence[Field], phase: int) -> Any:
    for field in fields if phase else ():
        values = _over(field)
        if values:
            record = put(record, field, values[(phase - 1) % len(values)])
    return record
