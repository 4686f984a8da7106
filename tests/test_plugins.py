"""Backends by entry point: found by name, loaded alone, and refused with words that help."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import textwrap
import types
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

from kode_core import (
    AmbiguousBackendError,
    BackendImportError,
    ConfigurationError,
    DisabledBackendError,
    IncompatibleBackendError,
    InvalidArgumentError,
    Message,
    StoreUnavailableError,
    UnknownBackendError,
    create_extended_store,
    create_store,
)
from kode_core.backends.memory.engine import MemoryOptions, open_memory
from kode_core.config import configure
from kode_core.engine import Engine
from kode_core.installed import FIRST_PARTY, InstalledPlugin, in_metadata
from kode_core.layers import Layer
from kode_core.operation import Operation
from kode_core.plugins import GROUP, PLUGIN_GROUP, Backend, Plugins, hookimpl, registry
from kode_core.sources.urls import from_url
from kode_core.store import EngineStore

Install = Callable[..., None]

PLUGIN = """
from kode_core.backends import memory
from kode_core.backends.memory.engine import MemoryOptions, open_memory
from kode_core.plugins import Backend, hookimpl

@hookimpl
def kode_store_backend():
    return Backend(name={name!r}, api={api}, options=MemoryOptions, open=open_memory)
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a distribution on the path, as pip would have: its metadata and its module."""

    def put(distribution: str, name: str, module: str, code: str, *, group: str = "kode.stores") -> None:
        site = tmp_path / f"site-{distribution}"
        info = site / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {module}\n")
        (site / f"{module}.py").write_text(textwrap.dedent(code))
        monkeypatch.syspath_prepend(str(site))

    return put


def test_installed_backends_are_listed_without_importing(install: Install) -> None:
    """Listing shows every backend with its distribution, and imports none."""
    install("kode-acme", "acme", "acme_one", "raise RuntimeError('must not be imported')")
    found = {backend.name: backend for backend in Plugins(()).installed()}
    assert {"memory", "json", "sqlite", "acme"} <= set(found)
    assert (found["acme"].distribution, found["acme"].version, found["acme"].value) == ("kode-acme", "1.0", "acme_one")


def test_folders_say_what_importlib_says(install: Install, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry points that are read from the folders of the path are those of importlib.metadata."""
    install("kode-acme", "acme", "acme_one", "raise RuntimeError('must not be imported')")
    install("kode-other", "other", "other_one", "", group="kode.plugins")
    shadowed = tmp_path / "older" / "kode_acme-0.9.dist-info"
    shadowed.mkdir(parents=True)
    (shadowed / "METADATA").write_text("Metadata-Version: 2.1\nName: kode-acme\nVersion: 0.9\n\nName: no\n")
    (shadowed / "entry_points.txt").write_text("[kode.stores]\nolder = acme_zero\n")
    with_extras = tmp_path / "older" / "Kode_More.egg-info"
    with_extras.mkdir()
    (with_extras / "PKG-INFO").write_text("Metadata-Version: 2.1\nName: Kode.More\nVersion: 2\n")
    lines = "[other]\nno = no\n\n[kode.stores]\n# more = no\nmore = more.part:hooks [extra]\n"
    (with_extras / "entry_points.txt").write_text(lines)
    monkeypatch.syspath_prepend(str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path / "older")])
    for group in (GROUP, PLUGIN_GROUP):
        found = in_metadata(group)
        asked = [(ep.name, ep.dist.name, ep.dist.version, ep.value) for ep in entry_points(group=group) if ep.dist]
        assert [(one.name, one.distribution, one.version, one.value) for one in found] == sorted(asked)
    assert {"acme", "more"} <= {one.name for one in in_metadata(GROUP)}
    assert "older" not in {one.name for one in in_metadata(GROUP)}


