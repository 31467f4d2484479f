"""The official client against /v1/completions of a real server, and what those who score texts need of it."""

import math
from collections.abc import Callable

import openai
import pytest
import torch

from chatloom.testing.models import tiny_llama
from chatloom.testing.serving import Running, scripted
from chatloom.testing.tokenizer import byte_tokenizer

TEXT = "The sky is blé."


def test_a_text_goes_on(serving: Callable[..., Running]) -> None:
    client = serving(echo=scripted(lambda prompt: " and on")).client
    made = client.completions.create(model="echo", prompt="It goes on")
    assert (made.choices[0].text, made.choices[0].finish_reason) == (" and on", "stop")
    both = client.completions.create(model="echo", prompt="It goes on", echo=True)
    assert both.choices[0].text == "It goes on and on"


@pytest.mark.parametrize("kind", ["text", "tokens", "texts", "lists of tokens"])
def test_a_prompt_is_text_or_tokens_one_or_several(tiny_server: Running, kind: str) -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.document_start + tokenizer.encode(TEXT)
    prompt = {"text": TEXT, "tokens": tokens, "texts": [TEXT, TEXT], "lists of tokens": [tokens, tokens]}[kind]
    one = tiny_server.client.completions.create(model="tiny", prompt=TEXT, temperature=0, max_tokens=8)
    made = tiny_server.client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=8)
    assert {choice.text for choice in made.choices} == {one.choices[0].text}
    assert [choice.index for choice in made.choices] == list(range(2 if kind in ("texts", "lists of tokens") else 1))
    assert made.usage is not None
    assert made.usage.prompt_tokens == len(tokens) * len(made.choices)


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
def test_echo_says_how_likely_a_text_is(tiny_server: Running, max_tokens: int) -> None:
    tokenizer = byte_tokenizer()
    tokens = tokenizer.document_start + tokenizer.encode(TEXT)
    made = tiny_server.client.completions.create(
        model="tiny", prompt=tokens, echo=True, logprobs=2, max_tokens=max_tokens, temperature=0
    ).choices[0]
    assert made.logprobs is not None
    assert made.text.startswith(TEXT)
    assert len(made.logprobs.tokens) == len(tokens) + max_tokens  # where none ends the text
    with torch.no_grad():
        logprobs = tiny_llama(context_length=512)(torch.tensor([tokens]))[0].log_softmax(1)
    expected = [float(logprobs[place, token]) for place, token in enumerate(tokens[1:])]
    assert made.logprobs.token_logprobs[0] is None
    assert made.logprobs.token_logprobs[1 : len(tokens)] == pytest.approx(expected, abs=1e-4)
    greedy = [top is not None and max(top.values()) == own for own, top in _pairs(made.logprobs)[1 : len(tokens)]]
    assert greedy == [int(logprobs[place].argmax()) == token for place, token in enumerate(tokens[1:])]
    assert all(own == max(top.values()) for own, top in _pairs(made.logprobs)[len(tokens) :])


def _pairs(logprobs: openai.types.completion_choice.Logprobs) -> list[tuple[float, dict[str, float]]]:
    return list(zip(logprobs.token_logprobs, logprobs.top_logprobs))


def test_of_a_text_every_token_has_a_logprob_because_something_begins_it(tiny_server: Running) -> None:
    made = tiny_server.client.completions.create(
        model="tiny", prompt="abc", echo=True, logprobs=0, max_tokens=1, temperature=0
    ).choices[0]
    assert made.logprobs is not None
    assert made.logprobs.tokens[:3] == ["a", "b", "c"]
    assert made.logprobs.text_offset[:4] == [0, 1, 2, 3]
    assert all(value is not None and value < 0 for value in made.logprobs.token_logprobs)


def test_a_stream_with_echo_and_logprobs_is_the_whole_in_pieces(tiny_server: Running) -> None:
    asked = {"model": "tiny", "prompt": "abc", "seed": 3, "max_tokens": 12, "echo": True, "logprobs": 1, "n": 2}
    whole = tiny_server.client.completions.create(**asked)
    texts, tokens, values, reasons = ["", ""], [[], []], [[], []], [None, None]
    for chunk in tiny_server.client.completions.create(**asked, stream=True, stream_options={"include_usage": True}):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            tokens[choice.index] += choice.logprobs.tokens
            values[choice.index] += choice.logprobs.token_logprobs
            reasons[choice.index] = choice.finish_reason or reasons[choice.index]
        usage = chunk.usage
    for choice in whole.choices:
        assert texts[choice.index] == choice.text
        assert choice.logprobs is not None
        assert tokens[choice.index] == choice.logprobs.tokens
        assert values[choice.index] == pytest.approx(choice.logprobs.token_logprobs, abs=1e-5)
        assert reasons[choice.index] == choice.finish_reason
    assert usage is not None
    assert whole.usage is not None
    assert usage.completion_tokens == whole.usage.completion_tokens


def test_best_of_gives_the_likeliest_first(tiny_server: Running) -> None:
    asked = {"model": "tiny", "prompt": "abc", "seed": 3, "max_tokens": 5, "logprobs": 0}
    five = tiny_server.client.completions.create(**asked, n=5)
    best = tiny_server.client.completions.create(**asked, n=2, best_of=5)

    def mean(choice: openai.types.CompletionChoice) -> float:
        assert choice.logprobs is not None
        return math.fsum(choice.logprobs.token_logprobs) / len(choice.logprobs.token_logprobs)

    expected = sorted(five.choices, key=lambda choice: -mean(choice))[:2]
    assert [choice.text for choice in best.choices] == [choice.text for choice in expected]
    assert best.usage is not None
    assert five.usage is not None
    assert best.usage.completion_tokens == five.usage.completion_tokens


@pytest.mark.parametrize(
    ("wrong", "param", "says"),
    [
        ({"suffix": "!"}, "suffix", "continue a text"),
        ({"prompt": []}, "prompt", "empty"),
        ({"prompt": [[]]}, "prompt", "empty"),
        ({"prompt": [99999]}, "prompt", "has not"),
        ({"n": 3, "best_of": 2}, "best_of", "at least n, 3"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"),
        ({"prompt": ["a"] * 3000}, "prompt", "3000 completions"),
        ({"prompt": "a" * 600}, "prompt", "maximum context length is 512 tokens. However, your prompt resulted in 601"),
    ],
)
def test_what_cannot_be_is_said(tiny_server: Running, wrong: dict[str, object], param: str, says: str) -> None:
    with pytest.raises(openai.BadRequestError, match=says) as caught:
        tiny_server.client.completions.create(**{"model": "tiny", "prompt": "a", **wrong})
    assert caught.value.param == param


def test_more_prompts_than_run_at_once_are_all_answered(tiny_server: Running) -> None:
    prompts = [f"{number}" for number in range(100)]
    made = tiny_server.client.completions.create(model="tiny", prompt=prompts, max_tokens=1, echo=True, temperature=0)
    assert [choice.text[: len(prompt)] for prompt, choice in zip(prompts, made.choices)] == prompts
