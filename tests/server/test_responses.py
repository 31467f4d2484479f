"""The official client against /v1/responses of a real server."""

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

TOOL: Any = {
    "type": "function",
    "name": "add",
    "parameters": {
        "type": "object",
        "properties": {"a": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["a"],
        "additionalProperties": False,
    },
    "strict": True,
}


HI: Any = [{"role": "user", "content": "hi"}]


class Person(BaseModel):
    way: Literal["up", "down"]
    small: bool


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serve({"tiny": tiny(context_length=2048)}) as running:
        yield running


def test_text_in_text_out(serving: Callable[..., Running]) -> None:
    model = scripted(lambda prompt: "Hello, you.")
    client = serving(tiny=model).client
    made = client.responses.create(model="tiny", input="hi", instructions="Be brief.", metadata={"a": "b"})
    assert (made.output_text, made.status, made.error, made.incomplete_details) == (
        "Hello, you.",
        "completed",
        None,
        None,
    )
    assert made.usage is not None
    assert made.usage.total_tokens == made.usage.input_tokens + made.usage.output_tokens
    assert made.usage.output_tokens == len("Hello, you.") + 1
    assert (made.metadata, made.instructions, made.store) == ({"a": "b"}, "Be brief.", False)  # type: ignore[attr-defined]
    items: list[Any] = [
        {"role": "developer", "content": "You are Ada."},
        {"role": "user", "content": [{"type": "input_text", "text": "hi"}, {"type": "input_text", "text": " you"}]},
        *made.output,
        {"type": "message", "role": "user", "content": "Again."},
    ]
    client.responses.create(model="tiny", input=items, instructions="Be brief.")
    prompts = model.engine.prompts  # type: ignore[attr-defined]
    assert prompts[0].endswith("<|system|>Be brief.<|end_of_turn|><|user|>hi<|end_of_turn|><|assistant|>")
    assert prompts[1].endswith(
        "<|system|>Be brief.\n\nYou are Ada.<|end_of_turn|><|user|>hi you<|end_of_turn|>"
        "<|assistant|>Hello, you.<|end_of_turn|><|user|>Again.<|end_of_turn|><|assistant|>"
    )


def test_the_events_of_an_answer(serving: Callable[..., Running]) -> None:
    text = HERMES.text("Look:", (ToolCall("add", '{"a": 1}'), ToolCall("add", '{"a": 2}')))
    client = serving(tiny=scripted(lambda prompt: text, pause=0.0005, context_length=4096)).client
    events = list(client.responses.create(model="tiny", input="hi", tools=[TOOL], stream=True))
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.type.removeprefix("response.") for event in events]
    once = [kind for place, kind in enumerate(kinds) if place == 0 or kinds[place - 1] != kind]
    call = ["output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done"]
    message = ["output_item.added", "content_part.added", "output_text.delta", "output_text.done", "content_part.done"]
    assert once == ["created", "in_progress", *message, "output_item.done", *call, *call, "completed"]
    final: Any = events[-1]
    said, *calls = final.response.output
    assert said.content[0].text == "Look:"
    assert [(each.name, each.arguments) for each in calls] == [("add", '{"a": 1}'), ("add", '{"a": 2}')]
    for place, item in enumerate(final.response.output):
        own = [event for event in events if getattr(event, "output_index", None) == place]
        assert {event.item_id for event in own if hasattr(event, "item_id")} == {item.id}
        whole = said.content[0].text if place == 0 else item.arguments
        assert "".join(event.delta for event in own if hasattr(event, "delta")) == whole
        assert own[-1].item == item
        assert own[0].item.status == "in_progress"
    assert events[0].response.usage is None  # type: ignore[union-attr]
    with client.responses.stream(model="tiny", input="hi", tools=[TOOL]) as stream:
        *_, last = stream
        assert last.type == "response.completed"
        assert [item.type for item in stream.get_final_response().output] == [
            "message",
            "function_call",
            "function_call",
        ]


def test_a_call_its_result_and_the_answer(serving: Callable[..., Running]) -> None:
    calls = HERMES.text("", (ToolCall("add", '{"a": 1}'), ToolCall("add", '{"a": 2}')))
    model = scripted(lambda prompt: "3." if "got {" in prompt else calls, context_length=4096)
    client = serving(tiny=model).client
    asked: list[Any] = [{"role": "user", "content": "1 + 2?"}]
    made = client.responses.create(model="tiny", input=asked, tools=[TOOL])
    results = [
        {"type": "function_call_output", "call_id": call.call_id, "output": f"got {call.arguments}"}
        for call in made.output
        if call.type == "function_call"
    ]
    final = client.responses.create(model="tiny", input=[*asked, *made.output, *results[::-1]], tools=[TOOL])
    assert final.output_text == "3."
    prompts = model.engine.prompts  # type: ignore[attr-defined]
    assert prompts[1].startswith(prompts[0] + calls + "<|end_of_turn|>")
    assert prompts[1].index('got {"a": 1}') < prompts[1].index('got {"a": 2}')


