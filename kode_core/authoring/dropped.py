"""The error for tables that were dropped from a database."""

from __future__ import annotations

from collections.abc import Collection

from kode_core.errors import StoreUnavailableError

__all__ = ["tables_dropped", "texts_dropped"]


def tables_dropped(place: str, names: Collection[str], made: str, anew: str) -> StoreUnavailableError:
    """The error for a store of which tables are missing: another store would be made in their place.

    Args:
        place: the database.
        names: the missing tables, one or more.
        made: what shows that they were there, as in ``this store has made``.
        anew: what becomes of the other tables of the store by which a user begins anew.
    """
    return StoreUnavailableError(
        f"{place}: {', '.join(names)} {_verb(names)} missing, which {made}: put back a backup; to begin anew, drop"
        f" the other tables {anew}"
    )


def texts_dropped(place: str, names: Collection[str], then: str) -> StoreUnavailableError:
    """The error for an index of texts of which tables are missing.

    Args:
        place: the database.
        names: the missing tables, one or more.
        then: what follows, and who has to run the commands that mend it, as in ``messages are not written: run``.
    """
    return StoreUnavailableError(
        f"{place}: {' and '.join(names)} of the index of texts {_verb(names)} missing, without which {then}"
        " kode text-index drop, or rebuild"
    )


def _verb(names: Collection[str]) -> str:
    return "is" if len(names) == 1 else "are"
