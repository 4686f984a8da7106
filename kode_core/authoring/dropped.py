"""The error for tables that were dropped from a database."""

from __future__ import annotations

from collections.abc import Collection

from kode_core.errors import StoreUnavailableError

__all__ = ["tables_dropped"]


def tables_dropped(place: str, names: Collection[str], made: str, anew: str) -> StoreUnavailableError:
    """The error for a store of which tables are missing: another store would be made in their place.

    Args:
        place: the database.
        names: the missing tables, one or more.
        made: what shows that they were there, as in ``this store has made``.
        anew: what becomes of the other tables of the store by which a user begins anew.
    """
    verb = "is" if len(names) == 1 else "are"
    return StoreUnavailableError(
        f"{place}: {', '.join(names)} {verb} missing, which {made}: put back a backup; to begin anew, drop the other"
        f" tables {anew}"
    )
