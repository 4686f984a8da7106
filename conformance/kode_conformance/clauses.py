"""The clauses of the contract, read from its text, which is in this package."""

from __future__ import annotations

import functools
import re
import tomllib
from collections.abc import Mapping
from importlib.resources import files
from types import MappingProxyType
from typing import Final, NamedTuple

from kode_conformance.dimensions import Dimension

__all__ = ["CONTRACT", "Clause", "clauses", "contract_text"]

CONTRACT: Final = "1.0"
"""The version of the contract that these checks implement."""

_CLAUSE: Final = re.compile(r"^- \*\*(?P<id>[A-Z]+-\d+)\*\* (?P<text>.*?)(?=\n- |\n\n|\Z)", re.MULTILINE | re.DOTALL)


class Clause(NamedTuple):
    """One rule.

    Attributes:
        id: as in ``MSG-4``; never used for another rule.
        text: its wording.
        broken_before: True if the stores of the KODE SDK break it, marked (!) in the contract.
        untested: why no check can show it; empty where one can.
        look_at: where the fault usually is.
        without: why no check varies a dimension, by dimension.
    """

    id: str
    text: str
    broken_before: bool
    untested: str = ""
    look_at: str = ""
    without: Mapping[Dimension, str] = MappingProxyType({})

    @property
    def area(self) -> str:
        """As in ``MSG``."""
        return self.id.partition("-")[0]


def contract_text() -> str:
    """The contract, as Markdown."""
    return files("kode_conformance").joinpath("contract.md").read_text("utf-8")


@functools.cache
def clauses() -> dict[str, Clause]:
    """All clauses by id, in the order of the contract."""
    notes = tomllib.loads(files("kode_conformance").joinpath("clauses.toml").read_text("utf-8"))
    found = {}
    for match in _CLAUSE.finditer(contract_text()):
        text = " ".join(match["text"].split())
        note = notes.get(match["id"], {})
        found[match["id"]] = Clause(
            match["id"],
            text.removesuffix("(!)").rstrip(),
            text.endswith("(!)"),
            note.get("untested", ""),
            note.get("look_at", ""),
            {
                Dimension(name): note.get("because", {}).get(name) or note.get("untested") or notes["not_varied"][name]
                for name in note.get("not_varied", ())
            },
        )
    return found
