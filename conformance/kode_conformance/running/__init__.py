"""Running checks: one at a time, each on a store of its own, in an event loop that sees when a store hangs."""
