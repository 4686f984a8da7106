"""The class that the author of a store writes so that the suite can judge it."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextvars import ContextVar
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Final, NamedTuple, TypeAlias

from kode_conformance.kills.storecode import code_of
from kode_core.protocols import Store

__all__ = [
    "BorrowedClient",
    "Costs",
    "Deviation",
    "Handle",
    "HarnessError",
    "Limits",
    "Space",
    "StoreHarness",
    "declared",
    "find_harness",
    "finds_any_of",
    "judging",
    "keeps_documents",
    "keeps_tags",
    "load_harness",
    "prunes_events",
]

GROUP: Final = "kode.conformance"
"""The entry point group of harnesses, by the name of their store."""

_FROM_FILE: Final = "_kode_harness_"
"""The prefix for names of modules that were loaded from a file, which no import finds."""

Handle: TypeAlias = dict[str, Any]
"""Where a store's data is, as plain JSON: another process opens the same store from it."""


class HarnessError(Exception):
    """The harness breaks a promise, so that the suite cannot judge the store."""


class Space(NamedTuple):
    """A place of its own for one check.

    Attributes:
        name: unique, lower case letters, digits and ``_``: good for a schema, a table prefix or a database.
        folder: an empty folder.
    """

    name: str
    folder: Path


class Limits(NamedTuple):
    """The limits that a backend states (VAL-4). The suite checks that each limit is where it is said to be.

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


class Costs(NamedTuple):
    """Counters of a backend at one moment; only differences count, and a counter that the backend lacks is None.

    Attributes:
        bytes_written: to its storage or its log, in all.
        commits: transactions that wrote something.
        connections: the number of connections open to it now.
    """

    bytes_written: int | None = None
    commits: int | None = None
    connections: int | None = None


class BorrowedClient(NamedTuple):
    """A store over a pool or client that is not its own.

    Attributes:
        store: the open store.
        use: uses the pool or client itself; raises when that was closed.
        end: closes the pool or client.
    """

    store: Store
    use: Callable[[], Awaitable[object]]
    end: Callable[[], Awaitable[object]]


class StoreHarness(ABC):
    """How to make, open and remove stores of one kind.

    Everything else follows from ``provision``, ``open`` and ``destroy``: opening again, two instances at once, other
    processes, a kill in the middle of a write. The methods below them are hooks: each lets the suite verify clauses
    that it could not verify otherwise. The report names the clauses that stay unverified.

    Attributes:
        name: for reports.
        lacks: capabilities, by name, that this store does not have; the suite sees that it really lacks them.
        limits: what the backend cannot take.
        deviations: checks, by id, that the store is known to fail. One that passes after all fails the run.
        versions: the tested versions, for the report: ``{"duckdb": "1.4"}``.
        secrets: passwords and keys that ``open`` uses; none of them may be told by the store (OPS-12).
        patience: how many times as long as usual a check may take before it counts as hanging, for a slow emulator.
    """

    name: str = "store"
    lacks: frozenset[str] = frozenset()
    limits: Limits = Limits()
    deviations: Mapping[str, Deviation] = {}
    versions: Mapping[str, str] = {}
    secrets: Sequence[str] = ()
    patience: float = 1.0

    @abstractmethod
    async def provision(self, space: Space) -> Handle:
        """Make an empty store's place, and return where it is."""

    @abstractmethod
    async def open(self, handle: Handle) -> Store:
        """Open an independent instance. Called many times, at once and one after the other, in any process."""

    async def destroy(self, handle: Handle) -> None:
        """Remove what ``provision`` made outside the space's folder; works after a crash, and twice."""

    # --- hooks

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        """As ``open``, with options of the core on top, such as ``timeout_ms=300`` or ``memory_limit_bytes=2**21``."""
        raise NotImplementedError

    async def restored(self, handle: Handle, paths: Sequence[Path]) -> Handle:
        """The handle of the store that ``backup`` of the store at *handle* made; *paths* are the paths that ``backup``
        returned.
        """
        raise NotImplementedError

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        """Damage the agent's first stored message behind the store's back, so that its JSON is another text."""
        raise NotImplementedError

    async def files_of(self, handle: Handle, agent_id: str) -> Sequence[Path]:
        """The files that hold this agent and no other, if a damaged byte of them can be told from a sound one."""
        raise NotImplementedError

    async def made_at(self, handle: Handle) -> Sequence[Path]:
        """Where the store makes files and folders, besides the space's folder; nowhere, where only a server does."""
        raise NotImplementedError

    async def raw_dump(self, handle: Handle) -> str:
        """All that the store keeps, as text, read without the store: deleted data must not be in it."""
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

    async def raise_version(self, handle: Handle) -> None:
        """Make the stored data, which no instance has open, look as if a newer version of the store had written it
        (OPS-8).
        """
        raise NotImplementedError

    async def costs(self, handle: Handle) -> Costs:
        """The backend's counters, where its writes are not made by this process: a server's bytes and commits."""
        raise NotImplementedError

    async def open_borrowed(self, handle: Handle) -> BorrowedClient:
        """As ``open``, over a pool or client that is made here and passed in (OPS-5)."""
        raise NotImplementedError

    async def wait_until_queries_see_all(self, handle: Handle) -> None:
        """Wait until queries see everything that was written; only for a backend that declares a lag (QRY-8)."""

    def code_of(self, store: Store) -> Sequence[str]:
        """Files, and folders that end with a separator, whose calls are the points at which writers are killed."""
        return code_of(store)

    def has(self, hook: str) -> bool:
        """True if the harness overrides the hook."""
        return getattr(type(self), hook) is not getattr(StoreHarness, hook)

    @property
    def spec(self) -> str:
        """How another process finds this class: ``module:Class`` or ``/path/to/file.py:Class``."""
        cls = type(self)
        module = sys.modules.get(cls.__module__)
        spec = None if cls.__module__.startswith(_FROM_FILE) else getattr(module, "__spec__", None)
        if spec is not None and importlib.util.find_spec(cls.__module__.split(".")[0]) is not None:
            return f"{cls.__module__}:{cls.__qualname__}"
        return f"{Path(inspect.getfile(cls)).resolve()}:{cls.__qualname__}"


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _all_texts(value: object) -> bool:
    return isinstance(value, (list, tuple, set, frozenset)) and all(map(_is_text, value))


