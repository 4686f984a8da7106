"""``kode text-index``: add, remove and rebuild the index of the texts of messages."""

from __future__ import annotations

from typing import Annotated, Final

import typer

from kode_core.cli.opening import JsonOption, StoreOption, configured_store, refuse_missing
from kode_core.cli.output import count, print_json, show, watched
from kode_core.cli.queries import run
from kode_core.errors import InvalidArgumentError, UnsupportedError
from kode_core.plugins import TextIndexAction

__all__ = ["EXAMPLES", "text_index"]

EXAMPLES: Final = (
    "kode text-index add",
    "kode text-index status --store sqlite:///data/agents.db",
    "kode text-index drop",
)
_ACTIONS: Final[dict[str, TextIndexAction]] = {"status": "status", "add": "add", "rebuild": "rebuild", "drop": "drop"}


def text_index(
    action: Annotated[str, typer.Argument(metavar="ACTION", help="status, add, rebuild or drop.")] = "status",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Add, remove or rebuild the index by which `kode messages --contains` finds messages.

    Without it, a search reads all messages that its other filters leave. Programs may use the store meanwhile: a search
    reads the messages that the index does not have yet. An interrupted command goes on when it is given again. The
    index makes every write of messages slower, and the database larger.
    """
    if action not in _ACTIONS:
        raise InvalidArgumentError(f"{action!r:.80} is none of {', '.join(_ACTIONS)}")
    configured = configured_store(store)
    refuse_missing(configured)
    change = configured.backend.text_index
    if change is None:
        raise UnsupportedError(
            f"the backend {configured.backend.name} has no index of texts: a search reads messages, at most 10,000 in a"
            " call"
        )
    with watched("indexed") as progress:
        waiting = run(change(configured.options, _ACTIONS[action], progress))
    if as_json:
        print_json({"index": waiting is not None, "waiting": waiting})
    elif waiting is None:
        show("no index of texts; kode text-index add makes one")
    else:
        show(f"an index of texts; {count(waiting, 'message')} not in it yet")
