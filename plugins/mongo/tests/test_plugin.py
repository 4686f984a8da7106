"""The plugin is light, and takes what it promises to take."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import kode_mongo
import pytest
from kode_mongo.options import MongoOptions
from kode_mongo.plugin import kode_store_backend
from kode_mongo.schema import INDEXES
from kode_mongo.testing.servers import Server

from kode_core.config import configure
from kode_core.errors import ConfigurationError
from kode_core.plugins import API, registry
from tests.test_cli import kode

SECRET = "s3cret-pa55"


def options_of(target: Any, environ: dict[str, str] | None = None, **options: Any) -> MongoOptions:
    found = configure(target, options, registry.backend, environ or {}).options
    assert isinstance(found, MongoOptions)
    return found.resolved()


def test_the_plugin_imports_no_driver() -> None:
    """Loading the plugin, importing the package and printing the schema import neither motor nor pymongo."""
    script = (
        "import sys, kode_mongo, kode_mongo.plugin as p; p.kode_store_backend().schema(p.MongoOptions());"
        "print({'motor', 'pymongo', 'bson'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_the_backend_says_what_it_is() -> None:
    """The backend has the name of its entry point and the API of this core; the package has its public names."""
    backend = kode_store_backend()
    assert (backend.name, backend.api, backend.gives) == ("mongo", API, "engine")
    assert kode_mongo.__all__ == ["MongoOptions", "MongoStore"]


@pytest.mark.parametrize("scheme", ["mongo", "mongodb"])
def test_a_url_is_a_uri_and_options(scheme: str) -> None:
    """Of a URL, MongoDB's parameters go to the driver, and the others are options."""
    url = f"{scheme}://me:{SECRET}@a.example:27018,b.example/agents?replicaSet=rs0&tls=true&max=3&driver=pymongo"
    options = options_of(url)
    assert options.uri == f"mongodb://me:{SECRET}@a.example:27018,b.example/agents?replicaSet=rs0&tls=true"
    assert (options.max, options.driver, options.database_name) == (3, "pymongo", "agents")
    assert options.address == "mongo at a.example:27018,b.example/agents"
    assert SECRET not in repr(options)


def test_a_url_of_a_cluster_is_kept() -> None:
    """``mongodb+srv`` stays what it is."""
    assert options_of("mongodb+srv://db.example/agents").uri == "mongodb+srv://db.example/agents"


def test_an_option_that_nobody_knows_is_refused() -> None:
    """It is neither swallowed nor left to the driver, which would only warn."""
    with pytest.raises(ConfigurationError, match="no option.*did you mean 'collection_prefix'"):
        options_of("mongodb://h/d?colection_prefix=x")


def test_variables_and_the_connection_of_the_guide() -> None:
    """The variables of the backend, and the nested connection of the guide."""
    environ = {"KODE_STORE_TYPE": "mongo", "MONGODB_URI": f"mongodb://u:{SECRET}@h/d", "KODE_MONGO_MAX": "7"}
    options = options_of(None, environ)
    assert (options.uri, options.max) == (f"mongodb://u:{SECRET}@h/d", 7)
    nested = {"host": "h", "port": 27018, "user": "u", "password": SECRET, "database": "d"}
    options = options_of({"type": "mongo", "connection": nested, "database": "e"})
    assert (options.host, options.port, options.database_name) == ("h", 27018, "e")
    assert SECRET not in repr(options)


@pytest.mark.parametrize(
    "weak",
    [
        *("w=0", "w=1", "w=2", "journal=false", "readPreference=secondary", "readConcernLevel=local", "J=false"),
        *("retryWrites=false", "readConcernLevel=linearizable", "appName=x;w=1"),
    ],
)
def test_a_uri_that_takes_a_promise_back_is_refused(weak: str) -> None:
    """The message says why, and quotes no password."""
    options = MongoOptions(uri=f"mongodb://u:{SECRET}@h/d?{weak}")
    with pytest.raises(ConfigurationError, match="loses what was acknowledged; leave the parameter out") as caught:
        options.check()
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("strong", ["w=majority", "journal=true", "readPreference=primary", "retryWrites=true"])
def test_a_uri_that_says_what_is_done_anyway_is_taken(strong: str) -> None:
    """To say it is no mistake."""
    MongoOptions(uri=f"mongodb://h/d?{strong}").check()


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("socketTimeoutMS", "command_timeout_millis"),
        ("serverSelectionTimeoutMS", "connection_timeout_millis"),
        ("maxPoolSize", "max"),
        ("timeoutms", "command_timeout_millis"),
    ],
)
def test_a_parameter_with_an_option_of_our_own_is_refused(name: str, option: str) -> None:
    """It would be given in vain; the message names the option."""
    with pytest.raises(ConfigurationError, match=f"the URI has {name}; give the store's option {option}"):
        MongoOptions(uri=f"mongodb://h/d?{name}=60000").check()


