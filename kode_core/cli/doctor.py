"""``kode doctor``: checks that a store works and that its records fit together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, NamedTuple

import msgspec
import typer
from rich.console import RenderableType
from rich.text import Text

from kode_core.cli.completion import complete_agent
from kode_core.cli.known import require_agent
from kode_core.cli.opening import JsonOption, StoreOption, address, configured_store, open_store, places
from kode_core.cli.output import count, holdings, print_json, show, visible, watched
from kode_core.cli.queries import run
from kode_core.cli.tables import table
from kode_core.config import Configured
from kode_core.engine import Engine
from kode_core.layers.required import COMPRESSION, ENCRYPTION, Required
from kode_core.model import Json
from kode_core.protocols import ExtendedStore
from kode_core.report import (
    ConsistencyCheckResult,
    ConsistencyIssue,
    MediumHealth,
    RepairResult,
    StorageSize,
    StoreHealthStatus,
)
from kode_core.store.layered import layers_of
from kode_core.store.repairs import Repairable

__all__ = ["EXAMPLES", "doctor"]

EXAMPLES: Final = (
    "kode doctor",
    "kode doctor --store sqlite:///data/agents.db --agent tau-000-0",
    "kode doctor --repair --store dynamodb://eu-central-1/kode_agents",
    "kode doctor --json",
)


class _Findings(NamedTuple):
    """The results of all checks. A store that is not healthy is asked for nothing else."""

    health: StoreHealthStatus
    consistency: ConsistencyCheckResult | None = None
    size: StorageSize | None = None
    repair: RepairResult | None = None
    encryption: dict[str, Json] | None = None
    compression: dict[str, Json] | None = None

    @property
    def sound(self) -> bool:
        return self.health.healthy and self.consistency is not None and self.consistency.consistent


def doctor(
    agent: Annotated[
        str | None,
        typer.Option("--agent", metavar="ID", help="Check only this agent.", autocompletion=complete_agent),
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Before the check, clean up after processes that died.")
    ] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check that the store works and that its records fit together.

    Without --repair, the check changes nothing. It reads the whole store, so a large one takes its time. The exit code
    is 0 when all is well, 1 when there are problems, and 2 when the store cannot be opened.

    It says under which key a store is encrypted, from which size on it is compressed, and by which options.

    --repair first finishes the writes, deletes and forks of processes that died, and removes records that no reader can
    reach any more. The store would do the same some minutes later. It is safe while programs use the store. It changes
    no readable record and does not mend damage: restore a backup for that.
    """
    configured = configured_store(store)
    findings = run(_examine(store, agent, repair=repair))
    if as_json:
        print_json(_as_json(configured, findings))
    else:
        _print(configured, findings)
    raise typer.Exit(0 if findings.sound else 1)


async def _examine(target: str | None, agent_id: str | None, *, repair: bool) -> _Findings:
    async with open_store(target) as store:
        health = await store.health_check()
        if not health.healthy:
            return _Findings(health)
        repaired = await _repaired(store, agent_id) if repair else None
        with watched("checked") as progress:
            consistency = await store.check_consistency(agent_id, progress=progress)
        if agent_id is not None and any(issue.code == "unknown_agent" for issue in consistency.issues):
            await require_agent(store, agent_id)
        size, layers = (await store.get_metrics()).storage, await layers_of(store)
        kept = (_described(layers, ENCRYPTION), _described(layers, COMPRESSION))
        return _Findings(health, consistency, size, repaired, *kept)


def _described(layers: Sequence[Engine], required: Required) -> dict[str, Json] | None:
    """The description of a layer by which records are stored in another form; None without it."""
    for layer in layers:
        if getattr(type(layer), "required", None) is required:
            found: dict[str, Json] = getattr(layer, "described", dict)()
            return found
    return None


async def _repaired(store: ExtendedStore, agent_id: str | None) -> RepairResult:
    if not isinstance(store, Repairable):  # a store that was not made from an engine
        return RepairResult()
    with watched("repaired") as progress:
        return await store.repair(agent_id, progress=progress)


def _as_json(configured: Configured, findings: _Findings) -> dict[str, Any]:
    where = {
        "backend": configured.backend.name,
        "address": address(configured),
        "source": configured.source,
        "places": places(configured),
    }
    found = findings._asdict()
    for name in ("encryption", "compression"):
        if found[name] is not None:
            found[name] = {**found[name], "options": _options(configured, name)}
    return {"store": where, **found}


