"""Every method of the protocols, by introspection: how it is called, what it writes, and how that is read back."""
