"""``kode.toml`` and ``[tool.kode]`` of ``pyproject.toml``: stores by name, and options of plugins."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

from kode_core.authoring.encodings import decoded
from kode_core.authoring.paths import local_path, working_folder
from kode_core.authoring.values import named
from kode_core.errors import ConfigurationError

__all__ = ["named_stores", "plugin_table", "relative_to"]


def named_stores(environ: Mapping[str, str]) -> dict[str, tuple[dict[str, Any], Path]]:
    """The stores of the configuration file by name, each with the path of the file.

    Raises:
        ConfigurationError: the file cannot be read or understood, or ``KODE_CONFIG`` names no file.
    """
    return _tables("stores", environ)


def plugin_table(name: str, environ: Mapping[str, str]) -> tuple[dict[str, Any], Path] | None:
    """The table ``[plugins.NAME]`` of the configuration file, and the path of the file; None if there is none.

    A process whose working directory is gone has no such file, unless ``KODE_CONFIG`` names one.

    Raises:
        ConfigurationError: as for :func:`named_stores`.
    """
    if not environ.get("KODE_CONFIG"):
        try:
            working_folder()
        except ConfigurationError:
            return None
    return _tables("plugins", environ).get(name)


def _tables(kind: str, environ: Mapping[str, str]) -> dict[str, tuple[dict[str, Any], Path]]:
    """The tables of one kind by name, each with the path of the file."""
    path = _config_file(environ)
    if path is None:
        return {}
    content = _remembered(_toml, path)
    if path.name == "pyproject.toml":
        content = content.get("tool", {}).get("kode", {})
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: stores are written as [tool.kode.stores.NAME], each a table")
    tables = content.get(kind, {})
    unknown = sorted(content.keys() - {"stores", "plugins"})
    if unknown:
        raise ConfigurationError(f"{path}: there is no key {named(unknown[0])}; stores are written as [stores.NAME]")
    if not isinstance(tables, dict) or not all(isinstance(table, dict) for table in tables.values()):
        raise ConfigurationError(f"{path}: {kind} are written as [{kind}.NAME], each a table")
    return {name: (deepcopy(table), path) for name, table in tables.items()}


def _config_file(environ: Mapping[str, str]) -> Path | None:
    """``KODE_CONFIG``, or the nearest ``kode.toml`` or ``pyproject.toml`` with ``[tool.kode]``, upwards from here."""
    given = environ.get("KODE_CONFIG")
    if given:
        path = local_path(given, "KODE_CONFIG")
        if not path.is_file():
            raise ConfigurationError("KODE_CONFIG has to be the path of a TOML file, and there is no file at it")
        return path
    here = working_folder()
    for folder in (here, *here.parents):
        own = folder / "kode.toml"
        if _is_file(own):
            return own
        if os.path.lexists(own):  # a link to a file that is gone: no other store is opened in its place
            raise ConfigurationError(f"{own} is a link that leads nowhere, or no file; mend it, or move it away")
        project = folder / "pyproject.toml"
        with suppress(OSError):  # not remembered: it may be the lack of a descriptor
            if _is_file(project) and _remembered(_has_our_table, project):
                return project
    return None


def _remembered(read: Callable[[Path], Any], path: Path) -> Any:
    """The result of *read* for a file, which is read again once the file has changed: many stores may be opened.

    A file that changed a moment ago is read each time, since its next change may have the same time.
    """
    try:
        found = path.stat()
    except OSError:
        return read(path)
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) < _SETTLED_NS:
        return read(path)
    return _read(read, path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns))


@lru_cache(maxsize=32)
def _read(read: Callable[[Path], Any], path: Path, stamp: tuple[int, ...]) -> Any:
    return read(path)


def _is_file(path: Path) -> bool:
    """True if there is such a file, in a folder that this process may look into."""
    try:
        return path.is_file()
    except OSError:
        return False


_SETTLED_NS: Final = 3_000_000_000
"""Longer than the steps of the times of any file system."""
_NAMES_US: Final = re.compile(
    r"""\btool["']?\s*\.\s*["']?kode\b|^\s*\[\s*["']?tool["']?\s*\]|^\s*tool\s*=""", re.MULTILINE
)
"""The ways to write a key below ``tool.kode``; few files have them, and only these are parsed."""


def _has_our_table(project: Path) -> bool:
    """True if a ``pyproject.toml`` configures stores; the file of another project may be malformed.

    Raises:
        OSError: the file cannot be read now.
    """
    text = project.read_text(encoding="utf-8-sig", errors="replace")
    if _NAMES_US.search(text) is None:
        return False
    try:
        import tomllib  # most programs have no such file

        tool = tomllib.loads(text).get("tool")
    except (tomllib.TOMLDecodeError, RecursionError):
        return re.search(r"^\s*\[+\s*tool\s*\.\s*kode\b", text, re.MULTILINE) is not None
    return isinstance(tool, dict) and "kode" in tool


def _toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib

        return tomllib.loads(decoded(path.read_bytes()))
    except OSError as exc:
        problem = f"cannot be read: {exc.strerror}"
    except UnicodeError as exc:
        problem = f"is not TOML: {exc}"
    except RecursionError:
        problem = "is not TOML: it nests too deep"
    except tomllib.TOMLDecodeError as exc:  # its message may quote a key or a value
        where = re.search(r"\(at ([a-z0-9, ]+)\)$", str(exc))
        problem = f"is not TOML{f': see {where[1]}' if where else ''}"
    raise ConfigurationError(f"{path} {problem}")


def relative_to(path: Path, value: Any) -> Any:
    """Resolve a relative path in a configuration file against the folder of the file."""
    if not isinstance(value, str) or value.startswith((":", "~")):
        return value
    return str(path.parent / value)
