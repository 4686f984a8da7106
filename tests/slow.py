"""Choose the tests that ``make test`` leaves out: ``python -m tests.slow TIMES [SECONDS]`` writes ``tests/slow.txt``.

TIMES is the file that a whole run with ``KODE_TEST_TIMES`` wrote. Tests are left out, the longest first, until the rest
takes SECONDS (400) on one core; a third of the functions of each file stays, so that no area is left out. All cases of
a parametrized test stay together. What TIMES does not name, as after a run of ``make test``, stays in the list.
"""

from __future__ import annotations

import json
import sys
from collections import Counter, defaultdict
from pathlib import Path

__all__ = ["longest"]


def longest(times: dict[str, float], seconds: float) -> list[str]:
    """The functions to leave out so that the others take *seconds* together: those with the longest cases first, as
    long as a third of their file stays.
    """
    cases: dict[str, list[float]] = defaultdict(list)
    for test, took in times.items():
        cases[test.partition("[")[0]].append(took)
    sizes = Counter(_file(test) for test in cases)
    stay = sizes.copy()
    rest, left_out = sum(times.values()), []
    for test in sorted(cases, key=lambda name: -max(cases[name])):
        if rest <= seconds:
            break
        file = _file(test)
        if stay[file] <= max(1, sizes[file] // 3):
            continue
        stay[file] -= 1
        left_out.append(test)
        rest -= sum(cases[test])
    return sorted(left_out)


def _file(test: str) -> str:
    return test.partition("::")[0]


def main(file: str, seconds: str = "400") -> None:
    """Write the list."""
    page, times = Path(__file__).with_name("slow.txt"), json.loads(Path(file).read_text())
    timed = {test.partition("[")[0] for test in times}
    untimed = set(page.read_text().splitlines()) - timed if page.exists() else set[str]()
    left_out = sorted({*longest(times, float(seconds)), *untimed})
    page.write_text("".join(f"{test}\n" for test in left_out))
    print(f"{len(left_out)} functions are slow; {len(times)} tests took {sum(times.values()):.0f} s")


if __name__ == "__main__":
    main(*sys.argv[1:])
