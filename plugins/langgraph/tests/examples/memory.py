import asyncio

from kode_langgraph import KodeSaver, KodeStore
from langgraph.graph import MessagesState, StateGraph
from langgraph.runtime import Runtime


async def answer(state: MessagesState, runtime: Runtime) -> dict:
    await runtime.store.aput(("memories", "ada"), "color", {"is": "blue"}, ttl=60 * 24 * 30)
    found = await runtime.store.asearch(("memories",), filter={"is": "blue"})
    return {"messages": [("ai", f"{len(found)} memory, {len(state['messages'])} message")]}


graph = StateGraph(MessagesState).add_node("answer", answer).set_entry_point("answer")


async def main() -> None:
    async with KodeSaver.from_url("sqlite:///data/agents.db") as saver:
        app = graph.compile(checkpointer=saver, store=KodeStore(saver))
        thread = {"configurable": {"thread_id": "chat-1"}}
        result = await app.ainvoke({"messages": [("human", "Hello")]}, thread)
        print(result["messages"][-1].content)


asyncio.run(main())