def _options(configured: Configured, kind: str) -> list[str]:
    """The options of the store that begin with *kind* and are given; none if a plugin brings the layer."""
    store = configured.store
    fields = [field for field in msgspec.structs.fields(store) if field.name.startswith(kind)]
    return [field.name for field in fields if getattr(store, field.name) != field.default]


def _print(configured: Configured, findings: _Findings) -> None:
    show(*_summary(configured, findings))
    issues = findings.consistency.issues if findings.consistency else ()
    if issues:
        show(_issue_table(issues))


def _summary(configured: Configured, findings: _Findings) -> Iterator[Text]:
    health = findings.health
    where = ", ".join((address(configured) or configured.backend.name, *places(configured)))
    yield _entry("store", Text(visible(f"{where} (from {configured.source})")))
    if health.problem is not None:
        yield _entry("health", _bad(health.problem))
    for name, medium in (("database", health.database), ("files", health.file_system)):
        if medium is not None:
            yield _entry(name, _medium(medium))
    if findings.repair is not None:
        yield _entry("repair", _done(findings.repair))
    if findings.size is not None:
        yield _entry("holds", Text(holdings(findings.size)))
        yield _entry("text search", Text(_text_search(findings.size)))
        yield _entry("encryption", Text(visible(_encryption(configured, findings.encryption))))
        yield _entry("compression", Text(visible(_compression(configured, findings.compression))))
    if findings.consistency is not None:
        yield _entry("consistency", _verdict(findings.consistency, findings.size))


def _text_search(size: StorageSize) -> str:
    if size.texts_hidden:
        return "an index that this user has no right to read; searches read the messages that other filters leave"
    if size.texts_waiting is None:
        return "reads the messages that other filters leave"
    waiting = f", {count(size.texts_waiting, 'message')} not in it yet" if size.texts_waiting else ""
    kept = "parts of deleted messages may be left in it, until kode text-index rebuild"
    return f"index{waiting}{f'; {kept}' if size.texts_of_deleted else ''}"


def _encryption(configured: Configured, found: dict[str, Json] | None) -> str:
    if found is None:
        return "none"
    keys: Any = found.get("keys") or ["?"]
    others = f", and reads with {count(len(keys) - 1, 'more key')}" if len(keys) > 1 else ""
    plain = "; records as plain text are read, too" if found.get("plaintext") == "read" else ""
    return f"writes under the key {keys[0]}{others}{_by(configured, 'encryption')}{plain}"


def _compression(configured: Configured, found: dict[str, Json] | None) -> str:
    if found is None:
        return "none"
    return f"of bodies from {found.get('minBytes', 0):,} bytes on{_by(configured, 'compression')}"


def _by(configured: Configured, kind: str) -> str:
    return f", by {', '.join(_options(configured, kind)) or 'a layer of a plugin'}"


def _entry(name: str, value: Text) -> Text:
    return Text.assemble((f"{name:<13}", "bold"), value)


def _medium(medium: MediumHealth) -> Text:
    if not medium.ok:
        return _bad(medium.problem or "does not answer")
    latency = "" if medium.latency_ms is None else f", {medium.latency_ms:.1f} ms"
    return Text.assemble(("ok", "green"), latency)


def _bad(problem: str) -> Text:
    return Text(visible(problem), "red")


def _verdict(result: ConsistencyCheckResult, size: StorageSize | None) -> Text:
    checked = f"{count(result.agents_checked, 'agent')} checked"
    without = result.agents_checked - size.total_agents if size is not None and result.consistent else 0
    if without > 0:  # no line above counts them, and no query lists them
        checked += f", {without:,} of them without info, as is normal for ids that only keep documents"
    if result.consistent:
        return Text.assemble(("ok", "green"), f", {checked}")
    return Text.assemble((count(len(result.issues), "problem"), "red"), f", {checked}")


def _done(result: RepairResult) -> Text:
    parts = []
    if result.finished:
        parts.append(f"{count(result.finished, 'unfinished call')} completed")
    if result.removed:
        parts.append(f"leftovers removed at {count(result.removed, 'place')}")
    text = Text.assemble((", ".join(parts) or "nothing was left behind", "green"))
    if result.left:
        text.append(
            f"; {count(result.left, 'attempt')} failed: another process is at work there, or the records are damaged"
        )
    return text


def _issue_table(issues: Sequence[ConsistencyIssue]) -> RenderableType:
    rows = ((issue.agent_id, issue.code, issue.message) for issue in issues)
    return table(("AGENT", "CODE", "PROBLEM"), rows, optional=("CODE",), wrap=True)
