"""``kode schema``: print the SQL that a user with the right to create tables has to run."""

from __future__ import annotations

import os
from typing import Annotated, Any, Final

import typer

from kode_core.cli.output import write_text
from kode_core.config import configure
from kode_core.errors import InvalidArgumentError, UnsupportedError
from kode_core.plugins import registry

__all__ = ["EXAMPLES", "schema"]

EXAMPLES: Final = (
    "kode schema postgres --print",
    "kode schema postgres --schema agents --print | psql kode_agents",
    "kode schema 'postgres:?table_prefix=bot_' --print",
    "kode schema postgres --from 1 --print",
    "kode schema sqlite:///agents.db --print | sqlite3 -bail agents.db",
)


def schema(
    backend: Annotated[str, typer.Argument(metavar="BACKEND|URL", help="A backend's name, or a URL with its options.")],
    print_: Annotated[
        bool, typer.Option("--print", help="Print the commands, without connecting to a server.")
    ] = False,
    name: Annotated[
        str | None, typer.Option("--schema", metavar="NAME", help="The schema to make the tables in.")
    ] = None,
    since: Annotated[
        int | None, typer.Option("--from", metavar="VERSION", help="The version of the existing tables.")
    ] = None,
) -> None:
    """Print the SQL that a store needs before it is opened without the right to create its tables.

    For PostgreSQL that is the SQL of a new database. For SQLite it is the SQL that leads from the contents of the file
    to the present version. A store that is opened with that right runs it by itself.
    """
    if not print_:
        raise InvalidArgumentError(
            "kode schema does not change a store: give --print, and run the printed commands yourself"
        )
    options: dict[str, Any] = {} if name is None else {"schema": name}
    target: Any = backend if ":" in backend else {"type": backend}
    configured = configure(target, options, registry.backend, os.environ)
    if configured.backend.schema is None:
        raise UnsupportedError(f"backend {configured.backend.name!r} has no schema to print")
    if since is None:
        write_text(configured.backend.schema(configured.options))
    elif configured.backend.schema_from is None:
        raise UnsupportedError(
            f"backend {configured.backend.name!r} finds the present version itself; leave out --from"
        )
    else:
        write_text(configured.backend.schema_from(configured.options, since))
