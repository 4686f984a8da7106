"""``python -m conformance.tests.zoo.rounds.judge``: does the suite find the faults of a round?

Each faulty store is given to the checks as its author would give it to ``kode conformance``: first the checks of the
clauses that it breaks, then the checks of their areas, then all others. A store is *killed for its own reason* when a
check of a clause that it breaks fails; when only checks of other clauses fail they are named, so that a person can look
at them.
"""

from __future__ import annotations

import argparse
import json
import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from kode_conformance import load_checks, run_check
from kode_conformance.context import Unverified
from kode_conformance.registry import Check
from kode_conformance.running import runner
from kode_conformance.running.runner import capabilities_of
from kode_conformance.settings import Settings, Tier

from conformance.tests.zoo.base import ZooHarness
from conformance.tests.zoo.rounds import RECORDS, Fault, Record, Story, load_faults, records

__all__ = ["Verdict", "judge", "main", "record"]

_ENOUGH: Final = 3
"""So many checks of other clauses that fail end the search: the store is killed, and somebody looks at the reason."""


class Verdict(NamedTuple):
    """The result for a faulty store.

    Attributes:
        own: the check of one of its clauses that found it; empty when none did.
        others: checks of other clauses that failed.
        finding: the message of the first check that failed.
    """

    fault: str
    own: str
    others: Sequence[str]
    finding: str
    seconds: float

    @property
    def killed(self) -> bool:
        """True if any check found it."""
        return bool(self.own or self.others)


def _in_order(fault: Fault, tier: Tier) -> Iterator[Check]:
    """The checks that can run on the store: its own clauses first, then their areas, then all others; in each group,
    deterministic checks come first.
    """
    capabilities = capabilities_of(fault.harness())
    mine = [check for check in load_checks() if check.tier <= tier and not check.needs & ~capabilities]
    areas = {clause.partition("-")[0] for clause in fault.clauses}

    def distance(check: Check) -> tuple[int, bool, int]:
        away = 1 if areas & {clause.partition("-")[0] for clause in check.clauses} else 2
        return 0 if set(check.clauses) & set(fault.clauses) else away, check.depends_on_timing, check.tier

    return iter(sorted(mine, key=distance))


def _finding(check: Check, harness: ZooHarness, settings: Settings) -> str:
    """The finding of the check on the store; empty when it passes."""
    with redirect_stderr(StringIO()):
        try:
            run_check(check, harness, settings)
        except Unverified:
            return ""
        except Exception as exc:
            return f"{type(exc).__name__}: {exc}"
    return ""


def judge(name: str, settings: Settings, *, own_only: bool = False, scale: float = 0.5) -> Verdict:
    """Run the checks until one finds the fault for its own reason, or all have run, or all of its own clauses."""
    warnings.simplefilter("ignore")
    logging.getLogger().addHandler(logging.NullHandler())
    runner.SCALE = scale  # type: ignore[misc]
    fault = next(fault for fault in load_faults() if fault.name == name)
    start = time.perf_counter()
    others: list[str] = []
    first = own = ""
    for check in _in_order(fault, settings.tier):
        if own_only and not set(check.clauses) & set(fault.clauses):
            break
        found = _finding(check, fault.harness(), settings)
        if not found or _finding(check, fault.plain(), settings):  # a check that fails on the sound store says nothing
            continue
        first = first or found
        if set(check.clauses) & set(fault.clauses):
            own, first = check.id, found
            break
        others.append(check.id)
        if len(others) >= _ENOUGH:
            break
    return Verdict(name, own, others, first[:600], round(time.perf_counter() - start, 1))


def record(verdicts: Sequence[Verdict], tier: Tier) -> None:
    """Note the outcomes of faults: the first one for good, and the current one."""
    known = records()
    for verdict in verdicts:
        found = Record(tier.name.lower(), verdict.own, tuple(verdict.others))
        before = known.get(verdict.fault)
        known[verdict.fault] = Story(before.then if before else found, found, before.because if before else "")
    RECORDS.write_bytes(msgspec.json.format(msgspec.json.encode(dict(sorted(known.items()))), indent=1) + b"\n")


def main() -> int:
    """Judge faults by name, or all of some rounds; ends with 1 when one lives."""
    parser = argparse.ArgumentParser(prog="python -m conformance.tests.zoo.rounds.judge", description=__doc__)
    parser.add_argument("wanted", nargs="*", help="rounds or names; all when left out")
    parser.add_argument("--tier", choices=[tier.name.lower() for tier in Tier], default="quick")
    parser.add_argument("--own", action="store_true", help="only checks of the clauses that the store breaks")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write what was found")
    parser.add_argument("--record", action="store_true", help="note it in rounds.json, which the kill matrix shows")
    asked = parser.parse_args()
    settings = Settings(Tier[asked.tier.upper()], asked.seed)
    faults = [f for f in load_faults() if not asked.wanted or {f.round, f.name} & set(asked.wanted)]
    verdicts = []
    with ProcessPoolExecutor(asked.workers, multiprocessing.get_context("spawn")) as pool:
        for fault, done in [(fault, pool.submit(judge, fault.name, settings, own_only=asked.own)) for fault in faults]:
            verdict = done.result()
            verdicts.append(verdict)
            others = f" (others: {', '.join(verdict.others)})" if verdict.others and not verdict.own else ""
            word = verdict.own or ("NOT FOR ITS OWN REASON" if verdict.others else "LIVES")
            sys.stdout.write(
                f"{fault.round} {fault.name} {'/'.join(fault.clauses)}: {word}{others} {verdict.seconds}s\n"
            )
            sys.stdout.flush()
    own, killed = sum(bool(v.own) for v in verdicts), sum(v.killed for v in verdicts)
    sys.stdout.write(f"{own} of {len(verdicts)} killed for their own reason, {killed} killed\n")
    if asked.json is not None:
        asked.json.write_text(json.dumps([verdict._asdict() for verdict in verdicts], indent=1) + "\n")
    if asked.record:
        record(verdicts, settings.tier)
    return 0 if killed == len(verdicts) else 1


if __name__ == "__main__":
    sys.exit(main())
