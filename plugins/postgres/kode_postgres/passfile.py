"""libpq's password file, with one line for each server, database and user."""

from __future__ import annotations

import os
import re
import stat
import warnings
from pathlib import Path
from typing import Final

__all__ = ["password_in"]

_LINE: Final = re.compile(r"((?:\\.|[^:\\])*):" * 4 + "(.*)")


def password_in(file: str, host: str, port: int, database: str, user: str) -> str | None:
    """The password of the first line that matches; None if none does.

    *file* is empty for ``~/.pgpass``. A file that others can read is not used; a warning says so.
    """
    path = Path(file) if file else _default()
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):
            warnings.warn(f"the password file {path} is no plain file, and is not read", stacklevel=2)
            return None
        if os.name == "posix" and found.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
            warnings.warn(
                f"the password file {path} can be read by others, and is not read: run chmod 0600", stacklevel=2
            )
            return None
        lines = path.read_text(encoding="utf-8-sig", errors="replace").split("\n")
    except (OSError, ValueError):
        return None
    wanted = (host, str(port), database, user)
    for line in lines:
        match = None if line.startswith("#") else _LINE.fullmatch(line.removesuffix("\r"))
        if match and all(
            part in ("*", own) or _plain(part) == own for part, own in zip(match.groups(), wanted, strict=False)
        ):
            return _plain(match[5])
    return None


def _default() -> Path:
    if os.name == "nt":
        return Path(os.environ.get("APPDATA", ""), "postgresql", "pgpass.conf")
    return Path("~", ".pgpass").expanduser()


def _plain(text: str) -> str:
    """A part of a line without its escapes: a backslash precedes a colon or another backslash."""
    return re.sub(r"\\(.)", r"\1", text)
