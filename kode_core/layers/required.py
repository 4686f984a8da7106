"""Notes in a store about the layers that its records need, so that no opening forgets one.

Without a layer, its records would be reported as damaged, and plain ones would be written next to them, or over them.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Final, NamedTuple

from kode_core.batch import ABSENT_DOC, Batch, Doc, DocKind, DocWrite
from kode_core.codec import Body, digest
from kode_core.engine import Engine, checks_demands
from kode_core.errors import ConfigurationError, KodeError

__all__ = [
    "COMPRESSION",
    "ENCRYPTION",
    "NOTES",
    "Required",
    "note_required",
    "refuse_plain",
    "refuse_without_layers",
    "shown_layers",
]

NOTES: Final = "kode.encryption." * 18
"""Longer than any legal agent id (ID-1): documents under it belong to the layers."""


class Required(NamedTuple):
    """A layer that a store needs.

    Attributes:
        key: of the document under ``NOTES`` that says so.
        problem: the reason, as the store's state.
        remedy: how to open it.
    """

    key: str
    problem: str
    remedy: str


ENCRYPTION: Final = Required(
    "encryption",
    "is encrypted",
    "give its keys, as encryption_key_file or encryption_key_variable, or as layers=[encrypted(keys)]",
)
COMPRESSION: Final = Required(
    "compression",
    "has compressed records",
    "give compression_min_bytes, or layers=[compressed()]; a large number of bytes compresses nothing more",
)
_KNOWN: Final = (ENCRYPTION, COMPRESSION)


async def refuse_without_layers(base: Engine, layers: Sequence[Engine]) -> None:
    """Check that *layers* are all that the store of *base* needs.

    Raises:
        ConfigurationError: a layer is missing.
    """
    given = {getattr(layer, "required", None) for layer in layers}
    if given.issuperset(_KNOWN):
        return
    noted = {doc.key for doc in await base.docs(NOTES, DocKind.LAYER)}
    for required in _KNOWN:
        if required.key in noted and required not in given:
            raise ConfigurationError(f"{base!r} {required.problem}: {required.remedy}")


async def shown_layers(around: Engine, known: Sequence[Engine]) -> list[Engine]:
    """The layers that a function put around the last of *known*, each of which looks at its keys and at the store.

    They are *around* and those that it shows by its attribute ``inner``. Layers in *known* count in any case, and a
    hidden layer never does.

    Raises:
        KodeError: the configuration of a layer is wrong, or it does not fit the store.
    """
    shown: list[Engine] = []
    layer: Engine | None = around
    while layer is not None and all(layer is not one for one in (*known, *shown)):
        shown.insert(0, layer)
        layer = getattr(layer, "inner", None)
    for one in shown:
        check = getattr(type(one), "check_store", None)  # of its own: it may forward attributes
        if check is not None:
            await check(one)
    return shown


async def refuse_plain(engine: Engine) -> None:
    """Check that a store that is to be encrypted, and has no note, has no records either, which are plain then.

    Raises:
        ConfigurationError: it has some.
    """
    if (await engine.totals()).is_used and not await engine.docs(NOTES, DocKind.LAYER, ENCRYPTION.key):
        raise ConfigurationError(
            f"{engine!r} has records as plain text, and keys were given: open it with encryption_plaintext='read', or "
            "encrypted(keys, plaintext='read'), and run kode rekey; or without keys"
        )


async def note_required(engine: Engine, required: Required) -> None:
    """Note in the store that it needs the layer around *engine*, unless it is noted.

    Raises:
        KodeError: the note cannot be written.
    """
    if await engine.docs(NOTES, DocKind.LAYER, required.key):
        return
    doc = Doc(required.key, 0, Body("1", digest(b"1")))
    write = DocWrite(DocKind.LAYER, required.key, doc, ABSENT_DOC if checks_demands(engine) else None)
    (outcome,) = await engine.commit([Batch(agent_id=NOTES, op_id=secrets.token_hex(16), now=0, docs=(write,))])
    if isinstance(outcome, KodeError):
        raise outcome
