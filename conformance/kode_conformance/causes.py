"""Why stores failed a check before: the faults of the stores that the suite is itself tested with, by check."""

from __future__ import annotations

import functools
from importlib.resources import files

import msgspec

__all__ = ["Cause", "causes_of"]


class Cause(msgspec.Struct, frozen=True):
    """Faults that made a check fail.

    Attributes:
        stores: how many faulty stores broke this clause when the check failed on them.
        clause: the clause that they broke.
        wrong: what one of them does, in a sentence.
        source: where such a fault comes from; empty where it was thought out.
    """

    stores: int
    clause: str
    wrong: str
    source: str = ""


@functools.cache
def _known() -> dict[str, tuple[Cause, ...]]:
    raw = files("kode_conformance").joinpath("causes.json").read_bytes()
    return msgspec.json.decode(raw, type=dict[str, tuple[Cause, ...]])


def causes_of(check_id: str) -> tuple[Cause, ...]:
    """The causes of a failure, the most frequent first; none for a check that found no faulty store yet."""
    return _known().get(check_id, ())
