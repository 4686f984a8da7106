"""The harnesses of this backend for the conformance suite, and the servers that they start."""
