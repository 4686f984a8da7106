"""Encryption at rest: a layer that encrypts every body before the engine sees it (``pip install 'kode-core[crypto]'``).

The module ``keys`` has the keys, ``ciphers`` has the cryptography, ``blinding`` the tokens, and ``layer`` the layer.
"""

from __future__ import annotations

from kode_core.layers.encryption.keys import KeyRing, Keys, new_key
from kode_core.layers.encryption.layer import Encryption, Plaintext, encrypted

__all__ = ["Encryption", "KeyRing", "Keys", "Plaintext", "encrypted", "new_key"]
