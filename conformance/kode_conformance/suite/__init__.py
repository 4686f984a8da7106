"""The suite for ``pytest --pyargs kode_conformance.suite.test_conformance --kode-store NAME``."""
