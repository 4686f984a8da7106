"""What is said of a finding: the contract's sentence, what was found, and where to look."""

from __future__ import annotations

from collections.abc import Iterable

from kode_conformance.clauses import clauses
from kode_conformance.registry import Check, load_checks
from kode_conformance.results import Result

__all__ = ["find_clause", "finding_lines", "look_at", "sentence"]


def find_clause(name: str) -> str:
    """The id of the clause that *name* means, in any case.

    Raises:
        ValueError: there is none.
    """
    wanted = name.upper()
    if wanted not in clauses():
        areas = ", ".join(dict.fromkeys(clause.area for clause in clauses().values()))
        raise ValueError(f"the contract has no clause {name}; a clause is named as in MSG-4, the areas are {areas}")
    return wanted


def sentence(clause_id: str) -> str:
    """A clause as the contract has it."""
    return f"{clause_id}: {clauses()[clause_id].text}"


def look_at(clause_ids: Iterable[str]) -> str:
    """Where the fault usually is; empty when nothing is known."""
    return next((text for clause_id in clause_ids if (text := clauses()[clause_id].look_at)), "")


def finding_lines(result: Result, replay: str) -> list[tuple[str, str]]:
    """(label, text) of what to print of a finding; *replay* is the command that the result's replay is added to."""
    lines = [("checked", result.claim)]
    lines += [("contract", sentence(clause_id)) for clause_id in result.clauses[:1]]
    lines.append(("found", result.message))
    hint = look_at(result.clauses)
    if hint:
        lines.append(("look first at", hint))
    if result.replay:
        lines.append(("run it again", f"{replay} --replay '{result.replay}'"))
    return lines


def checks_of(clause_id: str) -> list[Check]:
    """The checks of a clause."""
    return [check for check in load_checks() if clause_id in check.clauses]
