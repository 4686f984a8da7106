"""URIs of database files."""

from __future__ import annotations

import os
from urllib.parse import quote

__all__ = ["uri_of"]


def uri_of(path: str, how: str) -> str:
    """The URI with which SQLite opens an absolute path as *how* says, also one of two slashes or a drive at first."""
    whole = path.replace(os.sep, "/")
    return f"file://{'' if whole.startswith('/') else '/'}{quote(whole, safe='/:')}?{how}"
