"""INFO-5: an update of metadata sets and removes the keys that it names, and leaves all others as they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from kode_conformance.context import Context
from kode_conformance.instruments.pace import in_time
from kode_conformance.values import samples
from kode_conformance.values.payloads import PAYLOADS
from kode_core.model import AgentInfo
from kode_core.protocols import ExtendedStore

__all__ = ["keep_names", "keep_values"]

_LONG: Final = ("long_", "very_", "huge_", "key_long", "list_of", "dict_of", "nested_99")
"""How the names of values begin that are too large to be written again and again."""


async def keep_values(ctx: Context, stores: Sequence[ExtendedStore]) -> None:
    """Updates leave the values of other keys exactly as they are, and set each value exactly."""
    values = {one.name: one.value for one in PAYLOADS if one.is_json and not one.name.startswith(_LONG)}
    values |= {"deep": {"a": [[], {}, [{}], {"b": []}, -0.0, 1.0, 10**30, None]}, "nothing": [], "no keys": {}}
    for agent_id in ("kept", "set"):
        await ctx.store.save_info(agent_id, samples.info(agent_id, metadata={"first": 1, **values, "last": 1}))
    wanted: dict[str, Any] = {"first": 1, **values, "last": 1}
    updates: Sequence[tuple[dict[str, Any], list[str]]] = (
        ({}, []),
        ({"new": []}, []),
        ({}, ["first"]),
        ({"new": 2}, ["last"]),
    )
    for number, (metadata, remove) in enumerate(updates):
        told = await stores[number % 2].update_info("kept", metadata, remove=remove)
        wanted = {key: value for key, value in (wanted | metadata).items() if key not in remove}
        found = await stores[1 - number % 2].load_info("kept")
        what = f"the metadata after update_info({metadata}, remove={remove})"
        _see_metadata(ctx, told, wanted, f"{what}, as it was returned")
        _see_metadata(ctx, found, wanted, what)
    await ctx.store.update_info("set", dict.fromkeys(values, 0))
    wanted = {"first": 1, **values, "last": 1}
    _see_metadata(ctx, await stores[1].update_info("set", values), wanted, "the values that an update returned")
    _see_metadata(ctx, await ctx.store.load_info("set"), wanted, "the values that an update set")


_PATHS: Final = (
    *(
        "a.b",
        "a.b.c",
        "a.0",
        "a.",
        ".a",
        ".",
        "a.*",
        "*",
        "a/b",
        "/a/b",
        "a~1b",
        "a[0]",
        "a[b]",
        "['a']",
        "l.0",
        "l[0]",
    ),
    *(
        "$a",
        "$.a.b",
        "$unset",
        "$set.a",
        "a->b",
        '"a"',
        '"a"."b"',
        "a\0b",
        "a\\0",
        "a\\.b",
        "a,b",
        "a:b",
        "#a",
        ":a",
        "",
        " ",
    ),
)
"""Names of keys that are a path, an operator or a placeholder in the language of some database."""


async def keep_names(ctx: Context, stores: Sequence[ExtendedStore]) -> None:
    """A key is a name, whatever it looks like: an update sets and removes the key of that name, and nothing inside the
    value of another; a name that looks like the path of a value, and is no key, removes nothing.
    """
    inside: dict[str, Any] = {"b": {"c": 1}, "0": 2, "": 3, "*": 4}
    wanted: dict[str, Any] = {"a": inside, "l": [1, {"b": 2}], "": {"a": inside}, "last": 1}
    await ctx.store.save_info("names", samples.info("names", metadata=wanted))
    names = [name for name in _PATHS if name]
    steps: list[tuple[dict[str, Any], list[str]]] = [({}, [name]) for name in names]
    steps += [({name: {"b": number, "c": []}}, []) for number, name in enumerate(_PATHS)]
    steps += [({}, [name]) for name in _PATHS]
    steps += [(dict.fromkeys(names, 1), []), ({"a.b": 2, "new": 1}, [name for name in names if name != "a.b"])]
    for number, (metadata, remove) in enumerate(in_time(ctx, steps)):
        told = await stores[number % 2].update_info("names", metadata, remove=remove)
        wanted = {key: value for key, value in (wanted | metadata).items() if key not in remove}
        what = f"the metadata after update_info({metadata!a:.100}, remove={remove!a:.100})"
        _see_metadata(ctx, told, wanted, f"{what}, as it was returned")
        _see_metadata(ctx, await stores[1 - number % 2].load_info("names"), wanted, what)


def _see_metadata(ctx: Context, info: AgentInfo | None, wanted: Mapping[str, Any], what: str) -> None:
    ctx.equal(info and dict(sorted(info.metadata.items())), dict(sorted(wanted.items())), what)
