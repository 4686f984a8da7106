"""Values of programs become JSON on purpose: to_jsonable, to_json."""

from __future__ import annotations

import collections
import collections.abc
import dataclasses
import enum
import json
import subprocess
import sys
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from fractions import Fraction
from pathlib import PurePosixPath
from types import SimpleNamespace
from typing import Any, NamedTuple
from unittest.mock import MagicMock
from uuid import UUID

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kode_core import (
    AgentEvent,
    AgentInfo,
    Bookmark,
    InvalidArgumentError,
    InvalidValueError,
    Message,
    Page,
    SessionInfo,
    StoredEvent,
    StoredMessage,
    TextBlock,
    ToolResultBlock,
    UnknownBlock,
    create_extended_store,
    to_dict,
    to_json,
    to_jsonable,
)

attrs = pytest.importorskip("attrs")
numpy = pytest.importorskip("numpy")
pydantic = pytest.importorskip("pydantic")


class Colour(enum.Enum):
    RED = "red"


class Name(enum.StrEnum):
    ADA = "ada"


class Level(enum.IntEnum):
    LOW = 1


class Point(NamedTuple):
    x: int
    y: Any


@dataclasses.dataclass(slots=True)
class Data:
    a: int
    when: Any = None


@attrs.define
class Attrs:
    a: int
    inner: Any = None


class Model(pydantic.BaseModel):
    a: int
    when: Any = None


class Packed(msgspec.Struct, rename="camel", tag="packed"):
    first_name: str
    other: int | msgspec.UnsetType = msgspec.UNSET


class Row(msgspec.Struct, array_like=True):
    a: int
    b: int


class Text(str):
    pass


class Number(float):
    pass


WHEN = datetime(2025, 1, 31, 12, 30, tzinfo=timezone(timedelta(hours=2)))
ONE = UUID("12345678-1234-5678-1234-567812345678")
CASES: list[tuple[Any, Any]] = [
    (WHEN, "2025-01-31T12:30:00+02:00"),
    (datetime(2025, 1, 1, tzinfo=UTC), "2025-01-01T00:00:00+00:00"),
    (date(2025, 1, 31), "2025-01-31"),
    (time(12, 30), "12:30:00"),
    (timedelta(days=1, seconds=2, microseconds=500_000), "P1DT2.5S"),
    (-timedelta(seconds=1), "-PT1S"),
    (ONE, "12345678-1234-5678-1234-567812345678"),
    (Decimal("9.90"), "9.90"),
    (PurePosixPath("/a/b"), "/a/b"),
    (b"png", "cG5n"),
    (bytearray(b"png"), "cG5n"),
    (memoryview(b"png"), "cG5n"),
    (Colour.RED, "red"),
    (Name.ADA, "ada"),
    (Level.LOW, 1),
    (Text("x"), "x"),
    (Number(-0.0), -0.0),
    ((1, (2,)), [1, [2]]),
    (Point(1, 2), [1, 2]),
    (collections.deque([1]), [1]),
    (range(3), [0, 1, 2]),
    ({"b": 1, "a": 2}.keys(), ["b", "a"]),
    ({10, 9, 2}, [2, 9, 10]),
    (frozenset({"b", "a"}), ["a", "b"]),
    ({1, "1", None, (2,)}, [None, 1, [2], "1"]),
    (collections.OrderedDict(b=1, a=2), {"b": 1, "a": 2}),
    (collections.Counter("aab"), {"a": 2, "b": 1}),
    (
        {1: "i", None: "n", 1.5: "f", ONE: "u", Name.ADA: "e"},
        {"1": "i", "null": "n", "1.5": "f", str(ONE): "u", "ada": "e"},
    ),
    ({True: 1, (): 2}.keys(), [True, []]),
    ({False: "f"}, {"false": "f"}),
    (Data(1, WHEN), {"a": 1, "when": "2025-01-31T12:30:00+02:00"}),
    (Attrs(1, {3}), {"a": 1, "inner": [3]}),
    (Model(a=1, when={WHEN}), {"a": 1, "when": ["2025-01-31T12:30:00+02:00"]}),
    (Packed("x"), {"type": "packed", "firstName": "x"}),
    (Row(1, 2), [1, 2]),
    (numpy.int64(3), 3),
    (numpy.float64(0.5), 0.5),
    (numpy.float32(0.5), 0.5),
    (numpy.bool_(True), True),
    (numpy.str_("x"), "x"),
    (numpy.array([[1, 2], [3, 4]]), [[1, 2], [3, 4]]),
    (numpy.array(5), 5),
    (numpy.array([b"a", b"b"]), ["YQ==", "Yg=="]),
    (numpy.ma.masked_array([1, 2], mask=[0, 1]), [1, None]),
    (
        Message("user", [ToolResultBlock("c", {"at": WHEN})]),
        {
            "role": "user",
            "content": [{"type": "tool_result", "tool_use_id": "c", "content": {"at": "2025-01-31T12:30:00+02:00"}}],
        },
    ),
    (UnknownBlock({"type": "new", "x": 1}), {"type": "new", "x": 1}),
]


