"""Encrypted connections: a server that proves who it is is used, and no other is told anything."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest
from kode_conformance.values import samples
from kode_postgres.testing.servers import LocalServer, Server

from kode_core import create_extended_store
from kode_core.errors import ConfigurationError, Retry, StoreUnavailableError
from plugins.postgres.tests.tls import Authority


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module", params=["a server", "a front"])
def encrypted(request: pytest.FixtureRequest, authority: Authority) -> Iterator[Server]:
    """A server with a certificate for localhost: Debian's own, or a front to one that was built without TLS."""
    if request.param == "a server":
        with authority.server(request.getfixturevalue("older_programs"), "localhost") as own:
            yield Server(own.dsn.replace("127.0.0.1", "localhost"))
        return
    plain = urlsplit(request.getfixturevalue("server").dsn)
    with authority.front(plain.port or 5432, "localhost") as front:
        yield Server(plain._replace(netloc=f"{plain.netloc.rpartition('@')[0]}@localhost:{front.port}").geturl())


def ways(server: Server, trusted: Path) -> dict[str, dict[str, Any]]:
    """How to say that the server is to be verified."""
    return {
        "url": {"url": server.url(sslmode="verify-full", sslrootcert=str(trusted))},
        "dsn": {"type": "postgres", "dsn": server.url(sslmode="verify-full", sslrootcert=str(trusted))},
        "file": {"type": "postgres", "dsn": server.dsn, "ssl": str(trusted)},
    }


@pytest.mark.parametrize("way", ["url", "dsn", "file"])
async def test_a_server_that_is_who_it_says_is_used(way: str, encrypted: Server, authority: Authority) -> None:
    """``verify-full`` in the URL, or the file of the authority as the option ssl."""
    async with await create_extended_store(**ways(encrypted, authority.file)[way]) as store:
        await store.save_messages("a", samples.messages(2))
        assert await store.load_messages("a") == samples.messages(2)


@pytest.mark.parametrize("way", ["url", "dsn", "file"])
async def test_a_server_that_another_authority_vouches_for_is_refused(
    way: str, encrypted: Server, tmp_path: Path
) -> None:
    """With an error of this library that says why, and tells no secret."""
    stranger = Authority(tmp_path, "stranger")
    with pytest.raises((StoreUnavailableError, ConfigurationError), match="(?i)certificate") as caught:
        async with await create_extended_store(**ways(encrypted, stranger.file)[way]) as store:
            await store.exists("a")
    assert encrypted.password not in str(caught.value)
    assert caught.value.retry is not Retry.CHECK


async def test_a_certificate_for_another_name_is_refused(encrypted: Server, authority: Authority) -> None:
    """It is for localhost, and the address is a number."""
    options = ways(Server(encrypted.dsn.replace("localhost", "127.0.0.1")), authority.file)["file"]
    with pytest.raises((StoreUnavailableError, ConfigurationError), match="(?i)certificate"):
        async with await create_extended_store(**options) as store:
            await store.exists("a")


async def test_a_server_without_tls_is_refused_where_it_is_required(own_server: LocalServer) -> None:
    """The store never goes on in the clear."""
    options = {"type": "postgres", "dsn": own_server.dsn, "ssl": "require", "connection_timeout_millis": 1000}
    with pytest.raises((StoreUnavailableError, ConfigurationError), match="(?i)ssl|tls") as caught:
        async with await create_extended_store(**options) as store:
            await store.exists("a")
    assert own_server.password not in str(caught.value)


async def test_a_certificate_that_was_revoked_is_refused(server: Server, authority: Authority) -> None:
    """``sslcrl`` reaches the driver, which looks into the list: of two that differ by the one certificate."""
    plain = urlsplit(server.dsn)
    with authority.front(plain.port or 5432, "localhost") as front:
        netloc = f"{plain.netloc.rpartition('@')[0]}@localhost:{front.port}"
        encrypted = Server(plain._replace(netloc=netloc).geturl())

        def revoking(file: Path) -> str:
            return encrypted.url(sslmode="verify-full", sslrootcert=str(authority.file), sslcrl=str(file))

        async with await create_extended_store(revoking(authority.revoking())) as store:
            assert await store.exists("a") is False
        with pytest.raises((StoreUnavailableError, ConfigurationError), match="(?i)certificate.*revoked"):
            await create_extended_store(revoking(authority.revoking(authority.issued)))


@pytest.mark.parametrize("mode", [None, "disable", "allow", "prefer", "require"])
@pytest.mark.parametrize("by", ["url", "option", "variable"])
@pytest.mark.parametrize("name", ["sslrootcert", "sslcrl"])
async def test_files_that_would_not_be_looked_at_are_refused(
    name: str, by: str, mode: str | None, authority: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver reads them at modes that verify only: at others the store does not open, and says which to take."""
    file, query, options = str(authority.file), "", {}
    if by == "variable":
        monkeypatch.setenv(f"PG{name.upper()}", file)
    else:
        query = f"{name}={quote(file, safe='')}"
    if mode and by == "option":
        options["ssl"] = mode
    elif mode:
        query += f"&sslmode={mode}"
    url = f"postgres://u@localhost:1/d?{query}"
    is_looked_at = name == "sslrootcert" and mode == "require"
    says = (
        "cannot be reached"
        if is_looked_at
        else f"(?i){name}.* ignores at sslmode {mode or 'prefer'}; add sslmode=verify"
    )
    with pytest.raises((ConfigurationError, StoreUnavailableError), match=says) as caught:
        await create_extended_store(url, connection_timeout_millis=100, **options)
    assert isinstance(caught.value, StoreUnavailableError) is is_looked_at
    assert file not in str(caught.value)


@pytest.mark.parametrize("name", ["sslrootcert", "sslcrl", "sslcert", "sslkey"])
async def test_a_file_that_is_not_there_is_named(name: str) -> None:
    """By its parameter, and not as a server that cannot be reached."""
    with pytest.raises(ConfigurationError, match=f"the dsn has a {name} that is no file that can be read"):
        await create_extended_store(f"postgres://u@localhost:1/d?sslmode=verify-full&{name}=%2Fno%2Fsuch")


@pytest.mark.parametrize("name", ["sslrootcert", "sslcrl", "sslcert", "sslkey", "ssl_min_protocol_version"])
async def test_one_says_how_to_encrypt(name: str, authority: Authority) -> None:
    """Next to an option that is a file of its own, a parameter of the URL would be given in vain."""
    value = "TLSv1.3" if name.startswith("ssl_") else quote(str(authority.file), safe="")
    url = f"postgres://u@localhost:1/d?{name}={value}"
    for given in (str(authority.file), ssl.create_default_context(), True):
        with pytest.raises(ConfigurationError, match=f"the dsn has {name}, which means nothing next to the option ssl"):
            await create_extended_store(type="postgres", dsn=url, ssl=given)
