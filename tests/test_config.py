"""Which store is meant: arguments, URL, environment, kode.toml, default; and what is said when something is wrong."""

from __future__ import annotations

import errno
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from kode_core import ConfigurationError
from kode_core.config import Configured, StoreOptions, configure
from kode_core.plugins import registry
from kode_core.sources import files


def resolve(target: Any = None, environ: Mapping[str, str] | None = None, **options: Any) -> Configured:
    return configure(target, options, registry.backend, environ or {})


def options_of(configured: Configured) -> dict[str, Any]:
    return {**msgspec.structs.asdict(configured.options), **msgspec.structs.asdict(configured.store)}


def test_the_default_is_sqlite() -> None:
    """With no configuration at all the store is SQLite at ./data/agents.db."""
    found = resolve()
    assert (found.backend.name, options_of(found)["db_path"], found.source) == (
        "sqlite",
        "./data/agents.db",
        "the default",
    )
    assert found.store == StoreOptions()


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///agents.db", "agents.db"),
        ("sqlite:///data/agents.db", "data/agents.db"),
        ("sqlite:////var/lib/agents.db", "/var/lib/agents.db"),
        ("sqlite:./agents.db", "./agents.db"),
        ("sqlite:///a%20b.db", "a b.db"),
        ("sqlite:///:memory:", ":memory:"),
        ("sqlite://", "./data/agents.db"),
    ],
)
def test_urls_of_files(url: str, path: str) -> None:
    """A URL names a relative path with three slashes, an absolute one with four."""
    assert options_of(resolve(url))["db_path"] == path


def test_urls_carry_options() -> None:
    """Options of the backend and of the store stand in the query of a URL, as text of their type."""
    found = options_of(
        resolve("sqlite:///a.db?durability=fast&busy_timeout_ms=250&file_store_base_dir=./f&timeout_ms=9")
    )
    assert (found["durability"], found["busy_timeout_ms"], found["file_store_base_dir"], found["timeout_ms"]) == (
        "fast",
        250,
        "./f",
        9,
    )
    assert options_of(resolve("memory://shared"))["name"] == "shared"
    assert options_of(resolve("json:///here"))["base_dir"] == "here"


def test_a_mapping_or_keywords() -> None:
    """A mapping, or keyword options with type or url, say everything; keywords come on top."""
    for found in (
        resolve({"type": "sqlite", "db_path": "x.db"}),
        resolve(type="sqlite", db_path="x.db"),
        resolve({"url": "sqlite:///y.db"}, db_path="x.db"),
        resolve("sqlite:///y.db", db_path="x.db"),
        resolve(url="sqlite:///x.db"),
    ):
        assert (found.backend.name, options_of(found)["db_path"]) == ("sqlite", "x.db")
    assert options_of(resolve(db_path="z.db"))["db_path"] == "z.db"


def test_the_sdks_variables() -> None:
    """The variables of the KODE SDK's guide select and configure the store."""
    env = {"KODE_STORE_TYPE": "sqlite", "KODE_SQLITE_PATH": "./d/agents.db", "KODE_STORE_PATH": "./d/store"}
    found = options_of(resolve(environ=env))
    assert (found["db_path"], found["file_store_base_dir"]) == ("./d/agents.db", "./d/store")
    found_json = resolve(environ={"KODE_STORE_TYPE": "json", "KODE_STORE_PATH": "./d/store"})
    assert (found_json.backend.name, options_of(found_json)["base_dir"]) == ("json", "./d/store")


def test_every_option_has_a_variable() -> None:
    """KODE_<BACKEND>_<OPTION> sets any option; a variable for no option is refused, with the nearest."""
    env = {"KODE_SQLITE_DURABILITY": "fast", "KODE_SQLITE_READERS": "2", "KODE_SQLITE_TIMEOUT_MS": "5"}
    found = options_of(resolve(environ=env))
    assert (found["durability"], found["readers"], found["timeout_ms"]) == ("fast", 2, 5)
    with pytest.raises(
        ConfigurationError, match="KODE_SQLITE_DURABILTY is for no option.*did you mean 'KODE_SQLITE_DURABILITY'"
    ):
        resolve(environ={"KODE_SQLITE_DURABILTY": "fast"})
    with pytest.raises(ConfigurationError, match="option readers of backend 'sqlite': Expected int, got str"):
        resolve(environ={"KODE_SQLITE_READERS": "many"})


