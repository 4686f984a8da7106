"""Naming one check of one run, so that it can be run again just so."""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from kode_conformance.settings import Settings, Tier

__all__ = ["Replay", "read_replay", "replay_of"]

_REPLAY: Final = re.compile(
    rf"(?P<check>[A-Z]+-\d+\.\w+)(?:@seed=(?P<seed>\d+)(?:,tier=(?P<tier>{'|'.join(t.name.lower() for t in Tier)}))?)?"
)


class Replay(NamedTuple):
    """A check with the seed and the tier to run it with; None where one is not given.

    The tier belongs to it: the tier decides how many random values a check draws.
    """

    check: str
    seed: int | None = None
    tier: Tier | None = None


def replay_of(check_id: str, settings: Settings) -> str:
    """As in ``MSG-1.save_replaces_the_whole_list@seed=7,tier=quick``."""
    return f"{check_id}@seed={settings.seed},tier={settings.tier.name.lower()}"


def read_replay(text: str) -> Replay:
    """Parse the text of ``replay_of``; the seed and the tier may be left out.

    Raises:
        ValueError: the text is something else.
    """
    match = _REPLAY.fullmatch(text.strip())
    if match is None:
        example = replay_of("MSG-1.save_replaces_the_whole_list", Settings(Tier.QUICK, 7))
        raise ValueError(f"{text!r} names no check to run again; a report names one as in {example}")
    seed, tier = match["seed"], match["tier"]
    return Replay(match["check"], int(seed) if seed else None, Tier[tier.upper()] if tier else None)
