"""A class with the methods of a protocol that are still to be written, taken from the protocol's own source."""

from __future__ import annotations

import ast
import builtins
import inspect
import sys
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from types import ModuleType
from typing import Final, NamedTuple, TypeAlias

__all__ = ["Skeleton", "import_lines", "skeleton_of"]

LINE_LENGTH: Final = 120

_Imports: TypeAlias = Mapping[str, Collection[str]]
"""By module, the names to import from it."""


class Skeleton(NamedTuple):
    """The code that a class needs to implement a protocol.

    Attributes:
        imports: by module, the names that the signatures use.
        aliases: definitions of the private names that they use, a statement each.
        methods: the methods with their docstrings, each raising NotImplementedError, as the body of a class.
        names: of the methods.
    """

    imports: _Imports
    aliases: tuple[str, ...]
    methods: str
    names: tuple[str, ...]


def skeleton_of(protocol: type, class_name: str, written: Collection[str] = ()) -> Skeleton:
    """The methods of *protocol* for a class of that name, except the methods in *written*."""
    lines = inspect.getsource(protocol).splitlines()
    (definition,) = ast.parse("\n".join(lines)).body
    assert isinstance(definition, ast.ClassDef)
    methods = [node for node in definition.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    parts: list[str] = []
    end = max(node.end_lineno or 0 for node in definition.body if node.lineno < methods[0].lineno)
    wanted = [method for method in methods if method.name not in written]
    for method in methods:
        assert method.end_lineno is not None
        if method in wanted and _is_overload(method):  # the method's signatures for type checkers
            parts += lines[end : method.end_lineno]
        elif method in wanted:
            parts += [*lines[end : method.body[-1].lineno - 1], f"        {_unwritten(class_name, method.name)}"]
        end = method.end_lineno
    imports, aliases = _origins(
        _names_in(part for method in wanted for part in _signature(method)), sys.modules[protocol.__module__]
    )
    return Skeleton(
        imports, aliases, "\n".join(parts).strip("\n"), tuple(dict.fromkeys(method.name for method in wanted))
    )


def _is_overload(method: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True for a signature without a body, which stands before its method."""
    return any(ast.unparse(decorator) == "overload" for decorator in method.decorator_list)


def _unwritten(class_name: str, method: str) -> str:
    return f'raise NotImplementedError("{class_name}.{method} is not written yet")'


def _names_in(nodes: Iterable[ast.AST]) -> set[str]:
    """The names that are used in *nodes*, builtins excepted."""
    used = {name.id for node in nodes for name in ast.walk(node) if isinstance(name, ast.Name)}
    return {name for name in used if not hasattr(builtins, name)}


def _signature(method: ast.FunctionDef | ast.AsyncFunctionDef) -> tuple[ast.AST, ...]:
    returned = [] if method.returns is None else [method.returns]
    return (method.args, *returned, *method.decorator_list)


def _origins(names: set[str], module: ModuleType) -> tuple[_Imports, tuple[str, ...]]:
    """The sources of *names* in *module*: an import keeps its source, a public name comes from the module itself, and a
    private one is copied.
    """
    body = ast.parse(inspect.getsource(module)).body
    sources = {
        alias.name: node.module
        for node in body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if node.module
    }
    private = {
        node.target.id: node
        for node in body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id.startswith("_")
    }
    aliases = tuple(ast.unparse(private[name]) for name in sorted(names & private.keys()))
    used = (names - private.keys()) | _names_in(private[name] for name in names & private.keys()) - private.keys()
    imports: defaultdict[str, set[str]] = defaultdict(set)
    for name in used:
        imports[sources.get(name, module.__name__)].add(name)
    return imports, aliases


# --- import statements ------------------------------------------------------------------------------------------------


def import_lines(imports: _Imports) -> str:
    """``from`` statements in the order of ruff: the standard library first, then installed packages."""
    parts = ["", ""]
    for module in sorted(imports):
        is_installed = module.partition(".")[0] not in sys.stdlib_module_names
        parts[is_installed] += _import_line(module, sorted(imports[module], key=_import_order))
    return "\n".join(filter(None, parts)).rstrip("\n")


def _import_order(name: str) -> tuple[bool, bool, str]:
    """Constants, then classes, then the rest."""
    return (not name.isupper(), not name[:1].isupper(), name)


def _import_line(module: str, names: Collection[str]) -> str:
    line = f"from {module} import {', '.join(names)}\n"
    if len(line) <= LINE_LENGTH + 1:
        return line
    return f"from {module} import (\n{''.join(f'    {name},' + chr(10) for name in names)})\n"
