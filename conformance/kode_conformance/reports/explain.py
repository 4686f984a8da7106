"""The text of a finding: the contract's sentence, the result, and where to look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import Final

from kode_conformance.clauses import clauses
from kode_conformance.histories.findings import GOES_WRONG, NOT_ALWAYS
from kode_conformance.histories.programs import RULER
from kode_conformance.registry import Check, load_checks
from kode_conformance.reports.causes import Cause, likely
from kode_conformance.results import Report, Result, Status
from kode_conformance.settings import Settings, Tier
from kode_core.cli.output import count

__all__ = [
    "beginning",
    "checks_of",
    "conditions_line",
    "find_clauses",
    "finding_lines",
    "grouped",
    "higher_tiers",
    "is_search",
    "look_at",
    "search_line",
    "sentence",
    "why_not_run",
]

_FIRST_WORDS: Final = 68


def find_clauses(name: str) -> list[str]:
    """The ids of the clauses that *name* means: a clause, the clause of a check, or an area, in upper or lower case.

    Raises:
        ValueError: there is none.
    """
    wanted = name.strip().upper().partition(".")[0]
    areas = dict.fromkeys(clause.area for clause in clauses().values())
    found = [clause.id for clause in clauses().values() if wanted in (clause.id, clause.area)]
    if found:
        return found
    near = get_close_matches(wanted, [*clauses(), *areas], n=3, cutoff=0.7)
    hint = f"did you mean {' or '.join(near)}?" if near else f"the areas are {', '.join(areas)}"
    raise ValueError(f"the contract has no clause {name}; {hint}")


def sentence(clause_id: str) -> str:
    """A clause as the contract has it."""
    return f"{clause_id}: {clauses()[clause_id].text}"


def beginning(text: str) -> str:
    """The first words of a clause; code in it keeps its quotes."""
    if len(text) <= _FIRST_WORDS:
        return text
    words = text[:_FIRST_WORDS].rsplit(" ", 1)[0].rstrip(",;:")
    return f"{words}{'`' if words.count('`') % 2 else ''} …"


def look_at(clause_ids: Iterable[str]) -> str:
    """Where the fault usually is; empty when nothing is known."""
    return next((text for clause_id in clause_ids if (text := clauses()[clause_id].look_at)), "")


def finding_lines(result: Result, command: str, printed: Collection[str] = ()) -> list[tuple[str, str]]:
    """The lines of a finding to print, as (label, text). *command* is the command to which the result's replay is
    added; *printed* are the clauses that were printed in full before.
    """
    lines = [
        ("contract", f"{clause_id} (above)" if clause_id in printed else sentence(clause_id))
        for clause_id in result.clauses[:1]
    ]
    lines += [("checked", result.claim), ("found", result.message)]
    if "NotImplementedError" not in result.message:
        lines += _hints(result)
    if result.replay:
        if _may_pass(result):
            lines.append(("timing", "it may not fail in every run: the replay repeats it for up to a minute"))
        lines.append(("run it again", f"{command} --replay {result.replay}"))
    return lines


def _hints(result: Result) -> list[tuple[str, str]]:
    """The faults of stores that failed the check before; otherwise where the fault usually is."""
    seen = likely(result.check, result.message.partition(RULER)[0])
    if seen:
        return [("seen before", _shown_cause(cause)) for cause in seen]
    hint = look_at(result.clauses)
    return [("look first at", hint)] if hint else []


def _may_pass(result: Result) -> bool:
    """True if the check depends on timing, and found no history that failed each time."""
    if not any(check.id == result.check and check.depends_on_timing for check in load_checks()):
        return False
    found, ruler, _ = result.message.partition(RULER)
    return not (is_of_a_history(result) and ruler and NOT_ALWAYS not in found)


def is_of_a_history(result: Result) -> bool:
    """True if the finding comes from a history."""
    return result.message.startswith(GOES_WRONG)


def is_search(result: Result) -> bool:
    """True if a history or random values led to the finding: a plain check's finding is easier to understand."""
    return result.stochastic or is_of_a_history(result)


def _shown_cause(cause: Cause) -> str:
    """As in ``Sorts positions as text. (MSG-2, in 3 faulty stores; an index on a text column)``."""
    stores = f", in {cause.stores} faulty stores" if cause.stores > 1 else ""
    source = f"; {cause.source}" if cause.source else ""
    return f"{cause.wrong} ({cause.clause}{stores}{source})"


def checks_of(clause_id: str) -> list[Check]:
    """The checks of a clause."""
    return [check for check in load_checks() if clause_id in check.clauses]


def grouped(results: Iterable[Result]) -> list[list[Result]]:
    """Results that tell the same, together, as one fault is often found by many checks: in the order of the contract,
    and last what only histories and random checks found.
    """
    order = {clause: index for index, clause in enumerate(clauses())}
    found: dict[tuple[str, ...], list[Result]] = {}

    def place(result: Result) -> tuple[bool, int]:
        return is_search(result), order.get(result.check.partition(".")[0], len(order))

    for result in sorted(results, key=place):
        lines = result.message.splitlines() or [""]
        ends = (lines[0], lines[-1]) if lines[-1].startswith("  at ") else (result.message,)  # however it came there
        found.setdefault((result.status, *ends), []).append(result)
    return list(found.values())


def conditions_line(report: Report) -> str:
    """Under how many conditions the clauses were checked; empty when none was varied."""
    if not report.conditions:
        return ""
    return (
        f"conditions: {count(report.conditions, 'pair')} of a clause and a dimension were varied, as --coverage shows"
    )


def search_line(report: Report) -> str:
    """A sentence about the random search, worded so that it does not read as a proof; empty without random checks."""
    passed = sum(result.stochastic and result.status is Status.PASS for result in report.results)
    if not passed or report.tier.upper() not in Tier.__members__:
        return ""
    effort = Settings(Tier[report.tier.upper()]).effort
    return (
        f"passed by search at random: {count(passed, 'check')}, no violation in up to {effort.examples} examples of "
        f"{effort.steps} steps, {effort.schedules} schedules and {effort.kills} kills each, at seed {report.seed}"
    )


def higher_tiers(report: Report) -> str:
    """The number of checks that need another tier, in words; empty when this one runs all."""
    if report.tier.upper() not in Tier.__members__:
        return ""
    tier = Tier[report.tier.upper()]
    later = Counter(check.tier for check in load_checks() if check.tier > tier)
    numbers = [f"{number} with --tier {one.name.lower()}" for one, number in sorted(later.items())]
    return f"not in this tier: {', '.join(numbers)}" if numbers else ""


def why_not_run(clause_id: str) -> tuple[str, str]:
    """(status, reason) of a clause that a run has no result for."""
    tiers = [check.tier for check in checks_of(clause_id)]
    if tiers:
        return Status.NOT_RUN.value, f"with --tier {min(tiers).name.lower()}"
    return "not checked", clauses()[clause_id].untested
