"""Tools: functions that the model may call, and the JSON schema of their arguments."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, get_type_hints, overload

import msgspec

from kode_agent.errors import ToolDefinitionError
from kode_agent.results import text_of_error
from kode_core import ExtendedStore, Json

__all__ = ["Tool", "ToolContext", "ToolSchema", "as_tool", "tool"]

_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True)
class ToolContext:
    """Given to a tool that has a parameter of this type; the model does not see the parameter.

    Attributes:
        call_id: unique among the calls of the agent, so that it can be the idempotency key of an effect outside.
        store: the agent's store; writes for the agent are fenced by the lease of the run.
    """

    agent_id: str
    call_id: str
    store: ExtendedStore


@dataclass(frozen=True, slots=True)
class ToolSchema:
    """A tool as the model sees it; ``parameters`` is a JSON schema of an object."""

    name: str
    description: str
    parameters: Mapping[str, Json]


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call.

    Args:
        run: the function. A synchronous one runs in a thread of its own, an asynchronous one in the event loop. Its
            parameters are annotated; whatever it returns is made JSON by ``to_jsonable``.
        name: the name for the model, the function's own unless given.
        description: what the model reads of it, the docstring unless given.
        needs_approval: each call waits for a decision before it runs.
        timeout_ms: how long a call may take; None is the template's ``tool_timeout_ms``. A synchronous function cannot
            be stopped: its thread goes on, and the model is told so.

    Raises:
        ToolDefinitionError: the signature cannot be told to a model.
    """

    run: Callable[..., Any]
    name: str = ""
    description: str = ""
    needs_approval: bool = False
    timeout_ms: int | None = None
    schema: ToolSchema = field(init=False, repr=False)
    _arguments: type[msgspec.Struct] = field(init=False, repr=False)
    _context: str | None = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not callable(self.run):
            raise ToolDefinitionError(f"a tool is a function, got {type(self.run).__name__}")
        name = self.name or getattr(self.run, "__name__", "")
        if not _NAME.fullmatch(name):
            raise ToolDefinitionError(
                f"a tool's name has 1 to 64 of A-Z a-z 0-9 _ -, not {name!r:.80}; give Tool a name="
            )
        if self.timeout_ms is not None and (type(self.timeout_ms) is not int or self.timeout_ms < 1):
            raise ToolDefinitionError(f"tool {name}: timeout_ms is a number of milliseconds above 0")
        description = self.description or inspect.getdoc(self.run) or ""
        arguments, context = _arguments_of(self.run, name)
        for attribute, value in (
            ("name", name),
            ("description", description),
            ("schema", ToolSchema(name, description, _schema_of(arguments, name))),
            ("_arguments", arguments),
            ("_context", context),
        ):
            object.__setattr__(self, attribute, value)

    def bind(self, given: Json, context: ToolContext) -> dict[str, Any]:
        """The keyword arguments for ``run`` of what the model gave.

        Raises:
            ValueError: the model's arguments do not fit; the message is for the model.
        """
        if type(given) is not dict:
            raise ValueError(f"the arguments are no JSON object but {type(given).__name__}")
        try:
            values = msgspec.convert(given, self._arguments, dec_hook=_model_of)
        except msgspec.ValidationError as exc:
            raise ValueError(str(exc)) from None
        bound = {name: getattr(values, name) for name in self._arguments.__struct_fields__}
        if self._context is not None:
            bound[self._context] = context
        return bound


def _arguments_of(run: Callable[..., Any], tool_name: str) -> tuple[type[msgspec.Struct], str | None]:
    """A struct with a field for each parameter, and the name of the parameter that takes the context."""
    try:
        signature = inspect.signature(run)
        target = run if inspect.isroutine(run) else getattr(run, "__call__", run)  # noqa: B004 - its annotations
        hints = get_type_hints(target, include_extras=True)
    except (NameError, TypeError, ValueError) as exc:
        raise ToolDefinitionError(f"tool {tool_name}: its signature cannot be read: {exc}") from exc
    context: str | None = None
    fields: list[tuple[str, Any] | tuple[str, Any, Any]] = []
    for name, parameter in signature.parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            raise ToolDefinitionError(
                f"tool {tool_name}: the parameter {name!r} is {parameter.kind.description}; a tool is called by name"
            )
        if name not in hints:
            raise ToolDefinitionError(f"tool {tool_name}: annotate the parameter {name!r}, as in {name}: str")
        if hints[name] is ToolContext:
            context = name
        elif parameter.default is parameter.empty:
            fields.append((name, hints[name]))
        else:
            fields.append((name, hints[name], _default(parameter.default)))
    try:
        struct = msgspec.defstruct(tool_name, fields, kw_only=True, forbid_unknown_fields=True)
    except (TypeError, ValueError) as exc:
        raise ToolDefinitionError(f"tool {tool_name}: its parameters cannot be used: {exc}") from exc
    return struct, context


