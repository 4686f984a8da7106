"""The files of a store's own code, in which a writer may be cut off between two of its actions."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from kode_core.engine import Engine

__all__ = ["code_of"]

_ENGINES: Final = ("kode_core.backends.", "kode_core.engines.", "kode_core.hybrid.", "kode_core.layers.")


def code_of(store: object) -> tuple[str, ...]:
    """Files, and folders that end with a separator, with the code of the store's class and of its engines.

    From the core, only the packages of such engines, and the parts that engines share: code above them does not write.
    """
    found: dict[str, None] = {}
    for part in _parts(store):
        for cls in type(part).__mro__:
            found.update(dict.fromkeys(_places(cls)))
    return tuple(found)


def _parts(store: object) -> Iterator[object]:
    """The store and the engines inside it, however they are nested."""
    todo: list[tuple[object, int]] = [(store, 0)]
    seen: set[int] = set()
    while todo:
        thing, depth = todo.pop(0)
        if id(thing) in seen or depth > 4:
            continue
        seen.add(id(thing))
        if depth == 0 or isinstance(thing, Engine):
            yield thing
        if depth == 0 or isinstance(thing, Engine) or type(thing).__module__.startswith("kode_core.store"):
            todo += [(value, depth + 1) for value in _attributes(thing)]


def _attributes(thing: object) -> list[Any]:
    return list(getattr(thing, "__dict__", {}).values())


def _places(cls: type) -> Iterator[str]:
    name = cls.__module__
    is_core = name.partition(".")[0] == "kode_core"
    if name.partition(".")[0] in sys.stdlib_module_names or (is_core and not name.startswith(_ENGINES)):
        return
    package = name.rpartition(".")[0] if is_core else _outermost_package(name)
    if package:
        packages = (package, "kode_core.authoring") if is_core else (package,)
        yield from (f"{Path(folder)}{os.sep}" for one in packages for folder in sys.modules[one].__path__)
    elif file := getattr(sys.modules.get(name), "__file__", None):
        yield file


def _outermost_package(module: str) -> str:
    """The package that belongs to one distribution: namespaces, which may belong to several, are left out."""
    parts = module.split(".")
    ancestors = (".".join(parts[: i + 1]) for i in range(len(parts)))
    return next((name for name in ancestors if _is_package(sys.modules.get(name))), "")


def _is_package(module: object) -> bool:
    return hasattr(module, "__path__") and getattr(module, "__file__", None) is not None
