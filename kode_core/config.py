"""Which store to open: from arguments, a URL, the environment, ``kode.toml``, or the default.

A store that the program names itself (a URL, a name from ``kode.toml``, a mapping, ``type=``) is what the program
says it is. Otherwise, in this order: ``KODE_STORE_URL``; ``KODE_STORE_TYPE`` with the variables of that backend; the
store ``default`` of ``kode.toml``; SQLite at ``./data/agents.db``. Keyword options come on top of either.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, get_args, get_origin
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

from kode_core.errors import ConfigurationError
from kode_core.plugins import Backend

__all__ = ["Configured", "StoreOptions", "configure", "named_stores", "path_from_url", "path_options"]

DEFAULT_BACKEND: Final = "sqlite"

BackendFinder: TypeAlias = Callable[[str], Backend]
"""The backend of a name; raises PluginError. ``Plugins.backend`` is one."""


class StoreOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of every store, whatever its backend.

    Attributes:
        file_store_base_dir: a folder for events, todos, history and media; without it they are in the database.
        timeout_ms: the deadline of every call (OPS-9).
        follow_poll_ms: how often ``follow_events`` looks for events that other processes appended.
        memory_limit_bytes: what the store remembers of lists, to write only what changed, takes at most so much
            (OPS-14); 0 remembers nothing.
    """

    file_store_base_dir: Annotated[str, msgspec.Meta(min_length=1, extra={"path": True})] | None = None
    timeout_ms: Annotated[int, msgspec.Meta(gt=0)] = 30_000
    follow_poll_ms: Annotated[int, msgspec.Meta(gt=0)] = 100
    memory_limit_bytes: Annotated[int, msgspec.Meta(ge=0)] = 64 * 2**20


class Configured(NamedTuple):
    """A store to open; ``source`` says where the configuration came from."""

    backend: Backend
    options: msgspec.Struct
    store: StoreOptions
    source: str


class _Wanted(NamedTuple):
    """What one source says: the backend and raw options. Texts are options from a URL or the environment."""

    backend: str
    options: dict[str, Any]
    source: str
    texts: frozenset[str] = frozenset()
    sources: Mapping[str, str] = {}


def configure(
    target: str | Mapping[str, Any] | None,
    options: Mapping[str, Any],
    find: BackendFinder,
    environ: Mapping[str, str] = os.environ,
) -> Configured:
    """Find out which store is meant.

    Raises:
        ConfigurationError: an option is unknown or has the wrong type, a name or file is not there.
    """
    options = dict(options)
    if target is None and ("type" in options or "url" in options):
        target, options = options, {}
    if isinstance(target, str):
        wanted = _from_url(target, find) if ":" in target else _from_toml(target, find, environ)
    elif isinstance(target, Mapping):
        wanted = _from_mapping(target, find, "the arguments")
    elif target is None:
        wanted = _from_surroundings(find, environ)
    else:
        raise ConfigurationError(f"a store is given as a URL, a name or a mapping, not as {type(target).__name__}")
    merged = wanted._replace(options={**wanted.options, **options}, texts=wanted.texts - options.keys())
    return _checked(merged, find(wanted.backend))


# --- Sources ----------------------------------------------------------------------------------------------------------


def _from_url(url: str, find: BackendFinder) -> _Wanted:
    try:
        split = urlsplit(url)
    except ValueError:  # whose message may quote a password
        raise ConfigurationError("the URL's host cannot be read; an address of IPv6 stands in [ ]") from None
    if split.fragment:
        raise ConfigurationError(f"the URL {_masked(split)} has a '#', which begins no part of it; write %23 in a path")
    name = split.scheme.split("+")[0]
    if not name:
        raise ConfigurationError(f"{_masked(split)!r} is no URL of a store; write sqlite:///agents.db, for example")
    backend = find(name)
    if backend.from_url is None and (split.netloc or split.path):
        raise ConfigurationError(f"a URL of backend {name!r} has only options, as in {name}:?option=value")
    given = {} if backend.from_url is None else dict(backend.from_url(split))
    pairs = parse_qsl(split.query, keep_blank_values=True)
    pairs = [pair for pair in pairs if pair[0] not in backend.url_parameters]
    query = dict(pairs)
    if len(query) < len(pairs):
        repeated = next(name for name in query if [key for key, _ in pairs].count(name) > 1)
        raise ConfigurationError(f"the URL {_masked(split)} gives the option {repeated!r} more than once")
    return _Wanted(backend.name, {**given, **query}, f"the URL {_masked(split)}", frozenset({*given, *query}))


