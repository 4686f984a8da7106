"""Pages that are written for GitHub, turned into pages of the site.

MkDocs calls the functions ``on_…`` while it builds. A link that leaves ``docs/`` gets a page: Markdown as it is, a
source file with its code, a folder with a list of its files. Pictures are put into the page itself, where they follow
its colours. The words after a block's language, which only tests read, are taken out.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Final

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT: Final = Path(__file__).parents[2]
PLACES: Final = {"README.md": "index.md", "CONTRIBUTING.md": "contributing/index.md", "CHANGELOG.md": "changelog.md"}
"""Pages of the site for files of the top folder."""
LANGUAGES: Final = {".py": "python", ".toml": "toml", ".json": "json", ".sql": "sql", ".md": "markdown"}
FENCED: Final = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
LINK: Final = re.compile(r"(?<=\]\()(?!https?:|mailto:)([^)#\s]+)(?=[)#])")
CLAUSE: Final = re.compile(r"^- \*\*([A-Z]+-\d+)\*\*", re.MULTILINE)
LISTED: Final = re.compile(r"^(?!\s|[-*+] |\d+\. |[|>#])(.+)\n(?=(?:[-*+]|\d+\.) )", re.MULTILINE)
ROW: Final = re.compile(r"^\|.*$", re.MULTILINE)
CODE: Final = re.compile(r"`[^`]+`")
FENCE: Final = re.compile(r"^```(\w*) (from|skip:) ?(.*)$", re.MULTILINE)
PICTURE: Final = re.compile(r'<p><img alt="([^"]*)" src="(?:\.\./)*(pictures/[\w-]+\.svg)"\s*/?></p>')
CELL: Final = re.compile(r"<td[^>]*>.*?</td>", re.DOTALL)
IN_CELL: Final = re.compile(r"<code>([^<\s]+)</code>")
BREAK: Final = re.compile(r"(?<=[\w)])(?=[._/:]\w)(?!\.\w{1,4}$)")
WHOLE: Final = 24
"""Names in tables of so many characters stay on one line, unless the screen is a phone's."""
STYLE: Final = re.compile(r"\s*<style>.*?</style>", re.DOTALL)

_repository: dict[str, str] = {}
"""The path in the repository of each page of the site."""


def place(path: str) -> str:
    """The page of the site that shows *path*, a file or folder of the repository."""
    if path.startswith("docs/") and not path.startswith("docs/examples") and path.endswith(".md"):
        return path.removeprefix("docs/")
    if path.startswith("docs/") and path.endswith((".svg", ".png")):
        return path.removeprefix("docs/")
    if path in PLACES:
        return PLACES[path]
    if (ROOT / path).is_dir():
        return f"source/{path}/index.md"
    return f"source/{path if path.endswith('.md') else f'{path}.md'}"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for everything outside ``docs/`` that a page links to."""
    _repository.clear()
    waiting = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    for file in files.documentation_pages():
        _repository[file.src_uri] = f"docs/{file.src_uri}"
        waiting.extend(linked(f"docs/{file.src_uri}", file.content_string))
    while waiting:
        path = waiting.pop()
        uri = place(path)
        if files.get_file_from_path(uri) is not None or not (ROOT / path).exists():
            continue
        text = shown(path)
        files.append(File.generated(config, uri, content=text))
        _repository[uri] = path
        if path.endswith(".md") or (ROOT / path).is_dir():
            waiting.extend(linked(path, text))
    return files


def linked(path: str, text: str) -> Iterator[str]:
    """The files and folders of the repository that a page links to."""
    for target in LINK.findall(FENCED.sub("", text)):
        yield resolved(path, target)


def resolved(path: str, target: str) -> str:
    folder = path if (ROOT / path).is_dir() else posixpath.dirname(path)
    return posixpath.normpath(posixpath.join(folder, target))


def shown(path: str) -> str:
    """The text of a page for a file or folder."""
    file = ROOT / path
    if path.endswith(".md"):
        return file.read_text(encoding="utf-8")
    head = f"---\nsearch:\n  exclude: true\nhide:\n  - navigation\n---\n\n# `{path}`\n\n"
    if not file.is_dir():
        language = LANGUAGES.get(file.suffix, "text")
        return f"{head}````{language}\n{file.read_text(encoding='utf-8')}````\n"
    names = sorted(f.name for f in file.iterdir() if f.suffix in (".py", ".md", ".toml") or is_package(f))
    if "tests" in file.parts:  # hundreds of them, too many for a page each
        return head + "".join(f"- `{name}`\n" for name in names)
    return head + "".join(f"- [`{name}`]({name})\n" for name in names)


def is_package(folder: Path) -> bool:
    return folder.is_dir() and any(folder.glob("*.py"))


def on_page_markdown(markdown: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to pages of the site, and give each clause of the contract an anchor."""
    uri = page.file.src_uri
    path = _repository[uri]
    if uri.startswith("source/") and not path.endswith(".md") and not (ROOT / path).is_dir():
        return markdown
    parts: list[str] = []
    end = 0
    for block in FENCED.finditer(markdown):
        parts += [led(markdown[end : block.start()], path, uri), FENCE.sub(fence, block.group())]
        end = block.end()
    parts.append(led(markdown[end:], path, uri))
    text = "".join(parts)
    if uri == "contract.md":
        text = CLAUSE.sub(lambda m: f"- [](){{#{m[1].lower()}}}**{m[1]}**", text)
    return text


def led(text: str, path: str, uri: str) -> str:
    """A text with its links for the site, and two things that GitHub reads in another way than MkDocs.

    A list may follow a line of text directly, and a bar in the code of a table's cell is escaped.
    """
    text = LISTED.sub(r"\1\n\n", text)
    text = ROW.sub(lambda row: CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), text)
    return LINK.sub(lambda m: posixpath.relpath(place(resolved(path, m[1])), posixpath.dirname(uri) or "."), text)


def fence(opening: re.Match[str]) -> str:
    """The first line of a block: a quotation has its source as a title, and the reason of a skip is for tests."""
    language, word, rest = opening.groups()
    if word == "from" and rest.startswith("docs/examples/tutorial/"):  # the reader saves it under this name
        rest = posixpath.basename(rest)
    return f'```{language} title="{rest}"' if word == "from" else f"```{language or 'text'}"


def on_page_content(html: str, *, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Put each picture into the page, and let names in tables break between their words only."""
    html = CELL.sub(lambda cell: IN_CELL.sub(name, cell[0]), html)
    return PICTURE.sub(lambda m: picture(m[2], m[1]), html)


def name(code: re.Match[str]) -> str:
    """A name in a table, with the places where it may break."""
    text = BREAK.sub("<wbr>", code[1])
    return f'<code class="whole">{text}</code>' if len(code[1]) <= WHOLE else f"<code>{text}</code>"


def picture(path: str, alternative: str) -> str:
    """The SVG of a picture, with the colours of the site instead of its own."""
    svg = STYLE.sub("", (ROOT / "docs" / path).read_text(encoding="utf-8"))
    if not alternative:
        raise PluginError(f"{path} has no text alternative")
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{escape(alternative, quote=True)}" ', 1)
    return f'<figure class="picture">{svg}</figure>'
