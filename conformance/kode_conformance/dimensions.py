"""The conditions that a claim is checked under, and the values that each takes.

A clause of the contract is a claim for every store state, every value and every moment; a check looks at some of them.
:class:`Dimension` names the ways in which they differ. A check says which ones it varies (``under=``), and the values
come from here, so that all checks vary them alike: around the limits that databases, drivers and file systems have.
"""

from __future__ import annotations

import functools
import random
import string
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Final

from kode_conformance.settings import Tier

__all__ = [
    "FRACTIONS",
    "INTEGERS",
    "LOOKALIKES",
    "MEANINGS",
    "SEPARATORS",
    "TIMES",
    "WORDS",
    "Dimension",
    "around",
    "counts",
    "dense",
    "lengths",
    "text_of",
    "twins",
]


class Dimension(StrEnum):
    """A way in which the conditions of a claim differ; :data:`MEANINGS` says which."""

    ITEMS = "items"
    LENGTHS = "lengths"
    NUMBERS = "numbers"
    LOOKALIKES = "lookalikes"
    TWINS = "twins"
    EQUALS = "equals"
    CHANGES = "changes"
    ORDERS = "orders"
    INSTANCES = "instances"
    PROCESSES = "processes"
    COMPANY = "company"
    CRASHES = "crashes"
    INTERRUPTIONS = "interruptions"
    DAMAGE = "damage"
    CLOCKS = "clocks"
    COSTS = "costs"


MEANINGS: Final = {
    Dimension.ITEMS: "how many there are: around pages, batches and limits of parameters",
    Dimension.LENGTHS: "how long a text is: around widths of columns, index entries and pages",
    Dimension.NUMBERS: "numbers and times at the edges of what types hold",
    Dimension.LOOKALIKES: "text that looks like something else: a number, a date, a pattern, a path",
    Dimension.TWINS: "names that differ in what comparisons, hashes and file systems overlook",
    Dimension.EQUALS: "equal contents where identity counts: the same text, time, id or body twice",
    Dimension.CHANGES: "after each kind of change: replaced, shrunk, removed, saved again, deleted, forked",
    Dimension.ORDERS: "the order of calls, and of what they are given",
    Dimension.INSTANCES: "seen through another instance, and after the store was closed and opened again",
    Dimension.PROCESSES: "seen from, or shared with, other processes",
    Dimension.COMPANY: "next to a reader, a writer or a follower that is under way",
    Dimension.CRASHES: "before, in the middle of and after a kill",
    Dimension.INTERRUPTIONS: "cancelled, given up at a deadline, closed under way, or its answer lost",
    Dimension.DAMAGE: "with stored bytes that are damaged, or a backend that is out of reach",
    Dimension.CLOCKS: "with a clock that steps, equal times, and another time zone",
    Dimension.COSTS: "counted: calls, bytes, memory, descriptors, threads, turns of the loop",
}


# --- how many ---------------------------------------------------------------------------------------------------------

_COUNTS: Final = {
    Tier.QUICK: (0, 1, 2, 25, 26, 100, 101, 501, 1001),
    Tier.STANDARD: (0, 1, 2, 25, 26, 100, 101, 128, 500, 501, 1000, 1001, 1025, 2500, 5001, 10_001),
    Tier.THOROUGH: (
        *(0, 1, 2, 10, 11, 25, 26, 100, 101, 128, 256, 500, 501, 999, 1000, 1001, 1025, 2049, 4097, 5001),
        *(10_000, 10_001, 32_767, 65_536, 100_001),
    ),
}
"""Batches of DynamoDB are 25 and 100, of SQLite's parameters 999 and 32,766, of MongoDB's cursors 101, of PostgreSQL's
parameters 32,767 and 65,535; pages of search engines end at 10,000, and programs like 10, 50, 100, 500 and 1,000."""


def counts(tier: Tier, *, most: int | None = None) -> Sequence[int]:
    """Numbers of items around every usual limit, ascending, up to *most*."""
    return [count for count in _COUNTS[tier] if most is None or count <= most]


def around(limit: int) -> tuple[int, int, int]:
    """One less than a limit, the limit, one more."""
    return limit - 1, limit, limit + 1


# --- how long ---------------------------------------------------------------------------------------------------------

_LENGTHS: Final = (0, 1, 63, 64, 127, 128, 191, 192, 254, 255, 256, 257, 767, 768, 1023, 1024, 1025)
_LONG: Final = (2047, 2049, 2704, 2705, 3072, 3073, 4000, 4001, 4095, 4096, 4097, 8000, 8001, 8191, 8192, 8193)
_HUGE: Final = (16_383, 16_385, 32_766, 32_767, 32_768, 65_535, 65_536, 65_537, 100_001, 262_145, 409_601)
"""Columns end at 255, 4,000, 8,000 and 65,535; index entries at 767, 1,024, 2,048, 2,704, 3,072 and 8,191; terms of
search engines at 32,766; pages at 4,096 and 8,192; readers of lines at 65,536; items of DynamoDB at 409,600."""


