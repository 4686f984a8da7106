"""The methods of ``kode_core.sync.SyncStore``, written from the protocols of the async stores.

::

    python scripts/sync_methods.py            # writes kode_core/sync/methods anew
    python scripts/sync_methods.py --check    # fails if that would change something

Each protocol of ``ExtendedStore`` becomes a module with one class. A coroutine becomes a function, an async iterator a
:class:`~kode_core.sync.SyncIterator`, and a parameter ``fence`` gets the lease of the block that the caller is in.
Methods of another form are written by hand in ``kode_core/sync/store.py``; ``BY_HAND`` names them.
"""

from __future__ import annotations

import argparse
import ast
import builtins
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from kode_core.protocols import ExtendedStore

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "kode_core" / "sync" / "methods"
BY_HAND: Final = {"acquire_agent_lock", "close"}
TYPES: Final = {"Lease": ("kode_core.sync.locks", "SyncLease")}
"""Types of the protocols with another one for synchronous code."""
STREAMS: Final = {"AsyncIterator", "AsyncIterable", "AsyncGenerator", "EventStream"}
FIRST: Final = ("--config", 'lint.isort.known-first-party = ["kode_core"]')
INIT: Final = '"""The methods of the protocols for synchronous code, written by ``scripts/sync_methods.py``."""\n'


class _Renamed(ast.NodeTransformer):
    """Puts the types for synchronous code into an annotation."""

    def visit_Name(self, node: ast.Name) -> ast.Name:
        return ast.Name(TYPES[node.id][1]) if node.id in TYPES else node