def test_an_archive_on_the_path_is_looked_into(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A distribution in a ZIP file, from which Python imports, too, is found as those in folders are."""
    with ZipFile(tmp_path / "acme.zip", "w") as archive:
        archive.writestr("kode_acme-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: kode-acme\nVersion: 1.0\n")
        archive.writestr("kode_acme-1.0.dist-info/entry_points.txt", "[kode.stores]\nacme = acme_zipped\n")
    monkeypatch.syspath_prepend(str(tmp_path / "acme.zip"))
    found = {one.name: one for one in in_metadata(GROUP)}
    assert (found["acme"].distribution, found["acme"].version) == ("kode-acme", "1.0")
    assert "sqlite" in found


def test_an_entry_point_may_name_an_attribute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands behind the colon is taken from the module; extras mean nothing."""
    (tmp_path / "acme_parts.py").write_text("class hooks:\n    inner = 'found'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for value, wanted in (
        ("acme_parts", "acme_parts"),
        ("acme_parts:hooks", "hooks"),
        ("acme_parts : hooks [x]", "hooks"),
    ):
        assert getattr(InstalledPlugin("a", "d", "1", value).load(), "__name__", None) == wanted
    assert InstalledPlugin("a", "d", "1", "acme_parts:hooks.inner").load() == "found"


async def test_a_backend_is_found_by_name(install: Install) -> None:
    """A backend of another distribution works like a built-in one."""
    install("kode-acme", "acme", "acme_two", PLUGIN.format(name="acme", api=1))
    async with create_extended_store("acme:?name=here") as store:
        await store.save_messages("a", [Message.user("hi")])
        assert len(await store.load_messages("a")) == 1


def test_a_first_party_backend_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A backend of ours that is not installed is answered with the command that installs it."""
    monkeypatch.setitem(FIRST_PARTY, "acme", "kode-acme")
    with pytest.raises(UnknownBackendError, match=r"'acme' is not installed; run: pip install kode-acme \(installed: "):
        Plugins(()).backend("acme")
    with pytest.raises(UnknownBackendError, match=r"^the URL: backend 'acme' is not installed; run: pip install kode-"):
        from_url("acme://user:hunter2@host/x", Plugins(()).backend)


def test_a_misspelt_backend() -> None:
    """A name that nobody provides is answered with the nearest one."""
    with pytest.raises(
        UnknownBackendError, match=r"no backend is named 'sqllite'; did you mean 'sqlite'\? \(installed: .*json, memory"
    ):
        Plugins(()).backend("sqllite")


def test_a_backend_that_does_not_import(install: Install) -> None:
    """A backend whose module fails is told with the reason, which stays attached; it is an ImportError, too."""
    install("kode-broken", "broken", "broken_one", "import motorx")
    with pytest.raises(
        BackendImportError, match=r"'broken' \(kode-broken 1.0\) is installed but .*: No module named 'motorx'"
    ) as caught:
        Plugins(()).backend("broken")
    assert isinstance(caught.value, ImportError)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_two_backends_of_one_name(install: Install) -> None:
    """Two distributions with one name are refused, both named, and neither imported."""
    install("kode-dup-a", "dup", "dup_a", "raise RuntimeError('must not be imported')")
    install("kode-dup-b", "dup", "dup_b", "raise RuntimeError('must not be imported')")
    with pytest.raises(AmbiguousBackendError, match=r"\(kode-dup-a 1.0, kode-dup-b 1.0\); uninstall all but one"):
        Plugins(()).backend("dup")


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("x = 1", "has no attribute 'kode_store_backend'"),
        (PLUGIN.format(name="other", api=1), "it is 'other' for API 1, wanted 'odd' for API 1"),
        (PLUGIN.format(name="odd", api=2), "it is 'odd' for API 2, wanted 'odd' for API 1"),
        ("from kode_core.plugins import hookimpl\n@hookimpl\ndef kode_store_backend(wrong): ...", "wrong"),
        ("from kode_core.plugins import hookimpl\n@hookimpl\ndef kode_store_bakend(): ...", "kode_store_bakend"),
        (
            "from kode_core.plugins import hookimpl\n@hookimpl\ndef kode_store_backend(): return 5",
            "returned int, not a Backend",
        ),
    ],
)
def test_a_backend_that_does_not_fit(install: Install, code: str, says: str) -> None:
    """A plugin with the wrong hook, name or generation is refused with the difference, again and again."""
    module = f"odd_{abs(hash(code)) % 10**8}"
    install("kode-odd", "odd", module, code)
    plugins = Plugins(())
    for _ in range(2):
        with pytest.raises(IncompatibleBackendError, match=says):
            plugins.backend("odd")


def test_a_disabled_backend(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """KODE_DISABLE_PLUGINS blocks by name, before anything is imported."""
    install("kode-off", "off", "off_one", "raise RuntimeError('must not be imported')")
    monkeypatch.setenv("KODE_DISABLE_PLUGINS", "mongo, off")
    with pytest.raises(DisabledBackendError, match="'off' is disabled by KODE_DISABLE_PLUGINS"):
        Plugins().backend("off")


async def test_a_backend_of_plain_stores(install: Install) -> None:
    """A backend may open a store that implements Store itself; as an extended store it is refused with a reason."""
    methods = "\n".join(f"    async def {name}(self, *args, **kwargs): ..." for name in STORE_METHODS)
    code = f"""
import msgspec
from kode_core.plugins import Backend, hookimpl

class Options(msgspec.Struct, frozen=True): pass
class Plain:
{methods}
async def open_plain(options): return Plain()
@hookimpl
def kode_store_backend():
    return Backend(name="plain", options=Options, open=open_plain, gives="store")
"""
    install("kode-plain", "plain", "plain_one", code)
    store = await create_store(type="plain")
    assert type(store).__name__ == "Plain"
    with pytest.raises(IncompatibleBackendError, match="has only the methods of Store; open it with create_store"):
        await create_extended_store(type="plain")
    with pytest.raises(ConfigurationError, match="no option 'file_store_base_dir'"):
        await create_store(type="plain", file_store_base_dir="x")


STORE_METHODS = [
    "save_messages",
    "append_messages",
    "load_messages",
    "save_tool_call_records",
    "upsert_tool_call_records",
    "load_tool_call_records",
    "save_turn",
    "save_todos",
    "load_todos",
    "append_event",
    "append_events",
    "read_events",
    "last_bookmark",
    "follow_events",
    "save_history_window",
    "load_history_windows",
    "save_compression_record",
    "load_compression_records",
    "save_recovered_file",
    "load_recovered_files",
    "save_media_cache",
    "load_media_cache",
    "save_snapshot",
    "load_snapshot",
    "list_snapshots",
    "save_info",
    "load_info",
    "exists",
    "delete",
    "list",
]


class _Tag(Layer):
    def __init__(self, inner: Engine, tag: str) -> None:
        super().__init__(inner)
        self.tag = tag

    def __repr__(self) -> str:
        return f"{self.tag}({self.inner!r})"


class _Adds:
    """A plugin that wraps every engine and hears of every operation."""

    def __init__(self, tag: str, order: int, heard: list[Any]) -> None:
        self.tag = tag
        self.kode_layer_order = order
        self.heard = heard

    @hookimpl
    def kode_engine_layers(self, options: Any) -> Any:
        return lambda engine: _Tag(engine, self.tag)

    @hookimpl
    def kode_operation(self, operation: Operation) -> None:
        about = operation.agent_id, operation.backend, operation.store
        self.heard.append((self.tag, operation.name, operation.error, *about))
        if operation.name == "load_todos":
            raise RuntimeError("an observer that fails")


async def test_layers_and_observers(caplog: pytest.LogCaptureFixture) -> None:
    """Layers are put on in their order; observers hear every call, and one that fails fails no call."""
    heard: list[Any] = []
    plugins = [_Adds("outer", 5, heard), _Adds("inner", -5, heard)]
    for plugin in plugins:
        registry.add(plugin, f"test-{plugin.tag}")
    try:
        async with create_extended_store("memory:") as store:
            assert repr(store) == "<EngineStore outer(inner(memory))>"
            await store.save_messages("a", [])
            await store.load_todos("a")
            with pytest.raises(ValueError, match="must not be empty"):
                await store.load_messages("")
            await store.query_sessions()
    finally:
        for plugin in plugins:
            registry.remove(plugin)
    place = "memory", "outer(inner(memory))"
    assert [said for tag, *said in heard if tag == "inner"] == [
        ["save_messages", None, "a", *place],
        ["load_todos", None, "a", *place],
        ["load_messages", "InvalidArgumentError", "", *place],
        ["query_sessions", None, None, *place],
    ]
    failures = sorted(record.getMessage() for record in caplog.records if "kode_operation" in record.getMessage())
    assert ["test-inner" in failures[0], "test-outer" in failures[1], len(failures)] == [True, True, 2]


class _Wordless(_Tag):
    """A foreign engine with a repr that fails."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr before the first call")