def lengths(*, up_to: int = 1_000_000) -> Sequence[int]:
    """Lengths of a text, in bytes of UTF-8 where the text is ASCII, around every usual limit, ascending."""
    return [length for length in (*_LENGTHS, *_LONG, *_HUGE) if length <= up_to]


_SIGNS: Final = "ab\r\nc\td\re\\f\"g'h%i_j<k&l;m{n}o[p]q r\x7fs\x1bt"


@functools.cache
def _shuffled(signs: str) -> str:
    """More characters than compressors look back, in no order."""
    return "".join(random.Random(1).choices(signs, k=2**16))  # noqa: S311 - no secret


def text_of(length: int) -> str:
    """A text of so many ASCII characters, among them line ends, quotes, escapes and other signs, again and again.

    Where long texts take another way than short ones, each character may be lost there. The text does not become
    much shorter when it is compressed.
    """
    rest = _shuffled(_SIGNS + string.ascii_letters + string.digits)
    return (_SIGNS + rest * (length // len(rest) + 1))[:length]


def dense(length: int) -> str:
    """A text of so many letters and digits, which keeps three quarters of its length when it is compressed.

    A limit of compressed index entries lets much longer texts pass if they repeat themselves.
    """
    letters = _shuffled(string.ascii_letters + string.digits)
    return (letters * (length // len(letters) + 1))[:length]


# --- which numbers ----------------------------------------------------------------------------------------------------

INTEGERS: Final = (
    *(0, 1, -1, 127, 128, 255, 256, -128, -129, 32_767, 32_768, 65_535, 65_536, 2**24 + 1),
    *(2**31 - 1, 2**31, -(2**31), -(2**31) - 1, 2**32 - 1, 2**32, 2**53 - 1, 2**53, 2**53 + 1, -(2**53) - 1),
    *(2**63 - 1, -(2**63)),
)
"""Whole numbers at the edges of 8, 16, 24, 31, 32, 53 and 63 bits. Typed fields of records take no larger ones."""

FRACTIONS: Final = (
    *(0.0, -0.0, 1.0, -1.5, 0.1, 0.1 + 0.2, 1 / 3, 1e-9, 1.5e-45, 1e-7, 123456.789, 16_777_217.0, 1e15 + 0.5),
    *(1e16, 1e21, 1e22, 1.7976931348623157e308, 5e-324, 2.2250738585072014e-308),
)
"""Numbers that lose something as a 32-bit float, as a decimal of few places, or as text of 15 digits."""

TIMES: Final = (
    *(0, 1, -1, 999, 1000, 1001, -62_135_596_800_000, -2_208_988_800_000, -1_000, 86_399_999, 86_400_000),
    *(946_684_799_999, 1_700_000_000_001, 1_711_846_799_999, 1_711_846_800_000, 1_729_990_800_000, 1_767_258_000_123),
    *(2_147_483_647_999, 2_147_483_648_000, 4_102_444_800_000, 4_294_967_296_000, 32_503_680_000_000),
    *(253_402_300_799_999, 253_402_300_800_000),
)
"""Milliseconds since the epoch: the epoch itself and before it, days at whose ends clocks are set, 2038, 2106, the
years 1, 1900, 3000 and 9999, and one past it."""


# --- which texts ------------------------------------------------------------------------------------------------------

LOOKALIKES: Final = (
    *("0", "-0", "1", "01", "1.0", "1e5", "0x1F", "1_000", "-1", "+1", "NaN", "Infinity", "-inf", "1E400", ".5"),
    *("true", "True", "false", "yes", "no", "on", "off", "y", "n", "null", "None", "nil", "undefined", "~", "N/A"),
    *("2026-01-01", "2026-01-01T09:00:00Z", "2026-01-01 09:00:00+00:00", "12:30", "1:30:00", "20260101", "1767258000"),
    *("{}", "[]", '{"a": 1}', "[1, 2]", '"quoted"', "'quoted'", '""', "\\", "\\n", "\\u0041", "\\x41", "&amp;", "%41"),
    *("$set", "$gt", "a.b", ".", "..", "../a", "a/../b", "a//b", "a/./b", "./a", "a/", "/a", "C:\\a", "a\\b", "~/a"),
    *("*", "?", "%", "_", "a%b", "a_b", "[a]", "(a|b)", "^a$", "a:b", "a#b", "a;b", "a,b", "a=b", "a&b", "a|b", "a+b"),
    *(
        "-- x",
        "/* x */",
        "' OR '1'='1",
        "{{a}}",
        "${a}",
        "$a",
        "{0}",
        "%s",
        "%(a)s",
        "<b>",
        "<!--",
        "]]>",
        "=1+1",
        "@a",
    ),
    *(" ", "\t", "\n", "\r\n", " a", "a ", "a\t", "\na", "a\n", "a\r", "a\r\nb", "a\u2028b", "\ufeffa", "a\0b", "\0"),
    *("\u00a0", "\u200b", "\u00ad", "\x85", "\x1a", "\x7f", "\x1b[0m", "\ufffd", "\ufffe", "\uffff", "\U0010ffff"),
    *("base64==", "AAAA", "e30=", "gAN9cQAu", "deadbeef", "00000000-0000-0000-0000-000000000000", "__class__"),
    *("__proto__", "_id", "type", "id", "rowid", "key", "!!python/none", "!tag", "- a", "a: b", "# a", "---", "@type"),
    *("\ud83d", "\udc00", "\udfff\ud83d", "😀", "𝒳", "👨‍👩‍👧", "e\u0301", "é", "ﬁ", "\uff21", "İ", "ı", "ß", "ς", "ǅ"),
    *("ＡＢＣ", "٣", "१", "½", "²", "Ⅷ", "\u202eabc", "中文", "日本語", "עברית"),
)
"""Texts that a parser, a pattern, a path, a template or a normal form takes for something else."""


WORDS: Final[Mapping[str, Sequence[str]]] = {
    "provider": (
        *("openai", "anthropic", "gemini", "google", "vertex", "azure", "bedrock", "mistral", "deepseek", "local"),
    ),
    "mime_type": (
        *("image/png", "image/jpeg", "image/webp", "application/pdf", "application/json", "application/octet-stream"),
        *("audio/wav", "audio/mpeg", "video/mp4", "text/plain", "text/html", "inode/x-empty", "x/temporary"),
    ),
    "role": ("user", "assistant", "system", "developer", "tool", "function", "thinking", "summary"),
    "state": (
        *("PENDING", "APPROVAL_REQUIRED", "APPROVED", "EXECUTING", "COMPLETED", "FAILED", "DENIED", "SEALED"),
        *("CANCELLED", "EXPIRED"),
    ),
    "status": ("pending", "in_progress", "completed", "cancelled", "deleted", "archived"),
    "decision": ("allow", "deny", "ask", "expired"),
    "breakpoint": (
        *("READY", "PRE_MODEL", "STREAMING_MODEL", "TOOL_PENDING", "AWAITING_APPROVAL", "PRE_TOOL"),
        *("TOOL_EXECUTING", "POST_TOOL", "PAUSED", "DONE", "FAILED", "ABANDONED"),
    ),
    "model": ("gpt-4o", "claude-sonnet-4", "gemini-2.5-flash", "text-embedding-3-small", "test"),
    "type": (
        *("text_chunk", "done", "error", "heartbeat", "progress", "debug", "trace", "temporary", "cache", "thinking"),
    ),
    "name": ("search", "bash", "memory", "cache", "todo_write", "temporary", "test"),
}
"""Values that programs know of open texts, by the name of the field: for one of them a store may have a rule."""


SEPARATORS: Final = ":/#|.,-_~@!$+= \t\x1f"
"""Characters that composed keys are joined with: a name, one of them and more make another name."""


def twins(name: str = "Ab") -> Sequence[str]:
    """Names that differ from *name* and from each other, and that something takes for one and the same.

    They differ in case, in spaces and zeros at either end, in what Unicode normalises or folds, in separators, in
    what a file system, a pattern or an URL treats alike, by being a prefix, and by collisions of common hashes.
    """
    return list(
        dict.fromkeys(
            (
                *(name, name.lower(), name.upper(), name.swapcase(), name.title(), name.casefold()),
                *(f"{name} ", f" {name}", f"{name}\t", f"{name}\n", f"{name}.", f"{name}/", f"{name}\\", f"/{name}"),
                *(f"{name}0", f"{name}1", f"{name}2", f"{name}10", f"{name}01", f"{name}_", f"{name}-", f"{name}%"),
                *(f"{name}é", f"{name}e\u0301", f"{name}e", f"{name}É", f"{name}ß", f"{name}ss", f"{name}ẞ"),
                *(f"{name}ﬁ", f"{name}fi", f"{name}\uff21", f"{name}a", f"{name}İ", f"{name}i", f"{name}ı", f"{name}I"),
                *(f"{name}a/b", f"{name}a_b", f"{name}a-b", f"{name}a.b", f"{name}a:b", f"{name}a b", f"{name}a%2Fb"),
                *(f"{name}a|b", f"{name}a#b", f"{name}a\\b", f"{name}a//b", f"{name}a\u2215b", f"{name}a+b"),
                *(f"{name}{separator}x" for separator in SEPARATORS),
                *(f"{name}\u200b", f"{name}\u00ad", f"{name}\ufeff", f"{name}\u00a0", f"{name}\x7f", f"{name}\x1f"),
                *(f"{name}😀", f"{name}😁", f"{name}𝒳", f"{name}\U0001f601x", f"{name}?", f"{name}*", f"{name}[0]"),
                *(f"{name}K", f"{name}\u212a", f"{name}k", f"{name}Å", f"{name}\u212b", f"{name}A\u030a"),
                *("AaAa", "BBBB", "AaBB", "BBAa"),  # one hash in Java
                *("plumless", "buckeroo"),  # one crc32
                *("costarring", "liquid"),  # one FNV-1
                *("con", "CON", "nul", "aux", "NUL.txt"),
            )
        )
    )
