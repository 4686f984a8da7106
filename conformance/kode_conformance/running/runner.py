"""Running checks: one at a time on a store of its own, or all of them into a report."""

from __future__ import annotations

import hashlib
import os
import platform
import sysconfig
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from importlib.metadata import version
from inspect import isfunction
from pathlib import Path
from typing import Final

import kode_core
from kode_conformance.clauses import CONTRACT, clauses
from kode_conformance.context import Unverified, Violation, prepared
from kode_conformance.harness import HarnessError, StoreHarness, declared
from kode_conformance.instruments.costs import collected
from kode_conformance.registry import Capability, Check, load_checks
from kode_conformance.results import Report, Result, Status
from kode_conformance.running import loop as loops
from kode_conformance.running.loop import Hung, LoopThread
from kode_conformance.running.probes import absence_problem, probe
from kode_conformance.running.replay import replay_of
from kode_conformance.settings import Settings, Tier

__all__ = ["capabilities_of", "judge", "run_check", "run_suite", "selected", "versions_of"]

SCALE: Final = float(os.environ.get("KODE_CONFORMANCE_TIMEOUT_SCALE", "1"))


def capabilities_of(harness: StoreHarness) -> Capability:
    """All capabilities except the ones that the harness declares as lacking.

    Raises:
        HarnessError: an attribute of the harness is not of its kind.
        ValueError: ``lacks`` or ``deviations`` name something that does not exist.
    """
    declared(harness)
    found = Capability.ALL
    for name in harness.lacks:
        if name not in Capability.__members__:
            known = ", ".join(one.name or "" for one in Capability.ALL)
            raise ValueError(f"{harness.name} lacks {name!r}, which is no capability; there are {known}")
        found &= ~Capability[name]
    if not harness.deviations:
        return found
    unknown = sorted({*harness.deviations}.difference(check.id for check in load_checks()))
    if unknown:
        raise ValueError(f"{harness.name} declares deviations from checks that do not exist: {', '.join(unknown)}")
    return found


def selected(tier: Tier, patterns: Sequence[str] = ()) -> tuple[list[Check], list[Check]]:
    """The checks of a tier that match any of *patterns*, and the ones left out.

    A pattern is an area, a clause, the id of a check, or a part of the name of one. Checks of lower tiers come first.
    """
    mine = sorted((check for check in load_checks() if check.tier <= tier), key=lambda check: check.tier)
    chosen = [check for check in mine if not patterns or any(_matches(check, pattern) for pattern in patterns)]
    return chosen, [check for check in mine if check not in chosen]


def _matches(check: Check, pattern: str) -> bool:
    if "." in pattern:
        return check.id == pattern
    named = pattern.upper()
    if named in clauses() or any(clause.area == named for clause in clauses().values()):
        return any(named in (clause, clause.partition("-")[0]) for clause in check.clauses)
    return pattern.lower() in check.name


def run_check(check: Check, harness: StoreHarness, settings: Settings | None = None) -> None:
    """Run a check on a store of its own.

    Raises:
        Violation: a clause does not hold; the message names it.
    """
    asked = settings or Settings()

    async def run() -> None:
        async with prepared(harness, asked, check.id) as context:
            await check.run(context)

    with LoopThread() as loop:
        try:
            loop(run(), asked.limit * harness.patience * SCALE)
        except (Violation, Hung) as exc:
            raise Violation(f"{', '.join(check.clauses)} VIOLATED by {harness.name}: {check.claim}\n{exc}") from exc


def judge(check: Check, harness: StoreHarness, settings: Settings) -> Result:
    """Run a check and return its outcome; an error that is no finding of the check is an error of the store."""
    started, cpu = time.perf_counter(), _cpu()
    status, message = _outcome(check, harness, settings)
    deviation = harness.deviations.get(check.id)
    if deviation is not None and status is Status.FAIL:
        status, message = Status.DEVIATION, f"{deviation.reason}\n{message}"
    elif deviation is not None and status is Status.PASS and not check.stochastic:
        status, message = Status.STALE_DEVIATION, f"it passes now: remove the deviation ({deviation.reason})"
    needs_replay = status in (Status.FAIL, Status.DEVIATION, Status.HARNESS_ERROR)
    return Result(
        check=check.id,
        clauses=check.clauses,
        claim=check.claim,
        status=status,
        seconds=round(time.perf_counter() - started, 3),
        cpu=round(_cpu() - cpu, 3),
        message=message,
        replay=replay_of(check.id, settings) if needs_replay else "",
        stochastic=check.stochastic,
    )


