"""Installed plugins, read from the metadata of their distributions: none of them is imported.

``importlib.metadata`` takes longer to import than the rest of the core together, with its parser of e-mails and its
archives. So the folders of the path are read here, and ``importlib.metadata`` is used only for anything else: an
archive, or an importer that finds distributions itself.
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

from kode_core.errors import StoreUnavailableError, UnknownBackendError
from kode_core.ids import nearest

__all__ = ["FIRST_PARTY", "InstalledPlugin", "described", "in_metadata", "normal_name", "unknown"]

FIRST_PARTY: Final = {name: f"kode-{name}" for name in ("sqlite", "postgres", "mongo", "dynamodb")}
"""By name of the backend, the distributions of this project."""

_UNKNOWN: Final = "unknown distribution"
_INFO_FILES: Final = ("METADATA", "PKG-INFO")
_LEFT: Final = "~"
"""The first character of a folder that pip renamed to remove or replace a distribution, and could not remove."""
_PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class InstalledPlugin(msgspec.Struct, frozen=True):
    """An installed plugin; ``value`` is the target of its entry point, as in ``kode_acme.plugin``."""

    name: str
    distribution: str
    version: str
    value: str

    def load(self) -> object:
        """Import the target of the entry point.

        Raises:
            StoreUnavailableError: the system is out of file descriptors or memory at the moment.
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
    """A distribution's name in the normal form of packaging."""
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
    """True if all distributions are in folders of the path, where pip puts them."""
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
            names = os.listdir(part or ".")  # noqa: PTH208 - there may be hundreds, and a Path for each takes its time
        except OSError as exc:
            _refuse_passing(exc)
            continue
        except ValueError:  # not a path at all
            continue
        for name in names:
            if name.startswith(_LEFT):
                continue
            stem, dot, suffix = name.rpartition(".")
            if dot and suffix.lower() in ("dist-info", "egg-info"):
                normal = normal_name(stem.partition("-")[0])
                if normal not in seen:  # of two with one name, the first on the path is imported
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
    """The name and version of the distribution."""
    header: dict[str, str] = {}
    for line in next(filter(None, (_text(f"{folder}/{file}") for file in _INFO_FILES)), "").splitlines():
        if not line:
            break
        key, _, value = line.partition(":")
        header.setdefault(key.lower(), value.strip())
    return header.get("name", _UNKNOWN), header.get("version", "")


def _text(path: str) -> str:
    """The text of a file; empty if it does not exist or cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:  # noqa: PTH123 - as above
            return file.read()
    except OSError as exc:
        _refuse_passing(exc)
        return ""


def _refuse_passing(exc: OSError) -> None:
    """Raise if the system is short of resources now: an installed plugin would otherwise seem to be missing."""
    if exc.errno in _PASSING:
        text = f"the plugins that are installed cannot be read at the moment: {os.strerror(exc.errno or 0)}"
        raise StoreUnavailableError(text) from exc


def unknown(name: str, installed: list[str]) -> UnknownBackendError:
    """The error about a missing backend; *installed* are the names of the installed ones."""
    have = ", ".join(installed) or "none"
    if name in FIRST_PARTY:
        text = f"backend {name!r} is not installed; run: pip install {FIRST_PARTY[name]} (installed: {have})"
        return UnknownBackendError(text)
    near = nearest(name, [*installed, *FIRST_PARTY])
    hint = f"did you mean {near!r}? " if near else ""
    rest = f"{f'; {hint}' if hint else ' '}(installed: {have})"
    return UnknownBackendError(f"no backend is named {name!r}{rest}", rest)
