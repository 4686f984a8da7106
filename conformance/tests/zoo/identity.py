"""Stores that mix up names (ID clauses)."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from kode_conformance.context import Context
from kode_conformance.values import samples
from msgspec.structs import replace

from conformance.tests.zoo.base import OnJson, mutant
from conformance.tests.zoo.witnesses import seen, talk
from kode_core.backends.json_files.folder import Folder
from kode_core.batch import Batch, DocWrite, Fence, Outcome
from kode_core.errors import InvalidArgumentError, StoreUnavailableError
from kode_core.layers import Layer
from kode_core.model import AgentInfo, Snapshot
from kode_core.store import EngineStore

T = TypeVar("T")


class _Renames(Layer):
    """Keeps agents under another name than their own."""

    def named(self, agent_id: str) -> str:
        raise NotImplementedError

    async def around(self, verb: str, call: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        if verb == "commit":
            args = ([replace(batch, agent_id=self.named(batch.agent_id)) for batch in args[0]],)
        elif verb in ("summary", "rows", "outline", "docs", "events", "last_event", "stats"):
            args = (self.named(args[0]), *args[1:])
        return await call(*args, **kwargs)


def _saved_apart(one: str, two: str) -> Any:
    """A story of two agents that have nothing to do with each other."""
    return seen(
        lambda s: s.save_messages(one, talk("one")),
        lambda s: s.save_messages(two, talk("two")),
        lambda s: s.load_messages(one),
    )


@mutant(
    "ID-2",
    killed_by="ID-1.every_legal_id_is_an_agent_of_its_own",
    source="collations and file systems without case",
    witness=_saved_apart("A", "a"),
)
class FoldsCase(_Renames):
    """Takes "A" and "a" for one agent."""

    def named(self, agent_id: str) -> str:
        return agent_id.lower()


@mutant(
    "ID-2",
    killed_by="ID-1.every_legal_id_is_an_agent_of_its_own",
    source="KODE SDK JSONStore: names made safe with `_`, so that a/b and a_b are one",
    witness=_saved_apart("a/b", "a_b"),
)
class SanitisesNames(_Renames):
    """Puts "_" for every character that is unsafe in a file name."""

    def named(self, agent_id: str) -> str:
        return re.sub(r"[^\w.-]", "_", agent_id)


@mutant(
    "ID-1",
    killed_by="every_legal_id_is_an_agent_of_its_own",
    source="forms that trim",
    witness=_saved_apart(" ", "\t"),
)
class StripsSpace(_Renames):
    """Takes ids for one that differ in white space only."""

    def named(self, agent_id: str) -> str:
        return agent_id.strip() or "blank"


@mutant(
    "ID-2",
    killed_by="ID-1.every_legal_id_is_an_agent_of_its_own",
    source="KODE SDK JSONStore: path.join(base, id)",
    witness=_saved_apart("x/../a", "a"),
)
class JoinsPaths(_Renames):
    """Takes an id for a path: "x/../a" and "a" are one agent."""

    def named(self, agent_id: str) -> str:
        return posixpath.normpath(f"/{agent_id}")[1:] or "root"


async def _beside_the_store(ctx: Context) -> object:
    place = Path(ctx.handle["base_dir"]).parent / "beside.jsonl"
    place.write_text("")
    await ctx.store.delete("../beside")
    return place.exists()


@mutant(
    "ID-1",
    killed_by="nothing_outside_the_store_is_touched",
    on=OnJson,
    source="KODE SDK JSONStore: delete('../x') removes what is outside",
    witness=_beside_the_store,
)
class ReachesOutside(Folder):
    """Deletes beside its folder when an id begins with "../"."""

    def _commit(self, stripe: Any, journal: Any, batch: Batch) -> Any:
        outside = re.fullmatch(r"\.\./(\w+)", batch.agent_id)
        if batch.delete and outside is not None:
            (self.base.parent / f"{outside[1]}.jsonl").unlink(missing_ok=True)
        return super()._commit(stripe, journal, batch)


@mutant(
    "ID-1",
    killed_by="nothing_outside_the_store_is_touched",
    on=OnJson,
    source="KODE SDK SqliteStore: recovery makes runtime/ and events/ in every folder beside the database",
    witness=lambda ctx: _folders_beside(ctx),
)
class PollutesItsNeighbours(Folder):
    """Makes its own folders in every folder that lies beside it."""

    def open(self) -> None:
        super().open()
        for neighbour in self.base.parent.iterdir():
            if neighbour.is_dir() and neighbour != self.base:
                (neighbour / "runtime").mkdir(exist_ok=True)


async def _folders_beside(ctx: Context) -> object:
    neighbour = Path(ctx.handle["base_dir"]).parent / "neighbour"
    neighbour.mkdir()
    await ctx.another()
    return [path.name for path in neighbour.iterdir()]


@mutant(
    "ID-1",
    killed_by="illegal_ids_are_refused",
    source="KODE SDK JSONStore: delete('') removes the whole folder",
    witness=seen(
        lambda s: s.save_info("a", samples.info("a")),
        lambda s: s.delete(""),
        lambda s: s.list(),
    ),
)
class TheEmptyIdIsEverybody(EngineStore):
    """Deletes everything when the id is empty."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        for one in [agent_id] if agent_id else await self.list():
            await super().delete(one, fence=fence)


