"""Harnesses of views: the suite judges ``store.scoped("…")`` as it judges the store itself (SCOPE-1).

``kode conformance kode_conformance.scoped:of_sqlite`` judges a view of the store ``sqlite``; ``_`` stands for the
hyphens of a name. Next to the view, the store has agents of no tenant and of another one, which no check may meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kode_conformance.harness import Handle, Space, StoreHarness, find_harness
from kode_conformance.instruments.layering import beneath
from kode_core.engine import Engine
from kode_core.model import AgentInfo, Message
from kode_core.protocols import Store
from kode_core.store.scope import ScopedEngine
from kode_core.tenants import full_agent_id

__all__ = ["scoped_harness"]

_TENANT = "Ünit 7/a"
_WITH_AGENT = ("corrupt", "files_of")
_AS_THEY_ARE = ("made_at", "raw_dump", "break_backend", "heal_backend", "crash_backend", "raise_version", "costs")
_WAITS = "wait_until_queries_see_all"


class _Scoped(StoreHarness):
    """A harness of the views of another harness's stores."""

    def __init__(self, inner: StoreHarness) -> None:
        self.inner = inner
        self.name = f"{inner.name}-scoped"
        self.lacks = inner.lacks | {"SCOPES"}
        self.limits = inner.limits
        self.deviations = inner.deviations
        self.versions = inner.versions
        self.secrets = inner.secrets
        self.patience = inner.patience

    async def provision(self, space: Space) -> Handle:
        handle = await self.inner.provision(space)
        if "PERSISTENT" not in self.lacks:
            store: Any = await self.inner.open(handle)
            try:
                await _populate(store)
            finally:
                await store.close()
        return handle

    async def open(self, handle: Handle) -> Store:
        with beneath(_scope) as is_scoped:
            store = await self.inner.open(handle)
        return store if is_scoped else _view(store)

    async def destroy(self, handle: Handle) -> None:
        await self.inner.destroy(handle)

    def code_of(self, store: Store) -> Sequence[str]:
        return self.inner.code_of(store)


async def _populate(store: Any) -> None:
    """Let others use the store: under the ids that checks use, and so that a query without a limit would find them."""
    for one in (store, store.scoped("other")):
        for agent_id in ("a", "agt-1"):
            await one.save_info(agent_id, AgentInfo(agent_id=agent_id, template_id="of others", metadata={"userId": 1}))
            await one.append_messages(agent_id, [Message.user("of others")])


def _view(store: Any) -> Store:
    """A view that closes its store, too."""
    view: Any = store.scoped(_TENANT)
    close = view.close

    async def close_both() -> None:
        await close()
        await store.close()

    view.close = close_both
    return view  # type: ignore[no-any-return]


def _hook(name: str) -> Any:
    async def hook(self: _Scoped, handle: Handle, *args: Any) -> Any:
        if name in _WITH_AGENT:
            args = (full_agent_id(_TENANT, args[0]), *args[1:])
        return await getattr(self.inner, name)(handle, *args)

    return hook


def _scope(engine: Engine) -> Engine:
    return ScopedEngine(engine, _TENANT, is_owner=True)


async def _open_with(self: _Scoped, handle: Handle, **options: Any) -> Store:
    """A view; but checks that watch or damage agents at their engine name them as the view does, so that the scope is
    then the innermost of the layers.
    """
    layers = options.get("layers")
    if layers and isinstance(layers, (list, tuple)):
        return await self.inner.open_with(handle, **{**options, "layers": [_scope, *layers]})
    with beneath(_scope) as is_scoped:
        store = await self.inner.open_with(handle, **options)
    return store if is_scoped else _view(store)


def scoped_harness(inner: StoreHarness, name: str) -> type[StoreHarness]:
    """A class of harnesses for the views of *inner*'s stores, called *name*, with the hooks that *inner* has."""
    hooks = {hook: _hook(hook) for hook in (*_WITH_AGENT, *_AS_THEY_ARE, _WAITS) if inner.has(hook)}
    if inner.has("open_with"):
        hooks["open_with"] = _open_with

    def begin(self: _Scoped) -> None:
        _Scoped.__init__(self, type(inner)())

    return type(name, (_Scoped,), {**hooks, "__init__": begin, "__module__": __name__, "__qualname__": name})


def __getattr__(name: str) -> Any:
    """The class for ``of_sqlite`` and the like, made at its first use."""
    if not name.startswith("of_"):
        raise AttributeError(name)
    made = scoped_harness(find_harness(name.removeprefix("of_").replace("_", "-")), name)
    globals()[name] = made
    return made
