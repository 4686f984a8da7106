"""``kode conformance --coverage``: claims and the conditions they are checked under; replays that depend on timing."""

from __future__ import annotations

import json
import sys
import tomllib
from importlib.resources import files
from itertools import count
from pathlib import Path

import pytest
from kode_conformance import load_checks
from kode_conformance.clauses import clauses
from kode_conformance.commands.conformance import _until_it_shows
from kode_conformance.dimensions import MEANINGS, Dimension, counts, lengths, twins
from kode_conformance.reports.coverage import cells, notes_of_today, share, table_lines
from kode_conformance.results import Report, Result, Status
from kode_conformance.settings import Tier

from kode_core.cli import main


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What ``kode conformance`` prints."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as info:
        patch.setattr(sys, "argv", ["kode", "conformance", *arguments])
        main()
    assert info.value.code == 0
    return capsys.readouterr().out


def test_every_check_varies_something() -> None:
    """A check names the dimensions that it varies, each once."""
    wrong = [check.id for check in load_checks() if not check.under or len({*check.under}) != len(check.under)]
    assert wrong == []


def test_every_dimension_is_told_and_varied() -> None:
    """Each dimension has a meaning, and checks of several areas that vary it."""
    assert list(MEANINGS) == list(Dimension)
    for dimension in Dimension:
        areas = {check.clauses[0].partition("-")[0] for check in load_checks() if dimension in check.under}
        assert len(areas) >= 2, dimension


def test_every_clause_says_what_is_varied_and_why_the_rest_is_not() -> None:
    """Each pair of a clause and a dimension has checks, or a reason why it has none, and not both."""
    found = {(clause, dimension.value): cell for clause in clauses() for dimension, cell in cells(clause).items()}
    assert [pair for pair, cell in found.items() if not cell.checks and not cell.reason] == []
    assert [pair for pair, cell in found.items() if cell.checks and cell.reason] == []


def test_reasons_are_of_what_is_not_varied() -> None:
    """The notes are as the command writes them, and give a reason of a clause's own only for what it does not vary."""
    text = files("kode_conformance").joinpath("clauses.toml").read_text("utf-8")
    assert notes_of_today(text) == text
    stray = {
        clause: names
        for clause, note in tomllib.loads(text).items()
        if clause in clauses() and (names := {*note.get("because", ())} - {*note.get("not_varied", ())})
    }
    assert stray == {}


def test_the_table_for_people_and_for_scripts(capsys: pytest.CaptureFixture[str]) -> None:
    """The table has a line for each clause and a sum; the JSON names the checks and the reasons."""
    lines = printed(capsys, "--coverage").splitlines()
    assert {line.split()[0] for line in lines if line.startswith("  ")} >= set(clauses())
    codes = [dimension.value[:3] for dimension in Dimension]
    at = next(i for i, line in enumerate(lines) if line.startswith("  DUR-3"))
    assert lines[at + 1].split() == lines[0].split() == codes
    assert lines[at + 3].startswith("q, s, t: varied with --tier quick, standard, thorough.  ·: not varied")
    assert [line.split()[0] for line in lines[at + 5 : at + 5 + len(codes)]] == codes
    assert lines[-1].startswith("{:,} of {:,} pairs".format(*share()))
    found = {one["clause"]: one["dimensions"] for one in json.loads(printed(capsys, "--coverage", "--json"))["clauses"]}
    assert list(found) == list(clauses())
    assert "EVT-3.seq_may_repeat" in found["EVT-3"]["equals"]["checks"]


def test_a_clause_is_explained_with_its_conditions(capsys: pytest.CaptureFixture[str]) -> None:
    """--explain names what is varied."""
    out = printed(capsys, "--explain", "EVT-3")
    assert "varied" in out
    assert "equals" in out


def test_the_guide_has_the_table() -> None:
    """The page of the dimensions has a row for each, and the table as it is now."""
    page = Path(__file__).parents[2].joinpath("docs/guides/conditions.md").read_text("utf-8")
    assert "\n".join(table_lines()) in page
    assert all(f"| {dimension.value} |" in page for dimension in Dimension)


def test_values_are_around_limits() -> None:
    """Numbers of items ascend, and each tier has those before it up to its end; twins are all different."""
    for tier in Tier:
        assert list(counts(tier)) == sorted(set(counts(tier)))
    assert set(counts(Tier.QUICK)) <= set(counts(Tier.STANDARD)) <= set(counts(Tier.THOROUGH)) | {5001, 2500}
    assert max(counts(Tier.THOROUGH, most=101)) == 101
    assert list(lengths()) == sorted(set(lengths()))
    assert len({*twins("x")}) == len(twins("x")) > 60


def _report(status: Status) -> Report:
    result = Result(check="MSG-1.x", clauses=("MSG-1",), claim="It holds.", status=status)
    return Report(
        store="s", contract="1.0", tier="quick", seed=0, versions={}, capabilities={}, manifest="", started_at=0,
        seconds=0.0, results=(result,),
    )  # fmt: skip


def test_a_replay_that_depends_on_timing_goes_on_until_it_fails(capsys: pytest.CaptureFixture[str]) -> None:
    """A replay is repeated until the check fails, or for as long as was said."""
    runs = count(2)
    found = _until_it_shows(
        _report(Status.PASS), lambda: _report(Status.FAIL if next(runs) == 4 else Status.PASS), seconds=60.0
    )
    assert found.failures()
    assert "it failed in run 4" in capsys.readouterr().err
    assert not _until_it_shows(_report(Status.PASS), lambda: _report(Status.PASS), seconds=0.01).failures()
    assert "it did not fail in" in capsys.readouterr().err
