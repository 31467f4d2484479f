"""The official client against /v1/chat/completions of a real server: sync, async, streaming, every parameter."""

import asyncio
from collections.abc import Callable
from typing import Any

import openai
import pytest
import torch

from chatloom.engine.request import sample_seed
from chatloom.testing.serving import Running, scripted, tiny

USER = [{"role": "user", "content": "hi"}]


def content(answer: Any) -> str:
    text = answer.choices[0].message.content
    assert isinstance(text, str)
    return text


def collected(chunks: Any, count: int = 1) -> list[str]:
    texts = [""] * count
    for chunk in chunks:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    return texts


def test_an_answer_is_what_the_model_says(serving: Callable[..., Running]) -> None:
    answer = serving(echo=scripted(lambda prompt: "Hello, you.")).client.chat.completions.create(
        model="echo", messages=USER
    )
    assert content(answer) == "Hello, you."
    assert (answer.object, answer.model, answer.choices[0].finish_reason) == ("chat.completion", "echo", "stop")
    assert answer.system_fingerprint is not None
    assert answer.system_fingerprint.startswith("fp_")
    assert answer.usage is not None
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens == len("Hello, you.") + 1  # and the end of the turn


def test_a_stream_is_the_answer_in_pieces(serving: Callable[..., Running]) -> None:
    client = serving(echo=scripted(lambda prompt: "Hello, you.", pause=0.001)).client
    chunks = list(client.chat.completions.create(model="echo", messages=USER, stream=True))
    assert collected(chunks) == ["Hello, you."]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert len(chunks) > 3
    assert len({chunk.id for chunk in chunks}) == 1


def test_the_async_client_is_served_too(tiny_server: Running) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "seed": 5, "max_tokens": 20}

    async def ask() -> tuple[list[str], str]:
        async with tiny_server.async_client as client:
            several = await asyncio.gather(*(client.chat.completions.create(**asked) for _ in range(8)))
            stream = await client.chat.completions.create(**asked, stream=True)
            pieces = [chunk.choices[0].delta.content or "" async for chunk in stream]
        return [content(answer) for answer in several], "".join(pieces)

    answers, streamed = asyncio.run(ask())
    assert set(answers) == {streamed}


def test_a_real_model_streams_what_it_answers_at_once_and_its_usage(tiny_server: Running) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "seed": 5, "max_tokens": 20, "n": 3}
    whole = tiny_server.client.chat.completions.create(**asked)
    chunks = list(
        tiny_server.client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
    )
    assert collected(chunks, 3) == [choice.message.content for choice in whole.choices]
    assert len(set(collected(chunks, 3))) == 3  # the seed of each is its own
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_the_answer_is_that_of_the_model_with_the_same_parameters(tiny_server: Running) -> None:
    model = tiny()
    more: dict[str, Any] = {
        "temperature": 1.3,
        "top_p": 0.9,
        "frequency_penalty": 0.5,
        "presence_penalty": -0.5,
        "logit_bias": {"65": 3, "66": -100},
    }
    own: dict[str, Any] = {"top_k": 50, "min_p": 0.001, "repetition_penalty": 1.1}
    answer = tiny_server.client.chat.completions.create(
        model="tiny", messages=USER, seed=7, max_completion_tokens=30, n=2, **more, extra_body=own
    )
    bias = {"logit_bias": {65: 3, 66: -100}}
    for sample, choice in enumerate(answer.choices):
        expected = model.chat(USER, seed=sample_seed(7, sample), max_tokens=30, **more | own | bias)
        assert choice.message.content == expected


def test_a_negative_seed_repeats_and_none_does_not(tiny_server: Running) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "max_tokens": 20}
    create = tiny_server.client.chat.completions.create
    assert content(create(**asked, seed=-3)) == content(create(**asked, seed=-3))
    assert content(create(**asked)) != content(create(**asked))


def test_a_stop_string_ends_it_and_length_is_told(tiny_server: Running) -> None:
    client = tiny_server.client
    whole = content(client.chat.completions.create(model="tiny", messages=USER, seed=1, max_tokens=40))
    stop = whole[10:12]
    cut = client.chat.completions.create(model="tiny", messages=USER, seed=1, max_tokens=40, stop=[stop, "never"])
    assert content(cut) == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    short = client.chat.completions.create(model="tiny", messages=USER, seed=1, max_tokens=3)
    assert short.choices[0].finish_reason == "length"
    assert short.usage is not None
    assert short.usage.completion_tokens == 3


