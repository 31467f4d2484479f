"""Beam search against the whole tree of answers, a slow search without blocks, and transformers."""

from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch

from chatloom.engine.engine import Engine
from chatloom.engine.grammar import Grammar
from chatloom.engine.request import SamplingParams
from chatloom.models import Decoder
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
SIZE = 6
END = 0
MODEL = tiny_llama(3, vocab_size=SIZE, context_length=128)
PROMPT = [1, 2, 3]
BEAMS = SamplingParams(max_tokens=4, num_beams=4, stop_tokens=(END,))


def logprobs_of(model: Decoder, prompt: list[int], answer: tuple[int, ...]) -> list[float]:
    with torch.inference_mode():
        every = model.eval()(torch.tensor([[*prompt, *answer]]))[0].log_softmax(1)
    return [float(every[len(prompt) - 1 + place, token]) for place, token in enumerate(answer)]


def every_answer(length: int) -> list[tuple[int, ...]]:
    """All that end, or are as long as may be."""
    open_ = [token for token in range(SIZE) if token != END]
    ended = [(*start, END) for size in range(length) for start in product(open_, repeat=size)]
    return ended + list(product(open_, repeat=length))


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0, -0.5])
def test_as_wide_as_the_tree_it_is_the_best_of_all_answers(penalty: float) -> None:
    params = replace(BEAMS, max_tokens=3, num_beams=64, n=3, length_penalty=penalty)
    scored = sorted(
        ((sum(logprobs_of(MODEL, PROMPT, answer)) / len(answer) ** penalty, answer) for answer in every_answer(3)),
        reverse=True,
    )
    got = Engine(MODEL, TOKENIZER).generate([PROMPT], params)
    assert [tuple(completion.tokens) for completion in got] == [answer for _, answer in scored[:3]]
    for completion in got:
        assert completion.logprobs == pytest.approx(logprobs_of(MODEL, PROMPT, tuple(completion.tokens)), abs=2e-5)
        assert completion.finish_reason == ("stop" if completion.tokens[-1] == END else "length")


def slow_search(model: Decoder, prompt: list[int], params: SamplingParams) -> list[tuple[int, ...]]:
    """The search itself by full forwards of every beam."""
    live: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    done: list[tuple[float, tuple[int, ...]]] = []
    for length in range(1, params.max_tokens + 1):
        scored = []
        for total, tokens in live:
            with torch.inference_mode():
                every = model.eval()(torch.tensor([[*prompt, *tokens]]))[0, -1].log_softmax(0).tolist()
            scored += [(total + logprob, (*tokens, token)) for token, logprob in enumerate(every)]
        scored.sort(reverse=True)
        done += [(total / length, tokens) for total, tokens in scored[: params.num_beams] if tokens[-1] == END]
        live = [pair for pair in scored if pair[1][-1] != END][: params.num_beams]
    done += [(total / params.max_tokens, tokens) for total, tokens in live]
    return [tokens for _, tokens in sorted(done, reverse=True)[: params.n]]


@pytest.mark.parametrize("cache_tokens", [None, 192])
@pytest.mark.parametrize("width", [2, 3, 5])
def test_it_is_a_search_by_full_forwards(width: int, cache_tokens: int | None) -> None:
    params = replace(BEAMS, max_tokens=40, num_beams=width, n=2)  # beyond one block of the cache
    prompts = [PROMPT, [4] * 31, [5, 1]]
    engine = Engine(MODEL, TOKENIZER, cache_tokens=cache_tokens)
    got = engine.generate(prompts, params)
    assert [tuple(completion.tokens) for completion in got] == [
        tokens for prompt in prompts for tokens in slow_search(MODEL, prompt, params)
    ]
    assert engine._scheduler.blocks.num_held == 0
    engine._scheduler.blocks.check()


