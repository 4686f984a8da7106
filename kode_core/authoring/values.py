"""The values of options: read and checked, with the problem in words that quote no value (OPS-12)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, Final, Literal, get_args, get_origin
from urllib.parse import SplitResult, unquote

import msgspec

from kode_core.errors import ConfigurationError
from kode_core.ids import NOT_TEXT, nearest

__all__ = ["marked_options", "named", "near", "path_from_url", "path_options", "read_value", "secret_options"]

_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")


def named(name: object) -> str:
    """A name from the program or a file in the form for errors: quoted if it is valid, otherwise not repeated."""
    return repr(name) if isinstance(name, str) and _NAME.fullmatch(name) else "of that name"


def near(name: object, known: Iterable[str]) -> str:
    """The end of an error about an unknown name: the nearest of the known names, or all of them."""
    known = sorted(known)
    found = nearest(str(name), known, 0.5)
    return f"; did you mean {found!r}?" if found else f"; known are {', '.join(known)}"


@lru_cache(maxsize=64)
def marked_options(options: type[msgspec.Struct], mark: str) -> frozenset[str]:
    """The names of the options whose type has ``extra={mark: True}``; they are looked for once for a class."""
    found = set()
    for field in msgspec.inspect.type_info(options).fields:  # type: ignore[attr-defined]
        kinds = field.type.types if isinstance(field.type, msgspec.inspect.UnionType) else (field.type,)
        if any(isinstance(kind, msgspec.inspect.Metadata) and (kind.extra or {}).get(mark) for kind in kinds):
            found.add(field.name)
    return frozenset(found)


def path_options(options: type[msgspec.Struct]) -> frozenset[str]:
    """The names of the options that are paths: those with ``extra={"path": True}``."""
    return marked_options(options, "path")


def secret_options(options: type[msgspec.Struct]) -> frozenset[str]:
    """The names of the options that are never shown: those with ``extra={"secret": True}``."""
    return marked_options(options, "secret")


def _in_words(problem: str, hint: Any) -> str:
    """msgspec's message; for a pattern, the form that the option gives in ``extra={"form": …}``."""
    if "matching regex" in problem:
        return f"it must be {_form(hint) or 'of another form'}"
    return re.sub(r"Invalid enum value .*", "it is not one of those that it can be", problem).replace("`", "")


def _form(hint: Any) -> str | None:
    if isinstance(hint, msgspec.Meta):
        return (hint.extra or {}).get("form")
    return next(filter(None, map(_form, get_args(hint))), None)


def read_value(field: Any, value: Any, *, strict: bool) -> tuple[str, Any]:
    """The problem of an option's value, in words that do not quote the value, and the converted value."""
    try:
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
    except Exception as exc:  # noqa: BLE001 - from an object of the caller's
        return f"its value cannot be read as a path ({type(exc).__name__})", None
    if isinstance(value, str) and NOT_TEXT.search(value):
        return "it has a NUL or is not UTF-8", None
    if get_origin(field.type) is Literal and value not in get_args(field.type):
        return f"it must be one of {', '.join(map(str, get_args(field.type)))}", None
    try:
        return "", msgspec.convert(value, field.type, strict=strict)
    except msgspec.ValidationError as exc:
        return _in_words(str(exc), field.type), None
    except Exception as exc:  # noqa: BLE001 - a value whose own methods fail
        return f"its value cannot be read ({type(exc).__name__})", None


def path_from_url(option: str) -> Callable[[SplitResult], Mapping[str, Any]]:
    """For backends whose URL is a path: ``name:///relative``, ``name:////absolute``, ``name:./relative``."""

    def options(split: SplitResult) -> Mapping[str, Any]:
        if split.netloc:
            name = split.scheme
            raise ConfigurationError(
                f"names a host, and {name} has none: write {name}:///relative/path or {name}:////absolute/path"
            )
        path = unquote(split.path)
        path = path.removeprefix("/")
        return {option: path} if path else {}

    return options
