"""Filters of lists: what a form sends, as arguments of a query, or the problem of each field."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import typer

from kode_core import InvalidArgumentError, Json
from kode_core.cli.options import metadata_filter
from kode_core.cli.times import read_time
from kode_core.ids import check_agent_id

__all__ = ["Form", "call_form", "message_form", "session_form"]

STATES: Final = ("PENDING", "APPROVAL_REQUIRED", "APPROVED", "EXECUTING", "COMPLETED", "FAILED", "DENIED", "SEALED")
_LONGEST: Final = 2_000


class Form:
    """The fields of a form, checked: *filters* are arguments of a query, *errors* has a sentence for a wrong field."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = {name: value.strip() for name, value in given.items()}
        self.filters: dict[str, Any] = {}
        self.errors: dict[str, str] = {}

    def __getitem__(self, name: str) -> str:
        return self.given.get(name, "")

    def take(self, name: str, to: str, check: Callable[[str], Any] = str) -> None:
        """Check the field *name*, if it was filled in, and make it the filter *to*."""
        text = self[name]
        if not text:
            return
        try:
            if len(text) > _LONGEST:
                raise InvalidArgumentError(f"this is longer than {_LONGEST:,} characters")
            self.filters[to] = check(text)
        except (InvalidArgumentError, typer.BadParameter) as exc:
            self.errors[name] = str(exc)[:400]

    @property
    def is_empty(self) -> bool:
        """True if nothing is filtered."""
        return not any(self[name] for name in self.given if name not in ("cursor", "sort", "order", "from"))

    def link_values(self) -> dict[str, str]:
        """The fields for the address of another page of the same list."""
        return {name: value for name, value in self.given.items() if value and name not in ("cursor", "from")}


def _choice(*known: str) -> Callable[[str], str]:
    def check(text: str) -> str:
        if text not in known:
            raise InvalidArgumentError(f"choose one of {', '.join(known)}")
        return text

    return check


def _times(form: Form) -> None:
    form.take("after", "created_after", read_time)
    form.take("before", "created_before", read_time)


def _metadata(text: str) -> dict[str, Json]:
    pairs = [pair.strip() for pair in text.split(";") if pair.strip()]
    for pair in pairs:
        if "=" not in pair:
            raise InvalidArgumentError(f"{pair!r:.80} has no '='; write it as reward=1.0, several with ; between them")
    return metadata_filter(pairs) or {}


def _count(text: str) -> int:
    if not text.isascii() or not text.isdigit() or len(text) > 9:
        raise InvalidArgumentError("this is no position in a list")
    return int(text)


def session_form(given: Mapping[str, str]) -> Form:
    """The form of the page of sessions; ``id`` is the beginning of the ids."""
    form = Form(given)
    form.take("template", "template_id")
    form.take("user", "user_id")
    form.take("metadata", "metadata", _metadata)
    _times(form)
    form.take("updated", "updated_after", read_time)
    form.take("sort", "sort_by", _choice("updated_at", "created_at", "message_count"))
    form.take("order", "order", _choice("desc", "asc"))
    form.take("cursor", "cursor")
    form.take("from", "from", _count)
    return form


def call_form(given: Mapping[str, str]) -> Form:
    """The form of the page of tool calls."""
    form = Form(given)
    form.take("agent", "agent_id", check_agent_id)
    form.take("tool", "tool_name")
    form.take("state", "state", _choice(*STATES))
    form.take("error", "is_error", lambda text: _choice("yes", "no")(text) == "yes")
    form.take("approval", "has_approval", lambda text: _choice("yes", "no")(text) == "yes")
    _times(form)
    form.take("order", "order", _choice("desc", "asc"))
    form.take("cursor", "cursor")
    return form


def message_form(given: Mapping[str, str]) -> Form:
    """The form of the search in messages."""
    form = Form(given)
    form.take("q", "contains")
    form.take("agent", "agent_id", check_agent_id)
    form.take("role", "role")
    _times(form)
    form.take("order", "order", _choice("desc", "asc"))
    form.take("cursor", "cursor")
    return form
