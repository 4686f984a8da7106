"""Counts sentences that are hard to read, in docstrings, comments and pages: ``python -m tests.sentences``.

A sentence is easy to read when it has its subject first, one verb, and the noun's own name. The pattern finds the
constructions that this project used to write instead. It is coarse: a sentence that matches may be good English, so
each package may have one in a hundred. "At once", "another one" and questions are left out, as well as headings, code,
and quotations.
"""

from __future__ import annotations

import argparse
import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple

ROOT: Final = Path(__file__).parents[1]
MOST: Final = 0.01
"""The greatest share of a package's sentences that may match."""
ALLOWED: Final[dict[str, float]] = {
    "docs/kill-matrix.md": 0.071,
    "tests": 0.180,
    "tests/benchmarks": 0.211,
}
"""Rooms that are not rewritten yet, and the shares that they may have until then: these numbers only fall."""
SOURCES: Final = ("kode_core", "plugins/*/kode_*", "conformance/kode_conformance", "docs/examples", "tests")
PAGES: Final = ("README.md", "docs/**/*.md")
TWISTED: Final = re.compile(
    r"""
    \b(
        whoever | nobody | somebody
      | told \s of
      | those \s (of | that | who)
      | that \s of
      | what \s (is | was | it)
      | what \s (a | the) \s \S+ \s (is | has | does | did)
      | who \s (is | has | was | comes | waits | asks | takes)
      | beside
      | comes? \s again
      | (by | under) \s what
      | of \s whom
      | (is | are) \s there
    )\b
    | ^ (What | Whoever | Those | Of) \b
    """,
    re.VERBOSE,
)
_SECTION: Final = re.compile(r"^(Args|Raises|Returns|Yields|Attributes|Example|Examples):$")
_ITEM: Final = re.compile(r"^(\s*)([-*]|\d+\.)\s")
_ARGUMENT: Final = re.compile(r"^[*\w][\w, ]*: ")
_END: Final = re.compile(r"(?<!e\.g\.)(?<!i\.e\.)(?<=[.!?])[\"')*_]*\s+(?=[\"'(`*_]*[A-Z`])")
_CODE: Final = re.compile(r"``[^`]*``|`[^`]*`")
_LINK: Final = re.compile(r"\[([^\]]*)\]\([^)]*\)")


class Sentence(NamedTuple):
    path: Path
    line: int
    text: str

    @property
    def package(self) -> str:
        """What the sentence is counted with: its page, or its module's folder, at most three levels deep."""
        path = self.path.relative_to(ROOT)
        return "/".join(path.parent.parts[:3]) if path.suffix == ".py" else path.as_posix()

    @property
    def is_twisted(self) -> bool:
        text = _CODE.sub("`", self.text)
        return not text.endswith("?") and TWISTED.search(text) is not None


def sentences_of(path: Path) -> Iterator[Sentence]:
    """All sentences of a Python module or of a page."""
    text = path.read_text(encoding="utf-8")
    paragraphs = _of_python(text) if path.suffix == ".py" else _of_page(text)
    for line, paragraph in paragraphs:
        start = 0
        for end in [*_END.finditer(paragraph), None]:
            sentence = paragraph[start : end.start() if end else None].rstrip()
            if re.search(r"\w\W*\s\W*\w", sentence):
                yield Sentence(path, line + paragraph[:start].count("\n"), " ".join(sentence.split()))
            start = end.end() if end else start


def _of_python(source: str) -> Iterator[tuple[int, str]]:
    """The paragraphs of docstrings, those of attributes included, and of comments."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield from _paragraphs(node.lineno, node.value.value.splitlines())
    comments: list[str] = []
    begin = 0
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type != tokenize.COMMENT:
            continue
        if token.start[0] != begin + len(comments):
            yield from _paragraphs(begin, comments)
            begin, comments = token.start[0], []
        comments.append(token.string.lstrip("#! "))
    yield from _paragraphs(begin, comments)


def _of_page(text: str) -> Iterator[tuple[int, str]]:
    """The paragraphs, items and cells of a page, without headings, code, quotations and HTML."""
    lines = []
    is_code = False
    for line in text.splitlines():
        if line.startswith(("```", "<!--")):
            is_code = not is_code if line.startswith("```") else is_code
            lines.append("")
        elif is_code or line.startswith(("#", ">", "<")):
            lines.append("")
        else:
            lines.append(_LINK.sub(r"\1", line))
    yield from _paragraphs(1, lines)


def _paragraphs(line: int, lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Lines that belong together; an item of a list, a row of a table and a section's heading begin anew."""
    begin, some, in_section = line, list[str](), False
    for number, text in enumerate(lines, line):
        bare = text.strip()
        is_row = bare.startswith("|")
        in_section = bool(bare and (in_section or _SECTION.match(bare)))
        is_item = bool(_ITEM.match(text) or (in_section and _ARGUMENT.match(bare)))
        if not bare or is_row or is_item or _SECTION.match(bare):
            yield begin, "\n".join(some)
            some = []
        if is_row:
            yield from ((number, cell.strip()) for cell in bare.strip("|").split("|"))
        elif bare and not _SECTION.match(bare):
            begin = begin if some else number
            some.append(_ITEM.sub("", text).strip())
    yield begin, "\n".join(some)


def files(patterns: Sequence[str] = (*SOURCES, *PAGES)) -> list[Path]:
    """The modules and pages that are read."""
    found = [path for pattern in patterns for path in sorted(ROOT.glob(pattern))]
    modules = [module for path in found if path.is_dir() for module in sorted(path.rglob("*.py"))]
    return [*modules, *(path for path in found if path.is_file())]


class Package(NamedTuple):
    name: str
    total: int
    twisted: list[Sentence]

    @property
    def share(self) -> float:
        return len(self.twisted) / self.total

    @property
    def most(self) -> float:
        return ALLOWED.get(self.name, MOST)

    @property
    def is_over(self) -> bool:
        """One sentence is no share: a small package may have it."""
        return self.share > self.most and len(self.twisted) > 1


def packages(paths: Iterable[Path]) -> list[Package]:
    """The packages of the files, with their sentences that match."""
    by_package: dict[str, list[Sentence]] = {}
    for path in paths:
        for sentence in sentences_of(path):
            by_package.setdefault(sentence.package, []).append(sentence)
    return [
        Package(name, len(some), [one for one in some if one.is_twisted]) for name, some in sorted(by_package.items())
    ]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Counts sentences that are hard to read.")
    parser.add_argument(
        "packages", nargs="*", help="packages to print the sentences of; default: those over their share"
    )
    parser.add_argument("--shares", action="store_true", help="print the share of every package")
    args = parser.parse_args(argv)
    found = packages(files())
    over = [package for package in found if package.is_over]
    for package in [package for package in found if package.name in args.packages] if args.packages else over:
        for path, line, text in package.twisted:
            print(f"{path.relative_to(ROOT)}:{line}: {text}")
    for package in found if args.shares else over:
        limit = f"  over {package.most:.1%}" if package.is_over else ""
        print(f"{package.share:6.1%}  {len(package.twisted):4} of {package.total:5}  {package.name}{limit}")
    return int(bool(over))


if __name__ == "__main__":
    sys.exit(main())
