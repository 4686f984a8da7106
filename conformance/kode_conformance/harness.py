"""What the author of a store writes so that the suite can judge it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from kode_core.protocols import Store

__all__ = ["Handle", "Space", "StoreHarness", "load_harness"]

Handle: TypeAlias = dict[str, Any]
"""Where a store's data is, as plain JSON: another process opens the same store from it."""


class Space(NamedTuple):
    """A place of its own for one check.

    Attributes:
        name: unique, lower case letters, digits and ``_``: good for a schema, a table prefix or a database.
        folder: an empty folder.
    """

    name: str
    folder: Path


class StoreHarness(ABC):
    """How to make, open and remove stores of one kind.

    Everything else follows from these three: opening again, two instances at once, other processes, a kill in the
    middle of a write.

    Attributes:
        name: for reports.
        lacks: capabilities, by name, that this store does not have.
    """

    name: str = "store"
    lacks: frozenset[str] = frozenset()

    @abstractmethod
    async def provision(self, space: Space) -> Handle:
        """Make an empty store's place, and return where it is."""

    @abstractmethod
    async def open(self, handle: Handle) -> Store:
        """Open an independent instance. Called many times, at once and one after the other, in any process."""

    async def destroy(self, handle: Handle) -> None:
        """Remove what ``provision`` made outside the space's folder; works after a crash, and twice."""

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        """Damage the agent's first stored message behind the store's back, so that its JSON is another text.

        Optional: without it, what the contract says about corrupt records is not checked.
        """
        raise NotImplementedError

    @property
    def can_corrupt(self) -> bool:
        """Whether :meth:`corrupt` was written."""
        return type(self).corrupt is not StoreHarness.corrupt

    @property
    def spec(self) -> str:
        """How another process finds this class: ``module:Class`` or ``/path/to/file.py:Class``."""
        cls = type(self)
        module = sys.modules.get(cls.__module__)
        spec = getattr(module, "__spec__", None)
        if spec is not None and importlib.util.find_spec(cls.__module__.split(".")[0]) is not None:
            return f"{cls.__module__}:{cls.__qualname__}"
        return f"{Path(inspect.getfile(cls)).resolve()}:{cls.__qualname__}"


def load_harness(spec: str) -> StoreHarness:
    """The harness that a ``spec`` names."""
    place, _, name = spec.rpartition(":")
    if place.endswith(".py"):
        module_name = f"_kode_harness_{abs(hash(place))}"
        found = importlib.util.spec_from_file_location(module_name, place)
        if found is None or found.loader is None:
            raise ImportError(f"{place} cannot be imported")
        module = importlib.util.module_from_spec(found)
        sys.modules[module_name] = module
        found.loader.exec_module(module)
    else:
        module = importlib.import_module(place)
    cls: Any = module
    for part in name.split("."):
        cls = getattr(cls, part)
    harness = cls()
    if not isinstance(harness, StoreHarness):
        raise TypeError(f"{spec} is no StoreHarness")
    return harness
