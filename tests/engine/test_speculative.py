"""Guesses change how fast an answer comes, and nothing else."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from chatloom.engine import structured
from chatloom.engine.engine import Engine
from chatloom.engine.grammar import Grammar
from chatloom.engine.request import SamplingParams
from chatloom.engine.runner import Row
from chatloom.engine.speculative import Drafter, DraftModel, PromptLookup
from chatloom.nn.paged import Chunk, Paged
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
MODEL = tiny_llama(context_length=256)
PLAIN = Engine(MODEL, TOKENIZER)
PROMPTS = [[5, 17, 99, 4] * 6, [7, 8], [3] * 40, [20, 21, 22, 20, 21]]
GREEDY = SamplingParams(max_tokens=60)
SAMPLED = SamplingParams(max_tokens=60, temperature=0.8, seed=5)


class Scripted:
    """Guesses what it is told to, right or wrong."""

    max_rows = 4

    def __init__(self, guess: Any, num_tokens: int = 5) -> None:
        self.guess, self.num_tokens = guess, num_tokens
        self.num_calls = 0

    def draft(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        self.num_calls += 1
        return [self.guess(row)[:count] for row, count in zip(rows, most)]


def twin(*, max_rows: int = 4) -> DraftModel:
    """The model as its own draft: every guess but for rounding is right."""
    return DraftModel(Engine(tiny_llama(context_length=256), TOKENIZER), max_rows=max_rows)


@pytest.mark.parametrize(
    "drafter",
    [
        lambda: PromptLookup(),
        lambda: PromptLookup(num_tokens=1, longest=1, shortest=1),
        lambda: twin(),
        lambda: DraftModel(Engine(tiny_llama(1, context_length=48), TOKENIZER), num_tokens=3),
        lambda: Scripted(lambda row: [row.tokens[-1]] * 9, num_tokens=9),
        lambda: Scripted(lambda row: [*PLAIN.generate([row.tokens], replace(GREEDY, max_tokens=3))[0].tokens, 1, 2]),
    ],
)
@pytest.mark.parametrize(
    "params",
    [
        GREEDY,
        SAMPLED,
        replace(SAMPLED, temperature=0.3, top_k=20, top_p=0.9),
        replace(GREEDY, stop_tokens=tuple(range(0, 250, 7))),
        replace(SAMPLED, stop=("a", "e", "9")),
        replace(GREEDY, max_tokens=1),
    ],
)
def test_the_answer_is_that_of_plain_decoding(drafter: Any, params: SamplingParams) -> None:
    engine = Engine(MODEL, TOKENIZER, drafter=drafter())
    for prompts in (PROMPTS, PROMPTS[:1]):
        for got, expected in zip(engine.generate(prompts, params), PLAIN.generate(prompts, params)):
            assert (got.tokens, got.text, got.finish_reason) == (expected.tokens, expected.text, expected.finish_reason)
            assert got.logprobs == pytest.approx(expected.logprobs, abs=5e-5)
    assert engine._scheduler.blocks.num_held == 0
    engine._scheduler.blocks.check()


def num_steps(engine: Engine, monkeypatch: pytest.MonkeyPatch, prompts: list[list[int]], params: SamplingParams) -> int:
    from chatloom.engine.runner import Runner

    plain, calls = Runner.run, list[int]()

    def run(self: Runner, plan: Any) -> list[Row]:
        if self is engine._runner:
            calls.append(1)
        return plain(self, plan)

    with monkeypatch.context() as patched:
        patched.setattr(Runner, "run", run)
        engine.generate(prompts, params)
    return len(calls)


@pytest.mark.parametrize("params", [GREEDY, SAMPLED])
def test_right_guesses_save_steps_and_a_twin_guesses_right(
    monkeypatch: pytest.MonkeyPatch, params: SamplingParams
) -> None:
    engine = Engine(MODEL, TOKENIZER, drafter=twin())
    assert num_steps(PLAIN, monkeypatch, PROMPTS[:1], params) == 60
    assert num_steps(engine, monkeypatch, PROMPTS[:1], params) <= 14  # five tokens a step: four guesses and one more


def test_in_company_there_are_no_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    drafter = Scripted(lambda row: [1])
    engine = Engine(MODEL, TOKENIZER, drafter=drafter)
    engine.generate(PROMPTS + PROMPTS, SAMPLED)
    assert drafter.num_calls == 0
    engine.generate(PROMPTS, SAMPLED)
    assert drafter.num_calls > 0


WORDS = Grammar.regex("(say [ab]{1,3} or |well ){2,6}done")


@pytest.mark.parametrize("drafter", ["lookup", "twin", "wrong", "right", "ends"])
@pytest.mark.parametrize(
    "params",
    [replace(SAMPLED, grammar=WORDS), replace(GREEDY, grammar=WORDS), replace(SAMPLED, grammar=Grammar.json())],
    ids=["sampled", "greedy", "json"],
)
def test_guesses_within_a_grammar_change_no_answer(drafter: str, params: SamplingParams) -> None:
    params = replace(params, max_tokens=100, stop_tokens=(TOKENIZER.end_of_turn,))
    plain = PLAIN.generate(PROMPTS, params)
    own = {tuple(prompt): done.tokens for prompt, done in zip(PROMPTS, plain)}

    def right(row: Row) -> list[int]:
        answer = own[tuple(row.tokens[: row.num_prompt])]
        return answer[len(row.answer) :]

    drafters: dict[str, Any] = {
        "lookup": PromptLookup(shortest=1),
        "twin": twin(),
        "wrong": Scripted(lambda row: [*right(row)[:2], 1, 2]),
        "right": Scripted(right),
        "ends": Scripted(lambda row: [*right(row)[:1], TOKENIZER.end_of_turn, 5]),
    }
    engine = Engine(MODEL, TOKENIZER, drafter=drafters[drafter])
    for prompts in (PROMPTS, PROMPTS[:1]):
        for got, expected in zip(engine.generate(prompts, params), plain):
            assert (got.tokens, got.text, got.finish_reason) == (expected.tokens, expected.text, expected.finish_reason)
            assert got.logprobs == pytest.approx(expected.logprobs, abs=5e-5)


def test_what_a_grammar_forces_is_guessed(monkeypatch: pytest.MonkeyPatch) -> None:
    params = replace(SAMPLED, grammar=Grammar.regex("the same words each time: [ab]"))
    engine = Engine(MODEL, TOKENIZER, drafter=Scripted(lambda row: [], num_tokens=40))
    assert num_steps(PLAIN, monkeypatch, PROMPTS[1:2], params) == 27
    assert num_steps(engine, monkeypatch, PROMPTS[1:2], params) <= 3


def test_a_grammar_that_gets_stuck_behind_a_right_guess_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = structured.Matcher.bias
    calls = []

    def bias(self: structured.Matcher) -> Any:
        calls.append(self)
        if len(calls) == 5:
            raise ValueError("the grammar became too complex: as the test says")
        return plain(self)

    params = replace(GREEDY, grammar=Grammar.regex("abcdefgh[ab]"))
    engine = Engine(MODEL, TOKENIZER, drafter=Scripted(lambda row: [], num_tokens=40))
    stream = engine.submit([5], params)
    monkeypatch.setattr(structured.Matcher, "bias", bias)
    with pytest.raises(ValueError, match="as the test says"):
        stream.result()
    assert engine._scheduler.blocks.num_held == 0


def test_wrong_guesses_are_given_up() -> None:
    drafter = Scripted(lambda row: [(row.tokens[-1] + 1) % 250] * 4, num_tokens=4)
    engine = Engine(MODEL, TOKENIZER, drafter=drafter)
    engine.generate(PROMPTS[:1], SAMPLED)
    assert drafter.num_calls <= 8


def test_what_guesses_cannot_serve_is_decoded_plainly() -> None:
    drafter = Scripted(lambda row: [1, 2, 3])
    engine = Engine(MODEL, TOKENIZER, drafter=drafter)
    each = [
        replace(SAMPLED, presence_penalty=1.0),
        replace(SAMPLED, top_logprobs=2),
    ]
    got = engine.generate(PROMPTS[:2], each)
    assert [c.tokens for c in got] == [c.tokens for c in PLAIN.generate(PROMPTS[:2], each)]
    assert drafter.num_calls == 0


def test_lookup_takes_the_latest_longest_place() -> None:
    lookup = PromptLookup(num_tokens=3, longest=3, shortest=2)
    assert lookup._continuation([1, 2, 3, 4, 1, 2, 9, 9, 1, 2], 3) == [9, 9, 1]
    assert lookup._continuation([7, 1, 2, 3, 4, 5, 1, 2, 9, 7, 1, 2], 2) == [3, 4]
    assert lookup._continuation([1, 2, 3], 3) == []
    assert lookup._continuation([5, 5, 5], 3) == [5]


def test_guesses_make_nobody_give_way() -> None:
    drafter: Drafter = Scripted(lambda row: [1] * 30, num_tokens=30)
    small = Engine(MODEL, TOKENIZER, cache_tokens=160, drafter=drafter)
    prompts = [[5] * 60, [6] * 60]
    got = small.generate(prompts, SAMPLED)
    assert [c.tokens for c in got] == [c.tokens for c in PLAIN.generate(prompts, SAMPLED)]


@pytest.mark.parametrize("kind", ["lookup", "model", "wrong"])
def test_the_distribution_is_the_models(kind: str) -> None:
    """Of three tokens of a tiny vocabulary, against the exact probabilities of all; the last two are guessed."""
    size, count = 4, 5000
    model = tiny_llama(3, vocab_size=size, context_length=16)
    prompt = [1, 2, 3, 1, 2]
    with torch.inference_mode():
        first = (model.eval()(torch.tensor([prompt]))[0, -1] / 1.5).softmax(0)
        rows = torch.tensor([[*prompt, one, two] for one in range(size) for two in range(size)])
        second, third = (model(rows)[:, -2:] / 1.5).softmax(2).unbind(1)  # (size * size, size)
    exact = (first[:, None] * second[::size]).flatten()[:, None] * third
    exact = exact.flatten()
    drafters: dict[str, Any] = {
        "lookup": PromptLookup(shortest=1, max_rows=64),
        "model": DraftModel(Engine(tiny_llama(4, vocab_size=size, context_length=16), TOKENIZER), max_rows=64),
        "wrong": Scripted(lambda row: [row.tokens[-1]] * 4),
    }
    drafters["wrong"].max_rows = 64
    engine = Engine(model, TOKENIZER, max_batch=64, drafter=drafters[kind])
    params = [SamplingParams(max_tokens=5, temperature=1.5, seed=seed) for seed in range(count)]
    counts: Counter[int] = Counter()
    for start in range(0, count, 50):  # fewer than max_rows, so that they are guessed for
        for completion in engine.generate([prompt] * 50, params[start : start + 50]):
            one, two, three = completion.tokens[:3]
            counts[(one * size + two) * size + three] += 1
    observed = torch.tensor([float(counts[answer]) for answer in range(size**3)])
    expected = exact * count
    kept = expected >= 5
    statistic = float(((observed - expected)[kept] ** 2 / expected[kept]).sum())
    degrees = int(kept.sum()) - 1
    assert degrees >= 20
    # Chi-squared: mean `degrees`, deviation (2 degrees) ** 0.5; five deviations are beyond one in ten thousand.
    assert statistic < degrees + 5 * (2 * degrees) ** 0.5


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PromptLookup(num_tokens=0), "num_tokens is 0"),
        (lambda: PromptLookup(longest=1, shortest=2), "longest is 1"),
        (lambda: twin(max_rows=0), "max_rows is 0"),
        (lambda: Engine(tiny_llama(vocab_size=300), TOKENIZER, drafter=twin()), "draft model has 272 tokens and the"),
    ],
)
def test_settings_that_make_no_sense(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_a_guess_attends_as_a_token_without_guesses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of one token each: another way of computing the same sum would round otherwise, and bf16 shows it."""
    counts: list[list[int]] = []
    begin = Paged.begin

    def noted(self: Paged, chunks: Sequence[Chunk]) -> None:
        counts.append([chunk.count for chunk in chunks])
        begin(self, chunks)

    monkeypatch.setattr(Paged, "begin", noted)
    drafter = Scripted(lambda row: [*PLAIN.generate([row.tokens], replace(GREEDY, max_tokens=1))[0].tokens, 1, 2])
    engine = Engine(MODEL, TOKENIZER, drafter=drafter, max_batch=8, step_tokens=16)
    expected = PLAIN.generate([PROMPTS[0], PROMPTS[2]], GREEDY)
    counts.clear()
    guessing = engine.submit(PROMPTS[0], GREEDY)
    next(guessing)
    beside = engine.submit(PROMPTS[2], GREEDY)  # its prompt comes in pieces
    assert [guessing.result().tokens, beside.result().tokens] == [each.tokens for each in expected]
    assert [1, 1, 1, 1, 12] in counts  # a token and three guesses, beside a prompt
    assert all(each == sorted(each) for each in counts)  # those of one token come first