def test_logprobs_are_those_of_the_tokens_of_the_text(tiny_server: Running) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "temperature": 0, "max_tokens": 12}
    asked |= {"logprobs": True, "top_logprobs": 3}
    whole = tiny_server.client.chat.completions.create(**asked).choices[0]
    assert whole.logprobs is not None
    entries = whole.logprobs.content
    assert entries is not None
    assert bytes(byte for entry in entries for byte in entry.bytes or ()).decode("utf-8", "replace") == (
        whole.message.content
    )
    model = tiny()
    tokens = model.prompt_tokens(USER)
    made = model.engine.generate([tokens], _greedy(12, model))[0]
    assert [entry.logprob for entry in entries] == pytest.approx(made.logprobs[: len(entries)], abs=1e-5)
    for entry in entries:
        assert len(entry.top_logprobs) == 3
        assert entry.top_logprobs[0].logprob == pytest.approx(entry.logprob, abs=1e-6)  # it took the likeliest
    streamed = [
        entry
        for chunk in tiny_server.client.chat.completions.create(**asked, stream=True)
        for entry in (chunk.choices[0].logprobs.content or () if chunk.choices[0].logprobs else ())
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in entries]


def _greedy(max_tokens: int, model: Any) -> Any:
    from chatloom.engine.request import SamplingParams

    return SamplingParams(max_tokens=max_tokens, stop_tokens=model.chat_format.stop_tokens)


@pytest.mark.parametrize("stream", [True, False])
def test_a_stop_string_leaves_out_the_logprobs_of_what_it_cut(tiny_server: Running, stream: bool) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "seed": 1, "max_tokens": 40}
    asked |= {"logit_bias": {str(token): -100 for token in range(16)}}  # no special tokens, which have no text
    create = tiny_server.client.chat.completions.create
    whole = content(create(**asked))
    places = (place for place in range(4, 38) if whole[place - 1 : place + 2].isascii())
    place = next(place for place in places if whole.index(whole[place : place + 2]) == place)
    asked |= {"stop": whole[place : place + 2], "logprobs": True}
    if stream:
        chunks = [chunk.choices[0] for chunk in create(**asked, stream=True)]
        text = "".join(chunk.delta.content or "" for chunk in chunks)
        tokens = [entry for chunk in chunks if chunk.logprobs for entry in chunk.logprobs.content or ()]
    else:
        answer = create(**asked)
        text, tokens = content(answer), answer.choices[0].logprobs.content  # type: ignore[union-attr,assignment]
    assert bytes(byte for entry in tokens for byte in entry.bytes or ()).decode("utf-8", "replace") == text
    assert text == whole[:place]


def test_what_was_said_before_is_remembered_and_told(serving: Callable[..., Running]) -> None:
    client = serving(tiny=tiny()).client
    long = [{"role": "user", "content": "Tell me about " + "x" * 150}]
    first, again = (
        client.chat.completions.create(model="tiny", messages=long, max_tokens=2, temperature=0) for _ in range(2)
    )
    cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in (first, again)]  # type: ignore[union-attr]
    assert cached[0] == 0
    assert cached[1] > 100
    assert content(first) == content(again)


# --- messages -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("messages", "says"),
    [
        ([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}], ["ab"]),
        ([{"role": "developer", "content": "Be brief."}, *USER], ["Be brief.", "hi"]),
        ([{"role": "system", "content": "A"}, {"role": "system", "content": "B"}, *USER], ["A\n\nB", "hi"]),
        ([*USER, {"role": "user", "content": "you"}], ["hi\n\nyou"]),
        ([{"role": "system", "content": "Say a word."}], ["<|system|>Say a word."]),
        ([*USER, {"role": "system", "content": "Be brief."}], ["<|user|>hi\n\nBe brief."]),
        (
            [*USER, {"role": "assistant", "content": "Ho."}, {"role": "developer", "content": "In French."}, *USER],
            ["<|user|>In French.\n\nhi"],
        ),
        ([*USER, {"role": "assistant", "content": None, "refusal": "No."}, *USER], ["hi", "No.", "hi"]),
    ],
)
def test_messages_as_clients_send_them(serving: Callable[..., Running], messages: list[Any], says: list[str]) -> None:
    model = scripted(lambda prompt: "ok")
    serving(say=model).client.chat.completions.create(model="say", messages=messages)
    prompt = model.engine.prompts[0]  # type: ignore[attr-defined]
    for text in says:
        assert text in prompt


