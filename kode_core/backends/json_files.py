"""The plugin of the JSON files backend."""

from __future__ import annotations

from kode_core.config import path_from_url
from kode_core.engines.json_files import JsonOptions, open_json
from kode_core.plugins import Backend, hookimpl


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="json",
        options=JsonOptions,
        open=open_json,
        from_url=path_from_url("base_dir"),
        variables={"KODE_STORE_PATH": "base_dir"},
        summary="a folder of JSON files; nothing to install",
    )
