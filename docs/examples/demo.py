"""Shows kode_core in one run: imports 200 recorded agent runs into a store, and queries them.

    python docs/examples/demo.py [DATABASE]

The runs are of an airline's GPT-4o agent, from tau-bench (see tau-airline/README.md). A second run stores nothing
twice.
"""

from __future__ import annotations

import asyncio
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

from kode_core import ExtendedStore, Message, SessionInfo, ToolResultBlock, ToolUseBlock, create_extended_store
from kode_core.formats.openai_chat import ChatConverter, RawConversation, import_conversation, read_conversations

try:
    from rich import box
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table
    from rich.text import Text

    rich = True
except ImportError:  # it works without, and is nicer with it
    rich = False

RUNS = Path(__file__).parent / "tau-airline" / "gpt-4o-airline.json.gz"


async def main(database: Path) -> None:
    url = f"sqlite:///{quote(str(database))}"
    print(f"Importing 200 recorded runs of an airline's agent into {database}")
    async with create_extended_store(url) as store:
        before = await totals(store)
        seconds = await import_runs(store)
        after = await totals(store)
    rows = [(name, f"{before[name]:,}", f"{after[name]:,}") for name in after]
    show(f"Imported in {seconds:.1f} s. What the store holds", ("", "before", "after"), rows)
    if before == after:
        print("The runs were there already: nothing was stored twice.")

    async with create_extended_store(url) as store:
        await show_sessions(store)
        await show_failing_tools(store)
        await show_success(store)
        await show_conversation(store)
    show_next_steps(url, database)


async def import_runs(store: ExtendedStore) -> float:
    """Each run becomes an agent: one commit for its messages, tool calls, events and info, one for its snapshot."""
    start = time.perf_counter()
    converter = ChatConverter(template="tau-airline", prefix="tau")
    for raw in with_progress(read_conversations(RUNS)):
        await import_conversation(store, converter.convert(raw))
    return time.perf_counter() - start


async def totals(store: ExtendedStore) -> dict[str, int]:
    storage = (await store.get_metrics()).storage
    events = 0
    for agent_id in await store.list():
        async for _ in store.read_events(agent_id):
            events += 1
    return {
        "agents": storage.total_agents,
        "messages": storage.total_messages,
        "tool calls": storage.total_tool_calls,
        "events": events,
    }


# --- Questions --------------------------------------------------------------------------------------------------------


async def show_sessions(store: ExtendedStore) -> None:
    longest = await store.query_sessions(sort_by="message_count", limit=5)
    rows = [(s.agent_id, s.template_id, str(s.message_count), str(s.metadata["reward"])) for s in longest]
    total = (await store.get_metrics()).storage.total_agents
    show(f"The longest of {total} sessions", ("agent", "template", "messages", "reward"), rows)


async def show_failing_tools(store: ExtendedStore) -> None:
    calls: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    async for call in store.iter_tool_calls():
        calls[call.name] += 1
        failed[call.name] += call.is_error is True
    rows = [(tool, str(calls[tool]), str(bad), percent(bad, calls[tool])) for tool, bad in failed.most_common(5) if bad]
    title = f"The tools that fail most ({failed.total()} of {calls.total():,} calls failed)"
    show(title, ("tool", "calls", "failed", "share"), rows)


async def show_success(store: ExtendedStore) -> None:
    """A run with a reward of 1.0 did what the customer wanted."""
    sessions = [session async for session in store.iter_sessions()]
    rows = success_rows(sessions, "template", lambda session: session.template_id)
    rows += success_rows(sessions, "trial", lambda session: str(session.metadata["trial"]))
    show("How often the agent succeeded", ("", "runs", "succeeded", "share"), rows)


def success_rows(
    sessions: Iterable[SessionInfo], label: str, group: Callable[[SessionInfo], str]
) -> list[tuple[str, ...]]:
    runs: Counter[str] = Counter()
    succeeded: Counter[str] = Counter()
    for session in sessions:
        runs[group(session)] += 1
        succeeded[group(session)] += session.metadata["reward"] == 1.0
    return [
        (f"{label} {name}", str(runs[name]), str(succeeded[name]), percent(succeeded[name], runs[name]))
        for name in sorted(runs)
    ]


async def show_conversation(store: ExtendedStore) -> None:
    """The shortest run that succeeded."""
    shortest = await store.query_sessions(metadata={"reward": 1.0}, sort_by="message_count", order="asc", limit=1)
    agent_id = shortest[0].agent_id
    rows = [(str(i), message.role, brief(message)) for i, message in enumerate(await store.load_messages(agent_id))]
    show(f"A conversation, shortened: {agent_id}", ("", "role", "content"), rows)


def brief(message: Message) -> str:
    parts = [message.text] if message.text else []
    for block in message.content:
        if isinstance(block, ToolUseBlock):
            parts.append(f"-> {block.name} {block.input}")
        elif isinstance(block, ToolResultBlock):
            parts.append(f"<- {block.content}")
    text = " ".join(" ".join(parts).split())
    return text if len(text) <= 60 else f"{text[:59]}…"


def show_next_steps(url: str, database: Path) -> None:
    program = Path(sys.executable).with_name("kode")
    if program.is_relative_to(Path.cwd()):
        program = program.relative_to(Path.cwd())
    print(f"\nThe database is {database.resolve()}. Look around in it:\n")
    for command in ("sessions --metadata reward=0.0", "tool-calls --errors", "messages tau-000-0", "doctor"):
        print(f"  {shlex.quote(str(program))} --store {shlex.quote(url)} {command}")


# --- Printing ---------------------------------------------------------------------------------------------------------


def with_progress(runs: Iterable[RawConversation]) -> Iterable[RawConversation]:
    return track(runs, "importing", total=200, transient=True, disable=not sys.stdout.isatty()) if rich else runs


def percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}"


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table under a title, with numbers to the right."""
    print(f"\n{title}\n")
    if rich:
        table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for name, cells in zip(columns, zip(*rows, strict=True), strict=True):
            table.add_column(name, justify="right" if all(cell[0].isdigit() for cell in cells) else "left")
        for row in rows:
            table.add_row(*map(Text, row))  # Text, so that nothing in the data is taken for markup
        Console().print(table)
        return
    widths = [max(len(row[i]) for row in (columns, *rows)) for i in range(len(columns))]
    for row in (columns, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1] if len(sys.argv) > 1 else "data/demo.db")))