def test_the_url_variable_goes_before_the_type() -> None:
    """KODE_STORE_URL goes before KODE_STORE_TYPE, and arguments before both."""
    env = {"KODE_STORE_URL": "sqlite:///url.db", "KODE_STORE_TYPE": "json"}
    assert options_of(resolve(environ=env))["db_path"] == "url.db"
    assert options_of(resolve("sqlite:///argument.db", environ=env))["db_path"] == "argument.db"
    assert options_of(resolve(environ=env, durability="fast"))["durability"] == "fast"


def test_the_environment_leaves_named_stores_alone() -> None:
    """A store that the program names itself is not changed by the environment."""
    env = {"KODE_STORE_PATH": "./files", "KODE_SQLITE_DURABILITY": "fast"}
    found = options_of(resolve("sqlite:///x.db", environ=env))
    assert (found["file_store_base_dir"], found["durability"]) == (None, "full")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_stores_of_kode_toml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """kode.toml names stores; default is used when nothing else is said; paths are relative to the file."""
    write(
        tmp_path / "kode.toml",
        '[stores.default]\ntype = "sqlite"\ndb_path = "here/agents.db"\n'
        '[stores.archive]\nurl = "sqlite:///old.db?durability=fast"\ntimeout_ms = 7\n'
        '[stores.abs]\ntype = "json"\nbase_dir = "/var/kode"\n',
    )
    (tmp_path / "sub" / "deeper").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "sub" / "deeper")
    assert options_of(resolve())["db_path"] == str(tmp_path / "here" / "agents.db")
    archive = options_of(resolve("archive"))
    assert (archive["db_path"], archive["durability"], archive["timeout_ms"]) == (str(tmp_path / "old.db"), "fast", 7)
    assert options_of(resolve("abs"))["base_dir"] == "/var/kode"
    assert options_of(resolve(environ={"KODE_STORE_TYPE": "sqlite"}))["db_path"] == "./data/agents.db"
    with pytest.raises(ConfigurationError, match=r"neither a URL.*did you mean 'archive'.*abs, archive, default"):
        resolve("archiv")


def test_stores_of_pyproject(tmp_path: Path) -> None:
    """[tool.kode] of pyproject.toml does the same; KODE_CONFIG names another file."""
    write(tmp_path / "pyproject.toml", '[tool.kode.stores.default]\ntype = "memory"\n')
    assert resolve().backend.name == "memory"
    other = write(tmp_path / "elsewhere.toml", '[stores.default]\ntype = "json"\nbase_dir = "x"\n')
    assert resolve(environ={"KODE_CONFIG": str(other)}).backend.name == "json"
    with pytest.raises(ConfigurationError, match="KODE_CONFIG has to be the path of a TOML file"):
        resolve(environ={"KODE_CONFIG": "nothing.toml"})


@pytest.mark.parametrize(("file", "table", "each"), [("kode.toml", "", 1), ("pyproject.toml", "tool.kode.", 2)])
def test_a_file_of_stores_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, table: str, each: int
) -> None:
    """Only a file that changed is read again, and one that changed a moment ago each time; no caller gets a table that
    another one can change.
    """
    reads: list[str] = []
    read = tomllib.loads
    monkeypatch.setattr(tomllib, "loads", lambda text: reads.append(text) or read(text))
    text = f'[{table}stores.default]\ntype = "sqlite"\ndb_path = "a.db"\n[{table}plugins.mine]\nnames = ["x"]\n'
    write(tmp_path / file, text)
    for _ in range(2):
        assert options_of(resolve())["db_path"] == str(tmp_path / "a.db")
    assert len(reads) == 2 * each
    monkeypatch.setattr(files, "_SETTLED_NS", 0)
    for _ in range(20):
        assert options_of(resolve())["db_path"] == str(tmp_path / "a.db")
        found = files.plugin_table("mine", {})
        assert found is not None and found[0] == {"names": ["x"]}
        found[0]["names"].append("y")
    assert len(reads) == 3 * each
    write(tmp_path / file, text.replace("a.db", "other.db"))
    assert options_of(resolve())["db_path"] == str(tmp_path / "other.db")
    (tmp_path / file).unlink()
    assert options_of(resolve())["db_path"] == "./data/agents.db"


