"""The ``kode`` command: looking into a store, importing, backing up and cleaning up."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments of this process name, and exit with its code."""
    try:
        import rich  # noqa: F401 - imported here, so that a missing package is reported once
        import typer  # noqa: F401
    except ImportError:
        sys.stderr.write("the kode command needs: pip install 'kode-core[cli]'\n")
        sys.exit(2)
    try:
        from kode_core.cli.app import run
    except KeyboardInterrupt:  # imports take long enough to be interrupted
        sys.exit(130)
    sys.exit(run())
