"""mongosh, as far as the printed commands need it."""

from __future__ import annotations

import json
from typing import Any

__all__ = ["run_in_mongosh"]


def run_in_mongosh(database: Any, text: str) -> None:
    """What mongosh makes of the printed lines, in this database."""
    for line in text.splitlines():
        if not line.startswith("db.getCollection"):
            continue
        collection, _, call = line.removeprefix('db.getCollection("').partition('").')
        method, _, arguments = call.removesuffix(");").partition("(")
        values = json.loads(f"[{arguments}]")
        if method == "createIndex":
            database[collection].create_index(list(values[0].items()), **values[1])
        else:
            database[collection].update_one(values[0], values[1], **values[2])
