"""Large agents of the KODE SDK: they are read and compared without holding the event loop."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import pytest

from kode_core import create_extended_store
from kode_core.formats.kode_sdk import import_agents, open_source
from kode_core.formats.kode_sdk import importing as sdk_importing
from kode_core.formats.kode_sdk import raw as sdk_raw
from kode_core.formats.kode_sdk.raw import Damage, parsed

MANY = 3_000
MOST = 2**18
"""The longest text that one call of the decoder gets, in characters."""


def message(i: int) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": f"message {i} " + "x" * 400}]}


def fill(base: Path) -> None:
    folder = base / "agt-1"
    (folder / "runtime").mkdir(parents=True)
    (folder / "snapshots").mkdir()
    messages = [message(i) for i in range(MANY)]
    info = {"agentId": "agt-1", "templateId": "t", "createdAt": 1_700_000_000_000, "messageCount": MANY}
    info |= {"lineage": [], "configVersion": "1", "lastSfpIndex": 1, "metadata": {}}
    snapshot = {"id": "s", "messages": messages, "lastSfpIndex": 1, "createdAt": 1_700_000_000_000}
    snapshot["lastBookmark"] = {"seq": 1, "timestamp": 1}
    (folder / "meta.json").write_text(json.dumps(info))
    (folder / "runtime/messages.json").write_text(json.dumps(messages))
    (folder / "snapshots/s.json").write_text(json.dumps(snapshot))


async def test_a_large_agent_is_decoded_in_short_steps_and_outside_of_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No call of the decoder gets a long text, and the records are made in another thread than the loop's."""
    longest, threads = [0], set[int]()
    loads, records_of = json.loads, sdk_importing.records_of

    def counted(text: str, **how: Any) -> Any:
        longest[0] = max(longest[0], len(text))
        return loads(text, **how)

    def noted(*args: Any, **how: Any) -> Any:
        threads.add(threading.get_ident())
        return records_of(*args, **how)

    monkeypatch.setattr(sdk_raw.json, "loads", counted)
    monkeypatch.setattr(sdk_importing, "records_of", noted)
    fill(tmp_path / "sdk")
    url = f"sqlite:///{tmp_path}/a.db"
    async with (
        open_source(str(tmp_path / "sdk"), None, without_files=False) as source,
        create_extended_store(url) as store,
    ):
        outcomes = [one.outcome async for one in import_agents(source, store)]
        outcomes += [one.outcome async for one in import_agents(source, store)]
        assert outcomes == ["imported", "known"]
        messages = await store.load_messages("agt-1")
        assert [one.text for one in messages[:2]] == [message(i)["content"][0]["text"] for i in range(2)]
        assert len(messages) == MANY
    assert 0 < longest[0] <= MOST
    assert threading.get_ident() not in threads
    assert threads


@pytest.mark.parametrize(
    "value",
    [
        [message(i) for i in range(2_000)],
        {"data": [message(i) for i in range(2_000)], "n": 2**70, "x": 1e16, "y": [1.0, 1, True, None]},
        {"a": "x" * 400_000, "b": [["y" * 300_000], {}]},
        [2**70, 0.1, "é𝄞", *("ü" * 100 for _ in range(5_000))],
    ],
)
def test_the_value_is_that_of_the_whole_text(value: Any) -> None:
    """To the bit, from text and from bytes, with a byte order mark and without."""
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, indent=1)):
        for given in (text, text.encode(), f"\ufeff{text}".encode()):
            assert repr(parsed(given)) == repr(value)


def test_halves_of_characters_and_damage_are_as_in_small_texts() -> None:
    """Halves that JavaScript stored one by one are put together, and damage is named by its place in the text."""
    filler = ["x" * 1_000] * 500
    halves = json.dumps([*filler, "\ud834\udd1e", "\ud834"])
    assert parsed(halves)[-2:] == ["𝄞", "\ud834"]
    assert parsed(halves.encode())[-2:] == ["𝄞", "\ud834"]
    raw = json.dumps([*filler, "\ud834\udd1e"], ensure_ascii=False).encode("utf-8", "surrogatepass")
    assert parsed(raw)[-1] == "𝄞"
    good = json.dumps(filler)
    for bad in (good[:-1], f"{good}]", good.replace("x", "\n", 1), good.replace('"x', "NaN", 1), good + "\0"):
        with pytest.raises(Damage, match="no JSON"):
            parsed(bad)
    with pytest.raises(Damage, match="NaN is no JSON"):
        parsed(json.dumps([*filler, float("nan")]))
    with pytest.raises(Damage, match="nests too deeply|no JSON"):
        parsed("[" * 300_000 + "]" * 300_000)
