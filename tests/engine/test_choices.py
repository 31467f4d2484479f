"""What a request may ask for beside the plain: several samples, the best of them, penalties, bias, likeliest tokens."""

from dataclasses import replace

import pytest
import torch

from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams, sample_seed
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

ENGINE = Engine(tiny_llama(), byte_tokenizer())
PROMPT = [5, 17, 99, 4]
SAMPLED = SamplingParams(max_tokens=10, temperature=1.0, seed=3)


def test_n_samples_are_n_requests() -> None:
    got = ENGINE.generate([PROMPT, [7]], [replace(SAMPLED, n=3), SAMPLED])
    seeds = [sample_seed(3, sample) for sample in range(3)]
    alone = [ENGINE.generate([PROMPT], replace(SAMPLED, seed=seed))[0].tokens for seed in seeds]
    assert [completion.tokens for completion in got] == [*alone, ENGINE.generate([[7]], SAMPLED)[0].tokens]
    assert len({tuple(tokens) for tokens in alone}) == 3
    torch.manual_seed(0)
    assert len({tuple(c.tokens) for c in ENGINE.generate([PROMPT], replace(SAMPLED, seed=None, n=4))}) == 4


def test_the_best_are_the_likeliest() -> None:
    every = ENGINE.generate([PROMPT], replace(SAMPLED, n=6))
    best = ENGINE.generate([PROMPT], replace(SAMPLED, n=2, best_of=6))
    assert [c.tokens for c in best] == [c.tokens for c in sorted(every, key=lambda c: -c.mean_logprob)[:2]]


def test_the_likeliest_tokens_are_reported() -> None:
    plain = SamplingParams(max_tokens=6)
    asked, other = ENGINE.generate([PROMPT, PROMPT], [replace(plain, top_logprobs=3), plain])
    assert other.top_logprobs is None
    assert asked.top_logprobs is not None
    assert [len(top) for top in asked.top_logprobs] == [3] * 6
    for token, logprob, top in zip(asked.tokens, asked.logprobs, asked.top_logprobs):
        assert top[0] == (token, pytest.approx(logprob, abs=1e-5))
        assert top[0][1] >= top[1][1] >= top[2][1]
    assert asked.tokens == other.tokens


def test_penalties_and_bias_reach_the_draw_and_not_the_log_probability() -> None:
    plain = ENGINE.generate([PROMPT], SamplingParams(max_tokens=10))[0]
    banned = ENGINE.generate([PROMPT], SamplingParams(max_tokens=10, logit_bias={plain.tokens[0]: -100.0}))[0]
    assert plain.tokens[0] not in banned.tokens
    logits = ENGINE.model(torch.tensor([PROMPT]))[0, -1].detach().log_softmax(0)
    assert banned.logprobs[0] == pytest.approx(float(logits[banned.tokens[0]]), abs=1e-4)
    never_twice = ENGINE.generate([PROMPT], SamplingParams(max_tokens=40, repetition_penalty=1e6))[0].tokens
    assert len({*never_twice, *PROMPT}) == 44
    kinds = [
        len(set(ENGINE.generate([PROMPT], SamplingParams(max_tokens=50, frequency_penalty=amount))[0].tokens))
        for amount in (-2.0, 0.0, 2.0)
    ]
    assert kinds[0] <= kinds[1] < kinds[2]


def test_a_plain_neighbour_is_not_changed() -> None:
    each = [
        SAMPLED,
        replace(SAMPLED, frequency_penalty=1.0, logit_bias={3: 5.0}),
        replace(SAMPLED, min_p=0.3),
        replace(SAMPLED, repetition_penalty=1.5, top_logprobs=2),
    ]
    together = ENGINE.generate([PROMPT] * 4, each)
    for params, completion in zip(each, together):
        alone = ENGINE.generate([PROMPT], params)[0]
        assert alone.tokens == completion.tokens
        assert alone.logprobs == pytest.approx(completion.logprobs, abs=2e-5)
    assert len({tuple(completion.tokens) for completion in together}) == 4


def test_a_biased_token_must_exist() -> None:
    with pytest.raises(ValueError, match="token 999 of logit_bias is not in the model's vocabulary"):
        ENGINE.generate([PROMPT], SamplingParams(logit_bias={999: 1.0}))
