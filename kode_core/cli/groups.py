"""Numbers of results by values that they have in common: the options ``--by`` of commands that list records."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, Any

from rich.text import Text

from kode_core.cli.known import require_agents
from kode_core.cli.opening import open_store
from kode_core.cli.options import paging_option
from kode_core.cli.output import count, print_json, print_note, show, state_text, visible, wire
from kode_core.cli.queries import run
from kode_core.cli.tables import table
from kode_core.errors import InvalidArgumentError
from kode_core.model import Json
from kode_core.protocols import ExtendedStore
from kode_core.query import Group

__all__ = ["SortOption", "UtcOffsetOption", "by_option", "report_groups"]

UtcOffsetOption = Annotated[
    int | None,
    paging_option("--utc-offset", metavar="MINUTES", help="With --by day: when days begin, as in 60 or -300."),
]

SortOption = Annotated[
    str | None,
    paging_option("--sort", metavar="count", help="With --by: the largest groups first, of which --limit keeps N."),
]


def by_option(names: str) -> Any:
    """The option of a command whose results can be grouped by *names*."""
    return paging_option("--by", metavar="NAME", help=f"Only the numbers of results, by {names}. May be repeated.")


def report_groups(
    target: str | None,
    group: Callable[[ExtendedStore], Callable[..., Awaitable[Sequence[Group]]]],
    by: Sequence[str],
    filters: dict[str, Any],
    as_json: bool,
    sort: str | None = None,
) -> None:
    """Print the groups that a method of the store gives; *filters* are its other arguments.

    With *sort* the largest come first, and ``limit`` among the filters is the number of groups.
    """
    _see_names(by)
    limit = _limit(sort, filters)

    async def grouped() -> Sequence[Group]:
        async with open_store(target) as store:
            groups = await group(store)(list(by), **filters)
            await require_agents(store, filters.get("agent_id", ()))
            return groups

    found = run(grouped())
    number = len(found)
    if sort is not None:
        found = sorted(found, key=lambda one: -one.count)[:limit]  # equal ones stay in the order of their values
    if as_json:
        print_json({"groups": [_plain(one) for one in found]})
        return
    if found:
        show(_table(by, found, durations="durations" in filters))
    print_note(count(number, "group") if len(found) == number else f"{len(found):,} of {count(number, 'group')}")


def _see_names(by: Sequence[str]) -> None:
    for name in by:
        if "," in name:
            repeated = " ".join(f"--by {part.strip()}" for part in name.split(","))
            raise InvalidArgumentError(f"--by takes one name, and is repeated for more: {repeated:.200}")


def _limit(sort: str | None, filters: dict[str, Any]) -> int | None:
    """Take the number of groups out of *filters*; without *sort* it stays there, and the store refuses it."""
    if sort is None:
        return None
    if sort != "count":
        raise InvalidArgumentError(f"--sort must be count, got {sort!r:.60}; without it, groups are sorted by values")
    limit: int | None = filters.pop("limit", None)
    if limit is not None and limit < 0:
        raise InvalidArgumentError(f"--limit must not be negative, got {limit}")
    return limit


def _plain(group: Group) -> Json:
    """A group as JSON, with the mean of its durations."""
    plain: Any = wire(group)
    if group.durations is not None:
        plain["durations"]["meanMs"] = group.durations.mean_ms
    return plain


def _table(by: Sequence[str], found: Sequence[Group], *, durations: bool) -> Any:
    timed = ("TOTAL (MS)", "MEAN (MS)", "MAX (MS)") if durations else ()
    columns = (*(name.upper().replace("_", " ") for name in by), "COUNT", *timed)
    rows = [(*_values(one), f"{one.count:,}", *(_durations(one) if durations else ())) for one in found]
    return table(columns, rows, right=("COUNT", *timed))


def _values(group: Group) -> list[str | Text]:
    return [
        ("yes" if value else "no")
        if isinstance(value, bool)
        else state_text(value)
        if name == "state"
        else visible(value)
        for name, value in group.values.items()
    ]


def _durations(group: Group) -> tuple[str, str, str]:
    took = group.durations
    return ("", "", "") if took is None else (f"{took.total_ms:,.0f}", f"{took.mean_ms:,.0f}", f"{took.max_ms:,.0f}")
