"""Records and values to write: samples, hostile values, every field of every type, and many of a kind."""
