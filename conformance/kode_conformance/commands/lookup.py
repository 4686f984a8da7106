"""The harness that a command names, or one sentence that says why there is none."""

from __future__ import annotations

import os
import sys
import traceback
from importlib.metadata import entry_points
from pathlib import Path
from typing import Final

from kode_conformance.harness import GROUP, StoreHarness, find_harness
from kode_conformance.running.runner import capabilities_of
from kode_core.errors import ConfigurationError

__all__ = ["harness_named"]

_PACKAGE: Final = Path(__file__).parents[1]


def harness_named(wanted: str | None) -> StoreHarness:
    """The harness that the argument of a command means; modules are also looked for in the current folder.

    Raises:
        ConfigurationError: the harness does not exist, or its attributes are wrong.
    """
    if wanted is None:
        installed = ", ".join(sorted(entry.name for entry in entry_points(group=GROUP)))
        raise ConfigurationError(f"which store? Name one of {installed}, or a harness: module:Class or file.py:Class")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        harness = find_harness(wanted)
        capabilities_of(harness)
    except Exception as exc:
        if "://" in wanted:  # an address may hold a password
            raise ConfigurationError(str(exc)) from exc
        raise ConfigurationError(f"{wanted}: {_problem_of(exc)}") from exc
    return harness


def _problem_of(exc: Exception) -> str:
    """An error of this package is a sentence; one that comes from the harness's code is told with its place."""
    if isinstance(exc, SyntaxError) and exc.filename is not None and Path(exc.filename).is_file():
        return f"{type(exc).__name__}: {exc.msg} ({_shown(exc.filename)}:{exc.lineno})"
    frames = [frame for frame in traceback.extract_tb(exc.__traceback__) if "importlib" not in frame.filename]
    if isinstance(exc, ModuleNotFoundError) or Path(frames[-1].filename).is_relative_to(_PACKAGE):
        return str(exc)
    return f"{type(exc).__name__}: {exc} ({_shown(frames[-1].filename)}:{frames[-1].lineno})"


def _shown(path: str) -> str:
    return path.removeprefix(f"{Path.cwd()}{os.sep}")
