"""The official client calls tools and asks for JSON, of a real server over models that mean nothing by it."""

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel

from chatloom.chat.calls import HERMES
from chatloom.chat.message import ToolCall
from chatloom.testing.serving import Running, scripted, serve, tiny

USER: list[Any] = [{"role": "user", "content": "hi"}]
ADD: dict[str, Any] = {
    "type": "object",
    "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}, "way": {"enum": ["up", "down"]}},
    "required": ["a", "way"],
    "additionalProperties": False,
}


def tool(name: str = "add", parameters: Any = ADD, **more: Any) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": parameters, **more}}


TOOLS = [tool("add", strict=True), tool("now", None, description="The time.")]


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve({"tiny": tiny(context_length=2048)}) as running:
        yield running


def ask(server: Running, **options: Any) -> Any:
    given = {"model": "tiny", "messages": USER, "tools": TOOLS, "max_tokens": 500, "seed": 1, "temperature": 2.0}
    given |= options
    return server.client.chat.completions.create(**{name: value for name, value in given.items() if value is not ...})


def checked(message: Any) -> list[str]:
    """The names of a message's calls, which fit their tools."""
    for call in message.tool_calls:
        values = json.loads(call.function.arguments)
        if call.function.name == "add":
            assert values.keys() == {"a", "way"}
            assert 0 <= values["a"] <= 99
            assert values["way"] in ("up", "down")
        else:
            assert (call.function.name, values) == ("now", {})
        assert call.id.startswith("call_")
    assert len({call.id for call in message.tool_calls}) == len(message.tool_calls)
    return [call.function.name for call in message.tool_calls]


def test_calls_that_are_required_are_made(server: Running) -> None:
    numbers = set()
    for choice in ask(server, tool_choice="required", n=16).choices:
        numbers.add(len(checked(choice.message)))
        assert (choice.message.content, choice.finish_reason) == (None, "tool_calls")
    assert max(numbers) > 1
    assert len(checked(ask(server, tool_choice="required", parallel_tool_calls=False).choices[0].message)) == 1


@pytest.mark.parametrize(
    "choice",
    [
        {"type": "function", "function": {"name": "now"}},
        {
            "type": "allowed_tools",
            "allowed_tools": {"mode": "required", "tools": [{"type": "function", "function": {"name": "now"}}]},
        },
    ],
    ids=["named", "allowed"],
)
def test_one_tool_of_several_is_called(server: Running, choice: Any) -> None:
    assert {
        name for seed in range(3) for name in checked(ask(server, tool_choice=choice, seed=seed).choices[0].message)
    } == {"now"}


def test_a_stream_of_calls_is_the_answer_in_pieces(server: Running) -> None:
    whole = ask(server, tool_choice="required").choices[0].message
    deltas = [chunk.choices[0].delta for chunk in ask(server, tool_choice="required", stream=True)]
    assert (deltas[0].role, deltas[0].content) == ("assistant", None)
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    for index, call in enumerate(whole.tool_calls):
        first, *rest = [piece for piece in pieces if piece.index == index]
        assert (first.type, first.function.name, first.function.arguments) == ("function", call.function.name, "")
        assert first.id.startswith("call_")
        assert all(piece.id is None and piece.function.name is None for piece in rest)
        assert "".join(piece.function.arguments for piece in rest) == call.function.arguments
    assert sum(len(piece.function.arguments) > 0 for piece in pieces) > len(whole.tool_calls)


def said(*calls: tuple[str, str], content: str = "") -> str:
    return HERMES.text(content, tuple(ToolCall(name, arguments) for name, arguments in calls))


def test_auto_is_text_or_calls_or_both(serving: Callable[..., Running]) -> None:
    answers = {"text": "No <tool for that.", "calls": said(("now", "{}"), ("add", '{"a": 1, "way": "up"}'))}
    answers["both"] = said(("now", "{}"), content="Let me look.")
    model = scripted(lambda prompt: next(text for name, text in answers.items() if f"please {name}" in prompt))
    server = serving(tiny=model)
    expected = {
        "text": ("No <tool for that.", None, "stop"),
        "calls": (None, [("now", "{}"), ("add", '{"a": 1, "way": "up"}')], "tool_calls"),
        "both": ("Let me look.", [("now", "{}")], "tool_calls"),
    }
    for name, wanted in expected.items():
        messages = [{"role": "user", "content": f"please {name}"}]
        choice = ask(server, messages=messages, max_tokens=...).choices[0]
        calls = choice.message.tool_calls and [
            (c.function.name, c.function.arguments) for c in choice.message.tool_calls
        ]
        assert (choice.message.content, calls, choice.finish_reason) == wanted
        with server.client.chat.completions.stream(model="tiny", messages=messages, tools=[TOOLS[0]]) as stream:
            kinds = [event.type for event in stream]
            final = stream.get_final_completion().choices[0]
        assert final.message.content == wanted[0]
        assert final.finish_reason == wanted[2]
        assert ("tool_calls.function.arguments.done" in kinds) == (wanted[1] is not None)
        assert ("content.delta" in kinds) == (wanted[0] is not None)


