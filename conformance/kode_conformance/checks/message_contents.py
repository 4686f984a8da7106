"""QRY-12, QRY-13: messages are found by a text that they contain, and by their metadata."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from kode_conformance.checks.filters import VALUES, equals
from kode_conformance.context import Context
from kode_conformance.dimensions import Dimension, lengths, twins
from kode_conformance.histories.answers import matches
from kode_conformance.instruments.pace import in_time
from kode_conformance.registry import Capability, check
from kode_conformance.settings import Tier
from kode_conformance.values import samples
from kode_conformance.values.many import at_once, same
from kode_core.errors import InvalidArgumentError
from kode_core.model import FileBlock, Message, ReasoningBlock, TextBlock, ToolResultBlock, ToolUseBlock
from kode_core.model import UnknownBlock as Unknown
from kode_core.query import Group

_D: Final = Dimension
_Q: Final = Capability.QUERYABLE
_E: Final = Capability.QUERYABLE | Capability.EXTENDED

_COMBINING: Final = "e\u0301cole"
_COMPOSED: Final = "\u00e9cole"

_MESSAGES: Final[Sequence[Message]] = (
    Message.user("Straße nach Köln, 100% sicher"),
    Message("assistant", [ReasoningBlock("Think of ΣΊΣΥΦΟΣ"), TextBlock("a_b.*c"), TextBlock("d'e\"f\\g")]),
    Message(
        "assistant", [TextBlock("-"), ToolUseBlock("call-1", "search", {"key-1": ["Paris", {"k": "Rome"}], "n": 77})]
    ),
    Message("user", [ToolResultBlock("call-1", [{"type": "text", "text": "Temperature: 21\u00b0"}, 4.5, None])]),
    Message("user", [ToolResultBlock("call-2", "plain result")], metadata={"note": "in metadata"}),
    Message(
        "user", [Unknown({"type": "hologram", "beam": {"deep": ["Saber"]}}), FileBlock(filename="Report 2024.PDF")]
    ),
    Message("user", [TextBlock("ends with al"), TextBlock("pha begins")]),
    Message("user", [TextBlock("\0nul \n\t\x1b[0m"), TextBlock("\ud83d lone"), TextBlock("👩‍👩‍👧 \u202eשלום")]),
    Message("user", [TextBlock(_COMBINING), TextBlock("İstanbul"), TextBlock("ﬁne")]),
    Message("user", []),
    Message("user", ""),
    Message.user(_COMPOSED.upper()),
    Message(
        "assistant",
        [
            ToolUseBlock("call-3", "draw", {"type": "Ultra", "in": [{"type": "Rhomb", "text": "Quincunx", "n": 1}]}),
            ToolUseBlock(
                "call-4", "draw", {"in": {"name": "Gyros", "url": "Kiosk", "role": "Mimic", "content": "Orb"}}
            ),
            ToolResultBlock("call-3", {"type": "Zinc", "in": {"type": "Fjord"}}),
            Unknown({"type": "hologram", "in": [{"type": "Prism", "text": "Lynx"}]}),
        ],
    ),
)

_FOUND: Final[Mapping[str, Sequence[int]]] = {
    "STRASSE": [0],
    "straß": [0],
    "ẞe": [0],
    "ss": [0],
    "KÖLN": [0],
    "Koln": [],
    "100%": [0],
    "%": [0],
    "1%0": [],
    "σίσυφος": [1],
    "σίσυφοσ": [1],
    "a_b": [1],
    "_": [1],
    "axb": [],
    ".*": [1],
    "a.b": [],
    "'": [1],
    '"': [1],
    "\\": [1],
    "\\g": [1],
    "d'e\"f\\g": [1],
    "paris": [2],
    "ROME": [2],
    "key-1": [],
    "search": [],
    "call-1": [],
    "77": [],
    "temperature: 21°": [3],
    "4.5": [],
    "text": [3],
    "plain RESULT": [4],
    "in metadata": [],
    "note": [],
    "hologram": [],
    "beam": [],
    "saber": [5],
    "report 2024.pdf": [5],
    "alpha": [],
    "al": [6],
    "pha": [6],
    "user": [],
    "\0": [7],
    "\0NUL": [7],
    "\x1b[0M": [7],
    "\n\t": [7],
    "\n": [7],
    "\ud83d": [7],
    "\ud83d LONE": [7],
    chr(0xDE00): [],
    "👩": [7],
    "\u200d👧": [7],
    "שלום": [7],
    "םולש": [],
    "\u202e": [7],
    _COMBINING.upper(): [8],
    _COMPOSED: [11],
    "\u0301": [8],
    "i\u0307stan": [8],
    "istanbul": [],
    "FI": [8],
    "E": [1, 2, 3, 4, 5, 6, 7, 8, 0, 11],
    "-": [2],
    **dict.fromkeys(("ULTRA", "rhomb", "quincunx", "gyros", "kiosk", "mimic", "orb", "zinc", "fjord"), (12,)),
    **dict.fromkeys(("prism", "LYNX"), (12,)),
    "draw": [],
    "ends with alpha": [],
    "Köln, 100% sicher und mehr": [],
}
"""By the text, the positions of the messages that contain it, by QRY-12 alone."""


async def _see(ctx: Context, store: Any, filters: dict[str, Any], wanted: Sequence[int], what: str, turn: int) -> None:
    """A query of every form finds the messages at these positions of agent a."""
    order = ("asc", "desc")[turn % 2]
    places = [*wanted] if order == "asc" else [*wanted][::-1]
    page = await store.query_messages(**filters, order=order, limit=1000)
    ctx.equal([m.position for m in page], places, f"the positions that {what} finds, {order}")
    part = await store.query_messages(**filters, order=order, limit=2, offset=1)
    ctx.equal([m.position for m in part], places[1:3], f"{what}, limit=2, offset=1")
    found: list[int] = []
    cursor: str | None = None
    while True:
        page = await store.query_messages(**filters, order=order, limit=2, cursor=cursor)
        found += [m.position for m in page]
        cursor = page.next_cursor
        if cursor is None or len(found) > len(places):
            break
    ctx.equal(found, places, f"{what}, in pages of 2")
    streamed = [m.position async for m in store.iter_messages(**filters, order=order)]
    ctx.equal(streamed, places, f"{what}, by the iterator")
    ctx.equal(await store.count_messages(**filters), len(places), f"how many count_messages counts by {what}")
    groups = [Group(values={"agent_id": "a"}, count=len(places))] if places else []
    ctx.equal(await store.group_messages("agent_id", **filters), groups, f"the groups by {what}")


@check(
    *("QRY-12", "QRY-2", "QRY-3", "QRY-5", "QRY-6", "QRY-10", "QRY-11"),
    needs=_Q,
    under=(_D.LOOKALIKES, _D.EQUALS, _D.ORDERS, _D.INSTANCES),
)
async def a_text_is_found_where_it_stands(ctx: Context) -> None:
    """A text is found in each text of a message, in whichever case, literally, and in nothing else of it, by queries in
    pages and orders, by the iterator, counts and groups, in every instance.
    """
    other = await ctx.another()
    await ctx.store.save_messages("a", _MESSAGES)
    for turn, (text, wanted) in enumerate(in_time(ctx, _FOUND.items())):
        await _see(ctx, (ctx.store, other)[turn % 2], {"contains": text}, sorted(wanted), f"contains={text!a}", turn)


@check("QRY-12", "QRY-2", needs=_Q, under=(_D.TWINS, _D.LOOKALIKES, _D.ITEMS))
async def texts_and_other_filters_hold_together(ctx: Context) -> None:
    """With other filters a text finds the messages that meet all of them, also texts that comparisons overlook."""
    texts = [text for text in dict.fromkeys(twins()) if text]
    ctx.rng.shuffle(texts)
    await at_once(
        (
            ctx.store.save_messages(
                f"a{i}", [Message(("user", "tool")[(i + j) % 2], f"<{text}>", metadata={"i": j}) for j in range(2)]
            )
            for i, text in enumerate(texts)
        ),
        20,
    )
    every = list(await ctx.store.query_messages(order="asc", limit=1000))
    ctx.equal(len(every), 2 * len(texts), "how many messages there are")
    middle = every[len(every) // 2].created_at
    more: Sequence[dict[str, Any]] = (
        *({}, {"role": "tool"}, {"agent_id": "a1"}, {"created_after": middle}, {"metadata": {"i": 1}}),
        *({"content_type": "text"}, {"content_type": "image"}, {"created_before": middle, "role": "user"}),
    )
    for number, text in enumerate(in_time(ctx, texts[:: 3 if ctx.settings.tier is Tier.QUICK else 1])):
        filters = {"contains": (text, f"<{text}", f"{text}>".swapcase())[number % 3], **more[number % len(more)]}
        wanted = [m for m in every if matches("messages", m, filters)]
        found = await ctx.store.query_messages(**filters, order="asc", limit=1000)
        same(ctx, list(found), wanted, f"query_messages({filters!a})")


@check("QRY-12", "MSG-11", "LIFE-3", "FORK-2", "LIFE-8", needs=_E, under=(_D.CHANGES, _D.INSTANCES, _D.ITEMS))
async def texts_are_those_of_now(ctx: Context) -> None:
    """After every kind of change exactly the messages that are stored now are found, and no text of before."""
    other = await ctx.another()
    store = ctx.store

    async def see(what: str, **wanted: Sequence[tuple[str, int]]) -> None:
        for word, places in wanted.items():
            for at in (store, other):
                found = await at.query_messages(contains=word.upper(), order="asc", limit=1000)
                got = sorted((m.agent_id, m.position) for m in found)
                ctx.equal(got, sorted(places), f"who says {word!r} after {what}")

    await store.save_messages("a", [Message.user(f"apple {i}") for i in range(4)])
    await see("a save", apple=[("a", i) for i in range(4)], pear=[])
    await store.replace_message("a", 1, Message.user("a pear"))
    await see("replace_message", apple=[("a", 0), ("a", 2), ("a", 3)], pear=[("a", 1)])
    await store.append_messages("a", [Message.user("apple and pear"), Message.user("quince")])
    await see("an append", apple=[("a", i) for i in (0, 2, 3, 4)], pear=[("a", 1), ("a", 4)], quince=[("a", 5)])
    fork = await store.fork("a", "b") if await _with_info(store, "a") else "b"
    await see("a fork", pear=[("a", 1), ("a", 4), (fork, 1), (fork, 4)], quince=[("a", 5), (fork, 5)])
    await store.pop_messages("a", 1)
    await see("pop_messages", quince=[(fork, 5)])
    await store.truncate_messages("a", 2)
    await see("truncate_messages", apple=[("a", 0), *((fork, i) for i in (0, 2, 3, 4))], quince=[(fork, 5)])
    await store.save_messages("a", [Message.user("a pear"), Message.user("new"), Message.user("apple 0")])
    await see("a shifted save", pear=[("a", 0), (fork, 1), (fork, 4)], new=[("a", 1)])
    whole: Any = await store.load_agent(fork)
    await store.delete(fork)
    await see("a delete", pear=[("a", 0)], apple=[("a", 2)], quince=[])
    await store.import_agent("c", whole)
    await see("an import", pear=[("a", 0), ("c", 1), ("c", 4)], quince=[("c", 5)])
    await store.delete("a")
    await store.append_messages("a", [Message.user("melon")])
    await see("a new agent", apple=[("c", i) for i in (0, 2, 3, 4)], melon=[("a", 0)], new=[])


async def _with_info(store: Any, agent_id: str) -> bool:
    await store.save_info(agent_id, samples.info(agent_id))
    return True


_PLACES: Final[Sequence[Callable[[str], Sequence[Any]]]] = (
    lambda text: [TextBlock(text)],
    lambda text: [TextBlock("-"), ReasoningBlock(text)],
    lambda text: [FileBlock(filename=text)],
    lambda text: [ToolUseBlock("t", "n", {"in": ["-", text]})],
    lambda text: [ToolResultBlock("t", text)],
    lambda text: [ToolResultBlock("t", [{"type": "text", "text": text}])],
    lambda text: [Unknown({"type": "hologram", "deep": {"in": text}})],
)
"""The content of a message that has a text, for every place that a text has in a message."""


async def _see_long_texts(ctx: Context) -> None:
    """Texts at the beginning, in the middle and at the end of texts of all lengths, in every place, are found."""
    most = (ctx.harness.limits.max_payload_bytes or 2**40) // 4
    every = (257, 1025, 8193, 32_767, 65_537) if ctx.settings.tier is Tier.QUICK else lengths(up_to=most)[6:]
    sizes: list[int] = []
    for size in in_time(ctx, [size for size in every if size <= most]):
        hay = ("hay ", "é")[len(sizes) % 2] * size
        text = f"First{hay[: size // 2]}Middle{hay[: size // 2]}Final"
        await ctx.store.append_messages("a", [Message("user", list(place(text))) for place in _PLACES])
        sizes.append(size)
    wanted = list(range(len(sizes) * len(_PLACES)))
    for needle in ("FIRST", "MIDDLE", "final"):
        filters: Any = {"contains": needle, "agent_id": "a", "order": "asc"}
        what = f"the positions of {needle!r} in texts of {', '.join(map(str, sizes))} characters"
        found: list[int] = []
        cursor: str | None = None
        for _ in range(4 * len(wanted)):  # a page may be shorter than its limit, even empty
            page = await ctx.store.query_messages(**filters, cursor=cursor)
            found += [m.position for m in page]
            if (cursor := page.next_cursor) is None:
                break
        ctx.equal(found, wanted, f"{what}, each in {len(_PLACES)} places")
        ctx.equal([m.position async for m in ctx.store.iter_messages(**filters)], wanted, f"{what}, by the iterator")
        ctx.equal(await ctx.store.count_messages(contains=needle, agent_id="a"), len(wanted), f"{what}, counted")


@check("QRY-12", "QRY-5", "VAL-4", needs=_Q, under=(_D.LENGTHS, _D.ITEMS))
async def long_texts_and_many_messages_are_searched_to_the_end(ctx: Context) -> None:
    """A text is found at the begin, in the middle and at the end of texts of all lengths and in every place, wherever
    they may be cut, and in the oldest and the newest of many messages; a long text is found, too.
    """
    await _see_long_texts(ctx)
    sizes = (65_500, 131_000) if ctx.settings.tier is Tier.QUICK else (4_000, 8_100, 65_500, 131_000, 1_000_000)
    for i, size in enumerate(sizes):
        pieces = [f"{'ß' if i % 2 else 'x'}" * size, *(f"|{n:04}|" for n in range(20)), "Needle"]
        await ctx.store.save_messages(f"long{i}", [Message("user", [ToolResultBlock("t", ["".join(pieces)])])])
        for text in (
            "|0000||0001|",
            "|0018||0019|NEEDLE",
            "|0007||",
            "".join(pieces[1:]),
            ("x" if i % 2 == 0 else "ss") * 3 + "|0000",
        ):
            found = await ctx.store.query_messages(contains=text, agent_id=f"long{i}")
            ctx.equal(len(found), 1, f"how many messages of {size} characters contain {text!r}")
        found = await ctx.store.query_messages(contains=("ß" if i % 2 else "X") * 4_000, agent_id=f"long{i}")
        ctx.equal(len(found), 1, "how many messages contain a text of 4,000 characters")
    count = 700 if ctx.settings.tier is Tier.QUICK else 2_600
    few = {0, 1, 63, 64, 65, 500, count - 1}
    await ctx.store.save_messages(
        "many", [Message.user(f"{'rare' if i in few else 'common'} {i}") for i in range(count)]
    )
    for turn, text in enumerate(("RARE", "common", f"{count - 2}", "E ", "no such text")):
        wanted = [i for i in range(count) if text.lower() in f"{'rare' if i in few else 'common'} {i}"]
        filters: Any = {"contains": text, "agent_id": "many"}
        order: Any = ("asc", "desc")[turn % 2]
        places = [m.position async for m in ctx.store.iter_messages(**filters, order=order)]
        ctx.equal(places, wanted if order == "asc" else wanted[::-1], f"the positions of {text!r} among {count}")
        ctx.equal(await ctx.store.count_messages(**filters), len(wanted), f"how many of {count} contain {text!r}")


class _Text(str):
    """A text of a program's own."""


