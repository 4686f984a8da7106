"""The values of random histories, by the names that a history calls them.

A name is one of :data:`VALUES`; or a variant (``c.state``); or of a family made from the tables of
:mod:`kode_conformance.dimensions`, as ``mL3`` for a message of the third lookalike; or of a run, as ``m#0:1001`` for
1,001 messages. A part of a value has the path of its field behind the name: ``s0:id``. A write of a document that
demands a version says which one: ``x0@old``. A text that stands for itself begins with an equals sign: ``=userId``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Final

import msgspec

from kode_conformance.dimensions import FRACTIONS, INTEGERS, LOOKALIKES, TIMES, twins
from kode_conformance.histories.variants import VARIANTS
from kode_conformance.values import samples
from kode_core.errors import InvalidArgumentError, InvalidValueError
from kode_core.model import (
    AgentInfo,
    Bookmark,
    DeleteDocument,
    Message,
    PutDocument,
    TextBlock,
    TodoSnapshot,
    ToolResultBlock,
    ToolUseBlock,
    UnknownBlock,
)

__all__ = ["FAMILIES", "REFUSED", "VALUES", "base_of", "code_of", "demand_of", "run", "runs_of", "values_of"]

_NAN: Final = {"rows": [float("nan")]}

VALUES: Final[Mapping[str, msgspec.Struct]] = {
    "m0": Message.user(""),
    "m1": Message("user", [TextBlock("0")], metadata={}),
    "m2": Message("assistant", [ToolUseBlock("c0", "t", {})]),
    "m3": Message("user", [ToolResultBlock("c0", 0)], metadata={"b": None, "a": False}),
    "m4": Message("user", [ToolResultBlock("c0", False, is_error=False)], metadata={"a": False, "b": None}),
    "c0": samples.tool_call(0, result=0, error=""),
    "c0b": samples.tool_call(0, result=False, state="FAILED", is_error=None, created_at=samples.T0 + 9),
    "c1": samples.tool_call(1, result=None, audit_trail=[], created_at=samples.T0),
    "c1b": samples.approved_call(1),
    "c1c": samples.tool_call(1, name="Search", is_error=True, created_at=samples.T0),
    "t0": TodoSnapshot(todos=[], version=0, updated_at=0),
    "t1": samples.todos("", ""),
    "t2": samples.todos("x"),
    "e0": samples.event(0, value=0),
    "e0b": samples.event(0, value=False),
    "e0c": samples.event(0, "control", value=0),
    "e1": samples.event(1, cursor=0, value=0),
    "e1b": samples.event(1, cursor=1, value=0),
    "e2": samples.event(2, "monitor", value={}),
    "w0": samples.window("w0", 0),
    "w0b": samples.window("w0", 2).replace(messages=[], events=[]),
    "w1": samples.window("w1", 0),
    "p0": samples.compression("p0", 1).replace(ratio=0),
    "p0b": samples.compression("p0", 0).replace(ratio=-0.0, summary="", recovered_files=[]),
    "p1": samples.compression("p1", 1).replace(ratio=1 / 3),
    "r0": samples.recovered("a/b", 0, content=""),
    "r0b": samples.recovered("a/b", 1).replace(mtime=0),
    "r0c": samples.recovered("a/b", 0).replace(mtime=-0.0),
    "r1": samples.recovered("a_b", 0),
    "d0": samples.media("k"),
    "d0b": samples.media("k").replace(size_bytes=0, file_id="", created_at=0),
    "s0": samples.snapshot("s0", 0),
    "s0b": samples.snapshot("s0", 1, count=0).replace(metadata={}, last_bookmark=None),
    "s1": samples.snapshot("s1", 1).replace(metadata=None),
    "i0": AgentInfo(agent_id="", template_id="t0", created_at=0, message_count=99, metadata={"userId": "", "k": 0}),
    "i1": AgentInfo(agent_id="", template_id="t1", created_at=5, last_bookmark=Bookmark(0, 0), metadata={"k": False}),
    "i2": AgentInfo(agent_id="", template_id="t0", created_at=0, lineage=["z", "z"], breakpoint="", metadata={}),
    "x0": PutDocument("c", "k", 0),
    "x0b": PutDocument("c", "k", False),
    "x0-": DeleteDocument("c", "k"),
    "x1": PutDocument("c", "K", {"b": None, "a": [-0.0, ""]}),
    "x1-": DeleteDocument("c", "K"),
    "x2": PutDocument("C", "k", None),
    "x2-": DeleteDocument("C", "k"),
    "x3": PutDocument("c", "k/", {}),
    "m!": Message("assistant", [ToolUseBlock("c0", "t", _NAN)]),
    "c!": samples.tool_call(0, result=_NAN),
    "e!": samples.event(3, value=_NAN),
    "i!": AgentInfo(agent_id="", template_id="t0", created_at=0, metadata=_NAN),
    "i?": AgentInfo(agent_id="somebody else", template_id="t0", created_at=0),
    "x!": PutDocument("c", "k", _NAN),
    "x?": PutDocument("c/", "k", 0),
}
"""The records that the names in a history stand for. The ids of agents and templates are put in when the step is made.
"""

REFUSED: Final = {
    "m!": InvalidValueError,
    "c!": InvalidValueError,
    "e!": InvalidValueError,
    "i!": InvalidValueError,
    "i?": InvalidArgumentError,
    "x!": InvalidValueError,
    "x?": InvalidArgumentError,
}
"""Values that no store may take, and the error that it raises."""

# --- families ---------------------------------------------------------------------------------------------------------

_TWINS: Final = twins()


def _info(i: int) -> AgentInfo:
    text, number = _of(LOOKALIKES, i), _of((*INTEGERS, *FRACTIONS), i)
    metadata = {"userId": text, text: number, "n": i % 3, "k": [_of(INTEGERS, i), None]}
    return AgentInfo(agent_id="", template_id=_of(_TWINS, i // 2), created_at=_of(TIMES, i), metadata=metadata)


FAMILIES: Final[Mapping[str, Callable[[int], msgspec.Struct]]] = {
    "mL": lambda i: Message("user", [TextBlock(_of(LOOKALIKES, i))], metadata={_of(LOOKALIKES, i + 1): i}),
    "mR": lambda i: Message(_of(_TWINS, i), [UnknownBlock({"type": _of(_TWINS, i), "x": i})]),
    "cT": lambda i: samples.tool_call(
        0, id=_of(_TWINS, i), name=_of(_TWINS, i // 2), state=_of(LOOKALIKES, i), created_at=_of(TIMES, i)
    ),
    "tL": lambda i: samples.todos(_of(LOOKALIKES, i)),
    "eN": lambda i: samples.event(_of(INTEGERS, i), cursor=i % 2, value=_of(FRACTIONS, i)),
    "wT": lambda i: samples.window(_of(_TWINS, i), _of(TIMES, i // 2)),
    "pT": lambda i: samples.compression(_of(_TWINS, i), _of(TIMES, i // 2)),
    "rT": lambda i: samples.recovered(_of(_TWINS, i), _of(TIMES, i // 2)),
    "sT": lambda i: samples.snapshot(_of(_TWINS, i), _of(TIMES, i // 2)),
    "dT": lambda i: samples.media(_of(_TWINS, i)),
    "iL": _info,
    "xT": lambda i: PutDocument("cCd"[i % 3], _of(_TWINS, i // 2), _of(LOOKALIKES, i)),
}
"""Records made of texts, names, numbers and times that stores confuse; the first letter names their kind."""


def _of(table: Sequence[Any], i: int) -> Any:
    return table[i % len(table)]


_RUNS: Final[Mapping[str, Callable[[int], msgspec.Struct]]] = {
    "m": samples.message,
    "c": samples.tool_call,
    "e": samples.event,
}
_FAMILY: Final = re.compile(r"([a-z][A-Z])(\d+)")
_RUN: Final = re.compile(r"([mce])#(\d+):(\d+)")


def run(kind: str, start: int, end: int) -> str:
    """The name of a run of records."""
    return f"{kind}#{start}:{end}"


def runs_of(name: str) -> tuple[str, int, int] | None:
    """The kind, the start and the end of a run."""
    found = _RUN.fullmatch(name)
    return found and (found[1], int(found[2]), int(found[3]))


def base_of(name: str) -> str:
    """The name of the whole value, without the part or the demand; empty for a text that stands for itself."""
    return "" if name[0] == "=" else name if "#" in name else re.split("[:@]", name, maxsplit=1)[0]


def demand_of(name: str) -> str:
    """The version that a write of a document demands: ``present``, ``old``, ``absent``, or none."""
    return "" if name[0] == "=" else name.partition("@")[2]


def values_of(name: str) -> Sequence[Any]:
    """The records that a name stands for, or the part of one."""
    if name[0] == "=":
        return (name[1:],)
    if "#" not in name and ":" in name:
        base, _, path = name.partition(":")
        return (attrgetter(path)(values_of(base)[0]),)
    name = base_of(name)
    if name in VALUES or name in VARIANTS:
        return (VALUES.get(name) or VARIANTS[name],)
    found = runs_of(name)
    if found is not None:
        kind, start, end = found
        return [_RUNS[kind](i) for i in range(start, end)]
    family = _FAMILY.fullmatch(name)
    if family is None:
        raise KeyError(name)
    return (FAMILIES[family[1]](int(family[2])),)


_RUN_CODE: Final = {
    "m": "samples.messages({count}, {start})",
    "c": "(samples.tool_call(i) for i in range({start}, {end}))",
    "e": "samples.events({count}, {start})",
}
_LONG: Final = re.compile(r"(?<![\w'\"])'([^'\\])\1{99,}'")


def code_of(value: object) -> str:
    """A value as Python: long texts of one character are multiplied, and runs of samples are made again."""
    if isinstance(value, str) and runs_of(value):
        kind, start, end = runs_of(value) or ("", 0, 0)
        return f"*{_RUN_CODE[kind].format(start=start, end=end, count=end - start)}"
    if isinstance(value, (list, tuple)) and len(value) > 20:
        return f"[{', '.join(_items(value))}]"
    return _LONG.sub(lambda found: f"{found[1]!r} * {len(found[0]) - 2}", repr(value))


def _items(values: Sequence[Any]) -> list[str]:
    """The items of a list, consecutive samples together."""
    found, i = [], 0
    while i < len(values):
        text = getattr(values[i], "text", "")
        number = text.removeprefix("message ") if isinstance(text, str) and text.startswith("message ") else ""
        count = 0
        if number.isdigit():
            start = int(number)
            while i + count < len(values) and values[i + count] == samples.message(start + count):
                count += 1
        if count > 1:
            found.append(f"*samples.messages({count}, {int(number)})")
        else:
            found.append(code_of(values[i]))
        i += max(count, 1)
    return found
