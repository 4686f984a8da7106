"""Running a check."""

from __future__ import annotations

import os
from typing import Final

from kode_conformance.context import Violation, prepared
from kode_conformance.harness import StoreHarness
from kode_conformance.loop import LoopThread
from kode_conformance.registry import Capability, Check

__all__ = ["capabilities_of", "run_check"]

SECONDS: Final = 60.0 * float(os.environ.get("KODE_CONFORMANCE_TIMEOUT_SCALE", "1"))
"""How long one check may take."""


def capabilities_of(harness: StoreHarness) -> Capability:
    """All capabilities but those that the harness says its store lacks."""
    found = Capability.ALL
    for name in harness.lacks:
        found &= ~Capability[name]
    return found


def run_check(check: Check, harness: StoreHarness) -> None:
    """Run a check on a store of its own.

    Raises:
        Violation: a clause does not hold; the message names it.
    """

    async def run() -> None:
        async with prepared(harness) as context:
            await check.run(context)

    with LoopThread() as loop:
        try:
            loop(run(), SECONDS)
        except Violation as exc:
            raise Violation(f"{', '.join(check.clauses)} VIOLATED by {harness.name}: {check.claim}\n{exc}") from exc