def test_a_model_is_held_to_tools_and_schemas(server: Running) -> None:
    client = server.client
    made = client.responses.create(
        model="tiny", input="hi", tools=[TOOL], tool_choice="required", parallel_tool_calls=False
    )
    (call,) = made.output
    assert call.type == "function_call"
    assert 0 <= json.loads(call.arguments)["a"] <= 99
    other = {**TOOL, "name": "other"}
    for choice in (
        {"type": "function", "name": "other"},
        {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "other"}]},
    ):
        named: Any = client.responses.create(model="tiny", input="hi", tools=[TOOL, other], tool_choice=choice)  # type: ignore[call-overload]
        assert {item.name for item in named.output} == {"other"}
    parsed = client.responses.parse(model="tiny", input="hi", text_format=Person, max_output_tokens=300)
    assert isinstance(parsed.output_parsed, Person)
    with client.responses.stream(model="tiny", input="hi", text_format=Person, max_output_tokens=300) as stream:
        assert isinstance(stream.get_final_response().output_parsed, Person)


def test_a_tool_is_told_to_be_as_strict_as_it_was_checked(server: Running) -> None:
    loose = {**{name: value for name, value in TOOL.items() if name != "strict"}, "name": "loose"}
    made = server.client.responses.create(model="tiny", input="hi", tools=[TOOL, loose], max_output_tokens=16)  # type: ignore[list-item]
    assert [tool.strict for tool in made.tools] == [True, False]  # type: ignore[union-attr]


def test_an_answer_cut_short_is_incomplete(server: Running) -> None:
    made = server.client.responses.create(
        model="tiny", input="hi", tools=[TOOL], tool_choice="required", max_output_tokens=30
    )
    assert made.status == "incomplete"
    assert made.incomplete_details is not None
    assert made.incomplete_details.reason == "max_output_tokens"
    events = list(server.client.responses.create(model="tiny", input="hi", max_output_tokens=3, stream=True))
    assert events[-1].type == "response.incomplete"


def test_log_probabilities_of_the_text(server: Running) -> None:
    asked: Any = {"model": "tiny", "input": "hi", "include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = server.client.responses.create(**asked, max_output_tokens=10).output[0].content[0]
    assert [len(each.top_logprobs) for each in part.logprobs] == [2] * len(part.logprobs)
    assert len(part.logprobs) >= 8


def test_many_at_once(server: Running) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        tool = {**TOOL, "name": f"tool_{seed}"}
        async with client.responses.stream(
            model="tiny", input="hi", tools=[tool], tool_choice="required", parallel_tool_calls=False
        ) as stream:
            return (await stream.get_final_response()).output[0].name

    async def every() -> list[str]:
        async with server.async_client as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(4)))

    assert asyncio.run(every()) == [f"tool_{seed}" for seed in range(4)]


@pytest.mark.parametrize(
    ("options", "param", "words"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id", "keeps no responses; send the items so far"),
        ({"store": True}, "store", "keeps no responses"),
        ({"background": True}, "background", "Unsupported parameter"),
        ({"reasoning": {"effort": "low"}}, "reasoning", "does not reason"),
        ({"truncation": "auto"}, "truncation", "disabled"),
        ({"top_logprobs": 1}, "top_logprobs", "include"),
        ({"input": []}, "input", "Invalid 'input'"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input[0].type", "Supported values are: 'message'"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input[0].role", "Supported values are"),
        ({"input": [{"role": "user", "content": 3}]}, "input[0].content", "a string or a list of parts"),
        ({"input": [{"role": "user", "content": [{"type": 3}]}]}, "input[0].content", "a string or a list of parts"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0].type",
            "reads text alone",
        ),
        ({"input": [{"role": "assistant", "content": "x"}]}, "input", "last message must not be the assistant's"),
        (
            {
                "input": [
                    {"role": "user", "content": "x"},
                    {"type": "function_call_output", "call_id": "x", "output": "y"},
                ]
            },
            "input",
            "the result of a tool, and the message before it calls none",
        ),
        (
            {"input": [{"type": "function_call", "name": "f", "arguments": "{}"}]},
            "input[0].call_id",
            "must be a string",
        ),
        (
            {"input": [{"type": "function_call", "call_id": "x", "name": "f", "arguments": "["}, *HI]},
            "input[0].tool_calls",
            "they must be the text of a JSON object",
        ),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type", "function tools alone"),
        ({"tools": [{**TOOL, "name": "a b"}]}, "tools[0].name", "does not match pattern"),
        ({"tools": [{**TOOL, "parameters": {"type": "object"}}]}, "tools[0].parameters", "additionalProperties"),
        (
            {"tools": [{**TOOL, "strict": False, "parameters": {"properties": {"a": {"type": "strin"}}}}]},
            "tools[0].parameters",
            "wrong at #/properties/a",
        ),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice.name", "'f' not found"),
        ({"text": {"format": {"type": "yaml"}}}, "text.format.type", "Supported values are"),
        ({"text": {"format": {"type": "json_schema", "schema": {}}}}, "text.format.name", "Missing"),
        (
            {"text": {"format": {"type": "json_schema", "name": "x", "schema": {"type": "strin"}}}},
            "text.format",
            "wrong at #",
        ),
        ({"input": "x" * 5000}, "input", "maximum context length is 2048 tokens"),
        ({"extra_body": {"sizes": 1}}, "sizes", "Unknown parameter"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "False",
        ),
    ],
)
def test_what_is_wrong_is_named(server: Running, options: Any, param: str, words: str) -> None:
    with pytest.raises(openai.BadRequestError, match=words) as caught:
        server.client.responses.create(**{"model": "tiny", "input": "hi", **options})
    assert caught.value.param == param


def test_an_unknown_model(server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        server.client.responses.create(model="nobody", input="hi")
