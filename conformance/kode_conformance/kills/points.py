"""Killing a writer at every call that it makes, one after the other, and judging the remaining data (DUR clauses).

A kill at a random time finds a fault whose window is long. This finds the others: the writer is killed at its first
call, at its second, and so on until the write is acknowledged, and right after that.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple

from kode_conformance.context import Context, Unverified, Violation, difference
from kode_conformance.harness import Handle, Space
from kode_conformance.instruments.pace import in_time
from kode_conformance.instruments.patience import within
from kode_conformance.kills.child import CAN_FORK
from kode_conformance.kills.writes import (
    Expected,
    Portrait,
    Write,
    expected,
    overwrite,
    portrait,
    write_on,
)
from kode_conformance.settings import Tier
from kode_core.protocols import ExtendedStore

__all__ = [
    "Attempt",
    "Killer",
    "kill_at_points",
    "kill_first_opens",
    "kill_recoveries",
    "killer",
    "points_of",
    "reopened",
    "see_consistent",
    "spread",
]

_ANSWER_SECONDS: Final = 60.0
_FEW: Final = 4
"""The number of points at which a write is killed if each takes a process of its own."""


class Attempt(NamedTuple):
    """A write that ended with a kill.

    Attributes:
        write: the name of the write.
        point: the call at which it was to be killed; 0 for right after the last one.
        acknowledged: True if the write returned before.
        result: the returned list; None for any other result.
        calls: how many calls were counted, when it returned.
        changed: the first of them and those before which something changed that outlives the process, as far as can
            be told.
        where: the call at which it was killed, when it did not return.
    """

    write: str
    point: int
    acknowledged: bool
    result: list[str] | None
    calls: int
    changed: Sequence[int]
    where: str

    def shown(self, of: int) -> str:
        """For the message of a finding; *of* is how many calls there are."""
        if self.acknowledged:
            return f"{self.write}, killed right after it was acknowledged"
        return f"{self.write}, killed at {self.where}, point {self.point} of {of}"


class Killer:
    """A process whose copies each do one write and die of it.

    Attributes:
        forks: True if copies can be made; otherwise a process is started for each point, and there are few points.
    """

    def __init__(self, context: Context, *, forks: bool = CAN_FORK) -> None:
        self.forks = forks
        self._context = context
        self._child: asyncio.subprocess.Process | None = None
        self._known: dict[str, Any] = {}
        self._begun = time.monotonic()

    def in_time(self, points: Iterable[int]) -> Iterator[int]:
        """The points, at least the first, while the check has time; each write of a check gets one."""
        return in_time(self._context, points, begun=self._begun)

    async def rehearse(self) -> None:
        """Let the process get ready, and learn from it which code is the store's own."""
        request = {"modules": [], "handle": self._context.handle, "agent": "rehearsal"}
        (self._known,) = await self._ask(request)
        if not self._known["is_alone"]:  # the store leaves threads: another process imports all, and opens nothing
            await self.close()
            await self._ask({**request, "modules": self._known["modules"]})

    async def attempt(
        self,
        write: Write | None,
        agent_id: str,
        point: int,
        *,
        handle: Handle | None = None,
        from_open: bool = False,
        with_seed: bool = True,
    ) -> Attempt:
        """Let a copy do *write*, or read everything, and die at the call *point*, or after the last one."""
        request = {
            "write": write and write.name,
            "agent": agent_id,
            "point": point,
            "handle": handle or self._context.handle,
            "from_open": from_open,
            "seed": with_seed,
            "code": self._known["code"],
            "fork": self.forks,
        }
        lines = await self._ask(request)
        if not lines:
            raise Violation("a process that used the store ended, or hung, without a word")
        facts = {name: value for line in lines for name, value in line.items()}
        return Attempt(
            write=_opening(from_open) + (write.name if write else "a read"),
            point=point,
            acknowledged="calls" in facts,
            result=facts.get("acknowledged"),
            calls=facts.get("calls", 0),
            changed=facts.get("changed", ()),
            where=facts.get("killed", "an unknown place"),
        )

    async def _ask(self, request: dict[str, Any]) -> list[dict[str, Any]]:
        """The answers of the process until the request is done."""
        child = await self._running()
        assert child.stdin is not None
        child.stdin.write(json.dumps(request).encode() + b"\n")
        try:
            async with within(_ANSWER_SECONDS):
                lines = await self._reports(child)
        except TimeoutError:
            raise Violation(f"a process that used the store gave no answer in {_ANSWER_SECONDS:g} s") from None
        for line in lines:
            if "error" in line:
                raise Violation(f"a process that used the store failed: {line['error']}")
        return lines

    async def _reports(self, child: asyncio.subprocess.Process) -> list[dict[str, Any]]:
        assert child.stdout is not None
        lines: list[dict[str, Any]] = []
        while raw := await child.stdout.readline():
            line = json.loads(raw)
            if "ended" in line:
                return lines
            lines.append(line)
        await child.wait()  # it died of the request itself, as where there is no fork
        self._child = None
        return lines

    async def _running(self) -> asyncio.subprocess.Process:
        if self._child is None:
            self._child = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "kode_conformance.kills.child",
                self._context.harness.spec,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                limit=1 << 20,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            )
        return self._child

    async def close(self) -> None:
        """End the process."""
        if self._child is not None:
            with suppress(ProcessLookupError):
                self._child.kill()
            await self._child.wait()
            self._child = None


