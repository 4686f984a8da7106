"""Engines: memory and JSON files, the engine over a database of single records, and parts for engines of plugins."""