_LACKED: Final[ContextVar[frozenset[str]]] = ContextVar("_LACKED", default=frozenset({"TAGS"}))
"""Outside of a run, where no harness says it, calls leave out the newest capability, which not every store has."""


def judging(harness: StoreHarness) -> None:
    """Note the capabilities that the store of this task, and of the tasks that it starts, lacks."""
    _LACKED.set(frozenset(harness.lacks))


def keeps_documents() -> bool:
    """True if the store that is judged keeps documents of the caller's own; calls of every method leave them out
    otherwise.
    """
    return not {"EXTENDED", "DOCUMENTS"} & _LACKED.get()


def keeps_tags() -> bool:
    """True if the store that is judged keeps tags of documents."""
    return keeps_documents() and "TAGS" not in _LACKED.get()


def prunes_events() -> bool:
    """True if the store that is judged removes a part of an agent's events."""
    return not {"EXTENDED", "PRUNING"} & _LACKED.get()


def finds_any_of() -> bool:
    """True if filters of the store that is judged take lists of values."""
    return not {"QUERYABLE", "ANY_OF"} & _LACKED.get()


_DECLARED: Final[Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "name": (lambda v: _is_text(v) and bool(v.strip()), 'a string, as in name = "duckdb"'),
    "lacks": (_all_texts, 'a set of names of capabilities, as in lacks = frozenset({"CROSS_PROCESS"})'),
    "limits": (
        lambda v: isinstance(v, Limits) and (v[0] is None or (type(v[0]) is int and v[0] > 0)),
        "Limits of a number of bytes, as in limits = Limits(max_payload_bytes=400_000)",
    ),
    "deviations": (
        lambda v: isinstance(v, Mapping) and _all_texts([*v]) and all(isinstance(d, Deviation) for d in v.values()),
        'a dict, as in deviations = {"MSG-5.saving_costs_what_changed": Deviation("the driver cannot yet")}',
    ),
    "versions": (
        lambda v: isinstance(v, Mapping) and _all_texts([*v, *v.values()]),
        'a dict of strings, as in versions = {"duckdb": "1.4"}',
    ),
    "secrets": (
        lambda v: _all_texts(v) and all(v),
        'a list of strings that are not empty, as in secrets = ["the-password"]',
    ),
    "patience": (
        lambda v: type(v) in (int, float) and 0 < v < float("inf"),
        "a number above 0, as in patience = 4.0",
    ),
}
"""The attributes of a harness, each with a test of its value, and the allowed values in words."""


