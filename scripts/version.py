"""The version of all distributions of this repository: show it, or set it everywhere.

::

    python scripts/version.py            # prints the version; fails if two files disagree
    python scripts/version.py 0.2.0      # sets it, and names the changelog's "Unreleased" after it

All distributions have one version and are released together. Where one requires another, in an extra too, it is from
that version on, and below the next one that may break it: the next minor version before 1.0, the next major version
afterwards. Only the standard library is used, so that any Python from 3.11 on can run this.
"""

from __future__ import annotations

import argparse
import datetime
import re
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
_PROJECTS = (
    "pyproject.toml",
    "plugins/*/pyproject.toml",
    "conformance/pyproject.toml",
    "docs/examples/*/pyproject.toml",
)
_NUMBER = "(0|[1-9][0-9]{0,5})"  # as builders of wheels write it: they would name a file of 0.02.0 by 0.2.0
_VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}(?:(?:a|b|rc){_NUMBER})?")
_VERSION_LINE = re.compile(r'^(\[project\]\n(?:[^\[].*\n)*?version = )"[^"]*"$', re.MULTILINE)
_REQUIREMENT = re.compile(r'"(kode-[a-z]+(?:\[[a-z,]+\])?)[<>=~][^"]*"')
_UNRELEASED = "## Unreleased\n"


class Disagreement(Exception):
    """Two files say different things; the message has one line for each."""


def projects(root: Path) -> list[Path]:
    """The pyproject.toml files of all distributions, the core's first."""
    return [path for pattern in _PROJECTS for path in sorted(root.glob(pattern))]


def bounds(version: str) -> str:
    """The versions of the other distributions that go with *version*: ``>=0.2.0,<0.3`` for 0.2.0."""
    match = _VERSION.fullmatch(version)
    if match is None:
        raise ValueError(
            f"{version!r:.60} is not a version: write three numbers, as in 0.2.0, or 0.2.0rc1 for a candidate"
        )
    major, minor = int(match[1]), int(match[2])
    return f">={version},<{major + 1}" if major else f">={version},<0.{minor + 1}"


def agreed(root: Path) -> str:
    """Return the version that all files state, with requirements that go with it.

    Raises:
        Disagreement: a file states another version, or requires another one.
    """
    stated = {path: _project(path) for path in projects(root)}
    version: str = stated[root / "pyproject.toml"]["version"]
    wrong = []
    for path, project in stated.items():
        if project["version"] != version:
            wrong.append(f"{path.relative_to(root)}: version {project['version']}, and not {version}")
        for requirement in _REQUIREMENT.finditer(path.read_text("utf-8")):
            if requirement[0] != f'"{requirement[1]}{bounds(version)}"':
                wrong.append(f"{path.relative_to(root)}: {requirement[0]}, and not {requirement[1]}{bounds(version)}")
    if wrong:
        raise Disagreement("\n".join(wrong))
    return version


def set_version(root: Path, version: str, day: datetime.date) -> list[Path]:
    """Write *version* into every file, and return the files that changed.

    A final version also becomes the heading of what the changelog has under "Unreleased"; a candidate does not.
    """
    allowed = bounds(version)
    written = {}
    for path in projects(root):
        text, count = _VERSION_LINE.subn(rf'\g<1>"{version}"', path.read_text("utf-8"))
        if count != 1:
            raise ValueError(f"{path.relative_to(root)} has no line with its version in [project]")
        written[path] = _REQUIREMENT.sub(rf'"\g<1>{allowed}"', text)
    if version.replace(".", "").isdigit():
        written[root / "CHANGELOG.md"] = _released((root / "CHANGELOG.md").read_text("utf-8"), version, day)
    changed = [path for path, text in written.items() if text != path.read_text("utf-8")]
    for path in changed:
        path.write_text(written[path], "utf-8")
    return changed


def _released(changelog: str, version: str, day: datetime.date) -> str:
    """The changelog with the changes under "Unreleased" named *version*."""
    before, found, after = changelog.partition(_UNRELEASED)
    if not found:
        raise ValueError('CHANGELOG.md has no section "Unreleased"')
    unreleased = re.split(r"^## ", after, maxsplit=1, flags=re.MULTILINE)[0]
    if not unreleased.strip():
        return changelog
    if f"\n## {version} " in changelog:
        raise ValueError(f"CHANGELOG.md has {version} already, and changes that are unreleased: take the next version")
    return f"{before}{_UNRELEASED}\n## {version} - {day}\n{after}"


def _project(path: Path) -> dict[str, Any]:
    project: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))["project"]
    return project


def main() -> int:
    """Show or set the version."""
    parser = argparse.ArgumentParser(description="Show the version of all distributions, or set it everywhere.")
    parser.add_argument("version", nargs="?", help="the new version, as in 0.2.0")
    wanted = parser.parse_args().version
    try:
        if wanted is None:
            print(agreed(ROOT))
            return 0
        today = datetime.datetime.now(datetime.UTC).date()
        for path in set_version(ROOT, wanted, today):
            print(path.relative_to(ROOT))
    except (Disagreement, ValueError) as exc:
        print(exc, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
