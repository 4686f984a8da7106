"""Pages that show what the agents of a store did, in a browser."""

from kode_inspector.app import create_app

__all__ = ["create_app"]
