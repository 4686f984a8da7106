"""Tests of what killed processes leave in a store of the record engine, and of ``kode doctor --repair``.

.. code-block:: python

    @pytest.mark.parametrize("kind", KINDS)
    def test_what_a_killed_process_left(kind, monkeypatch):
        check_repair(kind, {"type": "mine", "host": "localhost"}, "mine://localhost", monkeypatch)

A process of its own is killed where it is about to make a certain call to the database.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any, Final

import pytest

from kode_conformance.values import samples
from kode_core import create_extended_store
from kode_core.cli.app import run
from kode_core.engines.record.engine import RecordEngine
from kode_core.engines.record.state import OpenedHead
from kode_core.store import EngineStore

__all__ = ["KINDS", "check_beside_writers", "check_repair"]

_KILLED: Final = 9
_LARGE: Final = 5_000_000
"""More than fits into a head."""

KINDS: Final = {
    "a delete": "half_done_delete",
    "a fork": "half_done_fork",
    "the end of a fork": "half_done_fork",
    "a large save": "orphaned_records",
}
"""The write that a process is killed in, and the code of the issue that is found then."""


# --- The process that is killed ---------------------------------------------------------------------------------------


def _dies_at(records: Any, name: str, wanted: Callable[..., bool] = lambda *_, **__: True) -> None:
    """Let the process end in place of the next call of a name."""
    call = getattr(records, name)

    async def instead(*arguments: Any, **how: Any) -> Any:
        if wanted(*arguments, **how):
            os._exit(_KILLED)
        return await call(*arguments, **how)

    setattr(records, name, instead)


async def _die(kind: str, config: Mapping[str, Any]) -> None:
    async with create_extended_store(config) as store:
        assert isinstance(store, EngineStore)
        engine = store._context.engine
        assert isinstance(engine, RecordEngine)
        if kind == "a delete":
            _dies_at(engine.store, "drop")
            await store.delete("doomed")
        elif kind == "a fork":
            _dies_at(engine.store, "apply", lambda *_, fresh=False: fresh)
            await store.batch_fork("a", 1)
        elif kind == "the end of a fork":
            _dies_at(engine.store, "swap", lambda old, *_: old is not None and OpenedHead(old).state.reserved)
            await store.batch_fork("a", 1)
        else:
            _dies_at(engine.store, "swap")
            await store.append_messages("a", [samples.message(3, "y" * _LARGE)])


def _kill(kind: str, config: Mapping[str, Any]) -> None:
    command = [sys.executable, "-m", "kode_conformance.suite.left_behind", kind, json.dumps(dict(config))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)  # noqa: S603
    assert done.returncode == _KILLED, done.stdout + done.stderr


# --- Checks -----------------------------------------------------------------------------------------------------------


async def _fill(config: Mapping[str, Any]) -> None:
    async with create_extended_store(config) as store:
        for agent_id in ("a", "doomed"):
            await store.save_turn(agent_id, messages=samples.messages(3), info=samples.info(agent_id))


async def _see(config: Mapping[str, Any], kind: str) -> None:
    async with create_extended_store(config) as store:
        assert await store.load_messages("a") == samples.messages(3)
        assert sorted(await store.list()) == (["a"] if kind == "a delete" else ["a", "doomed"])


def _doctor(*arguments: str) -> tuple[int, dict[str, Any]]:
    """The exit code and the report of ``kode doctor``, run in this process, where the test can change the time."""
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(out):
        patch.setattr(sys, "argv", ["kode", "doctor", "--json", *arguments])
        try:
            code = run()
        except SystemExit as ended:
            code = int(ended.code or 0)
    assert isinstance(out.buffer, io.BytesIO)
    return code, json.loads(out.buffer.getvalue())


def check_repair(kind: str, config: Mapping[str, Any], url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """``kode doctor`` names what a killed process left, ``--repair`` removes it, and then nothing is named."""
    asyncio.run(_fill(config))
    _kill(kind, config)
    for name in ("io.LEFT_SECONDS", "recovery.FORK_DEAD_SECONDS", "repair._LOOK_AGAIN_S"):
        monkeypatch.setattr(f"kode_core.engines.record.{name}", 0)
    code, found = _doctor("--store", url)
    issues = found["consistency"]["issues"]
    assert (code, [issue["code"] for issue in issues]) == (1, [KINDS[kind]])
    assert "kode doctor --repair" in issues[0]["message"]
    assert found["repair"] is None
    code, found = _doctor("--store", url, "--repair")
    done = found["repair"]
    assert (code, found["consistency"]["issues"], done["left"]) == (0, [], 0)
    assert done["finished"] + done["removed"] == 1
    code, found = _doctor("--store", url)
    assert (code, found["consistency"]["issues"]) == (0, [])
    code, found = _doctor("--store", url, "--repair")
    assert (code, found["repair"]) == (0, {"finished": 0, "removed": 0, "left": 0})
    asyncio.run(_see(config, kind))


async def check_beside_writers(open_store: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """One store repairs again and again while another one writes: nothing that was acknowledged is missing."""
    monkeypatch.setattr("kode_core.engines.record.repair._LOOK_AGAIN_S", 0.05)
    rounds = 4
    async with open_store() as store, open_store() as other:
        await store.save_turn("a", messages=samples.messages(3), info=samples.info("a"))
        children = list[str]()

        async def append() -> None:
            for n in range(rounds):
                await store.append_messages("long", [samples.message(n, "y" * (_LARGE // 10))])
                await store.append_messages("short", [samples.message(n)])

        async def begin_anew() -> None:
            for n in range(rounds):
                await store.delete("new")
                await store.append_messages("new", samples.messages(n + 1))

        async def fork() -> None:
            for _ in range(rounds):
                children.extend(await store.batch_fork("a", 2))

        writing = asyncio.gather(*(act() for act in (append, begin_anew, fork)))
        repairs = 0
        while not writing.done() or not repairs:
            await other.repair()
            repairs += 1
        await writing
        assert [len(await other.load_messages(one)) for one in ("long", "short", "new")] == [rounds] * 3
        assert sorted(await other.list()) == sorted(["a", *children])
        for child in children:
            assert await other.load_messages(child) == samples.messages(3)
        await other.repair()
        monkeypatch.setattr("kode_core.engines.record.io.LEFT_SECONDS", 0)
        assert (await other.check_consistency()).issues == ()


if __name__ == "__main__":
    asyncio.run(_die(sys.argv[1], json.loads(sys.argv[2])))