def test_an_answer_can_be_sent_back_as_it_came(serving: Callable[..., Running]) -> None:
    client = serving(say=scripted(lambda prompt: "ok")).client
    first = client.chat.completions.create(model="say", messages=USER).choices[0].message
    client.chat.completions.create(model="say", messages=[*USER, first, *USER])
    client.chat.completions.create(model="say", messages=[*USER, first.model_dump(), *USER])


# --- what cannot be -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "param", "says"),
    [
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "must be a string"),
        ({"messages": [{"role": "king", "content": "a"}]}, "messages[0].role", "developer"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content", "valid string"),
        ({"messages": [{"content": "a"}]}, "messages[0].role", "Missing required"),
        ({"messages": [*USER, {"role": "assistant", "content": "x"}]}, "messages", "must not be the assistant's"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
            "reads text alone, and the part is 'image_url'",
        ),
        ({"messages": [{"role": "user", "content": "x" * 800}]}, "messages", "context length is 512 tokens"),
        ({"temperature": 3}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"top_p": -0.1}, "top_p", "greater than or equal to 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"max_tokens": 5, "max_completion_tokens": 5}, "max_tokens", "not both"),
        ({"top_logprobs": 2}, "top_logprobs", "'logprobs'"),
        ({"functions": [{"name": "add"}]}, "functions", "use 'tools'"),
        ({"function_call": "auto"}, "function_call", "use 'tool_choice'"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x", "pattern"),
        ({"logit_bias": {"99999": 1}}, None, "not in the model's vocabulary"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "False",
        ),
        ({"stop": [""]}, "stop[0]", "at least 1 character"),
        ({"extra_body": {"tempratur": 1}}, "tempratur", "Unknown parameter: 'tempratur'"),
        ({"store": True}, "store", "False"),
        ({"audio": {"voice": "a", "format": "wav"}}, "audio", "Unknown parameter"),
    ],
)
def test_what_cannot_be_is_said(tiny_server: Running, wrong: dict[str, Any], param: str | None, says: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        tiny_server.client.chat.completions.create(**{"model": "tiny", "messages": USER, **wrong})
    assert says in caught.value.message
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_a_context_too_long_has_its_code_and_numbers(tiny_server: Running) -> None:
    with pytest.raises(
        openai.BadRequestError, match=r"512 tokens. However, your messages resulted in 604 tokens"
    ) as caught:
        tiny_server.client.chat.completions.create(model="tiny", messages=[{"role": "user", "content": "x" * 600}])
    assert caught.value.code == "context_length_exceeded"


def test_labels_and_defaults_spelled_out_are_taken(tiny_server: Running) -> None:
    tiny_server.client.chat.completions.create(
        model="tiny",
        messages=USER,
        max_tokens=1,
        user="me",
        metadata={"a": "b"},
        store=False,
        service_tier="auto",
        modalities=["text"],
        safety_identifier="x",
        prompt_cache_key="y",
        top_p=None,
        stop=None,
        logit_bias={},
        response_format={"type": "text"},
    )


def test_a_model_that_is_not_there(tiny_server: Running) -> None:
    with pytest.raises(openai.NotFoundError, match="'gpt-4' does not exist; this server has tiny") as caught:
        tiny_server.client.chat.completions.create(model="gpt-4", messages=USER)
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize("stream", [False, True])
def test_a_damaged_model_is_an_error_and_not_an_answer(serving: Callable[..., Running], stream: bool) -> None:
    model = tiny()
    with torch.no_grad():
        next(iter(model.model.parameters())).fill_(float("nan"))
    client = serving(broken=model).client
    with pytest.raises(openai.APIError, match="not finite numbers"):
        list(client.chat.completions.create(model="broken", messages=USER, stream=stream))


def test_no_top_p_is_the_likeliest_token(tiny_server: Running) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "max_tokens": 8, "temperature": 1.5, "top_p": 0}
    assert content(tiny_server.client.chat.completions.create(**asked)) == tiny().chat(USER, max_tokens=8)


@pytest.mark.parametrize("temperature", [5e-324, 1e-30, 0.0])
def test_next_to_no_temperature_is_none(tiny_server: Running, temperature: float) -> None:
    asked: dict[str, Any] = {"model": "tiny", "messages": USER, "max_tokens": 8}
    cold = tiny_server.client.chat.completions.create(**asked, temperature=temperature)
    assert content(cold) == tiny().chat(USER, max_tokens=8)
