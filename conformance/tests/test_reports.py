"""Reports: what is counted, what is written, and what can be read again."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import msgspec
import pytest
from kode_conformance.clauses import clauses
from kode_conformance.commands.compare import compared
from kode_conformance.registry import load_checks
from kode_conformance.reports import badge
from kode_conformance.reports import files as documents
from kode_conformance.reports.explain import grouped, search_line
from kode_conformance.reports.markdown import cell, report_page
from kode_conformance.reports.matrix import matrix_lines
from kode_conformance.reports.tally import AREAS, by_area, counts_text, level_of, tally
from kode_conformance.reports.terminal import print_report
from kode_conformance.results import FORMAT, Report, Result, Status, Verdict, read_report
from kode_conformance.running.replay import Replay, read_replay, replay_of
from kode_conformance.settings import Settings, Tier

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guides" / "conformance.md"
HOSTILE = "a|b\n`c` <d> \x1b[31m \ud800 *e* ```"


def result(check: str, status: Status = Status.PASS, *more: str, **fields: Any) -> Result:
    return Result(check=check, clauses=(check.partition(".")[0], *more), claim="It holds.", status=status, **fields)


def report(*results: Result, **fields: Any) -> Report:
    plain: dict[str, Any] = {
        "store": "duck",
        "contract": "1.0",
        "tier": "standard",
        "seed": 7,
        "versions": {"duckdb": "1.4"},
        "capabilities": {"QUERYABLE": True, "EXTENDED": True},
        "manifest": "0123",
        "started_at": 1_700_000_000_000,
        "seconds": 1.5,
    }
    return Report(results=results, **{**plain, **fields})


GOOD = (result("MSG-1.a"), result("VAL-1.b", Status.PASS, "MSG-2"), result("DUR-1.c", Status.NOT_APPLICABLE))


# --- Verdicts and numbers ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "verdict"),
    [
        (GOOD, Verdict.CONFORMANT),
        ((*GOOD, result("EVT-1.d", Status.UNVERIFIED)), Verdict.CONFORMANT),
        ((*GOOD, result("EVT-1.d", Status.DEVIATION)), Verdict.WITH_DEVIATIONS),
        ((*GOOD, result("EVT-1.d", Status.NOT_RUN)), Verdict.PART_PASSED),
        ((*GOOD, result("EVT-1.d", Status.HARNESS_ERROR)), Verdict.INCOMPLETE),
        ((*GOOD, result("EVT-1.d", Status.STALE_DEVIATION)), Verdict.NOT_CONFORMANT),
        ((*GOOD, result("EVT-1.d", Status.FAIL), result("EVT-1.e", Status.NOT_RUN)), Verdict.NOT_CONFORMANT),
        ((result("EVT-1.d", Status.NOT_APPLICABLE),), Verdict.INCOMPLETE),
        ((), Verdict.INCOMPLETE),
    ],
)
def test_the_verdict_is_the_worst_that_was_found(results: tuple[Result, ...], verdict: Verdict) -> None:
    """One failure decides; what was not judged never makes a store conformant."""
    assert report(*results).verdict is verdict


def test_a_clause_has_the_worst_status_of_its_checks() -> None:
    """A check speaks for all clauses that it names; what was only partly verified is not a pass."""
    found = report(
        result("MSG-1.a", Status.PASS, "VAL-1"),
        result("MSG-1.b", Status.UNVERIFIED),
        result("VAL-1.c", Status.FAIL),
        result("EVT-1.d", Status.NOT_APPLICABLE),
        result("EVT-1.e"),
    ).clause_statuses()
    assert found == {"MSG-1": Status.UNVERIFIED, "VAL-1": Status.FAIL, "EVT-1": Status.PASS}


def test_areas_stand_in_the_order_of_the_contract() -> None:
    """Every area of the contract is named, and only what was judged counts as eligible."""
    contract = list(dict.fromkeys(clause.area for clause in clauses().values()))
    assert list(AREAS) == [*contract, "HARNESS"]
    found = by_area(report(result("HARNESS.x"), result("NEW-1.x"), *GOOD))
    assert list(found) == ["VAL", "MSG", "DUR", "HARNESS", "NEW"]
    assert (found["DUR"].passed, found["DUR"].eligible, found["DUR"].apart()) == (0, 0, "1 not applicable")


def test_counts_are_told_the_worst_first() -> None:
    """In words, with the right plural."""
    statuses = [Status.PASS, Status.DEVIATION, Status.DEVIATION, Status.FAIL, Status.UNVERIFIED]
    counts = tally(result(f"MSG-1.{index}", status) for index, status in enumerate(statuses)).counts
    assert counts_text(counts) == "1 failed, 2 deviations, 1 passed, 1 unverified"


def test_one_fault_is_told_once() -> None:
    """Errors that come from one line are together, whatever way they went; others are not."""
    same = [
        result(f"MSG-{n}.a", Status.FAIL, message=f"KeyError: 1\n  at check.py:{n} x\n  at s.py:3 y") for n in (1, 2)
    ]
    other = result("VAL-1.a", Status.FAIL, message="KeyError: 1\n  at s.py:4 y")
    assert grouped([*same, other]) == [[other], same]


def test_a_long_run_names_its_slowest_checks(capsys: pytest.CaptureFixture[str]) -> None:
    """In its last lines; a short one does not."""
    slow = [result(f"MSG-{n}.a", seconds=n) for n in range(1, 6)]
    print_report(report(*slow, seconds=61.0), "kode conformance x")
    assert "\nslowest: MSG-5.a 5.0 s, MSG-4.a 4.0 s, MSG-3.a 3.0 s\n" in capsys.readouterr().out
    print_report(report(*slow), "kode conformance x")
    assert "slowest" not in capsys.readouterr().out


def test_the_last_line_has_the_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    """Next to the time that passed: waits take time and no CPU. The page and the JSON have it as well."""
    found = report(result("MSG-1.a", seconds=2, cpu=0.25), result("MSG-1.b", seconds=1, cpu=0.5), seconds=3.0)
    print_report(found, "kode conformance x")
    assert capsys.readouterr().out.endswith("CONFORMANT   2 passed   3.0 s, 0.8 s of CPU\n")
    assert "2 passed, in 3.0 s, 0.8 s of CPU." in report_page(found, "kode conformance x")
    assert json.loads(documents.as_json(found))["cpu"] == 0.8


def test_a_search_is_never_told_as_a_proof() -> None:
    """What was searched at random says how often, and at which seed."""
    line = search_line(report(result("MSG-1.a", stochastic=True), result("MSG-1.b")))
    assert "1 check, no violation in up to 100 examples of 30 steps, 20 schedules" in line
    assert line.endswith("at seed 7")
    assert search_line(report(*GOOD)) == ""


# --- Replays ----------------------------------------------------------------------------------------------------------


def test_a_replay_names_check_seed_and_tier() -> None:
    """What is written is read again; the tier is part of it, for it says how many random values are drawn."""
    text = replay_of("MSG-1.a_b", Settings(Tier.THOROUGH, 41))
    assert text == "MSG-1.a_b@seed=41,tier=thorough"
    assert read_replay(text) == Replay("MSG-1.a_b", 41, Tier.THOROUGH)
    assert read_replay("MSG-1.a_b@seed=3") == Replay("MSG-1.a_b", 3, None)
    assert read_replay("MSG-1.a_b") == Replay("MSG-1.a_b", None, None)
    for wrong in ("", "MSG-1", "MSG-1.a@seed=x", "MSG-1.a@seed=1,tier=huge", "MSG-1.a@tier=quick"):
        with pytest.raises(ValueError, match="names no check"):
            read_replay(wrong)


# --- JSON -------------------------------------------------------------------------------------------------------------


def test_json_is_read_again() -> None:
    """A report comes back as it was, and scripts find in it what they would otherwise have to compute."""
    written = report(*GOOD, result("EVT-1.d", Status.FAIL, message="not ☃", replay="EVT-1.d@seed=7"))
    raw = documents.as_json(written)
    assert read_report(raw) == written
    plain = json.loads(raw)
    assert plain["format"] == FORMAT
    assert plain["verdict"] == "NOT CONFORMANT"
    assert plain["level"] == "extended"
    assert plain["counts"] == {"pass": 2, "not applicable": 1, "fail": 1}
    assert plain["clauses"].keys() == clauses().keys()
    assert (plain["clauses"]["EVT-1"], plain["clauses"]["MSG-2"]) == ("fail", "pass")
    assert plain["clauses"]["DUR-2"] == "not checked"


def test_lone_surrogates_of_a_store_are_written_as_escapes() -> None:
    """Whatever a store says in its errors, the report is UTF-8."""
    raw = documents.as_json(report(result("MSG-1.a", Status.FAIL, message="id \ud800")))
    assert read_report(raw).results[0].message == "id \\ud800"


@pytest.mark.parametrize("raw", [b"", b"[]", b"{}", b'{"format": 1}', b"\xff", b'{"format": "1"}'])
def test_what_is_no_report_is_refused(raw: bytes) -> None:
    """With a sentence, whatever it is."""
    with pytest.raises(ValueError, match="this is no report of kode-conformance"):
        read_report(raw)


def test_a_newer_format_is_refused_as_that() -> None:
    """Also when nothing else in it is as it was."""
    with pytest.raises(ValueError, match=f"format {FORMAT + 1}, and this suite reads up to {FORMAT}: upgrade it"):
        read_report(f'{{"format": {FORMAT + 1}, "shop": {{}}}}')


def test_every_field_is_in_the_guide() -> None:
    """The guide names what is in the JSON, and nothing that is not."""
    plain = json.loads(
        documents.as_json(report(result("MSG-1.a", message="m", replay="r", seconds=1, cpu=1, stochastic=True)))
    )
    guide = GUIDE.read_text()
    tables = {name: re.findall(r"^\| `(\w+)` \|", part, re.MULTILINE) for name, part in _sections(guide).items()}
    assert tables["The report as JSON"] == [*plain, *plain["results"][0]]
    assert tables["Statuses"] == []
    assert all(f"| {status} |" in guide for status in Status)


def _sections(page: str) -> dict[str, str]:
    parts = re.split(r"^##+ (.+)$", page, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize(
    ("store", "name"),
    [("duck", "duck"), ("json files", "json-files"), ("../x/y", "x-y"), ("…", "store"), ("", "store")],
)
def test_a_store_names_its_files(store: str, name: str, tmp_path: Path) -> None:
    """Safely: no name of a store leads out of the folder."""
    found = documents.write(report(*GOOD, store=store), tmp_path, tmp_path / "b.svg", "kode conformance x")
    assert found == [tmp_path / f"{name}.json", tmp_path / f"{name}.md", tmp_path / "b.svg"]
    assert read_report(found[0].read_bytes()).store == store


# --- Markdown ---------------------------------------------------------------------------------------------------------


def test_cells_show_text_as_it_is() -> None:
    """Pipes, markup, line ends and control characters do not break a table."""
    assert cell("a|b\n`c` <d> \x1b[31m") == "a\\|b \\`c\\` \\<d\\> \\\\x1b\\[31m"


def test_a_page_has_all_there_is_to_say() -> None:
    """Verdict, areas, failures with what to do, deviations, what was not judged, and every clause."""
    check = next(check for check in load_checks() if check.id == "MSG-1.save_replaces_the_whole_list")
    failure = result(check.id, Status.FAIL, message=HOSTILE, replay=f"{check.id}@seed=7")
    page = report_page(
        report(
            *GOOD,
            failure,
            result("EVT-3.x", Status.DEVIATION, message=f"#12 {HOSTILE}"),
            result("OPS-4.y", Status.UNVERIFIED, message="no hook corrupt"),
            store=HOSTILE,
        ),
        "kode conformance x.py:Y",
    )
    page.encode()
    assert "**NOT CONFORMANT**: 1 failed, 1 deviation, 2 passed" in page
    assert "kode conformance x.py:Y --replay MSG-1.save_replaces_the_whole_list@seed=7" in page
    assert "- seen before: " in page
    assert "| unverified | no hook corrupt | 1 | `OPS-4.y` |" in page
    assert "\x1b" not in page
    assert next(line for line in page.splitlines() if line.startswith("| MSG-1 |")).endswith("| **fail** | 2 checks |")
    assert {line.split(" ")[1] for line in page.splitlines() if re.match(r"\| [A-Z]+-\d+ ", line)} == clauses().keys()
    for block in re.findall(r"(?:^\|.*\n)+", page, re.MULTILINE):
        rows = [len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()]
        assert len(set(rows)) == 1, block


def test_a_page_says_that_a_part_is_a_part() -> None:
    """So that nobody quotes it for the whole."""
    page = report_page(report(*GOOD, result("EVT-1.d", Status.NOT_RUN)), "kode conformance x")
    assert "**PART PASSED**" in page


# --- Badge ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("results", "fields", "message", "colour"),
    [
        (GOOD, {}, "1.0 extended, 2/2", "#2e7d32"),
        (GOOD, {"capabilities": {"QUERYABLE": True, "EXTENDED": False}}, "1.0 queryable, 2/2", "#2e7d32"),
        (GOOD, {"capabilities": {}}, "1.0 core, 2/2", "#2e7d32"),
        (GOOD, {"tier": "quick"}, "1.0 extended, 2/2, quick", "#5f6368"),
        ((*GOOD, result("EVT-1.d", Status.DEVIATION)), {}, "1.0 extended, 2/3, 1 deviation", "#9a6700"),
        ((*GOOD, result("EVT-1.d", Status.FAIL)), {}, "1.0 extended, 2/3", "#c62828"),
        ((*GOOD, result("EVT-1.d", Status.NOT_RUN)), {}, "a part, 2/2", "#5f6368"),
        ((), {"store": "<&\"'>"}, "incomplete, 0/0", "#5f6368"),
    ],
)
def test_a_badge_says_what_was_found(results: Any, fields: Any, message: str, colour: str) -> None:
    """Valid XML with a title, in the colour of the verdict; green takes more than the quick tier."""
    root = ElementTree.fromstring(badge.svg(report(*results, **fields)))
    svg = "{http://www.w3.org/2000/svg}"
    assert [text.text for text in root.iter(f"{svg}text")] == ["conformance", message]
    assert colour in [rect.get("fill") for rect in root.iter(f"{svg}rect")]
    title = root.find(f"{svg}title")
    assert title is not None and title.text == root.get("aria-label")
    assert (title.text or "").startswith(f"conformance: {message} (")
    right = max(float(text.get("x", 0)) + float(text.get("textLength", 0)) for text in root.iter(f"{svg}text"))
    assert right < float(root.get("width", 0))


# --- Compared ---------------------------------------------------------------------------------------------------------


def changed(before: Status, after: Status) -> Any:
    return compared(report(*GOOD, result("EVT-1.d", before)), report(*GOOD, result("EVT-1.d", after)))


@pytest.mark.parametrize(
    ("before", "after", "where", "worse"),
    [
        (Status.PASS, Status.FAIL, "failing", True),
        (Status.NOT_RUN, Status.FAIL, "failing", True),
        (Status.DEVIATION, Status.STALE_DEVIATION, "failing", True),
        (Status.PASS, Status.HARNESS_ERROR, "failing", True),
        (Status.PASS, Status.DEVIATION, "weaker", True),
        (Status.PASS, Status.UNVERIFIED, "weaker", True),
        (Status.PASS, Status.NOT_APPLICABLE, "weaker", True),
        (Status.FAIL, Status.PASS, "passing", False),
        (Status.UNVERIFIED, Status.PASS, "passing", False),
        (Status.FAIL, Status.DEVIATION, "other", False),
        (Status.FAIL, Status.HARNESS_ERROR, "other", False),
    ],
)
def test_a_change_is_for_better_or_worse(before: Status, after: Status, where: str, worse: bool) -> None:
    """A check that fails, is excused or is no longer verified makes a report worse; the rest does not."""
    found = changed(before, after)
    groups = {
        name: [one.after.check for one in getattr(found, name)] for name in ("failing", "weaker", "passing", "other")
    }
    assert groups == {name: ["EVT-1.d"] if name == where else [] for name in groups}
    assert found.worse is worse


def test_the_same_is_no_change() -> None:
    """Nothing is told of two reports of one."""
    found = changed(Status.FAIL, Status.FAIL)
    assert not (found.worse or found.failing or found.other or found.remarks or found.new or found.gone)


def test_a_worse_verdict_is_worse() -> None:
    """A new check that fails, and a run of which a part was left out, also count."""
    assert compared(report(*GOOD), report(*GOOD, result("EVT-1.d", Status.FAIL))).worse
    assert changed(Status.PASS, Status.NOT_RUN).worse
    assert not compared(report(*GOOD, result("EVT-1.d")), report(*GOOD)).worse


def test_what_makes_reports_hard_to_compare_is_said() -> None:
    """Another store, tier, suite or version."""
    found = compared(
        report(*GOOD), report(*GOOD, store="goose", tier="quick", manifest="4567", versions={"duckdb": "1.5"})
    )
    assert found.remarks == [
        "different stores: duck, then goose",
        "different tiers: standard, then quick",
        "different checks (manifests): 0123, then 4567",
        "duckdb: 1.4, then 1.5",
    ]


def test_the_matrix_has_a_row_for_each_area() -> None:
    """What passed, failed, does not apply or was not looked at can be told apart."""
    lines = list(
        matrix_lines(
            [
                report(*GOOD, result("EVT-1.a", Status.FAIL), result("EVT-1.b")),
                report(result("MSG-1.a"), result("EVT-1.a", Status.UNVERIFIED), store="a|b", capabilities={}),
                report(*GOOD, manifest="4567"),
            ]
        )
    )
    assert lines[0] == "|  | duck (1) | a\\|b | duck (2) |"
    assert lines[2:6] == [
        "| values | ✓ 1/1 | ? | ✓ 1/1 |",
        "| messages | ✓ 1/1 | ✓ 1/1 | ✓ 1/1 |",
        "| events | **1/2** | ? | ? |",
        "| durability | – | ? | – |",
    ]
    assert lines[6] == "| **verdict** | **not conformant**, extended | conformant, core | conformant, extended |"
    assert lines[-1].endswith("Contract 1.0, tier standard. Not all ran the same checks.")


def test_levels_come_from_capabilities() -> None:
    """As the suite saw them."""
    levels = [level_of(msgspec.structs.replace(report(), capabilities=has)) for has in ({}, {"QUERYABLE": True})]
    assert levels == ["core", "queryable"]
