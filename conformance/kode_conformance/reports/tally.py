"""A report in numbers: the areas of the contract, and how many of their checks passed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final, NamedTuple

from kode_conformance.results import BAD, Report, Result, Status
from kode_core.cli.output import count

__all__ = ["APART", "AREAS", "Tally", "area_of", "by_area", "counts_text", "level_of", "tally", "tier_text"]

AREAS: Final = {
    "VAL": "values",
    "ID": "identity",
    "MSG": "messages",
    "TC": "tool calls",
    "TURN": "turns",
    "EVT": "events",
    "TODO": "todos",
    "HIS": "history",
    "MED": "media cache",
    "SNAP": "snapshots",
    "INFO": "agent info",
    "VER": "versions",
    "DOC": "documents of the caller's own",
    "LIFE": "lifecycle",
    "QRY": "queries",
    "OPS": "operations",
    "LOCK": "locks",
    "FORK": "forks",
    "SCOPE": "views of tenants",
    "DUR": "durability",
    "HARNESS": "the harness",
}
"""The subject of each area, in the order of the contract. ``HARNESS`` is for the claims of the harness about the store.
"""

APART: Final = (Status.NOT_APPLICABLE, Status.UNVERIFIED, Status.NOT_RUN)
"""The statuses that say nothing for or against a store."""

_WORDS: Final = {
    Status.FAIL: "failed",
    Status.STALE_DEVIATION: "stale deviation",
    Status.HARNESS_ERROR: "harness error",
    Status.DEVIATION: "deviation",
    Status.PASS: "passed",
}
_NOUNS: Final = frozenset({"stale deviation", "harness error", "deviation"})


class Tally(NamedTuple):
    """The outcomes of some checks.

    Attributes:
        counts: by status, without those at 0.
    """

    counts: Counter[Status]

    @property
    def passed(self) -> int:
        """How many passed."""
        return self.counts[Status.PASS]

    @property
    def eligible(self) -> int:
        """How many were judged, and so could have passed."""
        return self.counts.total() - sum(self.counts[status] for status in APART)

    @property
    def bad(self) -> int:
        """How many failed, or could not be run for a fault of the harness."""
        return sum(self.counts[status] for status in BAD)

    def apart(self, *, ran: bool = False) -> str:
        """The checks that were not judged, in words; empty when all were. With *ran*, checks that did not run are left
        out.
        """
        told_apart = APART[:2] if ran else APART
        return ", ".join(f"{self.counts[status]} {status}" for status in told_apart if self.counts[status])


def tier_text(tier: str, seconds: float | None) -> str:
    """The tier, and how long random checks went on if a time was given: ``thorough, random checks up to 90 s``."""
    return tier if seconds is None else f"{tier}, random checks up to {seconds:g} s"


def counts_text(counts: Counter[Status]) -> str:
    """Counts in words, the worst first: ``1 failed, 109 passed, 18 not applicable``."""
    words = {**_WORDS, **{status: status.value for status in APART}}
    return ", ".join(
        count(counts[status], word) if word in _NOUNS else f"{counts[status]:,} {word}"
        for status, word in words.items()
        if counts[status]
    )


def tally(results: Iterable[Result]) -> Tally:
    """The numbers of some results."""
    return Tally(Counter(result.status for result in results))


def area_of(check_id: str) -> str:
    """``MSG`` of ``MSG-1.save_replaces_the_whole_list``."""
    return check_id.partition(".")[0].partition("-")[0]


def by_area(report: Report) -> dict[str, Tally]:
    """The numbers of each area that has results, in the order of the contract; areas of other contracts come last."""
    found: dict[str, list[Result]] = {area: [] for area in AREAS}
    for result in report.results:
        found.setdefault(area_of(result.check), []).append(result)
    return {area: tally(results) for area, results in found.items() if results}


def level_of(report: Report) -> str:
    """How much a store offers: ``core``, ``queryable`` or ``extended``."""
    if report.capabilities.get("EXTENDED"):
        return "extended"
    return "queryable" if report.capabilities.get("QUERYABLE") else "core"
