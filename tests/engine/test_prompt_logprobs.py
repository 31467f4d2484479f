"""Log-probabilities of a prompt's own tokens: those of the full forward pass, however they are computed."""

import pytest
import torch

from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

PROMPT = [3, 60, 61, 62, 200, 7, 9, 11, 30, 31, 60, 61, 5]


def expected(prompt: list[int]) -> list[float]:
    with torch.no_grad():
        logprobs = tiny_llama()(torch.tensor([prompt]))[0].log_softmax(1)
    return [float(logprobs[place, token]) for place, token in enumerate(prompt[1:])]


@pytest.mark.parametrize("step_tokens", [None, 4])
@pytest.mark.parametrize("length", [1, 2, 13])
def test_they_are_those_of_the_full_forward_pass(step_tokens: int | None, length: int) -> None:
    engine = Engine(tiny_llama(), byte_tokenizer(), max_batch=2, step_tokens=step_tokens)
    prompt = PROMPT[:length]
    plain = engine.generate([prompt], SamplingParams(max_tokens=4))[0]
    for _ in range(2):  # what is remembered after the first time changes nothing
        scored = engine.generate([prompt], SamplingParams(max_tokens=4, prompt_logprobs=2))[0]
        assert scored.prompt_logprobs is not None
        assert scored.prompt_logprobs[0] is None
        assert scored.prompt_logprobs[1:] == pytest.approx(expected(prompt), abs=1e-5)
        assert scored.tokens == plain.tokens


def test_the_likeliest_are_there_too() -> None:
    engine = Engine(tiny_llama(), byte_tokenizer())
    scored = engine.generate([PROMPT], SamplingParams(max_tokens=1, prompt_logprobs=3))[0]
    assert scored.prompt_top_logprobs is not None
    assert scored.prompt_logprobs is not None
    assert [len(each) for each in scored.prompt_top_logprobs] == [0] + [3] * (len(PROMPT) - 1)
    with torch.no_grad():
        best = tiny_llama()(torch.tensor([PROMPT]))[0].log_softmax(1).topk(3, dim=1)
    for place, pairs in enumerate(scored.prompt_top_logprobs[1:]):
        assert [token for token, _ in pairs] == best.indices[place].tolist()
        assert [value for _, value in pairs] == pytest.approx(best.values[place].tolist(), abs=1e-5)


def test_beside_others_it_is_the_same() -> None:
    engine = Engine(tiny_llama(), byte_tokenizer(), step_tokens=256)
    params = [SamplingParams(max_tokens=6, prompt_logprobs=0), SamplingParams(max_tokens=6)] * 3
    prompts = [PROMPT[:size] for size in (5, 9, 13, 13, 2, 7)]
    for prompt, param, made in zip(prompts, params, engine.generate(prompts, params)):
        if param.prompt_logprobs is None:
            assert made.prompt_logprobs is None
        else:
            assert made.prompt_logprobs is not None
            assert made.prompt_logprobs[1:] == pytest.approx(expected(prompt), abs=1e-5)


def test_a_stream_has_them_and_needs_no_remembered_prompt() -> None:
    engine = Engine(tiny_llama(), byte_tokenizer())
    engine.submit(PROMPT, SamplingParams(max_tokens=2)).result()
    stream = engine.submit(PROMPT, SamplingParams(max_tokens=2, prompt_logprobs=0))
    assert stream.result().prompt_logprobs == stream.so_far().prompt_logprobs
    assert stream.num_cached == 0
    again = engine.submit(PROMPT, SamplingParams(max_tokens=2))
    again.result()
    assert again.num_cached == len(PROMPT) - 1
