"""Results of tools: as the model reads them, as the record keeps them, and as events show calls."""

from __future__ import annotations

from typing import Final

from kode_core import (
    InvalidArgumentError,
    Json,
    ToolCallRecord,
    ToolResultBlock,
    to_json,
    to_jsonable,
)

__all__ = ["brief", "cut", "kept_result", "result_of", "safe_text", "text_of_error"]

_MAX_KEPT: Final = 1_000_000
_PREVIEW: Final = 500


def text_of(value: Json) -> str:
    """A result as the model reads it: a text as it is, another value as JSON."""
    return value if isinstance(value, str) else to_json(value).decode("utf-8", "surrogatepass")


def cut(text: str, limit: int) -> str:
    """The beginning and the end of a text that is longer than *limit*, and how much is missing."""
    if len(text) <= limit:
        return text
    note = f"\n… {len(text) - limit} characters are left out …\n"
    room = max(limit - len(note), 2)
    return text[: room - room // 3] + note + text[-(room // 3) :]


def kept_result(value: object) -> Json:
    """A tool's result as its record keeps it: JSON, of which a very large one is cut as a text.

    Raises:
        InvalidArgumentError: it cannot be made JSON; the message names the place.
    """
    try:
        kept = to_jsonable(value, name="result")
    except Exception:
        raise
    except BaseException as exc:  # noqa: BLE001 - of a class of the caller's; SystemExit would end the program
        raise InvalidArgumentError(f"its conversion raised {text_of_error(exc)}") from None
    text = text_of(kept)
    to_json(text)  # a store refuses some texts, too
    return kept if len(text) <= _MAX_KEPT else cut(text, _MAX_KEPT)


def safe_text(value: object) -> str:
    """The text of any object, as a store keeps it; an empty one if the object has none."""
    try:
        text = str.__str__(str(value))
    except BaseException:  # noqa: BLE001 - a class of the caller's; SystemExit from here must not end the program
        return ""
    try:
        to_json(text)
    except InvalidArgumentError:
        text = ascii(text)
    return text


def text_of_error(exc: BaseException) -> str:
    """The class and the message of an error."""
    name, text = type(exc).__name__, safe_text(exc)
    return cut(f"{name}: {text}" if text else name, 10_000)


def result_of(record: ToolCallRecord, limit: int) -> ToolResultBlock:
    """The block that answers the model's request for an ended call."""
    if record.is_error:
        return ToolResultBlock(record.id, cut(record.error or record.state, limit), is_error=True)
    return ToolResultBlock(record.id, cut(text_of(record.result), limit))


def brief(record: ToolCallRecord, *, whole_input: bool = False) -> dict[str, Json]:
    """A call as events show it."""
    approval = {k: v for k in ("required", "decision", "decided_by") if (v := getattr(record.approval, k)) is not None}
    if "decided_by" in approval:
        approval["decidedBy"] = approval.pop("decided_by")
    shown: dict[str, Json] = {
        "id": record.id,
        "name": record.name,
        "state": record.state,
        "approval": approval,
        "inputPreview": cut(text_of(record.input), _PREVIEW),
        "isError": record.is_error,
        "error": None if record.error is None else cut(record.error, _PREVIEW),
        "durationMs": record.duration_ms,
        "startedAt": record.started_at,
        "completedAt": record.completed_at,
    }
    if whole_input:
        shown["input"] = record.input
    return {name: value for name, value in shown.items() if value is not None}
