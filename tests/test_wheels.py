"""The distributions as users get them: built, and installed in an environment of their own, outside the repository."""

from __future__ import annotations

import email
import fcntl
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterable, Mapping
from email.message import Message
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from scripts.version import agreed, projects

ROOT = Path(__file__).parents[1]
VERSION = agreed(ROOT)
PROJECTS = {path.parent: tomllib.loads(path.read_text())["project"] for path in projects(ROOT)}
PACKAGES = {project["name"].replace("-", "_"): folder for folder, project in PROJECTS.items()}
EVERYTHING = ("kode-core[cli,sqlite,postgres,mongo,dynamodb]", "kode-conformance[pytest]", "kode-duckdb")
BACKENDS = ["duckdb", "dynamodb", "json", "memory", "mongo", "postgres", "sqlite"]

USED = """
import asyncio, sys
from kode_core import AgentInfo, Message, create_extended_store

async def use(target):
    for count in (1, 2):
        async with create_extended_store(target) as store:
            info = AgentInfo(agent_id="agt-1", template_id="test")
            await store.save_turn("agt-1", append=[Message.user("Hello!")], info=info)
            assert len(await store.load_messages("agt-1")) == (1 if target == "memory:" else count)
            assert [session.agent_id for session in await store.query_sessions()] == ["agt-1"]
            assert not (await store.check_consistency()).issues

for target in sys.argv[1:]:
    asyncio.run(use(target))
    print(target)
"""
"""Writes to and reads from the stores at the URLs of its arguments, each opened twice."""

REFUSED = """
import asyncio, sys
import kode_core

async def refused(error, target, *options):
    try:
        async with kode_core.create_extended_store(target, **{k: int(v) for k, v in (o.split("=") for o in options)}):
            print("was opened")
    except getattr(kode_core, error) as exc:
        print(exc)

asyncio.run(refused(*sys.argv[1:]))
"""
"""Prints the error of the named class that a URL with options is refused with."""

pytestmark = pytest.mark.slow


class Environment(NamedTuple):
    """An environment with distributions in it, and the folder in which its commands run."""

    folder: Path
    cwd: Path

    def run(self, *command: str, code: int = 0, env: Mapping[str, str] | None = None) -> str:
        kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            (self.folder / "bin" / command[0], *command[1:]),
            cwd=self.cwd,
            env={**kept, **(env or {})},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


class Built(NamedTuple):
    """The files of all distributions by package, and the environments with the core alone and with everything."""

    sdists: dict[str, Path]
    wheels: dict[str, Path]
    core: Path
    everything: Path


def together(commands: Iterable[tuple[list[str | Path], Path]]) -> None:
    """Run commands, each in its folder, at the same time."""
    begun = [subprocess.Popen(command, cwd=cwd, stdout=-1, stderr=-2, text=True) for command, cwd in commands]
    for process in begun:
        output, _ = process.communicate(timeout=300)
        assert process.returncode == 0, output


def build(folder: Path) -> Built:
    """Build a source distribution from each folder of the repository, and from that a wheel; install the wheels."""
    dist, unpacked = folder / "dist", folder / "unpacked"
    dist.mkdir()  # hatchling makes it without exist_ok, and several run at the same time
    hatch = [sys.executable, "-m", "hatchling", "build", "-d", dist, "-t"]
    together(([*hatch, "sdist"], project) for project in PROJECTS)
    sdists = {path.name.rpartition("-")[0]: path for path in dist.glob("*.tar.gz")}
    for path in sdists.values():
        with tarfile.open(path) as archive:
            archive.extractall(unpacked, filter="data")
    together(([*hatch, "wheel"], project) for project in unpacked.iterdir())
    wheels = {path.name.partition("-")[0]: path for path in dist.glob("*.whl")}
    made = Built(sdists, wheels, folder / "core", folder / "everything")
    together(([sys.executable, "-m", "venv", "--without-pip", env], folder) for env in (made.core, made.everything))
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python"]
    found = ["install", "--quiet", "--no-compile", "--find-links", dist, "-c", ROOT / "constraints.txt"]
    together(
        [
            ([*pip, made.core / "bin/python", *found, "kode-core"], folder),
            ([*pip, made.everything / "bin/python", *found, *EVERYTHING], folder),
        ]
    )
    return made


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Everything is built once, by the first worker that needs it."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base) / "wheels"
    folder.mkdir(exist_ok=True)
    ready = folder / "ready.json"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            ready.write_text(json.dumps(build(folder), default=str))
    sdists, wheels, core, everything = json.loads(ready.read_text())
    return Built(
        *({name: Path(path) for name, path in some.items()} for some in (sdists, wheels)), Path(core), Path(everything)
    )


