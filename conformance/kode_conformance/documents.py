"""Reports as files."""

from __future__ import annotations

from pathlib import Path

import msgspec

from kode_conformance.results import Report

__all__ = ["write"]


def write(report: Report, folder: Path | None, badge: Path | None) -> None:
    """Write what was asked for."""
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        raw = msgspec.json.format(msgspec.json.encode(report), indent=1)
        (folder / f"{report.store}.json").write_bytes(raw + b"\n")
