"""Brings the threads of a file of LangGraph's own saver, and goes on with one of them."""

import asyncio

from kode_langgraph import KodeSaver
from kode_langgraph.importing import open_threads
from langgraph.graph import START, MessagesState, StateGraph

from kode_core import create_extended_store
from kode_core.formats.importing import import_foreign


def answer(state: MessagesState) -> dict:
    return {"messages": [("ai", f"answer {len(state['messages'])}")]}


graph = StateGraph(MessagesState)
graph.add_node("answer", answer)
graph.add_edge(START, "answer")


async def main() -> None:
    async with create_extended_store("sqlite:///data/agents.db") as store:
        async with open_threads("checkpoints.db") as threads:
            async for outcome in import_foreign(threads, store):
                print(outcome.agent_id, outcome.outcome, outcome.damaged)
        app = graph.compile(checkpointer=KodeSaver(store))
        thread = {"configurable": {"thread_id": "chat-1"}}
        result = await app.ainvoke({"messages": [("human", "And now?")]}, thread)
        print([message.content for message in result["messages"]])


if __name__ == "__main__":
    asyncio.run(main())
