"""Graphs that the tests run, here and in other processes: ``python graphs.py OPTIONS THREAD WHAT…``."""

from __future__ import annotations

import json
import operator
import os
import signal
import sys
import threading
import time
from typing import Annotated, Any, TypedDict

from kode_langgraph import KodeSaver
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt


def configured(thread: str, **more: Any) -> Any:
    return {"configurable": {"thread_id": thread, **more}}


def model(state: Any) -> Any:
    """Asks for a tool, then answers."""
    last, n = state["messages"][-1], len(state["messages"])
    if isinstance(last, ToolMessage):
        return {"messages": [AIMessage(f"answer {n} " + "z" * 600)]}
    call = {"name": "bash", "args": {"command": "ls -l", "n": n}, "id": f"call-{n}"}
    return {"messages": [AIMessage("", tool_calls=[call])]}


def tool(state: Any) -> Any:
    (call,) = state["messages"][-1].tool_calls
    failed = call["args"]["n"] % 8 == 5
    result = ToolMessage(
        f"result {call['args']['n']} " + "y" * 600,
        tool_call_id=call["id"],
        name=call["name"],
        status="error" if failed else "success",
    )
    return {"messages": [result]}


def route(state: Any) -> str:
    return "tool" if getattr(state["messages"][-1], "tool_calls", None) else END


def chat() -> Any:
    """A turn is four messages: a question, a call of a tool, its result, an answer."""
    graph = StateGraph(MessagesState)
    graph.add_node("model", model)
    graph.add_node("tool", tool)
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", route, ["tool", END])
    graph.add_edge("tool", "model")
    return graph


def question(n: int = 0) -> Any:
    return {"messages": [HumanMessage(f"question {n} " + "x" * 600)]}


class Steps(TypedDict):
    done: Annotated[list[str], operator.add]


def steps(kill_at: int = -1) -> Any:
    """Ten steps, each of which says that it was done; the process is killed in one of them."""
    graph = StateGraph(Steps)

    def step(n: int) -> Any:
        def work(_: Any) -> Any:
            if n == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            print("did", n, flush=True)
            return {"done": [f"step {n}"]}

        return work

    for n in range(10):
        graph.add_node(f"step{n}", step(n))
        graph.add_edge(START if n == 0 else f"step{n - 1}", f"step{n}")
    return graph


def approval() -> Any:
    """Asks a person in the middle."""

    class State(TypedDict):
        answers: Annotated[list[Any], operator.add]

    graph = StateGraph(State)
    graph.add_node("ask", lambda _: {"answers": [interrupt({"question": "Delete the file?"})]})
    graph.add_node("act", lambda state: {"answers": [f"acted on {state['answers'][-1]}"]})
    graph.add_edge(START, "ask")
    graph.add_edge("ask", "act")
    return graph


def main() -> None:
    options, thread, what, *args = sys.argv[1:]
    with KodeSaver.from_url(**json.loads(options)) as saver:
        if what == "kill":
            steps(int(args[0])).compile(checkpointer=saver).invoke({"done": []}, configured(thread), durability="sync")
        elif what == "ask":
            result = approval().compile(checkpointer=saver).invoke({"answers": []}, configured(thread))
            print(json.dumps([each.value for each in result["__interrupt__"]]))
        elif what == "answer":
            app = approval().compile(checkpointer=saver)
            print(json.dumps(app.invoke(Command(resume=args[0]), configured(thread))["answers"]))
        elif what == "write":
            app = chat().compile(checkpointer=saver)
            print("ready", flush=True)
            sys.stdin.readline()
            for n in range(int(args[0])):
                app.invoke(question(n), configured(thread))
        elif what == "puts":
            put_many(saver, thread, args[0], int(args[1]))
        elif what == "killed":
            app = chat().compile(checkpointer=saver)
            app.invoke(question(), configured(thread), durability="sync")
            threading.Thread(target=die, args=[float(args[0])], daemon=True).start()
            print("begun", flush=True)
            for n in range(1_000):
                app.invoke(question(n), configured(thread), durability="sync")
                print(n, flush=True)


def die(seconds: float) -> None:
    time.sleep(seconds)
    os.kill(os.getpid(), signal.SIGKILL)


def put_many(saver: KodeSaver, thread: str, name: str, count: int) -> None:
    """Checkpoints of one thread, each with a list of its own that grows, from a process among others."""
    print("ready", flush=True)
    sys.stdin.readline()
    values: list[str] = []
    config = configured(thread, checkpoint_ns="")
    for n in range(count):
        values = [*values, f"{name} {n} " + "v" * 600]
        version = f"{n + 1:032}.{name}"
        checkpoint: Any = {
            "v": 4,
            "id": f"{n:06}-{name}",
            "ts": "",
            "channel_values": {"list": values},
            "channel_versions": {"list": version},
            "versions_seen": {},
        }
        config = saver.put(config, checkpoint, {"source": "loop", "step": n}, {"list": version})


if __name__ == "__main__":
    main()
