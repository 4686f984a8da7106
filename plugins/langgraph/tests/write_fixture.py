"""Writes ``tests/data/langgraph/checkpoints.sql``: two threads of LangGraph's SqliteSaver, as SQL text.

The core's tests read them without LangGraph: ``python -m plugins.langgraph.tests.write_fixture``.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.graph import START, MessagesState, StateGraph

from plugins.langgraph.tests.graphs import configured

FILE = Path(__file__).parents[3] / "tests/data/langgraph/checkpoints.sql"


def model(state: MessagesState) -> MessagesState:
    """Asks for a tool, and answers by its result."""
    last = state["messages"][-1]
    if isinstance(last, ToolMessage):
        return {"messages": [AIMessage([{"type": "text", "text": f"It is {last.content}. 🙂"}], id="m4")]}
    call = {"name": "weather", "args": {"city": "Rome"}, "id": "c1"}
    usage = {"input_tokens": 5, "output_tokens": 7, "total_tokens": 12}
    return {"messages": [AIMessage("", tool_calls=[call], usage_metadata=usage, id="m2")]}


def tool(state: MessagesState) -> MessagesState:
    """Answers each call, of one thread with an error."""
    failed = state["messages"][0].content == "fail"
    status = "error" if failed else "success"
    return {"messages": [ToolMessage("sunny", tool_call_id="c1", name="weather", status=status, id="m3")]}


def main() -> None:
    """Run two threads, and write their tables."""
    graph = StateGraph(MessagesState)
    for name, node in (("model", model), ("tool", tool), ("answer", model)):
        graph.add_node(name, node)
    graph.add_edge(START, "model")
    graph.add_edge("model", "tool")
    graph.add_edge("tool", "answer")
    with sqlite3.connect(":memory:", check_same_thread=False) as db:
        app = graph.compile(checkpointer=SqliteSaver(db))
        app.invoke({"messages": [HumanMessage("Weather in Rome?", id="m1")]}, configured("rome"))
        system = SystemMessage("fail", id="m0")
        app.invoke({"messages": [system, HumanMessage("Again?", id="m1")]}, configured("fails"))
        FILE.write_text("".join(f"{line}\n" for line in db.iterdump()))


if __name__ == "__main__":
    main()