def test_a_call_its_result_and_the_answer(serving: Callable[..., Running]) -> None:
    def answer(prompt: str) -> str:
        return "It is nine." if "<tool_response>\n09:00\n</tool_response>" in prompt else said(("now", "{}"))

    model = scripted(answer, context_length=4096)
    server = serving(tiny=model)
    message = ask(server, max_tokens=...).choices[0].message
    messages = [*USER, message, {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": "09:00"}]
    final = ask(server, messages=messages, max_tokens=...).choices[0]
    assert (final.message.content, final.message.tool_calls, final.finish_reason) == ("It is nine.", None, "stop")
    prompts = model.engine.prompts  # type: ignore[attr-defined]
    assert '{"name": "now", "description": "The time.", "parameters"' in prompts[0]
    assert prompts[1].startswith(prompts[0] + said(("now", "{}")))
    ask(server, tool_choice="none", max_tokens=...)
    assert "<|system|>" not in prompts[2]


def test_an_answer_that_repeats_a_call_ends_there(serving: Callable[..., Running]) -> None:
    text = said(("now", "{}"), ("add", '{"a": 1, "way": "up"}'), ("now", "{}"), ("now", "{}"))
    server = serving(tiny=scripted(lambda prompt: text * 50, pause=0.0005, context_length=20_000))
    choice = ask(server, max_tokens=...).choices[0]
    assert [call.function.name for call in choice.message.tool_calls] == ["now", "add"]
    assert choice.finish_reason == "tool_calls"
    chunks = list(ask(server, max_tokens=..., stream=True))
    assert chunks[-1].choices[0].finish_reason == "tool_calls"
    assert sum(call.id is not None for chunk in chunks for call in chunk.choices[0].delta.tool_calls or []) == 2


def test_an_answer_cut_short_says_so(server: Running) -> None:
    choice = ask(server, tool_choice="required", max_tokens=30).choices[0]
    assert choice.finish_reason == "length"


class Person(BaseModel):
    way: Literal["up", "down"]
    small: bool


def test_the_client_parses_what_it_asked_for(server: Running) -> None:
    completions = server.client.chat.completions
    parsed = completions.parse(model="tiny", messages=USER, response_format=Person, seed=3, max_tokens=300)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    own = completions.parse(
        model="tiny",
        messages=USER,
        tools=[openai.pydantic_function_tool(Person)],
        tool_choice="required",
        parallel_tool_calls=False,
        seed=3,
        max_tokens=300,
    )
    assert own.choices[0].message.tool_calls is not None
    assert isinstance(own.choices[0].message.tool_calls[0].function.parsed_arguments, Person)
    with completions.stream(model="tiny", messages=USER, response_format=Person, seed=3, max_tokens=300) as stream:
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Person)


def test_json_and_json_beside_tools(server: Running) -> None:
    format = {"type": "json_schema", "json_schema": {"name": "it", "schema": ADD}}
    kinds = set()
    for seed in range(12):
        message = ask(server, response_format=format, seed=seed).choices[0].message
        if message.tool_calls:
            checked(message)
        else:
            assert json.loads(message.content)["way"] in ("up", "down")
        kinds.add(bool(message.tool_calls))
    assert False in kinds
    thing = {"type": "json_object"}
    choices = ask(server, tools=..., response_format=thing, n=8, max_tokens=200).choices
    whole = [json.loads(choice.message.content) for choice in choices if choice.finish_reason == "stop"]
    assert whole
    assert all(isinstance(each, dict) for each in whole)


def test_many_at_once_with_tools_of_their_own(server: Running) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> Any:
        own = [tool(f"tool_{seed}")]
        return await client.chat.completions.create(
            model="tiny", messages=USER, tools=own, tool_choice="required", parallel_tool_calls=False, seed=seed
        )

    async def every() -> list[Any]:
        async with server.async_client as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(6)))

    for seed, answer in enumerate(asyncio.run(every())):
        assert answer.choices[0].message.tool_calls[0].function.name == f"tool_{seed}"


