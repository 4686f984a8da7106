"""Choose the tests that ``make test`` leaves out: ``python -m tests.slow TIMES [SECONDS]`` writes ``tests/slow.txt``.

TIMES is the file that a whole run with ``KODE_TEST_TIMES`` wrote. Tests are left out, the longest first, until the rest
takes SECONDS (600) on one core. All cases of a parametrized test stay together.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path

__all__ = ["longest"]


def longest(times: dict[str, float], seconds: float) -> list[str]:
    """The functions to leave out so that the others take *seconds* together: those with the longest cases first."""
    cases: dict[str, list[float]] = defaultdict(list)
    for test, took in times.items():
        cases[test.partition("[")[0]].append(took)
    rest, left_out = sum(times.values()), []
    for test in sorted(cases, key=lambda name: -max(cases[name])):
        if rest <= seconds:
            break
        left_out.append(test)
        rest -= sum(cases[test])
    return sorted(left_out)


def main(file: str, seconds: str = "600") -> None:
    """Write the list."""
    times = json.loads(Path(file).read_text())
    left_out = longest(times, float(seconds))
    Path(__file__).with_name("slow.txt").write_text("".join(f"{test}\n" for test in left_out))
    print(f"{len(left_out)} functions are slow; {len(times)} tests took {sum(times.values()):.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
