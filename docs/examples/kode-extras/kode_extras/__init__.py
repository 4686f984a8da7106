"""Examples of observers; see docs/guides/extending.md."""
