"""The pages that count clauses and checks count as the suite does."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from kode_conformance import load_checks
from kode_conformance.clauses import clauses

ROOT: Final = Path(__file__).parents[1]


def test_the_pages_have_the_numbers_of_the_suite() -> None:
    """Clauses exactly, and checks to the ten."""
    checks = round(len(load_checks()), -1)
    readme, why = (ROOT / "README.md").read_text(), (ROOT / "docs" / "why.md").read_text()
    assert f"It has {len(clauses())} [clauses]" in readme
    found = re.findall(r"[Ss]ome (\d+) checks", readme + why)
    assert found and {abs(int(number) - checks) <= 10 for number in found} == {True}
