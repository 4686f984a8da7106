"""The options of the suite for pytest. Loaded in every session of whoever has the suite installed: imports nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--kode-store``, ``--kode-tier`` and ``--kode-seed``."""
    group = parser.getgroup("kode-conformance", "conformance of stores of agents")
    group.addoption(
        "--kode-store", metavar="STORE", help="the store to judge: a name, module:Harness or file.py:Harness"
    )
    group.addoption(
        "--kode-tier",
        choices=("quick", "standard", "thorough"),
        default="standard",
        help="how much to look at (default: %(default)s)",
    )
    group.addoption("--kode-seed", type=int, default=0, metavar="N", help="where random values come from")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each check, against the harness of ``--kode-store``."""
    if "kode_check" not in metafunc.fixturenames:
        return
    import pytest

    from kode_conformance.harness import find_harness
    from kode_conformance.registry import load_checks

    wanted = metafunc.config.getoption("kode_store")
    if not wanted:
        raise pytest.UsageError("the conformance suite needs --kode-store: a name, module:Harness or file.py:Harness")
    try:
        harness = find_harness(wanted)
    except (LookupError, ImportError, TypeError) as exc:
        raise pytest.UsageError(f"--kode-store {wanted}: {exc}") from exc
    metafunc.parametrize("kode_check", [pytest.param(check, id=check.id) for check in load_checks()])
    metafunc.parametrize("kode_harness", [pytest.param(harness, id=harness.name)])