@check("QRY-12", "QRY-1", needs=_Q, under=(_D.LENGTHS, _D.ITEMS))
async def texts_to_look_for_are_checked(ctx: Context) -> None:
    """An empty text, a longer one than 10,000 characters, and everything that is no text are refused, and so is a
    cursor of another text; one character and 10,000 are taken.
    """
    store: Any = ctx.store
    await store.save_messages("a", [Message.user("x" * 10_001) for _ in range(3)])
    for bad in ("", None, "x" * 10_001, 1, 1.0, True, b"x", ["x"], ("x",), {"x"}, _Text("x")):
        for call in (store.query_messages, store.count_messages):
            await ctx.raises(InvalidArgumentError, call(contains=bad), f"{call.__name__}(contains={bad!r:.40})")
        await ctx.raises(InvalidArgumentError, store.group_messages("role", contains=bad), f"groups by {bad!r:.40}")
    for text in ("x", "X" * 10_000):
        page = await store.query_messages(contains=text, limit=2)
        ctx.equal(len(page), 2, f"how many messages contain a text of {len(text)} characters")
        for other in ({"contains": f"{text[1:]}y"}, {}, {"contains": text, "metadata": {"k": 1}}):
            what = f"a cursor of another query, by {[*other]}"
            await ctx.raises(InvalidArgumentError, store.query_messages(**other, cursor=page.next_cursor), what)
        rest = await store.query_messages(contains=text, limit=2, cursor=page.next_cursor)
        ctx.equal(len(rest), 1, "how many messages are on the second page")


