"""Shared by the tests of the project."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a folder of its own and no settings of the person who runs it."""
    import os

    for name in list(os.environ):
        if name.startswith(("KODE_", "POSTGRES_")) and name != "KODE_CONFORMANCE_TIMEOUT_SCALE":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
