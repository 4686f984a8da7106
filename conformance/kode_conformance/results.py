"""The results of a run: a result for each check, a status for each clause, and one verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec

__all__ = ["BAD", "FORMAT", "Report", "Result", "Status", "Verdict", "read_report"]

FORMAT: Final = 1
"""The version of the report's JSON; a reader refuses a newer one."""


class Status(StrEnum):
    """The outcome of a check."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    DEVIATION = "deviation"
    """It fails, as the harness says."""
    STALE_DEVIATION = "stale deviation"
    """The harness says that it fails, and it passes: fails the run, so that the harness is put right."""
    NOT_APPLICABLE = "not applicable"
    """The store lacks the capability that the check needs, and the suite verified that."""
    UNVERIFIED = "unverified"
    """A hook of the harness, or a counter of the system, is missing."""
    HARNESS_ERROR = "harness error"
    """The harness itself failed, or does not do what it promises."""
    NOT_RUN = "not run"
    """The run left it out."""


BAD: Final = frozenset({Status.FAIL, Status.STALE_DEVIATION, Status.HARNESS_ERROR})
"""The statuses that someone must look at."""

_WORST_FIRST: Final = (
    Status.FAIL,
    Status.STALE_DEVIATION,
    Status.HARNESS_ERROR,
    Status.DEVIATION,
    Status.NOT_RUN,
    Status.UNVERIFIED,
    Status.PASS,
    Status.NOT_APPLICABLE,
)


class Verdict(StrEnum):
    """The judgement of the store."""

    CONFORMANT = "CONFORMANT"
    WITH_DEVIATIONS = "CONFORMANT WITH DEVIATIONS"
    NOT_CONFORMANT = "NOT CONFORMANT"
    PART_PASSED = "PART PASSED"
    """Only a part was asked for, and all of it passed."""
    INCOMPLETE = "INCOMPLETE"


class Result(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A check and its outcome.

    Attributes:
        check: its id, as in ``MSG-1.save_replaces_the_whole_list``.
        clauses: the clauses it checks.
        claim: the statement that must hold.
        seconds: how long it took.
        cpu: how many seconds of CPU it took, including processes that have ended.
        message: the finding, or why there is none.
        replay: what to add to the command to run just this again.
    """

    check: str
    clauses: tuple[str, ...]
    claim: str
    status: Status
    seconds: float = 0.0
    cpu: float = 0.0
    message: str = ""
    replay: str = ""
    stochastic: bool = False


class Report(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """A whole run.

    Attributes:
        store: the harness's name.
        versions: the versions of the store's parts, of the suite and of Python.
        capabilities: what the store offers, by name, as the suite saw it.
        pace: for how many seconds random checks went on, if not for as long as the tier says.
        conditions: how many pairs of a clause and a dimension were varied by checks that passed.
        manifest: a digest of all checks, which shows whether two reports come from the same suite.
    """

    format: int = FORMAT
    store: str
    contract: str
    tier: str
    seed: int
    pace: float | None = None
    versions: Mapping[str, str]
    capabilities: Mapping[str, bool]
    manifest: str
    started_at: int
    seconds: float
    results: tuple[Result, ...]
    conditions: int = 0

    def counts(self) -> Counter[Status]:
        """The number of checks by status."""
        return Counter(result.status for result in self.results)

    @property
    def verdict(self) -> Verdict:
        """The one word."""
        found = set(self.counts())
        if found & {Status.FAIL, Status.STALE_DEVIATION}:
            return Verdict.NOT_CONFORMANT
        if Status.HARNESS_ERROR in found or not found & {Status.PASS, Status.DEVIATION}:
            return Verdict.INCOMPLETE
        if Status.NOT_RUN in found:
            return Verdict.PART_PASSED
        return Verdict.WITH_DEVIATIONS if Status.DEVIATION in found else Verdict.CONFORMANT

    @property
    def cpu(self) -> float:
        """How many seconds of CPU the checks took, with the processes that they started."""
        return round(sum(result.cpu for result in self.results), 1)

    def by_clause(self) -> dict[str, list[Result]]:
        """The results under each clause that a check names, in the order of the checks."""
        found: dict[str, list[Result]] = {}
        for result in self.results:
            for clause in result.clauses:
                found.setdefault(clause, []).append(result)
        return found

    def clause_statuses(self) -> dict[str, Status]:
        """The worst outcome of any check of a clause; a part that was not verified weighs more than a pass."""
        return {
            clause: min((result.status for result in results), key=_WORST_FIRST.index)
            for clause, results in self.by_clause().items()
        }

    def failures(self) -> Sequence[Result]:
        """The results that someone must look at."""
        return [result for result in self.results if result.status in BAD]

    @property
    def partial(self) -> bool:
        """True if the run left out checks of its tier."""
        return Status.NOT_RUN in self.counts()


class _FormatOnly(msgspec.Struct):
    """The one field that every version of a report has."""

    format: int


def read_report(raw: bytes | str) -> Report:
    """A report from its JSON. What can be computed from it, as the verdict, is computed anew.

    Raises:
        ValueError: it is not a report, or one of a newer suite.
    """
    try:
        found = msgspec.json.decode(raw, type=_FormatOnly).format
        if found > FORMAT:
            raise ValueError(f"the report has format {found}, and this suite reads up to {FORMAT}: upgrade it")
        return msgspec.json.decode(raw, type=Report)
    except (msgspec.MsgspecError, UnicodeDecodeError) as exc:
        raise ValueError(f"this is no report of kode-conformance: {exc}") from exc
