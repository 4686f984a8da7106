"""The options of the suite for pytest. Pytest loads it in every session where the suite is installed, so it imports
nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

    from kode_conformance.harness import StoreHarness


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


def pytest_configure(config: pytest.Config) -> None:
    """Refuse to begin a suite that is asked for by name without a store."""
    if any("kode_conformance.suite" in arg.replace(os.sep, ".") for arg in config.args):
        _harness(config)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test for each check, against the harness of ``--kode-store``."""
    if "kode_check" not in metafunc.fixturenames:
        return
    import pytest

    from kode_conformance.registry import load_checks

    harness = _harness(metafunc.config)
    metafunc.parametrize("kode_check", [pytest.param(check, id=check.id) for check in load_checks()])
    metafunc.parametrize("kode_harness", [pytest.param(harness, id=harness.name)])


def _harness(config: pytest.Config) -> StoreHarness:
    import pytest

    from kode_conformance.harness import HarnessError, find_harness

    wanted = config.getoption("kode_store")
    if not wanted:
        raise pytest.UsageError("the conformance suite needs --kode-store: a name, module:Harness or file.py:Harness")
    try:
        return find_harness(wanted)
    except (LookupError, ImportError, TypeError, HarnessError) as exc:
        option = "--kode-store" if "://" in wanted else f"--kode-store {wanted}"  # an address may hold a password
        raise pytest.UsageError(f"{option}: {exc}") from exc
