"""The official clients read what the scripted server writes."""

from __future__ import annotations

import json
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("anthropic")

import anthropic
import httpx
import openai
from kode_agent.testing import Call, Fault, Reply, Request, ScriptedServer

ANSWERS = [Reply("One moment.", [Call("look", {"order": "A-1"}), Call("look", {"order": "é"})]), Reply("It is here.")]
CHAT_TOOL: Any = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
TOOL: Any = {"name": "look", "input_schema": {"type": "object"}}
HELLO: Any = [{"role": "user", "content": "Hello"}]


def test_a_chat_completion_has_text_calls_and_usage() -> None:
    with ScriptedServer(ANSWERS) as server, openai.OpenAI(base_url=server.openai_url, api_key="k") as client:
        answer = client.chat.completions.create(model="m", messages=HELLO, tools=[CHAT_TOOL])
        message = answer.choices[0].message
        assert message.content == "One moment."
        calls: Any = message.tool_calls
        assert [json.loads(call.function.arguments) for call in calls] == [{"order": "A-1"}, {"order": "é"}]
        assert len({call.id for call in calls}) == 2
        assert answer.usage and answer.usage.completion_tokens > 0
        results: Any = [{"role": "tool", "tool_call_id": call.id, "content": "shipped"} for call in calls]
        said: Any = [*HELLO, message.model_dump(exclude_none=True), *results]
        assert client.chat.completions.create(model="m", messages=said).choices[0].message.content == "It is here."
        assert [(r.api, r.text, list(r.results), list(r.tools)) for r in server.requests] == [
            ("chat", "Hello", [], ["look"]),
            ("chat", "Hello", ["shipped", "shipped"], []),
        ]


def test_a_streamed_chat_completion_adds_up() -> None:
    with ScriptedServer(ANSWERS) as server, openai.OpenAI(base_url=server.openai_url, api_key="k") as client:
        text, arguments, usage = "", {0: "", 1: ""}, None
        options: Any = {"include_usage": True}
        for chunk in client.chat.completions.create(model="m", messages=HELLO, stream=True, stream_options=options):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                for call in choice.delta.tool_calls or ():
                    arguments[call.index] += (call.function and call.function.arguments) or ""
        assert text == "One moment."
        assert [json.loads(one) for one in arguments.values()] == [{"order": "A-1"}, {"order": "é"}]
        assert usage is not None


def test_a_response_of_openai() -> None:
    with ScriptedServer(ANSWERS) as server, openai.OpenAI(base_url=server.openai_url, api_key="k") as client:
        whole = client.responses.create(model="m", input="Hello")
        assert whole.output_text == "One moment."
        calls = [item for item in whole.output if item.type == "function_call"]
        assert [json.loads(call.arguments) for call in calls] == [{"order": "A-1"}, {"order": "é"}]
        outputs: Any = [
            {"type": "function_call_output", "call_id": call.call_id, "output": "shipped"} for call in calls
        ]
        given: Any = [*HELLO, *[item.model_dump() for item in whole.output], *outputs]
        with client.responses.stream(model="m", input=given) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
            final = stream.get_final_response()
        assert text == final.output_text == "It is here."
        assert server.requests[1].results == ["shipped", "shipped"]


def test_a_message_of_anthropic() -> None:
    with ScriptedServer(ANSWERS) as server, anthropic.Anthropic(base_url=server.url, api_key="k") as client:
        whole = client.messages.create(model="m", max_tokens=9, messages=HELLO, tools=[TOOL])
        assert [block.type for block in whole.content] == ["text", "tool_use", "tool_use"]
        assert whole.stop_reason == "tool_use"
        results: Any = [
            {"type": "tool_result", "tool_use_id": block.id, "content": "shipped"}
            for block in whole.content
            if block.type == "tool_use"
        ]
        said: Any = [*HELLO, {"role": "assistant", "content": whole.content}, {"role": "user", "content": results}]
        with client.messages.stream(model="m", max_tokens=9, messages=said) as stream:
            assert "".join(stream.text_stream) == "It is here."
        assert server.requests[1].results == ["shipped", "shipped"]
    with ScriptedServer(ANSWERS) as server, anthropic.Anthropic(base_url=server.url, api_key="k") as client:
        with client.messages.stream(model="m", max_tokens=9, messages=HELLO, tools=[TOOL]) as stream:
            final: Any = stream.get_final_message().content
        assert [block.input for block in final[1:]] == [{"order": "A-1"}, {"order": "é"}]


def test_a_content_of_gemini() -> None:
    with ScriptedServer(ANSWERS) as server:
        body = {"contents": [{"role": "user", "parts": [{"text": "Hello"}]}]}
        whole = httpx.post(f"{server.url}/v1beta/models/m:generateContent", json=body).json()
        parts = whole["candidates"][0]["content"]["parts"]
        assert parts[0] == {"text": "One moment."}
        assert [part["functionCall"]["args"] for part in parts[1:]] == [{"order": "A-1"}, {"order": "é"}]
        asked = f"{server.url}/v1beta/models/m:streamGenerateContent?alt=sse"
        with httpx.stream("POST", asked, json=body) as answer:
            lines = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
        said = [part.get("text", "") for line in lines for part in line["candidates"][0]["content"]["parts"]]
        assert "".join(said) == "It is here."


def test_faults() -> None:
    answers = [Fault(429, "slow down", retry_after=0), Reply("a b c d", cut=3), Fault(500)]
    with (
        ScriptedServer(answers) as server,
        openai.OpenAI(base_url=server.openai_url, api_key="k", max_retries=0) as client,
    ):
        with pytest.raises(openai.RateLimitError, match="slow down"):
            client.chat.completions.create(model="m", messages=HELLO)
        # The error is of the client's own HTTP library.
        with pytest.raises(Exception, match="(?i)incomplete|peer closed|connection"):
            list(client.chat.completions.create(model="m", messages=HELLO, stream=True))
        with pytest.raises(openai.InternalServerError):
            client.chat.completions.create(model="m", messages=HELLO)


def test_a_function_chooses_by_the_request() -> None:
    def script(request: Request) -> Reply:
        return Reply(" and ".join(request.results)) if request.results else Reply(f"You said {request.text}.")

    with ScriptedServer(script) as server, openai.OpenAI(base_url=server.openai_url, api_key="k") as client:
        answer = client.chat.completions.create(model="m", messages=HELLO)
        assert answer.choices[0].message.content == "You said Hello."
