"""Texts of the pages: characters that stay visible, times, sizes, addresses of pages."""

from __future__ import annotations

import json
import re
from typing import Any, Final
from urllib.parse import quote

from markupsafe import Markup

from kode_core import Json, now_ms
from kode_core.cli.output import utc, visible

__all__ = ["ago", "bytes_text", "clock", "duration", "finalize", "ident", "iso", "link", "preview", "short"]

_UNITS: Final = ((86_400_000 * 365, "y"), (86_400_000, "d"), (3_600_000, "h"), (60_000, "min"), (1_000, "s"))
_LONGEST_CELL: Final = 20_000


def finalize(value: Any) -> Any:
    """Every text that a template shows: characters that would hide, or turn the line around, are shown as escapes."""
    return visible(value, lines=True) if isinstance(value, str) and not isinstance(value, Markup) else value


def link(path: str, **arguments: object) -> str:
    """The address of a page; arguments that are None or empty are left out."""
    given = [
        f"{quote(name)}={quote(str(value), safe='', errors='surrogatepass')}"
        for name, value in arguments.items()
        if value is not None and value != ""
    ]
    return f"{path}?{'&'.join(given)}" if given else path


def ago(time_ms: int | None, now: int | None = None) -> str:
    """How long ago a time was, as in ``3 min ago``."""
    if time_ms is None:
        return ""
    distance = (now_ms() if now is None else now) - time_ms
    for unit, name in _UNITS:
        if abs(distance) >= unit:
            number = abs(distance) // unit
            shown = f"{number} {name}" if number < 10_000 else f"more than 9,999 {name}"
            return f"{shown} ago" if distance > 0 else f"in {shown}"
    return "now"


def clock(time_ms: int | None) -> str:
    """The time to the second, in UTC."""
    return "" if time_ms is None else f"{utc(time_ms)} UTC"


def iso(time_ms: int) -> str:
    """The time for a machine; empty outside of the calendar."""
    shown = utc(time_ms)
    return f"{shown.replace(' ', 'T')}Z" if ":" in shown else ""


def duration(milliseconds: float | None) -> str:
    """A duration, as in ``340 ms`` and ``1.2 s``."""
    if milliseconds is None or milliseconds != milliseconds:
        return ""
    if milliseconds < 1_000:
        return f"{max(milliseconds, -999_999):.0f} ms"
    if milliseconds < 60_000:
        return f"{milliseconds / 1_000:.1f} s"
    if milliseconds < 1e9:
        return f"{milliseconds / 60_000:,.1f} min"
    return f"{milliseconds / 86_400_000:,.0f} days" if milliseconds < 1e14 else "over 1M days"


def bytes_text(size: int | None) -> str:
    """A size, as in ``12.9 MB``."""
    if size is None:
        return "unknown"
    if size < 1_000:
        return f"{size} B"
    return f"{size / 1e3:,.1f} kB" if size < 1e6 else f"{size / 1e6:,.1f} MB"


def short(text: str, length: int = 160) -> str:
    """The beginning of *text* in one line."""
    flat = " ".join(text[: length * 4].split())
    return flat if len(flat) <= length else f"{flat[: length - 1]}…"


def ident(text: str, length: int = 300) -> str:
    """An id, in which spaces that a page would not show are escapes: at its ends, and next to another one."""

    def escaped(match: re.Match[str]) -> str:
        return "".join(f"\\x{ord(c):02x}" if ord(c) < 256 else f"\\u{ord(c):04x}" for c in match[0])

    shown = re.sub(r"^\s+|\s+$|\s{2,}|[^\S ]", escaped, text[: length * 4])
    return shown if len(shown) <= length else f"{shown[: length - 1]}…"


def preview(value: Json, length: int = 160) -> str:
    """The beginning of a JSON value in one line; the fields of an object as ``name: value``."""
    if isinstance(value, str):
        return short(value, length)
    if isinstance(value, dict):
        parts: list[str] = []
        for key in value:
            parts.append(f"{short(str(key), 40)}: {preview(value[key], 60)}")
            if sum(map(len, parts)) > length:
                break
        return short(", ".join(parts), length)
    if isinstance(value, list):
        return short(
            f"[{', '.join(preview(item, 40) for item in value[:10])}{', …' if len(value) > 10 else ''}]", length
        )
    shown = json.dumps(value) if not isinstance(value, int) or value.bit_length() < 10_000 else "a very large integer"
    return short(shown, length)


def cut(text: str, length: int = _LONGEST_CELL) -> tuple[str, int]:
    """The part of *text* that a page shows, and the number of characters that it leaves out."""
    return text[:length], max(0, len(text) - length)
