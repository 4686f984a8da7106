"""Several processes, and processes that are killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kode_langgraph import KodeSaver

from kode_core.sync import open_store
from plugins.langgraph.tests.graphs import chat, configured, question, steps

GRAPHS = Path(__file__).with_name("graphs.py")


def started(options: dict[str, Any], *args: object, **how: Any) -> subprocess.Popen[str]:
    command = [sys.executable, str(GRAPHS), json.dumps(options), *map(str, args)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **how)


def ended(process: subprocess.Popen[str], code: int = 0) -> str:
    out, _ = process.communicate(timeout=240)
    assert process.returncode == code, out
    return out


def test_a_killed_run_goes_on_in_another_process(options: dict[str, Any]) -> None:
    """No step that was done is done again, and none is left out."""
    if options["type"] == "memory":
        pytest.skip("the memory store is of one process")
    out = ended(started(options, "t", "kill", 5), -signal.SIGKILL)
    assert [line for line in out.splitlines() if line.startswith("did")] == [f"did {n}" for n in range(5)]
    with KodeSaver.from_url(**options) as saver:
        app = steps().compile(checkpointer=saver)
        assert app.get_state(configured("t")).next == ("step5",)
        assert app.invoke(None, configured("t"))["done"] == [f"step {n}" for n in range(10)]


def test_a_person_answers_in_another_process(shared: dict[str, Any]) -> None:
    """The question waits in the store until then."""
    assert json.loads(ended(started(shared, "t", "ask"))) == [{"question": "Delete the file?"}]
    assert json.loads(ended(started(shared, "t", "answer", "no"))) == ["no", "acted on no"]


@pytest.mark.parametrize("seconds", [0.4, 0.7, 1.1])
def test_a_process_that_dies_at_any_time_leaves_a_whole_thread(sqlite: dict[str, Any], seconds: float) -> None:
    """Every acknowledged turn is there; messages and state agree; the thread goes on."""
    out = ended(started(sqlite, "t", "killed", seconds), -signal.SIGKILL)
    acknowledged = len(out.splitlines())
    with KodeSaver.from_url(**sqlite) as saver:
        app = chat().compile(checkpointer=saver)
        app.invoke(None if app.get_state(configured("t")).tasks else question(), configured("t"))
        said = app.get_state(configured("t")).values["messages"]
        assert len(said) % 4 == 0 and len(said) >= 4 * acknowledged
        consistency = saver.home.call_sync(lambda store: store.check_consistency())
        assert consistency.consistent
    with open_store(**sqlite) as store:
        ids = [
            message.metadata["langgraph"]["id"] for message in store.load_messages("langgraph:t") if message.metadata
        ]
        assert ids == [message.id for message in said]


def test_two_processes_on_one_thread(shared: dict[str, Any]) -> None:
    """Each checkpoint has the list that its process gave, although both add to one log."""
    count = 40
    workers = [started(shared, "t", "puts", name, count) for name in "ab"]
    for worker in workers:
        assert worker.stdout and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        ended(worker)
    with KodeSaver.from_url(**shared) as saver:
        found = list(saver.list(configured("t", checkpoint_ns="")))
        assert len(found) == 2 * count
        for each in found:
            number, name = each.checkpoint["id"].split("-")
            expected = [f"{name} {n} " + "v" * 600 for n in range(int(number) + 1)]
            assert each.checkpoint["channel_values"]["list"] == expected


def test_two_processes_run_turns_of_one_thread(shared: dict[str, Any]) -> None:
    """Each turn is a branch that has all that it began with; no checkpoint is damaged."""
    workers = [started(shared, "t", "write", 6) for _ in range(2)]
    for worker in workers:
        assert worker.stdout and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("go\n")
        worker.stdin.flush()
    for worker in workers:
        ended(worker)
    with KodeSaver.from_url(**shared) as saver:
        found = list(saver.list(configured("t")))
        assert len(found) == 2 * 6 * 5
        saver.prune(["t"])
        (latest,) = saver.list(configured("t"))
        assert latest.checkpoint["channel_values"] == found[0].checkpoint["channel_values"]
        assert chat().compile(checkpointer=saver).invoke(question(), configured("t"))["messages"]


def test_a_forked_process_uses_the_saver_of_its_parent(tmp_path: Path) -> None:
    """It opens the store anew."""
    saver = KodeSaver.from_url(type="json", base_dir=str(tmp_path / "json"))
    app = chat().compile(checkpointer=saver)
    app.invoke(question(), configured("t"))
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if len(app.invoke(question(), configured("t"))["messages"]) == 8 else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(app.get_state(configured("t")).values["messages"]) == 8
    saver.close()
