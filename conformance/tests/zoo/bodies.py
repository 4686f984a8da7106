"""Layers that change the texts of records, as databases and encoders do (VAL clauses)."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, Final

from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import mutant
from conformance.tests.zoo.witnesses import call_with, restart, seen, talk
from kode_core.batch import Batch, ListKind, ListRows, Outcome, with_bodies
from kode_core.codec import Body, digest
from kode_core.errors import PayloadTooLargeError, StorageError
from kode_core.layers import Layer
from kode_core.model import Message, TextBlock, VideoBlock


def body(text: str) -> Body:
    """A body of that text."""
    return Body(text, digest(text.encode()))


class Bodies(Layer):
    """Changes the text of every body on its way in."""

    def change(self, text: str) -> str:
        """The changed text of a body."""
        raise NotImplementedError

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        return await super().commit([with_bodies(batch, lambda b: body(self.change(b.text))) for batch in batches])


FREE: Final = frozenset({"input", "result", "meta", "metadata", "value"})


def inside_free_fields(value: Any, change: Callable[[Any], Any], *, free: bool = False) -> Any:
    """*value* with every scalar changed that is below a free-form field."""
    if isinstance(value, dict):
        return {k: inside_free_fields(v, change, free=free or k in FREE) for k, v in value.items()}
    if isinstance(value, list):
        return [inside_free_fields(item, change, free=free) for item in value]
    return change(value) if free else value


def dumped(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"))


# --- strings ----------------------------------------------------------------------------------------------------------


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="C strings; columns that end at the first NUL",
    witness=call_with({"s": "a\0b"}),
    also=("VAL-1.hostile_values_in_every_field",),
)
class StripsNul(Bodies):
    """Drops U+0000 from strings."""

    def change(self, text: str) -> str:
        return text.replace("\\u0000", "")


@mutant(
    "VAL-1",
    killed_by="hostile_text_in_typed_fields",
    source="KODE SDK PostgresStore: JSONB refuses U+0000 and lone surrogates, and the whole save fails",
    witness=call_with("a\0b"),
    raises="unsupported Unicode escape sequence",
)
class RefusesNul(Layer):
    """Fails on a record with U+0000 in it."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        texts: list[str] = []
        for batch in batches:
            with_bodies(batch, lambda b: texts.append(b.text) or b)  # type: ignore[func-returns-value]
        if any("\\u0000" in text for text in texts):
            return [StorageError("unsupported Unicode escape sequence") for _ in batches]
        return await super().commit(batches)


@mutant(
    "VAL-1",
    killed_by="hostile_text_in_typed_fields",
    source="encoders with errors='replace'",
    witness=call_with({"s": "\ud83d"}),
)
class ReplacesLoneSurrogates(Bodies):
    """Stores U+FFFD instead of a lone surrogate."""

    def change(self, text: str) -> str:
        high, low = r"\\ud[89ab][0-9a-f]{2}", r"\\ud[c-f][0-9a-f]{2}"
        return re.sub(f"({high}{low})|{high}|{low}", lambda m: m[1] or "\\ufffd", text)


@mutant(
    "VAL-1",
    killed_by="hostile_text_in_typed_fields",
    source="files opened in text mode",
    witness=call_with("a\r\nb"),
)
class UnixNewlines(Bodies):
    """Turns CR LF into LF."""

    def change(self, text: str) -> str:
        return text.replace("\\r\\n", "\\n")


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="HFS+ names; search indexes that normalise",
    witness=call_with({"é": 1, "e\u0301": 2}),
)
class NormalisesText(Bodies):
    """Brings strings into Unicode's composed form."""

    def change(self, text: str) -> str:
        return unicodedata.normalize("NFC", text)