class Module:
    """One generated module.

    Attributes:
        path: its file.
        text: what is in it, formatted.
    """

    def __init__(self, protocol: type) -> None:
        self.path = FOLDER / f"{_snake(protocol.__name__)}.py"
        source = inspect.getsource(importlib.import_module(protocol.__module__))
        self._home = protocol.__module__
        self._tree = ast.parse(source)
        self._imports: dict[str, set[str]] = {}
        self._aliases: dict[str, str] = {}
        (found,) = (
            node for node in self._tree.body if isinstance(node, ast.ClassDef) and node.name == protocol.__name__
        )
        methods = [
            self._method(node) for node in found.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]
        bases = [self._base(base) for base in protocol.__bases__ if _is_protocol(base)] or [
            self._import("kode_core.sync.calls", "Calls")
        ]
        doc = f'"""The methods of :class:`~kode_core.{protocol.__name__}` for synchronous code."""'
        body = "\n".join(filter(None, methods))
        cls = f"class {protocol.__name__}Methods({', '.join(bases)}):\n    {doc}\n\n{body}"
        imports = "\n".join(f"from {name} import {', '.join(sorted(n))}" for name, n in sorted(self._imports.items()))
        head = f'"""Written by ``scripts/sync_methods.py`` from ``{self._home}.{protocol.__name__}``."""\n\n'
        future = "from __future__ import annotations\n\n"
        exported = f'__all__ = ["{protocol.__name__}Methods"]\n\n'
        aliases = "\n".join(self._aliases.values())
        self.text = _formatted(f"{head}{future}{imports}\n\n{exported}{aliases}\n\n\n{cls}")

    def _base(self, base: type) -> str:
        return self._import(f"kode_core.sync.methods.{_snake(base.__name__)}", f"{base.__name__}Methods")

    def _import(self, module: str, name: str) -> str:
        self._imports.setdefault(module, set()).add(name)
        return name

    def _method(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
        if node.name.startswith("_") or node.name in BY_HAND:
            return ""
        args, doc, returns = node.args, ast.get_docstring(node, clean=False), node.returns
        assert returns is not None, node.name
        is_overload = any(ast.unparse(decorator) == "overload" for decorator in node.decorator_list)
        assert doc or is_overload, f"{node.name} has no docstring"
        call = f"lambda store: store.{node.name}({', '.join(_passed(node.name, args))})"
        if isinstance(node, ast.AsyncFunctionDef):
            call = f"self._call({call})"
        else:
            if not (isinstance(returns, ast.Subscript) and ast.unparse(returns.value) in STREAMS):
                sys.exit(f"{node.name} is neither a coroutine nor a stream: write it by hand, and name it in BY_HAND")
            item = returns.slice.elts[0] if isinstance(returns.slice, ast.Tuple) else returns.slice
            stream = self._import("kode_core.sync.iterators", "SyncIterator")
            returns = ast.Subscript(ast.Name(stream), item, ast.Load())
            call = f"self._iterate({call})"
        annotations = [arg.annotation for arg in _all(args) if arg.annotation is not None]
        for part in (*annotations, *args.defaults, *filter(None, args.kw_defaults), returns):
            self._need(part)
        shown = _Renamed().visit(args)
        result = ast.unparse(_Renamed().visit(returns))
        keep = "" if result == "None" else "return "
        if is_overload:
            self._import("typing", "overload")
            return f"    @overload\n    def {node.name}({ast.unparse(shown)}) -> {result}: ...\n"
        return f'    def {node.name}({ast.unparse(shown)}) -> {result}:\n        """{doc}"""\n        {keep}{call}\n'

    def _need(self, part: ast.AST) -> None:
        """Import what an annotation names, or repeat the private alias."""
        for name in (node.id for node in ast.walk(part) if isinstance(node, ast.Name)):
            if name in TYPES:
                self._import(*TYPES[name])
                self._import(self._origin(name), name)
            elif name != "SyncIterator" and not hasattr(builtins, name) and name not in self._aliases:
                self._find(name)

    def _find(self, name: str) -> None:
        for node in self._tree.body:
            if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == name and name.startswith("_"):
                self._aliases[name] = ast.unparse(node)
                self._import("typing", "TypeAlias")
                assert node.value is not None
                self._need(node.value)
                return
        self._import(self._origin(name), name)

    def _origin(self, name: str) -> str:
        """The module from which the protocol's module has a name; its own where it is defined there."""
        for node in self._tree.body:
            if isinstance(node, ast.ImportFrom) and any((alias.asname or alias.name) == name for alias in node.names):
                assert node.module is not None
                return node.module
        return self._home


def _all(args: ast.arguments) -> list[ast.arg]:
    last = [arg for arg in (args.vararg, args.kwarg) if arg is not None]
    return [*args.posonlyargs, *args.args, *args.kwonlyargs, *last]


def _passed(method: str, args: ast.arguments) -> Iterator[str]:
    """The arguments of the call of the async store."""
    given = [arg.arg for arg in (*args.posonlyargs, *args.args)][1:]
    yield from given
    if args.vararg:
        yield f"*{args.vararg.arg}"
    for arg in args.kwonlyargs:
        if arg.arg == "fence":
            assert given[:1] == ["agent_id"], f"{method} has a fence, and does not begin with agent_id"
            yield "fence=self._fence(agent_id, fence)"
        else:
            yield f"{arg.arg}={arg.arg}"
    if args.kwarg:
        yield f"**{args.kwarg.arg}"


def _snake(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()


def _is_protocol(cls: type) -> bool:
    return getattr(cls, "_is_protocol", False) and cls.__module__.startswith("kode_core")


def _formatted(text: str) -> str:
    ruff = (sys.executable, "-m", "ruff")
    for command in (("check", "--select", "I,F401", "--fix", "--quiet", *FIRST, "-"), ("format", "-")):
        name = ("--stdin-filename", str(FOLDER / "store.py"))
        done = subprocess.run(  # noqa: S603
            (*ruff, *command, *name), input=text, capture_output=True, text=True, cwd=ROOT, check=False
        )
        if done.returncode:
            sys.exit(done.stdout + done.stderr + text)
        text = done.stdout
    return text


def modules() -> dict[Path, str]:
    """All generated files with their text."""
    made = [Module(protocol) for protocol in reversed(ExtendedStore.__mro__) if _is_protocol(protocol)]
    return {FOLDER / "__init__.py": INIT, **{module.path: module.text for module in made}}


def main() -> None:
    """Write the files, or compare them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    wanted = modules()
    there = {path: path.read_text() for path in FOLDER.glob("*.py")}
    if parser.parse_args().check:
        if wanted != there:
            sys.exit(f"{FOLDER} is not of today: run scripts/sync_methods.py")
        return
    FOLDER.mkdir(exist_ok=True)
    for path in there.keys() - wanted.keys():
        path.unlink()
    for path, text in wanted.items():
        path.write_text(text)


if __name__ == "__main__":
    main()