@pytest.mark.parametrize(("value", "plain"), CASES, ids=[f"{i}-{type(v).__name__}" for i, (v, _) in enumerate(CASES)])
def test_each_type_has_one_form(value: Any, plain: Any) -> None:
    """The form of every type that the documentation names, also inside of others; JSON itself stays as it is."""
    found = to_jsonable({"x": [value]})
    assert found == {"x": [plain]}
    assert json.dumps(found) == json.dumps({"x": [plain]})  # types, too
    assert to_jsonable(found) == found


async def test_all_of_it_can_be_saved() -> None:
    """A store keeps each converted value exactly, and refuses each unconverted one with the advice to convert it."""
    async with create_extended_store("memory:") as store:
        for value, plain in CASES:
            await store.append_messages("a", [Message("user", [ToolResultBlock("c", to_jsonable({"x": value}))])])
            assert (await store.load_messages("a"))[-1].content == (ToolResultBlock("c", {"x": plain}),)
        with pytest.raises(InvalidValueError, match=r"message 0: \$.*datetime.datetime is not.*kode_core.to_jsonable"):
            await store.append_messages("b", [Message("user", [ToolResultBlock("c", WHEN)])])


class Zone(tzinfo):
    def utcoffset(self, when: datetime | None) -> timedelta:
        raise RuntimeError("secret")


