"""The methods of the protocols for synchronous code, written by ``scripts/sync_methods.py``."""
