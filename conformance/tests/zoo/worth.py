"""``python -m conformance.tests.zoo.worth REPORT``: the cost of each check, and the faulty stores that need it.

The report is one of ``kode conformance STORE --report``. A check's worth is how many faulty stores name it: mutants of
the zoo that it must find, and stores of the rounds that it found. A check that costs much and is worth little, or whose
stores others find as well, should be dropped, made cheaper, or left to a later tier.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from kode_conformance.results import read_report

from conformance.tests.zoo.base import load_mutants
from conformance.tests.zoo.rounds import load_faults, records

__all__ = ["main", "worth"]


def worth() -> dict[str, tuple[int, int]]:
    """By check: how many mutants only it must find, and how many stores of the rounds it found."""
    mutants = Counter(mutant.killed_by for mutant in load_mutants() if not mutant.also)
    stories = records()
    found = Counter(stories[fault.name].now.own for fault in load_faults() if fault.name in stories)
    return {check: (mutants[check], found[check]) for check in {*mutants, *found} if check}


def main() -> None:
    """Print the checks, the dearest first."""
    report, known = read_report(Path(sys.argv[1]).read_bytes()), worth()
    total = sum(result.cpu for result in report.results)
    sys.stdout.write(f"{report.store}, {report.tier}: {total:.1f} s of CPU\n   CPU s  mutants  rounds  check\n")
    for result in sorted(report.results, key=lambda result: result.cpu, reverse=True):
        mutants, found = known.get(result.check, (0, 0))
        sys.stdout.write(f"{result.cpu:8.2f} {mutants:8} {found:7}  {result.check}\n")


if __name__ == "__main__":
    main()
