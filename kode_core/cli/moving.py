"""The options, the progress and the reports of the commands that move agents."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.text import Text

from kode_core.cli.options import (
    given,
    metadata_filter,
    time_option,
)
from kode_core.cli.output import console, count, new_report, print_note, show, visible, watched
from kode_core.engine import Progress
from kode_core.jsonable import to_json
from kode_core.moving import CopyReport, MovedAgent
from kode_core.moving.outcomes import DONE

__all__ = ["ExistingOption", "ReportOption", "Told", "UpdatedAfter", "UpdatedBefore", "agent_filters"]

ExistingOption = Annotated[
    str | None,
    typer.Option(
        "--existing",
        metavar="HOW",
        help="Agents that the target has with other records: refuse, which is the default, skip, or replace them.",
    ),
]
UpdatedAfter = Annotated[int | None, time_option("--updated-after", "Changed then or later.")]
UpdatedBefore = Annotated[int | None, time_option("--updated-before", "Last changed earlier than that.")]
ReportOption = Annotated[
    Path | None, typer.Option("--report", metavar="FILE", help="Write the outcome of each agent, as JSON Lines.")
]

_SHOWN: Final = 20
_EVERY_S: Final = 10
_UNITS: Final = {
    "message": "message",
    "toolCall": "tool call",
    "event": "event",
    "document": "document",
    "snapshot": "snapshot",
}
_STYLES: Final = {"refused": "red", "damaged": "red"}


def agent_filters(
    agent: list[str] | None,
    prefix: str | None,
    template: list[str] | None,
    user: list[str] | None,
    metadata: list[str] | None,
    *times: int | None,
) -> dict[str, Any]:
    """The filters that were given; *times* are created after and before, and updated after and before."""
    names = ("created_after", "created_before", "updated_after", "updated_before")
    return given(
        agent_id=agent,
        prefix=prefix,
        template_id=template,
        user_id=user,
        metadata=metadata_filter(metadata),
        **dict(zip(names, times, strict=True)),
    )


class Told:
    """Tells of each agent while it is moved, and of all at the end.

    Args:
        verb: the word for an agent that was written, as in ``copied``.
        report: a new file that takes the outcome of each agent.
        quiet: write nothing to stdout, which has the archive.
    """

    def __init__(self, verb: str, report: Path | None = None, *, quiet: bool = False) -> None:
        self._verb = verb
        self._quiet = quiet
        self._file = None if report is None else new_report(report)
        self._shown = Counter[str]()
        self._outcomes = Counter[str]()
        self._counts = Counter[str]()
        self._size = 0

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """Show the progress: a bar on a terminal, and a line every ten seconds elsewhere.

        An error first says what was done until then.
        """
        try:
            if sys.stderr.isatty():
                with watched(self._verb) as bar:
                    yield bar
            else:
                yield _Lines()
        except Exception:
            with suppress(OSError):
                if self._outcomes:
                    more = "no file was made" if self._verb == "exported" else "started again, the command goes on"
                    print_note(f"{self._sentence()} until then; {more}")
            raise
        finally:
            if self._file is not None:
                self._file.close()

    def agent(self, one: MovedAgent) -> None:
        """Take the outcome of one agent."""
        if self._file is not None:
            self._file.write(to_json(one) + b"\n")
        self._outcomes[one.outcome] += 1
        if one.outcome in DONE:
            self._counts.update(one.counts)
            self._size += one.size
        style = _STYLES.get(one.outcome)
        if style is not None:
            self._shown[one.outcome] += 1
            if self._shown[one.outcome] <= _SHOWN:
                line = f"{one.outcome} {one.agent_id}: {one.reason}"
                console(sys.stderr).print(Text(visible(line), style), soft_wrap=True)
            elif self._shown[one.outcome] == _SHOWN + 1:
                print_note("… and more; --report FILE has all of them")

    def end(self, report: CopyReport) -> None:
        """Print the outcome of all; the exit code is 1 if something is missing."""
        out = print_note if self._quiet else lambda text: show(Text(text))
        out(self._sentence())
        for name in report.left_out:
            print_note(f"{name} cannot be read, and was left out; kode doctor says more")
        for difference in report.differences[:_SHOWN]:
            console(sys.stderr).print(Text(visible(difference), "red"), soft_wrap=True)
        if report.verified is not None:
            more = f", {count(len(report.differences), 'difference')}" if report.differences else ""
            out(f"compared both stores: {count(report.verified, 'agent')} equal{more}")
        if report.is_equal is not None:
            out("both stores are equal" if report.is_equal else "the stores are not equal")
        if not report.is_whole:
            missing = sum(report.outcomes.get(name, 0) for name in _STYLES)
            if missing:
                print_note(f"{count(missing, 'agent')} left out, see above")
            raise typer.Exit(1)

    def _sentence(self) -> str:
        done = sum(self._outcomes[name] for name in DONE)
        parts = [count(self._counts[name], unit) for name, unit in _UNITS.items() if self._counts[name]]
        size = f" ({self._size / 1e6:,.1f} MB)" if self._size else ""
        text = f"{self._verb} {', '.join([count(done, 'agent'), *parts])}{size}"
        for outcome, said in (("known", "there already"), ("skipped", "skipped"), ("deleted", "deleted")):
            number = self._outcomes[outcome]
            if number:
                text += f"; {count(number, 'agent')} {'was' if number == 1 else 'were'} {said}"
        return text


class _Lines:
    """Progress as plain lines."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _EVERY_S

    def __call__(self, done: int, total: int | None) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _EVERY_S
            print_note(f"{done:,}{'' if total is None else f' of {total:,}'} agents done")
