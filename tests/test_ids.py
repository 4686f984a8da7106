"""Ids of new agents: no two are the same, whatever the clock and the processes do."""

from __future__ import annotations

import os

import pytest

from kode_core import ids, new_agent_id


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("back_ms", [0, 1_000, 100_000])
def test_a_forked_process_makes_other_ids(monkeypatch: pytest.MonkeyPatch, back_ms: int) -> None:
    """Parent and child go on from other numbers, also when the clock was set back, and no lock is inherited."""
    first, time = new_agent_id(), ids.now_ms
    monkeypatch.setattr(ids, "now_ms", lambda: time() - back_ms)
    reader, writer = os.pipe()
    with ids._last_id_lock:
        child = os.fork()
    if child == 0:
        os.write(writer, ",".join(new_agent_id() for _ in range(50)).encode())
        os._exit(0)
    os.close(writer)
    mine = [new_agent_id() for _ in range(50)]
    with os.fdopen(reader) as pipe:
        theirs = pipe.read().split(",")
    assert os.waitpid(child, 0)[1] == 0
    assert len({*mine, *theirs, first}) == 101
    assert (mine, theirs) == (sorted(mine), sorted(theirs))
    assert first < min(theirs)
