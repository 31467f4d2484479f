"""OpenAI's `tools`, `tool_choice` and `response_format`: what a model is shown, what holds its answer, how it is read.

`asked` makes a `ToolUse` of them: the tools that the prompt describes, the grammar that holds the answer to calls of
the tools that may be called (or to text, or to a schema), and a reader that makes OpenAI's deltas of the text. The
Responses API asks the same with other words (`responses`). Two things are as OpenAI has them: a schema that is
`strict` must close its objects and require all it names, and names are of letters, digits, `_` and `-`. One is not: an
answer that would make a call which it has made already ends there (`chat.calls`).
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from chatloom.chat.calls import CallForm, CallReader, Piece
from chatloom.chat.message import TOOL_NAME
from chatloom.engine.grammar import Grammar, GrammarError, closed
from chatloom.server import errors
from chatloom.server.schemas import FinishReason

MAX_TOOLS = 128
MAX_DESCRIPTION = 100_000  # characters
_MODES = ("none", "auto", "required")
_NO_PARAMETERS = {"type": "object", "properties": {}, "additionalProperties": False}


@dataclass(frozen=True)
class Words:
    """What one API calls things: tools are nested in `function` and formats in `json_schema`, or they are not."""

    nested: bool
    format: str  # the parameter

    def function(self, tool: Mapping[str, Any], param: str) -> tuple[Any, str]:
        """A tool's name, parameters and so on, and their place."""
        return (tool.get("function"), f"{param}.function") if self.nested else (tool, param)

    def schema(self, given: Mapping[str, Any]) -> tuple[Any, str]:
        """A format's name, schema and so on, and their place."""
        return (given.get("json_schema"), f"{self.format}.json_schema") if self.nested else (given, self.format)


CHAT = Words(nested=True, format="response_format")
RESPONSES = Words(nested=False, format="text.format")


@dataclass(frozen=True)
class ToolUse:
    """What a model may do besides talking."""

    tools: tuple[dict[str, Any], ...] = ()  # that it is shown, as templates expect them
    grammar: Grammar | None = None
    form: CallForm | None = None  # of its calls; None where it may make none
    places: Mapping[str, str] = field(default_factory=dict)  # the parameters that have the tools' schemas
    format_place: str = ""

    def reader(self) -> "AnswerReader":
        """For one answer."""
        return AnswerReader(self.form)

    @contextmanager
    def blame(self) -> Iterator[None]:
        """Let a grammar's errors name the parameter that is wrong."""
        try:
            yield
        except GrammarError as error:
            if error.tool is not None:
                param, code = self.places[error.tool], "invalid_function_parameters"
            else:
                param = "tools" if self.tools and "JSON schema" not in str(error) else self.format_place
                code = "invalid_json_schema"
            raise errors.invalid(f"Invalid schema: {error}.", param=param, code=code) from error


class AnswerReader:
    """Reads one answer: text, and calls with ids of their own."""

    def __init__(self, form: CallForm | None) -> None:
        self._calls = None if form is None else CallReader(form)
        self.ids: list[str] = []

    @property
    def may_call(self) -> bool:
        """Whether there may be calls."""
        return self._calls is not None

    @property
    def done(self) -> bool:
        """Whether the answer has ended, whatever the model goes on to say."""
        return self._calls is not None and self._calls.repeats

    def pieces(self, text: str) -> list[Piece]:
        """What has become certain."""
        if self._calls is None:
            return [Piece(text)]
        return self._calls.push(text)

    def rest(self) -> list[Piece]:
        """What is left at the end."""
        return [] if self._calls is None else self._calls.finish()

    def push(self, piece: str) -> list[dict[str, Any]]:
        """OpenAI's deltas of a piece of text."""
        return [self._delta(each) for each in self.pieces(piece)]

    def finish(self, reason: FinishReason) -> tuple[list[dict[str, Any]], FinishReason]:
        """The last deltas, and why the answer ended."""
        deltas = [self._delta(each) for each in self.rest()]
        return deltas, "tool_calls" if self.ids and self.whole and reason == "stop" else reason

    @property
    def whole(self) -> bool:
        """Whether every call that was begun has ended."""
        return self._calls is None or self._calls.complete

    def _delta(self, piece: Piece) -> dict[str, Any]:
        if piece.call is None:
            return {"content": piece.text}
        if not piece.is_name:
            return {"tool_calls": [{"index": piece.call, "function": {"arguments": piece.text}}]}
        self.ids.append(new_call_id())
        function = {"name": piece.text, "arguments": ""}
        return {"tool_calls": [{"index": piece.call, "id": self.ids[-1], "type": "function", "function": function}]}


def new_call_id() -> str:
    """By which a tool's result says whose it is."""
    return f"call_{uuid.uuid4().hex[:24]}"


