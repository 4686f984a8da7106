"""The commands that the suite adds to ``kode``: conformance, compare, new-store."""