_VALUES: Final[Sequence[Any]] = (
    *(None, True, False, 0, 1, 1.0, -0.0, 1.5, "", "1", "true", "A", "a", "é", "e\u0301", 10**30, 1e30),
    *(
        [],
        {},
        [1],
        [1.0],
        [True],
        {"a": 1, "b": [2]},
        {"b": [2.0], "a": 1},
        {"a": 1},
        "\ud800",
        "x" * 3_000,
        ["x" * 3_000],
    ),
)


@check(
    *("QRY-13", "QRY-2", "QRY-3", "QRY-5", "QRY-6", "QRY-10", "QRY-11"),
    needs=_Q,
    under=(_D.EQUALS, _D.NUMBERS, _D.LENGTHS, _D.ORDERS, _D.INSTANCES),
)
async def metadata_of_messages_compares_by_value(ctx: Context) -> None:
    """Each value of the metadata finds the messages that have an equal one under that key, alone and with other
    filters; an absent key, no metadata, and the metadata of the agent find nothing. The values are equal by the rule
    for sessions: to the last digit, in whatever order their keys are, at every level.
    """
    other = await ctx.another()
    kept: list[Any] = [{"k": value, "i": i % 2} for i, value in enumerate(_VALUES)]
    kept += [None, {}, {"K": 1}, {"i": 0}, {"k.a": 1}, {"x" * 600: 1}]
    await ctx.store.save_info("a", samples.info("a", metadata={"k": 1, "agent": True}))
    await ctx.store.save_messages("a", [Message("user", "t", metadata=metadata) for metadata in kept])
    every = list(await ctx.store.query_messages(order="asc", limit=1000))
    ctx.equal(len(every), len(kept), "how many messages there are")
    asked: list[dict[str, Any]] = [{"k": value} for value in _VALUES]
    asked += [{"k": 1, "i": 0}, {"k": 1, "i": 1}, {"absent": None}, {"agent": True}, {"k.a": 1}, {"x" * 600: 1.0}, {}]
    for turn, metadata in enumerate(in_time(ctx, asked)):
        filters: dict[str, Any] = {"metadata": metadata, **({"contains": "T"} if turn % 3 == 0 else {})}
        wanted = [m.position for m in every if matches("messages", m, filters)]
        await _see(ctx, (ctx.store, other)[turn % 2], filters, wanted, f"metadata={metadata!a:.80}", turn)
    agents = {f"v{start:03}": VALUES[start : start + _NEAR] for start in range(0, len(VALUES), _NEAR)}
    for agent_id, values in agents.items():
        saved = [Message("user", "t", metadata={"v": value, "w": 1}) for value in values]
        await ctx.store.save_messages(agent_id, saved)
    asking = [(agent_id, place, equal) for agent_id in agents for place, equal in _asking(agents[agent_id])]
    ctx.rng.shuffle(asking)
    for turn, (agent_id, place, equal) in enumerate(in_time(ctx, asking)):
        metadata = {"v": equal, **({"w": 1.0} if turn % 2 else {})}
        of: dict[str, Any] = {"agent_id": agent_id} if turn % 16 else {}
        await _see_one(ctx, (ctx.store, other)[turn % 2], {"metadata": metadata, **of}, (agent_id, place))


