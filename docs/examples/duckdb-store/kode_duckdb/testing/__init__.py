"""The harness of this backend for the conformance suite."""
