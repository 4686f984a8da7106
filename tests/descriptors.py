"""The descriptors of the process, for tests that expect a call to leave none open."""

from __future__ import annotations

import os
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Final

import pytest

_PLACE: Final = Path("/proc/self/fd")

needs_descriptors = pytest.mark.skipif(not _PLACE.exists(), reason="needs /proc")


def open_descriptors() -> Counter[str]:
    """How many descriptors lead to each file; ``open_descriptors() - before`` is what was opened and not closed.

    Only the difference says something: the process may close at any moment a file that an earlier test left open.
    """
    found = Counter[str]()
    for descriptor in os.listdir(_PLACE):
        with suppress(FileNotFoundError):  # the descriptor by which the folder was listed
            found[os.readlink(_PLACE / descriptor)] += 1
    return found