@pytest.fixture
def installed(built: Built, tmp_path: Path) -> Environment:
    """The environment with everything, and an empty folder, outside of the repository wherever it is."""
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    return Environment(built.everything, tmp_path)


def metadata(wheel: Path, package: str) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        return email.message_from_string(archive.read(f"{package}-{VERSION}.dist-info/METADATA").decode())


def test_all_are_built(built: Built) -> None:
    """Every distribution has a source distribution and a wheel."""
    assert built.sdists.keys() == built.wheels.keys() == PACKAGES.keys()


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_is_in_a_wheel(built: Built, package: str) -> None:
    """A wheel has its licence, says that it is typed, and holds neither tests nor anything else of the repository."""
    with zipfile.ZipFile(built.wheels[package]) as archive:
        files = archive.namelist()
    assert f"{package}/py.typed" in files
    assert f"{package}-{VERSION}.dist-info/licenses/LICENSE" in files
    assert {file.split("/")[0] for file in files} == {package, f"{package}-{VERSION}.dist-info"}
    assert not [file for file in files if "/tests/" in file or file.endswith(".pyc")]


@pytest.mark.parametrize("package", PACKAGES)
def test_everything_is_in_a_source_distribution(built: Built, package: str) -> None:
    """A source distribution has the package, the licence and the README, and nothing else of the repository."""
    with tarfile.open(built.sdists[package]) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    tests = "tests/" if package == "kode_duckdb" else f"{package}/"  # the others' tests need the repository
    beside = {file for file in files if not file.startswith((f"{package}/", tests))}
    changelog = {"CHANGELOG.md"} if package == "kode_core" else set()
    assert beside == {".gitignore", "LICENSE", "PKG-INFO", "README.md", "pyproject.toml"} | changelog


@pytest.mark.parametrize("package", PACKAGES)
def test_the_metadata_is_right(built: Built, package: str) -> None:
    """The index shows what pyproject.toml says, and the README."""
    project: dict[str, Any] = PROJECTS[PACKAGES[package]]
    stated = metadata(built.wheels[package], package)
    assert (stated["Name"], stated["Version"], stated["Summary"]) == (project["name"], VERSION, project["description"])
    assert (stated["License-Expression"], stated["Requires-Python"]) == ("MIT", ">=3.11")
    assert stated["Description-Content-Type"] == "text/markdown"
    assert str(stated.get_payload()).strip() == (PACKAGES[package] / "README.md").read_text().strip()
    if package in ("kode_duckdb", "kode_extras"):
        assert "Private :: Do Not Upload" in stated.get_all("Classifier", [])
        return
    assert {"Typing :: Typed", "Programming Language :: Python :: 3.11"} <= set(stated.get_all("Classifier", []))
    home = [] if package == "kode_core" else ["Homepage, https://pypi.org/project/kode-core/"]
    assert stated.get_all("Project-URL", []) == home


def test_the_core_alone_is_enough(built: Built, tmp_path: Path) -> None:
    """The core imports nothing that was not installed with it, has two backends, and says how to get the rest."""
    core = Environment(built.core, tmp_path)
    assert core.run("python", "-c", USED, "memory:", "json:///folder").split() == ["memory:", "json:///folder"]
    assert "pip install kode-postgres" in core.run("python", "-c", REFUSED, "UnknownBackendError", "postgres://h/kode")
    core.run("kode", "plugins", code=2)  # needs kode-core[cli]


def test_each_backend_opens_by_name(installed: Environment) -> None:
    """A store is opened by its URL, closed and opened again, for every backend that needs no server."""
    targets = ("memory:", "json:folder", "sqlite:agents.db", "duckdb:agents.duckdb")
    assert installed.run("python", "-c", USED, *targets).split() == [*targets]


