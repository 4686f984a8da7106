"""Stores as URLs, or as the path of a file or folder. No part of a malformed URL is quoted (OPS-12)."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final
from urllib.parse import SplitResult, parse_qsl, urlsplit

import msgspec

from kode_core.authoring.paths import local_path
from kode_core.authoring.values import path_options, secret_options
from kode_core.errors import ConfigurationError, KodeError, UnknownBackendError
from kode_core.plugins import Backend
from kode_core.sources.wanted import BackendFinder, Wanted

__all__ = ["DATABASE_SUFFIXES", "from_path", "from_url"]

DATABASE_SUFFIXES: Final = (".db", ".db3", ".sqlite", ".sqlite3")
"""The suffixes of file names that stand for SQLite databases."""

_SCHEME: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):")
_HOST: Final = r"(\[[0-9A-Fa-f:.]+(%25[\w.]+)?\]|[^\[\]:,\s/?#@%]*|(%2[Ff][\w.%-]*))(:\d{1,5})?"
_HOSTS: Final = re.compile(rf"{_HOST}(,{_HOST})*")
_OTHERS: Final = (
    *("cassandra", "clickhouse", "cockroachdb", "couchdb", "duckdb", "dynamo", "elasticsearch", "file", "firestore"),
    *("http", "https", "libsql", "mariadb", "memcached", "mssql", "mysql", "neo4j", "oracle", "redis", "rediss"),
    *("s3", "supabase", "turso", "valkey"),
)
"""Schemes of other stores: a message may repeat them, since none of them is a user's name or a part of a secret."""
_ENCODE: Final = "in a user or password, write / as %2F, ? as %3F, # as %23, @ as %40, : as %3A and % as %25"


def from_url(url: str, find: BackendFinder, source: str = "the URL") -> Wanted:
    """The backend and options that *url* stands for.

    Raises:
        ConfigurationError: it is malformed; the message names the kind of mistake, and quotes nothing.
        PluginError: no such backend exists, or it cannot be used.
    """
    problem = _malformed(url)
    if problem:
        raise ConfigurationError(f"{source} {problem}")
    backend = _backend(url, find, source)
    split = _split(url)
    problem = "has a host or port that cannot be read; " + _ENCODE if split is None else _misread(url, split, backend)
    if split is None or problem:
        raise ConfigurationError(f"{source} {problem}")
    if source == "the URL":
        source = f"the URL {_shown(split)}"
    given = _given(split, backend, source)
    query = _query(split, backend, source)
    return Wanted(backend.name, {**given, **query}, source, frozenset({*given, *query}))


def _malformed(url: str) -> str:
    """The problem of a text that should be a URL, before its backend is known; empty if there is none."""
    if url != url.strip() or any(char < " " or char == "\x7f" for char in url):
        return "has white space around it, or a line break or control character inside"
    if url[:1] in "\"'`“‘<":
        return "stands in quotes; leave them out (docker --env-file keeps quotes as a part of the value)"
    if re.match(r"[A-Za-z]:[\\/]", url):
        return "is a path of Windows; give it as pathlib.Path(...), or write sqlite:///C:/data/agents.db"
    if _SCHEME.match(url):
        return ""
    if re.match(r"(export\s+)?\w+\s*=", url):
        return "begins with a name and '='; give only what stands behind it, beginning with a backend as in sqlite:///"
    return "does not begin with a backend's name and a colon, as in sqlite:///agents.db or postgres://host/database"


def _backend(url: str, find: BackendFinder, source: str) -> Backend:
    """The backend of a URL's scheme.

    If the scheme was left out, the text in its place may be a user's name or a secret.
    """
    match = _SCHEME.match(url)
    assert match is not None
    name = match[1].lower().split("+")[0]
    try:
        return find(name)
    except UnknownBackendError as exc:
        problem, rest = str(exc), exc.without_name
    if rest == problem or name in _OTHERS:
        raise UnknownBackendError(f"{source}: {problem}")
    raise UnknownBackendError(f"{source} does not begin with a backend's name{rest}")


def _split(url: str) -> SplitResult | None:
    try:
        return urlsplit(url)
    except ValueError:  # its message may quote a password
        return None


