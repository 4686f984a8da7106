"""Find the store to open: from arguments, a URL, the environment, ``kode.toml``, or the default.

A store that the program names itself (a URL, a name from ``kode.toml``, a mapping, ``type=``) comes first. Otherwise,
in this order: ``KODE_STORE_URL``; ``KODE_STORE_TYPE`` with the variables of that backend; the store ``default`` of
``kode.toml``; SQLite at ``./data/agents.db``. Keyword options are added in all cases.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, NamedTuple

import msgspec

from kode_core.authoring.options import ServerOptions
from kode_core.authoring.values import named, near, path_options, read_value, secret_options
from kode_core.errors import ConfigurationError, InvalidArgumentError
from kode_core.ids import nearest
from kode_core.plugins import Backend, registry
from kode_core.sources.files import named_stores, relative_to
from kode_core.sources.urls import DATABASE_SUFFIXES, from_path, from_url
from kode_core.sources.variables import Variables
from kode_core.sources.wanted import BackendFinder, Wanted
from kode_core.tenants import check_tenant

if TYPE_CHECKING:
    from kode_core.retention.policies import RetentionPolicy

__all__ = ["Configured", "StoreOptions", "configure", "retention_policies"]

DEFAULT_BACKEND: Final = "sqlite"
Millis = Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]


class StoreOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Options of every store, whatever its backend.

    Attributes:
        file_store_base_dir: a folder for events, todos, history and media; without one they are kept in the database.
        timeout_ms: the deadline of every call (OPS-9).
        follow_poll_ms: how often ``follow_events`` looks for events that other processes appended.
        encryption_key_file: a file with the keys of encryption, for its owner alone; see the guide on encryption.
        encryption_key_variable: the name of an environment variable with them, in its place.
        encryption_plaintext: ``read`` reads records that are stored as plain text, too, while a store is being
            encrypted; ``refuse`` does not.
        encryption_blind: whether the names of tools and the values of metadata, by which records are found, are stored
            as tokens.
        compression_min_bytes: the size from which bodies are compressed; None compresses nothing.
        memory_limit_bytes: the most that the store's memory of lists takes, which lets it write only the changes
            (OPS-14); 0 remembers nothing.
        tenant: the tenant whose agents are all that the store sees (SCOPE-1); None for everything.
    """

    file_store_base_dir: Annotated[str, msgspec.Meta(min_length=1, extra={"path": True})] | None = None
    timeout_ms: Millis = 30_000
    follow_poll_ms: Millis = 100
    memory_limit_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 64 * 2**20
    tenant: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    encryption_key_file: Annotated[str, msgspec.Meta(min_length=1, extra={"path": True})] | None = None
    encryption_key_variable: Annotated[str, msgspec.Meta(min_length=1)] | None = None
    encryption_plaintext: Literal["refuse", "read"] = "refuse"
    encryption_blind: bool = False
    compression_min_bytes: Annotated[int, msgspec.Meta(ge=0, le=2**28)] | None = None

    def __post_init__(self) -> None:
        if self.encryption_key_file is not None and self.encryption_key_variable is not None:
            raise ConfigurationError("give encryption_key_file or encryption_key_variable, not both")
        if not self.is_encrypted and (self.encryption_blind or self.encryption_plaintext != "refuse"):
            raise ConfigurationError(
                "encryption_plaintext and encryption_blind need keys: give encryption_key_file or "
                "encryption_key_variable, too"
            )

    @property
    def is_encrypted(self) -> bool:
        """Whether the options name keys."""
        return self.encryption_key_file is not None or self.encryption_key_variable is not None


class Configured(NamedTuple):
    """A store to open; ``source`` names the source of the configuration, and ``retention`` has its policies."""

    backend: Backend
    options: msgspec.Struct
    store: StoreOptions
    source: str
    retention: tuple[RetentionPolicy, ...] = ()

    def __repr__(self) -> str:
        """A description of the store, without secrets."""
        hidden = secret_options(self.backend.options)
        fields = msgspec.structs.fields(self.options)
        given = {field.name: getattr(self.options, field.name) for field in fields if field.name not in hidden}
        shown = repr(self.options) if not hidden or isinstance(self.options, ServerOptions) else repr(given)
        return f"<{self.backend.name} from {self.source}: {shown}, {self.store!r}>"


