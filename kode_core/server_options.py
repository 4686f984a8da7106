"""The options of a backend that connects to a server: given beside each other, or as the mapping ``connection``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Self, TypeAlias

import msgspec

from kode_core.errors import ConfigurationError

__all__ = ["Millis", "Port", "Prefix", "Secret", "ServerOptions"]

Millis: TypeAlias = Annotated[int, msgspec.Meta(gt=0)]
Port: TypeAlias = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Prefix: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]*\Z", max_length=30)]
"""How the names begin of what a backend makes in a database."""
Secret: TypeAlias = Annotated[str, msgspec.Meta(extra={"secret": True})]
"""Never shown, not even in errors."""


class ServerOptions(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, repr_omit_defaults=True):
    """What the options of such backends have in common.

    Attributes:
        connection: these options as a mapping, or the URL.
        url_option: which option a ``connection`` that is a text stands for.
        hidden: options that are never shown: secrets, and objects that may hold some.
        objects: options that are objects of the caller's, which no mapping of plain values can hold.
    """

    connection: Any = None

    url_option: ClassVar[str]
    hidden: ClassVar[frozenset[str]]
    objects: ClassVar[frozenset[str]] = frozenset()

    def __repr__(self) -> str:
        """The options without what is secret."""
        hidden = self.hidden | self.objects | {"connection"}
        given = (f"{n}={'***' if n in hidden else repr(v)}" for n, v in self._given().items())
        return f"{type(self).__name__}({', '.join(given)})"

    def _given(self) -> dict[str, Any]:
        fields = ((field.name, getattr(self, field.name), field.default) for field in msgspec.structs.fields(self))
        return {name: value for name, value, default in fields if value is not default and value != default}

    def resolved(self) -> Self:
        """The options with those of ``connection`` in their places; what is given beside it wins.

        Raises:
            ConfigurationError: ``connection`` is no mapping of options.
        """
        given = self.connection
        if given is None:
            return self
        if isinstance(given, str):
            given = {self.url_option: given}
        if not isinstance(given, Mapping):
            raise ConfigurationError(f"connection must be a mapping of options or a URL, got {type(given).__name__}")
        values = {name: self._checked(name, value) for name, value in given.items() if value is not None}
        return type(self)(**{**values, **self._given(), "connection": None})

    @classmethod
    def _checked(cls, name: str, value: Any) -> Any:
        known = {f.name: f for f in msgspec.structs.fields(cls) if f.name not in cls.objects | {"connection"}}
        field = known.get(name)
        if field is None:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ConfigurationError(f"connection has no option {name!r}{hint}")
        try:
            return msgspec.convert(value, field.type)
        except msgspec.ValidationError as exc:
            raise ConfigurationError(f"connection: option {name}: {str(exc).replace('`', '')}") from None
