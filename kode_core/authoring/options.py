"""The options of a backend that connects to a server: given one by one, or in the mapping ``connection``."""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any, ClassVar, Final, Self, TypeAlias

import msgspec

from kode_core.authoring.values import named, near, read_value
from kode_core.errors import ConfigurationError

__all__ = [
    "Millis",
    "Password",
    "Port",
    "Prefix",
    "Secret",
    "ServerOptions",
    "password_of",
    "see_host",
    "see_password",
    "shown",
]

Millis: TypeAlias = Annotated[int, msgspec.Meta(gt=0, le=2**31 - 1)]
Port: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Prefix: TypeAlias = Annotated[
    str,
    msgspec.Meta(
        pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z",
        max_length=30,
        extra={"form": "letters of ASCII, digits and '_', and begin with no digit"},
    ),
]
"""The prefix of the names of everything that a backend creates in a database."""
Secret: TypeAlias = Annotated[str, msgspec.Meta(extra={"secret": True})]
"""Never shown, not even in errors."""
Password: TypeAlias = Annotated[Any, msgspec.Meta(extra={"secret": True})]
"""A password, or a function that returns one, async or not, for tokens that change. See :func:`password_of`."""

_HOST: Final = re.compile(r"[\w.-]+|\[?[0-9A-Fa-f]*:[0-9A-Fa-f:.]*(%\w+)?\]?|/[^@?:,]*")
"""A name, an address or the folder of a socket."""
_SHOWN: Final = re.compile(r"[\w$~.,:/\[\]%-]{1,255}")


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """The options that all such backends share.

    Attributes:
        connection: these options as a mapping, or the URL.
        url_option: the option that a ``connection`` given as text stands for.
        hidden: options that are never shown: secrets, and objects that may contain some.
        objects: options that are objects of the caller, which no mapping of plain values can contain.
    """

    connection: Any = None

    url_option: ClassVar[str]
    hidden: ClassVar[frozenset[str]]
    objects: ClassVar[frozenset[str]] = frozenset()

    def __repr__(self) -> str:
        """The options without their secrets."""
        hidden = self.hidden | self.objects | {"connection"}
        given = (f"{n}={'***' if n in hidden else repr(v)}" for n, v in self._given().items())
        return f"{type(self).__name__}({', '.join(given)})"

    def _given(self) -> dict[str, Any]:
        fields = ((field.name, getattr(self, field.name), field.default) for field in msgspec.structs.fields(self))
        return {name: value for name, value, default in fields if value is not default and value != default}

    def resolved(self) -> Self:
        """The options with the contents of ``connection`` filled in; an option that is also given directly wins.

        Raises:
            ConfigurationError: ``connection`` is not a mapping of options.
        """
        given = self.connection
        if given is None:
            return self
        if isinstance(given, str):
            given = {self.url_option: given}
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"connection must be a mapping of options or a URL, got {type(given).__name__}")
        if "connection" in given:
            raise ConfigurationError("connection cannot have a connection inside")
        values = {name: self._checked(name, value) for name, value in given.items() if value is not None}
        return type(self)(**{**values, **self._given(), "connection": None})

    @classmethod
    def _checked(cls, name: object, value: Any) -> Any:
        known = {f.name: f for f in msgspec.structs.fields(cls) if f.name not in cls.objects | {"connection"}}
        field = known.get(name) if isinstance(name, str) else None
        if field is None:
            raise ConfigurationError(f"connection has no option {named(name)}{near(name, known)}")
        problem, converted = read_value(field, value, strict=True)
        if problem:
            raise ConfigurationError(f"connection: option {name}: {problem}")
        return converted


def see_host(host: str | None) -> None:
    """Check that a host is a name, an address or a folder, and not a URL with a password in it.

    Raises:
        ConfigurationError: it is something else; it is not quoted.
    """
    if host is not None and not all(_HOST.fullmatch(one) for one in host.split(",")):
        raise ConfigurationError("host must be a name or an address alone, without port; a URL is given as a whole")


def shown(name: str | None) -> str:
    """A name for messages; a text that looks like more than a name is left out."""
    return name if name and _SHOWN.fullmatch(name) else "…" if name else ""


async def password_of(given: str | Callable[[], str | Awaitable[str]] | None) -> str | None:
    """The password; if it is given as a function, the function is called.

    Raises:
        ConfigurationError: the function failed or did not give a str. Its message is not repeated.
    """
    if given is None or isinstance(given, str):
        return given
    try:
        password: Any = given()
        if inspect.isawaitable(password):
            password = await password
    except Exception as exc:  # noqa: BLE001 - the caller's own code, whose message may quote a secret
        problem = f"the function that is given as password raised {type(exc).__name__}"
    else:
        if isinstance(password, str):
            return password
        problem = f"the function that is given as password must return a str, not {type(password).__name__}"
    raise ConfigurationError(problem)


def see_password(given: object) -> None:
    """Check that an option is a password or a function that returns one.

    Raises:
        ConfigurationError: it is neither.
    """
    if given is not None and not isinstance(given, str) and not callable(given):
        raise ConfigurationError(
            f"password must be a str, or a function that returns one, async or not; got {type(given).__name__}"
        )
