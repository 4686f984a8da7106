"""The documentation as a site: it is built without a warning, is complete, and fetches nothing from elsewhere."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import msgspec
import pytest

import kode_core
from kode_core.layers import Layer

ROOT = Path(__file__).parents[1]
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers")
NAMED_IN_SCRIPTS = {
    "https://unpkg.com/mermaid@11/dist/mermaid.min.js",  # loaded for diagrams of mermaid, which no page has
    "https://unpkg.com/resize-observer-polyfill",  # loaded by browsers of before 2020, which cannot tell sizes
    "https://api.github.com/repos/",  # asked for the numbers of a repository, which no page shows
    "https://api.github.com/users/",
}
LOADING = {"src", "srcset", "data", "poster", "action", "xlink:href"}
SAYS = ("http:", "https:", "//")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in NEEDED),
    reason="the packages that build the documentation are not installed: pip install -r requirements-dev.txt",
)


class Page(HTMLParser):
    """What a page loads, where it leads, and what can be led to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: set[str] = set()
        self.links: set[str] = set()
        self.ids: set[str] = set()
        self.classes: set[str] = set()
        self.pictures: list[dict[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self.classes |= set(given.get("class", "").split())
        self.loads |= {value for name, value in given.items() if name in LOADING}
        if tag == "a" and "href" in given:
            self.links.add(given["href"])
        elif "href" in given and given.get("rel") not in ("canonical", "next", "prev"):
            self.loads.add(given["href"])
        if tag == "svg" and given.get("role") == "img":
            self.pictures.append(given)


@pytest.mark.slow
def test_the_site(tmp_path: Path) -> None:
    """The site is built strictly, its links lead somewhere, all names are in it, and it fetches nothing from others."""
    site = tmp_path / "site"
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(site)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    pages = {file: Page(file.read_text()) for file in site.rglob("*.html")}
    assert [*fetched(site, pages), *broken(site, pages), *missing(site, pages)] == []


def fetched(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """What a browser would fetch from elsewhere."""
    for file, page in pages.items():
        yield from (f"{file}: {url}" for url in page.loads if url.startswith(SAYS))
        yield from (f"{file}: {name}" for name in {"mermaid", "md-source"} & page.classes)
    for file in site.rglob("*.css"):
        urls = re.findall(r"url\([\"']?([^)\"']+)|@import ([^;]+)", file.read_text())
        yield from (f"{file}: {url}" for pair in urls for url in pair if url.startswith(SAYS))
    for file in (*site.rglob("*.js"), *site.rglob("*.html")):
        for url in re.findall(r"[\"'`](https?://[^\"'`$]+)[\"'`$]", scripts(file)):
            if url not in NAMED_IN_SCRIPTS:
                yield f"{file}: {url}"


def scripts(file: Path) -> str:
    """The program in a file, without comments."""
    text = file.read_text()
    if file.suffix == ".html":
        text = "\n".join(re.findall(r"<script\b[^>]*>(.*?)</script>", text, flags=re.DOTALL))
    return re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL)


def broken(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Links to pages and headings that are not there, those of the reference included."""
    for file, page in pages.items():
        if file.name == "404.html":
            continue
        here = f"/{file.relative_to(site)}"
        for link in page.links:
            if link.startswith((*SAYS, "mailto:")):
                continue
            target = urlsplit(urljoin(here, link))
            found = site / unquote(target.path).lstrip("/")
            found = found / "index.html" if found.is_dir() else found
            anchor = unquote(target.fragment)
            if not found.is_file() or (anchor and found in pages and anchor not in pages[found].ids):
                yield f"{here}: {link}"


def missing(site: Path, pages: dict[Path, Page]) -> Iterator[str]:
    """Names that the reference leaves out, and pictures that are not in their page or have no words."""
    ids = set[str]().union(*(page.ids for file, page in pages.items() if "reference" in file.parts))
    names = {f"kode_core.{name}" for name in kode_core.__all__}
    names |= {f"kode_core.layers.base.Layer.{name}" for name in vars(Layer) if not name.startswith("_")}
    yield from (f"{name} is in no page of the reference" for name in names - ids)
    texts = "".join(page.read_text() for page in (ROOT / "docs").rglob("*.md"))
    drawn = len(re.findall(r"\]\((?:\.\./)*pictures/[\w-]+\.svg\)", texts))
    shown = sum(bool(picture.get("aria-label")) for page in pages.values() for picture in page.pictures)
    if shown != drawn:
        yield f"{drawn} pictures are drawn, {shown} are shown"


def test_constructors_in_the_reference_are_the_real_ones() -> None:
    """The constructor that the reference shows of a record takes what the record's own takes, in the same order."""
    import griffe

    extensions = griffe.load_extensions(str(ROOT / "docs" / "site" / "roles.py"))
    loader = griffe.GriffeLoader(extensions=extensions, search_paths=[ROOT])
    package = loader.load("kode_core")
    loader.resolve_aliases(implicit=True)
    seen = 0
    for name in kode_core.__all__:
        record = getattr(kode_core, name)
        if isinstance(record, type) and issubclass(record, msgspec.Struct):
            shown = [parameter.name for parameter in package[name].parameters if parameter.name != "self"]
            real = [one for one in inspect.signature(record).parameters if one != "extra" or one in shown]
            assert shown == real, name
            seen += 1
    assert seen > 20


@pytest.mark.parametrize("file", sorted((ROOT / "docs" / "pictures").glob("*.svg")), ids=lambda file: file.stem)
def test_pictures_are_small_and_say_what_they_show(file: Path) -> None:
    """A picture has a title and a description, follows dark and light, and is a few kilobytes of readable text."""
    text = file.read_text()
    assert len(text) < 10_000
    assert "<title>" in text
    if file.stem != "favicon":
        assert "<desc>" in text
        assert "prefers-color-scheme: dark" in text
        body = re.sub(r"<style>.*?</style>", "", text, flags=re.DOTALL)
        assert not re.search(r'(fill|stroke|style)="', body), "colours are in the style alone, which the site replaces"
