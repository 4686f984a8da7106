"""Spans of time as text, such as ``90d``."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["read_span"]

_UNITS: Final = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000, "w": 604_800_000}


def read_span(text: str) -> int | None:
    """The milliseconds of a text such as ``90d``, in s, m, h, d or w; None if it is no such text."""
    found = re.fullmatch(r"([0-9]{1,9})([smhdw])", text)
    return int(found[1]) * _UNITS[found[2]] if found else None
