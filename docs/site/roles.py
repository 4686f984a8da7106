"""Docstrings in the house's style, turned into Markdown for the reference.

:class:`Roles` is an extension of griffe, which reads the code for mkdocstrings. Roles become links where their target
is in the reference, and code elsewhere; a paragraph that ends in ``::`` is followed by a block of code; a clause of the
contract becomes a link to it.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any, Final

import griffe

ROLE: Final = re.compile(r":(class|meth|func|mod|attr|data|exc|const|obj):`~?([^`]+)`")
LITERAL: Final = re.compile(r"^(?P<before>[^\n]*)::\n\n(?P<code>(?:[ ]{4}[^\n]*\n|\n)+)", re.MULTILINE)
FIELDS: Final = re.compile(r"\b(Struct|Record|NamedTuple|ServerOptions)\b")
CODE: Final = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
CLAUSES: Final = "VAL|ID|MSG|TC|TURN|EVT|TODO|HIS|MED|SNAP|INFO|LIFE|QRY|OPS|LOCK|FORK|DUR"
CLAUSE: Final = re.compile(rf"\b(?:{CLAUSES})-\d+\b")


class Roles(griffe.Extension):
    """Rewrites the docstring of every object that is read."""

    def on_class_members(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        """Give records, structs and named tuples the constructor that their fields make."""
        bases = " ".join(str(base) for base in cls.bases)
        if FIELDS.search(bases) and "__init__" not in cls.members:
            cls.set_member("__init__", _constructor(cls))

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, obj)


def _constructor(cls: griffe.Class) -> griffe.Function:
    keywords_only = "kw_only" in cls.keywords
    parameters = [griffe.Parameter("self", kind=griffe.ParameterKind.positional_or_keyword)]
    kind = griffe.ParameterKind.keyword_only if keywords_only else griffe.ParameterKind.positional_or_keyword
    for field in cls.attributes.values():
        if field.annotation is not None and "ClassVar" not in str(field.annotation) and not field.name.startswith("_"):
            parameters.append(griffe.Parameter(field.name, annotation=field.annotation, kind=kind, default=field.value))
    return griffe.Function("__init__", parameters=griffe.Parameters(*parameters), parent=cls, lineno=cls.lineno)


def as_markdown(text: str, obj: griffe.Object) -> str:
    """A docstring with roles, literal blocks and clauses as Markdown."""
    text = LITERAL.sub(_fenced, f"{text}\n")
    parts = text.split("```")
    for number in range(0, len(parts), 2):
        parts[number] = ROLE.sub(lambda role: _link(role[1], role[2], obj), parts[number])
        parts[number] = _clauses(parts[number])
    return "```".join(parts).rstrip()


def _fenced(literal: re.Match[str]) -> str:
    before, code = literal["before"], textwrap.dedent(literal["code"]).strip("\n")
    language = "python" if re.search(r"\b(import|await|async|def|class)\b", code) else "text"
    return f"{before}:\n\n```{language}\n{code}\n```\n\n" if before else f"```{language}\n{code}\n```\n\n"


def _link(kind: str, name: str, obj: griffe.Object) -> str:
    try:
        path = obj.resolve(name.partition(".")[0])
        path += name[len(name.partition(".")[0]) :]
    except griffe.NameResolutionError:
        path = name
    shown = name if kind == "mod" or not name.startswith("kode_") else name.rpartition(".")[2]
    return f'<autoref identifier="{path}" optional><code>{shown}</code></autoref>'


def _clauses(text: str) -> str:
    """Links to the clauses that stand outside of code."""
    parts: list[str] = []
    end = 0
    for code in CODE.finditer(text):
        parts += [CLAUSE.sub(_clause, text[end : code.start()]), code.group()]
        end = code.end()
    return "".join([*parts, CLAUSE.sub(_clause, text[end:])])


def _clause(name: re.Match[str]) -> str:
    return f'<autoref identifier="{name[0].lower()}" optional>{name[0]}</autoref>'
