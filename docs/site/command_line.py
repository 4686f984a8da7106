"""The reference of the command line, made from the application's own help while MkDocs builds."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Any, Final

import typer
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

from kode_core.cli.app import app

MARK: Final = "<!-- commands -->"
"""The line of ``reference/command-line.md`` that the commands replace."""


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put the commands into their page."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(MARK, "\n".join(described()))


def described() -> Iterator[str]:
    """The section of every command, also of the commands that other distributions add."""
    os.environ["COLUMNS"] = "100"
    group: Any = typer.main.get_command(app)
    context = group.make_context("kode", [], resilient_parsing=True)
    yield from _section("kode", group, context)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        yield from _section(f"kode {name}", command, command.make_context(name, [], context, resilient_parsing=True))


def _section(title: str, command: Any, context: Any) -> Iterator[str]:
    usage = re.sub(r"\s+", " ", " ".join(command.collect_usage_pieces(context)))
    yield f"## `{title}`\n"
    yield f"{_marked(command.help)}\n"
    yield f"```text\n{title} {usage}\n```\n"
    parameters = [p for p in command.get_params(context) if not getattr(p, "hidden", False)]
    yield from _table("argument", [p for p in parameters if p.param_type_name == "argument"], context)
    yield from _table("option", [p for p in parameters if p.param_type_name == "option"], context)
    examples = [line for line in (command.epilog or "").split("\n\n") if line.startswith(("kode ", "KODE_"))]
    if examples:
        yield '```sh title="Examples"\n' + "\n".join(line.replace("\\[", "[") for line in examples) + "\n```\n"


def _table(kind: str, parameters: list[Any], context: Any) -> Iterator[str]:
    records = [record for record in (p.get_help_record(context) for p in parameters) if record is not None]
    if not records:
        return
    yield f"| {kind} | meaning |\n|---|---|"
    for names, said in records:
        shown = ", ".join(f"`{name}`" for name in names.split(", "))
        yield f"| {shown} | {_cell(_marked(said))} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _marked(text: str | None) -> str:
    """The markup of rich as Markdown."""
    text = re.sub(r"\[bold\](.*?)\[/(?:bold)?\]", r"**\1**", text or "")
    return text.replace("\\[", "[")
