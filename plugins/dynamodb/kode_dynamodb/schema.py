"""The table: its keys, its indexes and its version.

======== ============================= ============================ ==================================================
what     pk                            sk                           also
======== ============================= ============================ ==================================================
head     ``a#`` agent id               ``head``                     the lease; ``hb``, ``nb``, ``pd`` for indexes
item     ``i#`` epoch ``#`` agent id   ``m/…``, ``t/…``, ``d/…``,   ``alt``: calls by id, events by seq; ``ts``: rows
                                       ``o/…``, ``e/…``             by time; ``rb`` and ``row``: rows of all agents
entry    the document's                ``g/`` hash of the           ``ts``: by term, of one agent; ``rb`` and ``row``:
                                       document's key ``/`` n       by term, of all agents
part     ``p#`` epoch ``#`` agent id   key ``/`` revision ``/`` n   ``b``
note     ``left`` n                    agent id ``/`` epoch         ``ts``: notes by time
meta     ``meta``                      ``schema``                   ``version``; ``layout``: the record layout's
======== ============================= ============================ ==================================================

A caller's text never becomes an attribute's name. Reads of local indexes are consistent; global indexes lag behind,
usually by well under a second. Each global index is spread over ``BUCKETS`` partitions, so that none is hot.
"""

from __future__ import annotations

import json
from typing import Any, Final, NamedTuple

__all__ = ["BUCKETS", "DAY_S", "SCHEMA_VERSION", "TTL", "Index", "cloud_formation", "table_definition"]

SCHEMA_VERSION: Final = 1
BUCKETS: Final = 4
"""The number of partitions of a global index. It must not change: existing items keep their partition."""
TTL: Final = "ttl"
DAY_S: Final = 86_400
"""The time after which the service may remove ended leases and tombstones."""


class Index(NamedTuple):
    """An index: its keys and its further attributes. A local index has the table's partition key."""

    name: str
    pk: str
    sk: str
    attributes: tuple[str, ...] = ()

    @property
    def is_local(self) -> bool:
        """Whether the index lies in the agent's partition, so that its reads can be consistent."""
        return self.pk == "pk"

    @property
    def definition(self) -> dict[str, Any]:
        """The index in the form of CreateTable."""
        projection: dict[str, Any] = {"ProjectionType": "KEYS_ONLY"}
        if self.attributes:
            projection = {"ProjectionType": "INCLUDE", "NonKeyAttributes": list(self.attributes)}
        return {"IndexName": self.name, "KeySchema": _keys(self.pk, self.sk), "Projection": projection}


INDEXES: Final = (
    Index("by_alt", "pk", "alt", ("rev", "t", "h", "ix", "p", "ev")),
    Index("by_time", "pk", "ts", ("rev", "t", "ix")),
    Index("rows", "rb", "row", ("rev", "t", "ix")),
    Index("agents", "nb", "hx"),
    Index("created", "nb", "cr", ("meta",)),
    Index("updated", "hb", "up", ("meta", "u", "mc", "tc")),
    Index("pending", "pd", "hx"),
)


def _keys(pk: str, sk: str) -> list[dict[str, str]]:
    return [{"AttributeName": pk, "KeyType": "HASH"}, {"AttributeName": sk, "KeyType": "RANGE"}]


def table_definition(table: str) -> dict[str, Any]:
    """The table in the form of CreateTable."""
    names = {"pk", "sk", *(index.pk for index in INDEXES), *(index.sk for index in INDEXES)}
    return {
        "TableName": table,
        "BillingMode": "PAY_PER_REQUEST",
        "AttributeDefinitions": [{"AttributeName": name, "AttributeType": "S"} for name in sorted(names)],
        "KeySchema": _keys("pk", "sk"),
        "LocalSecondaryIndexes": [index.definition for index in INDEXES if index.is_local],
        "GlobalSecondaryIndexes": [index.definition for index in INDEXES if not index.is_local],
    }


def cloud_formation(table: str) -> str:
    """The table as a CloudFormation template, for administrators who do not let a program make it."""
    properties = {
        **table_definition(table),
        "TimeToLiveSpecification": {"AttributeName": TTL, "Enabled": True},
        "PointInTimeRecoverySpecification": {"PointInTimeRecoveryEnabled": True},
    }
    resource = {"Type": "AWS::DynamoDB::Table", "DeletionPolicy": "Retain", "Properties": properties}
    template = {
        "AWSTemplateFormatVersion": "2010-09-09",
        "Description": "The table of a kode_core store",
        "Resources": {"KodeTable": resource},
    }
    return json.dumps(template, indent=2) + "\n"