def test_a_file_that_cannot_be_read_now_is_read_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process may have no descriptor left for a moment; nothing is remembered of that."""
    write(tmp_path / "pyproject.toml", '[tool.kode.stores.default]\ntype = "memory"\n')
    monkeypatch.setattr(files, "_SETTLED_NS", 0)

    def fail(*_: Any, **__: Any) -> str:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as without:
        without.setattr(Path, "read_text", fail)
        assert resolve().backend.name == "sqlite"
    assert resolve().backend.name == "memory"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[stores.default]\ndb_path = 'x'\n", "there is no type; write type = 'sqlite'"),
        ("[stores.default\n", "is not TOML"),
        ("[store.default]\ntype = 'sqlite'\n", r"there is no key 'store'; stores are written as \[stores.NAME\]"),
        ("[stores.default]\ntype = 'sqlite'\ndbpath = 'x'\n", "has no option 'dbpath'; did you mean 'db_path'"),
        (
            "[stores.default]\ntype = 'sqlite'\nreaders = '4'\n",
            "option readers of backend 'sqlite': Expected int, got str",
        ),
        ("[stores.default]\ntype = 'sqlite'\nurl = 'json:///x'\n", "type is 'sqlite' and url is for 'json'"),
    ],
)
def test_mistakes_in_kode_toml(tmp_path: Path, text: str, says: str) -> None:
    """A mistake in the file is told with the file and what to write."""
    write(tmp_path / "kode.toml", text)
    with pytest.raises(ConfigurationError, match=says) as caught:
        resolve()
    assert "kode.toml" in str(caught.value)


@pytest.mark.parametrize(
    ("target", "options", "says"),
    [
        (
            "sqlite:///x.db",
            {"durabilty": "fast"},
            "the URL sqlite:///x.db: backend 'sqlite' has no option 'durabilty'; did you mean 'durability'",
        ),
        ("mongodb://u:secret@[::1/db", {}, "the URL has a host or port that cannot be read"),
        ("sqlite:///x.db?durability=slow", {}, "option durability of backend 'sqlite': it must be one of full, fast"),
        ("sqlite:///x.db", {"readers": 0}, "option readers of backend 'sqlite': Expected int >= 1"),
        ("sqlite://localhost/x.db", {}, "names a host, and sqlite has none: write sqlite:///relative/path"),
        ({"db_path": "x"}, {}, "the arguments: there is no type"),
        ({"type": 5}, {}, "type must be a str, got int"),
        (5, {}, "a store is given as a URL, a name, a Path or a mapping, not as int"),
        ("nowhere", {}, "the text given is neither a URL, which has a colon"),
        ("memory", {}, "memory is a backend: give a URL, which begins with memory:"),
        ("sqlite:///x.db", {"db_path": ""}, "option db_path of backend 'sqlite': Expected str of length >= 1"),
    ],
)
def test_mistakes_in_arguments(target: Any, options: dict[str, Any], says: str) -> None:
    """A mistake is told with where it is and what is nearest or right."""
    with pytest.raises(ConfigurationError) as caught:
        resolve(target, **options)
    assert says in str(caught.value)


def test_no_secret_in_errors() -> None:
    """The user and password of a URL never show in an error."""
    with pytest.raises(ConfigurationError) as caught:
        resolve("sqlite://me:hunter2@/x.db")
    assert "hunter2" not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        resolve("json:////x?password=hunter2")
    assert "hunter2" not in str(caught.value)


def test_what_is_wrong_is_named() -> None:
    """The variable that is wrong is named, and what an option may be."""
    environ = {"KODE_STORE_TYPE": "sqlite", "KODE_SQLITE_READERS": "many"}
    with pytest.raises(ConfigurationError, match="^KODE_SQLITE_READERS: option readers"):
        configure(None, {}, registry.backend, environ)
    with pytest.raises(ConfigurationError, match="it must be one of full, fast"):
        configure("sqlite:///a.db?durability=slow", {}, registry.backend, {})
    with pytest.raises(ConfigurationError, match="write %23 in a path"):
        configure("sqlite:///a#1.db", {}, registry.backend, {})
    with pytest.raises(ConfigurationError, match="gives the option 'readers' more than once"):
        configure("sqlite:///a.db?readers=1&readers=2", {}, registry.backend, {})


@pytest.mark.parametrize("url", ["sqlite:agents.db", "sqlite:///agents.db", "json:./store", "memory:"])
def test_a_source_is_a_url_that_works(url: str) -> None:
    """The URL that a source quotes is the one that was given."""
    assert configure(url, {}, registry.backend, {}).source == f"the URL {url}"


@pytest.mark.parametrize("name", ["sqlite", "json"])
def test_one_slash_is_neither_absolute_nor_relative(name: str) -> None:
    """Other URLs with one slash are absolute: here a store would have been made below the working directory."""
    said = rf"^the URL has one '/' behind the colon: write {name}:////… for an absolute path"
    with pytest.raises(ConfigurationError, match=said):
        configure(f"{name}:/var/lib/agents", {}, registry.backend, {})


@pytest.mark.parametrize("name", ["KODE_STORE_URL", "KODE_STORE_TYPE", "KODE_STORE_URL_FILE"])
def test_an_empty_variable_chooses_no_default(name: str) -> None:
    """It was meant to choose a store; where something else chooses one, it is as if it were not set."""
    with pytest.raises(ConfigurationError, match=f"^{name} is set and empty"):
        configure(None, {}, registry.backend, {name: ""})
    other = {"KODE_STORE_TYPE": "memory"} if "URL" in name else {"KODE_STORE_URL": "memory:"}
    assert configure(None, {}, registry.backend, {name: "", **other}).backend.name == "memory"


def test_paths_may_be_paths() -> None:
    """Options that are paths take pathlib's."""
    assert (
        configure({"type": "sqlite", "db_path": Path("x/a.db")}, {}, registry.backend, {}).options.db_path == "x/a.db"
    )


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://u:s3cret@h:5433/d", "the URL postgres://h:5433/d"),
        ("mongodb://u:s3cret@a:1,b:2/d?replicaSet=r", "the URL mongodb://a:1,b:2/d"),
    ],
)
def test_a_source_names_the_server_and_no_password(url: str, shown: str) -> None:
    """With its port, where there is one."""
    assert configure(url, {}, registry.backend, {}).source == shown


