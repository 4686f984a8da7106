"""A database and the folder beside it know each other."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from kode_conformance import samples

from kode_core import ConfigurationError, create_extended_store

HYBRID = {"type": "sqlite", "db_path": "a.db", "file_store_base_dir": "files"}


async def make() -> None:
    async with create_extended_store(HYBRID) as store:
        await store.save_turn("a", append=samples.messages(1), info=samples.info("a"), events=samples.events(2))


async def test_the_files_are_not_forgotten() -> None:
    """A database that has a part of its agents in files is not opened without them."""
    await make()
    with pytest.raises(ConfigurationError, match=r"in files, which were at .*/files: give their folder as file_store_"):
        await create_extended_store("sqlite:///a.db")
    async with create_extended_store(HYBRID) as store:
        assert len([event async for event in store.read_events("a")]) == 2


async def test_the_files_are_the_right_ones() -> None:
    """Neither a new folder nor one of another store is taken for the one that belongs to the database."""
    await make()
    async with create_extended_store(type="json", base_dir="others") as other:
        await other.save_info("b", samples.info("b"))
    for folder in ("new", "others"):
        with pytest.raises(ConfigurationError, match=rf"{folder} is not the folder of .*, which was at .*/files"):
            await create_extended_store({**HYBRID, "file_store_base_dir": folder})
    with pytest.raises(ConfigurationError, match="others has agents of another store: give a new folder"):
        await create_extended_store(type="sqlite", db_path="b.db", file_store_base_dir="others")


async def test_a_database_that_has_everything_gets_no_files() -> None:
    """Its events and todos would be hidden."""
    async with create_extended_store("sqlite:///a.db") as store:
        await store.save_info("a", samples.info("a"))
    with pytest.raises(ConfigurationError, match="open it without file_store_base_dir"):
        await create_extended_store(HYBRID)
    async with create_extended_store("sqlite:///a.db") as store:
        assert await store.list() == ["a"]


async def test_a_moved_pair_and_a_backup_stay_together() -> None:
    """Both may be moved; a backup is a pair of its own that opens with its own folder."""
    await make()
    async with create_extended_store(HYBRID) as store:
        await store.backup("copy.db")
    async with create_extended_store(type="sqlite", db_path="copy.db", file_store_base_dir="copy.db.files") as copy:
        assert len([event async for event in copy.read_events("a")]) == 2
    with pytest.raises(ConfigurationError, match="file_store_base_dir"):
        await create_extended_store("sqlite:///copy.db")
    Path("files").rename("elsewhere")
    async with create_extended_store({**HYBRID, "file_store_base_dir": "elsewhere"}) as store:
        assert len([event async for event in store.read_events("a")]) == 2


async def test_many_first_opens_agree() -> None:
    """Stores that open a new pair at once all get it."""
    stores = await asyncio.gather(*(create_extended_store(HYBRID).__aenter__() for _ in range(10)))
    for i, store in enumerate(stores):
        await store.append_event("a", samples.event(i))
    assert len([event async for event in stores[0].read_events("a")]) == 10
    for store in stores:
        await store.close()
