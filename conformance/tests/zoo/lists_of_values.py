"""Stores that take lists of values wrongly, or count wrongly (QRY-1, QRY-2, QRY-10, LIFE-5)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kode_conformance.context import Context
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import at_once
from msgspec.structs import replace

from conformance.tests.zoo.base import Wrapper, mutant
from conformance.tests.zoo.queries import Sessions, sessions
from conformance.tests.zoo.witnesses import seen, the
from kode_core.errors import InvalidArgumentError
from kode_core.layers import Layer
from kode_core.model import Message, UnknownBlock
from kode_core.query import RowQuery, SessionQuery, values_of


def _of_messages(**filters: Any) -> Any:
    return seen(
        lambda s: s.save_messages("a", [Message.user("x"), Message.system("y"), Message.user("z")]),
        lambda s: the("position", s.query_messages(**filters)),
    )


@mutant(
    "QRY-2",
    killed_by="a_list_finds_what_each_value_finds",
    source="WHERE template_id = ? with the first of the values",
    witness=sessions({"template_id": ["x", "y"]}, a={"template_id": "x"}, b={"template_id": "y"}),
)
class OnlyTheFirstTemplate(Sessions):
    """Takes the first template of a list for all of them."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        return replace(query, template_id=values_of(query.template_id)[0] if query.template_id else None)


@mutant(
    "QRY-2",
    killed_by="a_list_finds_what_each_value_finds",
    source="a filter that is ignored where it is no text",
    witness=sessions({"user_id": ["u", "v"]}, a={"metadata": {"userId": "u"}}, c={"metadata": {"userId": "w"}}),
)
class ListsOfUsersAreIgnored(Sessions):
    """Finds all users where several are wanted."""

    def asked(self, query: SessionQuery) -> SessionQuery:
        return replace(query, metadata=tuple(pair for pair in query.metadata if isinstance(pair[1], str)))


class _Apart(Layer):
    """Asks for each role or type by itself, and puts the results one after the other."""

    async def find_rows(self, query: RowQuery) -> Any:
        lists = [(name, wanted) for name, wanted in query.where if isinstance(wanted, tuple)]
        if not lists or query.kind != "messages":
            return await super().find_rows(query)
        found: list[Any] = []
        for value in lists[0][1]:
            where = tuple((name, value if name == lists[0][0] else wanted) for name, wanted in query.where)
            every = replace(query, where=where, limit=query.limit + query.offset, offset=0)
            found += await super().find_rows(every)
        return self.merged(found, query)

    def merged(self, found: Sequence[Any], query: RowQuery) -> Sequence[Any]:
        raise NotImplementedError


def _key(row: Any) -> tuple[int, str, int]:
    return row.created_at, row.agent_id, row.position


@mutant(
    "QRY-2",
    killed_by="a_list_finds_what_each_value_finds",
    source="UNION ALL over the types of content",
    witness=seen(
        lambda s: s.save_messages("a", [Message("user", [UnknownBlock({"type": one}) for one in ("p", "q")])]),
        lambda s: the("position", s.query_messages(content_type=["p", "q"])),
    ),
)
class TwoTypesAreFoundTwice(_Apart):
    """Finds a message with two of the wanted types twice."""

    def merged(self, found: Sequence[Any], query: RowQuery) -> Sequence[Any]:
        rows = sorted(found, key=_key, reverse=query.descending)
        return rows[query.offset : query.offset + query.limit]


@mutant(
    "QRY-3",
    killed_by="QRY-2.a_list_finds_what_each_value_finds",
    source="one query for each value, joined",
    witness=_of_messages(role=["user", "system"]),
)
class ListsAreNotMerged(_Apart):
    """Gives the rows of one value after those of another, in no common order."""

    def merged(self, found: Sequence[Any], query: RowQuery) -> Sequence[Any]:
        rows = list({_key(row): row for row in found}.values())
        return rows[query.offset : query.offset + query.limit]


class _Asked(Wrapper):
    """Changes the filters of queries and deletes."""

    def asked(self, filters: dict[str, Any]) -> dict[str, Any]:
        raise NotImplementedError

    async def query_sessions(self, **filters: Any) -> Any:
        return await self.inner.query_sessions(**self.asked(filters))

    async def query_messages(self, **filters: Any) -> Any:
        return await self.inner.query_messages(**self.asked(filters))

    async def query_tool_calls(self, **filters: Any) -> Any:
        return await self.inner.query_tool_calls(**self.asked(filters))


@mutant(
    "QRY-2",
    killed_by="a_list_finds_what_each_value_finds",
    source="if filters.get(name)",
    witness=sessions({"template_id": []}, a={"template_id": "x"}),
)
class AnEmptyListIsNoFilter(_Asked):
    """Finds everything by an empty list."""

    def asked(self, filters: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in filters.items() if value or not isinstance(value, (list, tuple, set))}


