"""The browser's part, in Python: it reconnects, names the last event, and takes each event once."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import httpx


async def listen(
    http: httpx.AsyncClient, chat: str, last: str = "0"
) -> AsyncGenerator[tuple[str, str, dict[str, Any]], None]:
    """Yield (id, event, data) over as many connections as it takes, until the chat is gone."""
    while True:
        try:
            headers = {"Last-Event-ID": last}
            async with http.stream("GET", f"/chats/{chat}/events", headers=headers, timeout=60) as response:
                if response.status_code == 404:
                    return
                response.raise_for_status()
                async for number, kind, data in parsed(response):
                    last = number or last
                    yield last, kind, data
                    if kind == "gone":
                        return
        except httpx.HTTPError:
            pass  # the worker died, or the server was restarted
        await asyncio.sleep(0.2)


async def parsed(response: httpx.Response) -> AsyncGenerator[tuple[str, str, dict[str, Any]], None]:
    """The events of one response. An event that was cut off is dropped, as browsers do."""
    fields: dict[str, str] = {}
    async for line in response.aiter_lines():
        name, _, value = line.partition(": ")
        if line:
            fields[name] = value
        elif "event" in fields:
            yield fields.get("id", ""), fields["event"], json.loads(fields["data"])
            fields = {}
        else:
            fields = {}
