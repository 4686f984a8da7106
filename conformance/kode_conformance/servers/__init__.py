"""Servers that a store is tested against: started here, made to fail, put under load, and gone with their process."""

from __future__ import annotations

from kode_conformance.servers.processes import (
    Account,
    LocalProcess,
    NoServerError,
    ServerFailedError,
    ServerProcess,
    Startable,
    free_port,
    had,
    scratch_folder,
)

__all__ = [
    "Account",
    "LocalProcess",
    "NoServerError",
    "ServerFailedError",
    "ServerProcess",
    "Startable",
    "free_port",
    "had",
    "scratch_folder",
]
