"""The kill matrix: ``python -m conformance.tests.zoo.matrix --json FILE --markdown docs/kill-matrix.md``.

Runs each mutant against every check of its area, or with ``--all`` against every check of the first tier that starts no
other process, and writes down the checks that find it.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import multiprocessing
import re
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from kode_conformance import load_checks
from kode_conformance.context import Unverified
from kode_conformance.registry import Check
from kode_conformance.running import runner
from kode_conformance.running.runner import capabilities_of, run_check
from kode_conformance.settings import Settings, Tier

from conformance.tests.zoo.base import Mutant, load_mutants, needs_processes
from conformance.tests.zoo.rounds import page as rounds

_SECONDS = 10.0
"""How long one check may take on one mutant, unless it is the named one."""
LOOKS = 25
"""So often, at most, the named check may look for a fault that shows only sometimes, each time with another seed."""


_ROW = re.compile(r"^\| (\w+) \| .* \| ([A-Z]+-\d+) \| `([A-Z]+-\d+\.\w+)`(?: \(\w+\))? \| (\d+|–) \|$", re.MULTILINE)


class Row(NamedTuple):
    """The result for a mutant.

    Attributes:
        killed: True if the check that it names finds it.
        others: the other checks that find it; numbers where a page knew how many.
        tried: how many checks were run.
    """

    mutant: str
    wrong: str
    source: str
    base: str
    clause: str
    killed_by: str
    killed: bool
    others: tuple[str, ...]
    tried: int
    seconds: float


def area(clause: str) -> str:
    """As in ``MSG``."""
    return clause.partition("-")[0]


def rivals(mutant: Mutant, *, everything: bool) -> list[Check]:
    """The checks, besides the named one, that might find it."""
    capabilities = capabilities_of(mutant.harness())
    areas = {area(mutant.clause), area(mutant.killed_by)}
    return [
        check
        for check in load_checks()
        if check.tier is Tier.QUICK
        and not check.needs & ~capabilities
        and not needs_processes(check)
        and check.id != mutant.killed_by
        and (everything or areas & set(map(area, check.clauses)))
    ]


def finds(check: Check, mutant: Mutant, seconds: float, looks: int = 1, tier: Tier = Tier.QUICK) -> bool:
    """True if the check fails on the mutant; one that depends on timing may look several times, with other seeds."""
    runner.SCALE = seconds / 60  # type: ignore[misc]
    with redirect_stderr(StringIO()):
        for seed in range(looks if check.depends_on_timing else 1):
            try:
                run_check(check, mutant.harness(), Settings(tier, seed))
            except Unverified:
                return False
            except Exception:
                return True
    return False


def examine(name: str, everything: bool, named_only: bool = False) -> Row:
    """One row."""
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    start = time.perf_counter()
    mutant = next(mutant for mutant in load_mutants() if mutant.name == name)
    named = next(check for check in load_checks() if check.id == mutant.killed_by)
    checks = [] if named_only else rivals(mutant, everything=everything)
    killed = finds(named, mutant, 60.0, LOOKS, mutant.tier)
    others = tuple(check.id for check in checks if finds(check, mutant, _SECONDS))
    base = mutant.plain.name.removeprefix("plain ")
    seconds = round(time.perf_counter() - start, 1)
    return Row(
        name, mutant.wrong, mutant.source, base, mutant.clause, named.id, killed, others, len(checks) + 1, seconds
    )


def summary(rows: Sequence[Row]) -> dict[str, Any]:
    """The numbers that are asked for first."""
    kills = Counter(check for row in rows for check in (*([row.killed_by] if row.killed else []), *row.others))
    return {
        "mutants": len(rows),
        "killed": sum(row.killed for row in rows),
        "of the KODE SDK": sum(row.source.startswith("KODE SDK") for row in rows),
        "survivors": [row.mutant for row in rows if not row.killed],
        "kills by check": dict(sorted(kills.items())),
    }


def as_markdown(rows: Sequence[Row], *, everything: bool) -> str:
    """The matrix as a page of the documentation."""
    numbers, first = summary(rows), sum(first_tier(row) is Tier.QUICK for row in rows)
    others = "of the first tier" if everything else "of its area"
    lines = [
        "# Kill matrix",
        "",
        "The conformance suite tests itself with faulty stores, each with one fault. This page says which check finds",
        "which fault. It is made by `python -m conformance.tests.zoo.matrix`; `conformance/tests/test_zoo.py` holds",
        "the suite to it.",
        "",
        f"{numbers['mutants']} faulty stores, {numbers['killed']} of them killed by the check that they name;",
        f"{numbers['of the KODE SDK']} have a fault of the stores of the KODE SDK 2.7. *Others* is how many of the",
        f"other checks {others} find it, too, in one process. The tier `quick` finds {first} of the",
        "faulty stores; the name of the tier stands behind a check that finds its store in a later one.",
        "",
        "| faulty store | what is wrong | seen in | clause | killed by | others |",
        "|---|---|---|---|---|---:|",
        *map(_line, rows),
        "",
        *rounds.lines(),
        "",
    ]
    return "\n".join(lines)


def first_tier(row: Row) -> Tier:
    """The first tier at which the check finds the mutant."""
    return max(_checks()[row.killed_by].tier, _mutants()[row.mutant].tier)


@functools.cache
def _checks() -> dict[str, Check]:
    return {check.id: check for check in load_checks()}


@functools.cache
def _mutants() -> dict[str, Mutant]:
    return {mutant.name: mutant for mutant in load_mutants()}


def told(tier: Tier) -> str:
    """The tier in brackets, unless it is the first one."""
    return "" if tier is Tier.QUICK else f" ({tier.name.lower()})"


def _line(row: Row) -> str:
    killer = row.killed_by if row.killed else f"**not** by {row.killed_by}"
    cells = (
        row.mutant,
        row.wrong,
        row.source or "–",
        row.clause,
        f"`{killer}`{told(first_tier(row))}",
        str(len(row.others)) if row.tried > 1 else "–",
    )
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def matrix(names: Iterable[str], *, everything: bool, named_only: bool, workers: int) -> list[Row]:
    """All rows, in the order of *names*."""
    rows = []
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        for done in [pool.submit(examine, name, everything, named_only) for name in names]:
            row = done.result()
            rows.append(row)
            sys.stderr.write(f"{row.mutant}: {'killed' if row.killed else 'SURVIVES'}, {len(row.others)} others\n")
    return rows


def kept(page: Path) -> dict[str, Row]:
    """The rows of a page whose mutants break the same clause and are found by the same check as then."""
    found = {}
    known = {mutant.name: mutant for mutant in load_mutants()}
    for name, clause, killed_by, others in _ROW.findall(page.read_text("utf-8")):
        mutant = known.get(name)
        if mutant is not None and (mutant.clause, mutant.killed_by) == (clause, killed_by):
            base = mutant.plain.name.removeprefix("plain ")
            numbers = tuple(map(str, range(int(others)))) if others != "–" else ()
            found[name] = Row(
                name, mutant.wrong, mutant.source, base, clause, killed_by, True, numbers, len(numbers) + 1, 0.0
            )
    return found


def main() -> int:
    """Make the matrix; ends with 1 when a mutant survives."""
    parser = argparse.ArgumentParser(prog="python -m conformance.tests.zoo.matrix", description=__doc__)
    parser.add_argument("--json", type=Path, help="where to write the whole of it")
    parser.add_argument("--markdown", type=Path, help="where to write the table")
    parser.add_argument("--keep", type=Path, help="a page whose rows are taken over where they still hold")
    parser.add_argument("--named", action="store_true", help="only the check that a mutant names")
    parser.add_argument("--all", action="store_true", help="all checks of the first tier, not those of the area")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("mutants", nargs="*", help="all when left out")
    asked = parser.parse_args()
    names = asked.mutants or [mutant.name for mutant in load_mutants()]
    known = kept(asked.keep) if asked.keep else {}
    fresh = matrix(
        [name for name in names if name not in known],
        everything=asked.all,
        named_only=asked.named,
        workers=asked.workers,
    )
    known |= {row.mutant: row for row in fresh}
    rows = [known[name] for name in names]
    if asked.json is not None:
        asked.json.write_text(json.dumps({**summary(rows), "rows": [row._asdict() for row in rows]}, indent=1) + "\n")
    if asked.markdown is not None:
        asked.markdown.write_text(as_markdown(rows, everything=asked.all))
    survivors = summary(rows)["survivors"]
    sys.stderr.write(f"{len(rows) - len(survivors)} of {len(rows)} killed\n")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