@pytest.mark.parametrize("character", "/?#@")
def test_a_uri_with_a_password_that_was_not_quoted_is_refused(character: str) -> None:
    """Nothing of it is shown, and nothing goes to a database that nobody named."""
    for uri in (f"mongodb://u:s3c{character}ret@h/d", f"mongodb://u:s3cret@h/d{character}x@y"):
        with pytest.raises(ConfigurationError, match="written as %2F %3F %23 %40") as caught:
            MongoOptions(uri=uri)
        assert "s3c" not in str(caught.value)
        with pytest.raises(ConfigurationError) as caught:
            options_of(uri)
        assert "s3c" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["mongodb://[::1/db", "mongodb://u:s3cret", "mongodb://", "http://h/d", "s3cret", "mongodb://h:s3cret/d"]
)
def test_a_malformed_uri_is_refused(uri: str) -> None:
    """By an error of this library, which quotes nothing."""
    with pytest.raises(ConfigurationError, match="the URI is malformed") as caught:
        MongoOptions(uri=uri)
    assert "s3cret" not in str(caught.value)


def test_hosts_of_all_kinds_are_taken() -> None:
    """Names, addresses, sets and sockets."""
    for hosts in ("h", "a.example:1,b.example:2", "[::1]:27017", "[fe80::1%25eth0]", "%2Ftmp%2Fmongodb-27017.sock"):
        options = MongoOptions(uri=f"mongodb://u:{SECRET}@{hosts}/d")
        options.check()
        assert options.address == f"mongo at {hosts}/d"


@pytest.mark.parametrize("host", [f"mongodb://u:{SECRET}@h/x", f"u:{SECRET}@h", "mongodb://h"])
def test_a_host_is_no_uri(host: str) -> None:
    """One that may have a password in it is not shown."""
    with pytest.raises(ConfigurationError, match="host must be a name or an address alone") as caught:
        options_of({"type": "mongo", "connection": {"host": host}})
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("name", ["a.b", "a%20b", "a/b", "x" * 64, "é" * 32])
def test_a_uri_with_a_name_that_no_database_can_have(name: str) -> None:
    """The same rules as for the option."""
    with pytest.raises(ConfigurationError, match="the database cannot be named so"):
        MongoOptions(uri=f"mongodb://h/{name}").check()


@pytest.mark.parametrize("name", ["a b", "a/b", "a.b", "", "a$", "a\0"])
def test_names_that_no_database_can_have(name: str) -> None:
    """MongoDB's rules for names, told before it is asked."""
    with pytest.raises(ConfigurationError, match="option database of backend 'mongo'"):
        options_of({"type": "mongo", "database": name})


def test_a_look_makes_no_collections(server: Server, database: str) -> None:
    """A command that only looks refuses a database without collections, and leaves it without."""
    _, err = kode("--store", server.url(database), "sessions", code=2)
    assert "is not a mongo store of kode" in err
    assert server.password not in err
    with server.client() as client:
        assert client[database].list_collection_names() == []


def test_the_schema_can_be_printed() -> None:
    """``kode schema`` prints commands of mongosh, one for each index and one for the version."""
    out, _ = kode("schema", "mongo:?collection_prefix=bot_&database=agents", "--print")
    lines = out.splitlines()
    assert lines[0] == 'db = db.getSiblingDB("agents");'
    assert len(lines) == len(INDEXES) + 2
    assert all(line.startswith('db.getCollection("bot_') for line in lines[1:])
    assert json.loads(lines[1].partition("createIndex(")[2].partition(", {")[0]) == {"created_at": 1, "_id": 1}