@mutant(
    "ID-1",
    killed_by="illegal_ids_are_refused",
    source="f-strings",
    witness=seen(lambda s: s.load_info(5)),
)
class TakesNumbersForIds(EngineStore):
    """Turns an id that is no string into one."""

    async def load_info(self, agent_id: str) -> AgentInfo | None:
        return await super().load_info(str(agent_id))


def _java_hash(text: str) -> str:
    number = 0
    for character in text:
        number = (31 * number + ord(character)) & 0x7FFFFFFF
    return str(number)


@mutant(
    "ID-2",
    killed_by="locks_of_different_ids_never_collide",
    source="KODE SDK PostgresStore: advisory locks under a 31-bit hash, so that Aa and BB block each other",
    witness=seen(lambda s: s.acquire_agent_lock("Aa"), lambda s: s.acquire_agent_lock("BB")),
    raises="'BB'",
)
class LocksByHash(Layer):
    """Keeps the locks under a hash of 31 bits."""

    async def acquire_lease(self, agent_id: str, owner: str, ttl_ms: int) -> int | None:
        return await super().acquire_lease(_java_hash(agent_id), owner, ttl_ms)

    async def renew_lease(self, agent_id: str, fence: Fence, ttl_ms: int) -> bool:
        return await super().renew_lease(_java_hash(agent_id), fence, ttl_ms)

    async def release_lease(self, agent_id: str, fence: Fence) -> None:
        await super().release_lease(_java_hash(agent_id), fence)


@mutant(
    "ID-3",
    killed_by="the_argument_is_the_key",
    source="KODE SDK SqliteStore and PostgresStore: saveInfo ignores its agentId and takes the info's",
    witness=seen(lambda s: s.save_info("a", samples.info("b")), lambda s: s.list()),
)
class TakesTheIdOfTheInfo(EngineStore):
    """Saves an info under its own id, whatever the argument says."""

    async def save_info(self, agent_id: str, info: AgentInfo, *, fence: Any = None) -> None:
        await super().save_info(info.agent_id, info, fence=fence)


# --- keys of records --------------------------------------------------------------------------------------------------


class _Keys(Layer):
    """Keeps documents under another key than their own."""

    def keyed(self, key: str) -> str:
        raise NotImplementedError

    async def commit(self, batches: Sequence[Batch]) -> Sequence[Outcome]:
        def renamed(write: DocWrite) -> DocWrite:
            doc = write.doc and replace(write.doc, key=self.keyed(write.key))
            return DocWrite(write.kind, self.keyed(write.key), doc)

        return await super().commit([replace(batch, docs=tuple(map(renamed, batch.docs))) for batch in batches])

    async def docs(self, agent_id: str, kind: Any, key: str | None = None) -> Any:
        return await super().docs(agent_id, kind, key and self.keyed(key))


@mutant(
    "ID-4",
    killed_by="other_ids_are_free_up_to_4096_bytes",
    source="KODE SDK JSONStore: the recovered files a/b and a_b are one",
    witness=seen(
        lambda s: s.save_recovered_file("a", samples.recovered("a/b", content="one")),
        lambda s: s.save_recovered_file("a", samples.recovered("a_b", content="two")),
        lambda s: s.load_recovered_files("a"),
    ),
)
class SanitisesKeys(_Keys):
    """Puts "_" for "/" in the keys of records."""

    def keyed(self, key: str) -> str:
        return key.replace("/", "_")


@mutant(
    "ID-4",
    killed_by="other_ids_are_free_up_to_4096_bytes",
    source="KODE SDK JSONStore: a long path is a file name that is too long",
    witness=seen(lambda s: s.save_snapshot("a", samples.snapshot("x" * 300)), lambda s: s.list_snapshots("a")),
    raises="File name too long",
)
class KeysAreFileNames(_Keys):
    """Fails on a key of more than 255 bytes."""

    def keyed(self, key: str) -> str:
        if len(key.encode()) > 255:
            raise StoreUnavailableError("File name too long")
        return key


@mutant(
    "ID-4",
    killed_by="illegal_keys_are_refused",
    source="KODE SDK JSONStore: any snapshot id is joined to a path",
    witness=seen(lambda s: s.load_snapshot("a", "")),
)
class TakesAnyKey(EngineStore):
    """Looks for a snapshot under any id."""

    async def load_snapshot(self, agent_id: str, snapshot_id: str) -> Snapshot | None:
        try:
            return await super().load_snapshot(agent_id, snapshot_id)
        except InvalidArgumentError:
            return None


@mutant(
    "LIFE-3",
    killed_by="delete_removes_everything",
    source="KODE SDK JSONStore: what is below a folder goes with it; here by prefix",
    witness=seen(
        lambda s: s.save_info("ab", samples.info("ab")),
        lambda s: s.delete("a"),
        lambda s: s.exists("ab"),
    ),
)
class DeletesByPrefix(EngineStore):
    """Deletes every agent whose id begins with the one that is given."""

    async def delete(self, agent_id: str, *, fence: Any = None) -> None:
        await super().delete(agent_id, fence=fence)
        for other in await self.list(agent_id):
            await super().delete(other)