def asked(
    tools: Sequence[Mapping[str, Any]] | None,
    choice: str | Mapping[str, Any] | None,
    *,
    parallel: bool | None,
    format: Mapping[str, Any] | None,
    format_of_calls: Callable[[], CallForm],
    words: Words = CHAT,
) -> ToolUse:
    """What a request's parameters ask for.

    Args:
        tools: the functions that may be called.
        choice: "none", "auto" (as None), "required", a function's name or a list of those allowed.
        parallel: whether one answer may make several calls; None is yes.
        format: of the text that is no call.
        format_of_calls: how the model writes calls, if it may.
        words: whose parameters they are.

    Raises:
        APIError: naming the parameter that is wrong.
    """
    schema = schema_of(format, words)
    if tools is None:
        for name, given in (("tool_choice", choice not in (None, "none", "auto")), ("parallel_tool_calls", parallel)):
            if given:
                raise errors.invalid(f"'{name}' is only allowed when 'tools' are specified.", param=name)
    if tools is not None and not tools and words.nested:
        raise errors.invalid(
            "Invalid 'tools': empty array. Expected an array with minimum length 1, but got an empty array instead.",
            param="tools",
            code="empty_array",
        )
    shown, places = _functions(tools or (), words)
    mode, allowed = _choice(choice, tuple(places), words)
    if not shown or mode == "none":
        grammar = None if schema is None else _made(lambda: Grammar.json_schema(schema), words.format)
        return ToolUse(grammar=grammar, format_place=words.format)
    callable_ones = [tool for tool in shown if tool["function"]["name"] in allowed]
    text: Literal["text"] | Mapping[str, Any] = "text" if schema is None else schema
    otherwise = None if mode == "required" else text
    form = format_of_calls()
    grammar = _made(
        lambda: Grammar.tool_calls(callable_ones, form, many=parallel is not False, otherwise=otherwise), "tools"
    )
    return ToolUse(shown, grammar, form, places, words.format)


def _made(make: Callable[[], Grammar], param: str) -> Grammar:
    try:
        return make()
    except ValueError as error:
        raise errors.invalid(f"Invalid '{param}': {error}", param=param) from error


# --- tools ----------------------------------------------------------------------------------------------------


def _functions(tools: Sequence[Mapping[str, Any]], words: Words) -> tuple[tuple[dict[str, Any], ...], dict[str, str]]:
    """The tools as templates expect them, and the places of their schemas by name."""
    if len(tools) > MAX_TOOLS:
        raise errors.invalid(
            f"Invalid 'tools': array too long. Expected an array with maximum length {MAX_TOOLS}, but got an array "
            f"with length {len(tools)} instead.",
            param="tools",
            code="array_above_max_length",
        )
    shown, places = [], dict[str, str]()
    for index, tool in enumerate(tools):
        param = f"tools[{index}]"
        if tool.get("type") != "function":
            raise errors.invalid(
                f"Invalid '{param}.type': this server has function tools alone, and it is {tool.get('type')!r:.60}.",
                param=f"{param}.type",
                code="invalid_value",
            )
        inner, place = words.function(tool, param)
        inner = _object(inner, place)
        name = _name(inner.get("name"), f"{place}.name")
        if name in places:
            raise errors.invalid(f"Invalid '{place}.name': there are two tools {name!r}.", param=f"{place}.name")
        description = inner.get("description")
        if description is not None and (not isinstance(description, str) or len(description) > MAX_DESCRIPTION):
            raise errors.invalid(
                f"Invalid '{place}.description': it must be a string of at most {MAX_DESCRIPTION} characters.",
                param=f"{place}.description",
            )
        parameters = inner.get("parameters")
        parameters = _NO_PARAMETERS if parameters is None else _object(parameters, f"{place}.parameters")
        places[name] = f"{place}.parameters"
        _check(parameters, f"function '{name}'", places[name], "invalid_function_parameters", _strict(inner, place))
        function = {"name": name, "description": description or "", "parameters": parameters}
        shown.append({"type": "function", "function": function})
    return tuple(shown), places


def _choice(choice: str | Mapping[str, Any] | None, names: Sequence[str], words: Words) -> tuple[str, Sequence[str]]:
    """The mode, and the names of the tools that may be called."""
    if choice is None:
        return "auto", names
    if isinstance(choice, str):
        return _mode(choice, "tool_choice"), names
    kind = choice.get("type")
    if kind == "function":
        inner, place = words.function(choice, "tool_choice")
        return "required", [_known(_object(inner, place).get("name"), names, f"{place}.name")]
    if kind == "allowed_tools":
        inner, place = (choice.get(kind), f"tool_choice.{kind}") if words.nested else (choice, "tool_choice")
        inner = _object(inner, place)
        listed = inner.get("tools")
        if not isinstance(listed, list) or not listed:
            raise errors.invalid(f"Invalid '{place}.tools': it must be a list of tools.", param=f"{place}.tools")
        allowed = list[str]()
        for index, tool in enumerate(listed):
            own, own_place = words.function(_object(tool, f"{place}.tools[{index}]"), f"{place}.tools[{index}]")
            allowed.append(_known(_object(own, own_place).get("name"), names, f"{own_place}.name"))
        return _mode(inner.get("mode"), f"{place}.mode"), allowed
    raise errors.invalid(
        f"Invalid 'tool_choice.type': it must be 'function' or 'allowed_tools', and it is {kind!r:.60}.",
        param="tool_choice.type",
        code="invalid_value",
    )


