"""The suite as a class to subclass in a pytest file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final

import pytest

from kode_conformance.context import Unverified
from kode_conformance.harness import StoreHarness
from kode_conformance.registry import Check, load_checks
from kode_conformance.runner import capabilities_of, run_check

__all__ = ["StoreConformance"]


class StoreConformance:
    """Every check of the contract as a test method.

    ::

        class TestDuck(StoreConformance):
            harness = DuckHarness()

    Checks cannot be overridden: a store that differs says so in its harness.
    """

    harness: ClassVar[StoreHarness]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        replaced = sorted(name for name in vars(cls) if name in _METHODS)
        if replaced:
            raise TypeError(f"{cls.__name__} replaces {', '.join(replaced)}: checks of the contract stand as they are")


def _method(check: Check) -> Callable[[StoreConformance], None]:
    def test(self: StoreConformance) -> None:
        missing = check.needs & ~capabilities_of(self.harness)
        if missing:
            pytest.skip(f"{self.harness.name} lacks {missing.name}")
        try:
            run_check(check, self.harness)
        except Unverified as exc:
            pytest.skip(f"not verified: {exc}")

    test.__name__ = check.method_name
    test.__doc__ = f"{', '.join(check.clauses)}: {check.claim}"
    return test


_METHODS: Final = {check.method_name: _method(check) for check in load_checks()}
for _name, _test in _METHODS.items():
    setattr(StoreConformance, _name, _test)
