"""``python -m conformance.tests.zoo.causes``: note which faults made which check fail, for the suite's findings."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import kode_conformance
import msgspec
from kode_conformance.reports.causes import Cause

from conformance.tests.zoo.base import load_mutants
from conformance.tests.zoo.rounds import load_faults, records

__all__ = ["PLACE", "causes", "main"]

PLACE: Final = Path(kode_conformance.__file__).with_name("causes.json")
_MOST: Final = 3


def _kills() -> Iterator[tuple[str, Cause]]:
    """(check, fault) for every fault that is known to be found."""
    for mutant in load_mutants():
        for check in (mutant.killed_by, *mutant.also):
            yield check, Cause(1, mutant.clause, mutant.wrong, mutant.source)
    stories = records()
    for fault in load_faults():
        now = stories[fault.name].now if fault.name in stories else None
        for check in [now.own, *now.others] if now else []:
            if check:
                yield check, Cause(1, fault.clauses[0], fault.wrong, fault.source)


def causes() -> dict[str, list[Cause]]:
    """The causes of each check's failures by the clause that was broken, the most frequent first."""
    found: defaultdict[str, defaultdict[str, list[Cause]]] = defaultdict(lambda: defaultdict(list))
    for check, cause in _kills():
        found[check][cause.clause].append(cause)
    merged = {}
    for check, by_clause in sorted(found.items()):
        ordered = sorted(by_clause.values(), key=len, reverse=True)[:_MOST]
        merged[check] = [Cause(len(same), same[0].clause, same[0].wrong, same[0].source) for same in ordered]
    return merged


def main() -> None:
    """Write the file."""
    PLACE.write_bytes(msgspec.json.format(msgspec.json.encode(causes()), indent=1) + b"\n")


if __name__ == "__main__":
    main()