def _default(value: Any) -> Any:
    if value is None or type(value) in (str, int, float, bool):
        return value  # the schema shows it
    return msgspec.field(default_factory=lambda: value)


def _is_model(kind: Any) -> bool:
    """Whether a type is a model of pydantic, which need not be installed."""
    return isinstance(kind, type) and hasattr(kind, "model_json_schema") and hasattr(kind, "model_validate_json")


def _model_of(kind: Any, given: Any) -> Any:
    try:
        return kind.model_validate_json(msgspec.json.encode(given))
    except Exception as exc:  # noqa: BLE001 - a validator of the caller's
        raise ValueError(text_of_error(exc)) from None


def _model_schema(kind: Any) -> dict[str, Any]:
    if not _is_model(kind):
        raise NotImplementedError
    schema: dict[str, Any] = kind.model_json_schema()
    return schema


def _components(kind: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    (schema,), others = msgspec.json.schema_components([kind], schema_hook=_model_schema, ref_template="#/$defs/{name}")
    return schema, dict(others)


def _schema_of(arguments: type[msgspec.Struct], name: str) -> dict[str, Json]:
    try:
        schema, defs = _components(arguments)
    except Exception as exc:
        raise ToolDefinitionError(f"tool {name}: {_without_schema(arguments)}") from exc
    own = defs.pop(schema["$ref"].rpartition("/")[2])
    own.pop("title", None)
    plain: dict[str, Any] = msgspec.to_builtins({**own, "$defs": defs} if defs else own)
    found = plain.pop("$defs", {})
    for each in (plain, *list(found.values())):
        _collect(each, found, name)
    return {**plain, "$defs": found} if found else plain


def _collect(schema: Any, found: dict[str, Any], name: str) -> None:
    """Move the definitions of inner schemas, as pydantic has them, to those of the whole."""
    if isinstance(schema, list):
        for each in schema:
            _collect(each, found, name)
    elif isinstance(schema, dict):
        for key, value in schema.pop("$defs", {}).items():
            if found.setdefault(key, value) != value:
                raise ToolDefinitionError(f"tool {name}: two types of its parameters are named {key}; rename one")
            _collect(value, found, name)
        for each in schema.values():
            _collect(each, found, name)


def _without_schema(arguments: type[msgspec.Struct]) -> str:
    """The parameter whose type has no JSON schema, and the types that have one."""
    which = "a parameter has a type"
    for each in msgspec.structs.fields(arguments):
        try:
            _components(each.type)
        except Exception:  # noqa: BLE001 - this is the one
            shown = each.type.__name__ if isinstance(each.type, type) else str(each.type)
            which = f"the parameter {each.name!r} has the type {shown:.80},"
            break
    return (
        f"{which} which has no JSON schema; take str, int, float, bool, list, dict, Literal, dataclasses, TypedDict, "
        "pydantic models or msgspec structs"
    )


@overload
def tool(run: Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *, name: str = "", description: str = "", needs_approval: bool = False, timeout_ms: int | None = None
) -> Callable[[Callable[..., Any]], Tool]: ...
def tool(
    run: Callable[..., Any] | None = None,
    /,
    *,
    name: str = "",
    description: str = "",
    needs_approval: bool = False,
    timeout_ms: int | None = None,
) -> Tool | Callable[[Callable[..., Any]], Tool]:
    """Make a tool of a function, as a decorator: ``@tool`` or ``@tool(needs_approval=True)``; see :class:`Tool`."""

    def made(function: Callable[..., Any]) -> Tool:
        return Tool(function, name, description, needs_approval, timeout_ms)

    return made if run is None else made(run)


def as_tool(value: Tool | Callable[..., Any]) -> Tool:
    """A tool as it is, and a function as a tool."""
    return value if isinstance(value, Tool) else Tool(value)
