"""What the suite finds in the types: every field of every record, and every method that writes or gives one."""

from __future__ import annotations

import inspect
from typing import Any, Final

import msgspec
import pytest
from kode_conformance.histories.model import StoreModel
from kode_conformance.values.fields import Field, Holds, alone, fields_of, full, put, rows, value_in
from kode_conformance.values.kinds import kinds

from kode_core.codec import decode, encode
from kode_core.model import Message, Record, UnknownBlock
from kode_core.model.content import BLOCKS
from kode_core.protocols import ExtendedStore

ROOTS = list(kinds())


def structs(value: Any) -> set[type]:
    """The types of all records and blocks inside."""
    if isinstance(value, (list, tuple)):
        return set().union(*map(structs, value))
    if isinstance(value, msgspec.Struct):
        return {type(value)}.union(*(structs(getattr(value, name)) for name in value.__struct_fields__))
    return set()


@pytest.mark.parametrize("root", ROOTS)
def test_every_attribute_is_a_field_or_leads_to_one(root: type[Record]) -> None:
    """A full record has no attribute of any record inside that is None, empty, or in no field."""
    record = full(root, 3)
    steps = {(field.owner, str(step)) for field in fields_of(root) for step in field.path}
    for cls in structs(record) - {UnknownBlock}:
        for name in cls.__struct_fields__:  # type: ignore[attr-defined]
            assert any(step == name for _, step in steps), f"{cls.__name__}.{name}"
    for field in fields_of(root):
        if field.holds is not Holds.COUNT:
            assert value_in(record, field) not in (None, (), {}, ""), field.name


def test_every_block_is_in_a_full_message() -> None:
    """A full message has a block of every type, an unknown one too."""
    assert {type(block) for block in full(Message).content} == set(BLOCKS)


def values(field: Field) -> list[Any]:
    """Three texts for every field that takes some."""
    return ["x", "y", "z"] if field.holds in (Holds.TEXT, Holds.KEY, Holds.JSON) else []


@pytest.mark.parametrize("root", ROOTS)
def test_rows_hold_every_value_in_every_field(root: type[Record]) -> None:
    """Of three records, each field has had each of three values, and all of them can be stored."""
    found = rows(root, values)
    assert len(found) == 3
    for field in fields_of(root):
        if values(field):
            assert {value_in(record, field) for record in found} == {"x", "y", "z"}, field.name
    assert [decode(root, encode(root, record, ""), "") for record in found] == found


@pytest.mark.parametrize("root", ROOTS)
def test_a_value_is_put_into_one_field(root: type[Record]) -> None:
    """A value that is put into a field is there, and nothing else changed; alone, all other optional ones are None."""
    record = full(root)
    for field in fields_of(root):
        new = {"new": 1} if field.holds in (Holds.DICT, Holds.SPREAD) else "new"
        changed = put(record, field, new)
        assert value_in(changed, field) == new
        assert put(changed, field, value_in(record, field)) == record
        single = alone(field, new)
        for other in fields_of(root) if not set(field.path) & {1, 2, 3, 4, 5, 6, 7, 8} else ():
            if other is not field and other.optional and other.path[:-1] == field.path[:-1]:
                assert value_in(single, other) is None, f"{other.name} next to {field.name}"


EDITS: Final = {
    *("delete", "delete_snapshot", "pop_messages", "prune", "truncate_messages", "replace_message"),
    *("create_agent", "import_agent", "update_info", "emit", "emit_many", "append_messages_once"),
    *("put_document", "delete_document", "write_documents"),
}
"""Methods that remove or change records, write only for a new agent or under new keys, make their records themselves,
or write values.
"""


def test_every_method_that_writes_is_one_of_a_kind() -> None:
    """Each method with a fence writes some kind, but for deletes, edits and emits; each kind can be read; and the model
    knows them all.
    """
    fenced = {
        name
        for name, method in inspect.getmembers(ExtendedStore, inspect.isfunction)
        if "fence" in inspect.signature(method).parameters
    }
    assert {writer.method for kind in kinds().values() for writer in kind.writers} == fenced - EDITS
    for kind in kinds().values():
        assert kind.readers, kind.record
        for writer in kind.writers:
            assert writer.parameter in inspect.signature(getattr(StoreModel, writer.method)).parameters
