"""The kinds of documents, a row each.

A new kind is a member of :class:`kode_core.batch.DocKind`, a model, a row here, and the methods that save and load it:
in :mod:`kode_core.protocols`, in ``facade.py``, and by name in ``methods.py``. The store, its check and the hybrid
layout read the rest from the row. Engines, which are below the store, know a kind by its name alone; one that forks
copy is named in :data:`kode_core.batch.FORKED_DOCS`, too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Generic, NamedTuple, TypeVar

from kode_core.batch import Doc, DocKind, DocWrite
from kode_core.errors import KodeError
from kode_core.ids import check_key
from kode_core.jsonvalue import decode_json, encode_json
from kode_core.large import write_body, write_list_of
from kode_core.model import (
    CompressionRecord,
    HistoryWindow,
    MediaCacheRecord,
    Record,
    RecoveredFile,
    Snapshot,
    TodoSnapshot,
)
from kode_core.pace import Pace
from kode_core.store.rows import check_class, int64, records_of

__all__ = ["COMPRESSIONS", "KINDS", "MEDIA", "RECOVERED", "SNAPSHOTS", "TODOS", "WINDOWS", "Kind"]

R = TypeVar("R", bound=Record)


def _single(record: Record, noun: str) -> str:
    """The key of the only document that an agent has of a kind."""
    return ""


def _by_id(record: Any, noun: str) -> str:
    return check_key(record.id, f"{noun} id")


def _by_path(file: RecoveredFile, noun: str) -> str:
    check_key(file.path, f"{noun} path")
    return encode_json([file.path, file.timestamp], noun)


def _single_of_keys(records: Sequence[MediaCacheRecord], noun: str) -> str:
    for record in records:
        check_key(record.key, "media key")
    return ""


def _by_time(doc: Doc) -> tuple[Any, ...]:
    return doc.time, doc.key


def _newest_first(doc: Doc) -> tuple[Any, ...]:
    return -doc.time, doc.key


def _by_time_and_path(doc: Doc) -> tuple[Any, ...]:
    """The key of a recovered file is the JSON of its path and timestamp."""
    try:
        found = decode_json(doc.key)
    except (ValueError, KodeError):
        found = None
    path = found[0] if isinstance(found, list) and found and isinstance(found[0], str) else doc.key
    return doc.time, path, doc.key


class Kind(NamedTuple, Generic[R]):
    """A kind of document.

    Attributes:
        noun: the record's name in errors.
        key: (record, noun) -> the checked key of its document.
        time: the field of the time that documents are stored with; empty where an agent has only one.
        order: the key for sorting the documents in the order of their load.
        is_list: a document has a list of records.
        in_files: in the hybrid layout it is in files.
    """

    kind: DocKind
    cls: type[R]
    noun: str
    key: Callable[[Any, str], str] = _single
    time: str = ""
    order: Callable[[Doc], tuple[Any, ...]] = _by_time
    is_list: bool = False
    in_files: bool = False

    @property
    def is_newest_first(self) -> bool:
        """Whether a load begins with the newest document."""
        return self.order is _newest_first

    async def write(self, given: Any) -> DocWrite:
        """The document of a record, or of a list of records, which is checked."""
        if self.is_list:
            label, given = self.noun, records_of(self.cls, given, "records")
            body = await write_list_of(self.cls, given, label, Pace())
        else:
            check_class(self.cls, given, self.noun)
            label = self._label(given)
            body = await write_body(self.cls, given, label, Pace())
        key = self.key(given, self.noun)
        return DocWrite(self.kind, key, Doc(key, self._time(given, label), body))

    def _label(self, record: Any) -> str:
        if self.key is not _by_id:
            return self.noun
        name = record.id if type(record.id) is str else type(record.id).__name__
        return f"{self.noun} {name[:80]!r:.80}"

    def _time(self, record: Any, label: str) -> int:
        if not self.time:
            return 0
        path = self.cls.__struct_encode_fields__[self.cls.__struct_fields__.index(self.time)]
        return int64(getattr(record, self.time), label, f"$.{path}")


TODOS: Final = Kind(DocKind.TODOS, TodoSnapshot, "todos", in_files=True)
WINDOWS: Final = Kind(DocKind.WINDOWS, HistoryWindow, "history window", _by_id, "timestamp", in_files=True)
COMPRESSIONS: Final = Kind(
    DocKind.COMPRESSIONS, CompressionRecord, "compression record", _by_id, "timestamp", in_files=True
)
RECOVERED: Final = Kind(
    DocKind.RECOVERED,
    RecoveredFile,
    "recovered file",
    _by_path,
    "timestamp",
    order=_by_time_and_path,
    in_files=True,
)
SNAPSHOTS: Final = Kind(DocKind.SNAPSHOTS, Snapshot, "snapshot", _by_id, "created_at", order=_newest_first)
MEDIA: Final = Kind(DocKind.MEDIA, MediaCacheRecord, "media cache", _single_of_keys, is_list=True, in_files=True)

KINDS: Final[tuple[Kind[Any], ...]] = (TODOS, WINDOWS, COMPRESSIONS, RECOVERED, SNAPSHOTS, MEDIA)
"""All kinds, in the order in which they are checked."""
