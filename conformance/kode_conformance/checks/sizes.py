"""VAL-4: a record of any size takes the place of one of any other size, for every kind and by every method."""

from __future__ import annotations

from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.fields import Field, Holds, fields_of, full, put
from kode_conformance.kinds import kinds
from kode_conformance.registry import check
from kode_conformance.settings import Tier
from kode_conformance.ways import changes_come_back

_D: Final = Dimension
_SIZES: Final = (10, 2**20 + 1, 11)
"""Small, then more than caches, items and packets take, then small again: what did not fit must not remain."""
_MORE: Final = (65_536, 10, 400_001, 2**24, 12)
_HEADROOM: Final = 4096
"""What the rest of a record takes."""


def _rooms(root: type[Any]) -> list[Field]:
    """The fields of the record that take a text of any length, as it is or in a dict."""
    return [f for f in fields_of(root) if f.holds in (Holds.TEXT, Holds.JSON, Holds.DICT)]


def _filled(root: type[Any], field: Field, size: int) -> Any:
    text = "x" * size
    return put(full(root), field, {"k": text} if field.holds is Holds.DICT else text)


@check(
    *("VAL-4", "MSG-1", "TC-1", "TODO-1", "HIS-1", "HIS-2", "MED-1", "SNAP-1", "INFO-2", "QRY-8"),
    under=(_D.LENGTHS, _D.CHANGES, _D.INSTANCES, _D.ORDERS),
)
async def every_size_replaces_another(ctx: Context) -> None:
    """A small record takes the place of a large one and a large one that of a small one, of every kind and by every
    method, whichever field is large: another instance loads the new one, never the one from before.
    """
    most = (ctx.harness.limits.max_payload_bytes or 2**40) - _HEADROOM
    sizes = _SIZES if ctx.settings.tier is Tier.QUICK else (*_SIZES, *_MORE)
    large = {root: ctx.rng.choice(_rooms(root)) for root in kinds()}
    phases = [{root: [_filled(root, field, min(size, most))] for root, field in large.items()} for size in sizes]
    await changes_come_back(ctx, phases, turning=True)
