"""The plugin is light, and the package has what the guide promises."""

from __future__ import annotations

import subprocess
import sys

import kode_sqlite
from kode_sqlite.plugin import kode_store_backend

from kode_core.plugins import API


def test_the_plugin_imports_no_driver() -> None:
    """Loading the plugin, and importing the package, imports neither aiosqlite nor sqlite3."""
    script = (
        "import sys, kode_sqlite, kode_sqlite.plugin; print([m for m in ('aiosqlite', 'sqlite3') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_the_backend_says_what_it_is() -> None:
    """The backend has the name of its entry point and the API of this core."""
    backend = kode_store_backend()
    assert (backend.name, backend.api, backend.gives) == ("sqlite", API, "engine")


def test_the_public_names() -> None:
    """The package has a store for direct use and its options."""
    assert kode_sqlite.__all__ == ["SqliteOptions", "SqliteStore"]