def configure(
    target: str | os.PathLike[str] | Mapping[str, Any] | None,
    options: Mapping[str, Any],
    find: BackendFinder,
    environ: Mapping[str, str] = os.environ,
) -> Configured:
    """Find the configuration of the store.

    Raises:
        ConfigurationError: an option is unknown or has the wrong type, or a name or file does not exist.
    """
    options = dict(options)
    if target is None and ("type" in options or "url" in options):
        target, options = options, {}
    if isinstance(target, str):
        wanted = from_url(target, find) if ":" in target else _from_name(target, find, environ)
    elif isinstance(target, os.PathLike):
        wanted = from_path(target, find)
    elif isinstance(target, Mapping):
        wanted = _from_mapping(target, find, "the arguments")
    elif target is None:
        wanted = _from_surroundings(find, environ)
    else:
        raise ConfigurationError(
            f"a store is given as a URL, a name, a Path or a mapping, not as {type(target).__name__}"
        )
    merged = wanted._replace(options={**wanted.options, **options}, texts=wanted.texts - options.keys())
    return _checked(merged, find(wanted.backend))


def retention_policies(target: str | None = None) -> tuple[RetentionPolicy, ...]:
    """The policies of retention that ``kode.toml`` has for a store; none if the file does not configure the store.

    *target* names the store, as for ``create_extended_store``; without it, it is the one that the surroundings choose.

    Raises:
        ConfigurationError: the configuration is wrong, the policies included.
    """
    return configure(target, {}, registry.backend).retention


# --- Sources ----------------------------------------------------------------------------------------------------------


def _from_mapping(mapping: Mapping[str, Any], find: BackendFinder, source: str) -> Wanted:
    given = dict(mapping)
    url, kind = given.pop("url", None), given.pop("type", None)
    if kind is not None and not isinstance(kind, str):
        raise ConfigurationError(f"{source}: type must be a str, got {type(kind).__name__}")
    if url is not None:
        if not isinstance(url, str):
            raise ConfigurationError(f"{source}: url must be a URL such as sqlite:///agents.db")
        wanted = from_url(url, find, f"{source}: url")
        if kind is not None and find(_type(kind, source)).name != wanted.backend:
            raise ConfigurationError(f"{source}: type is {kind!r} and url is for {wanted.backend!r}; give one of them")
        return wanted._replace(options={**wanted.options, **given}, texts=wanted.texts - given.keys(), source=source)
    if kind is None:
        raise ConfigurationError(f"{source}: there is no type; write type = 'sqlite', for example")
    return Wanted(_type(kind, source), given, source)


def _type(kind: str, source: str) -> str:
    """The name of a backend. A name with a colon or slash is refused: it is probably a URL."""
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_.-]{0,39}", kind):
        raise ConfigurationError(f"{source}: the type is no name of a backend, such as sqlite; a URL is given as url")
    return kind


def _from_surroundings(find: BackendFinder, environ: Mapping[str, str]) -> Wanted:
    variables = Variables(environ)
    variables.see_names()
    url = variables.get("KODE_STORE_URL")
    if url:
        return from_url(url, find, variables.source("KODE_STORE_URL"))
    common = [field.name for field in msgspec.structs.fields(StoreOptions)]
    kind = variables.get("KODE_STORE_TYPE")
    if kind:
        source = variables.source("KODE_STORE_TYPE")
        return variables.of_backend(_type(kind, source), find, common, source)
    stores = named_stores(environ)
    if "default" in stores:
        return _from_toml("default", *stores["default"], find)
    if stores:
        path = next(path for _, path in stores.values())
        raise ConfigurationError(
            f"{path} has no store named default, and none was chosen: name one of {', '.join(sorted(stores))}, "
            "or write [stores.default]"
        )
    empty = variables.empty()
    if empty:
        raise ConfigurationError(f"{empty} is set and empty, so that no store is chosen: give it a value, or unset it")
    other = variables.of_another(DEFAULT_BACKEND, find)
    if other:
        raise ConfigurationError(
            f"{other} is set, and nothing chooses its backend: set KODE_STORE_TYPE, too, or unset {other}"
        )
    return variables.of_backend(DEFAULT_BACKEND, find, common, "the default")


