"""URIs of database files."""

from __future__ import annotations

import os
from urllib.parse import quote

__all__ = ["uri_of"]


def uri_of(path: str, how: str) -> str:
    """The URI with which SQLite opens a file as *how* says.

    Links are followed here, because older versions of SQLite take ``link/..`` for the folder of the link. A path of two
    slashes at first, and one with a drive, would be read as the name of a host.
    """
    whole = os.path.realpath(path).replace(os.sep, "/")
    return f"file://{'' if whole.startswith('/') else '/'}{quote(whole, safe='/:')}?{how}"
