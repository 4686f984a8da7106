"""A turn of a real agent: what it costs, and what it costs when the conversation is long."""

from __future__ import annotations

from tests.benchmarks.backends import Backend
from tests.benchmarks.measure import Report, Row, interleaved
from tests.benchmarks.workload import LENGTHS, Agent, FloorAgent, encode_a_turn

ROUNDS = 15

_WAYS = (
    ("sdk", "as the SDK saves it", 3.0),
    ("appends", "with append_messages", None),
    ("once", "in one save_turn", None),
)


async def run(report: Report, backend: Backend) -> None:
    """Measure turns at all lengths by turns, beside the floors. Milliseconds are those of a whole turn."""
    report.title("A turn: 4 messages, 1 tool call, 5 infos, 60 events (20 one by one, 40 at once)")
    async with backend.pair() as (store, floors):
        agents = {(way, n): Agent(store, f"agt-{way}-{n}", n) for way, _, _ in _WAYS for n in LENGTHS}
        bare = {(name, n): FloorAgent(floor, f"agt-floor-{n}", n) for name, floor in floors.items() for n in LENGTHS}
        for one in (*agents.values(), *bare.values()):
            await one.start()
        times = await interleaved(
            ROUNDS,
            **{f"sdk {n}": agents["sdk", n].as_the_sdk for n in LENGTHS},
            **{f"appends {n}": agents["appends", n].with_appends for n in LENGTHS},
            **{f"{name}, 33 commits {n}": agent.as_the_sdk for (name, n), agent in bare.items()},
        )
        times |= await interleaved(
            ROUNDS,
            encoding=encode_a_turn,
            **{f"once {n}": agents["once", n].in_one_write for n in LENGTHS},
            **{f"{name}, one commit {n}": agent.in_one_write for (name, n), agent in bare.items()},
        )
        written = {n: await _bytes_of_a_turn(backend, agents["sdk", n]) for n in LENGTHS}
    report.add(Row("encoding the 66 records of a turn, nothing written", times["encoding"] * 1000, "ms"))
    for length in LENGTHS:
        _tell(report, backend, times, length)
        base, count = written[LENGTHS[0]], written[length]
        if base is not None and count is not None:
            name = f"  {backend.written} in a turn of the SDK's"
            report.add(Row(name, count / 1024, "KB", count / base, "the turn at 100", 1.5))


def _tell(report: Report, backend: Backend, times: dict[str, float], length: int) -> None:
    """What was measured at one length, in milliseconds."""
    for way, label, target in _WAYS:
        time, base = times[f"{way} {length}"], times[f"{way} {LENGTHS[0]}"]
        most = target or backend.targets.growth
        report.add(Row(f"{label}, {length:,} messages stored", time * 1000, "ms", time / base, "the turn at 100", most))
    for name in backend.floors:
        for way, commits, of in (
            ("sdk", "33 commits", "the floor, the SDK's way"),
            ("appends", "33 commits", "the floor, appends"),
            ("once", "one commit", "the floor, save_turn"),
        ):
            floor = times[f"{name}, {commits} {length}"]
            ratio = times[f"{way} {length}"] / floor
            report.add(Row(f"  {name}, {commits}, at {length:,}", floor * 1000, "ms", ratio, of, 1.5))


async def _bytes_of_a_turn(backend: Backend, agent: Agent) -> int | None:
    before = await backend.bytes_written()
    await agent.as_the_sdk(0)
    after = await backend.bytes_written()
    return None if before is None or after is None else after - before