class Sly(collections.abc.Sequence[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: Any) -> Any:
        raise RuntimeError("secret")


def deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


def cycle() -> Any:
    value: dict[str, Any] = {}
    value["a"] = [value]
    return value


async def coroutine() -> None: ...


def doubled() -> Any:
    value: list[Any] = []
    for _ in range(90):
        value = [value, value]
    return value


REFUSED: dict[str, tuple[Any, str, str]] = {
    "naive": (datetime(2025, 1, 1), "$", "naive datetime.datetime.*tzinfo=UTC.*default="),
    "nan": (float("nan"), "$", "nan is not a JSON number.*nan='null'"),
    "infinity": ([float("-inf")], "$[0]", "-inf is not"),
    "decimal nan": (Decimal("NaN"), "$", "nan is not"),
    "numpy nan": (numpy.array([1.0, numpy.nan]), "$[1]", "nan is not"),
    "path": ({"a": [0, 1, 2, {"b": object()}]}, "$.a[3].b", r"object has no JSON form here.*default="),
    "complex": (1j, "$", "complex has no JSON"),
    "fraction": (Fraction(1, 3), "$", "fractions.Fraction"),
    "generator": ((i for i in "a"), "$", "generator can be read only once"),
    "class": (Data, "$", "the class .*Data itself"),
    "exception": (ValueError("secret"), "$", "ValueError has no JSON"),
    "namespace": (SimpleNamespace(a=1), "$", "SimpleNamespace"),
    "mock": (MagicMock(), "$", "MagicMock"),
    "collision": ({1: "a", "1": "b"}, "$", "two keys become '1'; rename"),
    "collision of dates": ({date(2025, 1, 1): 1, "2025-01-01": 2}, "$", "two keys"),
    "key": ({(1, 2): 1}, "$", "a key is of type tuple"),
    "cycle": (cycle(), "$.a[0]", "dict contains itself"),
    "deep": (deep(120), "$" + "[0]" * 9 + "['…']" + "[0]" * 2, "deeper than 100 levels"),
    "doubled": (doubled(), "$" + "[0]" * 9 + "['…']", "more than 1000000 items"),
    "huge range": (range(10**12), "$[999999]", "more than 1000000 items"),
    "huge array": (numpy.zeros((1, 10**7)), "$", "more than 1000000 items"),
    "huge integer": (10**5000, "$", "more than 4300 digits"),
    "pair": ("\ud800\udc00", "$", "surrogates form one character"),
    "zone": (datetime(2025, 1, 1, tzinfo=Zone()), "$", "conversion of datetime.datetime raised RuntimeError$"),
    "sequence": ([Sly()], "$[0]", "Sly raised RuntimeError$"),
    "numpy date": (numpy.datetime64("2025-01-01"), "$", r"numpy.datetime64 of datetime64\[D\] has no JSON"),
    "numpy dates": (numpy.array(["2025-01-01"], "datetime64[ns]"), "$", "numpy.ndarray of datetime64"),
    "long double": (numpy.longdouble(1), "$", "numpy.longdouble has no"),
    "numpy complex": (numpy.complex64(1), "$", "complex has no"),
    "secret": (pydantic.SecretStr("secret"), "$", "SecretStr has no JSON"),
    "spread": (AgentEvent("progress", "x", {"type": 1}), "$", "two keys become 'type'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_other_values_are_refused(name: str) -> None:
    """The error has the path and the type, says what to do, and quotes no value."""
    value, path, problem = REFUSED[name]
    with pytest.raises(InvalidValueError, match=problem) as caught:
        to_jsonable(value, name="result of look")
    assert caught.value.path.startswith(path)
    assert caught.value.record == "result of look"
    assert str(caught.value).startswith("result of look: $")
    assert "secret" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_a_coroutine_is_to_be_awaited() -> None:
    """A tool that was not awaited is named as that."""
    running = coroutine()
    with pytest.raises(InvalidValueError, match="coroutine is not awaited yet"):
        to_jsonable(running)
    running.close()


def test_nan_and_other_types_by_choice() -> None:
    """``nan`` and ``default`` say how, and the result of ``default`` is converted in turn."""
    values = [float("nan"), float("inf"), Decimal("-Infinity"), numpy.float32("nan")]
    assert to_jsonable(values, nan="null") == [None] * 4
    assert to_jsonable(values, nan="text") == ["NaN", "Infinity", "-Infinity", "NaN"]
    assert to_jsonable([1j, datetime(2025, 1, 1)], default=str) == ["1j", "2025-01-01 00:00:00"]
    assert to_jsonable(1j, default=lambda value: (value.real, {value.imag})) == [0.0, [1.0]]
    with pytest.raises(InvalidValueError, match="contains itself"):
        to_jsonable(1j, default=lambda value: value)
    with pytest.raises(InvalidValueError, match="deeper than 100"):
        to_jsonable(object(), default=lambda value: object())
    with pytest.raises(InvalidValueError, match="conversion of complex raised ZeroDivisionError"):
        to_jsonable(1j, default=lambda value: 1 / 0)


@pytest.mark.parametrize(
    "wrong", [{"nan": None}, {"nan": "zero"}, {"default": "str"}, {"max_items": 0}, {"max_items": True}]
)
def test_wrong_arguments_are_refused(wrong: dict[str, Any]) -> None:
    """An option of the wrong type is named."""
    with pytest.raises(InvalidArgumentError, match=next(iter(wrong))):
        to_jsonable(1, **wrong)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(JSON)
def test_json_is_unchanged(value: Any) -> None:
    """A JSON value comes back equal, in the same order, with no list and no dict of it shared."""
    plain = to_jsonable(value)
    assert json.dumps(plain) == json.dumps(value)
    if isinstance(value, list | dict):
        assert plain is not value
    assert json.loads(to_json(value)) == value


def test_a_large_value() -> None:
    """A hundred thousand items are converted whole."""
    assert to_jsonable([{"n": i} for i in range(100_000)])[-1] == {"n": 99_999}
    assert to_jsonable("x" * 5_000_000) == "x" * 5_000_000


def test_libraries_are_not_imported() -> None:
    """A conversion imports none of the libraries whose types it knows."""
    script = (
        "import sys, uuid, kode_core; kode_core.to_jsonable({'a': uuid.uuid4(), 'b': {1}});"
        "print([m for m in ('numpy', 'pydantic', 'attrs', 'dataclasses', 'pydantic_core') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "[]"


def test_answers_of_stores_have_a_json_text() -> None:
    """Records are as to_dict gives them, other answers in camelCase, and a page has its cursor."""
    stored = StoredMessage("user", (TextBlock("hé\ud800"),), agent_id="a", position=1, created_at=5)
    event = StoredEvent(1, Bookmark(1, 2), AgentEvent("progress", "x", {"a": 1}), offset=4)
    session = SessionInfo(agent_id="a", template_id="t", created_at=1, updated_at=2, message_count=3)
    assert json.loads(to_json(stored)) == to_dict(stored)
    assert to_jsonable(event) == to_dict(event)
    assert to_jsonable(AgentInfo(agent_id="a", template_id="t", extra={"new": 1}))["new"] == 1
    assert to_jsonable({"rows": Page([session], "next", ("message 3 of agent 'a'",))}) == {
        "rows": {
            "items": [
                {
                    "agentId": "a",
                    "templateId": "t",
                    "createdAt": 1,
                    "updatedAt": 2,
                    "messageCount": 3,
                    "lineage": [],
                    "lastSfpIndex": -1,
                    "metadata": {},
                }
            ],
            "nextCursor": "next",
            "leftOut": ["message 3 of agent 'a'"],
        }
    }
    assert to_json([]) == b"[]"
    with pytest.raises(InvalidValueError, match=r"\$\[0\]: object"):
        to_json([object()])
    with pytest.raises(InvalidArgumentError, match="takes one record, got list; to_jsonable takes lists"):
        to_dict([stored])  # type: ignore[arg-type]


def test_max_items_bounds_what_is_taken_from_a_mapping() -> None:
    """One of a class of its own may have no end; taken whole, it would fill the memory."""
    taken = 0

    class Endless(collections.abc.Mapping[int, int]):
        def __getitem__(self, key: int) -> int:
            return key

        def __iter__(self) -> collections.abc.Iterator[int]:
            nonlocal taken
            for n in range(100_000):
                taken = n
                yield n

        def __len__(self) -> int:
            return 1

    with pytest.raises(InvalidValueError, match="more than 3 items"):
        to_jsonable(Endless(), max_items=3)
    assert taken < 10
