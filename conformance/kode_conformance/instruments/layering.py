"""Layers of the suite's own around the engine of a store: how one engine call is made slow, refused or damaged.

A store that ``create_store`` opens over an engine takes such layers without knowing of it, by the plugin hook that
observers and policies use. A store that is no ``EngineStore`` has none, and checks that need one are unverified for it.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final

from kode_core.batch import Batch, Outcome
from kode_core.engine import Engine
from kode_core.errors import KodeError
from kode_core.layers import Layer
from kode_core.plugins import EngineLayer, hookimpl, registry

__all__ = ["Trouble", "agents_of", "beneath", "layers_put"]

_wanted: ContextVar[EngineLayer | None] = ContextVar("kode_conformance_layer", default=None)


class _Plugin:
    """Puts the layer that is asked for around every engine that is opened meanwhile."""

    kode_layer_order: Final = 1_000_000

    @hookimpl
    def kode_engine_layers(self) -> EngineLayer | None:
        return _wanted.get()


@functools.cache
def _register() -> None:
    registry.add(_Plugin(), "kode-conformance-layers")


@contextmanager
def layers_put(layer: EngineLayer) -> Iterator[Callable[[], bool]]:
    """Put *layer* around each engine that is opened inside; the value tells whether one was."""
    _register()
    done = False

    def put(engine: Engine) -> Engine:
        nonlocal done
        done = True
        return layer(engine)

    token = _wanted.set(put)
    try:
        yield lambda: done
    finally:
        _wanted.reset(token)


@contextmanager
def beneath(layer: EngineLayer) -> Iterator[bool]:
    """Put *layer* beneath the one that is put around engines inside; the value tells whether there is one."""
    above = _wanted.get()
    if above is None:
        yield False
        return
    token = _wanted.set(lambda engine: above(layer(engine)))
    try:
        yield True
    finally:
        _wanted.reset(token)


def agents_of(verb: str, args: Sequence[Any]) -> frozenset[str]:
    """The agents that a call of the engine is about; none for a search."""
    if verb == "commit":
        return frozenset(batch.agent_id for batch in args[0])
    if verb in ("agent_ids", "stored_ids", "find_sessions", "find_rows", "totals", "backup", "close"):
        return frozenset()
    return frozenset(arg for arg in args[:1] if isinstance(arg, str))


class Trouble(Layer):
    """Lets engine calls for some agents hang, or fail, and leaves all others alone.

    Attributes:
        hanging: agents whose calls hang until they are let go.
        hangs_searches: True if calls that are about no one agent hang, too.
        failing: by agent, what its calls raise; a commit of several agents gives it as that batch's outcome.
        too_large: the error that a batch with a body beyond ``limit`` meets.
        under_way: how many calls hang.
    """

    limit = 50_000

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.hanging: set[str] = set()
        self.hangs_searches = False
        self.failing: dict[str, KodeError] = {}
        self.too_large: KodeError | None = None
        self.under_way = 0
        self.let_go = asyncio.Event()

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        agents = agents_of(verb, args)
        if self.hanging & agents or (self.hangs_searches and not agents and verb != "close"):
            self.under_way += 1
            try:
                await self.let_go.wait()
            finally:
                self.under_way -= 1
        if verb == "commit":
            return await self._commit(args[0])
        for agent_id in agents & self.failing.keys():
            raise self.failing[agent_id]
        return await call(*args, **kwargs)

    async def _commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        """Each batch fails or succeeds by itself: failing batches do not reach the engine."""
        failed = {i: error for i, batch in enumerate(batches) if (error := self._error(batch)) is not None}
        sound = [batch for i, batch in enumerate(batches) if i not in failed]
        outcomes = iter(await self.inner.commit(sound) if sound else ())
        return [failed[i] if i in failed else next(outcomes) for i in range(len(batches))]

    def _error(self, batch: Batch) -> KodeError | None:
        if batch.agent_id in self.failing:
            return self.failing[batch.agent_id]
        if self.too_large is not None and any(len(event.body.text) > self.limit for event in batch.events):
            return self.too_large
        return None