def test_beams_share_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    from chatloom.engine.runner import Row, Runner

    plain, computed = Runner.run, list[int]()

    def run(self: Runner, plan: Any) -> list[Row]:
        computed.append(sum(count for _, count in plan.chunks))
        return plain(self, plan)

    monkeypatch.setattr(Runner, "run", run)
    model = tiny_llama(context_length=512)
    engine = Engine(model, TOKENIZER, cache_tokens=36 * 32)  # blocks for three beams that share none
    engine.generate([[5] * 320], replace(BEAMS, max_tokens=40, num_beams=8, stop_tokens=()))
    assert computed == [320, *[8] * 39]


def test_beside_others_and_in_a_thread_it_is_the_same() -> None:
    engine = Engine(MODEL, TOKENIZER)
    sampled = SamplingParams(max_tokens=20, temperature=1.0, seed=1)
    alone = [engine.generate([PROMPT], params) for params in (BEAMS, sampled, replace(BEAMS, n=2))]
    told: list[tuple[int, int]] = []
    together = engine.generate(
        [PROMPT] * 3, [BEAMS, sampled, replace(BEAMS, n=2)], progress=lambda *now: told.append(now)
    )
    assert [c.tokens for c in together] == [c.tokens for some in alone for c in some]
    assert told[-1] == (3, 3)
    engine.start()
    try:
        stream = engine.submit(PROMPT, sampled)
        assert engine.generate([PROMPT], BEAMS)[0].tokens == alone[0][0].tokens
        assert stream.result().tokens == alone[1][0].tokens
    finally:
        engine.stop()


def test_wider_is_likelier_than_greedy() -> None:
    engine = Engine(tiny_llama(context_length=256), byte_tokenizer())
    greedy = engine.generate([[5, 17]], SamplingParams(max_tokens=12))[0]
    beams = engine.generate([[5, 17]], SamplingParams(max_tokens=12, num_beams=8))[0]
    assert sum(beams.logprobs) > sum(greedy.logprobs)


@pytest.mark.parametrize("width", [2, 4])
def test_transformers_finds_the_same(width: int, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from chatloom import checkpoint
    from chatloom.chat.render import ChatFormat
    from chatloom.chat.templates import CHATLOOM_TEMPLATE

    model = tiny_llama(5, context_length=64)
    checkpoint.save_pretrained(tmp_path, model, ChatFormat(TOKENIZER, CHATLOOM_TEMPLATE))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path)
    end, prompt = 30, [5, 17, 99, 4]
    params = SamplingParams(max_tokens=10, num_beams=width, n=width, stop_tokens=(end,))
    expected = theirs.generate(
        torch.tensor([prompt]),
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=10,
        do_sample=False,
        early_stopping="never",
        eos_token_id=end,
        pad_token_id=end,
    )
    got = Engine(model, TOKENIZER).generate([prompt], params)
    for completion, row in zip(got, expected.tolist()):
        assert completion.tokens == row[len(prompt) :][: len(completion.tokens)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 0}, "num_beams is 0"),
        ({"num_beams": 65}, "num_beams is 65"),
        ({"num_beams": 2, "n": 3}, "no more than its beams"),
        ({"num_beams": 2, "temperature": 1.0}, "temperature is given with num_beams 2"),
        ({"num_beams": 2, "stop": ("a",)}, "stop is given with"),
        ({"num_beams": 2, "grammar": Grammar.json()}, "grammar is given with"),
        ({"num_beams": 2, "presence_penalty": 1.0}, "a bias or penalty is given with"),
        ({"length_penalty": 2.0}, "length_penalty is for beam search"),
        ({"num_beams": 2, "length_penalty": "long"}, "length_penalty is 'long'"),
    ],
)
def test_settings_that_a_search_cannot_honour(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SamplingParams(**settings)


def test_a_search_has_no_stream() -> None:
    with pytest.raises(ValueError, match="use `generate`"):
        Engine(MODEL, TOKENIZER).submit(PROMPT, BEAMS)
