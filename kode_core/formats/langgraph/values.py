"""Values as LangGraph's serializer writes them, read as plain data: no class is imported, and no object is made.

The serializer writes msgpack, in which an object is an extension type: its class by name, and its fields. Such a value
stays a :class:`Foreign`, which :func:`encoded` writes again byte for byte; a message of LangChain is a :class:`Said`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from kode_core.formats.tables import parsed

__all__ = ["DELTA", "Foreign", "Said", "decoded", "encoded", "value_of"]

DELTA: Final = 7
"""The extension type of a snapshot of a ``DeltaChannel``."""
_PYDANTIC: Final = (4, 5)
_ARRAY: Final = 6
_MESSAGES: Final = "langchain_core.messages."
_HEAD: Final = 80
"""The bytes of an object in which the name of its module is."""
_DEEPEST: Final = 200
_OF_MODEL: Final = ("ai", "AIMessageChunk")
_OF_TOOL: Final = ("tool", "ToolMessageChunk")


class Foreign:
    """An object of a class that is not made: the number and the bytes of its extension type."""

    def __init__(self, code: int, data: bytes) -> None:
        self.code = code
        self.data = data

    def __repr__(self) -> str:
        return f"{type(self).__name__}(code={self.code}, {len(self.data)} bytes)"

    def plain(self, depth: int = 0) -> Any:
        """The fields or the argument of the object, as plain data."""
        if self.code == _ARRAY:
            return "an array of NumPy"
        inner = decoded(self.data)
        if self.code == DELTA:
            return _plain(inner, depth)
        if type(inner) is not list or len(inner) < 3:
            raise ValueError(f"an object of the unknown form {self.code}")
        return _plain(inner[2], depth)


class Said(Foreign):
    """A message of LangChain, with the attributes that ``kode_core.formats.langchain`` reads.

    Attributes:
        is_said: False for a RemoveMessage, which is an order to the reducer.
    """

    def __init__(self, code: int, data: bytes, name: str, fields: Mapping[str, Any]) -> None:
        super().__init__(code, data)
        kind = fields.get("type")
        self.type = kind if isinstance(kind, str) else name.removesuffix("Chunk").removesuffix("Message").lower()
        self.is_said = self.type != "remove"
        self.id = _text(fields.get("id"))
        self.name = _text(fields.get("name"))
        self.content = fields.get("content")
        self.response_metadata = _dict(fields.get("response_metadata"))
        if self.type in _OF_MODEL:
            self.tool_calls = _dicts(fields.get("tool_calls"))
            self.invalid_tool_calls = _dicts(fields.get("invalid_tool_calls"))
            self.usage_metadata = fields.get("usage_metadata")
        if self.type in _OF_TOOL:
            self.tool_call_id = _text(fields.get("tool_call_id"))
            self.status = fields.get("status")
        if self.type == "chat":
            self.role = _text(fields.get("role")) or "chat"


class _Unmade(Foreign):
    """An object of the older JSON form, which msgpack cannot express."""

    def __init__(self, name: str, fields: Any) -> None:
        super().__init__(-1, b"")
        self._name = name
        self._fields = fields

    def plain(self, depth: int = 0) -> Any:
        return _plain(self._fields, depth)

    def __repr__(self) -> str:
        return f"an object of class {self._name:.200}"


def value_of(kind: object, data: object) -> Any:
    """The value of a kind and bytes, as LangGraph's savers keep them.

    Raises:
        ValueError: it cannot be read, or must not be, as a pickle.
        RecursionError: it is too deep.
    """
    name = kind.decode("utf-8", "replace") if isinstance(kind, bytes) else kind
    if name in ("null", "empty"):
        return None
    if not isinstance(name, str):
        raise ValueError("it has no kind")
    if name == "pickle":
        raise ValueError("it is a pickle, which could run any code and is never loaded")
    if "+" in name:
        raise ValueError(f"it is encrypted ({name:.40})")
    if name == "json":
        return _of_json(parsed(data))
    if not isinstance(data, bytes):
        raise ValueError(f"no bytes but {type(data).__name__}")
    if name in ("bytes", "bytearray"):
        return data if name == "bytes" else bytearray(data)
    if name != "msgpack":
        raise ValueError(f"the kind {name!r:.40} is not known")
    return decoded(data)


def decoded(data: bytes) -> Any:
    """The value of msgpack; objects are :class:`Foreign`.

    Raises:
        ValueError: it is damaged.
        RecursionError: it is too deep.
    """
    try:
        return _DECODER.decode(data)
    except msgspec.MsgspecError as exc:
        raise ValueError(f"it is no msgpack: {exc}") from None


def encoded(value: object) -> bytes:
    """The msgpack of a value that was decoded, with each object as it was.

    Raises:
        ValueError: msgpack cannot express it.
        RecursionError: it is too deep.
    """
    try:
        return _ENCODER.encode(value)
    except (TypeError, OverflowError) as exc:
        raise ValueError(str(exc)) from None


def _object(code: int, data: memoryview) -> Foreign:
    raw = bytes(data)
    if code in _PYDANTIC and _MESSAGES.encode() in raw[:_HEAD]:
        inner = decoded(raw)
        if type(inner) is list and len(inner) >= 3 and _is_message(inner[0], inner[1]):
            return Said(code, raw, inner[1], _dict(_plain(inner[2], 0)))
    return Foreign(code, raw)


def _extension(value: object) -> object:
    if isinstance(value, Foreign) and value.code >= 0:
        return msgspec.msgpack.Ext(value.code, value.data)
    raise TypeError(f"msgpack has no form for {value!r:.300}")


_DECODER: Final = msgspec.msgpack.Decoder(ext_hook=_object)
_ENCODER: Final = msgspec.msgpack.Encoder(enc_hook=_extension)


def _is_message(module: object, name: object) -> bool:
    is_named = isinstance(name, str) and name.removesuffix("Chunk").endswith("Message")
    return is_named and isinstance(module, str) and module.startswith(_MESSAGES)


def _of_json(value: Any) -> Any:
    """The older form: an object is a dict with its class and its fields."""
    if type(value) is list:
        return [_of_json(each) for each in value]
    if type(value) is not dict:
        return value
    names = value.get("id")
    if value.get("type") != "constructor" or type(value.get("lc")) is not int or type(names) is not list or not names:
        return {key: _of_json(each) for key, each in value.items()}
    name, fields = str(names[-1]), _of_json(value.get("kwargs") or {})
    if str(names[0]).startswith("langchain") and name.removesuffix("Chunk").endswith("Message"):
        kind = name.removesuffix("Chunk").removesuffix("Message").lower()
        module = "modifier" if kind == "remove" else kind
        data = encoded([_MESSAGES + module, name, fields, "model_validate_json"])
        return Said(_PYDANTIC[1], data, name, _dict(_plain(fields, 0)))
    return _Unmade(".".join(map(str, names)), fields)


def _plain(value: Any, depth: int) -> Any:
    if depth > _DEEPEST:
        raise ValueError("it is too deep")
    if isinstance(value, Foreign):
        return value.plain(depth + 1)
    if type(value) is dict:
        return {
            key if type(key) is str else f"{_plain(key, depth + 1)}": _plain(each, depth + 1)
            for key, each in value.items()
        }
    if type(value) is list:
        return [_plain(each, depth + 1) for each in value]
    return value


def _text(value: object) -> str | None:
    return None if value is None else str(value)


def _dict(value: object) -> dict[str, Any]:
    return value if type(value) is dict else {}


def _dicts(value: object) -> list[dict[str, Any]]:
    return [each for each in value if type(each) is dict] if type(value) is list else []
