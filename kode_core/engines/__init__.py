"""Shared by engines: an agent in memory, queries over many, and ``record``, the engine over single database records."""
