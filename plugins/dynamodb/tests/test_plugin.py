"""The plugin is light, and takes what it promises to take."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import kode_dynamodb
import pytest
from kode_dynamodb import DynamoDBOptions
from kode_dynamodb.plugin import kode_store_backend
from kode_dynamodb.schema import INDEXES
from kode_dynamodb.testing.servers import KEY, SECRET

from kode_core.config import configure
from kode_core.errors import ConfigurationError
from kode_core.plugins import API, registry
from tests.test_cli import kode


def options_of(target: Any, environ: dict[str, str] | None = None, **options: Any) -> DynamoDBOptions:
    found = configure(target, options, registry.backend, environ or {}).options
    assert isinstance(found, DynamoDBOptions)
    return found.resolved()


def test_the_plugin_imports_no_driver() -> None:
    """Loading the plugin, importing the package and printing the schema import neither aioboto3 nor botocore."""
    script = (
        "import sys, kode_dynamodb, kode_dynamodb.plugin as p; p.kode_store_backend().schema(p.DynamoDBOptions());"
        "print({'aioboto3', 'aiobotocore', 'botocore', 'aiohttp'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"


def test_the_backend_says_what_it_is() -> None:
    """The backend has the name of its entry point and the API of this core; the package has its public names."""
    backend = kode_store_backend()
    assert (backend.name, backend.api, backend.gives) == ("dynamodb", API, "engine")
    assert kode_dynamodb.__all__ == ["DynamoDBOptions", "DynamoDBStore"]


def test_a_url_is_a_region_a_table_and_options() -> None:
    """All of it may be left out: AWS's own settings are used then."""
    options = options_of("dynamodb://eu-central-1/agents?endpoint_url=http://127.0.0.1:8000&max=3&create=false")
    assert (options.region, options.table, options.max, options.create) == ("eu-central-1", "agents", 3, False)
    assert options.endpoint_url == "http://127.0.0.1:8000"
    assert options.address == "dynamodb at http://127.0.0.1:8000, table agents"
    assert options_of("dynamodb:").table == "kode"


def test_variables_and_the_connection_of_the_guide() -> None:
    """The variables of the backend, and a nested connection; no secret is shown."""
    environ = {"KODE_STORE_TYPE": "dynamodb", "KODE_DYNAMODB_TABLE": "agents", "KODE_DYNAMODB_MAX": "7"}
    options = options_of(None, environ)
    assert (options.table, options.max) == ("agents", 7)
    nested = {"table": "t-1", "region": "eu-west-1", "access_key_id": KEY, "secret_access_key": SECRET}
    options = options_of({"type": "dynamodb", "connection": nested, "max": 9})
    assert (options.table, options.region, options.max) == ("t-1", "eu-west-1", 9)
    assert SECRET not in repr(options)
    assert KEY not in repr(options)


def test_an_option_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no option.*did you mean 'region'"):
        options_of("dynamodb:?regoin=x")


@pytest.mark.parametrize("name", ["ab", "a b", "a/b", "", "a" * 256])
def test_names_that_no_table_can_have(name: str) -> None:
    """DynamoDB's rules for names, told before it is asked."""
    with pytest.raises(ConfigurationError, match="option table of backend 'dynamodb'"):
        options_of({"type": "dynamodb", "table": name})


def test_a_look_makes_no_table(moto: DynamoDBOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that only looks refuses a table that is not there, and makes none."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    address = f"dynamodb://us-east-1/{moto.table}?endpoint_url={moto.endpoint_url}"
    for _ in range(2):
        _, err = kode("--store", address, "sessions", code=2)
        assert "is not a dynamodb store of kode" in err


def test_the_schema_can_be_printed() -> None:
    """``kode schema`` prints a template of CloudFormation."""
    out, _ = kode("schema", "dynamodb://eu-central-1/agents", "--print")
    table = json.loads(out)["Resources"]["KodeTable"]["Properties"]
    assert table["TableName"] == "agents"
    indexes = table["LocalSecondaryIndexes"] + table["GlobalSecondaryIndexes"]
    assert len(indexes) == len(INDEXES)
    assert table["TimeToLiveSpecification"] == {"AttributeName": "ttl", "Enabled": True}
