"""Examples of a layer and of an observer; see docs/guides/extending.md."""
