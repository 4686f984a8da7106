from kode_langgraph import KodeSaver
from langgraph.graph import START, StateGraph
from typing_extensions import TypedDict


class State(TypedDict):
    text: str


def node_a(state: State) -> dict:
    return {"text": state["text"] + "a"}


def node_b(state: State) -> dict:
    return {"text": state["text"] + "b"}


graph = StateGraph(State)
graph.add_node("node_a", node_a)
graph.add_node("node_b", node_b)
graph.add_edge(START, "node_a")
graph.add_edge("node_a", "node_b")

with KodeSaver.from_url("sqlite:///data/agents.db") as saver:
    app = graph.compile(checkpointer=saver)
    thread = {"configurable": {"thread_id": "chat-1"}}
    app.invoke({"text": ""}, thread)
    print(app.get_state(thread).values)
