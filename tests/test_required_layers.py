"""A store that needs a layer is not opened without it, by any way to open a store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from kode_core import (
    AgentInfo,
    ConfigurationError,
    JsonStore,
    Message,
    create_extended_store,
    create_store,
    lazy_store,
)
from kode_core.batch import DocKind
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.layers.compression import compressed
from kode_core.layers.encryption import encrypted
from kode_core.layers.required import NOTES

KEYS = {"k": b"\7" * 32}
URLS = (
    "memory:required-{}",
    "json:///{}/json",
    "sqlite:///{}/agents.db",
    "sqlite:///{0}/hybrid.db?file_store_base_dir={0}/files",
)


def url_of(form: str, tmp_path: Path) -> str:
    return form.format(tmp_path).replace("memory:required-/", "memory:required-")


class Forwards:
    """An engine around an engine that does not show what is inside."""

    def __init__(self, inner: Engine) -> None:
        self._hidden = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hidden, name)


class Reads(Layer):
    """Notes the verbs that it forwards."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner)
        self.verbs: list[str] = []

    async def around(self, verb: str, call: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.verbs.append(verb)
        return await call(*args, **kwargs)


@pytest.mark.parametrize("form", URLS)
async def test_an_encrypted_store_is_not_opened_without_keys(form: str, tmp_path: Path) -> None:
    """Nothing is written over its records; with the keys it is as it was."""
    url = url_of(form, tmp_path)
    info = AgentInfo(agent_id="a", template_id="t", metadata={"secret": "s"})
    async with create_extended_store(url, layers=[encrypted(KEYS)]) as store:
        await store.save_info("a", info)
    for attempt in (create_extended_store(url), create_store(url), create_extended_store(url, layers=[compressed()])):
        with pytest.raises(ConfigurationError, match="is encrypted: give its keys, as encryption_key_file"):
            await attempt
    lazy = lazy_store(url)
    with pytest.raises(ConfigurationError, match="is encrypted"):
        await lazy.save_info("a", info)
    await lazy.close()
    async with create_extended_store(url, layers=[encrypted(KEYS)]) as store:
        loaded = await store.load_info("a")
        assert loaded is not None
        assert loaded.metadata == {"secret": "s"}


async def test_the_classes_and_other_processes_are_refused_too(tmp_path: Path) -> None:
    """A store for direct use, and a process that never imported the layer."""
    async with create_extended_store(f"json:///{tmp_path}/json", layers=[encrypted(KEYS)]) as store:
        await store.append_messages("a", [Message.user("x")])
    with pytest.raises(ConfigurationError, match="is encrypted"):
        async with JsonStore(tmp_path / "json"):
            pass
    code = (
        "import asyncio, sys\nfrom kode_core import create_extended_store\n"
        f"asyncio.run(create_extended_store('json:///{tmp_path}/json')._open())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ConfigurationError" in done.stderr
    assert "is encrypted: give its keys" in done.stderr


@pytest.mark.parametrize("form", URLS)
async def test_a_compressed_store_is_not_opened_without_the_layer(form: str, tmp_path: Path) -> None:
    """From the first compressed record on, and not before; also where the records are encrypted besides."""
    url = url_of(form, tmp_path)
    async with create_extended_store(url, layers=[compressed()]) as store:
        await store.append_messages("a", [Message.user("short")])
    async with create_extended_store(url) as store:
        assert len(await store.load_messages("a")) == 1
    async with create_extended_store(url, layers=[compressed()]) as store:
        await store.append_messages("a", [Message.user("word " * 1_000)])
        assert await store.list(include_without_info=True) == ["a"]
        assert (await store.check_consistency()).issues == ()
    with pytest.raises(ConfigurationError, match="has compressed records: give compression_min_bytes"):
        await create_extended_store(url)
    with pytest.raises(ConfigurationError, match="has compressed records"):
        await create_extended_store(url, layers=[encrypted(KEYS, plaintext="read")])
    async with create_extended_store(url, compression_min_bytes=10**6) as store:
        assert len(await store.load_messages("a")) == 2
    layers = [encrypted(KEYS, plaintext="read"), compressed()]
    async with create_extended_store(url, layers=layers) as store:
        await store.append_messages("b", [Message.user("word " * 1_000)])
        assert len(await store.load_messages("a")) == 2


@pytest.mark.parametrize("form", URLS)
async def test_a_lock_and_deleted_agents_are_no_plain_text(form: str, tmp_path: Path) -> None:
    """Keys are for a store without records, whatever happened to it before; a plain record refuses them."""
    url = url_of(form, tmp_path)
    async with create_extended_store(url) as store:
        await store.append_messages("a", [Message.user("x")])
        await store.delete("a")
        async with store.acquire_agent_lock("a"):
            pass
    async with create_extended_store(url, layers=[encrypted(KEYS)]):
        pass
    async with create_extended_store(url) as store:
        await store.put_document("a", "c", "k", 1)
    with pytest.raises(ConfigurationError, match="has records as plain text, and keys were given"):
        await create_extended_store(url, layers=[encrypted(KEYS)])


class Hides(Forwards):
    """Does not forward what it does not know either."""

    def __getattr__(self, name: str) -> Any:
        if name in ("inner", "required"):
            raise AttributeError(name)
        return super().__getattr__(name)


@pytest.mark.parametrize("opaque", [Forwards, Hides])
@pytest.mark.parametrize("form", URLS)
async def test_a_layer_that_shows_nothing_takes_the_place_of_none(form: str, opaque: Any, tmp_path: Path) -> None:
    """A store that needs keys is refused without them, whatever is around it, and so is one that needs to unpack."""
    url = url_of(form, tmp_path)
    layers = [encrypted(KEYS), compressed(), opaque]
    async with create_extended_store(url, layers=layers) as store:
        await store.append_messages("a", [Message.user("word " * 1_000)])
    for given in ([opaque], [opaque, Reads], [Reads, opaque], [compressed(), opaque]):
        with pytest.raises(ConfigurationError, match="is encrypted: give its keys"):
            await create_extended_store(url, layers=given)
    with pytest.raises(ConfigurationError, match="has compressed records"):
        await create_extended_store(url, layers=[encrypted(KEYS), opaque])
    for given in (layers, [opaque, *layers], [encrypted(KEYS), opaque, compressed()]):
        async with create_extended_store(url, layers=given) as store:
            assert len(await store.load_messages("a")) == 1


async def test_layers_that_one_function_puts_around_count() -> None:
    """By the attribute inner; a function that hides them says so by it."""
    url = "memory:required-composed"

    def shown(engine: Engine) -> Engine:
        return Reads(encrypted(KEYS)(engine))

    def hidden(engine: Engine) -> Engine:
        return Hides(shown(engine))  # type: ignore[return-value]

    async with create_extended_store(url) as store:
        await store.append_messages("a", [Message.user("x")])
    with pytest.raises(ConfigurationError, match="has records as plain text, and keys were given"):
        await create_extended_store(url, layers=[shown])
    async with create_extended_store(url) as store:
        await store.delete("a")
    async with create_extended_store(url, layers=[shown]) as store:
        await store.append_messages("a", [Message.user("x")])
    async with create_extended_store(url, layers=[shown]) as store:
        assert len(await store.load_messages("a")) == 1
    with pytest.raises(ConfigurationError, match="is encrypted"):
        await create_extended_store(url, layers=[hidden])


async def test_a_layer_around_the_keys_may_show_nothing() -> None:
    """The keys were given by themselves."""
    url = "memory:required-opaque"
    async with create_extended_store(url, layers=[encrypted(KEYS), Forwards]) as store:
        await store.append_messages("a", [Message.user("x")])
    async with create_extended_store(url, layers=[encrypted(KEYS), Forwards]) as store:
        assert len(await store.load_messages("a")) == 1


async def test_the_look_costs_one_read_of_the_engine_at_the_opening() -> None:
    """And none of the layers around it, nor one for each call."""
    seen: list[Reads] = []

    def reads(engine: Engine) -> Engine:
        seen.append(Reads(engine))
        return seen[-1]

    async with create_extended_store("memory:required-cost", layers=[reads]) as store:
        assert seen[0].verbs == []
        assert await store.load_messages("a") == []
        assert seen[0].verbs.count("docs") == 0
    assert await seen[0].inner.docs(NOTES, DocKind.LAYER) == []
