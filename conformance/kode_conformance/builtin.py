"""Harnesses of the stores that come with the core."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kode_conformance.harness import Handle, Space, StoreHarness
from kode_core.backends.json_files.files import file_name
from kode_core.backends.memory.engine import forget_memory
from kode_core.factory import create_extended_store
from kode_core.protocols import Store

__all__ = ["JsonHarness", "MemoryHarness"]


class MemoryHarness(StoreHarness):
    """The memory store: shared by the stores of one name within a process."""

    name = "memory"
    lacks = frozenset({"CROSS_PROCESS", "PERSISTENT"})

    async def provision(self, space: Space) -> Handle:
        return {"name": space.name}

    async def open(self, handle: Handle) -> Store:
        return await self.open_with(handle)

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        return await create_extended_store(type="memory", **handle, **options)

    async def destroy(self, handle: Handle) -> None:
        forget_memory(handle["name"])


class JsonHarness(StoreHarness):
    """The JSON files store."""

    name = "json"

    async def provision(self, space: Space) -> Handle:
        return {"base_dir": str(space.folder / "store")}

    async def open(self, handle: Handle) -> Store:
        return await self.open_with(handle)

    async def open_with(self, handle: Handle, **options: Any) -> Store:
        return await create_extended_store(type="json", **handle, **options)

    async def restored(self, handle: Handle, paths: Sequence[Path]) -> Handle:
        return {"base_dir": str(paths[0])}

    async def corrupt(self, handle: Handle, agent_id: str) -> None:
        (path,) = await self.files_of(handle, agent_id)
        path.write_bytes(path.read_bytes().replace(b'"text":"message 0"', b'"text":"message !"', 1))

    async def files_of(self, handle: Handle, agent_id: str) -> Sequence[Path]:
        return [Path(handle["base_dir"]) / f"{file_name(agent_id)}.jsonl"]

    async def raw_dump(self, handle: Handle) -> str:
        files = sorted(Path(handle["base_dir"]).rglob("*"))
        return "\n".join(f"{path}\n{path.read_text()}" for path in files if path.is_file())

    async def break_backend(self, handle: Handle) -> None:
        base = Path(handle["base_dir"])
        base.rename(f"{base}.away")
        base.write_text("a file where the folder was")

    async def heal_backend(self, handle: Handle) -> None:
        base = Path(handle["base_dir"])
        base.unlink()
        Path(f"{base}.away").rename(base)

    async def raise_version(self, handle: Handle) -> None:
        (Path(handle["base_dir"]) / ".kode" / "format").write_text("99\n")
