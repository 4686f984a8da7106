"""The clock of this host, for leases between processes of one machine."""

from __future__ import annotations

import functools
import time
from pathlib import Path

__all__ = ["host_clock"]


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def host_clock() -> tuple[str, int]:
    """The id of this boot, and the milliseconds since it.

    All processes of the host read the same clock, it never goes back, and it goes on while the host sleeps. A time of
    another boot means nothing. If the system has no such clock, the boot is empty and the time is the wall clock's.
    """
    boot = _boot_id()
    if boot and hasattr(time, "CLOCK_BOOTTIME"):
        return boot, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    return "", time.time_ns() // 1_000_000