# --- What newcomers and upgraders meet --------------------------------------------------------------------------------


def service(name: str) -> dict[str, str]:
    """What Kubernetes injects for a service, and Docker for a link."""
    prefix, address = name.upper().replace("-", "_"), "tcp://10.0.0.7:5432"
    return {
        f"{prefix}_SERVICE_HOST": "10.0.0.7",
        f"{prefix}_SERVICE_PORT": "5432",
        f"{prefix}_SERVICE_PORT_SQL": "5432",
        f"{prefix}_PORT": address,
        f"{prefix}_PORT_5432_TCP": address,
        f"{prefix}_PORT_5432_TCP_PROTO": "tcp",
        f"{prefix}_PORT_5432_TCP_PORT": "5432",
        f"{prefix}_PORT_5432_TCP_ADDR": "10.0.0.7",
        f"{prefix}_NAME": "/app/db",
        f"{prefix}_ENV_POSTGRES_PASSWORD": "of the link",
    }


SERVICES = ("postgres", "mongodb", "kode", *(f"kode-{n}" for n in ("store", "sqlite", "postgres", "mongo", "memory")))


@pytest.mark.parametrize("kind", ["sqlite", "json", "memory", "postgres", "mongo", "dynamodb"])
@pytest.mark.parametrize("name", SERVICES)
def test_variables_of_services_are_nobodys(kind: str, name: str) -> None:
    """Variables that Kubernetes injects for a service are for no store, whatever the service's name."""
    found = resolve(environ={"KODE_STORE_TYPE": kind, **service(name)})
    assert options_of(found) == options_of(resolve(environ={"KODE_STORE_TYPE": kind}))
    assert resolve(environ=service(name)).source == "the default"


def test_a_port_of_ones_own_among_those_of_a_service() -> None:
    """A port that is a number is meant, also where a service of that name is."""
    environ = {"KODE_STORE_TYPE": "postgres", "KODE_POSTGRES_PORT": "6000", **service("postgres")}
    assert options_of(resolve(environ=environ))["port"] == 6000


@pytest.mark.parametrize(
    ("variable", "option", "kind"),
    [
        ("POSTGRES_PASSWORD", "password", "postgres"),
        ("KODE_POSTGRES_PASSWORD", "password", "postgres"),
        ("KODE_POSTGRES_DSN", "dsn", "postgres"),
        ("MONGODB_URI", "uri", "mongo"),
        ("KODE_MONGO_PASSWORD", "password", "mongo"),
        ("KODE_DYNAMODB_SECRET_ACCESS_KEY", "secret_access_key", "dynamodb"),
        ("KODE_SQLITE_PATH", "db_path", "sqlite"),
    ],
)
def test_variables_as_files(tmp_path: Path, variable: str, option: str, kind: str) -> None:
    """A variable with _FILE names the file that has the value, as secrets of Docker and Kubernetes do."""
    value = {"dsn": "postgres://u:p@h/d", "uri": "mongodb://u:p@h/d"}.get(option, "s3cret ")
    file = write(tmp_path / "secrets" / "one", f"{value}\n")
    environ = {"KODE_STORE_TYPE": kind, f"{variable}_FILE": str(file)}
    assert options_of(resolve(environ=environ))[option] == value
    with pytest.raises(ConfigurationError, match=f"{variable} and {variable}_FILE are both set"):
        resolve(environ={**environ, variable: "x"})
    for content in (b"\xff\xfe", b"", b"x" * 100_000):
        file.write_bytes(content)
        with pytest.raises(ConfigurationError, match=f"{variable}_FILE"):
            resolve(environ=environ)
    for path in ("nowhere", "nul\0", str(tmp_path), "x" * 5000):
        with pytest.raises(ConfigurationError, match=f"{variable}_FILE has to be the path of a file") as caught:
            resolve(environ={**environ, f"{variable}_FILE": path})
        assert path not in str(caught.value)


