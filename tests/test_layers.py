"""Layers forward everything, and the engines have all they need."""

from __future__ import annotations

import inspect

import pytest
from kode_postgres.engine import PostgresEngine
from kode_sqlite.engine import SqliteEngine

from kode_core.backends.json_files.engine import JsonFilesEngine
from kode_core.backends.memory.engine import MemoryEngine
from kode_core.counted import Counts, Groups
from kode_core.engine import Connects, Engine, Notifies, RangesDocs, Repairs
from kode_core.hybrid.engine import HybridEngine
from kode_core.layers import Layer
from kode_core.rewriting import RewritesEvents
from kode_core.tagged import FindsDocs


def verbs(cls: type) -> set[str]:
    return {name for name, value in vars(cls).items() if callable(value) and not name.startswith("_")}


def test_a_layer_forwards_every_verb() -> None:
    """The base of layers has every verb of an engine, with the same parameters: none falls through."""
    protocols = (Engine, Notifies, Connects, Repairs, RangesDocs, Counts, Groups, FindsDocs, RewritesEvents)
    assert verbs(Layer) - {"around"} == {verb for protocol in protocols for verb in verbs(protocol)}
    for protocol in protocols:
        for verb in verbs(protocol):
            ours, theirs = inspect.signature(getattr(Layer, verb)), inspect.signature(getattr(protocol, verb))
            assert list(ours.parameters) == list(theirs.parameters), verb


@pytest.mark.parametrize("cls", [MemoryEngine, JsonFilesEngine, SqliteEngine, PostgresEngine, HybridEngine])
def test_engines_have_every_verb(cls: type) -> None:
    """Every engine has all verbs with the parameters of the protocol."""
    for verb in verbs(Engine):
        ours, theirs = inspect.signature(getattr(cls, verb)), inspect.signature(getattr(Engine, verb))
        assert list(ours.parameters) == list(theirs.parameters), f"{cls.__name__}.{verb}"
