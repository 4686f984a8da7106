"""``kode conformance`` and ``kode compare`` as their users run them: in a process of its own, on real stores."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import NamedTuple

import pytest
from kode_conformance.clauses import clauses
from kode_conformance.registry import load_checks
from kode_conformance.results import read_report

from kode_core.cli import main

KODE = (sys.executable, "-m", "kode_core.cli")
TODOS = "TODO-1.todos_are_replaced"
MEDIA = "MED-1.the_media_cache_is_replaced"
TIMES = "INFO-2.updated_at_moves_forward"
ORDER = "MSG-7.any_order_of_saves_works"
HARNESSES = """
from kode_conformance import StoreHarness
from kode_conformance.builtin import JsonHarness, MemoryHarness
from kode_conformance.harness import Deviation
from kode_core.backends.memory.engine import MemoryEngine, MemorySpace
from kode_core.store import EngineStore

SPACES = {}


class NoTodos(EngineStore):
    async def save_todos(self, agent_id, snapshot, *, fence=None):
        raise RuntimeError("todos \\x1b[31m are not there yet")

    async def load_media_cache(self, agent_id):
        return []


class NoEvents(EngineStore):
    async def append_event(self, agent_id, timeline, *, fence=None):
        raise RuntimeError("no such table: events")


class Faulty(MemoryHarness):
    name = "faulty"
    versions = {"duckdb": "1.4"}
    deviations = {"MED-1.the_media_cache_is_replaced": Deviation("#12: there is no media cache")}

    async def provision(self, space):
        SPACES[space.name] = MemorySpace()
        return {"name": space.name}

    async def open(self, handle):
        async def engine():
            return MemoryEngine(SPACES[handle["name"]])

        return await NoTodos(engine).open()


class Begun(Faulty):
    name = "begun"
    deviations = {}

    async def open(self, handle):
        class Engine(MemoryEngine):
            async def docs(self, *arguments):
                raise NotImplementedError("docs is not written yet")

        async def engine():
            return Engine(SPACES[handle["name"]])

        return await EngineStore(engine).open()


class Unfinished(Faulty):
    name = "unfinished"
    deviations = {}

    async def open(self, handle):
        async def engine():
            return MemoryEngine(SPACES[handle["name"]])

        return await NoEvents(engine).open()


class Excused(MemoryHarness):
    name = "excused"
    deviations = {"TODO-1.todos_are_replaced": Deviation("#13: to be done")}


class Shared(MemoryHarness):
    name = "shared"

    async def provision(self, space):
        return {"name": "one for all"}


class Liar(MemoryHarness):
    name = "liar"
    lacks = MemoryHarness.lacks | {"EXTENDED"}


class Files(JsonHarness):
    name = "files"


class Half(StoreHarness):
    async def open(self, handle): ...


class Typo(MemoryHarness):
    lacks = frozenset({"QUERIES"})


class Unset(MemoryHarness):
    def __init__(self):
        raise KeyError("DUCK_DSN")
"""


class Done(NamedTuple):
    """What a command wrote, and how it ended."""

    out: str
    err: str
    code: int


@pytest.fixture(autouse=True)
def harnesses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with ``duck.py``, in which the command is run."""
    (tmp_path / "duck.py").write_text(HARNESSES)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def kode(*arguments: str) -> Done:
    done = subprocess.run((*KODE, *arguments), capture_output=True, encoding="utf-8", timeout=600, check=False)
    assert "Traceback" not in done.stderr, done.stderr
    return Done(done.stdout, done.stderr, done.returncode)


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> Done:
    """The same without a process of its own, for the many wrong questions."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as info:
        patch.setattr(sys, "argv", ["kode", *arguments])
        patch.setattr(sys, "path", list(sys.path))
        patch.delitem(sys.modules, "duck", raising=False)
        main()
    assert isinstance(info.value.code, int)
    return Done(*capsys.readouterr(), info.value.code)


def only(*checks: str) -> list[str]:
    return [argument for check in checks for argument in ("--only", check)]


def terminal(columns: int, *arguments: str) -> str:
    """What the command shows on a terminal, in which it has one place for all it writes."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm-256color", "COLUMNS": str(columns)}
    process = subprocess.Popen((*KODE, *arguments), stdin=theirs, stdout=theirs, stderr=theirs, env=env)
    os.close(theirs)
    raw = b""
    while True:
        try:
            raw += os.read(ours, 65_536)
        except OSError:
            break
    os.close(ours)
    process.wait(60)
    return raw.decode()


