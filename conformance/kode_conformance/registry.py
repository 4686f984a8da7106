"""The checks: plain async functions on a context, each naming the clauses of the contract that it checks."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from enum import Flag, auto
from typing import Final, NamedTuple, TypeVar

from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension
from kode_conformance.settings import Tier

__all__ = ["REGISTRY", "Capability", "Check", "check", "load_checks"]

_TIMED: Final = {Dimension.PROCESSES, Dimension.COMPANY, Dimension.CRASHES, Dimension.INTERRUPTIONS}
_CLAUSE: Final = re.compile(r"[A-Z]+-\d+")


class Capability(Flag):
    """Capabilities beyond ``Store`` in one process. A check runs when the store declares all the ones it needs."""

    NONE = 0
    PERSISTENT = auto()
    """Written records survive closing and opening the store."""
    CROSS_PROCESS = auto()
    """Several processes may use one store at a time."""
    QUERYABLE = auto()
    """It is a ``QueryableStore``."""
    EXTENDED = auto()
    """It is an ``ExtendedStore``."""
    DOCUMENTS = auto()
    """It keeps documents of the caller's own."""
    PRUNING = auto()
    """It removes a part of an agent's events."""
    ANY_OF = auto()
    """Its filters take lists of values."""
    TAGS = auto()
    """It keeps tags of documents, and finds documents by them."""
    SCOPES = auto()
    """It gives views of single tenants: it is a ``ScopedStore``."""
    ALL = PERSISTENT | CROSS_PROCESS | QUERYABLE | EXTENDED | DOCUMENTS | PRUNING | ANY_OF | TAGS | SCOPES


CheckFunction = Callable[[Context], Awaitable[None]]
F = TypeVar("F", bound=CheckFunction)


class Check(NamedTuple):
    """A check and its properties."""

    name: str
    clauses: tuple[str, ...]
    needs: Capability
    run: CheckFunction
    claim: str
    """The statement that must hold."""
    tier: Tier = Tier.QUICK
    """The first tier that runs it."""
    stochastic: bool = False
    """It looks for faults that show only sometimes: one pass proves little."""
    absence_ok: bool = False
    """A store that keeps nothing passes it, rightly."""
    under: tuple[Dimension, ...] = ()
    """The dimensions that it varies."""

    @property
    def id(self) -> str:
        """As in ``MSG-1.replaces_the_whole_list``."""
        return f"{self.clauses[0]}.{self.name}"

    @property
    def depends_on_timing(self) -> bool:
        """True if its finding may not show in another run of the same seed."""
        return self.stochastic or bool(_TIMED & set(self.under))

    @property
    def method_name(self) -> str:
        """The name of the generated test method."""
        return f"test_{self.clauses[0].replace('-', '_')}_{self.name}"


REGISTRY: Final[dict[str, Check]] = {}


def check(
    *clauses: str,
    needs: Capability = Capability.NONE,
    tier: Tier = Tier.QUICK,
    stochastic: bool = False,
    absence_ok: bool = False,
    under: tuple[Dimension, ...] = (),
) -> Callable[[F], F]:
    """Register an async function as a check of *clauses*, the first being the one it is listed under.

    *under* names the dimensions that it varies.
    """
    if not clauses or not all(_CLAUSE.fullmatch(clause) for clause in clauses):
        raise ValueError(f"a check names the clauses it checks, such as MSG-1; got {clauses}")

    def register(function: F) -> F:
        name = function.__name__
        claim = " ".join((function.__doc__ or "").split())
        if not claim:
            raise ValueError(f"the check {name} needs a docstring that says what must hold")
        found = Check(name, clauses, needs, function, claim, tier, stochastic, absence_ok, under)
        if found.id in REGISTRY:
            raise ValueError(f"there are two checks {found.id}")
        REGISTRY[found.id] = found
        return function

    return register


def load_checks() -> Iterable[Check]:
    """All checks, in the order of their modules."""
    from kode_conformance import checks

    checks.load()
    return REGISTRY.values()
