"""All distributions have one version, which one command sets."""

from __future__ import annotations

import datetime
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from scripts.version import Disagreement, agreed, bounds, projects, set_version

ROOT = Path(__file__).parents[1]
DAY = datetime.date(2030, 1, 31)
DISTRIBUTIONS = {
    "kode-core",
    "kode-sqlite",
    "kode-postgres",
    "kode-mongo",
    "kode-dynamodb",
    "kode-conformance",
    "kode-agent",
    "kode-inspector",
    "kode-otel",
    "kode-langgraph",
    "kode-openai-agents",
    "kode-claude-agent",
    "kode-pydantic-ai",
    "kode-adk",
}


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the files that state the version, with a change that is unreleased."""
    for path in (*projects(ROOT), ROOT / "CHANGELOG.md"):
        target = tmp_path / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    change(tmp_path)
    return tmp_path


def change(root: Path) -> None:
    changelog = root / "CHANGELOG.md"
    changelog.write_text(changelog.read_text().replace("## Unreleased\n", "## Unreleased\n\n- A change.\n", 1))


def released(changelog: str) -> list[str]:
    """The versions that a changelog names, from the top."""
    return re.findall(r"^## (\d\S*) - \d{4}-\d\d-\d\d$", changelog, re.MULTILINE)


def test_all_agree() -> None:
    """Every distribution states the same version, and requires the others from it on."""
    version = agreed(ROOT)
    names = {tomllib.loads(path.read_text())["project"]["name"] for path in projects(ROOT)}
    assert names == {*DISTRIBUTIONS, "kode-duckdb", "kode-extras"}
    shown = subprocess.run((sys.executable, ROOT / "scripts/version.py"), capture_output=True, text=True, check=True)
    assert shown.stdout == f"{version}\n"


def test_one_command_sets_it(copy: Path) -> None:
    """Setting the version changes each file, the requirements in it, and the heading in the changelog; once."""
    changed = set_version(copy, "7.2.0", DAY)
    assert set(changed) == {*projects(copy), copy / "CHANGELOG.md"}
    assert agreed(copy) == "7.2.0"
    project = tomllib.loads((copy / "plugins/sqlite/pyproject.toml").read_text())["project"]
    assert "kode-core>=7.2.0,<8" in project["dependencies"]
    extras = tomllib.loads((copy / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert extras["mongo"] == ["kode-mongo>=7.2.0,<8"]
    changelog = (copy / "CHANGELOG.md").read_text()
    assert "\n## Unreleased\n\n## 7.2.0 - 2030-01-31\n" in changelog
    assert set_version(copy, "7.2.0", DAY) == []


def test_a_candidate_leaves_the_changelog_alone(copy: Path) -> None:
    """A release candidate is a version of the files; what changed stays under "Unreleased"."""
    assert copy / "CHANGELOG.md" not in set_version(copy, "7.2.0rc1", DAY)
    assert agreed(copy) == "7.2.0rc1"


@pytest.mark.parametrize(
    ("version", "expected"),
    [("0.1.0", ">=0.1.0,<0.2"), ("0.9.3", ">=0.9.3,<0.10"), ("0.2.0rc1", ">=0.2.0rc1,<0.3"), ("1.4.2", ">=1.4.2,<2")],
)
def test_bounds(version: str, expected: str) -> None:
    """Distributions of one minor version go together before 1.0, those of one major version afterwards."""
    assert bounds(version) == expected


@pytest.mark.parametrize(
    "version",
    ["", "1", "0.2", "v0.2.0", "0.2.0-1", "0.2.x", "0.2.0\n", "0.02.0", "0.2.0rc01", "٠.٢.٠", f"{'9' * 5000}.0.0"],
    ids=ascii,
)
def test_other_texts_are_refused(copy: Path, version: str) -> None:
    """A text that is not a version changes nothing."""
    with pytest.raises(ValueError, match="is not a version"):
        set_version(copy, version, DAY)
    assert agreed(copy) == agreed(ROOT)


def test_a_disagreement_is_named(copy: Path) -> None:
    """A file with a version or a requirement of its own is named with both."""
    path = copy / "plugins/mongo/pyproject.toml"
    version = agreed(copy)
    text = path.read_text().replace(f'version = "{version}"', 'version = "0.0.9"')
    path.write_text(text.replace(f"kode-core{bounds(version)}", "kode-core>=0.0.9"))
    with pytest.raises(Disagreement) as caught:
        agreed(copy)
    assert str(caught.value).splitlines() == [
        f"plugins/mongo/pyproject.toml: version 0.0.9, and not {version}",
        f'plugins/mongo/pyproject.toml: "kode-core>=0.0.9", and not kode-core{bounds(version)}',
    ]


def test_a_version_is_released_once(copy: Path) -> None:
    """A version that the changelog has is refused while there are changes that are unreleased."""
    set_version(copy, "7.2.0", DAY)
    change(copy)
    with pytest.raises(ValueError, match=r"has 7\.2\.0 already"):
        set_version(copy, "7.2.0", DAY)


def test_the_changelog_agrees() -> None:
    """The newest version of the changelog is the one of the distributions, unless that is a candidate."""
    newest = released((ROOT / "CHANGELOG.md").read_text())[:1]
    version = agreed(ROOT)
    assert newest in ([], [version]) or not version.replace(".", "").isdigit()


def test_the_changelog_is_by_distribution() -> None:
    """Every change stands under its distributions, the contract or the repository; each distribution has a section."""
    versions = (ROOT / "CHANGELOG.md").read_text().split("\n## ")[1:]
    assert versions[0].startswith("Unreleased\n")
    sections: set[str] = set()
    for version in versions:
        before, *parts = version.split("\n### ")
        assert "\n- " not in before, f"{version.splitlines()[0]}: changes without a section"
        headings = [part.splitlines()[0] for part in parts]
        assert len(headings) == len(set(headings)), f"{version.splitlines()[0]}: a section twice"
        sections.update(headings)
    assert sections >= DISTRIBUTIONS
    for section in sections - {"Contract", "The repository"}:
        assert set(section.split(" and ")) <= DISTRIBUTIONS, section