def _from_name(name: str, find: BackendFinder, environ: Mapping[str, str]) -> Wanted:
    """The store of that name, or the database in a file of that name."""
    stores = named_stores(environ)
    if name in stores:
        return _from_toml(name, *stores[name], find)
    if name.lower().endswith(DATABASE_SUFFIXES):
        return from_path(name, find)
    have = f"; did you mean {found!r}?" if (found := nearest(name, stores)) else ""
    if not have and name in registry.names():
        have = f"; {name} is a backend: give a URL, which begins with {name}:"
    raise ConfigurationError(
        f"the text given is neither a URL, which has a colon as in sqlite:///agents.db or json:///folder, nor the name "
        f"of a store of kode.toml{have} (stores there: {', '.join(sorted(stores)) or 'none'})"
    )


def _from_toml(name: str, store: Mapping[str, Any], path: Path, find: BackendFinder) -> Wanted:
    source = f"store {name!r} of {path}"
    options = {option: value for option, value in store.items() if option != "retention"}
    policies: tuple[RetentionPolicy, ...] = ()
    if "retention" in store:
        from kode_core.retention.policies import policies_of  # few stores have policies

        policies = policies_of(store["retention"], source)
    wanted = _from_mapping(options, find, source)
    backend = find(wanted.backend)
    paths = path_options(backend.options) | path_options(StoreOptions)
    resolved = {
        option: relative_to(path, value) if option in paths else value for option, value in wanted.options.items()
    }
    return wanted._replace(options=resolved, retention=policies)


# --- Checking ---------------------------------------------------------------------------------------------------------


@functools.cache
def _fields(options: type[msgspec.Struct]) -> Mapping[str, msgspec.structs.FieldInfo]:
    """The fields of a class of options by name: msgspec evaluates all annotations again in each call."""
    return {field.name: field for field in msgspec.structs.fields(options)}


def _checked(wanted: Wanted, backend: Backend) -> Configured:
    common = dict(_fields(StoreOptions))
    own = _fields(backend.options)
    if backend.gives == "store":
        for name in ("file_store_base_dir", *common):
            if name.startswith(("file_store", "encryption", "compression", "tenant")):
                common.pop(name, None)
    values: dict[str, Any] = {}
    for name, value in wanted.options.items():
        field = own.get(name) or common.get(name)
        if field is None:
            raise ConfigurationError(_unknown(wanted, backend, name, {*own, *common}))
        problem, values[name] = read_value(field, value, strict=name not in wanted.texts)
        if problem:
            source = wanted.sources.get(name, wanted.source)
            raise ConfigurationError(f"{source}: option {name} of backend {backend.name!r}: {problem}")
    missing = [name for name, field in own.items() if field.required and name not in values]
    if missing:
        raise ConfigurationError(f"{wanted.source}: backend {backend.name!r} needs the option {missing[0]!r}")
    try:
        store = StoreOptions(**{name: value for name, value in values.items() if name not in own})
        _check_tenant(store.tenant)
        options = backend.options(**{name: value for name, value in values.items() if name in own})
        if isinstance(options, ServerOptions):
            options.resolved()  # report problems of the connection options now
    except ConfigurationError as exc:
        problem = str(exc)
    except (ValueError, TypeError) as exc:  # from a plugin's own check, whose message may quote a value
        problem = f"the options of backend {backend.name!r} were refused ({type(exc).__name__})"
    else:
        return Configured(backend, options, store, wanted.source, wanted.retention)
    raise ConfigurationError(f"{wanted.source}: {problem}")


def _check_tenant(tenant: str | None) -> None:
    if tenant is not None:
        try:
            check_tenant(tenant)
        except InvalidArgumentError as exc:
            raise ConfigurationError(f"option tenant: {exc}") from None


def _unknown(wanted: Wanted, backend: Backend, name: object, known: set[str]) -> str:
    """The message about an unknown option.

    An option from a URL is not quoted: it may be the part of a password behind a '?'.
    """
    called = "that a parameter names" if name in wanted.texts else named(name)
    return f"{wanted.source}: backend {backend.name!r} has no option {called}{near(name, known)}"
