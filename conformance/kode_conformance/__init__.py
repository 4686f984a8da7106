"""Is this store right? The conformance suite of kode-core.

A store's author writes a :class:`StoreHarness` and subclasses ``kode_conformance.testclass.StoreConformance``.
"""

from kode_conformance.context import Context, Violation
from kode_conformance.harness import BorrowedClient, Costs, Handle, Space, StoreHarness
from kode_conformance.registry import REGISTRY, Capability, Check, check, load_checks
from kode_conformance.running.runner import run_check

__all__ = [
    "REGISTRY",
    "BorrowedClient",
    "Capability",
    "Check",
    "Context",
    "Costs",
    "Handle",
    "Space",
    "StoreHarness",
    "Violation",
    "check",
    "load_checks",
    "run_check",
]
