"""What users get: the wheels, in an environment of their own, outside of the repository."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PROJECTS = (ROOT, ROOT / "plugins/sqlite", ROOT / "conformance", ROOT / "docs/examples/duckdb-store")
NAMES = ("kode-core[cli]", "kode-sqlite", "kode-conformance[pytest]", "kode-duckdb")

pytestmark = pytest.mark.slow


class Installed(NamedTuple):
    """An environment with the wheels in it."""

    folder: Path
    wheels: dict[str, Path]

    def run(self, *command: str, code: int = 0) -> str:
        env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
        done = subprocess.run(
            (self.folder / "env/bin" / command[0], *command[1:]),
            cwd=self.folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    folder = tmp_path_factory.mktemp("wheels")
    build = (sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    subprocess.run((*build, "--wheel-dir", folder / "dist", *PROJECTS), check=True, capture_output=True, timeout=300)
    wheels = {path.name.partition("-")[0]: path for path in (folder / "dist").glob("*.whl")}
    subprocess.run((sys.executable, "-m", "venv", folder / "env"), check=True, timeout=300)
    made = Installed(folder, wheels)
    found = ("--find-links", str(folder / "dist"), "-c", str(ROOT / "constraints.txt"))
    made.run("python", "-m", "pip", "install", "--quiet", *found, *NAMES)
    (folder / "pytest.ini").write_text("[pytest]\n")  # as outside of the repository, wherever the folder is
    return made


def test_everything_is_in_them(installed: Installed) -> None:
    """Each has its licence, says that it is typed, and holds neither tests nor anything else of the repository."""
    assert installed.wheels.keys() == {"kode_core", "kode_sqlite", "kode_conformance", "kode_duckdb"}
    for name, path in installed.wheels.items():
        files = zipfile.ZipFile(path).namelist()
        assert f"{name}/py.typed" in files
        assert any(file.endswith("licenses/LICENSE") for file in files)
        assert {file.split("/")[0] for file in files} == {name, f"{name}-0.1.0.dist-info"}
        assert not [file for file in files if "/tests/" in file or file.endswith(".pyc")]


def test_the_core_alone_is_enough(installed: Installed) -> None:
    """The package imports nothing that was not installed with it."""
    assert "kode_core" in installed.run("python", "-c", "import kode_core; print(kode_core.__file__)")
    shown = installed.run("kode", "plugins")
    assert [line.split()[0] for line in shown.splitlines()[1:5]] == ["duckdb", "json", "memory", "sqlite"]


def test_the_command_judges(installed: Installed) -> None:
    """``kode conformance`` finds the harnesses of the stores that are installed, and its own files."""
    for store in ("memory", "json", "sqlite", "sqlite-hybrid", "duckdb"):
        shown = installed.run("kode", "conformance", store, "--tier", "quick", "--only", "TODO")
        assert " failed" not in shown
        assert f"{store}   contract 1.0   tier quick" in shown
    assert "1 passed" in installed.run("kode", "conformance", "sqlite", "--tier", "standard", "--only", "turns_survive")
    assert "MSG-4  " in installed.run("kode", "conformance", "--explain", "MSG-4")


def test_pytest_judges(installed: Installed) -> None:
    """The suite runs by ``--pyargs``, with the name of a store."""
    suite = ("pytest", "-q", "--pyargs", "kode_conformance.suite.test_conformance", "-p", "no:cacheprovider")
    shown = installed.run(*suite, "--kode-store", "duckdb", "--kode-tier", "quick", "-k", "TODO-1 or MSG-7")
    assert " passed" in shown
    installed.run(*suite, code=4)


def test_the_class_judges(installed: Installed) -> None:
    """A file with a subclass of ``StoreConformance`` is a suite."""
    (installed.folder / "test_mine.py").write_text(
        "from kode_conformance.testclass import StoreConformance\n"
        "from kode_sqlite.testing import SqliteHarness\n\n\n"
        "class TestMine(StoreConformance):\n"
        "    harness = SqliteHarness()\n"
    )
    shown = installed.run("pytest", "-q", "-p", "no:cacheprovider", "test_mine.py", "-k", "TODO_1 or MSG_7")
    assert " passed" in shown


def test_a_project_is_made(installed: Installed) -> None:
    """``kode new-store`` has its templates with it."""
    installed.run("kode", "new-store", "acme")
    project = installed.folder / "kode-acme"
    installed.run("python", "-m", "pip", "install", "--quiet", "--no-deps", str(project))
    shown = installed.run("kode", "conformance", "acme", "--tier", "quick", "--only", "TODO", code=1)
    assert "AcmeEngine.docs is not written yet" in shown
