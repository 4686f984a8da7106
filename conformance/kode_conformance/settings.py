"""How thorough a run is, and the seed that everything random in it comes from."""

from __future__ import annotations

import random
import secrets
from enum import IntEnum
from typing import Final, NamedTuple
from zlib import crc32

__all__ = ["Effort", "Settings", "Tier", "fresh_seed"]


class Tier(IntEnum):
    """How much a run looks at; each one includes those before it."""

    QUICK = 0
    """Every rule by example: seconds."""
    STANDARD = 1
    """Random histories, races and kills as well: about a minute. What a badge speaks of."""
    THOROUGH = 2
    """The same with many more of them: minutes."""


class Effort(NamedTuple):
    """How often a check repeats what is random in it.

    Attributes:
        examples: random values or histories.
        steps: operations in a history.
        schedules: orders in which concurrent calls are run.
        kills: processes that are killed at a random moment.
    """

    examples: int
    steps: int
    schedules: int
    kills: int


_EFFORTS: Final = {
    Tier.QUICK: Effort(examples=25, steps=20, schedules=5, kills=5),
    Tier.STANDARD: Effort(examples=100, steps=30, schedules=20, kills=10),
    Tier.THOROUGH: Effort(examples=600, steps=50, schedules=100, kills=50),
}


class Settings(NamedTuple):
    """What a run is asked for."""

    tier: Tier = Tier.QUICK
    seed: int = 0

    @property
    def effort(self) -> Effort:
        """How often to repeat."""
        return _EFFORTS[self.tier]

    def rng(self, check_id: str) -> random.Random:
        """The random numbers of one check: the same for the same seed, whichever checks run beside it."""
        return random.Random(self.seed << 32 | crc32(check_id.encode()))  # noqa: S311


def fresh_seed() -> int:
    """A seed that is short enough to be typed."""
    return secrets.randbelow(1_000_000)
