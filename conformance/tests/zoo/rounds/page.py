"""The rounds as a part of the page of the kill matrix: the faults that the suite found when they were new, and the
faults that it finds today.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from conformance.tests.zoo.rounds import Fault, Record, Story, load_faults, records

__all__ = ["lines"]


def lines() -> Iterator[str]:
    """The lines of the part."""
    stories = records()
    told = [(fault, stories[fault.name]) for fault in load_faults() if fault.name in stories]
    yield "## Rounds"
    yield ""
    yield "Faulty stores whose authors knew the contract and not the checks, in the order in which they were written. Each"
    yield "round was judged at the tier `quick` by the suite of its day, before anybody looked at it; what it found then"
    yield "stays as it was. A store is found *for its own reason* when a check of a clause that its author named fails on"
    yield "it and passes on the sound store."
    yield ""
    yield "| round | faulty stores | found when new, for their own reason | at all | found today, for their own reason |"
    yield "|---|---:|---:|---:|---:|"
    for series in sorted({fault.round for fault, _ in told}, key=lambda name: int(name[1:])):
        yield _sum(series, [story for fault, story in told if fault.round == series])
    yield ""
    yield "| faulty store | what is wrong | seen in | clauses | when new found by | today found by |"
    yield "|---|---|---|---|---|---|"
    yield from (_row(fault, story) for fault, story in told)


def _sum(series: str, stories: Sequence[Story]) -> str:
    own = sum(bool(story.then.own) for story in stories)
    killed = sum(bool(story.then.own or story.then.others) for story in stories)
    today = sum(bool(story.now.own) for story in stories)
    cells = (series[1:], str(len(stories)), f"{own} ({own / len(stories):.0%})", str(killed), str(today))
    return f"| {' | '.join(cells)} |"


def _row(fault: Fault, story: Story) -> str:
    today = _found(story.now) + (f": {story.because}" if story.because else "")
    cells = (fault.name, fault.wrong, fault.source, ", ".join(fault.clauses), _found(story.then), today)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _found(record: Record) -> str:
    if record.own:
        return f"`{record.own}`" + ("" if record.tier == "quick" else f" ({record.tier})")
    return f"another clause: `{record.others[0]}`" if record.others else "–"