def plain(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


# --- Runs -------------------------------------------------------------------------------------------------------------


def test_a_part_that_passes() -> None:
    """The header, a line for each area, and a verdict that says it is of a part; exit code 0."""
    done = kode("conformance", "memory", "--only", "TODO", "--only", "SNAP-1", "--seed", "11", "--tier", "quick")
    assert done.code == 0
    assert done.err == ""
    lines = done.out.splitlines()
    assert lines[0] == "memory   contract 1.0   tier quick   seed 11"
    assert "kode-core " in lines[1]
    areas = [line.split()[0] for line in lines if re.match(r"  [A-Z]+ ", line)]
    assert areas.index("TODO") < areas.index("SNAP")
    assert re.search(r"^  TODO +todos +━+ +1/1$", done.out, re.MULTILINE)
    assert re.search(r"^PART PASSED   \d+ passed.* \(a part: \d+ more checks were left out\) ", lines[-1])


def test_a_long_run_without_a_terminal_says_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once a minute, with what failed since."""
    monkeypatch.setattr("kode_conformance.reports.terminal.TELLS_EVERY_S", 0)
    done = asked(capsys, "conformance", "duck.py:Faulty", *only(TODOS, MEDIA))
    assert done.code == 1
    assert done.err.splitlines() == ["1 of 2 checks; failed: TODO-1.todos_are_replaced", "2 of 2 checks"]


def test_a_failure_says_what_to_do() -> None:
    """The contract's sentence, what was found and where, and a command that runs just this again."""
    done = kode("conformance", "duck.py:Faulty", *only(TODOS, TIMES, ORDER), "--seed", "5")
    assert done.code == 1
    found = done.out.partition("\n\n")[2]
    assert "FAIL  MSG-7.any_order_of_saves_works" in found
    flat = " ".join(found.split())
    assert " contract MSG-7: Saving before `save_info`, in any order of kinds, works and loses nothing. " in flat
    assert "RuntimeError: todos \\x1b[31m are not there yet" in found
    assert "  at duck.py:" in found
    assert " seen before Fails on messages, tool calls and snapshots of an agent that has no info yet. (MSG-7; " in flat
    assert "look first at" not in found
    assert re.search(r"^  MSG +messages +x+ +0/1  \(1 of \d\d\)$", done.out, re.MULTILINE)
    assert " in short" not in found
    assert re.search(r"  the same in    .*TODO-1\.todos_are_replaced", found)
    replay = re.search(
        r"  run it again   kode (conformance duck.py:Faulty --replay MSG-7\.\w+@seed=5,tier=standard)", found
    )
    assert replay is not None
    assert "\x1b" not in done.out
    again = kode(*replay[1].split())
    assert again.code == 1
    assert again.out.startswith("faulty   contract 1.0   tier standard   seed 5\n")
    assert again.out.count("FAIL  ") == 1
    assert "NOT CONFORMANT   1 failed   (a part: " in again.out


def test_many_failures_are_told_in_short_at_the_end() -> None:
    """A line for each finding, with what only random checks found at the end; a clause is quoted once."""
    done = kode("conformance", "duck.py:Faulty", *only("MSG-8", MEDIA, "VAL-1"), "--tier", "quick")
    found, _, short = done.out.partition(" findings in short\n")
    told = [line.split("  ")[1] for line in short.partition("\n\n")[0].splitlines()]
    assert told == re.findall(r"^FAIL  (\S+)", found, re.MULTILINE)
    assert len(told) >= 4
    assert told[-1] == "MSG-8.random_histories_follow_the_model"
    assert found.count("MSG-8: No save of one kind changes another kind.") == 1
    assert "  contract       MSG-8 (above)\n" in found
    assert all(len(line) <= 120 for line in short.splitlines()[:-1])


def test_what_is_not_written_yet_is_told_in_short() -> None:
    """Where it is to be written and who asked for it, without the way through the core."""
    done = kode("conformance", "duck.py:Begun", *only(TODOS))
    assert "  found          NotImplementedError: docs is not written yet\n" in done.out
    places = re.findall(r"^ +at (\S+):\d+ ", done.out, re.MULTILINE)
    assert places[-1] == "duck.py"
    assert not [place for place in places if "kode_core" in place]
    assert "seen before" not in done.out


def test_deviations_are_told_with_their_reasons() -> None:
    """A known failure is no failure of the run; one that is gone is."""
    done = kode("conformance", "duck.py:Faulty", *only(MEDIA))
    assert done.code == 0
    assert "DEVIATION  MED-1.the_media_cache_is_replaced\n  because        #12: there is no media cache\n" in done.out
    assert "  found          the media cache: " in done.out
    stale = kode("conformance", "duck.py:Excused", *only(TODOS))
    assert stale.code == 1
    assert "STALE DEVIATION  TODO-1.todos_are_replaced" in stale.out
    assert "it passes now: remove the deviation (#13: to be done)" in stale.out


def test_a_harness_that_does_not_work_is_told_once() -> None:
    """Not as a hundred failures of the store; exit code 3."""
    done = kode("conformance", "duck.py:Shared", "--tier", "quick")
    assert done.code == 3
    assert done.out.count("HARNESS ERROR") == 1
    assert "provision() gave two spaces one handle" in done.out
    assert len(done.out.splitlines()) < 15
    assert re.search(r"^INCOMPLETE   \d+ harness errors ", done.out, re.MULTILINE)


def test_a_store_that_raises_is_judged() -> None:
    """An error of the store is a finding of its checks, and no fault of the harness."""
    done = kode("conformance", "duck.py:Unfinished", "--only", "EVT-1", "--only", "TODO-1", "--tier", "quick")
    assert done.code == 1
    assert "HARNESS ERROR" not in done.out
    assert "RuntimeError: no such table: events" in done.out
    assert re.search(r"^NOT CONFORMANT .*failed", done.out, re.MULTILINE)


def test_nothing_that_applies_is_no_success() -> None:
    """A part of which nothing could be judged says nothing; exit code 3."""
    done = kode("conformance", "memory", "--only", "events_survive_a_restart")
    assert done.code == 3
    assert re.search(r"^not applicable +\d+ +the store lacks PERSISTENT$", done.out, re.MULTILINE)


def test_processes_find_a_harness_of_a_file() -> None:
    """A harness of a file serves the checks that use other processes too."""
    done = kode("conformance", "duck.py:Files", "--only", "EVT-1.appends_of_several_processes", "--tier", "standard")
    assert done.code == 0, done.out


def test_a_whole_run(tmp_path: Path) -> None:
    """Everything at once: a harness that says less than the store can do fails, and the files say the same."""
    done = kode(
        *("conformance", "duck.py:Liar", "--tier", "quick", "--report", "out/deep", "--badge", "badges/liar.svg")
    )
    assert done.code == 1
    assert "FAIL  HARNESS.extended_is_lacking" in done.out
    assert "remove it from lacks, so that it is checked" in done.out
    assert re.search(r"^not applicable +\d+ +the store lacks EXTENDED$", done.out, re.MULTILINE)
    assert re.search(r"^not in this tier: \d+ with --tier standard", done.out, re.MULTILINE)
    assert re.search(r"^NOT CONFORMANT   \d+ failed, \d+ passed, \d+ not applicable", done.out, re.MULTILINE)
    written = ["out/deep/liar.json", "out/deep/liar.md", "badges/liar.svg"]
    said = [line for line in done.err.splitlines() if not re.match(r"\d+ of \d+ checks", line)]  # once a minute
    assert said == [f"written: {path}" for path in written]
    report = read_report((tmp_path / written[0]).read_bytes())
    assert report.verdict == "NOT CONFORMANT"
    assert not report.partial
    assert "# Conformance of liar" in (tmp_path / written[1]).read_text()
    assert "1.0 queryable" in (tmp_path / written[2]).read_text()


def test_json_and_nothing_else() -> None:
    """--json prints the report for scripts."""
    done = kode(
        "conformance", "memory", "--only", "SNAP-1", "--tier", "quick", "--json", "--seed", "3", "--seconds", "9"
    )
    assert (done.code, done.err) == (0, "")
    report = json.loads(done.out)
    assert (report["verdict"], report["partial"], report["seed"]) == ("PART PASSED", True, 3)
    assert report["pace"] == 9
    assert report["clauses"]["SNAP-1"] == "pass"


@pytest.mark.parametrize("columns", [80, 120])
def test_a_terminal_is_as_wide_as_it_is(columns: int) -> None:
    """Lines fit, but for those that are to be copied; while it runs, it says how far it is and what failed."""
    shown = terminal(columns, "conformance", "duck.py:Faulty", *only(ORDER, TODOS, MEDIA))
    progress = plain(shown).replace("\r", "\n")
    assert "a look at the harness" in progress
    assert re.search(r"\d+/\d+ .* \d failures? ", progress)
    lines = progress[progress.rindex("  MSG ") :].splitlines()
    too_long = [line for line in lines if len(line.rstrip()) > columns and "run it again" not in line]
    assert [line for line in too_long if not line.lstrip().startswith("at ")] == []
    assert "\x1b[1;31mFAIL" in shown


# --- Clauses ----------------------------------------------------------------------------------------------------------


def test_the_list_has_every_clause_and_check() -> None:
    """With what a check asks for, and why a clause has none."""
    done = kode("conformance", "--list")
    assert done.code == 0
    assert re.findall(r"^  ([A-Z]+-\d+) ", done.out, re.MULTILINE) == list(clauses())
    assert {check.name for check in load_checks()} <= set(re.findall(r"^ +(\w+)", done.out, re.MULTILINE))
    assert "a_killed_holder_is_followed  (--tier standard, needs CROSS_PROCESS and EXTENDED)" in done.out
    assert "a_stopped_holder_is_fenced_off  (--tier standard, needs CROSS_PROCESS and EXTENDED)" in done.out
    assert "not checked: a loss of power cannot be caused from a process" in done.out


def test_the_list_for_scripts() -> None:
    """The same as JSON."""
    found = json.loads(kode("conformance", "--list", "--json").out)
    assert [clause["id"] for clause in found["clauses"]] == list(clauses())
    ids = {check["id"] for clause in found["clauses"] for check in clause["checks"]}
    assert ids == {check.id for check in load_checks()}


@pytest.mark.parametrize("named", [("--only", "TODO", "--only", "dur"), ("DUR", "--only", "TODO-1")])
def test_a_part_is_listed(named: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    """Areas and clauses, by --only or by themselves; the name of a store lists them all."""
    done = asked(capsys, "conformance", "--list", *named)
    assert re.findall(r"^  ([A-Z]+-\d+) ", done.out, re.MULTILINE) == ["TODO-1", "DUR-1", "DUR-2", "DUR-3"]
    assert "4 clauses of contract" in done.out
    assert "MSG-1" in asked(capsys, "conformance", "memory", "--list").out


@pytest.mark.parametrize("named", ["MSG-4", "msg-4", "MSG-4.messages_keep_their_first_time"])
def test_a_clause_is_explained(named: str) -> None:
    """What it says, where to look, and how it is checked."""
    done = kode("conformance", "--explain", named)
    assert done.out.startswith("MSG-4  A message keeps the time that the store gave it")
    assert "look first at  delete and insert" in done.out
    assert "MSG-4.messages_keep_their_first_time" in done.out


def test_an_area_is_explained() -> None:
    """All clauses of it, and no other."""
    done = kode("conformance", "--explain", "dur")
    assert re.findall(r"^([A-Z]+-\d+)  ", done.out, re.MULTILINE) == ["DUR-1", "DUR-2", "DUR-3"]


# --- Wrong questions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "which store? Name one of "),
        (("memroy",), "error: memroy: no installed store has this name; did you mean memory? there are "),
        (("zzz",), "error: zzz: no installed store has this name; there are duckdb, dynamodb, "),
        (("zzz",), "; a harness of your own is named as module:Class or file.py:Class"),
        (("postgresql://me:hunter2@db/k",), "error: postgresql://… is the address of a store; name a harness"),
        (("duck.py",), "say which class of the file is the harness, as in duck.py:MyHarness"),
        (("nowhere.py:X",), "there is no file nowhere.py"),
        (("no.where:X",), "No module named 'no'"),
        (("duck.py:Fawlty",), "duck.py has no Fawlty; it has JsonHarness, MemoryHarness, Faulty"),
        (("duck:Faulty.name",), "Faulty.name is no StoreHarness"),
        (("duck.py:Half",), "Half has to define provision"),
        (("duck.py:Typo",), "lacks 'QUERIES', which is no capability; there are PERSISTENT"),
        (("duck.py:Unset",), "KeyError: 'DUCK_DSN' (duck.py:"),
        (("broken.py:X",), "SyntaxError: invalid syntax (broken.py:2)"),
        (("broken:X",), "SyntaxError: invalid syntax (broken.py:2)"),
        (("helped:X",), "SyntaxError: invalid syntax (broken.py:2)"),
        (("tabbed:X",), "TabError: inconsistent use of tabs and spaces in indentation (tabbed.py:3)"),
        (("loose.py:X",), "it needs the distribution kode-loose; install it"),
        (("memory", "--tier", "fast"), "there is no tier 'fast'; there are quick, standard and thorough"),
        (("memory", "--seed", "-3"), "a seed is 0 or more"),
        (("memory", "--seconds", "0"), "--seconds is a number above 0"),
        (("memory", "--seconds", "inf"), "--seconds is a number above 0"),
        (("memory", "--only", "TODO", "--only", "MSG-99"), "no check matches 'MSG-99'"),
        (("memory", "--only", "MSG-1.save_replaces"), "did you mean MSG-1.save_replaces_the_whole_list"),
        (("memory", "--only", ""), "no check matches ''"),
        (
            ("memory", "--only", "large_values_in_every_field"),
            "is checked with --tier thorough, not with --tier standard",
        ),
        (("memory", "--replay", "MSG-1"), "names no check to run again; a report names one as in MSG-1."),
        (("memory", "--replay", "MSG-1"), "did you mean MSG-1."),
        (("memory", "--replay", "todos_are"), "did you mean TODO-1.todos_are_replaced?"),
        (("memory", "--replay", "MSG-1.foo@seed=1"), "there is no check MSG-1.foo; did you mean MSG-1."),
        (("--list", "--only", "MSG-99"), "the contract has no clause MSG-99; did you mean"),
        (("memory", "--replay", "TODO-1.todos_are_replaced", "--only", "MSG"), "--only has nothing to add"),
        (("memory", "--report", "duck.py"), "the report cannot be written"),
        (("memory", "--badge", "."), "the report cannot be written: . is a folder"),
        (("--explain", "MSG-99"), "the contract has no clause MSG-99; did you mean"),
        (("--explain", "zebra"), "the areas are VAL, ID, MSG"),
    ],
)
def test_a_wrong_question_has_a_helpful_answer(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on stderr, nothing on stdout, exit code 2."""
    (tmp_path / "broken.py").write_text("\ndef x(:\n")
    (tmp_path / "helped.py").write_text("\n\n\nfrom broken import X\n")
    (tmp_path / "tabbed.py").write_text("if 1:\n    x = 1\n\ty = 2\n")
    (tmp_path / "loose.py").write_text("from importlib.metadata import version\nX = version('kode-loose')\n")
    done = asked(capsys, "conformance", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert said in done.err


# --- Comparing --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """A report of a store that is right, and one of a store that is not, on the same checks."""
    folder = tmp_path_factory.mktemp("reports")
    (folder / "duck.py").write_text(HARNESSES)
    asked_of = (*only(TODOS, MEDIA, TIMES), "--seed", "1", "--report", str(folder))
    assert kode("conformance", "memory", *asked_of).code == 0
    assert kode("conformance", f"{folder}/duck.py:Faulty", *asked_of).code == 1
    return f"{folder}/memory.json", f"{folder}/faulty.json"


def test_what_got_worse_is_told(reports: tuple[str, str]) -> None:
    """What fails now and what is excused now, with what was found; exit code 1 when something got worse."""
    good, bad = reports
    worse = kode("compare", good, bad)
    assert worse.code == 1
    assert "note: different stores: memory, then faulty" in worse.out
    assert re.search(
        r"^newly failing \(\d+\)\n(.*\n)*  TODO-1.todos_are_replaced +pass → fail$", worse.out, re.MULTILINE
    )
    assert "      RuntimeError: todos \\x1b[31m are not there yet" in worse.out
    assert re.search(r"^no longer passing \(1\)\n  MED-1\.\w+ +pass → deviation$", worse.out, re.MULTILINE)
    assert worse.out.endswith("\nworse\n")
    better = kode("compare", bad, good)
    assert better.code == 0
    assert re.search(r"^newly passing \(\d+\)$", better.out, re.MULTILINE)
    assert kode("compare", good, good).out.endswith("\nthe same\n")


def test_a_matrix_in_a_readme(reports: tuple[str, str], tmp_path: Path) -> None:
    """The table takes the place that is marked for it, again and again; where there is no mark nothing is changed."""
    readme = tmp_path / "README.md"
    readme.write_text("# Mine\n<!-- kode matrix -->\nold\n<!-- end of kode matrix -->\nMore\n")
    for _ in range(2):
        assert kode("compare", "--into", str(readme), *reports).code == 0
    text = readme.read_text()
    assert "old" not in text
    assert text.count("**verdict**") == 1
    assert text.startswith("# Mine\n<!-- kode matrix -->\n|")
    assert text.endswith("\n<!-- end of kode matrix -->\nMore\n")
    readme.write_text("# Mine\n")
    done = kode("compare", "--into", str(readme), *reports)
    assert (done.code, readme.read_text()) == (2, "# Mine\n")
    assert "mark the table's place" in done.err


def test_a_matrix_for_a_readme(reports: tuple[str, str]) -> None:
    """A table of Markdown with a column for each store."""
    done = kode("compare", "--matrix", *reports)
    assert done.code == 0
    assert done.out.splitlines()[:2] == ["|  | memory | faulty |", "| --- | --- | --- |"]
    assert "| todos | ✓ 1/1 | **0/1** |" in done.out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("nothing.json", "nothing.json"), "nothing.json: No such file or directory"),
        (("duck.py", "duck.py"), "duck.py: this is no report of kode-conformance: "),
        (
            ("newer.json", "newer.json"),
            "newer.json: the report has format 99, and this suite reads up to 1: upgrade it",
        ),
    ],
)
def test_what_is_no_report_cannot_be_compared(
    arguments: tuple[str, ...], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line, exit code 2."""
    (tmp_path / "newer.json").write_text('{"format": 99}')
    done = asked(capsys, "compare", *arguments)
    assert (done.code, done.out) == (2, "")
    assert said in done.err


def test_two_reports_are_compared(reports: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """One, or three, are too few or too many without --matrix."""
    for given in (reports[:1], (*reports, reports[0])):
        done = asked(capsys, "compare", *given)
        assert done.code == 2
        assert "two reports are compared" in done.err