def declared(harness: StoreHarness) -> None:
    """Check that each attribute of the harness has a value of its kind.

    Raises:
        HarnessError: an attribute has another value; the message has its name, the value, and the allowed values.
    """
    for name, (is_right, wanted) in _DECLARED.items():
        value = getattr(harness, name)
        if not is_right(value):
            raise HarnessError(f"{type(harness).__name__}.{name} is {value!r:.100}; it has to be {wanted}")


def find_harness(wanted: str) -> StoreHarness:
    """The harness of an installed store by its name, or by a ``spec``.

    Raises:
        LookupError: no installed distribution names such a harness, or its module does not have it.
        ImportError, FileNotFoundError: it cannot be imported.
        TypeError: it is no harness.
        HarnessError: an attribute of it is not of its kind.
    """
    if "://" in wanted:
        raise LookupError(f"{wanted.partition(':')[0]}://… is the address of a store; name a harness, as in sqlite")
    if ":" in wanted:
        return load_harness(wanted)
    known = {entry.name: entry for entry in entry_points(group=GROUP)}
    if wanted not in known:
        raise LookupError(_unknown(wanted, sorted(known)))
    return load_harness(known[wanted].value)


def _unknown(wanted: str, known: Sequence[str]) -> str:
    if wanted.endswith(".py"):
        return f"say which class of the file is the harness, as in {wanted}:MyHarness"
    near = get_close_matches(wanted, known, n=2)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return (
        f"no installed store has this name; {hint}there are {', '.join(known)}; a harness of your own is named as "
        "module:Class or file.py:Class"
    )


def load_harness(spec: str) -> StoreHarness:
    """The harness that a ``spec`` names.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: the module cannot be found.
        LookupError: the module has no such class.
        TypeError: it is no harness, or one without all its methods.
        HarnessError: an attribute of it is not of its kind.
    """
    place, _, name = spec.rpartition(":")
    try:
        module = _module(place)
    except PackageNotFoundError as exc:
        raise ImportError(f"it needs the distribution {exc.name}; install it, as with: pip install -e .") from exc
    cls: Any = module
    for part in name.split("."):
        cls = getattr(cls, part, None)
    if cls is None:
        raise LookupError(f"{place} has no {name}; {_offered(module)}")
    if not (inspect.isclass(cls) and issubclass(cls, StoreHarness)):
        raise TypeError(f"{name} is no StoreHarness: subclass kode_conformance.StoreHarness")
    if inspect.isabstract(cls):
        raise TypeError(f"{name} has to define {', '.join(sorted(cls.__abstractmethods__))}")
    harness: StoreHarness = cls()
    declared(harness)
    return harness


def _module(place: str) -> ModuleType:
    if not place.endswith(".py"):
        return importlib.import_module(place)
    if not Path(place).is_file():
        raise FileNotFoundError(f"there is no file {place}")
    module_name = f"{_FROM_FILE}{abs(hash(place))}"
    found = importlib.util.spec_from_file_location(module_name, place)
    if found is None or found.loader is None:
        raise ImportError(f"{place} cannot be imported")
    module = importlib.util.module_from_spec(found)
    sys.modules[module_name] = module
    found.loader.exec_module(module)
    return module


def _offered(module: ModuleType) -> str:
    classes = {name: value for name, value in vars(module).items() if inspect.isclass(value)}
    own = [name for name, value in classes.items() if issubclass(value, StoreHarness) and value is not StoreHarness]
    return f"it has {', '.join(own)}" if own else "and no other StoreHarness"
