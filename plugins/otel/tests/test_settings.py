"""The entry point: installed it does nothing, and the settings are read with their mistakes told."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from kode_otel.plugin import plugin
from kode_otel.settings import read_settings

from kode_core import ConfigurationError
from kode_core.backends.memory.plugin import MemoryOptions

PROGRAM = """
import asyncio, json, sys
from kode_core import create_extended_store
from kode_core.store.context import Context

async def main():
    async with create_extended_store("memory:") as store:
        await store.exists("a")
        return store._context.call_metrics._observing is not None, "opentelemetry" in sys.modules

print(json.dumps(asyncio.run(main())))
"""


def observes(folder: Path, **variables: str) -> list[bool]:
    """Whether a program's stores are observed, and whether it has loaded OpenTelemetry."""
    environ = {"PATH": "", "PYTHONPATH": str(Path.cwd()), **variables}
    done = subprocess.run(
        (sys.executable, "-c", PROGRAM), cwd=folder, env=environ, capture_output=True, text=True, check=True, timeout=60
    )
    found: list[bool] = json.loads(done.stdout)
    return found


def test_installed_alone_it_does_nothing(tmp_path: Path) -> None:
    """A variable or a table switches it on; the variable comes first."""
    assert observes(tmp_path) == [False, False]
    assert observes(tmp_path, KODE_OTEL_ENABLED="1") == [True, True]
    (tmp_path / "kode.toml").write_text('[plugins.otel]\nenabled = true\nagents = "none"\n')
    assert observes(tmp_path) == [True, True]
    assert observes(tmp_path, KODE_OTEL_ENABLED="off") == [False, False]
    assert observes(tmp_path, KODE_DISABLE_PLUGINS="otel") == [False, False]


def test_settings(tmp_path: Path) -> None:
    """From the file, then from the environment."""
    path = tmp_path / "kode.toml"
    path.write_text('[plugins.otel]\nenabled = true\nagents = "none"\n[stores.default]\nurl = "memory:"\n')
    config = {"KODE_CONFIG": str(path)}
    settings = read_settings(config)
    assert (settings.enabled, settings.agents, settings.agent_key) == (True, "none", None)
    key = "0123456789abcdef"
    settings = read_settings({**config, "KODE_OTEL_AGENTS": "hashed", "KODE_OTEL_AGENT_KEY": key})
    assert (settings.agents, settings.agent_key) == ("hashed", key.encode())
    assert key not in repr(settings)
    assert not read_settings({**config, "KODE_OTEL_ENABLED": "false"}).enabled


@pytest.mark.parametrize(
    ("table", "variables", "told"),
    [
        ("enabeld = true", {}, "did you mean enabled"),
        ('agent_key = "c2VjcmV0"', {}, "KODE_OTEL_AGENT_KEY"),
        ('enabled = "yes"', {}, r"kode.toml: \[plugins.otel\]: enabled must be true or false"),
        ("agents = 3", {}, "agents must be one of plain, hashed, none"),
        ("", {"KODE_OTEL_ENABLED": "perhaps"}, "the variable KODE_OTEL_ENABLED: enabled must be true or false"),
        ("", {"KODE_OTEL_AGENTS": "hashed"}, "the variable KODE_OTEL_AGENTS: hashed ids of agents need a key"),
        ("", {"KODE_OTEL_AGENTS": "hashed", "KODE_OTEL_AGENT_KEY": "c2VjcmV0"}, "of 16 bytes or more"),
    ],
)
def test_mistakes(table: str, variables: dict[str, str], told: str, tmp_path: Path) -> None:
    """The message names the source and the cure, and never quotes a key."""
    path = tmp_path / "kode.toml"
    path.write_text(f"[plugins.otel]\n{table}\n")
    with pytest.raises(ConfigurationError, match=told) as info:
        read_settings({"KODE_CONFIG": str(path), **variables})
    assert "c2VjcmV0" not in str(info.value)


def test_the_file_has_other_tables(tmp_path: Path) -> None:
    """A key of the file that means nothing is still refused, and a table of plugins has to be one."""
    path = tmp_path / "kode.toml"
    for text, told in (("[plugin.otel]\n", "no key 'plugin'"), ("plugins = 3\n", r"written as \[plugins.NAME\]")):
        path.write_text(text)
        with pytest.raises(ConfigurationError, match=told):
            read_settings({"KODE_CONFIG": str(path)})


def test_a_mistake_is_told_when_a_store_opens(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hook raises it, which names the plugin."""
    monkeypatch.setenv("KODE_OTEL_AGENTS", "some")
    with pytest.raises(ConfigurationError, match="agents must be one of"):
        plugin.kode_store_observer(MemoryOptions())