def _misread(url: str, split: SplitResult, backend: Backend) -> str:
    """The problem of a URL of a known backend, above all a part of a password in the wrong place."""
    has_secrets = bool(secret_options(backend.options))
    rest = url.partition(":")[2]
    if not has_secrets and rest.startswith("/") and not rest.startswith("//"):
        name = split.scheme
        return f"has one '/' behind the colon: write {name}:////… for an absolute path, {name}:///… for a relative one"
    if "#" in url:
        hint = "; " + _ENCODE if has_secrets else ""
        return f"has a '#', which begins no part of it; write %23 in a path{hint}"
    if not has_secrets and not split.netloc:
        looks = re.search(":.*@", split.path)
        return "has user:password@, which no path has; write %40 for a '@' in a path" if looks else ""
    if "@" in split.path or "@" in split.query or split.netloc.count("@") > 1:
        return "has a '@' where none can be; " + _ENCODE
    if has_secrets and not split.netloc and (":" in split.path or (rest and not rest.startswith(("//", "?")))):
        return "does not go on with //host behind the colon: write name://user:password@host/name"
    if has_secrets and not _HOSTS.fullmatch(split.netloc.rpartition("@")[2]):
        return "does not have host or host:port between user and path; " + _ENCODE
    return ""


def _shown(split: SplitResult) -> str:
    """A well-formed URL without user, password and parameters."""
    if split.netloc:
        return f"{split.scheme}://{split.netloc.rpartition('@')[2]}{split.path}"
    path = "…" if "@" in split.path else split.path
    return f"{split.scheme}:{'//' if path.startswith('/') else ''}{path}"


def _given(split: SplitResult, backend: Backend, source: str) -> dict[str, Any]:
    if backend.from_url is None:
        if split.netloc or split.path:
            name = backend.name
            raise ConfigurationError(f"a URL of backend {name!r} has only options, as in {name}:?option=value")
        return {}
    try:
        return dict(backend.from_url(split))
    except KodeError as exc:
        problem, kind = str(exc), type(exc)
    except Exception as exc:  # noqa: BLE001 - a plugin's code, whose message may quote a password
        problem, kind = f"backend {backend.name!r} cannot read it: {type(exc).__name__}", ConfigurationError
    raise kind(f"{source}: {problem}") if issubclass(kind, ConfigurationError) else ConfigurationError(problem)


def _query(split: SplitResult, backend: Backend, source: str) -> dict[str, Any]:
    pairs = _pairs(split.query)
    if pairs is None:
        raise ConfigurationError(f"{source} has more parameters than can be read")
    pairs = [pair for pair in pairs if pair[0] not in backend.url_parameters]
    query = dict(pairs)
    if len(query) < len(pairs):
        options = {field.name for field in msgspec.structs.fields(backend.options)}
        repeated = next(name for name in query if [key for key, _ in pairs].count(name) > 1)
        called = f"the option {repeated!r}" if repeated in options else "an option"
        raise ConfigurationError(f"{source} gives {called} more than once")
    return query


def _pairs(query: str) -> list[tuple[str, str]] | None:
    try:
        return parse_qsl(query, keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        return None


def from_path(given: Any, find: BackendFinder) -> Wanted:
    """The store at a path: chosen by the file or folder that exists there, or else by the name.

    A folder is a store of JSON files, a file a database of SQLite. If the path does not exist, a name with one of
    ``DATABASE_SUFFIXES`` becomes a database, and a name without a suffix a folder.

    Raises:
        ConfigurationError: it cannot be a path, or its suffix does not tell the kind of store.
    """
    path = local_path(given, "the path")
    if os.path.isdir(path):  # noqa: PTH112 - it raises nothing, however long the name is
        name = "json"
    elif os.path.isfile(path) or path.suffix.lower() in DATABASE_SUFFIXES:  # noqa: PTH113
        name = "sqlite"
    elif not path.suffix:
        name = "json"
    else:
        raise ConfigurationError(
            "the suffix of the path does not say which store it is: write sqlite:///… for a database of SQLite, "
            "or json:///… for a folder of JSON files"
        )
    (option,) = path_options(find(name).options)
    return Wanted(name, {option: str(Path(given))}, "the path")