async def _wordless(options: MemoryOptions) -> Engine:
    return _Wordless(await open_memory(options), "wordless")


async def test_an_engine_without_a_repr(caplog: pytest.LogCaptureFixture) -> None:
    """The store asks for a repr only if it has observers, and a repr that fails does not fail a call."""
    async with EngineStore(lambda: _wordless(MemoryOptions())) as store:
        await store.save_messages("a", [])
    assert caplog.records == []
    heard: list[Operation] = []
    async with EngineStore(lambda: _wordless(MemoryOptions()), observers=[heard.append]) as store:
        await store.save_messages("a", [])
    assert [(operation.name, operation.backend, operation.store) for operation in heard] == [
        ("save_messages", "memory", "")
    ]
    assert [record.getMessage() for record in caplog.records] == [
        "the repr of the engine memory failed; observers get no place of the contents"
    ]


@pytest.mark.parametrize("error", [ValueError, SystemExit, asyncio.CancelledError])
async def test_an_observer_that_fails_fails_no_call(
    error: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """Not with an error that would end the program, nor with one that looks as if the caller had been cancelled."""

    def fails(operation: Operation) -> None:
        raise error

    async with EngineStore(lambda: open_memory(MemoryOptions()), observers=[fails]) as store:
        await store.append_messages("a", [Message.user("kept")])
        assert await store.load_messages("a") == [Message.user("kept")]
    plugin = types.SimpleNamespace(kode_operation=hookimpl(fails))
    registry.add(plugin, f"test-{error.__name__}")
    try:
        async with create_extended_store("memory:") as store:
            assert await store.load_messages("a") == []
    finally:
        registry.remove(plugin)
    assert [record.getMessage()[:29] for record in caplog.records] == [
        "the observer test_an_observer",
        "a kode_operation hook failed,",
    ]


@pytest.mark.parametrize("given", [None, 7, {"a": 1}, b"a", float("nan")])
async def test_an_agent_id_that_is_no_text_is_not_told(given: Any) -> None:
    """Observers have a str or None, whatever the caller gave."""
    heard: list[Operation] = []
    async with EngineStore(lambda: open_memory(MemoryOptions()), observers=[heard.append]) as store:
        for call in (store.load_messages(given), store.query_messages(agent_id=given), store.repair(given or 1)):
            with pytest.raises(InvalidArgumentError):
                await call
    assert [(operation.name, operation.agent_id) for operation in heard] == [
        ("load_messages", None),
        ("query_messages", None),
        ("repair", None),
    ]


def test_an_async_observer_is_refused() -> None:
    """An observer that would never run is refused when it is registered."""

    class Late:
        @hookimpl
        async def kode_operation(self, operation: Operation) -> None: ...

    with pytest.raises(IncompatibleBackendError, match="must be a plain function, not async"):
        Plugins(()).add(Late())


def test_a_broken_general_plugin_says_how_to_go_on(install: Install) -> None:
    """A plugin for all stores that does not load is an error that says how to do without it."""
    install("kode-audit", "audit", "audit_one", "import nothing_there", group="kode.plugins")
    with pytest.raises(BackendImportError, match="KODE_DISABLE_PLUGINS=audit"):
        Plugins(()).load_all()
    Plugins(("audit",)).load_all()


@pytest.mark.slow
def test_a_real_distribution_in_a_real_environment(tmp_path: Path) -> None:
    """A backend that pip installed into another folder is found, used, and gone when its folder is."""
    project = tmp_path / "project"
    (project / "kode_throwaway").mkdir(parents=True)
    (project / "kode_throwaway" / "__init__.py").write_text(PLUGIN.format(name="throwaway", api=1))
    (project / "pyproject.toml").write_text(
        textwrap.dedent("""
            [build-system]
            requires = ["hatchling"]
            build-backend = "hatchling.build"
            [project]
            name = "kode-throwaway"
            version = "0.3"
            [project.entry-points."kode.stores"]
            throwaway = "kode_throwaway"
        """)
    )
    target = tmp_path / "target"
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-build-isolation",
        "--target",
        str(target),
    ]
    subprocess.run([*pip, str(project)], check=True, timeout=300, capture_output=True)
    script = """
        import asyncio, sys
        from kode_core import create_extended_store, Message
        from kode_core.plugins import registry
        async def main():
            async with create_extended_store("throwaway:") as store:
                await store.save_messages("a", [Message.user("hi")])
                print(len(await store.load_messages("a")))
        print([b.version for b in registry.installed() if b.name == "throwaway"])
        asyncio.run(main())
    """
    env = {**os.environ, "PYTHONPATH": str(target)}
    run = [sys.executable, "-c", textwrap.dedent(script)]
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["['0.3']", "1"]
    without = subprocess.run(run, capture_output=True, text=True, timeout=60, check=False)
    assert "UnknownBackendError: the URL does not begin with a backend's name" in without.stderr


