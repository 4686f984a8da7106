"""``python -m conformance.tests.zoo.worth REPORT``: the cost of each check, and the faulty stores that need it.

The report is one of ``kode conformance STORE --report``. A check's worth is how many faulty stores name it: mutants of
the zoo that it must find, and stores of the rounds that it found. A check that costs much and is worth little, or whose
stores others find as well, should be dropped, made cheaper, or left to a later tier.

With ``--most`` it ends with 1 when the run took more CPU, as ``make budget`` does for the tier ``quick``.
"""

from __future__ import annotations

import argparse
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


def main() -> int:
    """Print the checks, the dearest first; end with 1 where the run took more CPU than allowed."""
    parser = argparse.ArgumentParser(prog="python -m conformance.tests.zoo.worth", description=__doc__)
    parser.add_argument("report", type=Path, help="a report in JSON")
    parser.add_argument("--dearest", type=int, metavar="N", help="print only so many checks")
    parser.add_argument("--most", type=float, metavar="S", help="how many seconds of CPU the run may have taken")
    asked = parser.parse_args()
    report, known = read_report(asked.report.read_bytes()), worth()
    sys.stdout.write(f"{report.store}, {report.tier}: {report.cpu:.1f} s of CPU in {report.seconds:.1f} s\n")
    sys.stdout.write("   CPU s  mutants  rounds  check\n")
    for result in sorted(report.results, key=lambda result: result.cpu, reverse=True)[: asked.dearest]:
        mutants, found = known.get(result.check, (0, 0))
        sys.stdout.write(f"{result.cpu:8.2f} {mutants:8} {found:7}  {result.check}\n")
    if asked.most is None or report.cpu <= asked.most:
        return 0
    sys.stderr.write(f"the run took {report.cpu:.1f} s of CPU, and may take {asked.most:g} s\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
