"""``python -m kode_core.cli`` is the ``kode`` command."""

from kode_core.cli import main

main()
