"""The version of what the record engine keeps in heads, items and parts, whatever database they are in.

A plugin has a version of its own for what it makes of its database. Both stand in the record that it reads when a store
is opened, so that this costs no call more.
"""

from __future__ import annotations

from typing import Final

from kode_core.errors import SchemaVersionError

__all__ = ["LAYOUT_VERSION", "see_layout"]

LAYOUT_VERSION: Final = 1
"""Grows when a release writes what an older one would misread. What older ones wrote is read as it is."""
_FIRST: Final = 1
"""That of stores which do not say it."""


def see_layout(found: int | None, place: str) -> bool:
    """Whether a store says this version. Where it says an older one, it has to say this one before it is written.

    Raises:
        SchemaVersionError: it was written by a newer release.
    """
    version = _FIRST if found is None else found
    if version > LAYOUT_VERSION:
        raise SchemaVersionError(
            f"{place} has records of layout {version}, and this kode-core knows up to {LAYOUT_VERSION}: "
            "run: pip install --upgrade kode-core"
        )
    return version == LAYOUT_VERSION
