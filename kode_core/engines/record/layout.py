"""The version of the record engine's layout of heads, items and parts, the same for every database.

A plugin has a version of its own for its tables and indexes. Both versions are in the record that the plugin reads when
a store is opened, so that the check costs no further call.
"""

from __future__ import annotations

from typing import Final

from kode_core.errors import SchemaVersionError

__all__ = ["LAYOUT_VERSION", "see_layout"]

LAYOUT_VERSION: Final = 2
"""Grows when a release writes records that an older one would misread. Older records are read unchanged.

Version 2: documents have terms, which an older release would leave out when it applies pending changes.
"""
_FIRST: Final = 1
"""The version of stores that do not record one."""


def see_layout(found: int | None, place: str) -> bool:
    """Whether a store has this version. A store of an older version must be given this one before the first write.

    Raises:
        SchemaVersionError: a newer release wrote the store.
    """
    version = _FIRST if found is None else found
    if version > LAYOUT_VERSION:
        raise SchemaVersionError(
            f"{place} has records of layout {version}, and this kode-core knows up to {LAYOUT_VERSION}: "
            "run: pip install --upgrade kode-core"
        )
    return version == LAYOUT_VERSION
