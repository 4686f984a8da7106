"""Options that several commands share, and the parsers of their values."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from kode_core.cli.completion import complete_agent
from kode_core.cli.times import TIME_HELP, read_time
from kode_core.errors import InvalidArgumentError
from kode_core.jsonvalue import decode_json
from kode_core.model import Json

__all__ = [
    "AgentArgument",
    "AgentsOption",
    "AllOption",
    "CountOption",
    "CreatedAfter",
    "CreatedBefore",
    "CursorOption",
    "FullOption",
    "LimitOption",
    "MetadataOption",
    "OffsetOption",
    "OptionalAgent",
    "OrderOption",
    "PrefixOption",
    "TemplatesOption",
    "UsersOption",
    "agent_argument",
    "filter_option",
    "given",
    "metadata_filter",
    "paging_option",
    "time_option",
]


def time_option(name: str, what: str, panel: str | None = "Filters") -> Any:
    """An option that takes a time; *what* is its help text."""
    return typer.Option(name, parser=read_time, metavar="TIME", help=what, rich_help_panel=panel)


def filter_option(*names: str, metavar: str | None = None, **more: Any) -> Any:
    """An option of the group Filters; named after its parameter unless *names* are given."""
    return typer.Option(*names, metavar=metavar, rich_help_panel="Filters", **more)


def paging_option(*names: str, metavar: str | None = None, **more: Any) -> Any:
    """An option of the group Order and pages."""
    return typer.Option(*names, metavar=metavar, rich_help_panel="Order and pages", **more)


def agent_argument(what: str = "The id of an agent.", metavar: str = "AGENT") -> Any:
    """An argument that takes ids of agents, which shells complete."""
    return typer.Argument(metavar=metavar, help=what, autocompletion=complete_agent)


AgentArgument = Annotated[str, agent_argument()]
OptionalAgent = Annotated[str | None, agent_argument()]
AgentsOption = Annotated[
    list[str] | None,
    filter_option("--agent", metavar="ID", help="Only this agent. May be repeated.", autocompletion=complete_agent),
]
TemplatesOption = Annotated[
    list[str] | None, filter_option("--template", metavar="ID", help="Only agents of this template. May be repeated.")
]
UsersOption = Annotated[
    list[str] | None,
    filter_option("--user", metavar="ID", help="Only agents whose metadata has this userId. May be repeated."),
]
MetadataOption = Annotated[
    list[str] | None,
    filter_option(
        "--metadata",
        metavar="KEY=VALUE",
        help="Only agents with this metadata; VALUE is JSON, or else text. May be repeated.",
    ),
]
CreatedAfter = Annotated[
    int | None,
    time_option("--created-after", f"Created then or later. A TIME is {TIME_HELP}; dates are UTC without --local."),
]
CreatedBefore = Annotated[int | None, time_option("--created-before", "Created earlier than that.")]
OrderOption = Annotated[
    str | None, paging_option("--order", metavar="asc|desc", help="Newest first is desc, the default.")
]
LimitOption = Annotated[
    int | None, paging_option("--limit", "-n", metavar="N", help="The most results; 100 by default.")
]
OffsetOption = Annotated[int | None, paging_option("--offset", metavar="N", help="Leave out the first N.")]
CursorOption = Annotated[
    str | None, paging_option("--cursor", metavar="TEXT", help="Continue after the page with this nextCursor.")
]
CountOption = Annotated[bool, paging_option("--count", help="Only the number of results.")]
FullOption = Annotated[bool, paging_option("--full", help="A table without shortened ids and values.")]
PrefixOption = Annotated[str | None, filter_option("--prefix", metavar="TEXT", help="Only agents whose id begins so.")]
AllOption = Annotated[bool, paging_option("--all", help="All results.")]


def given(**filters: Any) -> dict[str, Any]:
    """The filters that were given: neither None nor an option that may be repeated and was left out."""
    return {name: value for name, value in filters.items() if value is not None and value != []}


def metadata_filter(pairs: Sequence[str] | None) -> dict[str, Json] | None:
    """The metadata filter that ``--metadata key=value`` options describe."""
    if not pairs:
        return None
    found: dict[str, Json] = {}
    for pair in pairs:
        key, separator, text = pair.partition("=")
        if not separator:
            raise InvalidArgumentError(f"--metadata {pair!r} has no '='; write it as --metadata reward=1.0")
        found[key] = _json_or_text(text)
    return found


def _json_or_text(text: str) -> Json:
    try:
        return decode_json(text)
    except (ValueError, RecursionError):
        return text
