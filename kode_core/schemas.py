"""Records and answers of a store as types of pydantic, and so of FastAPI: validation, responses and OpenAPI.

pydantic calls these functions, so that it is imported already; this package does not depend on it.
"""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Mapping
from typing import Any, Final, cast, get_args

import msgspec

from kode_core.codec import from_dict
from kode_core.errors import InvalidValueError
from kode_core.jsonable import camel, to_jsonable
from kode_core.model import Json, Record
from kode_core.query import Page
from kode_core.shapes import is_of

__all__ = ["core_schema", "json_schema", "page_schema"]

_REF: Final = "#/$defs/"
_ROLE: Final = re.compile(r":\w+:`([^`]*)`")
_OTHER_BLOCK: Final = {
    "title": "UnknownBlock",
    "description": "A block of another type.",
    "type": "object",
    "properties": {"type": {"type": "string"}},
    "required": ["type"],
}


def core_schema(cls: type) -> Any:
    """The core schema of a record or an answer: an instance, or a dict as ``to_dict`` gives it."""
    make = importlib.import_module("pydantic_core.core_schema")
    return make.no_info_plain_validator_function(
        functools.partial(_record, cls),
        ref=f"{cls.__module__}.{cls.__qualname__}",
        serialization=make.plain_serializer_function_ser_schema(_to_plain),
    )


def _to_plain(value: object) -> Json:
    return to_jsonable(value)


def _record(cls: Any, value: object) -> object:
    if isinstance(value, cls) and (not issubclass(cls, Record) or is_of(cls, value)):
        return value
    if issubclass(cls, Record):
        return from_dict(cls, value)
    if not isinstance(value, Mapping):
        raise InvalidValueError(cls.__name__, "$", f"expected an object, got {type(value).__name__}")
    names = {camel(name): name for name in cls.__struct_fields__}
    fields = {names.get(name, name): item for name, item in value.items()}
    try:
        return msgspec.convert(fields, cls)
    except msgspec.ValidationError as exc:
        raise InvalidValueError(cls.__name__, "$", str(exc)) from None


def page_schema(source: Any, handler: Any) -> Any:
    """The core schema of a page: ``items``, ``nextCursor`` and ``leftOut``; lists of items are taken, too."""
    make = importlib.import_module("pydantic_core.core_schema")
    args = get_args(source)
    items = make.list_schema(handler.generate_schema(args[0]) if args else make.any_schema())
    fields = {
        "items": make.typed_dict_field(items, required=True),
        "nextCursor": make.typed_dict_field(make.nullable_schema(make.str_schema()), required=False),
        "leftOut": make.typed_dict_field(make.list_schema(make.str_schema()), required=False),
    }
    page = make.typed_dict_schema(fields)
    return make.no_info_before_validator_function(
        _page_fields,
        make.no_info_after_validator_function(_page, page),
        serialization=make.plain_serializer_function_ser_schema(_page_fields, return_schema=page),
    )


def _page_fields(value: object) -> object:
    if isinstance(value, Page):
        return {"items": list(value), "nextCursor": value.next_cursor, "leftOut": list(value.left_out)}
    return {"items": value} if isinstance(value, list) else value


def _page(fields: dict[str, Any]) -> Page[Any]:
    return Page(fields["items"], fields.get("nextCursor"), tuple(fields.get("leftOut", ())))


@functools.cache
def _definitions(cls: type) -> tuple[Any, dict[str, Any]]:
    (schema,), definitions = msgspec.json.schema_components([cls], ref_template=_REF + "{name}")
    return schema, definitions


def json_schema(cls: type) -> dict[str, Any]:
    """The JSON schema of a record or an answer in its JSON form, complete in itself."""
    schema, definitions = _definitions(cls)
    return cast("dict[str, Any]", _inlined(schema, definitions, issubclass(cls, Record)))


def _inlined(schema: Any, definitions: Mapping[str, Any], is_record: bool) -> Any:
    """*schema* without references, since pydantic names the definitions of a document by itself."""
    if isinstance(schema, list):
        return [_inlined(one, definitions, is_record) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        name = schema["$ref"].removeprefix(_REF)
        return _inlined(definitions[name], definitions, is_record or name == "Bookmark")
    out = {key: _inlined(value, definitions, is_record) for key, value in schema.items() if key not in _LEFT_OUT}
    if "discriminator" in schema:
        out["anyOf"] = [*out["anyOf"], _OTHER_BLOCK]
    if "properties" in schema:
        names = {name: name if is_record else camel(name) for name in schema["properties"] if name[:2] != "__"}
        out["properties"] = {names[name]: out["properties"][name] for name in names}
        out["required"] = [names[name] for name in schema.get("required", ()) if name in names]
        out["description"] = _ROLE.sub(r"\1", schema.get("description", "").partition("\n\n")[0])
    return out


_LEFT_OUT: Final = frozenset({"additionalProperties", "discriminator"})
"""Fields of a schema that would say that a record has no further fields, and no further types of blocks (VAL-6)."""
