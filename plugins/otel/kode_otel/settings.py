"""The settings of the plugin: from ``[plugins.otel]`` of ``kode.toml``, and from the environment, which comes first."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Final, Literal, get_args

import msgspec

from kode_core.errors import ConfigurationError
from kode_core.ids import nearest
from kode_core.sources.files import plugin_table

__all__ = ["Agents", "Settings", "read_settings", "see_agents"]

Agents = Literal["plain", "hashed", "none"]
"""The form in which spans have the ids of agents."""

_WAYS: Final = get_args(Agents)
_SWITCH: Final = {
    "1": True,
    "true": True,
    "on": True,
    "yes": True,
    "0": False,
    "false": False,
    "off": False,
    "no": False,
}
_VARIABLES: Final = {"enabled": "KODE_OTEL_ENABLED", "agents": "KODE_OTEL_AGENTS"}
_KEY: Final = "KODE_OTEL_AGENT_KEY"
_LEAST_KEY: Final = 16


class Settings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings; without ``enabled`` no store is observed.

    Attributes:
        enabled: whether stores are observed.
        agents: the form of the ids of agents.
        agent_key: the key for ids that are hashed.
    """

    enabled: bool = False
    agents: Agents = "plain"
    agent_key: bytes | None = None

    def __repr__(self) -> str:
        """The settings without the key."""
        return f"Settings(enabled={self.enabled}, agents={self.agents!r})"


def read_settings(environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings of this process.

    Raises:
        ConfigurationError: a setting is unknown or wrong; the message says where. A key is never quoted.
    """
    found: dict[str, tuple[Any, str]] = {}
    table = plugin_table("otel", environ)
    if table is not None:
        for name, value in table[0].items():
            found[name] = value, f"{table[1]}: [plugins.otel]"
            if name not in _VARIABLES:
                raise ConfigurationError(f"{found[name][1]}: {_unknown(name)}")
    for name, variable in _VARIABLES.items():
        text = environ.get(variable)
        if text:
            value = _SWITCH.get(text.strip().lower(), text) if name == "enabled" else text
            found[name] = value, f"the variable {variable}"
    enabled, source = found.get("enabled", (False, ""))
    if type(enabled) is not bool:
        raise ConfigurationError(f"{source}: enabled must be true or false")
    agents, source = found.get("agents", ("plain", ""))
    key = environ.get(_KEY, "").encode("utf-8", "surrogateescape") or None
    try:
        see_agents(agents, key)
    except ConfigurationError as exc:
        raise ConfigurationError(f"{source or 'kode-otel'}: {exc}") from None
    return Settings(enabled=enabled, agents=agents, agent_key=key)


def see_agents(agents: object, key: object) -> None:
    """Check the form of ids, and the key that goes with it.

    Raises:
        ConfigurationError: the form is unknown, or hashed ids have no key, or too short a one.
    """
    if agents not in _WAYS or type(agents) is not str:
        raise ConfigurationError(f"agents must be one of {', '.join(_WAYS)}")
    if key is not None and type(key) is not bytes:
        raise ConfigurationError(f"the key of agents must be bytes, got {type(key).__name__}")
    if agents == "hashed" and (key is None or len(key) < _LEAST_KEY):
        raise ConfigurationError(
            f"hashed ids of agents need a key of {_LEAST_KEY} bytes or more, in the variable {_KEY} or as agent_key: "
            "without one, whoever knows an id can compute its hash"
        )


def _unknown(name: str) -> str:
    if "key" in name:
        return f"a key does not belong into this file; give it as the variable {_KEY}"
    near = nearest(name, list(_VARIABLES))
    return "there is no such option; " + (f"did you mean {near}?" if near else "known are enabled and agents")
