"""Runs that take a part of the tests, another one each time."""

from __future__ import annotations

from collections.abc import Callable
from zlib import crc32

import pytest

__all__ = ["take_sample"]


def take_sample(
    config: pytest.Config, items: list[pytest.Item], sample: str, name_of: Callable[[pytest.Item], str]
) -> None:
    """Keep one sample of the tests that have a name, chosen by the name, and all tests that have none.

    *sample* is as in ``1/3``, the second of three: three runs in a row see all tests.
    """
    which, _, of = sample.partition("/")
    kept, left_out = list[pytest.Item](), list[pytest.Item]()
    for item in items:
        name = name_of(item)
        (left_out if name and crc32(name.encode()) % int(of) != int(which) else kept).append(item)
    config.hook.pytest_deselected(items=left_out)
    items[:] = kept
