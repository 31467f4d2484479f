"""What the text of an answer may be: JSON, JSON of a schema, a regular expression, one of some choices, tool calls.

Plain data that a request carries (`SamplingParams.grammar`). This file imports no torch and compiles nothing;
`structured` does.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from chatloom.chat.calls import CallForm
from chatloom.chat.message import TOOL_NAME

Kind = Literal["json", "json_schema", "regex", "choice", "tool_call"]

MAX_CHARACTERS = 200_000  # of a schema or an expression: compiling one takes a second at most
MAX_CALLS = 32  # of one answer: a small model that may go on calling often does
_ANY_OBJECT = {"type": "object"}


# Where a JSON schema has schemas: in a mapping, in a list, or itself.
IN_MAPPINGS = ("$defs", "definitions", "properties", "patternProperties")
IN_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
SINGLE = ("items", "additionalProperties", "not", "if", "then", "else")
# What says of an object's other members, here or elsewhere.
_SAYS_MORE = ("additionalProperties", "patternProperties", "unevaluatedProperties", "$ref", *IN_LISTS[:3])


class GrammarError(ValueError):
    """A grammar that is wrong, or that nothing fits; `tool` is the one whose parameters are, if one's are."""

    def __init__(self, message: str, *, tool: str | None = None) -> None:
        super().__init__(message)
        self.tool = tool


@dataclass(frozen=True, slots=True)
class Grammar:
    """The texts that an answer may be. Made by the methods named as the kinds; a stop string still cuts the text."""

    kind: Kind
    # The expression itself, or the JSON text of the schema, the choices or the tools.
    source: str

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"the kind of grammar is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}")
        if len(self.source) > MAX_CHARACTERS:
            raise ValueError(
                f"the grammar has {len(self.source)} characters and may have {MAX_CHARACTERS}; make it smaller"
            )

    @classmethod
    def json(cls) -> "Grammar":
        """Any JSON object."""
        return cls("json", '{"type": "object"}')

    @classmethod
    def json_schema(cls, schema: Mapping[str, Any] | str) -> "Grammar":
        """JSON that a JSON Schema describes, given as a mapping or as its text."""
        if isinstance(schema, str):
            try:
                schema = json.loads(schema)
            except (json.JSONDecodeError, RecursionError) as error:
                raise ValueError(f"the JSON schema is not JSON: {error}") from None
        return cls("json_schema", _text("the JSON schema", _mapping("the JSON schema", schema)))

    @classmethod
    def regex(cls, pattern: str) -> "Grammar":
        """A text that the whole of a regular expression matches (no look-around, no references back)."""
        if not isinstance(pattern, str) or not pattern:
            raise ValueError(f"the regular expression is {pattern!r}; it must be a string that is not empty")
        return cls("regex", pattern)

    @classmethod
    def choice(cls, options: Sequence[str]) -> "Grammar":
        """One of some texts."""
        fine = not isinstance(options, str) and len(options) > 0
        if not fine or not all(isinstance(option, str) and option for option in options):
            raise ValueError(f'the choices are {options!r:.80}; give strings that are not empty, such as ["yes", "no"]')
        return cls("choice", json.dumps(list(options), ensure_ascii=False))

    @classmethod
    def tool_call(cls, tools: Sequence[Mapping[str, Any]], *, before: str = "", after: str = "") -> "Grammar":
        """A call of one of some tools: `{"name": ..., "arguments": {...}}`.

        Args:
            tools: as chat APIs take them, `{"type": "function", "function": {"name", "parameters"}}`, or the inner
                mapping alone; `parameters` is a JSON schema, any object where it is missing.
            before: what a model is trained to write before the object, such as "<tool_call>\\n".
            after: and after it.
        """
        form = CallForm(before + '{"name": "', '", "arguments": ', None, "}" + after)
        return cls.tool_calls(tools, form, many=False)

    @classmethod
    def tool_calls(
        cls,
        tools: Sequence[Mapping[str, Any]],
        form: CallForm,
        *,
        many: bool = True,
        otherwise: Literal["text"] | Mapping[str, Any] | None = None,
    ) -> "Grammar":
        """Calls of some tools in the form that a chat format trains and reads, `ChatFormat.call_form`.

        Args:
            tools: see `tool_call`; the arguments are JSON as `json.dumps` lays it out, and `closed`.
            form: what is written around names and arguments.
            many: whether one answer may have several calls (MAX_CALLS at most).
            otherwise: what may come instead of calls: nothing, "text" (any, also before them), or JSON of a schema.
        """
        if isinstance(otherwise, str) and otherwise != "text":
            raise ValueError(f'otherwise is {otherwise!r:.80}; it must be None, "text" or a JSON schema')
        if isinstance(otherwise, Mapping) and form.first.startswith("{"):
            raise ValueError(
                "this model's chat template writes tool calls as bare JSON, so an answer of a JSON schema could not be "
                "told from a call; ask for one or the other"
            )
        asked = {
            "tools": _parameters(tools),
            "form": asdict(form),
            "many": many and form.next is not None,
            "otherwise": otherwise,
        }
        return cls("tool_call", _text("the tools", asked))


def _parameters(tools: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The schemas of the tools' parameters, by name."""
    if isinstance(tools, (str, Mapping)) or not tools:
        raise ValueError(f"tools is {tools!r:.80}; give a list of one tool at least")
    known: dict[str, Any] = {}
    for index, tool in enumerate(tools):
        inner = _mapping(f"tool {index}", tool)
        inner = _mapping(f"tool {index}", inner.get("function", inner))
        name = inner.get("name")
        if not isinstance(name, str) or not TOOL_NAME.fullmatch(name) or name in known:
            raise ValueError(
                f"the name of tool {index} is {name!r:.80}; it must be 1 to 64 of a-z, A-Z, 0-9, _ and -, and no "
                "other tool's"
            )
        schema = {**_ANY_OBJECT, **_mapping(f"parameters of tool {name!r}", inner.get("parameters", _ANY_OBJECT))}
        if schema["type"] != "object":
            raise ValueError(f"the parameters of tool {name!r} are of type {schema['type']!r:.80}; it must be 'object'")
        known[name] = closed(schema)
    return known


def closed(schema: Mapping[str, Any]) -> dict[str, Any]:
    """A schema whose objects have the properties that it lists and no others, where it does not say of others.

    Small models make up properties as long as they may. What fits it fits the schema too. ValueError where it is
    nested without end.
    """
    try:
        found: dict[str, Any] = _closed(dict(schema))
        return found
    except RecursionError:
        raise ValueError("the JSON schema is nested too deeply") from None


def _closed(part: Any, *, alone: bool = True) -> Any:
    """`alone`: whether all that is said of the object is said here."""
    if not isinstance(part, dict):
        return part
    found = dict(part)
    for key, value in part.items():
        if key in IN_MAPPINGS and isinstance(value, dict):
            found[key] = {name: _closed(inner) for name, inner in value.items()}
        elif key in IN_LISTS and isinstance(value, list):
            by_itself = key == "prefixItems" or (key != "allOf" and "properties" not in part)
            found[key] = [_closed(inner, alone=by_itself) for inner in value]
        elif key == "items":
            found[key] = _closed(value)
    if alone and isinstance(found.get("properties"), dict) and not any(key in found for key in _SAYS_MORE):
        found["additionalProperties"] = False
    return found


def _mapping(what: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what} is {value!r:.80}; it must be a JSON object")
    return dict(value)


def _text(what: str, value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{what} cannot be written as JSON: {error}") from None
