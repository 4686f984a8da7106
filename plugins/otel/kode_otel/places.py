"""The place of a store in the words of OpenTelemetry's conventions for databases."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import Final, NamedTuple

__all__ = ["SYSTEMS", "Place", "place_of"]

SYSTEMS: Final = {"postgres": "postgresql", "mongo": "mongodb", "dynamodb": "aws.dynamodb"}
"""By backend, the value of ``db.system.name`` that the conventions have for it; others keep their name."""

_SERVERS: Final = frozenset(SYSTEMS)
_HOST: Final = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^:/,\[\]]+)(?::([0-9]{1,5}))?")
_UNIX: Final = re.compile(r"(/[^ ,]*)")


class Place(NamedTuple):
    """The attributes of a store.

    Attributes:
        attributes: of spans and of metrics.
        target: the second word of a span's name: the table, the database or the file.
        has_server: the calls go to a server.
    """

    attributes: dict[str, str | int]
    target: str
    has_server: bool


def place_of(backend: str, store: str) -> Place:
    """The place that an operation names; parts that cannot be told are left out."""
    found: dict[str, str | int] = {"db.system.name": SYSTEMS.get(backend, backend) or "other_sql"}
    match = re.search(rf"(?:^|[ (]){re.escape(backend)} at (.*)$", store, re.DOTALL)
    where = match[1] if match else ""
    has_server = backend in _SERVERS
    if not has_server:
        name = PurePath(where.split(" with json at ")[0].rstrip(")")).name
        if name:
            found["db.namespace"] = _clean(name)
        return Place(found, str(found.get("db.namespace", "")), has_server)
    where, _, table = where.rstrip(")").partition(", table ")
    if table:
        found["db.collection.name"] = _clean(table)
    if "://" in where:
        where = where.partition("://")[2].split("/")[0]
    elif backend == "dynamodb":
        found |= {"db.namespace": _clean(where)} if re.fullmatch(r"[a-z]+(-[a-z]+)+-[0-9]", where) else {}
        where = ""
    hosts, _, database = where.rpartition("/") if backend != "dynamodb" else (where, "", "")
    if not hosts and backend != "dynamodb":
        hosts, database = database, ""
    if database:
        found["db.namespace"] = _clean(database)
    found |= _server(hosts)
    return Place(found, str(found.get("db.collection.name") or found.get("db.namespace", "")), has_server)


def _server(hosts: str) -> dict[str, str | int]:
    """The first host, with its port: a store of several servers is known by the first one."""
    first = hosts.split(",")[0]
    if _UNIX.fullmatch(hosts):
        return {"server.address": _clean(hosts)}
    match = _HOST.fullmatch(first)
    if match is None or " " in first:
        return {}
    address: dict[str, str | int] = {"server.address": _clean(match[1].strip("[]"))}
    return address | ({"server.port": int(match[2])} if match[2] else {})


def _clean(text: str) -> str:
    """Text that every exporter can encode: names of files may have bytes that are no UTF-8."""
    return text.encode("utf-8", "replace").decode()[:200]
