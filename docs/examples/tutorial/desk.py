"""The agent of the travel desk. In place of a model there are three lines of rules, which need no key."""

import asyncio

from kode_core import (
    AgentEvent,
    Bookmark,
    ExtendedStore,
    Message,
    Timeline,
    ToolCallRecord,
    ToolResultBlock,
    ToolUseBlock,
    now_ms,
)

FLIGHTS = {"Oslo": "09:10 and 17:45", "Rome": "06:30"}


def search_flights(to: str) -> str:
    if to not in FLIGHTS:
        raise LookupError(f"no airport is called {to}")
    return FLIGHTS[to]


async def answer(store: ExtendedStore, agent_id: str) -> bool:
    """Answer the agent's open question; False if there is none."""
    messages = await store.load_messages(agent_id)
    if not messages or messages[-1].role != "user":
        return False
    city = messages[-1].text.rstrip("?").split()[-1]  # the model asks for a tool
    call = ToolUseBlock(id=f"call-{len(messages)}", name="search_flights", input={"to": city})
    found, error = None, None
    try:
        found = search_flights(city)
    except LookupError as exc:
        error = str(exc)
    text = f"Flights to {city} leave at {found}." if found else f"Sorry, {error}."
    await say(store, agent_id, text)
    await store.save_turn(
        agent_id,
        append=[
            Message("assistant", [call]),
            Message("user", [ToolResultBlock(tool_use_id=call.id, content=found or error, is_error=error is not None)]),
            Message.assistant(text),
        ],
        upsert_tool_calls=[
            ToolCallRecord(
                id=call.id,
                name=call.name,
                input=call.input,
                state="FAILED" if error else "COMPLETED",
                result=found,
                error=error,
                is_error=error is not None,
            )
        ],
    )
    return True


async def say(store: ExtendedStore, agent_id: str, text: str) -> None:
    """Stream the text word by word, as a model does."""
    last = await store.last_bookmark(agent_id)
    seq = 0 if last is None else last.seq + 1
    for word in text.split():
        await asyncio.sleep(0.2)
        event = AgentEvent("progress", "text_chunk", {"delta": word})
        await store.append_event(agent_id, Timeline(seq, Bookmark(seq, now_ms()), event))
        seq += 1
    await store.append_event(agent_id, Timeline(seq, Bookmark(seq, now_ms()), AgentEvent("progress", "done")))
