"""The request of one source: the store to open, and the parts that errors may repeat.

An error never quotes text from a place where a secret may stand: a malformed URL, an unknown parameter of a URL, a
value. It names the kind of mistake and its place (OPS-12).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from kode_core.plugins import Backend

if TYPE_CHECKING:
    from kode_core.retention.policies import RetentionPolicy

__all__ = [
    "BackendFinder",
    "Wanted",
]

BackendFinder: TypeAlias = Callable[[str], Backend]
"""Returns the backend of a name; raises PluginError. ``Plugins.backend`` is one."""


class Wanted(NamedTuple):
    """The request of one source: a backend and raw options.

    Attributes:
        source: the name of the source in errors.
        texts: the options that are given as text in a URL or the environment, and are converted to their type.
        sources: the source of single options that have one of their own.
        retention: the policies of the store, which a configuration file has next to the options.
    """

    backend: str
    options: dict[str, Any]
    source: str
    texts: frozenset[str] = frozenset()
    sources: Mapping[str, str] = {}
    retention: tuple[RetentionPolicy, ...] = ()