@pytest.mark.parametrize(
    ("url", "settings"),
    [
        ("postgres://kode@127.0.0.1:1/kode", {}),
        ("mongodb://127.0.0.1:1/kode", {}),
        (
            "dynamodb://eu-central-1/kode?endpoint_url=http://127.0.0.1:1",
            {"AWS_ACCESS_KEY_ID": "an id", "AWS_SECRET_ACCESS_KEY": "a secret"},
        ),
    ],
    ids=["postgres", "mongo", "dynamodb"],
)
def test_a_server_that_is_missing_is_named(installed: Environment, url: str, settings: dict[str, str]) -> None:
    """A backend with a server has its driver, takes its options, and says that nothing answers at an address."""
    options = (
        ("connection_timeout_millis=500", "max=3") if "dynamodb" not in url else ("connection_timeout_millis=500",)
    )
    shown = installed.run("python", "-c", REFUSED, "StoreUnavailableError", url, *options, env=settings)
    assert "127.0.0.1:1" in shown
    assert "cannot be reached" in shown
    wrong = installed.run(
        "python", "-c", REFUSED, "ConfigurationError", url, "conection_timeout_millis=500", env=settings
    )
    assert "connection_timeout_millis" in wrong


def test_the_stores_can_be_imported(installed: Environment) -> None:
    """Each store has its class in kode_core, with the options of its backend."""
    script = "import kode_core; print(*sorted(name for name in dir(kode_core) if name.endswith('Store')))"
    stores = {"DynamoDBStore", "JsonStore", "MemoryStore", "MongoStore", "PostgresStore", "SqliteStore"}
    assert stores < set(installed.run("python", "-c", script).split())
    installed.run("python", "-c", f"from kode_core import {', '.join(sorted(stores))}")


def test_the_command_lists_what_is_installed(installed: Environment) -> None:
    """``kode plugins`` has each backend with the distribution that it is from, and none is broken."""
    shown = json.loads(installed.run("kode", "plugins", "--json"))
    assert [backend["name"] for backend in shown["backends"]] == BACKENDS
    assert {backend["version"] for backend in shown["backends"]} == {VERSION}
    assert not [backend for backend in shown["backends"] if backend.get("problem")]
    assert installed.run("kode", "version") == f"kode-core {VERSION}\n"


@pytest.mark.parametrize("store", ["memory", "json", "sqlite", "sqlite-hybrid", "duckdb"])
def test_the_command_judges(installed: Environment, store: str) -> None:
    """``kode conformance`` finds the harnesses of the stores that are installed, and its own files."""
    part = "MSG" if store == "memory" else "todos_are_replaced"
    shown = installed.run("kode", "conformance", store, "--tier", "quick", "--only", part)
    assert " failed" not in shown
    assert f"{store}   contract 1.0   tier quick" in shown


def test_the_command_starts_processes_and_explains(installed: Environment) -> None:
    """A check that kills processes of its own runs, and the clauses can be read."""
    assert "1 passed" in installed.run("kode", "conformance", "sqlite", "--tier", "standard", "--only", "turns_survive")
    assert "MSG-4  " in installed.run("kode", "conformance", "--explain", "MSG-4")


def test_pytest_judges(installed: Environment) -> None:
    """The suite runs by ``--pyargs``, with the name of a store."""
    suite = ("pytest", "-q", "--pyargs", "kode_conformance.suite.test_conformance", "-p", "no:cacheprovider")
    shown = installed.run(*suite, "--kode-store", "duckdb", "--kode-tier", "quick", "-k", "TODO-1 or MSG-7")
    assert " passed" in shown
    installed.run(*suite, code=4)


def test_the_class_judges(installed: Environment) -> None:
    """A file with a subclass of ``StoreConformance`` is a suite."""
    (installed.cwd / "test_mine.py").write_text(
        "from kode_conformance.testclass import StoreConformance\n"
        "from kode_sqlite.testing.harness import SqliteHarness\n\n\n"
        "class TestMine(StoreConformance):\n"
        "    harness = SqliteHarness()\n"
    )
    shown = installed.run("pytest", "-q", "-p", "no:cacheprovider", "test_mine.py", "-k", "TODO_1 or MSG_7")
    assert " passed" in shown


def test_a_project_is_made(installed: Environment) -> None:
    """``kode new-store`` has its templates with it, and the project that it makes can be installed and judged."""
    installed.run("kode", "new-store", "acme")
    target = installed.cwd / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--target", target]
    together([([*pip, installed.cwd / "kode-acme"], installed.cwd)])
    judged = ("kode", "conformance", "acme", "--tier", "quick", "--only", "TODO")
    assert "AcmeEngine.docs is not written yet" in installed.run(*judged, code=1, env={"PYTHONPATH": str(target)})
