"""The check of optional arguments together knows every method that reads by several, and every argument of it."""

from __future__ import annotations

import asyncio

from kode_conformance.builtin import MemoryHarness
from kode_conformance.checks.combined import kinds_of_parts, methods_together, optional_of
from kode_conformance.context import prepared


def test_every_method_with_several_optional_arguments_is_checked() -> None:
    async def known() -> dict[str, set[str]]:
        async with prepared(MemoryHarness()) as ctx:
            return {method: set(kind.values) for method, kind in (await kinds_of_parts(ctx.store)).items()}

    found = asyncio.run(known())
    assert sorted(methods_together()) == sorted(found)
    lacking = {name: set(optional_of(name)) - values for name, values in found.items()}
    assert not any(lacking.values()), lacking
