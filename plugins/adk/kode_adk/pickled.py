"""Actions of events that older versions of ADK pickled, read as plain data: no class of a pickle is imported.

A model or an enum of ADK becomes a stand-in that has its fields. A few plain types of the standard library are made.
Any other name in a pickle is refused.

A pickle may also change each object that it names, a class among them. So it gets no class of this process: a function
that makes the value, or the class of a stand-in, and both are its own.
"""

from __future__ import annotations

import collections
import datetime
import decimal
import io
import pathlib
import pickle
import pickletools
import uuid
from collections.abc import Callable, Mapping, Sized
from typing import Any, Final

__all__ = ["plain_actions"]

_MODELS: Final = ("google.adk.", "google.genai.", "fastapi.openapi.models")
_MADE: Final[Mapping[tuple[str, str], Callable[..., Any]]] = {
    ("builtins", "dict"): dict,
    ("builtins", "list"): list,
    ("builtins", "set"): set,
    ("builtins", "frozenset"): frozenset,
    ("builtins", "tuple"): tuple,
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("collections", "defaultdict"): lambda *_: {},
    ("datetime", "date"): datetime.date,
    ("datetime", "datetime"): datetime.datetime,
    ("datetime", "time"): datetime.time,
    ("datetime", "timedelta"): datetime.timedelta,
    ("datetime", "timezone"): datetime.timezone,
    ("decimal", "Decimal"): decimal.Decimal,
    ("pathlib", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib", "PurePosixPath"): pathlib.PurePosixPath,
    ("pathlib._local", "PosixPath"): pathlib.PurePosixPath,
    ("pathlib._local", "PurePosixPath"): pathlib.PurePosixPath,
}
_MOST: Final = 1_000_000
_DEEPEST: Final = 200


class _StandIn:
    """An object of a model or an enum: what its class was called with, and its state."""

    args: tuple[Any, ...]
    state: Any

    def __new__(cls, *args: Any) -> _StandIn:
        made = super().__new__(cls)
        made.args, made.state = args, None
        return made

    def __init__(self, *args: Any) -> None:
        """Nothing is done with the arguments."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Uuid(_StandIn):
    """A UUID, which is made without arguments and then gets its state."""


class _Reader(pickle.Unpickler):
    """Reads a pickle; the values that it makes from others have a million parts at most."""

    def __init__(self, raw: bytes) -> None:
        super().__init__(io.BytesIO(raw))
        self._left = _MOST

    def find_class(self, module: str, name: str) -> Any:
        make = _MADE.get(("builtins" if module == "__builtin__" else module, name))
        if make is not None:
            return self._maker(make)
        if (module, name) == ("uuid", "UUID"):
            return type(name, (_Uuid,), {})
        if module.startswith(_MODELS) and name.isidentifier():
            return type(name, (_StandIn,), {})
        raise pickle.UnpicklingError(f"it names {module:.80}.{name:.80}, which actions of ADK do not have")

    def _maker(self, make: Callable[..., Any]) -> Callable[..., Any]:
        def made(*args: Any) -> Any:
            self._left -= 1 + sum(len(each) for each in args if isinstance(each, Sized))
            if self._left < 0:
                raise ValueError("it is too large")
            return make(*args)

        return made


def plain_actions(raw: object) -> dict[str, Any]:
    """The fields of pickled actions.

    Raises:
        ValueError: it is damaged, or names a class that actions do not have; nothing of it was run.
        RecursionError: it is too deep.
    """
    if raw is None:
        return {}
    if not isinstance(raw, bytes):
        raise ValueError(f"the pickle of its actions is {type(raw).__name__}")
    try:
        for code, argument, _ in pickletools.genops(raw):
            if "PUT" in code.name and int(argument or 0) > len(raw):
                raise ValueError("it has a place for more objects than bytes")
        found = _Reader(raw).load()
        actions = _Plain().of(found, 0)
    except RecursionError:
        raise
    except Exception as exc:  # a damaged pickle raises any error
        raise ValueError(f"the pickle of its actions is refused: {exc!s:.200}") from exc
    if type(actions) is not dict:
        raise ValueError(f"the pickle of its actions is {type(actions).__name__}")
    return actions


class _Plain:
    """Converts stand-ins; a pickle in which objects are shared may be far larger than its bytes."""

    def __init__(self) -> None:
        self._left = _MOST

    def of(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise ValueError("it is too large, or too deep")
        if isinstance(value, _StandIn):
            return self._of_stand_in(value, depth + 1)
        if isinstance(value, dict):
            return {key: self.of(each, depth + 1) for key, each in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self.of(each, depth + 1) for each in value]
        return value

    def _of_stand_in(self, value: _StandIn, depth: int) -> Any:
        if isinstance(value, _Uuid):
            return uuid.UUID(int=value.state["int"])
        if value.state is None:
            if len(value.args) != 1:
                raise ValueError(f"an object of class {type(value).__name__} has no fields")
            return self.of(value.args[0], depth)  # an enum
        fields = value.state.get("__dict__", {}) if isinstance(value.state, dict) else None
        if not isinstance(fields, dict):
            raise ValueError(f"an object of class {type(value).__name__} has no fields")
        more = value.state.get("__pydantic_extra__")
        return self.of({**fields, **(more if isinstance(more, dict) else {})}, depth)