_NEAR: Final = 16
"""How many values, which are alike, the messages of an agent have."""


def _asking(values: Sequence[Any]) -> list[tuple[int, Any]]:
    return [(place, equal) for place, value in enumerate(values) for equal in equals(value)]


async def _see_one(ctx: Context, store: Any, filters: dict[str, Any], wanted: tuple[str, int]) -> None:
    """The message of this agent at this position, and no other, is found, streamed and counted by the filters."""
    asked = f"{filters!a:.120}"
    found = [(m.agent_id, m.position) for m in await store.query_messages(**filters)]
    ctx.equal(found, [wanted], f"what query_messages finds by {asked}")
    streamed = [(m.agent_id, m.position) async for m in store.iter_messages(**filters)]
    ctx.equal(streamed, [wanted], f"what iter_messages finds by {asked}")
    ctx.equal(await store.count_messages(**filters), 1, f"how many count_messages counts by {asked}")


@check("QRY-13", "QRY-1", needs=_Q, under=(_D.ITEMS,))
async def metadata_to_look_for_is_checked(ctx: Context) -> None:
    """Metadata that is no mapping of texts to JSON values, or has more than 500 keys, is refused; 500 are taken."""
    many = {f"k{i}": i for i in range(501)}
    few = dict(itertools.islice(many.items(), 500))
    store: Any = ctx.store
    await store.save_messages("a", [Message("user", "t", metadata=few), Message("user", "t", metadata=many)])
    for bad in (None, 5, "k", ["k"], {1: 1}, {"k": float("nan")}, {"k": {1}}, {"k": b"x"}, many):
        for call in (store.query_messages, store.count_messages):
            await ctx.raises(InvalidArgumentError, call(metadata=bad), f"{call.__name__}(metadata={bad!r:.40})")
    ctx.equal(len(await store.query_messages(metadata=few)), 2, "how many messages have 500 keys")
