"""Objects that clients change at once by several kinds of calls: messages, an info, documents, and turns.

Each call has an argument and an answer, both plain JSON; an object says which states a call may leave behind.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple

from kode_conformance.histories.clients import Client
from kode_conformance.histories.linearize import Call
from kode_conformance.histories.schedules import pause
from kode_conformance.values import samples
from kode_core.errors import AgentNotFoundError, ConflictError, InvalidArgumentError
from kode_core.model import ABSENT, Document, PutDocument
from kode_core.protocols import ExtendedStore

__all__ = ["OBJECTS", "Object", "change_and_read"]

_REFUSED: Final = "refused"
_KEYS: Final = ("c", "k", "l")

Make = Callable[[ExtendedStore, str, Any], Awaitable[Any]]


class Object(NamedTuple):
    """A part of an agent.

    Attributes:
        begin: the state of an agent that has an info without metadata, and nothing else.
        calls: how often each call is made, how its argument is made of a number of its own, the version that was
            seen last and random numbers, and the call itself.
        following: the states that a call may leave behind.
        has_documents: True if it needs documents of the caller's own.
    """

    begin: Any
    calls: Mapping[str, tuple[int, Callable[[int, str, random.Random], Any], Make]]
    following: Callable[[Any, Call], Iterable[Any]]
    has_documents: bool = False


async def _or_refused(call: Callable[[], Awaitable[Any]]) -> Any:
    """The answer of a call, or the version that it was refused for. A client that is cancelled first never calls."""
    try:
        return await call()
    except ConflictError as exc:
        return [_REFUSED, exc.version]
    except (AgentNotFoundError, InvalidArgumentError):
        return _REFUSED


def _number(number: int, seen: str, rng: random.Random) -> Any:
    return number


def _seen(number: int, seen: str, rng: random.Random) -> Any:
    return [number, seen]


def _nothing(number: int, seen: str, rng: random.Random) -> Any:
    return None


def _upto(most: int) -> Callable[[int, str, random.Random], Any]:
    return lambda number, seen, rng: [rng.randint(0, most), number]


# --- messages ---------------------------------------------------------------------------------------------------------


def _texts(numbers: Iterable[int]) -> list[Any]:
    return [samples.message(text=str(number)) for number in numbers]


async def _numbers(store: ExtendedStore, agent_id: str, _: Any = None) -> list[int]:
    return [int(message.text) for message in await store.load_messages(agent_id)]


async def _pop(store: ExtendedStore, agent_id: str, arg: Any) -> list[int]:
    return [int(message.text) for message in await store.pop_messages(agent_id, arg[0])]


async def _replace(store: ExtendedStore, agent_id: str, arg: Any) -> Any:
    return await _or_refused(lambda: store.replace_message(agent_id, arg[0], _texts([arg[1]])[0]))


async def _fork(store: ExtendedStore, agent_id: str, arg: Any) -> Any:
    fork_id = await _or_refused(lambda: store.fork(agent_id, length=arg[0]))
    return await _numbers(store, fork_id) if fork_id != _REFUSED else _REFUSED


def _edited(state: tuple[int, ...], call: Call) -> Iterable[tuple[int, ...]]:
    (arg, answer), known = call.value, call.end is not None
    if call.op == "read":
        return [state] if answer == list(state) else []
    if call.op == "append":
        return [(*state, arg, arg)]
    if call.op == "save":
        return [(arg,) * (1 + arg % 4)]
    if call.op == "pop":
        kept = max(0, len(state) - arg[0])
        return [state[:kept]] if not known or answer == list(state[kept:]) else []
    if call.op == "truncate":
        return [state[: arg[0]]] if not known or answer == max(0, len(state) - arg[0]) else []
    is_there = arg[0] < len(state) or (call.op == "fork" and arg[0] == len(state))
    if known and (answer == _REFUSED) is is_there:
        return []
    if call.op == "fork":
        return [state] if not known or answer == _REFUSED or answer == list(state[: arg[0]]) else []
    return [(*state[: arg[0]], arg[1], *state[arg[0] + 1 :]) if is_there else state]


_MESSAGES: Final = Object(
    (),
    {
        "append": (6, _number, lambda s, a, n: s.append_messages(a, _texts([n, n]))),
        "save": (2, _number, lambda s, a, n: s.save_messages(a, _texts([n] * (1 + n % 4)))),
        "pop": (4, _upto(3), _pop),
        "truncate": (2, _upto(6), lambda s, a, arg: s.truncate_messages(a, arg[0])),
        "replace": (4, _upto(4), _replace),
        "fork": (3, _upto(4), _fork),
        "read": (6, _nothing, _numbers),
    },
    _edited,
)

# --- an info ----------------------------------------------------------------------------------------------------------


def _info(agent_id: str, metadata: Mapping[str, Any]) -> Any:
    return samples.info(agent_id, metadata=dict(metadata))


async def _read_info(store: ExtendedStore, agent_id: str, _: Any) -> Any:
    session = await store.load_session(agent_id)
    return None if session is None else [dict(sorted(session.metadata.items())), session.version]


async def _demand_info(store: ExtendedStore, agent_id: str, arg: Any) -> Any:
    return await _or_refused(lambda: store.save_info(agent_id, _info(agent_id, {"n": arg[0]}), expect=arg[1]))


async def _update(store: ExtendedStore, agent_id: str, arg: Any) -> Any:
    key, number = _KEYS[arg[0]], arg[1]
    if number % 5 == 0:
        got = await _or_refused(lambda: store.update_info(agent_id, {}, remove=[key]))
    else:
        got = await _or_refused(lambda: store.update_info(agent_id, {key: number}))
    return got if got == _REFUSED else dict(sorted(got.metadata.items()))


def _of_info(state: Any, call: Call) -> Iterable[Any]:
    """The state has the metadata, or None without info, and the version, or None before a call has returned it."""
    (metadata, version), (arg, answer), known = state, call.value, call.end is not None
    if call.op == "read":
        if metadata is None or answer is None:
            return [state] if metadata is None and answer is None else []
        is_so = tuple(answer[0].items()) == metadata and version in (None, answer[1])
        return [(metadata, answer[1])] if is_so else []
    if call.op == "delete":
        return [(None, ABSENT)]
    if call.op == "save":
        return [((("n", arg),), None)]
    if call.op == "update":
        after = dict(metadata or ())
        after.pop(_KEYS[arg[0]], None)
        after |= {_KEYS[arg[0]]: arg[1]} if arg[1] % 5 else {}
        if metadata is None:
            return [state] if not known or answer == _REFUSED else []
        return [(tuple(sorted(after.items())), None)] if not known or answer == after else []
    may = metadata is None if call.op == "create" else version == arg[1]
    written = [((("n", arg[0] if call.op == "demand" else arg),), None)] if may else []
    if not known:
        return [*written, state]
    if answer is None:
        return written
    is_other = call.op == "create" or answer[1] != arg[1]
    is_so = version in (None, answer[1]) and is_other and not (call.op == "create" and may)
    return [(metadata, answer[1])] if is_so else []


_INFO: Final = Object(
    ((), None),
    {
        "create": (3, _number, lambda s, a, n: _or_refused(lambda: s.create_agent(a, _info(a, {"n": n})))),
        "save": (2, _number, lambda s, a, n: s.save_info(a, _info(a, {"n": n}))),
        "demand": (6, _seen, _demand_info),
        "update": (6, _upto(2), _update),
        "delete": (1, _nothing, lambda s, a, _: s.delete(a)),
        "read": (6, _nothing, _read_info),
    },
    _of_info,
)

# --- a document -------------------------------------------------------------------------------------------------------


def _pair(document: Document | None) -> list[Any]:
    return [None, ABSENT] if document is None else [document.value, document.version]


async def _read_document(store: ExtendedStore, agent_id: str, _: Any) -> list[Any]:
    return _pair(await store.load_document(agent_id, "c", "k"))


def _of_document(state: Any, call: Call) -> Iterable[Any]:
    """The state has the value and the version, or None before a call has returned it."""
    (value, version), (arg, answer), known = state, call.value, call.end is not None
    if call.op == "read":
        return [tuple(answer)] if value == answer[0] and version in (None, answer[1]) else []
    if call.op == "delete":
        return [(None, ABSENT)]
    demanded = ABSENT if call.op == "insert" else arg[1] if call.op in ("demand", "remove") else None
    may = demanded is None or version in (None, demanded)
    after = (None, ABSENT) if call.op == "remove" else (arg[0] if call.op == "demand" else arg, None)
    if not known:
        return [after, state] if may else [state]
    if isinstance(answer, list):
        is_so = demanded is not None and version in (None, answer[1]) and answer[1] != demanded
        return [(value, answer[1])] if is_so else []
    return [(after[0], after[1] or answer)] if may else []


_DOCUMENT: Final = Object(
    (None, ABSENT),
    {
        "put": (3, _number, lambda s, a, n: s.put_document(a, "c", "k", n)),
        "insert": (5, _number, lambda s, a, n: _or_refused(lambda: s.put_document(a, "c", "k", n, expect=ABSENT))),
        "demand": (6, _seen, lambda s, a, arg: _or_refused(lambda: s.put_document(a, "c", "k", arg[0], expect=arg[1]))),
        "delete": (2, _nothing, lambda s, a, _: s.delete_document(a, "c", "k")),
        "remove": (2, _seen, lambda s, a, arg: _or_refused(lambda: s.delete_document(a, "c", "k", expect=arg[1]))),
        "read": (6, _nothing, _read_document),
    },
    _of_document,
    has_documents=True,
)

# --- turns ------------------------------------------------------------------------------------------------------------


async def _read_one(store: ExtendedStore, agent_id: str, arg: Any) -> Any:
    if arg == "messages":
        return await _numbers(store, agent_id)
    return await _read_document(store, agent_id, None)


async def _turn(store: ExtendedStore, agent_id: str, arg: Any) -> Any:
    document = PutDocument("c", "k", arg[0], arg[1])
    found = await _or_refused(lambda: store.save_turn(agent_id, append=_texts([arg[0]]), documents=[document]))
    return found if isinstance(found, list) and found[:1] == [_REFUSED] else None


def _of_turns(state: Any, call: Call) -> Iterable[Any]:
    """The state is the messages, and the document as above."""
    messages, document = state
    arg, answer = call.value
    if call.op == "read" and arg == "messages":
        return [state] if answer == list(messages) else []
    if call.op == "pop":
        is_so = call.end is None or answer == list(messages[-1:])
        return [(messages[:-1], document)] if is_so else []
    of_one = call._replace(op={"turn": "demand"}.get(call.op, call.op))
    is_written = call.end is None or answer is None
    return [
        ((*messages, arg[0]) if call.op == "turn" and is_written and new[0] == arg[0] else messages, new)
        for new in _of_document(document, of_one)
    ]


_TURNS: Final = Object(
    ((), (None, ABSENT)),
    {
        "turn": (7, _seen, _turn),
        "pop": (2, lambda *_: [1], _pop),
        "delete": (1, _nothing, lambda s, a, _: s.delete_document(a, "c", "k")),
        "read": (7, lambda n, seen, rng: rng.choice(("messages", "document", "document")), _read_one),
    },
    _of_turns,
    has_documents=True,
)

OBJECTS: Final[Mapping[str, Object]] = {
    "edited messages": _MESSAGES,
    "an info": _INFO,
    "a document": _DOCUMENT,
    "turns with a document": _TURNS,
}
"""All of them, by name."""


async def change_and_read(
    store: ExtendedStore,
    agent_id: str,
    thing: Object,
    number: int,
    rng: random.Random,
    calls: int,
    *,
    cancel: bool,
    until: float = math.inf,
) -> Sequence[Call]:
    """A client of an object. It demands the version that it saw last."""
    client, seen = Client(number, rng), ABSENT
    weights = {op: weight for op, (weight, _, _) in thing.calls.items()}
    for i in range(calls):
        if time.monotonic() > until:
            break
        await pause(rng)
        (op,) = rng.choices(list(weights), list(weights.values()))
        _, make_arg, make = thing.calls[op]
        arg = make_arg(1000 * (number + 1) + i, seen, rng)
        answer = await client.call(op, arg, make(store, agent_id, arg), cancelled=cancel and rng.random() < 0.1)
        if isinstance(answer, str):
            seen = answer
        elif isinstance(answer, list) and len(answer) == 2 and isinstance(answer[1], str):
            seen = answer[1]
    return client.calls