def _cpu() -> float:
    """Seconds of CPU of this process and of the processes that it has waited for."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _outcome(check: Check, harness: StoreHarness, settings: Settings) -> tuple[Status, str]:
    missing = check.needs & ~capabilities_of(harness)
    if missing:
        return Status.NOT_APPLICABLE, f"the store lacks {missing.name}"
    try:
        run_check(check, harness, settings)
    except Unverified as exc:
        return Status.UNVERIFIED, str(exc)
    except HarnessError as exc:
        return Status.HARNESS_ERROR, str(exc)
    except Violation as exc:
        return Status.FAIL, str(exc.__cause__ or exc)
    except Exception as exc:  # noqa: BLE001 - whatever the store raises where it should not
        hook = _failing_hook(exc, harness)
        if hook:
            return Status.HARNESS_ERROR, f"its hook {hook} raised {_problem_of(exc)}"
        return Status.FAIL, _problem_of(exc)
    return Status.PASS, ""


_HOOKS: Final = tuple(
    name
    for name, method in vars(StoreHarness).items()
    if isfunction(method) and not name.startswith(("_", "open")) and name != StoreHarness.has.__name__
)
"""The methods of a harness that open no store: an error that comes out of them is not one of the store."""


def _failing_hook(exc: Exception, harness: StoreHarness) -> str:
    """The hook that the error came out of; empty when it came from elsewhere."""
    codes = {getattr(getattr(type(harness), name), "__code__", None): name for name in _HOOKS if harness.has(name)}
    frames = (frame.f_code for frame, _ in traceback.walk_tb(exc.__traceback__))
    return next((codes[code] for code in frames if code in codes), "")


def _problem_of(exc: Exception) -> str:
    """An error of the store, with the last places it went through, other than here and in the standard library; where
    something is not written yet, other than in the core, too.
    """
    own, library = [__file__, loops.__file__], sysconfig.get_path("stdlib")
    core = str(Path(kode_core.__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(exc.__traceback__)
        if frame.filename not in own
        and ("site-packages" in frame.filename or not frame.filename.startswith(library))
        and not (isinstance(exc, NotImplementedError) and frame.filename.startswith(core))
    ]
    here = f"{Path.cwd()}{os.sep}"
    places = (f"\n  at {one.filename.removeprefix(here)}:{one.lineno} {one.line}" for one in frames[-3:])
    return f"{type(exc).__name__}: {exc}{''.join(places)}"


def run_suite(
    harness: StoreHarness,
    settings: Settings,
    patterns: Sequence[str] = (),
    progress: Callable[[Result], None] = lambda result: None,
) -> Report:
    """Run all checks of the tier that match, after a look at the harness itself; *progress* hears of each."""
    started_at, started = int(time.time() * 1000), time.perf_counter()
    capabilities = capabilities_of(harness)
    chosen, left_out = selected(settings.tier, patterns)
    results: list[Result] = []

    def note(result: Result) -> None:
        results.append(result)
        progress(result)

    problem = _harness_problem(harness)
    with collected():  # modules and checks stay out of the collections of checks that measure
        for check in chosen:
            if problem:
                note(_unrun(check, Status.HARNESS_ERROR, problem))
            else:
                note(judge(check, harness, settings))
    if not problem and not left_out:
        for lacked in Capability.ALL & ~capabilities:
            note(_absence(harness, lacked))
    for check in left_out:
        note(_unrun(check, Status.NOT_RUN, "left out"))
    return Report(
        store=harness.name,
        contract=CONTRACT,
        tier=settings.tier.name.lower(),
        seed=settings.seed,
        pace=settings.seconds,
        versions=versions_of(harness),
        capabilities={one.name or "": one in capabilities for one in Capability.ALL},
        manifest=manifest(load_checks()),
        started_at=started_at,
        seconds=round(time.perf_counter() - started, 1),
        results=tuple(results),
        conditions=_conditions(results, chosen),
    )


def _conditions(results: Iterable[Result], checks: Iterable[Check]) -> int:
    """The number of pairs of a clause and a dimension that were varied by checks that passed."""
    passed = {result.check for result in results if result.status is Status.PASS}
    return len(
        {(clause, one) for check in checks if check.id in passed for clause in check.clauses for one in check.under}
    )


def _harness_problem(harness: StoreHarness) -> str:
    with LoopThread() as loop:
        try:
            loop(probe(harness), 60.0 * harness.patience * SCALE)
        except (HarnessError, Hung) as exc:
            return str(exc)
        except Exception as exc:  # noqa: BLE001 - the harness is another's code
            return _problem_of(exc)
    return ""


def _absence(harness: StoreHarness, lacked: Capability) -> Result:
    """Check the harness's claim that the store lacks a capability."""
    with LoopThread() as loop:
        try:
            problem = loop(absence_problem(harness, lacked), 60.0 * harness.patience * SCALE)
            status = Status.FAIL if problem else Status.PASS
        except Exception as exc:  # noqa: BLE001 - whatever the store raises where it should not
            status, problem = Status.HARNESS_ERROR, _problem_of(exc)
    return Result(
        check=f"HARNESS.{(lacked.name or '').lower()}_is_lacking",
        clauses=(),
        claim=f"The store lacks {lacked.name}, as the harness says.",
        status=status,
        message=problem,
    )


def _unrun(check: Check, status: Status, message: str) -> Result:
    return Result(check=check.id, clauses=check.clauses, claim=check.claim, status=status, message=message)


def manifest(checks: Iterable[Check]) -> str:
    """A digest of all checks and their claims."""
    lines = sorted(f"{check.id} {','.join(check.clauses)} {check.tier} {check.claim}" for check in checks)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def versions_of(harness: StoreHarness) -> dict[str, str]:
    """The versions of the judged store, of the suite and of Python, and the platform."""
    return {
        **harness.versions,
        "kode-core": version("kode-core"),
        "kode-conformance": version("kode-conformance"),
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