# --- numbers, booleans, keys ------------------------------------------------------------------------------------------


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="jsonb, and DynamoDB's one type of number",
    witness=call_with({"f": 1.0}),
)
class FloatNumbers(Bodies):
    """Turns 1.0 into 1."""

    def change(self, text: str) -> str:
        return re.sub(r"(?<=[:\[,])(-?[1-9]\d*)\.0(?=[,}\]])", r"\1", text)


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="KODE SDK PostgresStore: JSONB turns -0 into 0",
    witness=call_with({"f": -0.0}),
)
class LosesMinusZero(Bodies):
    """Turns -0.0 into 0.0."""

    def change(self, text: str) -> str:
        return re.sub(r"(?<=[:\[,])-0\.0(?=[,}\]])", "0.0", text)


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="KODE SDK: numbers of JavaScript",
    witness=call_with({"i": 2**53 + 1}),
)
class NumbersOf53Bits(Bodies):
    """Keeps integers only as exactly as a double does."""

    def change(self, text: str) -> str:
        return re.sub(r"(?<=[:\[,])-?\d{16,300}(?=[,}\]])", lambda m: str(int(float(m[0]))), text)


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="BIGINT columns",
    witness=call_with({"i": 2**63}),
)
class WrapsAt64Bits(Bodies):
    """Cuts integers down to 64 bits with a sign."""

    def change(self, text: str) -> str:
        def wrapped(match: re.Match[str]) -> str:
            return str((int(match[0]) + 2**63) % 2**64 - 2**63)

        return re.sub(r"(?<=[:\[,])-?\d{19,4000}(?=[,}\]])", wrapped, text)


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="MySQL and SQLite have no boolean",
    witness=call_with({"t": True}),
)
class NumbersForBooleans(Bodies):
    """Turns true and false inside values into 1 and 0."""

    def change(self, text: str) -> str:
        if "true" not in text and "false" not in text:
            return text
        return dumped(inside_free_fields(json.loads(text), lambda v: int(v) if isinstance(v, bool) else v))


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="KODE SDK PostgresStore: JSONB changes the order of keys",
    witness=call_with({"z": 1, "a": 2}),
)
class SortsKeys(Bodies):
    """Sorts the keys of objects."""

    def change(self, text: str) -> str:
        return json.dumps(json.loads(text), separators=(",", ":"), sort_keys=True)


@mutant(
    "VAL-1",
    killed_by="any_json_value_comes_back_exactly",
    source="MongoDB drivers that escape keys",
    witness=call_with({"a.b": 1, "a": {"b": 2}}),
)
class EscapesKeys(Bodies):
    """Replaces the dots in keys."""

    def change(self, text: str) -> str:
        return re.sub(r'("[^"\\]*)\.([^"\\]*":)', r"\1_\2", text)


@mutant(
    "VAL-1",
    killed_by="exact_values_survive_a_restart",
    source="caches in front of a database that loses something",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(result="a\0b")]),
        restart,
        lambda s: s.load_tool_call_records("a"),
    ),
    also=("VAL-1.random_values_survive_a_restart",),
)
class CacheHidesLoss(StripsNul):
    """Drops U+0000, and gives out what was written as long as the instance lives."""

    def __init__(self, inner: Any) -> None:
        super().__init__(inner)
        self._written: dict[str, str] = {}

    def change(self, text: str) -> str:
        stored = super().change(text)
        self._written[stored] = text
        return stored

    async def rows(self, agent_id: str, kind: ListKind) -> ListRows:
        found = await super().rows(agent_id, kind)
        return replace(found, rows=[(body(self._written.get(b.text, b.text)), at) for b, at in found.rows])


# --- absent, falsy, unknown -------------------------------------------------------------------------------------------


@mutant(
    "VAL-3",
    killed_by="falsy_is_not_absent",
    source="KODE SDK SqliteStore and PostgresStore: `row.result ? … : undefined`, for error and times as well",
    witness=call_with(0),
    also=("VAL-1.random_values_in_every_field",),
)
class FalsyIsAbsent(Bodies):
    """Takes a result of 0, False or "", and a time of 0, for none."""

    def change(self, text: str) -> str:
        record = json.loads(text)
        if isinstance(record, dict):
            for name in ("result", "error", "startedAt", "completedAt", "durationMs"):
                if name in record and not record[name]:
                    del record[name]
        return dumped(record)


