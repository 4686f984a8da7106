"""Every method of the protocols, by introspection: how to call it, its written values, and how to read them back."""
