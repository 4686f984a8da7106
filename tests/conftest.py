"""Shared by the tests of the project and of the plugins."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534


@pytest.fixture(autouse=True)
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a folder of its own and no settings of the person who runs it."""
    for name in list(os.environ):
        mine = name.startswith(("KODE_TEST_", "KODE_CONFORMANCE_TIMEOUT_SCALE"))
        if name.startswith(("KODE_", "POSTGRES_", "PG")) and not mine:
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A folder, and no more rights than any user has, also when root runs the tests."""
    folder = Path(tempfile.mkdtemp())
    try:
        if os.geteuid() != 0:
            yield folder
            return
        os.chown(folder, NOBODY, NOBODY)
        os.seteuid(NOBODY)
        try:
            if not os.access(folder, os.W_OK, effective_ids=True):
                pytest.skip(f"{folder} lies where other users have no access; set TMPDIR to another place")
            yield folder
        finally:
            os.seteuid(0)
    finally:
        shutil.rmtree(folder)
