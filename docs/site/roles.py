"""Docstrings in the house's style, turned into Markdown for the reference.

:class:`Roles` is an extension of griffe, which reads the code for mkdocstrings. Roles become links where their target
is in the reference, and code elsewhere; a paragraph that ends in ``::`` is followed by a block of code; a clause of the
contract becomes a link to it.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator
from typing import Any, Final

import griffe

ROLE: Final = re.compile(r":(class|meth|func|mod|attr|data|exc|const|obj):`~?([^`]+)`")
LITERAL: Final = re.compile(r"^(?P<before>[^\n]*)::\n\n(?P<code>(?:[ ]{4}[^\n]*\n|\n)+)", re.MULTILINE)
CODE: Final = re.compile(r"``.+?``|`[^`]+`", re.DOTALL)
CLAUSES: Final = "VAL|ID|MSG|TC|TURN|EVT|TODO|HIS|MED|SNAP|INFO|LIFE|QRY|OPS|LOCK|FORK|DUR"
CLAUSE: Final = re.compile(rf"\b(?:{CLAUSES})-\d+\b")


class Roles(griffe.Extension):
    """Rewrites the docstrings of all that is read, and completes classes whose constructor is not written out."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Rewrite one docstring."""
        if obj.docstring is not None:
            obj.docstring.value = as_markdown(obj.docstring.value, obj)

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        """Complete the classes of a package, once all of them are known."""
        found = list(_classes(pkg))
        for cls in found:
            if not _has_constructor(cls) and any(_makes_fields(one) for one in (cls, *_bases(cls))):
                cls.set_member("__init__", _constructor(cls))
            _free_list(cls)
        for cls in found:
            cls.bases = [base for base in cls.bases if not str(base).startswith("_")]


def _classes(module: griffe.Module | griffe.Class) -> Iterator[griffe.Class]:
    for member in module.members.values():
        if isinstance(member, griffe.Class):
            yield member
        if isinstance(member, griffe.Module | griffe.Class):
            yield from _classes(member)


def _bases(cls: griffe.Class) -> list[griffe.Class]:
    """The classes of the same package that a class is made from, the nearest first."""
    found: list[griffe.Class] = []
    bases: list[Any] = cls.resolved_bases
    for base in bases:
        one = base.final_target if base.is_alias else base
        if isinstance(one, griffe.Class):
            found += [one, *_bases(one)]
    return found


def _has_constructor(cls: griffe.Class) -> bool:
    """Whether the constructor stands in the code; griffe's own guess at it has no line."""
    constructor = cls.members.get("__init__")
    return constructor is not None and bool(constructor.lineno) and constructor.lineno != cls.lineno


def _makes_fields(cls: griffe.Class) -> bool:
    return any(str(base).rpartition(".")[2] in ("Struct", "NamedTuple") for base in cls.bases)


def _constructor(cls: griffe.Class) -> griffe.Function:
    """The constructor that msgspec or NamedTuple makes; fields of every record are left out."""
    either, keyword = griffe.ParameterKind.positional_or_keyword, griffe.ParameterKind.keyword_only
    fields: dict[str, griffe.Parameter] = {}
    for one in (*reversed(_bases(cls)), cls):
        kind = keyword if "kw_only" in one.keywords else either
        for field in (member for member in one.members.values() if isinstance(member, griffe.Attribute)):
            is_stored = field.labels & {"instance-attribute"} and "property" not in field.labels
            if field.annotation is not None and is_stored and (one.name != "Record" or one is cls):
                value = None if field.value is None else _default(str(field.value))
                fields[field.name] = griffe.Parameter(field.name, annotation=field.annotation, kind=kind, default=value)
    ordered = sorted(fields.values(), key=lambda field: field.kind is keyword)
    parameters = griffe.Parameters(griffe.Parameter("self", kind=either), *ordered)
    return griffe.Function("__init__", parameters=parameters, parent=cls, lineno=cls.lineno)


def _default(value: str) -> str:
    """The default of a field, as a reader would write it."""
    if made := re.match(r"field\(default_factory=(\w+)", value):
        return "()" if made[1] == "empty" else f"{made[1]}()"
    given = re.match(r"field\(default=([^,)]+)", value)
    return given[1] if given else value


def _free_list(cls: griffe.Class) -> None:
    """Let the ``list`` of annotations be Python's, also in a class that has a method of that name."""
    if "list" not in cls.all_members:
        return
    for function in (member for member in cls.members.values() if isinstance(member, griffe.Function)):
        for annotation in (function.returns, *(parameter.annotation for parameter in function.parameters)):
            if isinstance(annotation, griffe.Expr):
                for name in annotation.iterate(flat=True):
                    if isinstance(name, griffe.ExprName) and name.name == "list":
                        name.parent = None


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