def _mode(mode: Any, param: str) -> str:
    if mode not in _MODES:
        supported = ", ".join(f"'{each}'" for each in _MODES)
        raise errors.invalid(
            f"Invalid value: {mode!r:.60}. Supported values are: {supported}.", param=param, code="invalid_value"
        )
    return str(mode)


def _known(name: Any, names: Sequence[str], param: str) -> str:
    if not isinstance(name, str) or name not in names:
        raise errors.invalid(f"Tool choice {name!r:.80} not found in 'tools' parameter.", param=param)
    return name


# --- schemas --------------------------------------------------------------------------------------------------


def schema_of(given: Mapping[str, Any] | None, words: Words = CHAT) -> dict[str, Any] | None:
    """The schema of the text that a format asks for; None is any text."""
    kind = None if given is None else given.get("type")
    if given is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise errors.invalid(
            f"Invalid value: {kind!r:.60}. Supported values are: 'text', 'json_object' and 'json_schema'.",
            param=f"{words.format}.type",
            code="invalid_value",
        )
    inner, place = words.schema(given)
    inner = _object(inner, place)
    name = _name(inner.get("name"), f"{place}.name")
    schema = inner.get("schema")
    schema = {"type": "object"} if schema is None else _object(schema, f"{place}.schema")
    _check(schema, f"response_format '{name}'", words.format, None, _strict(inner, place))
    return closed(schema)


def _strict(given: Mapping[str, Any], place: str) -> bool:
    strict = given.get("strict")
    if strict is not None and not isinstance(strict, bool):
        raise errors.invalid(f"Invalid '{place}.strict': it must be a boolean.", param=f"{place}.strict")
    return strict is True


def _check(schema: Mapping[str, Any], whose: str, param: str, code: str | None, strict: bool) -> None:
    """Refuse a schema that is of no object, or that is not as strict as it says."""
    problem = None
    kind = schema.get("type", None if strict else "object")
    if (strict or code is not None) and kind != "object":
        problem = f"schema must be a JSON Schema of 'type: \"object\"', got 'type: {kind!r:.60}'."
    try:
        problem = problem or (next(_loose(schema, ()), None) if strict else None)
        closed(schema)
    except (RecursionError, ValueError):
        problem = "it is nested too deeply."
    if problem is not None:
        raise errors.invalid(f"Invalid schema for {whose}: {problem}", param=param, code=code)


def _loose(schema: Any, context: tuple[str, ...]) -> Iterator[str]:
    """What in a schema is not strict."""
    if isinstance(schema, list):
        for index, part in enumerate(schema):
            yield from _loose(part, (*context, str(index)))
        return
    if not isinstance(schema, dict):
        return
    properties = schema.get("properties")
    if schema.get("type") == "object" or isinstance(properties, dict):
        if schema.get("additionalProperties") is not False:
            yield f"In context={context}, 'additionalProperties' is required to be supplied and to be false."
        required = schema.get("required")
        names = list(properties) if isinstance(properties, dict) else []
        missing = [name for name in names if not isinstance(required, list) or name not in required]
        if missing:
            yield (
                f"In context={context}, 'required' is required to be supplied and to be an array including every key "
                f"in properties. Missing '{missing[0]}'."
            )
    for key in ("properties", "$defs", "definitions"):
        parts = schema.get(key)
        for name, part in parts.items() if isinstance(parts, dict) else ():
            yield from _loose(part, (*context, key, name))
    for key in ("items", "anyOf", "oneOf", "allOf", "prefixItems"):
        yield from _loose(schema.get(key), (*context, key))


def _object(value: Any, param: str) -> dict[str, Any]:
    if value is None:
        raise errors.invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if not isinstance(value, dict):
        raise errors.invalid(f"Invalid type for '{param}': expected an object.", param=param, code="invalid_type")
    return value


def _name(value: Any, param: str) -> str:
    if value is None:
        raise errors.invalid(f"Missing required parameter: '{param}'.", param=param, code="missing_required_parameter")
    if not isinstance(value, str):
        raise errors.invalid(f"Invalid type for '{param}': expected a string.", param=param, code="invalid_type")
    if not TOOL_NAME.fullmatch(value):
        raise errors.invalid(
            f"Invalid '{param}': string does not match pattern. Expected a string that matches the pattern "
            "'^[a-zA-Z0-9_-]{1,64}$'.",
            param=param,
            code="invalid_value",
        )
    return value