@mutant(
    "VAL-3",
    killed_by="falsy_is_not_absent",
    source="KODE SDK SqliteStore: isError undefined comes back as false",
    witness=seen(
        lambda s: s.save_tool_call_records("a", [samples.tool_call(is_error=None)]),
        lambda s: s.load_tool_call_records("a"),
    ),
)
class AbsentIsFalse(Bodies):
    """Gives a call that does not say whether it failed an is_error of False."""

    def change(self, text: str) -> str:
        record = json.loads(text)
        if isinstance(record, dict) and "auditTrail" in record:
            record.setdefault("isError", False)
        return dumped(record)


@mutant(
    "VAL-6",
    killed_by="unknown_fields_and_types_survive",
    source="records made anew from the fields that are known",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [TextBlock("x")], extra={"priority": 1})]),
        lambda s: s.load_messages("a"),
    ),
)
class DropsUnknownFields(Bodies):
    """Keeps of a message only role, content and metadata."""

    def change(self, text: str) -> str:
        record = json.loads(text)
        if isinstance(record, dict) and "role" in record:
            record = {k: v for k, v in record.items() if k in ("role", "content", "metadata")}
        return dumped(record)


@mutant(
    "VAL-6",
    killed_by="unknown_fields_and_types_survive",
    source="KODE SDK PostgresStore: CHECK (role IN ('user', 'assistant', 'system'))",
    witness=seen(lambda s: s.save_messages("a", [Message("tool", [TextBlock("x")])]), lambda s: s.load_messages("a")),
    raises="violates check constraint",
)
class KnowsThreeRoles(Layer):
    """Fails on a message with a role it does not know."""

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        for batch in batches:
            for row in () if batch.messages is None else batch.messages.append:
                if json.loads(row.body.text)["role"] not in ("user", "assistant", "system"):
                    return [StorageError("the role violates check constraint") for _ in batches]
        return await super().commit(batches)


@mutant(
    "VAL-6",
    killed_by="every_block_type_comes_back",
    source="KODE SDK types.md: no VideoContentBlock",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [VideoBlock(file_id="f")])]), lambda s: s.load_messages("a")
    ),
)
class DropsVideos(Bodies):
    """Leaves out blocks of a type that it has no column for."""

    def change(self, text: str) -> str:
        record = json.loads(text)
        if isinstance(record, dict) and isinstance(record.get("content"), list):
            record["content"] = [block for block in record["content"] if block.get("type") != "video"]
        return dumped(record)


# --- size -------------------------------------------------------------------------------------------------------------


class _Limited(Layer):
    """Fails when a batch is too large."""

    most: int

    def size(self, sizes: list[int]) -> int:
        raise NotImplementedError

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        sizes: list[int] = [0]
        for batch in batches:
            with_bodies(batch, lambda b: sizes.append(len(b.text)) or b)  # type: ignore[func-returns-value]
        if self.size(sizes) > self.most:
            raise PayloadTooLargeError("the document is larger than the maximum")
        return await super().commit(batches)


@mutant(
    "VAL-4",
    killed_by="large_values_come_back",
    source="MongoDB: 16 MB a document, not declared",
    witness=call_with("x" * 17_000_000),
    raises="larger than the maximum",
    also=("VAL-1.large_values_in_every_field",),
)
class RecordsOf16Megabytes(_Limited):
    """Takes no record of more than 16 MB, and does not say so beforehand."""

    most = 16_000_000

    def size(self, sizes: list[int]) -> int:
        return max(sizes)


@mutant(
    "VAL-4",
    killed_by="a_list_of_twenty_megabytes",
    source="KODE SDK database guide: a MongoDB store with one document an agent",
    witness=seen(
        lambda s: s.save_messages("a", talk("x" * 9_000_000, "y" * 9_000_000)), lambda s: s.load_messages("a")
    ),
    raises="larger than the maximum",
)
class OneDocumentAnAgent(_Limited):
    """Keeps a whole list in one document of at most 16 MB."""

    most = 16_000_000

    def size(self, sizes: list[int]) -> int:
        return sum(sizes)
