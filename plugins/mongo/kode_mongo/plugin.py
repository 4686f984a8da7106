"""The plugin of the MongoDB backend. Imports no driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import SplitResult, parse_qsl, urlencode, urlunsplit

from msgspec.structs import replace

from kode_core.authoring.options import password_of
from kode_core.plugins import Backend, hookimpl
from kode_mongo.options import MongoOptions
from kode_mongo.uris import split_uri

if TYPE_CHECKING:
    from kode_core.engines.record.engine import RecordEngine

_NAMES: Final = (
    *("replicaSet", "directConnection", "loadBalanced", "srvServiceName", "srvMaxHosts", "appName"),
    *("tls", "tlsCAFile", "tlsCertificateKeyFile", "tlsCertificateKeyFilePassword", "tlsAllowInvalidCertificates"),
    *("tlsAllowInvalidHostnames", "tlsInsecure", "tlsDisableOCSPEndpointCheck", "tlsCRLFile", "ssl"),
    *("authSource", "authMechanism", "authMechanismProperties"),
    *("connectTimeoutMS", "socketTimeoutMS", "serverSelectionTimeoutMS", "timeoutMS", "heartbeatFrequencyMS"),
    *("maxPoolSize", "minPoolSize", "maxIdleTimeMS", "maxConnecting", "waitQueueTimeoutMS", "localThresholdMS"),
    *("compressors", "zlibCompressionLevel", "retryReads", "retryWrites", "serverMonitoringMode"),
    *("w", "wTimeoutMS", "journal", "readConcernLevel", "readPreference", "maxStalenessSeconds"),
)
_PARAMETERS: Final = frozenset({*_NAMES, *map(str.lower, _NAMES)})
"""Parameters of a URL that belong to MongoDB and are not options of this backend."""


async def _open(options: MongoOptions) -> RecordEngine:
    from kode_core.engines.record.engine import RecordEngine
    from kode_mongo.records import open_records

    return RecordEngine(await open_records(await _with_password(options.resolved())))


async def _with_password(options: MongoOptions) -> MongoOptions:
    return replace(options, password=await password_of(options.password))


def _is_there(options: MongoOptions) -> bool:
    """Whether kode's collections exist. True if that cannot be determined: ``open`` then explains the error."""
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    from kode_mongo.connection import has_collections

    with ThreadPoolExecutor(1) as pool:  # the caller may be in an event loop
        options = pool.submit(asyncio.run, _with_password(options.resolved())).result()
    return has_collections(options)


def _schema(options: MongoOptions) -> str:
    from kode_mongo.schema import script

    return script(options.resolved())


def _from_url(split: SplitResult) -> Mapping[str, Any]:
    pairs = parse_qsl(split.query, keep_blank_values=True)
    kept = urlencode([(name, value) for name, value in pairs if name in _PARAMETERS])
    if not split.netloc:
        return {"database": split.path.removeprefix("/")} if split.path else {}
    scheme = "mongodb+srv" if split.scheme == "mongodb+srv" else "mongodb"
    split_uri(urlunsplit((scheme, *split[1:])))  # a password may look like a path
    return {"uri": urlunsplit((scheme, split.netloc, split.path or ("/" if kept else ""), kept, ""))}


@hookimpl
def kode_store_backend() -> Backend:
    return Backend(
        name="mongo",
        options=MongoOptions,
        open=_open,
        from_url=_from_url,
        url_parameters=_PARAMETERS,
        variables={"MONGODB_URI": "uri", "MONGODB_DATABASE": "database"},
        schema=_schema,
        is_there=_is_there,
        summary="a document database, for several machines",
    )
