"""The plugin of the memory backend."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, unquote

from kode_core.backends.memory.engine import MemoryOptions, open_memory
from kode_core.errors import ConfigurationError
from kode_core.plugins import Backend, hookimpl


def _from_url(url: SplitResult) -> Mapping[str, Any]:
    if "@" in url.netloc + url.path:
        raise ConfigurationError("names a user or password, which a memory store does not have: write memory://name")
    name = unquote(url.netloc or url.path.strip("/"))
    return {"name": name} if name else {}


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="memory",
        options=MemoryOptions,
        open=open_memory,
        from_url=_from_url,
        summary="in this process only; for tests",
    )
