"""Those who follow events are woken, whatever becomes of the connection that tells of them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from kode_core.authoring import watching
from kode_core.authoring.watching import Watcher


class Scripted(Watcher):
    """Its connections end as the script says: with an error, or because others are watched."""

    lost = (ConnectionError,)

    def __init__(self, script: Iterator[Exception | None]) -> None:
        super().__init__()
        self._script = script
        self.listened = 0

    async def listen(self) -> None:
        self.listened += 1
        self.reported = frozenset(self.watches)
        ending = next(self._script)
        await asyncio.sleep(0)
        if ending is not None:
            raise ending


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How often a pause was made, which is none here."""
    found: list[int] = []

    def no_time(first: float, last: float) -> float:
        assert 0 < first < last
        found.append(1)
        return 0.0

    monkeypatch.setattr(watching.random, "uniform", no_time)
    return found


@pytest.mark.parametrize(
    ("ending", "is_followed"), [(ConnectionError("gone"), True), (None, False)], ids=["lost", "others are watched"]
)
async def test_a_pause_follows_a_lost_connection_and_no_other(
    pauses: list[int], ending: Exception | None, is_followed: bool
) -> None:
    """Who lost a server that was telling waits before the next try; who only watches another agent does not."""
    done = asyncio.Event()

    def script() -> Iterator[Exception | None]:
        for _ in range(5):
            assert not done.is_set()
            yield ending
        done.set()
        while True:
            yield ending

    watcher = Scripted(script())
    woken: list[int] = []
    watch = watcher.watch("a", lambda: woken.append(1))
    await asyncio.wait_for(done.wait(), 30)
    assert len(pauses) >= 5 if is_followed else not pauses
    assert len(woken) >= 5
    watch.close()
    await watcher.close()
    assert not watch.is_live
