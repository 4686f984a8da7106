"""Notes in a database whether it keeps a part of its agents in files, so that no open forgets the files."""

from __future__ import annotations

from typing import Final

from kode_core.batch import Applied, Batch, Doc, DocKind, DocWrite
from kode_core.codec import Body, digest
from kode_core.engine import Engine
from kode_core.errors import ConfigurationError, CorruptRecordError, KodeError

__all__ = ["companion", "note_companion", "noted", "refuse_without_files"]

_NOTES: Final = "kode." * 60
"""Longer than any legal agent id (ID-1): documents under it belong to the layers."""
_KEY: Final = "files"


async def companion(engine: Engine) -> tuple[str, str] | None:
    """The identity of the folder that belongs to the database, and its path when it was noted."""
    for doc in await engine.docs(_NOTES, DocKind.LAYER, _KEY):
        identity, _, path = noted(doc, "the note about the files of this store").partition(" ")
        return identity, path
    return None


def noted(doc: Doc, label: str) -> str:
    """The text that a layer stored in a document.

    Raises:
        CorruptRecordError: the document does not match its checksum.
    """
    if digest(doc.body.text.encode()) != doc.body.digest:
        raise CorruptRecordError(label, "the stored text does not match its checksum")
    return doc.body.text


async def note_companion(engine: Engine, identity: str, path: str) -> None:
    """Note that a folder belongs to the database."""
    text = f"{identity} {path}"
    doc = Doc(_KEY, 0, Body(text, digest(text.encode())))
    write = DocWrite(DocKind.LAYER, _KEY, doc)
    (outcome,) = await engine.commit([Batch(agent_id=_NOTES, op_id=f"files-{identity}", now=0, docs=(write,))])
    if isinstance(outcome, KodeError):
        raise outcome
    assert isinstance(outcome, Applied)


async def refuse_without_files(engine: Engine) -> None:
    """Check that a database that is opened alone does not have a part of its agents in files.

    Raises:
        ConfigurationError: a part of its agents is in files.
    """
    known = await companion(engine)
    if known is not None:
        raise ConfigurationError(
            f"{engine!r} keeps events, todos, history and media in files, which were at {known[1]}: "
            "give their folder as file_store_base_dir"
        )
