"""Reads the requests of each protocol."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from kode_agent.testing.script import Request


def request(api: str, number: int, body: Mapping[str, Any]) -> Request:
    """The request that a body is."""
    text, results = _last(_PARTS[api](body))
    return Request(api=api, number=number, body=body, text=text, results=results, tools=_tools(api, body))


def _last(parts: Sequence[tuple[str, str]]) -> tuple[str, list[str]]:
    """The user's last text, and the results after the last answer of the model."""
    text = ""
    results: list[str] = []
    for kind, value in parts:
        if kind == "user":
            text, results = value, []
        elif kind == "result":
            results.append(value)
        elif kind == "model":
            results = []
    return text, results


def _plain(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        return "".join(str(part.get("text", "")) if isinstance(part, Mapping) else str(part) for part in content)
    return "" if content is None else json.dumps(content)


def _of_chat(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    kinds = {"user": "user", "tool": "result", "assistant": "model"}
    return [(kinds.get(m["role"], ""), _plain(m.get("content"))) for m in body.get("messages", ())]


def _of_responses(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    given = body.get("input", "")
    parts = []
    for item in [{"role": "user", "content": given}] if isinstance(given, str) else given:
        if item.get("type") == "function_call_output":
            parts.append(("result", _plain(item.get("output"))))
        elif item.get("role") == "user":
            parts.append(("user", _plain(item.get("content"))))
        elif item.get("role") == "assistant" or item.get("type") == "function_call":
            parts.append(("model", ""))
    return parts


def _of_anthropic(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    parts = []
    for message in body.get("messages", ()):
        content = message.get("content")
        if message["role"] == "assistant":
            parts.append(("model", ""))
        elif isinstance(content, str):
            parts.append(("user", content))
        else:
            results = [block for block in content if block.get("type") == "tool_result"]
            texts = [block for block in content if block.get("type") == "text"]
            parts += [("user", _plain(texts))] * bool(texts and not results)
            parts += [("result", _plain(block.get("content"))) for block in results]
    return parts


def _of_gemini(body: Mapping[str, Any]) -> list[tuple[str, str]]:
    parts = []
    for content in body.get("contents", ()):
        for part in content.get("parts", ()):
            if content.get("role") == "model":
                parts.append(("model", ""))
            elif answer := part.get("functionResponse"):
                parts.append(("result", json.dumps(answer.get("response"))))
            elif "text" in part:
                parts.append(("user", part["text"]))
    return parts


_PARTS = {"chat": _of_chat, "responses": _of_responses, "anthropic": _of_anthropic, "gemini": _of_gemini}


def _tools(api: str, body: Mapping[str, Any]) -> list[str]:
    tools = body.get("tools") or ()
    if api == "chat":
        return [tool["function"]["name"] for tool in tools]
    if api == "gemini":
        return [one["name"] for tool in tools for one in tool.get("functionDeclarations", ())]
    return [tool["name"] for tool in tools if "name" in tool]
