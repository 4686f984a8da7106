"""``kode.toml`` and ``[tool.kode]`` of ``pyproject.toml``: stores by name."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kode_core.authoring.paths import local_path, working_folder
from kode_core.authoring.values import named
from kode_core.errors import ConfigurationError

__all__ = ["named_stores", "relative_to"]


def named_stores(environ: Mapping[str, str]) -> dict[str, tuple[dict[str, Any], Path]]:
    """The stores of the configuration file by name, each with the path of the file.

    Raises:
        ConfigurationError: the file cannot be read or understood, or ``KODE_CONFIG`` names no file.
    """
    path = _config_file(environ)
    if path is None:
        return {}
    content = _toml(path)
    if path.name == "pyproject.toml":
        content = content.get("tool", {}).get("kode", {})
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: stores are written as [tool.kode.stores.NAME], each a table")
    stores = content.get("stores", {})
    unknown = sorted(content.keys() - {"stores"})
    if unknown:
        raise ConfigurationError(f"{path}: there is no key {named(unknown[0])}; stores are written as [stores.NAME]")
    if not isinstance(stores, dict) or not all(isinstance(store, dict) for store in stores.values()):
        raise ConfigurationError(f"{path}: stores are written as [stores.NAME], each a table")
    return {name: (store, path) for name, store in stores.items()}


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
        if (folder / "kode.toml").is_file():
            return folder / "kode.toml"
        project = folder / "pyproject.toml"
        if project.is_file() and _has_our_table(project):
            return project
    return None


def _has_our_table(project: Path) -> bool:
    """True if a ``pyproject.toml`` configures stores; the file of another project may be malformed."""
    try:
        text = project.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return False
    if "kode" not in text:
        return False
    try:
        import tomllib  # most programs have no such file

        tool = tomllib.loads(text).get("tool")
    except OSError:  # no descriptor is left for the import
        return False
    except (tomllib.TOMLDecodeError, RecursionError):
        return re.search(r"^\s*\[+\s*tool\s*\.\s*kode\b", text, re.MULTILINE) is not None
    return isinstance(tool, dict) and "kode" in tool


def _toml(path: Path) -> dict[str, Any]:
    try:
        import tomllib

        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        problem = f"cannot be read: {exc.strerror}"
    except UnicodeDecodeError:
        problem = "is not TOML: it is not UTF-8"
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
