"""The fixtures of the project's tests."""

from tests.conftest import alone, unprivileged

__all__ = ["alone", "unprivileged"]
