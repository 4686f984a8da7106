"""OPS-12: secrets that a store must not reveal."""

from __future__ import annotations

import traceback
from collections.abc import Awaitable, Callable

from kode_conformance.context import Context, Unverified
from kode_conformance.dimensions import Dimension
from kode_conformance.harness import Handle
from kode_conformance.registry import Capability, check
from kode_conformance.values import samples
from kode_conformance.values.canaries import overheard


@check("OPS-12", needs=Capability.EXTENDED, absence_ok=True, under=(Dimension.DAMAGE,))
async def no_secret_is_told(ctx: Context) -> None:
    """No password or key of the configuration is in a repr, a health report, a metric, a log, a warning or an error,
    nor in what that error was caused by.
    """
    if not ctx.harness.secrets:
        raise Unverified("the harness declares no secrets: name the passwords and keys that open uses")
    with overheard() as texts:
        store = await ctx.another()
        await store.save_turn("a", messages=samples.messages(1), info=samples.info("a"))
        texts += [repr(store), str(store), str(await store.health_check()), str(await store.get_metrics())]
        texts += [str(await store.check_consistency("a")), repr(store.acquire_agent_lock("a"))]
        if ctx.harness.has("break_backend") and ctx.harness.has("heal_backend"):
            texts += await _in_an_outage(ctx)
        texts += await _wrongly_opened(ctx)
        await store.close()
        texts += [repr(store), str(await store.health_check()), await _error_of(lambda: store.load_messages("a"))]
    for secret in ctx.harness.secrets:
        found = [text.replace(secret, "<THE SECRET>") for text in texts if secret in text]
        ctx.true(not found, f"{len(found)} texts tell a secret, as in: {found[:1]}")


async def _in_an_outage(ctx: Context) -> list[str]:
    await ctx.harness.break_backend(ctx.handle)
    try:
        texts = [await _error_of(lambda: ctx.store.append_messages("a", samples.messages(1)))]
        texts += [await _error_of(ctx.another), str(await ctx.store.health_check())]
    finally:
        await ctx.harness.heal_backend(ctx.handle)
    return texts


async def _wrongly_opened(ctx: Context) -> list[str]:
    """Errors of opening the store where one text of its handle is wrong: a host, a port, a name."""
    texts = []
    for name, value in ctx.handle.items():
        if isinstance(value, str) and not any(secret in value for secret in ctx.harness.secrets):
            wrong: Handle = {**ctx.handle, name: f"{value}\0wrong"}
            texts.append(await _error_of(lambda wrong=wrong: ctx.harness.open(wrong)))  # type: ignore[misc]
    return texts


async def _error_of(call: Callable[[], Awaitable[object]]) -> str:
    """The traceback that a program would log, with all causes."""
    try:
        await call()
    except Exception:  # noqa: BLE001 - any error is searched
        return traceback.format_exc()
    return ""