@mutant(
    "QRY-5",
    killed_by="QRY-2.a_list_finds_what_each_value_finds",
    source="the hash of a cursor is of the filters as they were given",
    raises="other filters or another order",
    witness=sessions({"template_id": ["y", "x"]}, a={"template_id": "x"}, b={"template_id": "y"}),
)
class CursorsKnowTheOrderOfLists(_Asked):
    """Refuses a cursor where the list is not in the alphabetical order."""

    def asked(self, filters: dict[str, Any]) -> dict[str, Any]:
        for value in filters.values():
            if isinstance(value, list) and value != sorted(value) and all(isinstance(one, str) for one in value):
                raise InvalidArgumentError("this cursor belongs to a query with other filters or another order")
        return filters


@mutant(
    "QRY-2",
    killed_by="lists_tell_names_apart",
    source="the values of a list are compared by a collation that folds case",
    witness=sessions({"template_id": ["x", "y"]}, a={"template_id": "X"}, b={"template_id": "y"}),
)
class ListsFoldCase(_Asked):
    """Finds by a list also names that differ from its values in case."""

    def asked(self, filters: dict[str, Any]) -> dict[str, Any]:
        return {name: self._folded(value) for name, value in filters.items()}

    def _folded(self, value: Any) -> Any:
        if not isinstance(value, list) or not 1 < len(value) < 20:
            return value
        if not all(isinstance(one, str) for one in value):
            return value
        return [*value, *(one.swapcase() for one in value)]


@mutant(
    "QRY-1",
    killed_by="lists_are_checked",
    source="[str(value) for value in values]",
    witness=sessions({"template_id": ["x", 1]}, a={"template_id": "1"}),
)
class ListsOfAnything(_Asked):
    """Takes the values of a list that are no texts for their texts."""

    def asked(self, filters: dict[str, Any]) -> dict[str, Any]:
        return {
            name: [str(one) for one in value] if isinstance(value, list) else value for name, value in filters.items()
        }


@mutant(
    "LIFE-5",
    killed_by="delete_many_takes_lists",
    source="an empty list in a WHERE that is left out",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a", template_id="x")),
        lambda s: s.save_info("b", samples.info("b", template_id="y")),
        lambda s: s.delete_many(template_id=[], user_id=["u"]),
        lambda s: s.delete_many(template_id=[]),
        lambda s: s.list(),
    ),
)
class AnEmptyListDeletesEverything(Wrapper):
    """Deletes every session by an empty list."""

    async def delete_many(self, **filters: Any) -> Any:
        if any(isinstance(value, (list, tuple, set)) and not value for value in filters.values()):
            return await self.inner.delete_many(created_after=-(2**63))
        return await self.inner.delete_many(**filters)


# --- counts -----------------------------------------------------------------------------------------------------------


def _counts(**filters: Any) -> Any:
    return seen(
        lambda s: s.save_messages("a", [Message("user", [UnknownBlock({"type": one}) for one in ("p", "q")])] * 3),
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.count_messages(**filters),
        lambda s: s.count_messages(agent_id="none"),
    )


@mutant(
    "QRY-10",
    killed_by="counts_are_of_what_is_found",
    source="count_messages(**filters) is the sum of the heads",
    witness=_counts(role="none"),
)
class CountsIgnoreFilters(Wrapper):
    """Counts the messages of all roles."""

    async def count_messages(self, **filters: Any) -> Any:
        filters.pop("role", None)
        return await self.inner.count_messages(**filters)


@mutant(
    "QRY-10",
    killed_by="counts_by_lists",
    source="the sum of the counts of each value",
    witness=_counts(content_type=["p", "q"]),
)
class CountsAreSums(Wrapper):
    """Counts a message with two of the wanted types twice."""

    async def count_messages(self, **filters: Any) -> Any:
        types = filters.get("content_type")
        if not isinstance(types, (list, tuple, set, frozenset)) or len(types) > 20:
            return await self.inner.count_messages(**filters)
        return sum([await self.inner.count_messages(**{**filters, "content_type": one}) for one in {*types}])


@mutant(
    "QRY-10",
    killed_by="counts_go_beyond_a_page",
    source="len(await query_messages(limit=1000))",
    witness=seen(
        lambda s: s.save_messages("a", samples.messages(1001)),
        lambda s: s.count_messages(),
    ),
)
class CountsAPage(Wrapper):
    """Counts the records of the first page of a thousand."""

    async def count_messages(self, **filters: Any) -> Any:
        return min(1000, await self.inner.count_messages(**filters))


async def _many_sessions(ctx: Context) -> object:
    await at_once(ctx.store.save_info(f"{i}", samples.info(f"{i}")) for i in range(5001))
    return await ctx.store.count_sessions(template_id=samples.info("a").template_id)


@mutant(
    "QRY-10",
    killed_by="ten_thousand_agents_are_counted",
    source="SELECT count(*) FROM (SELECT 1 ... LIMIT 5000), for the sake of a fast first page",
    witness=_many_sessions,
    tier=Tier.STANDARD,
    slow=True,
)
class CountsFiveThousandSessions(Wrapper):
    """Counts 5,000 sessions when more match a filter."""

    async def count_sessions(self, **filters: Any) -> Any:
        found = await self.inner.count_sessions(**filters)
        return min(5000, found) if filters else found
