"""``kode new-store`` makes a project that installs, is judged at once, and says of each method what is missing."""

from __future__ import annotations

import importlib.util
import inspect
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from kode_conformance.clauses import clauses
from kode_conformance.commands.skeleton import skeleton_of

from kode_core.engine import Engine
from kode_core.protocols import ExtendedStore, QueryableStore, Store
from tests.test_cli import kode

PYTHON = (sys.executable, "-m")
LONGEST = "abcdefghijklm-nopqrs"


class Project(NamedTuple):
    """A project that the command made, installed beside it."""

    name: str
    folder: Path
    site: Path
    protocol: type
    module: str
    cls: str

    def run(self, *command: str, code: int) -> str:
        env = {**os.environ, "PYTHONPATH": str(self.site)}
        done = subprocess.run(
            (*PYTHON, *command), cwd=self.folder, env=env, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def the_class(self) -> Any:
        path = self.site / f"kode_{self.name.replace('-', '_')}" / f"{self.module}.py"
        spec = importlib.util.spec_from_file_location(f"_made_{self.name}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(self.site))
        try:
            spec.loader.exec_module(module)
        finally:
            sys.path.remove(str(self.site))
        return getattr(module, self.cls)


def made(folder: Path, name: str, *options: str) -> Path:
    kode("new-store", name, *options, "--into", str(folder))
    return folder / f"kode-{name}"


@pytest.fixture(scope="module", params=["engine", "protocol"])
def project(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder = tmp_path_factory.mktemp("new-store")
    kind = request.param
    name = f"acme-{kind}"
    path = made(folder, name, f"--{kind}")
    site = folder / "site"
    options = ("--quiet", "--no-deps", "--no-build-isolation", "--target", str(site))
    subprocess.run((*PYTHON, "pip", "install", *options, str(path)), check=True, timeout=120, capture_output=True)
    if kind == "engine":
        yield Project(name, path, site, Engine, "engine", "AcmeEngineEngine")
    else:
        yield Project(name, path, site, Store, "store", "AcmeProtocolStore")


def methods(cls: type) -> dict[str, Any]:
    return {name: call for name, call in inspect.getmembers(cls, inspect.isfunction) if not name.startswith("_")}


def test_it_has_every_method_of_the_protocol(project: Project) -> None:
    """Each with the signature and the docstring of the protocol; nothing is missing and nothing made up."""
    promised, written = methods(project.protocol), methods(project.the_class())
    assert promised.keys() - written.keys() == set()
    assert written.keys() - promised.keys() <= {"close"}
    for name, method in promised.items():
        assert inspect.signature(written[name]) == inspect.signature(method), name
        if name != "close":
            assert inspect.getdoc(written[name]) == inspect.getdoc(method), name


@pytest.mark.slow
def test_it_fails_honestly(project: Project) -> None:
    """Judged as it is, the store fails because of methods that are not written, and the harness is not to blame."""
    report = json.loads(project.run("kode_core.cli", "conformance", project.name, "--tier", "quick", "--json", code=1))
    assert report["verdict"] == "NOT CONFORMANT"
    assert "harness error" not in report["counts"]
    assert report["counts"].get("pass", 0) < 5
    failures = [result["message"] for result in report["results"] if result["status"] == "fail"]
    assert len(failures) > 50
    named = [message for message in failures if f"NotImplementedError: {project.cls}." in message]
    assert len(named) > 0.9 * len(failures), set(failures) - set(named)


@pytest.mark.slow
def test_its_own_tests_run(project: Project) -> None:
    """``pytest`` in the project has a test for each check."""
    shown = project.run("pytest", "-q", "-p", "no:cacheprovider", "-k", "TODO_1 or save_replaces", code=1)
    assert f"{project.cls}." in shown
    assert "is not written yet" in shown
    assert "error" not in shown.splitlines()[-1]


@pytest.mark.slow
def test_it_passes_the_linters(project: Project) -> None:
    """What is made is formatted, sorted and typed."""
    project.run("ruff", "check", "--no-cache", "--select", "E,F,I,UP,B,RUF,N", ".", code=0)
    project.run("ruff", "format", "--no-cache", "--check", ".", code=0)
    project.run("mypy", f"--cache-dir={project.site / '.mypy'}", "--strict", ".", code=0)


@pytest.mark.parametrize("kind", ["engine", "protocol"])
def test_a_long_name_fits(kind: str, tmp_path: Path) -> None:
    """The longest name that is taken makes no line too long."""
    path = made(tmp_path, LONGEST, f"--{kind}")
    for command in (("check", "--select", "E,I"), ("format", "--check")):
        done = subprocess.run((*PYTHON, "ruff", *command, "--no-cache", str(path)), capture_output=True, check=False)
        assert done.returncode == 0, done.stdout.decode()


def test_what_it_says(tmp_path: Path) -> None:
    """It tells what to do next, and the files that it names are there."""
    out, err = kode("new-store", "acme", "--into", str(tmp_path / "new" / "folder"))
    assert err == ""
    assert "pip install -e '.[test]'" in out
    assert "kode conformance acme" in out
    named = [Path(word) for word in out.split() if word.startswith(str(tmp_path))]
    assert len(named) == 3
    assert all(path.exists() for path in named)
    files = {str(path.relative_to(named[0])) for path in named[0].rglob("*") if path.is_file()}
    assert {".github/workflows/conformance.yml", "README.md", "tests/test_conformance.py"} <= files
    assert "${{ matrix.python }}" in (named[0] / ".github/workflows/conformance.yml").read_text()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("Acme", "cannot name a backend"),
        ("acme_cloud", "cannot name a backend"),
        ("-acme", "No such option"),
        ("../acme", "cannot name a backend"),
        ("1st", "cannot name a backend"),
        ("acme--cloud", "cannot name a backend"),
        (f"{LONGEST}t", "at most 20 characters"),
        ("", "cannot name a backend"),
        ("sqlite", "there is a backend sqlite already, of kode-sqlite"),
        ("mongo", "there is a backend mongo already, of kode-mongo"),
        ("conformance", "the name of another package"),
    ],
)
def test_names_that_do_not_do(name: str, problem: str, tmp_path: Path) -> None:
    """They are refused with the reason, and nothing is made."""
    _, err = kode("new-store", name, "--into", str(tmp_path / "here"), code=2)
    assert problem in err
    assert not (tmp_path / "here").exists()


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    """A folder that is there is left alone."""
    made(tmp_path, "acme")
    (tmp_path / "kode-acme" / "README.md").write_text("mine")
    _, err = kode("new-store", "acme", "--into", str(tmp_path), code=2)
    assert "exists already" in err
    assert (tmp_path / "kode-acme" / "README.md").read_text() == "mine"
    (tmp_path / "file").write_text("")
    _, err = kode("new-store", "acme", "--into", str(tmp_path / "file"), code=2)
    assert "cannot be made" in err


@pytest.mark.parametrize("protocol", [Engine, Store, QueryableStore, ExtendedStore])
def test_a_skeleton_is_taken_from_the_source(protocol: type) -> None:
    """Every method of the class's own body is in it once, those that are written already excepted."""
    own = {name for name, value in vars(protocol).items() if inspect.isfunction(value) and name not in NOT_OWN}
    skeleton = skeleton_of(protocol, "Mine", written=("close", "__aenter__", "__aexit__"))
    assert set(skeleton.names) == own - {"close", "__aenter__", "__aexit__"}
    assert skeleton.methods.count("raise NotImplementedError") == len(skeleton.names)
    assert skeleton.imports.keys() <= {*sys.modules}


@pytest.mark.parametrize(("option", "protocol"), [("--engine", Engine), ("--protocol", Store)])
def test_the_steps_leave_nothing_out(option: str, protocol: type, tmp_path: Path) -> None:
    """The README says of every method when it is best written, and of every area when to look at it."""
    text = (made(tmp_path, "acme", option) / "README.md").read_text()
    steps = re.findall(r"^\| \d+ \| (.+) \| `(.+)` \|$", text, re.MULTILINE)
    written = re.findall(r"\w+", " ".join(methods for methods, _ in steps))
    assert methods(protocol).keys() - {"close"} <= {*written}
    areas = set(re.findall(r"--only (\w+)", text))
    needs_extended = {"QRY", "LOCK", "FORK", "VER", "DOC", "SCOPE"}
    assert areas == {clause.area for clause in clauses().values()} - (needs_extended if protocol is Store else set())


NOT_OWN = {"__init__", "__subclasshook__", "_no_init_or_replace_init"}
"""What a Protocol gets from the interpreter."""
