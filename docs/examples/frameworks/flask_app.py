"""Flask: one store for each process, made when the module is imported and opened by the first request."""

from __future__ import annotations

import atexit
import json
from collections.abc import Iterator

from flask import Flask, Response, jsonify, request

from kode_core import AgentEvent, Heartbeat, Message, StorageError, Timeline, to_json
from kode_core.sync import open_store

app = Flask(__name__)
store = open_store()  # a wrong configuration fails here, and nothing is opened yet
atexit.register(store.close)


@app.post("/chats/<chat>/messages")
def add(chat: str) -> Response:
    """Add a message and the event that announces it, under the lock of the chat."""
    with store.acquire_agent_lock(chat, wait_ms=10_000):
        text = request.get_json()["text"]
        event = Timeline.after(store.last_bookmark(chat), AgentEvent("progress", "message", {"text": text}))
        store.save_turn(chat, append=[Message.user(text)], events=[event])
        return jsonify(count=len(store.load_messages(chat)))


@app.get("/chats/<chat>/messages")
def messages(chat: str) -> Response:
    """All messages of the chat."""
    return Response(to_json(store.load_messages(chat)), mimetype="application/json")


@app.get("/chats/<chat>/events")
def events(chat: str) -> Response:
    """The events of the chat as server-sent events, from one offset on, and a comment when none came for a while."""
    after = int(request.headers.get("Last-Event-ID", 0))

    def stream() -> Iterator[str]:
        with store.follow_events(chat, after_offset=after, heartbeat_ms=5_000) as found:
            for item in found:
                if isinstance(item, Heartbeat):
                    yield ": nothing new\n\n"
                else:
                    yield f"id: {item.offset}\ndata: {json.dumps(item.event.data)}\n\n"

    return Response(stream(), mimetype="text/event-stream")


@app.errorhandler(StorageError)
def storage_failed(error: StorageError) -> tuple[str, int]:
    """The client may try again."""
    return type(error).__name__, 503
