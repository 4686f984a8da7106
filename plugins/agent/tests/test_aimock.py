"""The agent against a model server that others wrote: aimock, from npm, run by node."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("openai")
pytest.importorskip("anthropic")

from kode_agent import Agent, AnthropicProvider, OpenAIProvider, ProviderError, Template

from kode_core import create_extended_store

PACKAGE = "@copilotkit/aimock@1.43.0"
FIXTURES = {
    "fixtures": [
        {
            "match": {"userMessage": "weather", "hasToolResult": False},
            "response": {
                "content": "I look outside. ",
                "toolCalls": [{"name": "weather", "arguments": {"city": "Rome"}}],
            },
        },
        {"match": {"userMessage": "weather", "hasToolResult": True}, "response": {"content": "Rome is sunny today."}},
        {"match": {"userMessage": "thanks"}, "response": {"content": "You are welcome."}},
        {"match": {"userMessage": "fail"}, "response": {"error": {"message": "overloaded"}, "status": 529}},
    ]
}


def fetched() -> Path:
    """The package, downloaded once and kept among the temporary files."""
    npm, node = shutil.which("npm"), shutil.which("node")
    if npm is None or node is None:
        pytest.skip("node and npm are not on this machine")
    kept = Path(tempfile.gettempdir()) / "kode-aimock"
    if not (kept / "package" / "dist" / "cli.js").exists():
        fresh = Path(tempfile.mkdtemp(prefix="kode-aimock-"))
        done = subprocess.run(
            (npm, "pack", PACKAGE, "--pack-destination", str(fresh)), capture_output=True, text=True, check=False
        )
        packed = next(fresh.glob("*.tgz"), None)
        if done.returncode or packed is None:
            shutil.rmtree(fresh, ignore_errors=True)
            pytest.skip(f"aimock cannot be fetched: {done.stderr.strip()[-200:]}")
        with tarfile.open(packed) as archive:
            archive.extractall(fresh, filter="data")
        try:
            fresh.rename(kept)
        except OSError:  # another process was faster
            shutil.rmtree(fresh, ignore_errors=True)
    return kept / "package" / "dist" / "cli.js"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    script, folder = fetched(), tmp_path_factory.mktemp("aimock")
    (folder / "fixtures.json").write_text(json.dumps(FIXTURES))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = ("node", str(script), "-p", str(port), "-f", str(folder / "fixtures.json"), "--log-level", "warn")
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env={**os.environ})
    try:
        for _ in range(300):
            if process.poll() is not None:
                out = process.stdout.read().decode() if process.stdout else ""
                pytest.skip(f"aimock does not start here: {out[-300:]}")
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.communicate(timeout=20)


@pytest.mark.parametrize("api", ["openai", "anthropic"])
async def test_an_agent_of_another_servers_protocol(server: str, api: str) -> None:
    """Tools, streaming, a second turn and an error, as an independent server of the protocols has them."""

    def weather(city: str) -> str:
        """The weather."""
        return f"{city}: sunny"

    provider: Any
    if api == "openai":
        provider = OpenAIProvider("gpt-4o", base_url=f"{server}/v1", api_key="k", temperature=0)
    else:
        provider = AnthropicProvider("claude-opus-4-8", base_url=server, api_key="k", service_tier="auto")
    async with create_extended_store("memory:") as store:
        template = Template("assistant", "Be brief.", [weather])
        agent = await Agent.create(provider=provider, store=store, template=template)
        assert await agent.send("How is the weather?") == "Rome is sunny today."
        assert await agent.send("thanks") == "You are welcome."
        with pytest.raises(ProviderError, match="529"):
            await agent.send("fail")
        (record,) = await store.load_tool_call_records(agent.id)
        assert (record.name, record.input, record.result) == ("weather", {"city": "Rome"}, "Rome: sunny")
        chunks = [e.event.data["delta"] async for e in store.read_events(agent.id) if e.event.type == "text_chunk"]
        assert "Rome is sunny today." in "".join(chunks)
        if api == "openai":  # it streams no usage of Anthropic's
            assert (await agent.status()).usage.total_tokens > 0
        assert not (await store.check_consistency()).issues
    await provider.aclose()
