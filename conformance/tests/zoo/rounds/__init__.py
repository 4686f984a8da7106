"""Faulty stores that were written by readers of the contract who did not know the checks, one module for each author.

A module's name begins with its round, as in ``r1_files``: a round is a set of stores written at one time, and run
against the suite of that moment before anyone looked at them. ``rounds.json`` has the outcome of each.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, TypeVar

import msgspec

from conformance.tests.zoo.base import PLAIN, OnMemory, Witness, ZooHarness

__all__ = ["FAULTS", "RECORDS", "Fault", "Record", "Story", "fault", "load_angels", "load_faults", "records"]

T = TypeVar("T", bound=type)


class Fault(NamedTuple):
    """A faulty store.

    Attributes:
        round: as in ``r1``.
        clauses: the clauses it breaks, the first being the one that its author had in mind.
        wrong: the fault, in a sentence.
        source: the database, driver or habit that does so.
        errors: True if the fault is an error where none is allowed.
    """

    name: str
    round: str
    clauses: tuple[str, ...]
    wrong: str
    source: str
    harness: type[ZooHarness]
    base: type[ZooHarness]
    witness: Witness
    errors: bool = False

    @property
    def plain(self) -> type[ZooHarness]:
        """The same store without the fault."""
        return next(plain for base, plain in PLAIN.items() if issubclass(self.base, base))


class Record(msgspec.Struct, frozen=True):
    """The result of the suite for a faulty store.

    Attributes:
        tier: the tier it was run at.
        own: the check of one of its clauses that found it; empty when none did.
        others: checks of other clauses that failed.
    """

    tier: str
    own: str = ""
    others: tuple[str, ...] = ()


class Story(msgspec.Struct, frozen=True):
    """The results for a faulty store, when it was new and today.

    Attributes:
        because: why it lives, or why a check of another clause finds it.
    """

    then: Record
    now: Record
    because: str = ""


RECORDS: Final = Path(__file__).with_name("rounds.json")
FAULTS: Final[dict[str, Fault]] = {}


def fault(
    *clauses: str, source: str, witness: Witness, on: type[ZooHarness] = OnMemory, errors: bool = False
) -> Callable[[T], T]:
    """Register a class as the faulty part of a store; its docstring describes the fault.

    Args:
        clauses: the clauses that it breaks.
        source: the database, driver or habit that does so.
        witness: uses a store and returns its results, which differ on a sound store.
        on: the sound store that the part goes into.
        errors: True if the fault is an error where none is allowed.
    """

    def register(part: T) -> T:
        name = part.__name__
        names = {"__module__": part.__module__, "__qualname__": f"{name}.Harness", "part": part, "name": name}
        harness = type("Harness", (on,), names)
        part.Harness = harness  # type: ignore[attr-defined]
        wrong = " ".join((part.__doc__ or "").split())
        series = part.__module__.rpartition(".")[2].partition("_")[0]
        if name in FAULTS:  # two authors had one thought
            name = f"{name}{series.upper()}"
        if name in FAULTS or not wrong or not clauses:
            raise ValueError(f"{name} needs a name of its own, a clause, and a docstring that says what is wrong")
        FAULTS[name] = Fault(name, series, clauses, wrong, source, harness, on, witness, errors)
        return part

    return register


def load_faults() -> list[Fault]:
    """All faulty stores, in the order of their modules."""
    _load("r")
    return list(FAULTS.values())


def records() -> dict[str, Story]:
    """The stories of all faulty stores that were ever judged, by name."""
    return msgspec.json.decode(RECORDS.read_bytes(), type=dict[str, Story]) if RECORDS.exists() else {}


def load_angels() -> None:
    """Register the odd but sound stores of the same authors."""
    _load("angels_")


def _load(prefix: str) -> None:
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith(prefix):
            importlib.import_module(f"{__name__}.{module.name}")
