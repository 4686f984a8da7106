"""URIs of database files."""

from __future__ import annotations

import os
from urllib.parse import quote

__all__ = ["uri_of"]


def uri_of(path: str, how: str) -> str:
    """The URI with which SQLite opens a file, with *how* as its query.

    Links are resolved here, because older versions of SQLite take ``link/..`` for the folder of the link. A path that
    begins with two slashes, or has a drive, would otherwise be read as the name of a host.
    """
    whole = os.path.realpath(path).replace(os.sep, "/")
    return f"file://{'' if whole.startswith('/') else '/'}{quote(whole, safe='/:')}?{how}"
