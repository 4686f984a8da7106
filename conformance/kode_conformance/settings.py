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
    """Random histories, races and kills as well: about a minute. The tier of a badge."""
    THOROUGH = 2
    """The same with many more of them: minutes."""


class Effort(NamedTuple):
    """How often a check repeats its random steps.

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
_SECONDS: Final = {Tier.QUICK: 15.0, Tier.STANDARD: 60.0, Tier.THOROUGH: 600.0}
_LIMITS: Final = {Tier.QUICK: 60.0, Tier.STANDARD: 180.0, Tier.THOROUGH: 900.0}


class Settings(NamedTuple):
    """The settings of a run.

    Attributes:
        tier: how much it looks at.
        seed: where everything random comes from.
        seconds: how long a check goes on that could go on for ever, if not for as long as the tier says.
    """

    tier: Tier = Tier.QUICK
    seed: int = 0
    seconds: float | None = None

    @property
    def effort(self) -> Effort:
        """How often to repeat."""
        return _EFFORTS[self.tier]

    @property
    def pace(self) -> float:
        """For how many seconds a check begins another round: fewer rounds of a slow store are no failure."""
        return _SECONDS[self.tier] if self.seconds is None else self.seconds

    @property
    def limit(self) -> float:
        """After how many seconds a check counts as hanging, for a store of the usual speed."""
        return max(_LIMITS[self.tier], 1.5 * self.pace)

    def rng(self, check_id: str) -> random.Random:
        """The random numbers of one check: the same for the same seed, whichever other checks run."""
        return random.Random(self.seed << 32 | crc32(check_id.encode()))  # noqa: S311


def fresh_seed() -> int:
    """A seed that is short enough to be typed."""
    return secrets.randbelow(1_000_000)
