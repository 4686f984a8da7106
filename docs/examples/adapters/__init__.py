"""Stores of other frameworks, over a store of kode_core."""
