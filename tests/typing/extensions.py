"""An engine, a backend's plugin, and a layer, as their authors write them."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import ParamSpec, TypeVar

import msgspec
from kode_duckdb.engine import DuckdbEngine

from kode_core import MemoryStore, create_extended_store
from kode_core.engine import Engine
from kode_core.layers import Layer
from kode_core.plugins import Backend, EngineLayer, Operation, hookimpl

P = ParamSpec("P")
T = TypeVar("T")


class AcmeOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    address: str = "localhost"


class Half:
    name = "half"

    async def close(self) -> None: ...


class HalfOfTheProtocol(Engine):
    name = "half"

    async def close(self) -> None: ...


async def open_acme(options: AcmeOptions) -> Engine:
    return await opened(options.address)


async def opened(path: str) -> DuckdbEngine:
    raise NotImplementedError(path)


async def engines() -> None:
    whole: Engine = await opened("agents.duckdb")
    half: Engine = Half()  # refused: assignment
    HalfOfTheProtocol()  # refused: abstract
    await whole.close()
    await half.close()


class AcmePlugin:
    @hookimpl
    def kode_store_backend(self) -> Backend:
        return Backend(name="acme", options=AcmeOptions, open=open_acme, summary="for tests")

    @hookimpl
    def kode_engine_layers(self, options: msgspec.Struct) -> EngineLayer | None:
        return Timed if isinstance(options, AcmeOptions) else None

    @hookimpl
    def kode_operation(self, operation: Operation) -> None:
        print(operation.name.upper())


class Spans:
    """An observer that surrounds calls."""

    @contextmanager
    def around(self, operation: Operation) -> Iterator[None]:
        yield


def for_one_store() -> None:
    create_extended_store("memory:", layers=[Timed, lambda engine: Timed(engine)], observers=[Spans(), print])
    create_extended_store("memory:", layers=[5])  # refused: list-item
    create_extended_store("memory:", observers=[Spans(), 5])  # refused: list-item
    MemoryStore(observers=[Spans()], layers=[Timed])
    MemoryStore(observers=5)  # refused: arg-type


def backends() -> None:
    Backend("acme", AcmeOptions, open_acme)  # refused: call-arg
    Backend(name="acme", options=AcmeOptions)  # refused: call-arg
    Backend(name="acme", options=AcmeOptions(), open=open_acme)  # refused: arg-type
    Backend(name="acme", options=AcmeOptions, open=opened, variables="ACME")  # refused: arg-type


class Timed(Layer):
    """A layer that goes around every verb, and keeps the types of each."""

    async def around(self, verb: str, call: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        began = time.monotonic()
        try:
            return await call(*args, **kwargs)
        finally:
            print(verb, time.monotonic() - began)


class Broken(Layer):
    async def close(self) -> int:  # refused: override
        return 1


def layers(engine: Engine) -> None:
    wrapped: Engine = Timed(engine)
    around: EngineLayer = Timed
    around(wrapped)
    Timed()  # refused: call-arg
    Timed("sqlite")  # refused: arg-type
