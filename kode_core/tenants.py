"""Tenants: names for parts of one store, and the ids that agents of a tenant have in the whole store.

The agent ``alice`` of the tenant ``acme`` is stored under its *full id*, ``@acme/alice``. A slash in the name of a
tenant is escaped, so the full ids of a tenant, and no others, begin with its prefix: they are one range of ids.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote, unquote

from kode_core.errors import InvalidArgumentError
from kode_core.ids import MAX_AGENT_ID_BYTES, MAX_FULL_ID_BYTES, check_agent_id, check_text, is_full_id

__all__ = ["check_tenant", "full_agent_id", "prefix_of", "seen_from", "tenant_of"]

MAX_TENANT_BYTES: Final = 128
"""The most bytes of the escaped name."""

_FULL: Final = re.compile(r"@([A-Za-z0-9._~%-]+)/(.+)", re.DOTALL)


def check_tenant(tenant: str) -> str:
    """Return *tenant* if it may name a tenant (SCOPE-2), else raise InvalidArgumentError."""
    if not check_text(tenant, "tenant", 4 * MAX_TENANT_BYTES):
        raise InvalidArgumentError("tenant must not be empty")
    size = len(quote(tenant, safe=""))
    if size > MAX_TENANT_BYTES:
        raise InvalidArgumentError(
            f"tenant must be at most {MAX_TENANT_BYTES} bytes, in which each byte of a character other than"
            f" A-Z a-z 0-9 . _ ~ - counts as three, got {size}: {tenant[:40]!r}…"
        )
    return tenant


def prefix_of(tenant: str) -> str:
    """The text with which the full ids of a tenant begin, and no others: for ``list(prefix)`` of the whole store.

    Raises:
        InvalidArgumentError: *tenant* cannot name a tenant.
    """
    return f"@{quote(check_tenant(tenant), safe='')}/"


def full_agent_id(tenant: str, agent_id: str) -> str:
    """The id that an agent of a tenant has in the whole store: ``full_agent_id("acme", "alice")`` is ``@acme/alice``.

    Raises:
        InvalidArgumentError: a name is illegal, or the id would be longer than 300 bytes.
    """
    return joined(prefix_of(tenant), check_agent_id(agent_id))


def joined(prefix: str, agent_id: str) -> str:
    """The full id of an agent whose tenant has this prefix."""
    whole = prefix + agent_id
    if len(whole) * 4 > MAX_FULL_ID_BYTES and len(whole.encode()) > MAX_FULL_ID_BYTES:
        most = min(MAX_AGENT_ID_BYTES, MAX_FULL_ID_BYTES - len(prefix))
        raise InvalidArgumentError(
            f"agent_id must be at most {most} bytes in UTF-8 in this tenant, got {len(agent_id.encode())}: "
            f"{agent_id[:40]!r}…"
        )
    return whole


def tenant_of(agent_id: str) -> tuple[str, str] | None:
    """The tenant and the id of an agent within it, from an id of the whole store; None for one without a tenant."""
    found = _FULL.fullmatch(agent_id) if is_full_id(agent_id) else None
    if found is None:
        return None
    tenant = unquote(found[1], errors="replace")
    return (tenant, found[2]) if quote(tenant, safe="") == found[1] else None


def seen_from(agent_id: str, stored: str) -> tuple[str, str] | None:
    """How the ids inside a record change for a store that reads it as the agent *agent_id*: (remove, add) in front.

    A tenant's own store writes ids without the tenant's prefix, and the whole store writes full ids; each reads what
    the other one has written. None if nothing changes.
    """
    if agent_id != stored:
        if agent_id.endswith(stored) and _is_prefix(agent_id[: len(agent_id) - len(stored)]):
            return "", agent_id[: len(agent_id) - len(stored)]
        if stored.endswith(agent_id) and _is_prefix(stored[: len(stored) - len(agent_id)]):
            return stored[: len(stored) - len(agent_id)], ""
    return None


def _is_prefix(text: str) -> bool:
    return text.count("/") == 1 and _FULL.fullmatch(f"{text}a") is not None