@asynccontextmanager
async def killer(context: Context, *, forks: bool = CAN_FORK) -> AsyncIterator[Killer]:
    """A killer for the context's store. The store is closed first, so that the next open sees only the data that the
    crash left.
    """
    await context.close(context.store)
    found = Killer(context, forks=forks)
    try:
        await found.rehearse()
        yield found
    finally:
        await found.close()


def _opening(from_open: bool) -> str:
    return "an open and " if from_open else ""


def points_of(context: Context, kills: Killer, whole: Attempt, others: int) -> Sequence[int]:
    """The points that can differ and *others* more, drawn at random; when thorough, all there are."""
    if not whole.calls:
        raise Unverified("no call was seen inside the store's own code: let the harness's code_of say where it is")
    every = range(1, whole.calls + 1)
    if not kills.forks:
        return sorted(context.rng.sample(whole.changed, min(_FEW, len(whole.changed))))
    if context.settings.tier is Tier.THOROUGH:
        return every
    return sorted({*whole.changed, *context.rng.sample(every, min(others, len(every)))})


def spread(context: Context, points: Sequence[int], at_most: int) -> list[int]:
    """At most so many of the points in any order, one at random of each stretch, so that they are from all over."""
    count = min(at_most, len(points))
    ends = [len(points) * i // count for i in range(count + 1)] if count else [0]
    drawn = [context.rng.choice(points[start:end]) for start, end in itertools.pairwise(ends)]
    return context.rng.sample(drawn, count)


# --- Judging ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def reopened(context: Context, when: str) -> AsyncIterator[ExtendedStore]:
    """The store as it is after a kill; whatever it raises is a finding about that kill."""
    try:
        store = await context.another()
        yield store
        await context.close(store)
    except Violation as exc:
        raise Violation(f"{when}: {exc}") from exc
    except Exception as exc:
        raise Violation(f"{when}: the store raised {type(exc).__name__}: {exc}") from exc


async def _judge(
    context: Context, write: Write, wanted: Expected, attempt: Attempt, agent_id: str, when: str
) -> Portrait:
    """Check that *write* was done whole or not at all; return the agent as it is after every kind was saved anew."""
    async with reopened(context, when) as store:
        found = await portrait(store, agent_id)
        problem = wanted.problem(found, done=attempt.acknowledged)
        if problem is not None:
            raise Violation(problem)
        if any(found.values()):
            await see_consistent(store, agent_id, after_delete=write.name.startswith("delete"))
        await write_on(store, agent_id, 1000)
        await overwrite(store, agent_id)
        return await portrait(store, agent_id)


async def _see_it_stays(context: Context, left: Mapping[str, tuple[str, Portrait]]) -> None:
    """Check that saves after the kills stay when the store is opened once more: recovery happens only once."""
    async with reopened(context, "opened once more after all kills") as store:
        for agent_id, (when, wanted) in left.items():
            problem = difference(await portrait(store, agent_id), wanted)
            if problem is not None:
                raise Violation(f"{when}: what was saved later is not there after the next opening: {problem}")


async def see_consistent(store: ExtendedStore, agent_id: str, *, after_delete: bool) -> None:
    """Nothing of the agent is at odds. A delete that was cut short may be seen, and is then finished (LIFE-3)."""
    if not hasattr(store, "check_consistency"):
        return
    fine = {"unknown_agent", "half_done_delete"} if after_delete else set()
    issues = (await store.check_consistency(agent_id)).issues
    if {issue.code for issue in issues} - fine:
        raise Violation(f"the agent is not consistent: {'; '.join(issue.message for issue in issues)}")
    if any(issue.code == "half_done_delete" for issue in issues):
        await store.delete(agent_id)
        again = (await store.check_consistency(agent_id)).issues
        if {issue.code for issue in again} - {"unknown_agent"}:
            raise Violation(f"a delete that was cut short cannot be finished: {again[0].message}")


# --- Sweeps -----------------------------------------------------------------------------------------------------------


async def kill_at_points(
    context: Context, kills: Killer, write: Write, others: int, *, with_seed: bool = True, at_most: int = sys.maxsize
) -> int:
    """Kill *write* at its calls, and right after it; returns at how many points.

    Without the seed it is the first that its agent ever sees. If more than *at_most* are found, some are drawn, see
    :func:`spread`.
    """
    wanted = await _expectation(context, write, with_seed=with_seed)
    name = write.name if with_seed else f"first-{write.name}"
    last = await kills.attempt(write, f"{name}-0", 0, with_seed=with_seed)
    points = points_of(context, kills, last, others)
    points = spread(context, points, at_most)
    left: dict[str, tuple[str, Portrait]] = {}
    for point in kills.in_time((0, *points)):
        agent_id = f"{name}-{point}"
        attempt = await kills.attempt(write, agent_id, point, with_seed=with_seed) if point else last
        when = attempt.shown(last.calls) + ("" if with_seed else ", as the first write of its agent")
        left[agent_id] = when, await _judge(context, write, wanted, attempt, agent_id, when)
    await _see_it_stays(context, left)
    return len(left)


async def _expectation(context: Context, write: Write, *, with_seed: bool = True) -> Expected:
    store = await context.another()
    wanted = await expected(store, write, with_seed=with_seed)
    await context.close(store)
    return wanted


async def kill_first_opens(context: Context, kills: Killer, write: Write, others: int) -> int:
    """Kill a process that opens an empty place and writes to it, at its calls."""
    nothing = await _nothing(context)
    wanted = Expected(nothing, await _first_write(context, write))

    async def kill(point: int, calls: int) -> Attempt:
        async with _new_place(context) as place:
            attempt = await kills.attempt(write, "a", point, handle=place.handle, from_open=True, with_seed=False)
            await _judge(place, write, wanted, attempt, "a", attempt.shown(calls))
        return attempt

    last = await kill(0, 0)
    points, done = points_of(context, kills, last, others), 1
    for point in kills.in_time(context.rng.sample(points, len(points))):
        await kill(point, last.calls)
        done += 1
    return done


@asynccontextmanager
async def _new_place(context: Context) -> AsyncIterator[Context]:
    name = f"conf_{uuid.uuid4().hex[:16]}"
    folder = Path(context.folder, name)
    folder.mkdir()
    handle = await context.harness.provision(Space(name, folder))
    try:
        yield Context(context.harness, handle, folder, context.settings)
    finally:
        await context.harness.destroy(handle)


async def _nothing(context: Context) -> Portrait:
    store = await context.another()
    found = await portrait(store, "nobody")
    await context.close(store)
    return found


async def _first_write(context: Context, write: Write) -> Portrait:
    store = await context.another()
    await write.act(store, "first")
    found = await portrait(store, "first")
    await context.close(store)
    return found


async def kill_recoveries(context: Context, kills: Killer, write: Write, pairs: int) -> int:
    """Kill a write, then kill what opens the store after it, *pairs* times, each at calls drawn at random."""
    wanted = await _expectation(context, write)
    agent_id = f"{write.name}-twice"
    whole = await kills.attempt(write, agent_id, 0)
    opening = await kills.attempt(None, agent_id, 0, from_open=True, with_seed=False)
    points = points_of(context, kills, whole, context.effort.kills)
    left: dict[str, tuple[str, Portrait]] = {}
    for number in kills.in_time(range(pairs)):
        agent_id = f"{write.name}-twice-{number}"
        first = await kills.attempt(write, agent_id, context.rng.choice(points))
        point = context.rng.randint(1, max(1, opening.calls))
        second = await kills.attempt(None, agent_id, point, from_open=True, with_seed=False)
        when = f"{first.shown(whole.calls)}; then {second.shown(opening.calls)}"
        left[agent_id] = when, await _judge(context, write, wanted, first, agent_id, when)
    await _see_it_stays(context, left)
    return len(left)
