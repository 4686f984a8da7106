"""The version of an agent, a text that changes with its messages, tool calls and info (VER-1), and of each list."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Any, Final

from kode_core.batch import ABSENT_DOC, AgentSummary, DocWrite, ListHead, ListKind
from kode_core.codec import Body, digest
from kode_core.engine import Engine
from kode_core.errors import ConflictError, InvalidArgumentError
from kode_core.model import ABSENT

__all__ = ["check_version", "demanded_by", "document_conflict", "head_of", "unchanged", "version_of"]

_LONGEST: Final = 64
_OF_DOCUMENT: Final = 32
"""The length of a document's version; no version of an agent has it."""


def version_of(summary: AgentSummary | None) -> str:
    """The version of an agent.

    ``updated_at`` alone is no version: an agent that was deleted and created again within a millisecond may have the
    same one. The versions of the lists never repeat, and the digest tells two infos apart.
    """
    if summary is None:
        return ABSENT
    info = b"" if summary.info is None else summary.info.body.digest
    state = f"{summary.updated_at}.{summary.messages.version}.{summary.tool_calls.version}.".encode() + info
    return blake2b(state, digest_size=12).hexdigest()


def head_of(summary: AgentSummary | None, kind: ListKind) -> ListHead:
    """The version and length of a list, both 0 if the agent does not exist."""
    return ListHead() if summary is None else getattr(summary, kind.value)


def unchanged(summary: AgentSummary | None) -> dict[str, Any]:
    """The fields of a batch that demand the agent as *summary* has it: every part of its version.

    A damaged info is not demanded: a layer may show it with another digest than the engine compares.
    """
    lists = (head_of(summary, ListKind.MESSAGES).version, head_of(summary, ListKind.TOOL_CALLS).version)
    info = ABSENT_DOC
    if summary is not None and summary.info is not None:
        info = summary.info.body
    is_sound = not info.text or digest(info.text.encode(errors="replace")) == info.digest
    return {
        "expect_updated_at": 0 if summary is None else summary.updated_at,
        "expect_lists": lists,
        "expect_info": Body("", info.digest) if is_sound else None,
    }


def check_version(expect: object) -> None:
    """Raise InvalidArgumentError if *expect* is neither None nor a text that may be a version."""
    if expect is None:
        return
    if type(expect) is not str:
        raise InvalidArgumentError(f"expect must be a version, a str, got {type(expect).__name__}")
    if len(expect) == _OF_DOCUMENT:
        raise InvalidArgumentError(
            "expect is the version of a document: give it to PutDocument, DeleteDocument or put_document"
        )
    if not 0 < len(expect) <= _LONGEST or not expect.isascii() or not expect.isalnum():
        raise InvalidArgumentError("expect is no version: pass one that load_version or load_session returned")


def demanded_by(agent_id: str, expect: str | None, summary: AgentSummary | None) -> dict[str, Any]:
    """The fields of a batch that demand the version *expect*; none if it is None.

    With them the engine refuses the write once the agent has another version.

    Raises:
        ConflictError: the agent has another version than *expect*.
    """
    if expect is None:
        return {}
    version = version_of(summary)
    if version != expect:
        raise ConflictError(
            agent_id,
            version,
            f"it has version {version} and the write demands {expect}: another write came between; load it again",
        )
    return unchanged(summary)


async def document_conflict(engine: Engine, agent_id: str, writes: Sequence[DocWrite]) -> ConflictError | None:
    """The error of a turn that was refused for its documents; None if they are by now as it demands."""
    for write in writes:
        if write.expect is None:
            continue
        found = await engine.docs(agent_id, write.kind, write.key)
        there = found[0].body.digest if found else b""
        if there != write.expect.digest:
            demanded, version = write.expect.digest.hex() or ABSENT, there.hex() or ABSENT
            what = f"has version {version}" if there else "does not exist"
            wanted = f"version {demanded}" if write.expect.digest else "that it does not exist"
            problem = f"document {write.key!r:.80} {what}, and the write demands {wanted}: load it again"
            collection, _, key = write.key.partition("/")
            return ConflictError(agent_id, version, problem, collection=collection, key=key)
    return None