def _masked(split: SplitResult) -> str:
    """The URL without what may be secret."""
    if split.netloc and "@" in split.path:  # a password with a slash that was not quoted
        return f"{split.scheme}://…"
    where = split.hostname or ""
    with suppress(ValueError):  # of several hosts the first is told
        where += f":{split.port}" if split.port else ""
    return f"{split.scheme}://{where}{split.path}" if split.scheme else split.path


def path_from_url(option: str) -> Callable[[SplitResult], Mapping[str, Any]]:
    """For backends whose URL is a path: ``name:///relative``, ``name:////absolute``, ``name:./relative``."""

    def options(split: SplitResult) -> Mapping[str, Any]:
        if split.netloc:
            name = split.scheme
            raise ConfigurationError(
                f"{name}://{split.hostname}… names a host, and {name} has none: "
                f"write {name}:///relative/path or {name}:////absolute/path"
            )
        path = unquote(split.path)
        path = path.removeprefix("/")
        return {option: path} if path else {}

    return options


def _from_mapping(mapping: Mapping[str, Any], find: BackendFinder, source: str) -> _Wanted:
    given = dict(mapping)
    url, kind = given.pop("url", None), given.pop("type", None)
    if url is not None:
        if not isinstance(url, str) or ":" not in url:
            raise ConfigurationError(f"{source}: url must be a URL such as sqlite:///agents.db")
        wanted = _from_url(url, find)
        if kind not in (None, wanted.backend):
            raise ConfigurationError(f"{source}: type is {kind!r} and url is for {wanted.backend!r}; give one of them")
        return wanted._replace(options={**wanted.options, **given}, texts=wanted.texts - given.keys(), source=source)
    if kind is None:
        raise ConfigurationError(f"{source}: there is no type; write type = 'sqlite', for example")
    if not isinstance(kind, str):
        raise ConfigurationError(f"{source}: type must be a str, got {type(kind).__name__}")
    return _Wanted(kind, given, source)


def _from_surroundings(find: BackendFinder, environ: Mapping[str, str]) -> _Wanted:
    url = environ.get("KODE_STORE_URL")
    if url:
        if ":" not in url:
            raise ConfigurationError("KODE_STORE_URL is no URL of a store; write sqlite:///agents.db, for example")
        return _from_url(url, find)._replace(source="KODE_STORE_URL")
    kind = environ.get("KODE_STORE_TYPE")
    if kind:
        return _from_variables(kind, find, environ, "KODE_STORE_TYPE")
    stores = named_stores(environ)
    if "default" in stores:
        return _from_toml("default", find, environ)
    return _from_variables(DEFAULT_BACKEND, find, environ, "the default")


def _from_variables(kind: str, find: BackendFinder, environ: Mapping[str, str], source: str) -> _Wanted:
    backend = find(kind)
    own = {field.name for field in msgspec.structs.fields(backend.options)}
    common = {field.name for field in msgspec.structs.fields(StoreOptions)}
    variables = {"KODE_STORE_PATH": "file_store_base_dir", **backend.variables}
    prefix = f"KODE_{kind.upper().replace('-', '_')}_"
    variables.update({f"{prefix}{name.upper()}": name for name in sorted(own | common)})
    given = {option: environ[variable] for variable, option in variables.items() if environ.get(variable)}
    for variable in environ:
        if variable.startswith(prefix) and variable not in variables:
            raise ConfigurationError(
                f"the variable {variable} is for no option of backend {kind!r}{_near(variable, variables)}"
            )
    sources = {option: variable for variable, option in variables.items() if environ.get(variable)}
    return _Wanted(kind, given, source, frozenset(given), sources)


# --- kode.toml --------------------------------------------------------------------------------------------------------


def _config_file(environ: Mapping[str, str]) -> Path | None:
    """``KODE_CONFIG``, or the nearest ``kode.toml`` or ``pyproject.toml`` with ``[tool.kode]``, upwards from here."""
    named = environ.get("KODE_CONFIG")
    if named:
        path = Path(named)
        if not path.is_file():
            raise ConfigurationError(f"KODE_CONFIG names {named}, which is no file")
        return path
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "kode.toml").is_file():
            return folder / "kode.toml"
        project = folder / "pyproject.toml"
        if project.is_file() and "kode" in _toml(project).get("tool", {}):
            return project
    return None