def test_the_url_as_a_file(tmp_path: Path) -> None:
    """The whole store may be in a file, too."""
    file = write(tmp_path / "url", "sqlite:///from-a-file.db\n")
    found = resolve(environ={"KODE_STORE_URL_FILE": str(file)})
    assert (options_of(found)["db_path"], found.source) == ("from-a-file.db", "KODE_STORE_URL_FILE")


@pytest.mark.parametrize(
    ("variable", "nearest"),
    [
        ("KODE_STORE_UR", "KODE_STORE_URL"),
        ("KODE_STOR_URL", "KODE_STORE_URL"),
        ("KODE_STORE_TYP", "KODE_STORE_TYPE"),
        ("KODE_STORE_DIR", "KODE_STORE_URL|known are"),
        ("KODE_STORE_BACKEND", "known are"),
        ("KODE_CONFIG_FILE", "KODE_CONFIG"),
        ("KODE_DISABLE_PLUGIN", "KODE_DISABLE_PLUGINS"),
    ],
)
def test_a_misspelled_variable(variable: str, nearest: str) -> None:
    """A variable that is nearly one of ours is an error: the store would be another one than was meant."""
    with pytest.raises(ConfigurationError, match=f"{variable} means nothing here; .*({nearest})"):
        resolve(environ={variable: "postgres://h/d"})
    assert resolve("memory:", environ={variable: "postgres://h/d"}).backend.name == "memory"


def test_variables_of_others(caplog: pytest.LogCaptureFixture) -> None:
    """Variables of tests and tools are known, and those of other programs are told in the log."""
    known = {"KODE_TEST_POSTGRES_DSN": "x", "KODE_TRACE_PLUGINS": "1", "KODE_DISABLE_PLUGINS": "", "KODE_DEBUG": "1"}
    assert resolve(environ={**known, "KODE_KILL_MATRIX": "1"}).source == "the default"
    assert caplog.text == ""
    assert resolve(environ={"KODE_API_KEY": "sk-123"}).source == "the default"
    assert "KODE_API_KEY means nothing" in caplog.text
    assert "sk-123" not in caplog.text


def test_options_of_a_backend_that_nothing_chooses() -> None:
    """Variables of a server without the one that chooses it are an error, and not a database on this disk."""
    with pytest.raises(ConfigurationError, match="KODE_POSTGRES_HOST is set, and nothing chooses its backend"):
        resolve(environ={"KODE_POSTGRES_HOST": "db"})
    with pytest.raises(ConfigurationError, match="KODE_MONGO_URI_FILE is set"):
        resolve(environ={"KODE_MONGO_URI_FILE": "/run/secrets/uri"})
    with pytest.raises(ConfigurationError, match="KODE_POSTGRES_PASSWOR is set"):
        resolve(environ={"KODE_POSTGRES_PASSWOR": "pw"})
    assert resolve(environ={"KODE_POSTGRES_IMAGE": "postgres:17"}).backend.name == "sqlite"
    assert resolve(environ={"KODE_STORE_TYPE": "sqlite", "KODE_POSTGRES_HOST": "db"}).backend.name == "sqlite"


@pytest.mark.parametrize(
    "make",
    [Path.mkdir, lambda path: path.symlink_to("gone/kode.toml"), lambda path: path.symlink_to("kode.toml")],
    ids=["folder", "broken", "loop"],
)
def test_a_kode_toml_that_is_no_file(make: Callable[[Path], None], tmp_path: Path, monkeypatch: Any) -> None:
    """It is not passed over, also in a folder above: the default store would be opened in its place."""
    make(tmp_path / "kode.toml")
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path / "inner")
    for target in (None, "notes"):
        with pytest.raises(ConfigurationError, match="kode.toml is a link that leads nowhere, or no file"):
            resolve(target)
    assert resolve("memory:").backend.name == "memory"


