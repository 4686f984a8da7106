"""Examples of a layer and of observers; see docs/guides/extending.md."""