def test_a_plugin_with_a_wrong_hook_is_not_kept() -> None:
    """It is told what is wrong, and others go on working."""

    class Typo:
        @hookimpl
        def kode_operations(self, operation: object) -> None: ...

    plugins = Plugins(())
    with pytest.raises(IncompatibleBackendError, match="kode_operations"):
        plugins.add(Typo(), "typo")
    assert plugins.backend("json").name == "json"


def test_hook_calls_can_be_traced(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With KODE_TRACE_PLUGINS each call of a hook is told on stderr."""

    class Listener:
        @hookimpl
        def kode_operation(self, operation: object) -> None: ...

    monkeypatch.setenv("KODE_TRACE_PLUGINS", "1")
    plugins = Plugins(())
    plugins.add(Listener(), "listener")
    for observer in plugins.observers(MemoryOptions()):
        assert callable(observer)
        observer(None)  # type: ignore[arg-type]
    assert "kode_operation of listener" in capsys.readouterr().err


# --- Plugins that are added, and those that are chosen between --------------------------------------------------------


class _Acme:
    """A backend of one application."""

    def __init__(self, name: str = "acme", gives: str = "engine") -> None:
        self.name = name
        self.gives = gives

    @hookimpl
    def kode_store_backend(self) -> Backend:
        return Backend(name=self.name, options=MemoryOptions, open=open_memory, gives=self.gives)


async def test_a_backend_that_is_added_is_found() -> None:
    """registry.add makes a backend that URLs, mappings and variables find by its own name."""
    plugins = Plugins(())
    plugins.add(_Acme(), "an application")
    assert plugins.backend("acme").name == "acme"
    assert "acme" in plugins.names()
    for target, environ in (("acme:", {}), ({"type": "acme"}, {}), (None, {"KODE_STORE_TYPE": "acme"})):
        assert configure(target, {}, plugins.backend, environ).backend.name == "acme"
    acme = _Acme("acme-added")
    registry.add(acme)
    try:
        async with create_extended_store("acme-added:?name=x") as store:
            await store.save_messages("a", [Message.user("hi")])
        async with create_extended_store({"type": "acme-added", "name": "x"}) as store:
            assert len(await store.load_messages("a")) == 1
    finally:
        registry.remove(acme)
    with pytest.raises(UnknownBackendError):
        await create_extended_store({"type": "acme-added"})


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        (_Acme("memory"), "a backend named 'memory' is there already"),
        (_Acme("sqlite"), "a backend named 'sqlite' is there already"),
        (_Acme("UPPER CASE"), "its name must be lower case"),
        (_Acme("odd", "nothing"), "Backend.gives is 'nothing'"),
        (type("Wrong", (), {"kode_store_backend": lambda self: 5})(), "returned int, not a Backend"),
        (type("Fails", (), {"kode_store_backend": lambda self: 1 / 0})(), "division by zero"),
    ],
)
def test_an_added_backend_that_does_not_fit(plugin: Any, says: str) -> None:
    """It is refused with what is wrong, each time, and nothing of it stays."""
    plugins = Plugins(())
    for _ in range(2):
        with pytest.raises(IncompatibleBackendError, match=says):
            plugins.add(plugin)


def _added(**changes: Any) -> Any:
    """A plugin with a backend like that of memory, but for *changes*."""
    whole = {"name": "acme", "options": MemoryOptions, "open": open_memory, **changes}
    return type("Added", (), {"kode_store_backend": lambda self: Backend(**whole)})()


@pytest.mark.parametrize(
    ("plugin", "says"),
    [
        (_added(options=dict), "Backend.options is no class derived from msgspec.Struct"),
        (Backend(name="acme", options=MemoryOptions, open=open_memory), "plugin Backend does nothing: none of its"),
        (type("Unmarked", (), {"kode_operation": lambda self, operation: None})(), "marked with @hookimpl"),
    ],
)
def test_a_plugin_that_would_do_nothing(plugin: Any, says: str) -> None:
    """It is refused when it is added, and nothing of it stays."""
    plugins = Plugins(())
    for _ in range(2):
        with pytest.raises(IncompatibleBackendError, match=says):
            plugins.add(plugin)


def test_a_name_for_two_plugins() -> None:
    """The second one is refused in a sentence that quotes no object."""
    plugins = Plugins(())
    plugins.add(_added(), "mine")
    with pytest.raises(
        IncompatibleBackendError, match="^a plugin named 'mine' is there already; give yours another name$"
    ):
        plugins.add(_added(name="other"), "mine")


async def test_an_engine_that_is_none() -> None:
    """What a backend opens is refused with what it lacks, and a store with how to say that it is one."""

    async def nothing(options: MemoryOptions) -> object:
        return object()

    store = await create_extended_store("memory:")

    async def a_store(options: MemoryOptions) -> object:
        return store

    for opens, says in (
        (nothing, "opened a object, which is no Engine: it lacks .*commit.*name"),
        (a_store, r"opened a EngineStore, which is no Engine: .*Backend\(gives='store'\)"),
    ):
        plugin = _added(name="acme-none", open=opens)
        registry.add(plugin)
        try:
            with pytest.raises(IncompatibleBackendError, match=says):
                await create_extended_store("acme-none:")
        finally:
            registry.remove(plugin)
    await store.close()


def test_the_same_backend_twice() -> None:
    """A second one of that name is refused, and the first goes on."""
    plugins = Plugins(())
    plugins.add(_Acme())
    with pytest.raises(IncompatibleBackendError, match="'acme' is there already"):
        plugins.add(_Acme())
    assert plugins.backend("acme").name == "acme"


@pytest.mark.parametrize("disabled", ["kode-dup-b", "kode_dup.B", "json, kode-dup-b"])
def test_a_distribution_is_disabled(install: Install, monkeypatch: pytest.MonkeyPatch, disabled: str) -> None:
    """KODE_DISABLE_PLUGINS names distributions, too, and so chooses between two backends of one name."""
    install("kode-dup-a", "duo", f"duo_a_{len(disabled)}", PLUGIN.format(name="duo", api=1))
    install("kode-dup-b", "duo", f"duo_b_{len(disabled)}", "raise RuntimeError('must not be imported')")
    with pytest.raises(AmbiguousBackendError, match=r"or disable the others, as in KODE_DISABLE_PLUGINS=kode-dup-a"):
        Plugins(()).backend("duo")
    monkeypatch.setenv("KODE_DISABLE_PLUGINS", disabled)
    assert Plugins().backend("duo").name == "duo"
    monkeypatch.setenv("KODE_DISABLE_PLUGINS", "kode-dup-a,kode-dup-b")
    with pytest.raises(DisabledBackendError, match="'duo' is disabled"):
        Plugins().backend("duo")


@pytest.mark.parametrize(
    ("disabled", "says"),
    [("postgre", "did you mean 'postgres'"), ("kode-postgre", "did you mean 'kode-postgres'"), ("zzz", "known are ")],
)
def test_an_unknown_name_is_not_disabled_in_silence(monkeypatch: pytest.MonkeyPatch, disabled: str, says: str) -> None:
    """A name in KODE_DISABLE_PLUGINS that is no plugin is an error with the nearest, as soon as plugins are used."""
    monkeypatch.setenv("KODE_DISABLE_PLUGINS", disabled)
    plugins = Plugins()
    for call in (lambda: plugins.backend("memory"), plugins.load_all, plugins.see_disabled):
        with pytest.raises(UnknownBackendError, match=f"KODE_DISABLE_PLUGINS names '{disabled}', which.*{says}"):
            call()


@pytest.mark.parametrize("late", [False, True])
async def test_a_layer_that_fails(late: bool) -> None:
    """A plugin whose layer cannot be made fails the opening with an error of the library, and leaves nothing open."""

    class Fails:
        @hookimpl
        def kode_engine_layers(self, options: Any) -> Any:
            return (lambda engine: 1 / 0) if late else 1 / 0

    plugin = Fails()
    registry.add(plugin, "fails")
    try:
        with pytest.raises(IncompatibleBackendError, match="ZeroDivisionError"):
            await create_extended_store("sqlite:///x.db")
    finally:
        registry.remove(plugin)


async def test_a_backend_whose_driver_fails() -> None:
    """What a driver says when a backend of somebody else's lets it through is not repeated: it may quote a password."""

    class Leaks:
        @hookimpl
        def kode_store_backend(self) -> Backend:
            async def open_leaky(options: Any) -> Any:
                raise ValueError("invalid DSN: leaky://user:Tr0ub4dor@host")

            return Backend(name="leaky", options=MemoryOptions, open=open_leaky)

    leaky = Leaks()
    registry.add(leaky)
    with pytest.raises(
        StoreUnavailableError, match="'leaky' could not be opened: ValueError at .*test_plugins.py"
    ) as caught:
        await create_extended_store("leaky:")
    registry.remove(leaky)
    error: BaseException | None = caught.value
    while error is not None:
        assert "Tr0ub4dor" not in str(error)
        error = error.__cause__ or error.__context__


@pytest.mark.parametrize("archive", [False, True])
def test_a_leftover_of_pip_is_no_distribution(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, archive: bool) -> None:
    """A folder that pip moved away before it replaced the distribution counts as little as pip counts it."""
    left = tmp_path / "~ode_sqlite-0.9.dist-info"
    left.mkdir()
    (left / "METADATA").write_text("Metadata-Version: 2.1\nName: kode-sqlite\nVersion: 0.9\n")
    (left / "entry_points.txt").write_text("[kode.stores]\nsqlite = kode_sqlite.plugin\nleft = kode_left\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    if archive:  # then importlib.metadata is asked
        with ZipFile(tmp_path / "some.zip", "w") as file:
            file.writestr("some.py", "")
        monkeypatch.syspath_prepend(str(tmp_path / "some.zip"))
    names = [one.name for one in in_metadata(GROUP)]
    assert (names.count("sqlite"), names.count("left")) == (1, 0)
    assert Plugins(()).backend("sqlite").name == "sqlite"


def test_a_system_without_descriptors_is_no_missing_plugin() -> None:
    """Where the system opens no more files, the error says so, and not that something has to be installed."""
    code = """
import os, resource, sys
from kode_core import StoreUnavailableError
from kode_core.plugins import Plugins
for part in ("kode_core.backends.memory.engine", *sys.argv[1:]): __import__(part)
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
taken = []
try:
    while True: taken.append(os.open(os.devnull, os.O_RDONLY))
except OSError: pass
plugins = Plugins(())
for call in (lambda: plugins.backend("sqlite"), plugins.load_all, plugins.names):
    try: call()
    except StoreUnavailableError as exc: print(exc.retry.value, "Too many open files" in str(exc))
for one in taken: os.close(one)
print(plugins.backend("sqlite").name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == ["later True"] * 3 + ["sqlite"], done.stderr


def test_a_path_that_cannot_be_one_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """An entry of the path with a zero byte, or of a folder that is none, hides no plugin."""
    monkeypatch.setattr(sys, "path", ["with\0zero", "/dev/null/none", *sys.path])
    assert "sqlite" in {one.name for one in in_metadata(GROUP)}


async def test_a_plugin_that_ends_the_program_is_an_error(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    """sys.exit in a plugin ends the call with an error that names it; an interrupt of the user's goes through."""
    install("kode-acme", "acme", "acme_exits", "import sys; sys.exit('no licence')")
    install("kode-stop", "stop", "acme_stops", "raise KeyboardInterrupt")
    with pytest.raises(BackendImportError, match=r"'acme' \(kode-acme 1.0\) .* by sys.exit\(no licence\)"):
        Plugins(()).backend("acme")
    with pytest.raises(KeyboardInterrupt):
        Plugins(()).backend("stop")
    install("kode-ext", "ext", "acme_ext", "import sys; sys.exit(3)", group="kode.plugins")
    with pytest.raises(BackendImportError, match=r"plugin 'ext' .* KODE_DISABLE_PLUGINS=ext"):
        Plugins(()).load_all()
    Plugins(["ext"]).load_all()

    class Exits:
        @hookimpl
        def kode_engine_layers(self, options: Any) -> Any:
            sys.exit(1)

    plugins = Plugins(())
    plugins.add(Exits())
    with pytest.raises(IncompatibleBackendError, match="SystemExit"):
        plugins.layers(MemoryOptions())


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        (None, "a layer around memory returned None; return the engine"),
        (5, "layer around memory gives a int, .* commit"),
        ("engine", "layer around memory gives a str, .* commit"),
    ],
)
async def test_a_layer_that_gives_no_engine_is_refused_at_once(
    given: object, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store is not opened over what a layer gives in the place of an engine."""
    plugins = Plugins(())

    class Forgets:
        @hookimpl
        def kode_engine_layers(self, options: Any) -> Any:
            return lambda engine: given

    plugins.add(Forgets())
    monkeypatch.setattr("kode_core.factory.registry", plugins)
    with pytest.raises(IncompatibleBackendError, match=problem):
        await create_extended_store("memory:")
