"""An archive read back: every line is checked before the agent that it belongs to is handed out."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator
from hashlib import sha256
from importlib.metadata import version
from typing import Any, Final

import msgspec

from kode_core.authoring.encodings import OtherEncodingError, unmarked
from kode_core.codec import Body, decoder_of, digest, from_dict
from kode_core.errors import ArchiveError, CorruptRecordError, InvalidArgumentError
from kode_core.jsonvalue import Problem, decode_json, dump
from kode_core.large import decode_in_slices
from kode_core.model import AgentRecords, Document
from kode_core.moving.exporting import FORMAT
from kode_core.moving.files import LINE_COST, MAX_AGENT, Lines
from kode_core.moving.lines import DOCUMENT, NOT_REST, PARTS, REST, Fingerprint, Part, Tally
from kode_core.moving.outcomes import MovedAgent
from kode_core.pace import Pace

__all__ = ["Archive", "Unpacked"]

_PARTS: Final = {part.kind: (place, part) for place, part in enumerate(PARTS)}
_KINDS: Final = (*_PARTS, REST)
"""The kinds of lines of records, in their order."""
_ONCE: Final = {REST, *(part.kind for part in PARTS if not part.is_list)}


class Unpacked(msgspec.Struct, frozen=True):
    """An agent of an archive, and the fingerprint of its lines."""

    records: AgentRecords
    taken: Fingerprint


class _Line(msgspec.Struct, forbid_unknown_fields=True):
    """Any line after the header."""

    kind: str
    agentId: str | None = None  # noqa: N815
    position: int | None = None
    createdAt: int | None = None  # noqa: N815
    updatedAt: int | None = None  # noqa: N815
    collection: str | None = None
    key: str | None = None
    tags: dict[str, str] | None = None
    agents: int | None = None
    counts: dict[str, int] | None = None
    digest: str | None = None
    body: msgspec.Raw = msgspec.Raw(b"")


class _Header(msgspec.Struct):
    kode: str
    format: int
    version: str = ""


class Archive:
    """Reads the agents of an archive, each whole.

    Args:
        skip_damaged: go on after an agent that is damaged, with its outcome in its place.
    """

    def __init__(self, lines: Lines, *, skip_damaged: bool = False) -> None:
        self._lines = lines
        self._skip = skip_damaged
        self._digest = sha256()
        self._agents = 0
        self._counts = Counter[str]()
        self._last: str | None = None
        self._raw = b""
        self.is_own = False
        """True if this version of kode-core wrote the archive."""

    async def agents(self) -> AsyncIterator[Unpacked | MovedAgent]:
        """The agents in the order of their ids.

        Raises:
            ArchiveError: a line is wrong, or the archive is cut short.
        """
        await self.read_header()
        is_sound, raw = True, await self._next()
        while True:
            try:
                line = self._parsed(raw)
                if line.kind == "trailer":
                    await self._trailer(line, is_sound)
                    return
                self._check_begin(line)
                agent = _Agent(line, raw)
                yield await self._rest_of(agent)
            except ArchiveError as exc:
                if not self._skip:
                    raise
                is_sound = False
                yield MovedAgent(agent_id=self._last or "", outcome="damaged", reason=str(exc))
                raw = await self._next_begin(raw)
                continue
            raw = await self._next()

    async def read_header(self) -> None:
        """Read the first line; ``agents`` does so itself."""
        raw = await self._lines.next()
        if raw is None:
            raise ArchiveError(1, "the file is empty")
        try:
            raw = unmarked(raw)
            raw.decode()  # a field that is passed over, too
            header: _Header = decoder_of(_Header)(raw)
        except OtherEncodingError as exc:
            raise ArchiveError(1, str(exc)) from None
        except (msgspec.MsgspecError, UnicodeError, RecursionError):
            raise ArchiveError(1, "it is no header of an archive that kode export writes") from None
        if header.kode != "archive":
            raise ArchiveError(1, "it is no header of an archive that kode export writes")
        if header.format != FORMAT:
            raise ArchiveError(
                1,
                f"the archive has format {header.format}, written by kode-core {header.version:.20}; this version reads"
                f" format {FORMAT}: upgrade kode-core",
            )
        self.is_own = header.version == version("kode-core")
        self._digest.update(raw)

    async def _next(self, *, past_long: bool = False) -> bytes:
        raw = await self._lines.next(past_long=past_long)
        if raw is None:
            raise ArchiveError(
                self._lines.number + 1, "the archive is cut short here: it has no trailer, which is its last line"
            )
        self._raw = raw
        return raw

    def _parsed(self, raw: bytes) -> _Line:
        number = self._lines.number
        try:
            raw.decode()  # bodies are decoded later, each by itself
            return decoder_of(_Line)(raw)  # type: ignore[no-any-return]
        except UnicodeDecodeError:
            raise ArchiveError(number, "it is no line of an archive: it is not UTF-8") from None
        except (msgspec.MsgspecError, RecursionError) as exc:
            problem = str(exc)
        try:  # a lone surrogate in the body
            plain = decode_json(raw.decode())
            if type(plain) is dict and "body" in plain:
                return msgspec.convert({**plain, "body": msgspec.Raw(dump(plain["body"]))}, _Line)
        except (Problem, ValueError, RecursionError, msgspec.MsgspecError) as exc:
            problem = problem or str(exc)
        raise ArchiveError(number, f"it is no line of an archive: {problem:.200}")

    def _check_begin(self, line: _Line) -> None:
        number = self._lines.number
        if line.kind != "agent" or line.agentId is None:
            raise ArchiveError(number, f"it is a line of the kind {line.kind!r:.40} outside of an agent")
        if self._last is not None and line.agentId <= self._last:
            what = "comes twice" if line.agentId == self._last else "is not in its place: agents ascend by id"
            raise ArchiveError(number, f"the agent {line.agentId!r:.80} {what}")
        self._last = line.agentId

    async def _rest_of(self, agent: _Agent) -> Unpacked:
        size = 0
        while True:
            raw = await self._next()
            size += len(raw) + LINE_COST
            if size > MAX_AGENT:
                problem = f"the agent {agent.agent_id!r:.80} has more than {MAX_AGENT:,} bytes"
                raise ArchiveError(self._lines.number, problem)
            line, number = self._parsed(raw), self._lines.number
            if line.agentId != agent.agent_id:
                raise ArchiveError(
                    number, f"it does not belong to the agent {agent.agent_id!r:.80}, whose end line is missing"
                )
            if line.kind == "end":
                unpacked = agent.end(line, number)
                self._digest.update(raw)
                self._agents += 1
                self._counts.update(unpacked.taken.counts)
                return unpacked
            await agent.add(line, raw, number)

    async def _next_begin(self, before: bytes) -> bytes:
        """The line that begins the agent after the one that began with *before*, or the trailer."""
        raw = self._raw
        while raw is before or not raw.startswith((b'{"kind":"agent"', b'{"kind":"trailer"')):
            raw = await self._next(past_long=True)
        return raw

    async def _trailer(self, line: _Line, is_sound: bool) -> None:
        number = self._lines.number
        if is_sound:
            if line.agents != self._agents or line.counts != dict(self._counts):
                raise ArchiveError(
                    number,
                    f"the trailer counts other records: the archive has {self._agents:,} agents, "
                    f"the trailer says {line.agents}",
                )
            if line.digest != self._digest.hexdigest():
                raise ArchiveError(number, "the digest of the trailer is not that of the agents before it")
        if await self._lines.next() is not None:
            raise ArchiveError(number + 1, "there is more after the trailer, which ends an archive")


def _rest_from(line: _Line, number: int) -> dict[str, Any]:
    """The fields that have no lines of their own."""
    try:
        rest = decode_json(bytes(line.body).decode())
    except (ValueError, RecursionError):
        rest = None
    if type(rest) is not dict:
        raise ArchiveError(number, "the body is no JSON object")
    if not NOT_REST.isdisjoint(rest):
        names = ", ".join(sorted(NOT_REST.intersection(rest)))
        raise ArchiveError(number, f"the {REST} has {names}, which the agent's other lines have")
    return rest


class _Agent:
    """An agent while its lines are read."""

    def __init__(self, line: _Line, raw: bytes) -> None:
        self.agent_id: str = line.agentId or ""
        self._tally = Tally()
        self._tally.add("agent", raw)
        self._pace = Pace()
        self._place = 0
        self._fields: dict[str, Any] = {"updated_at": line.updatedAt}
        self._times: list[int] = []
        self._rest: dict[str, Any] = {}

    async def add(self, line: _Line, raw: bytes, number: int) -> None:
        """Add a record."""
        if line.position != self._tally.counts.get(line.kind, 0):
            raise ArchiveError(number, f"position {line.position} of a {line.kind:.40} is not the next one")
        try:
            await self._take(line, number)
        except CorruptRecordError as exc:
            raise ArchiveError(number, str(exc)) from None
        except InvalidArgumentError as exc:
            raise ArchiveError(number, str(exc)) from None
        self._tally.add(line.kind, raw)

    async def _take(self, line: _Line, number: int) -> None:
        if line.kind in _ONCE and line.position:
            raise ArchiveError(number, f"it is the second {line.kind} of the agent, which has one at most")
        if line.kind == REST:
            self._place = len(PARTS)
            self._rest = _rest_from(line, number)
            return
        place, part = _PARTS.get(line.kind, (-1, None))
        if part is None:
            raise ArchiveError(number, f"the kind {line.kind!r:.40} is not known")
        if place < self._place:
            raise ArchiveError(number, f"a {line.kind} comes after a {_KINDS[self._place]}, and not in its place")
        self._place = place
        record = await self._record(line, part, number)
        if not part.is_list:
            self._fields[part.field] = record
            return
        self._fields.setdefault(part.field, []).append(record)
        if part.kind == "message":
            if line.createdAt is None:
                raise ArchiveError(number, "the message has no createdAt")
            self._times.append(line.createdAt)

    async def _record(self, line: _Line, part: Part, number: int) -> Any:
        text = bytes(line.body).decode()
        if not text:
            raise ArchiveError(number, f"the {line.kind} has no body")
        if part.kind != DOCUMENT:
            body = Body(text, digest(text.encode()))
            return await decode_in_slices(part.cls, body, f"{line.kind} {line.position}", self._pace)
        if line.collection is None or line.key is None or line.updatedAt is None:
            raise ArchiveError(number, "the document lacks its collection, key or updatedAt")
        try:
            value = decode_json(text)
        except (ValueError, RecursionError):
            raise ArchiveError(number, "the value of the document is no JSON") from None
        return Document(
            collection=line.collection,
            key=line.key,
            value=value,
            version="0",
            updated_at=line.updatedAt,
            tags=line.tags or {},
        )

    def end(self, line: _Line, number: int) -> Unpacked:
        """The agent, whose lines are as they were written."""
        taken = self._tally.fingerprint()
        if line.counts != taken.counts:
            raise ArchiveError(
                number, f"the agent {self.agent_id!r:.80} has other counts: lines are missing or too many"
            )
        if line.digest != taken.digest:
            raise ArchiveError(number, f"the digest of the agent {self.agent_id!r:.80} is not that of its lines")
        try:
            records = from_dict(AgentRecords, {"agentId": self.agent_id, **self._rest})
        except InvalidArgumentError as exc:
            raise ArchiveError(number, str(exc)) from None
        if records.extra:
            names = ", ".join(sorted(records.extra))
            raise ArchiveError(
                number, f"the agent has {names:.80}, which this version does not know: upgrade kode-core"
            )
        return Unpacked(records.replace(message_times=self._times, **self._fields), taken)
