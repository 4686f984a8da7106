"""The lint of sentences finds what it says, and each package of the project stays under its share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.sentences import ALLOWED, Sentence, files, packages, sentences_of


@pytest.mark.parametrize(
    "text",
    [
        "What is pending is applied by whoever comes next.",
        "Those that are left are removed.",
        "Of the old rows none is read.",
        "The parts beside the head are dropped.",
        "It is told of what the head is.",
        "Removes all there is, and all that are there.",
    ],
)
def test_twisted_sentences_are_found(text: str) -> None:
    """Each of the constructions is found."""
    assert Sentence(Path(), 1, text).is_twisted


@pytest.mark.parametrize(
    "text",
    [
        "The next writer applies pending changes.",
        "Many calls at once are written together.",
        "What is a lease?",
        "The option `whoever` is read.",
        "There is no head yet.",
    ],
)
def test_plain_sentences_are_left_alone(text: str) -> None:
    """Usual English, questions and code are no findings."""
    assert not Sentence(Path(), 1, text).is_twisted


def test_sentences_of_a_module_are_found_where_they_stand(tmp_path: Path) -> None:
    """Docstrings, those of attributes, and comments are read; strings are not."""
    module = tmp_path / "module.py"
    module.write_text(
        '"""One sentence. Another one,\non two lines."""\n\n'
        "X = 1\n"
        '"""Of an attribute.\n\nArgs:\n    x: what is\n        given.\n    y: a number.\n"""\n'
        "# Why it is so.\n"
        "# And why not.\n"
        'y = "whoever reads this"  # A remark of its own.\n'
    )
    assert sorted((one.line, one.text) for one in sentences_of(module)) == [
        (1, "Another one, on two lines."),
        (1, "One sentence."),
        (5, "Of an attribute."),
        (8, "x: what is given."),
        (10, "y: a number."),
        (12, "Why it is so."),
        (13, "And why not."),
        (14, "A remark of its own."),
    ]


def test_sentences_of_a_page_are_found_where_they_stand(tmp_path: Path) -> None:
    """Headings, code and quotations are left out; items and cells stand alone."""
    page = tmp_path / "page.md"
    page.write_text(
        "# What is it\n\nA [linked page](whoever.md). Next\nline.\n\n```\nwhoever is here\n```\n"
        "- one item\n- another item\n\n| a cell | `x` of it |\n|---|---|\n"
    )
    assert [(one.line, one.text) for one in sentences_of(page)] == [
        (3, "A linked page."),
        (3, "Next line."),
        (9, "one item"),
        (10, "another item"),
        (12, "a cell"),
        (12, "`x` of it"),
    ]


def test_few_sentences_of_each_room_are_twisted() -> None:
    """Each package stays under its share, and no package that was renamed is left in the list of exceptions."""
    found = packages(files())
    assert not [one for package in found if package.is_over for one in package.twisted], (
        "see: python -m tests.sentences"
    )
    assert {package.name for package in found} >= set(ALLOWED)