def strict(**schema: Any) -> Any:
    return [tool("f", {"type": "object", **schema}, strict=True)]


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"tools": []}, "tools", "empty array"),
        ({"tools": [tool()] * 129}, "tools", "maximum length 128"),
        ({"tools": [{"type": "custom"}]}, "tools[0].type", "function tools alone"),
        ({"tools": [{"type": "function"}]}, "tools[0].function", "Missing required parameter"),
        ({"tools": [tool(1)]}, "tools[0].function.name", "expected a string"),
        ({"tools": [tool("two words")]}, "tools[0].function.name", "string does not match pattern"),
        ({"tools": [tool(), tool()]}, "tools[1].function.name", "two tools 'add'"),
        ({"tools": [tool(description=3)]}, "tools[0].function.description", "must be a string"),
        ({"tools": [tool(parameters=3)]}, "tools[0].function.parameters", "expected an object"),
        ({"tools": [tool(strict=3)]}, "tools[0].function.strict", "boolean"),
        (
            {"tools": [tool(parameters={"type": "array"})]},
            "tools[0].function.parameters",
            "JSON Schema of 'type: \"obj",
        ),
        ({"tools": strict()}, "tools[0].function.parameters", "'additionalProperties' is required"),
        (
            {"tools": strict(additionalProperties=False, properties={"a": {"type": "null"}})},
            "tools[0].function.parameters",
            r"In context=\(\), 'required' .* Missing 'a'",
        ),
        (
            {"tools": strict(additionalProperties=False, properties={"a": {"properties": {}}}, required=["a"])},
            "tools[0].function.parameters",
            r"In context=\('properties', 'a'\), 'additionalProperties'",
        ),
        (
            {"tools": [tool("g"), tool("f", {"properties": {"x": {"type": "strin"}}})]},
            "tools[1].function.parameters",
            "parameters of tool 'f' is wrong at #/properties/x",
        ),
        (
            {
                "tools": [
                    tool("f", {"properties": {"x": {"type": "integer", "minimum": 3, "maximum": 2}}, "required": ["x"]})
                ]
            },
            "tools[0].function.parameters",
            "parameters of tool 'f' is wrong at #: .*'x' is unsatisfiable",
        ),
        ({"tools": [tool("f", {"properties": {"x": {"enum": ["y" * 200_001]}}})]}, "tools", "make it smaller"),
        ({"tool_choice": "perhaps"}, "tool_choice", "Supported values are: 'none', 'auto', 'required'"),
        ({"tool_choice": {"type": "custom"}}, "tool_choice.type", "must be 'function' or 'allowed_tools'"),
        ({"tool_choice": {"type": "function"}}, "tool_choice.function", "Missing"),
        (
            {"tool_choice": {"type": "function", "function": {"name": "sub"}}},
            "tool_choice.function.name",
            "'sub' not found in 'tools'",
        ),
        ({"tool_choice": {"type": "allowed_tools", "allowed_tools": {}}}, "tool_choice.allowed_tools.tools", "list of"),
        ({"tools": ..., "tool_choice": "required"}, "tool_choice", "only allowed when 'tools' are specified"),
        ({"tools": ..., "parallel_tool_calls": True}, "parallel_tool_calls", "only allowed when 'tools'"),
        ({"tools": ..., "response_format": {"type": "yaml"}}, "response_format.type", "Supported values are"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema", "Missing required"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x y", "schema": {}}}},
            "response_format.json_schema.name",
            "does not match pattern",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {}, "strict": True}}},
            "response_format",
            "Invalid schema for response_format 'x': ",
        ),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "strin"}}}},
            "response_format",
            "JSON schema is wrong at #",
        ),
        (
            {"messages": [*USER, {"role": "tool", "tool_call_id": "x", "content": "1"}]},
            "messages",
            "message 1 is the result of a tool",
        ),
        (
            {"messages": [*USER, {"role": "assistant", "tool_calls": [{"id": "x"}]}, *USER]},
            "messages[1].tool_calls",
            'must be {"function"',
        ),
    ],
)
def test_what_is_wrong_is_named(server: Running, options: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        ask(server, **options)
    assert caught.value.param == param
    assert ask(server, tools=..., max_tokens=1).choices  # it is alive


def test_a_schema_without_end(server: Running) -> None:
    deep: Any = {}
    for _ in range(400):
        deep = {"type": "object", "properties": {"x": deep}}
    with pytest.raises(openai.BadRequestError):
        ask(server, tools=[tool("f", {"type": "object", "properties": {"x": deep}})], tool_choice="required")
