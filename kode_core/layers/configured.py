"""The layers that the options of a store ask for."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

from kode_core.engine import Engine

__all__ = ["LayerOptions", "own_layers"]


class LayerOptions(Protocol):
    """Options of ``kode_core.config.StoreOptions`` that are about layers."""

    @property
    def encryption_key_file(self) -> str | None: ...
    @property
    def encryption_key_variable(self) -> str | None: ...
    @property
    def encryption_plaintext(self) -> Literal["refuse", "read"]: ...
    @property
    def encryption_blind(self) -> bool: ...
    @property
    def compression_min_bytes(self) -> int | None: ...


def own_layers(options: LayerOptions) -> list[Callable[[Engine], Engine]]:
    """The layers of encryption and compression, the innermost first; none without the options."""
    layers: list[Callable[[Engine], Engine]] = []
    file, variable = options.encryption_key_file, options.encryption_key_variable
    if file is not None or variable is not None:
        from kode_core.layers.encryption import KeyRing, encrypted

        # read when the store is opened, and again for a record under a key that was added since
        read = partial(KeyRing.from_environment, variable or "") if file is None else partial(KeyRing.from_file, file)
        layers.append(encrypted(read, plaintext=options.encryption_plaintext, blind=options.encryption_blind))
    if options.compression_min_bytes is not None:
        from kode_core.layers.compression import compressed

        layers.append(compressed(min_bytes=options.compression_min_bytes))
    return layers
