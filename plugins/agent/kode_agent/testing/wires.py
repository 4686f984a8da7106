"""Writes an answer as each protocol has it: whole, or as the events of a stream."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from kode_agent.testing.script import Call, Reply, Request

Event = tuple[str, Mapping[str, Any] | str]
"""The name of a server-sent event (empty where the protocol has none), and its data."""


def calls_of(reply: Reply, request: Request) -> list[Call]:
    """The calls of an answer, each with an id."""
    return [
        Call(call.name, call.arguments, call.id or f"call_{request.number}_{position}")
        for position, call in enumerate(reply.calls)
    ]


def _text(call: Call) -> str:
    return call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments)


def _tokens(reply: Reply, request: Request) -> tuple[int, int]:
    """The tokens of a request and of its answer: one for four characters."""
    return max(1, len(json.dumps(request.body)) // 4), max(1, len(reply.text) // 4 + 8 * len(reply.calls))


def _model(request: Request) -> str:
    return str(request.body.get("model", "scripted"))


# OpenAI, chat completions


def _chat_usage(reply: Reply, request: Request) -> dict[str, int]:
    asked, answered = _tokens(reply, request)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


def _chat_calls(calls: Sequence[Call], *, indexed: bool) -> list[dict[str, Any]]:
    return [
        {
            "id": call.id,
            "type": "function",
            "function": {"name": call.name, "arguments": _text(call)},
            **({"index": position} if indexed else {}),
        }
        for position, call in enumerate(calls)
    ]


def chat_whole(reply: Reply, request: Request) -> dict[str, Any]:
    """A ``chat.completion``."""
    calls = calls_of(reply, request)
    message: dict[str, Any] = {"role": "assistant", "content": reply.text or None}
    if calls:
        message["tool_calls"] = _chat_calls(calls, indexed=False)
    choice = {"index": 0, "message": message, "finish_reason": "tool_calls" if calls else "stop"}
    head = {"id": f"chatcmpl-{request.number}", "object": "chat.completion", "created": int(time.time())}
    return {**head, "model": _model(request), "choices": [choice], "usage": _chat_usage(reply, request)}


def chat_stream(reply: Reply, request: Request) -> Iterator[Event]:
    """The chunks of a ``chat.completion.chunk`` stream."""
    head = {
        "id": f"chatcmpl-{request.number}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": _model(request),
    }

    def chunk(delta: Mapping[str, Any], end: str | None = None) -> Event:
        return "", {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": end}]}

    calls = calls_of(reply, request)
    yield chunk({"role": "assistant", "content": ""})
    for word in reply.words:
        yield chunk({"content": word})
    for position, call in enumerate(_chat_calls(calls, indexed=True)):
        arguments = call["function"]["arguments"]
        half = len(arguments) // 2
        start = {**call, "function": {"name": call["function"]["name"], "arguments": arguments[:half]}}
        yield chunk({"tool_calls": [start]})
        yield chunk({"tool_calls": [{"index": position, "function": {"arguments": arguments[half:]}}]})
    yield chunk({}, "tool_calls" if calls else "stop")
    if (request.body.get("stream_options") or {}).get("include_usage"):
        yield "", {**head, "choices": [], "usage": _chat_usage(reply, request)}
    yield "", "[DONE]"


# OpenAI, responses


def _response(reply: Reply, request: Request, status: str, output: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    asked, answered = _tokens(reply, request)
    usage = {
        "input_tokens": asked,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": answered,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": asked + answered,
    }
    return {
        "id": f"resp_{request.number}",
        "object": "response",
        "created_at": int(time.time()),
        "status": status,
        "model": _model(request),
        "output": list(output),
        "parallel_tool_calls": True,
        "tool_choice": request.body.get("tool_choice") or "auto",
        "tools": request.body.get("tools") or [],
        "usage": usage if status == "completed" else None,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "temperature": 1.0,
        "top_p": 1.0,
    }


def _response_items(reply: Reply, request: Request) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    if reply.text:
        part = {"type": "output_text", "text": reply.text, "annotations": [], "logprobs": []}
        head = {"id": f"msg_{request.number}", "type": "message", "role": "assistant", "status": "completed"}
        items.append({**head, "content": [part]})
    for call in calls_of(reply, request):
        head = {"id": f"fc_{call.id}", "type": "function_call", "call_id": call.id, "status": "completed"}
        items.append({**head, "name": call.name, "arguments": _text(call)})
    return items


def responses_whole(reply: Reply, request: Request) -> dict[str, Any]:
    """A ``response``."""
    return _response(reply, request, "completed", _response_items(reply, request))


def responses_stream(reply: Reply, request: Request) -> Iterator[Event]:
    """The events of a stream of a ``response``."""
    events = _response_events(reply, request)
    for number, (kind, data) in enumerate(events):
        yield kind, {"type": kind, "sequence_number": number, **data}


def _response_events(reply: Reply, request: Request) -> Iterator[tuple[str, dict[str, Any]]]:
    yield "response.created", {"response": _response(reply, request, "in_progress", ())}
    items = _response_items(reply, request)
    for index, item in enumerate(items):
        at = {"output_index": index, "item_id": item["id"]}
        if item["type"] == "message":
            started = {**item, "status": "in_progress", "content": []}
            yield "response.output_item.added", {"output_index": index, "item": started}
            part = item["content"][0]
            yield "response.content_part.added", {**at, "content_index": 0, "part": {**part, "text": ""}}
            for word in reply.words:
                yield "response.output_text.delta", {**at, "content_index": 0, "delta": word, "logprobs": []}
            yield "response.output_text.done", {**at, "content_index": 0, "text": reply.text, "logprobs": []}
            yield "response.content_part.done", {**at, "content_index": 0, "part": part}
        else:
            started = {**item, "status": "in_progress", "arguments": ""}
            yield "response.output_item.added", {"output_index": index, "item": started}
            yield "response.function_call_arguments.delta", {**at, "delta": item["arguments"]}
            done = {**at, "arguments": item["arguments"], "name": item["name"]}
            yield "response.function_call_arguments.done", done
        yield "response.output_item.done", {"output_index": index, "item": item}
    yield "response.completed", {"response": _response(reply, request, "completed", items)}


# Anthropic, messages


def anthropic_whole(reply: Reply, request: Request) -> dict[str, Any]:
    """A ``message``."""
    calls = calls_of(reply, request)
    asked, answered = _tokens(reply, request)
    content: list[dict[str, Any]] = [{"type": "text", "text": reply.text}] if reply.text else []
    content += [{"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments} for call in calls]
    return {
        "id": f"msg_{request.number}",
        "type": "message",
        "role": "assistant",
        "model": _model(request),
        "content": content,
        "stop_reason": "tool_use" if calls else "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": asked, "output_tokens": answered},
    }


def anthropic_stream(reply: Reply, request: Request) -> Iterator[Event]:
    """The events of a stream of a ``message``."""
    whole = anthropic_whole(reply, request)

    def event(kind: str, **data: Any) -> Event:
        return kind, {"type": kind, **data}

    usage = {**whole["usage"], "output_tokens": 1}
    yield event("message_start", message={**whole, "content": [], "stop_reason": None, "usage": usage})
    for index, block in enumerate(whole["content"]):
        if block["type"] == "text":
            yield event("content_block_start", index=index, content_block={"type": "text", "text": ""})
            for word in reply.words:
                yield event("content_block_delta", index=index, delta={"type": "text_delta", "text": word})
        else:
            yield event("content_block_start", index=index, content_block={**block, "input": {}})
            text = block["input"] if isinstance(block["input"], str) else json.dumps(block["input"])
            delta = {"type": "input_json_delta", "partial_json": text}
            yield event("content_block_delta", index=index, delta=delta)
        yield event("content_block_stop", index=index)
    ended = {"stop_reason": whole["stop_reason"], "stop_sequence": None}
    yield event("message_delta", delta=ended, usage={"output_tokens": whole["usage"]["output_tokens"]})
    yield event("message_stop")


# Gemini, generateContent


def _gemini(reply: Reply, request: Request, parts: Sequence[Mapping[str, Any]], end: str | None) -> dict[str, Any]:
    asked, answered = _tokens(reply, request)
    candidate: dict[str, Any] = {"index": 0, "content": {"role": "model", "parts": list(parts)}}
    if end:
        candidate["finishReason"] = end
    usage = {
        "promptTokenCount": asked,
        "candidatesTokenCount": answered,
        "totalTokenCount": asked + answered,
    }
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": _model(request)}


def _gemini_calls(reply: Reply, request: Request) -> list[dict[str, Any]]:
    return [
        {"functionCall": {"id": call.id, "name": call.name, "args": call.arguments}}
        for call in calls_of(reply, request)
    ]


def gemini_whole(reply: Reply, request: Request) -> dict[str, Any]:
    """A ``GenerateContentResponse``."""
    parts = ([{"text": reply.text}] if reply.text else []) + _gemini_calls(reply, request)
    return _gemini(reply, request, parts, "STOP")


def gemini_stream(reply: Reply, request: Request) -> Iterator[Event]:
    """The parts of a streamed ``GenerateContentResponse``."""
    for word in reply.words:
        yield "", _gemini(reply, request, [{"text": word}], None)
    yield "", _gemini(reply, request, _gemini_calls(reply, request), "STOP")
