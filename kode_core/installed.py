"""Plugins that are installed, as the metadata of their distributions names them: none of them is imported."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib.metadata import EntryPoint, entry_points

import msgspec

__all__ = ["InstalledPlugin", "described", "distribution_of", "in_metadata", "normal_name"]


class InstalledPlugin(msgspec.Struct, frozen=True):
    """A plugin that is installed; ``value`` is what its entry point names, as in ``kode_acme.plugin``."""

    name: str
    distribution: str
    version: str
    value: str


def normal_name(name: str) -> str:
    """A distribution's name as packaging compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def in_metadata(group: str) -> Sequence[InstalledPlugin]:
    """The plugins of an entry point group, by name."""
    found = [InstalledPlugin(ep.name, *distribution_of(ep), ep.value) for ep in entry_points(group=group)]
    return sorted(found, key=lambda plugin: (plugin.name, plugin.distribution))


def distribution_of(ep: EntryPoint) -> tuple[str, str]:
    """The name and version of the distribution that an entry point is of."""
    return (ep.dist.name, ep.dist.version) if ep.dist else ("unknown distribution", "")


def described(ep: EntryPoint) -> str:
    """The distribution of an entry point, for messages."""
    return " ".join(filter(None, distribution_of(ep)))
