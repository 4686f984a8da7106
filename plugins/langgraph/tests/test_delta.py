"""Channels of which checkpoints have only the changes."""

from __future__ import annotations

from typing import Annotated, Any, TypedDict

import pytest
from kode_langgraph import KodeSaver
from langchain_core.messages import AIMessage, HumanMessage
from langgraph.channels.delta import DeltaChannel
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph import START, StateGraph
from langgraph.graph.message import _messages_delta_reducer

from kode_core.sync import open_store
from plugins.langgraph.tests.graphs import configured

AGENT = "langgraph:t"


class State(TypedDict):
    messages: Annotated[list[Any], DeltaChannel(_messages_delta_reducer, snapshot_frequency=8)]


def delta() -> Any:
    graph = StateGraph(State)

    def answer(state: Any) -> Any:
        n = len(state["messages"])
        return {"messages": [AIMessage(f"answer {n}", id=f"a{n}")]}

    graph.add_node("answer", answer)
    graph.add_edge(START, "answer")
    return graph


def test_the_list_is_made_of_its_changes(sqlite: dict[str, Any]) -> None:
    """In several processes' savers, after a prune too; its messages are the agent's, each once."""
    for n in range(15):
        with KodeSaver.from_url(**sqlite) as saver:
            app = delta().compile(checkpointer=saver)
            result = app.invoke({"messages": [HumanMessage(f"question {n}", id=f"q{n}")]}, configured("t"))
            assert len(result["messages"]) == 2 * n + 2
            if n == 9:
                saver.prune(["t"])
    with KodeSaver.from_url(**sqlite) as saver:
        app = delta().compile(checkpointer=saver)
        assert app.get_state(configured("t")).values["messages"] == result["messages"]
        assert len(list(saver.list(configured("t")))) < 15 * 3
        lengths = [len(each.values.get("messages", ())) for each in app.get_state_history(configured("t"))]
        assert lengths[0] == 30 and lengths[1] == 29
        config = configured("t")
        mine = saver.get_delta_channel_history(config=config, channels=["messages"])
        assert mine == BaseCheckpointSaver.get_delta_channel_history(saver, config=config, channels=["messages"])
        assert saver.get_delta_channel_history(config=config, channels=[]) == {}
    with open_store(**sqlite) as store:
        said = [message.text for message in store.load_messages(AGENT)]
        assert said[:4] == ["question 0", "answer 1", "question 1", "answer 3"]
        assert len(said) == len(set(said)) == 30


async def test_coroutines_read_the_same_history(sqlite: dict[str, Any]) -> None:
    async with KodeSaver.from_url(**sqlite) as saver:
        app = delta().compile(checkpointer=saver)
        for n in range(3):
            result = await app.ainvoke({"messages": [HumanMessage(f"question {n}")]}, configured("t"))
        assert len(result["messages"]) == 6
        history = await saver.aget_delta_channel_history(config=configured("t"), channels=["messages", "none"])
        assert len(history["messages"]["writes"]) == 6 and history["none"] == {"writes": []}


pytestmark = pytest.mark.filterwarnings("ignore")
