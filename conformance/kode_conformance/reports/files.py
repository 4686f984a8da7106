"""Reports as files: JSON for scripts, Markdown for people, and a badge."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from kode_conformance.clauses import clauses
from kode_conformance.reports import badge as badges
from kode_conformance.reports.explain import why_not_run
from kode_conformance.reports.markdown import report_page
from kode_conformance.reports.tally import level_of
from kode_conformance.results import Report

__all__ = ["as_json", "file_name", "prepare", "write"]


def prepare(folder: Path | None, badge: Path | None) -> None:
    """Make the folders that will be written to, so that a long run does not end with an error about them.

    Raises:
        OSError: they cannot be made.
    """
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    if badge is not None:
        badge.parent.mkdir(parents=True, exist_ok=True)
        if badge.is_dir():
            raise IsADirectoryError(f"{badge} is a folder")


def write(report: Report, folder: Path | None, badge: Path | None, command: str) -> list[Path]:
    """Write the requested files, and return their paths; *command* is what runs the suite again."""
    texts = {}
    if folder is not None:
        name = file_name(report.store)
        texts[folder / f"{name}.json"] = as_json(report)
        texts[folder / f"{name}.md"] = report_page(report, command).encode()
    if badge is not None:
        texts[badge] = badges.svg(report).encode()
    for path, raw in texts.items():
        path.write_bytes(raw)
    return list(texts)


def file_name(store: str) -> str:
    """A store's name as the name of a file."""
    return re.sub(r"[^\w.-]+", "-", store, flags=re.ASCII).strip("-.") or "store"


def as_json(report: Report) -> bytes:
    """The report, with values that scripts would otherwise compute: verdict, level, counts, a status by clause."""
    statuses = report.clause_statuses()
    plain = msgspec.to_builtins(report)
    computed = {
        "cpu": report.cpu,
        "verdict": report.verdict.value,
        "level": level_of(report),
        "partial": report.partial,
        "counts": {status.value: number for status, number in report.counts().items()},
        "clauses": {one: statuses[one].value if one in statuses else why_not_run(one)[0] for one in clauses()},
    }
    results = plain.pop("results")
    everything = _encodable({**plain, **computed, "results": results})
    return msgspec.json.format(msgspec.json.encode(everything), indent=1) + b"\n"


def _encodable(value: Any) -> Any:
    """*value* with lone surrogates, which stores may well have in their messages, as escapes."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, dict):
        return {_encodable(name): _encodable(item) for name, item in value.items()}
    return [_encodable(item) for item in value] if isinstance(value, list | tuple) else value