def _toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            return tomllib.load(file)
    except OSError as exc:
        raise ConfigurationError(f"{path} cannot be read: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigurationError(f"{path} is not TOML: {exc}") from exc


def named_stores(environ: Mapping[str, str] = os.environ) -> dict[str, tuple[dict[str, Any], Path]]:
    """The stores of the configuration file by name, each with the file it is from."""
    path = _config_file(environ)
    if path is None:
        return {}
    content = _toml(path)
    if path.name == "pyproject.toml":
        content = content["tool"]["kode"]
    stores = content.get("stores", {})
    unknown = sorted(content.keys() - {"stores"})
    if unknown:
        raise ConfigurationError(f"{path}: unknown key {unknown[0]!r}; stores are written as [stores.NAME]")
    if not isinstance(stores, dict) or not all(isinstance(store, dict) for store in stores.values()):
        raise ConfigurationError(f"{path}: stores are written as [stores.NAME], each a table")
    return {name: (store, path) for name, store in stores.items()}


def _from_toml(name: str, find: BackendFinder, environ: Mapping[str, str]) -> _Wanted:
    stores = named_stores(environ)
    if name not in stores:
        have = ", ".join(sorted(stores)) or "none"
        raise ConfigurationError(
            f"{name!r} is neither a URL nor a store of kode.toml (stores there: {have}); "
            f"a URL has a colon, as in sqlite:///{name}"
        )
    store, path = stores[name]
    wanted = _from_mapping(store, find, f"store {name!r} of {path}")
    backend = find(wanted.backend)
    paths = path_options(backend.options) | path_options(StoreOptions)
    resolved = {option: _beside(path, value) if option in paths else value for option, value in wanted.options.items()}
    return wanted._replace(options=resolved)


def _beside(path: Path, value: Any) -> Any:
    """A relative path in a configuration file is relative to the file."""
    if not isinstance(value, str) or value.startswith((":", "~")):
        return value
    return str(path.parent / value)


# --- Checking ---------------------------------------------------------------------------------------------------------


def path_options(options: type[msgspec.Struct]) -> set[str]:
    """The names of the options that are paths: those with ``extra={"path": True}``."""
    found = set()
    for field in msgspec.inspect.type_info(options).fields:  # type: ignore[attr-defined]
        kinds = field.type.types if isinstance(field.type, msgspec.inspect.UnionType) else (field.type,)
        if any(isinstance(kind, msgspec.inspect.Metadata) and (kind.extra or {}).get("path") for kind in kinds):
            found.add(field.name)
    return found


def _checked(wanted: _Wanted, backend: Backend) -> Configured:
    common = {field.name: field for field in msgspec.structs.fields(StoreOptions)}
    own = {field.name: field for field in msgspec.structs.fields(backend.options)}
    if backend.gives == "store":
        common.pop("file_store_base_dir")
    values: dict[str, Any] = {}
    for name, value in wanted.options.items():
        field = own.get(name) or common.get(name)
        value = os.fspath(value) if isinstance(value, os.PathLike) else value
        if field is None:
            known = {*own, *common}
            raise ConfigurationError(
                f"{wanted.source}: backend {backend.name!r} has no option {name!r}{_near(name, known)}"
            )
        try:
            values[name] = msgspec.convert(value, field.type, strict=name not in wanted.texts)
        except msgspec.ValidationError as exc:
            problem = str(exc).replace("`", "")
            choices = ", ".join(map(str, get_args(field.type))) if get_origin(field.type) is Literal else ""
            raise ConfigurationError(
                f"{wanted.sources.get(name, wanted.source)}: option {name} of backend {backend.name!r}: {problem}"
                f"{choices and f'; it is one of {choices}'}"
            ) from None
    missing = [name for name, field in own.items() if field.required and name not in values]
    if missing:
        raise ConfigurationError(f"{wanted.source}: backend {backend.name!r} needs the option {missing[0]!r}")
    store = StoreOptions(**{name: value for name, value in values.items() if name not in own})
    return Configured(backend, backend.options(**{n: v for n, v in values.items() if n in own}), store, wanted.source)


def _near(name: str, known: Any) -> str:
    near = difflib.get_close_matches(name, list(known), 1, 0.5)
    return f"; did you mean {near[0]!r}?" if near else f"; known are {', '.join(sorted(known))}"
