"""Policies of retention: which agents, and when they and their parts are no longer needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, Final

import msgspec
from msgspec.structs import force_setattr

from kode_core.authoring.matching import session_matches
from kode_core.authoring.values import named, near, read_value
from kode_core.batch import Info
from kode_core.codec import Body
from kode_core.errors import ConfigurationError, InvalidArgumentError, KodeError
from kode_core.ids import index_text, quoted
from kode_core.metadata import elements_of, mapping_of, metadata_index
from kode_core.model import Json
from kode_core.query import SessionInfo, SessionQuery, Wanted, session_query, values_of
from kode_core.retention.spans import read_span

__all__ = ["RetentionPolicy", "checked_policies", "policies_of"]

Span = str | timedelta
_KEEPS: Final = ("keep_snapshots", "keep_history_windows", "keep_compression_records", "keep_recovered_files")
_SPANS: Final = ("delete_after", "keep_events")
_NO_BODY: Final = Body("", b"")


class RetentionPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """A policy for the agents that match every filter of it; without a filter, for all agents.

    The first policy that matches an agent counts for it, and no other. A span is a text such as ``90d`` (s, m, h, d
    or w), or a timedelta.

    Attributes:
        name: its name in reports; ``policy 1`` and so on without one.
        template_id: a template, or a list of them.
        user_id: a user, ``metadata["userId"]``, or a list of them.
        prefix: the beginning of the agents' ids.
        metadata: values of top-level keys of the metadata.
        delete_after: delete agents whose messages, tool calls and info have not changed for this long, and whose last
            event is not younger.
        keep_events: remove events that are older.
        keep_snapshots: keep the newest N snapshots, and remove the others; likewise for the kinds below.
        keep_all: keep the agents as they are, as an exception from the policies that follow.
    """

    name: str | None = None
    template_id: str | list[str] | None = None
    user_id: str | list[str] | None = None
    prefix: str | None = None
    metadata: dict[str, Json] | None = None
    delete_after: Span | None = None
    keep_events: Span | None = None
    keep_snapshots: int | None = None
    keep_history_windows: int | None = None
    keep_compression_records: int | None = None
    keep_recovered_files: int | None = None
    keep_all: bool = False

    def __post_init__(self) -> None:
        for name in ("name", "prefix"):
            text = getattr(self, name)
            if text is not None and (type(text) is not str or not text):
                raise InvalidArgumentError(f"{name} of a policy must be a text that is not empty")
        if self.metadata is not None:
            force_setattr(self, "metadata", mapping_of(self.metadata, "metadata of a policy"))
        for name in _SPANS:
            _milliseconds(name, getattr(self, name))
        for name in _KEEPS:
            number = getattr(self, name)
            if number is not None and (type(number) is not int or not 0 <= number < 2**63):
                raise InvalidArgumentError(f"{name} must be a number of records, 0 or more")
        if type(self.keep_all) is not bool:
            raise InvalidArgumentError("keep_all must be true or false")
        self._check_actions()
        self.query()

    def _check_actions(self) -> None:
        actions = [name for name in (*_SPANS, *_KEEPS) if getattr(self, name) is not None]
        if self.keep_all and actions:
            raise InvalidArgumentError(
                f"a policy has keep_all and {actions[0]}, which contradict each other; leave one out"
            )
        if not self.keep_all and not actions:
            raise InvalidArgumentError(
                "a policy says nothing: give delete_after, keep_events or keep_snapshots, for example, or keep_all"
            )

    def query(self) -> SessionQuery:
        """The filters without the prefix, as ``query_sessions`` checks them."""
        given: dict[str, Any] = {}
        for name in ("template_id", "user_id"):
            value = getattr(self, name)
            if value is not None:
                given[name] = value
                if type(value) is not str and not elements_of(value, name):
                    raise InvalidArgumentError(f"{name} of a policy is an empty list, which no agent matches")
        if self.metadata:
            given["metadata"] = self.metadata
        return session_query(given)  # type: ignore[arg-type]

    def prunes(self, now: int) -> dict[str, Any]:
        """The arguments of ``prune``; empty if the policy removes no parts."""
        kept = {name: number for name in _KEEPS if (number := getattr(self, name)) is not None}
        events = _milliseconds("keep_events", self.keep_events)
        return kept if events is None else {"events_before": now - events, **kept}

    def idle_since(self, now: int) -> int | None:
        """The time before which an agent must have changed last to be deleted; None if the policy deletes none."""
        span = _milliseconds("delete_after", self.delete_after)
        return None if span is None else now - span


def _milliseconds(name: str, span: Any) -> int | None:
    if span is None:
        return None
    found = None
    if type(span) is str:
        found = read_span(span)
    elif type(span) is timedelta:
        found = span // timedelta(milliseconds=1)
    if found is None:
        raise InvalidArgumentError(f"{name} must be a span such as 90d (s, m, h, d, w), got {quoted(span)}")
    if not 0 < found < 2**62:
        raise InvalidArgumentError(f"{name} must be longer than nothing, got {quoted(span)}")
    return found


class Selector:
    """The filters of a policy, ready to be compared with sessions."""

    def __init__(self, policy: RetentionPolicy) -> None:
        self._query = policy.query()
        self._prefix = policy.prefix or ""

    def matches(self, session: SessionInfo) -> bool:
        """Whether the session matches every filter of the policy."""
        if not session.agent_id.startswith(self._prefix):
            return False
        pairs = metadata_index(session.metadata) if self._query.metadata else ()
        info = Info(_NO_BODY, index_text(session.template_id), session.created_at, pairs)
        return session_matches(session.agent_id, info, session.updated_at, self._query)

    def covers(self, other: Selector) -> bool:
        """Whether every session that *other* matches matches here, too."""
        mine, its = self._query, other._query
        if not other._prefix.startswith(self._prefix) or not _covers(mine.template_id, its.template_id):
            return False
        wanted = dict(its.metadata)
        return all(_covers(value, wanted.get(key)) for key, value in mine.metadata)


def _covers(one: Wanted | None, other: Wanted | None) -> bool:
    if one is None:
        return True
    return other is not None and set(values_of(other)) <= set(values_of(one))


def checked_policies(policies: Sequence[RetentionPolicy]) -> tuple[tuple[str, RetentionPolicy, Selector], ...]:
    """The policies with their names and filters.

    Raises:
        InvalidArgumentError: there is none, two have one name, or one never counts because of an earlier one.
    """
    checked: list[tuple[str, RetentionPolicy, Selector]] = []
    for number, policy in enumerate(elements_of(policies, "policies"), 1):
        if not isinstance(policy, RetentionPolicy):
            raise InvalidArgumentError(f"policies must be a list of RetentionPolicy, got {type(policy).__name__} in it")
        name, selector = policy.name or f"policy {number}", Selector(policy)
        for earlier, _, before in checked:
            if earlier == name:
                raise InvalidArgumentError(f"two policies have the name {quoted(name)}")
            if before.covers(selector):
                raise InvalidArgumentError(
                    f"{quoted(name)} never counts: {quoted(earlier)}, which comes first, matches every agent that it "
                    "matches; put the narrower policy first"
                )
        checked.append((name, policy, selector))
    if not checked:
        raise InvalidArgumentError("there is no policy: give at least one RetentionPolicy")
    return tuple(checked)


def policies_of(given: Any, source: str) -> tuple[RetentionPolicy, ...]:
    """The policies of a configuration file.

    Raises:
        ConfigurationError: a key is unknown or has the wrong type, or the policies contradict each other.
    """
    if not isinstance(given, list) or not given or not all(isinstance(table, Mapping) for table in given):
        raise ConfigurationError(f"{source}: policies are written as [[stores.NAME.retention]], each a table")
    policies = tuple(_policy_of(table, f"{source}: policy {i} of retention") for i, table in enumerate(given, 1))
    try:
        checked_policies(policies)
    except InvalidArgumentError as exc:
        raise ConfigurationError(f"{source}: retention: {exc}") from None
    return policies


def _policy_of(table: Mapping[str, Any], source: str) -> RetentionPolicy:
    fields = {field.name: field for field in msgspec.structs.fields(RetentionPolicy)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        if name not in fields:
            raise ConfigurationError(f"{source} has no key {named(name)}{near(name, fields)}")
        if name in _SPANS:
            values[name] = value if isinstance(value, str) else str(value)
            continue
        problem, values[name] = read_value(fields[name], value, strict=True)
        if problem:
            raise ConfigurationError(f"{source}: {name}: {problem}")
    try:
        return RetentionPolicy(**values)
    except KodeError as exc:
        raise ConfigurationError(f"{source}: {exc}") from None
