"""Plugins that are installed, as the metadata of their distributions names them: none of them is imported.

``importlib.metadata`` takes longer to import than the rest of the core together, with its parser of e-mails and its
archives. So the folders of the path are read here, and it is asked only where there is something else: an archive, or
an importer that finds distributions of its own.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Final

import msgspec

from kode_core.errors import StoreUnavailableError

__all__ = ["InstalledPlugin", "described", "in_metadata", "normal_name"]

_UNKNOWN: Final = "unknown distribution"
_INFO_FILES: Final = ("METADATA", "PKG-INFO")
_LEFT: Final = "~"
"""The first character of a folder that pip moved away to remove or replace a distribution, and could not remove."""
_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class InstalledPlugin(msgspec.Struct, frozen=True):
    """A plugin that is installed; ``value`` is what its entry point names, as in ``kode_acme.plugin``."""

    name: str
    distribution: str
    version: str
    value: str

    def load(self) -> object:
        """Import what the entry point names.

        Raises:
            StoreUnavailableError: the system has no room for it at the moment.
        """
        module, _, attributes = self.value.partition("[")[0].strip().partition(":")
        try:
            found: object = import_module(module.strip())
        except SystemExit as exc:
            raise ImportError(f"it ends the program, by sys.exit({exc})") from exc
        except OSError as exc:
            _refuse_passing(exc)
            raise
        for attribute in filter(None, attributes.strip().split(".")):
            found = getattr(found, attribute)
        return found


def normal_name(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def in_metadata(group: str) -> Sequence[InstalledPlugin]:
    """The plugins of an entry point group, by name."""
    found = _in_folders(group) if _are_folders() else _by_importlib(group)
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def described(plugin: InstalledPlugin) -> str:
    """The distribution of a plugin, for messages."""
    return " ".join(filter(None, (plugin.distribution, plugin.version)))


def _by_importlib(group: str) -> Iterator[InstalledPlugin]:
    from importlib.metadata import entry_points

    for ep in entry_points(group=group):
        if getattr(getattr(ep.dist, "_path", None), "name", "").startswith(_LEFT):
            continue
        name, version = (ep.dist.name, ep.dist.version) if ep.dist else (_UNKNOWN, "")
        yield InstalledPlugin(ep.name, name, version, ep.value)


# --- Folders ----------------------------------------------------------------------------------------------------------


def _are_folders() -> bool:
    """Whether all distributions are in folders of the path, as pip puts them there."""
    for finder in sys.meta_path:
        kind = finder if isinstance(finder, type) else type(finder)
        if hasattr(finder, "find_distributions") and kind.__name__ != "PathFinder":
            return False
    return not any(part.endswith(".egg") or os.path.isfile(part) for part in _path())  # noqa: PTH113 - raises nothing


def _path() -> list[str]:
    return [part for part in sys.path if isinstance(part, str)]


def _in_folders(group: str) -> Iterator[InstalledPlugin]:
    seen: set[str] = set()
    for part in _path():
        try:
            names = os.listdir(part or ".")  # noqa: PTH208 - there may be hundreds, and a Path of each takes its time
        except OSError as exc:
            _refuse_passing(exc)
            continue
        except ValueError:  # no path at all
            continue
        for name in names:
            if name.startswith(_LEFT):
                continue
            stem, dot, suffix = name.rpartition(".")
            if dot and suffix.lower() in ("dist-info", "egg-info"):
                normal = normal_name(stem.partition("-")[0])
                if normal not in seen:  # of two with one name the first on the path is the one that is imported
                    seen.add(normal)
                    yield from _in_distribution(f"{part or '.'}/{name}", group)


def _in_distribution(folder: str, group: str) -> list[InstalledPlugin]:
    text = _text(f"{folder}/entry_points.txt")
    if f"[{group}]" not in text:
        return []
    named, section = [], ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("["):
            section = line.strip("[]")
        elif section == group and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            named.append((name.strip(), value.strip()))
    name, version = _of_distribution(folder)
    return [InstalledPlugin(plugin, name, version, value) for plugin, value in named]


def _of_distribution(folder: str) -> tuple[str, str]:
    """Its name and version."""
    header: dict[str, str] = {}
    for line in next(filter(None, (_text(f"{folder}/{file}") for file in _INFO_FILES)), "").splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        header.setdefault(key.lower(), value.strip())
    return header.get("name", _UNKNOWN), header.get("version", "")


def _text(path: str) -> str:
    """The text of a file; none where there is no file, or none that can be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError as exc:
        _refuse_passing(exc)
        return ""


def _refuse_passing(exc: OSError) -> None:
    """Raise when the system has no room at the moment: then a plugin that is there would seem not to be."""
    if exc.errno in _PASSING:
        text = f"the plugins that are installed cannot be read at the moment: {os.strerror(exc.errno or 0)}"
        raise StoreUnavailableError(text) from exc
