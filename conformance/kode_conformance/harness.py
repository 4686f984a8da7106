"""What the author of a store writes so that the suite can judge it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

from kode_core.protocols import Store

__all__ = ["Deviation", "Handle", "Limits", "Space", "StoreHarness", "find_harness", "load_harness"]

GROUP: Final = "kode.conformance"
"""The entry point group of harnesses, by the name of their store."""

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


class Limits(NamedTuple):
    """What a backend states that it cannot take (VAL-4). The suite checks that each limit is where it is said to be.

    Attributes:
        max_payload_bytes: the largest record, as UTF-8 JSON; None where only memory sets a limit.
    """

    max_payload_bytes: int | None = None


class Deviation(NamedTuple):
    """A check that the store fails, and is known to fail.

    Attributes:
        reason: why, and where it is followed up.
    """

    reason: str


class StoreHarness(ABC):
    """How to make, open and remove stores of one kind.

    Everything else follows from ``provision``, ``open`` and ``destroy``: opening again, two instances at once, other
    processes, a kill in the middle of a write. The methods below them are hooks: each lets the suite verify what it
    could not see otherwise, and what stays unverified is in the report.

    Attributes:
        name: for reports.
        lacks: capabilities, by name, that this store does not have; the suite sees that it really lacks them.
        limits: what the backend cannot take.
        deviations: checks, by id, that the store is known to fail. One that passes after all fails the run.
        versions: what was tested, for the report: ``{"duckdb": "1.4"}``.
    """

    name: str = "store"
    lacks: frozenset[str] = frozenset()
    limits: Limits = Limits()
    deviations: Mapping[str, Deviation] = {}
    versions: Mapping[str, str] = {}

    @abstractmethod
    async def provision(self, space: Space) -> Handle:
        """Make an empty store's place, and return where it is."""

    @abstractmethod
    async def open(self, handle: Handle) -> Store:
        """Open an independent instance. Called many times, at once and one after the other, in any process."""

    async def destroy(self, handle: Handle) -> None:
        """Remove what ``provision`` made outside the space's folder; works after a crash, and twice."""

    # --- hooks

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        """Damage the agent's first stored message behind the store's back, so that its JSON is another text."""
        raise NotImplementedError

    async def raw_dump(self, handle: Handle) -> str:
        """All that the store keeps, read without it, as text: what was deleted must not be in it."""
        raise NotImplementedError

    async def break_backend(self, handle: Handle) -> None:
        """Make the database or file system of open stores unusable, as an outage does."""
        raise NotImplementedError

    async def heal_backend(self, handle: Handle) -> None:
        """End what ``break_backend`` began."""
        raise NotImplementedError

    async def crash_backend(self, handle: Handle) -> None:
        """Kill the server as a loss of power does, and start it again; return once it can be reached."""
        raise NotImplementedError

    async def settle(self, handle: Handle) -> None:
        """Wait until queries see everything that was written; only for a backend that declares a lag (QRY-8)."""

    def has(self, hook: str) -> bool:
        """Whether a hook was written."""
        return getattr(type(self), hook) is not getattr(StoreHarness, hook)

    @property
    def spec(self) -> str:
        """How another process finds this class: ``module:Class`` or ``/path/to/file.py:Class``."""
        cls = type(self)
        module = sys.modules.get(cls.__module__)
        spec = getattr(module, "__spec__", None)
        if spec is not None and importlib.util.find_spec(cls.__module__.split(".")[0]) is not None:
            return f"{cls.__module__}:{cls.__qualname__}"
        return f"{Path(inspect.getfile(cls)).resolve()}:{cls.__qualname__}"


def find_harness(wanted: str) -> StoreHarness:
    """The harness of an installed store by its name, or by a ``spec``.

    Raises:
        LookupError: no installed distribution names such a harness.
        ImportError: it cannot be imported.
        TypeError: it is no harness.
    """
    if ":" in wanted:
        return load_harness(wanted)
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if wanted not in known:
        raise LookupError(
            f"no installed distribution has a harness {wanted!r} (entry points {GROUP!r}); "
            f"there are {', '.join(sorted(known))}, and module:Class and file.py:Class also name one"
        )
    harness = known[wanted].load()()
    if not isinstance(harness, StoreHarness):
        raise TypeError(f"{known[wanted].value} is no StoreHarness")
    return harness


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
