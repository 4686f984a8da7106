"""The clauses: one text, every one of them checked or said to be uncheckable."""

from __future__ import annotations

from pathlib import Path

from kode_conformance.clauses import clauses, contract_text
from kode_conformance.registry import load_checks

ROOT = Path(__file__).resolve().parents[2]


def test_the_documentation_has_the_same_contract() -> None:
    """docs/contract.md is the contract that the suite ships; copy it over when it was changed."""
    assert (ROOT / "docs" / "contract.md").read_text() == contract_text()


def test_checks_name_clauses_that_exist() -> None:
    """No check names a clause that the contract does not have."""
    assert {clause for check in load_checks() for clause in check.clauses} <= set(clauses())


def test_clauses_end_where_the_next_one_begins() -> None:
    """A clause's text is all of it and nothing else."""
    assert len(clauses()) >= 73
    assert clauses()["MSG-2"].text == "`load_messages` returns the list in the order given."
    assert clauses()["INFO-3"].text.endswith("and leaves no trace.")
    assert clauses()["DUR-3"].text.endswith("whole or not at all.")
    assert clauses()["MSG-4"].broken_before
    assert not clauses()["MSG-2"].broken_before
