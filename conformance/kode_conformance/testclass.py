"""The suite as a class to subclass in a pytest file."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Final

import pytest

from kode_conformance.harness import StoreHarness
from kode_conformance.registry import Check, load_checks
from kode_conformance.settings import Tier
from kode_conformance.suite.pytest_front import conclude

__all__ = ["StoreConformance", "beyond"]


def beyond(count: int) -> str:
    """A regular expression for ``later``: all checks except *count* of each clause, which vary the fewest conditions.

    For the second driver or layout of a store that is judged as a whole already, and for a slow server.
    """
    plain: dict[str, list[str]] = {}
    quick = [check for check in load_checks() if check.tier is Tier.QUICK]
    for check in sorted(quick, key=lambda c: (c.stochastic, len(c.under), len(c.clauses), c.id)):
        plain.setdefault(check.clauses[0], []).append(re.escape(check.id))
    kept = "|".join(name for names in plain.values() for name in names[:count])
    return f"(?!(?:{kept})$)"


class StoreConformance:
    """Every check of the contract as a test method.

    ::

        class TestDuck(StoreConformance):
            harness = DuckHarness()

    Checks cannot be overridden: a store that differs says so in ``harness.deviations``.

    Attributes:
        later: a regular expression; checks whose ids it matches run from ``--kode-tier standard`` on. For a server that
            is slow, or that is judged as a whole under another harness already; :func:`beyond` makes one.
    """

    harness: ClassVar[StoreHarness]
    later: ClassVar[str] = ""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        replaced = sorted(name for name in vars(cls) if name in _METHODS)
        if replaced:
            raise TypeError(
                f"{cls.__name__} replaces {', '.join(replaced)}: checks of the contract stand as they are; "
                "declare what your store does otherwise in its harness's deviations"
            )


def _method(check: Check) -> Callable[[StoreConformance, pytest.FixtureRequest], None]:
    def test(self: StoreConformance, request: pytest.FixtureRequest) -> None:
        conclude(check, self.harness, request, later=self.later)

    test.__name__ = check.method_name
    test.__doc__ = f"{', '.join(check.clauses)}: {check.claim}"
    return test


_METHODS: Final = {check.method_name: _method(check) for check in load_checks()}
for _name, _test in _METHODS.items():
    setattr(StoreConformance, _name, _test)