def test_kode_toml_without_a_default(tmp_path: Path) -> None:
    """Stores that have names and no default are chosen by name, and never left aside for another one."""
    write(tmp_path / "kode.toml", '[stores.live]\ntype = "memory"\n[stores.old]\ntype = "memory"\n')
    with pytest.raises(ConfigurationError, match="no store named default.*live, old"):
        resolve()
    assert resolve("live").backend.name == "memory"


@pytest.mark.parametrize(
    "text",
    [
        "[tool.kodex\n",
        "this is no TOML",
        "[project]\nname = 'kode'\nversion = \n",
        "tool = 5\n",
        "[tool]\nx = 1\n# [tool.kode]\n",
        "\ufeff[[[",
        "x = " + "[" * 5000,
    ],
)
def test_a_broken_project_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """A parent's pyproject.toml that does not speak of kode is no obstacle, however broken."""
    write(tmp_path / "pyproject.toml", text)
    write(tmp_path / "below" / "pyproject.toml", "\0\xff")
    monkeypatch.chdir(tmp_path / "below")
    assert resolve().source == "the default"


@pytest.mark.parametrize(
    "text", ["[tool.kode\n", "[tool.kode.stores.default]\ntype = sqlite\n", "[ tool . kode ]\nx = \n"]
)
def test_a_broken_project_of_ones_own(tmp_path: Path, text: str) -> None:
    """One that configures stores and is broken is an error with the place."""
    write(tmp_path / "pyproject.toml", text)
    with pytest.raises(ConfigurationError, match=r"pyproject.toml is not TOML: see line \d+"):
        resolve()


def test_paths_as_stores(tmp_path: Path) -> None:
    """A path is a store of files or a database, by what is there or by its name."""
    write(tmp_path / "odd.data", "")
    (tmp_path / "folder.db").mkdir()
    for given, kind, option in (
        (Path("agents.db"), "sqlite", "db_path"),
        (Path("sub/agents.SQLITE3"), "sqlite", "db_path"),
        (Path("odd.data"), "sqlite", "db_path"),
        (Path("store"), "json", "base_dir"),
        (Path("folder.db"), "json", "base_dir"),
        ("agents.db", "sqlite", "db_path"),
        ("./data/agents.sqlite", "sqlite", "db_path"),
    ):
        found = resolve(given)
        assert (found.backend.name, options_of(found)[option]) == (kind, str(Path(given)))
    with pytest.raises(ConfigurationError, match="the suffix of the path does not say which store it is"):
        resolve(Path("agents.txt"))
    with pytest.raises(ConfigurationError, match="neither a URL"):
        resolve("data/agents")


def test_a_name_goes_before_a_path(tmp_path: Path) -> None:
    """A store of kode.toml may be named like a file."""
    write(tmp_path / "kode.toml", '[stores."agents.db"]\ntype = "memory"\n')
    assert resolve("agents.db").backend.name == "memory"


@pytest.mark.parametrize("path", ["C:\\data\\agents.db", "c:/data/agents.db", "D:\\x"])
def test_paths_of_windows(path: str) -> None:
    """A drive's letter is no backend: it is said how such a path is written."""
    for target, environ in ((path, {}), ({"url": path}, {}), (None, {"KODE_STORE_URL": path})):
        with pytest.raises(ConfigurationError, match="is a path of Windows; give it as pathlib.Path"):
            resolve(target, environ)


@pytest.mark.parametrize(
    ("url", "option"),
    [
        ("sqlite:///x.db", "busy_timeout_ms"),
        ("sqlite:///x.db", "timeout_ms"),
        ("sqlite:///x.db", "follow_poll_ms"),
        ("json:///x", "lock_wait_ms"),
        ("postgres://h/d", "command_timeout_millis"),
        ("postgres://h/d", "statement_cache_size"),
        ("postgres://h/d", "max"),
        ("mongodb://h/d", "idle_timeout_millis"),
        ("dynamodb://eu-central-1/table", "connection_timeout_millis"),
    ],
)
def test_numbers_have_limits(url: str, option: str) -> None:
    """A number that a driver would turn into another one is refused."""
    for value in (2**31, 2**63, -1, 10**30):
        with pytest.raises(ConfigurationError, match=f"option {option}"):
            resolve(url, **{option: value})
