"""The engine against a plain loop over full forward passes, and invariant 5: cached = full, batched = alone."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch

from chatloom.engine.engine import Engine
from chatloom.engine.request import Completion, SamplingParams, derive_seed
from chatloom.engine.runner import Runner
from chatloom.models import Decoder, gpt2
from chatloom.testing.models import VOCAB_SIZE, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
# A rollout's log-probability differs from a training forward's by the rounding of differently shaped products.
ATOL, RTOL = 2e-5, 1e-5
SAMPLED = SamplingParams(max_tokens=16, temperature=1.0)


def prompts_of(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def engine_of(model: Decoder | None = None, *, max_batch: int = 128) -> Engine:
    return Engine(model or tiny_llama(), TOKENIZER, max_batch=max_batch)


def same(left: Sequence[Completion], right: Sequence[Completion]) -> None:
    """Equal texts, tokens and reasons; log-probabilities up to rounding."""
    assert [(c.text, c.tokens, c.finish_reason) for c in left] == [(c.text, c.tokens, c.finish_reason) for c in right]
    for one, other in zip(left, right):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=ATOL, rtol=RTOL)


def full_logits(model: Decoder, tokens: Sequence[int]) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(torch.tensor([tokens]))
    return logits[0]


def tiny_gpt2() -> Decoder:
    torch.manual_seed(0)
    model = gpt2.Model(gpt2.Config(vocab_size=VOCAB_SIZE, context_length=64, num_layers=2, width=32, num_heads=4))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2])
def test_greedy_is_a_loop_of_full_forwards(make) -> None:  # type: ignore[no-untyped-def]
    model = make()
    prompts = prompts_of(1, 7, 3, 20)
    got = engine_of(model).generate(prompts, SamplingParams(max_tokens=12))
    for prompt, completion in zip(prompts, got):
        sequence = list(prompt)
        for _ in range(12):
            sequence.append(int(full_logits(model, sequence)[-1].argmax()))
        assert completion.tokens == sequence[len(prompt) :]
        assert completion.finish_reason == "length"


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.0])
def test_log_probabilities_are_those_of_a_full_forward(temperature: float) -> None:
    model = tiny_llama()
    prompts = prompts_of(4, 9, 9, 17)
    params = SamplingParams(max_tokens=20, temperature=temperature, seed=1)
    for prompt, completion in zip(prompts, engine_of(model).generate(prompts, params)):
        logits = full_logits(model, [*prompt, *completion.tokens])[len(prompt) - 1 : -1]
        expected = (logits / (temperature or 1.0)).log_softmax(dim=1)
        chosen = expected.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), chosen, atol=ATOL, rtol=RTOL)


def test_batched_is_alone() -> None:
    prompts = prompts_of(5, 30, 1, 12, 5, 8)
    each = [
        SamplingParams(max_tokens=16, temperature=1.0, seed=11, stop_tokens=tuple(range(60, 90))),
        SamplingParams(max_tokens=9, temperature=0.0),
        SamplingParams(max_tokens=16, temperature=0.8, seed=12, top_k=20),
        SamplingParams(max_tokens=30, temperature=1.2, seed=13, top_p=0.8),
        SamplingParams(max_tokens=1, temperature=1.0, seed=14),
        SamplingParams(max_tokens=25, temperature=1.0, seed=15, stop=("A", "zz")),
    ]
    engine = engine_of()
    alone = [engine.generate([prompt], params)[0] for prompt, params in zip(prompts, each)]
    same(engine.generate(prompts, each), alone)
    same(engine_of(max_batch=2).generate(prompts, each), alone)
    # And in another order.
    same(engine.generate(prompts[::-1], each[::-1]), alone[::-1])


def counted(monkeypatch: pytest.MonkeyPatch, model: Decoder) -> list[int]:
    """The tokens of each forward pass, from now on."""
    counts: list[int] = []
    hidden = model.hidden

    def count(tokens: torch.Tensor, **options: object) -> torch.Tensor:
        counts.append(tokens.numel())
        return hidden(tokens, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(model, "hidden", count)
    return counts


def test_samples_of_one_prompt_share_a_prefill_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    model, (first, second) = tiny_llama(), prompts_of(11, 6)
    prompts = [first, second, first, first]
    each = [SamplingParams(max_tokens=10, temperature=1.0, seed=seed) for seed in range(4)]
    counts = counted(monkeypatch, model)
    together = engine_of(model).generate(prompts, each)
    assert counts[:2] == [17, 4]  # both prompts; one token of each that runs, and the prompt's last of each that waited
    same(together, [engine_of(model).generate([p], s)[0] for p, s in zip(prompts, each)])
    assert len({tuple(completion.tokens) for completion in together}) == 4


def test_a_row_that_ends_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_of(*range(3, 19))
    # Each row has stop tokens of its own, met about once in 16 tokens, and a limit of its own.
    each = [
        replace(SAMPLED, max_tokens=2 + 4 * (i % 9), seed=i, stop_tokens=tuple(range(i, VOCAB_SIZE, 16)))
        for i in range(16)
    ]
    whole = engine_of().generate(prompts, each)
    assert {completion.finish_reason for completion in whole} == {"stop", "length"}
    model = tiny_llama()
    counts = counted(monkeypatch, model)
    same(engine_of(model, max_batch=3).generate(prompts, each), whole)
    # Three rows at work nearly all the time.
    assert len(counts) < sum(len(completion.tokens) for completion in whole) / 3 * 1.4


# --- where a completion ends ----------------------------------------------------------------------------------


def test_a_stop_token_is_in_the_tokens_and_not_in_the_text() -> None:
    prompt = prompts_of(5)[0]
    free = engine_of().generate([prompt], SamplingParams(max_tokens=12))[0]
    stop = free.tokens[4]
    first = free.tokens.index(stop)
    got = engine_of().generate([prompt], SamplingParams(max_tokens=12, stop_tokens=(stop,)))[0]
    assert got.tokens == free.tokens[: first + 1]
    assert got.logprobs == pytest.approx(free.logprobs[: first + 1], abs=1e-6)
    assert got.text == TOKENIZER.decode(free.tokens[:first])
    assert got.finish_reason == "stop"


def test_a_stop_token_as_the_last_allowed_one_is_a_stop() -> None:
    prompt = prompts_of(5)[0]
    free = engine_of().generate([prompt], SamplingParams(max_tokens=1))[0]
    got = engine_of().generate([prompt], SamplingParams(max_tokens=1, stop_tokens=(free.tokens[0],)))[0]
    assert (got.finish_reason, got.text, got.tokens) == ("stop", "", free.tokens)


def test_stop_strings_cut_the_text_and_keep_the_tokens_aligned() -> None:
    model = tiny_llama()
    found = 0
    for seed in range(12):
        params = SamplingParams(max_tokens=30, temperature=1.0, seed=seed)
        free = engine_of(model).generate(prompts_of(5), params)[0]
        letters = [place for place, letter in enumerate(free.text) if letter.isascii() and place > 2]
        if not letters:
            continue
        found += 1
        stop = free.text[letters[0]]
        got = engine_of(model).generate(prompts_of(5), replace(params, stop=(stop,)))[0]
        assert got.text == free.text[: free.text.index(stop)]
        assert got.finish_reason == "stop"
        assert got.tokens == free.tokens[: len(got.tokens)]
        assert len(got.logprobs) == len(got.tokens) < len(free.tokens)
        assert stop in TOKENIZER.decode(got.tokens)
    assert found > 3


def test_generation_ends_at_the_context_limit() -> None:
    model = tiny_llama(context_length=20)
    long, short = prompts_of(17, 2)
    got = engine_of(model).generate([long, short], SamplingParams(max_tokens=50))
    assert [(len(c.tokens), c.finish_reason) for c in got] == [(3, "length"), (18, "length")]
    same(got, [engine_of(model).generate([p], SamplingParams(max_tokens=50))[0] for p in (long, short)])


# --- randomness -----------------------------------------------------------------------------------------------


def test_one_seed_for_a_list_is_derived_for_each_request() -> None:
    engine, prompt = engine_of(), prompts_of(6)[0]
    got = engine.generate([prompt] * 3, replace(SAMPLED, seed=5))
    assert len({tuple(completion.tokens) for completion in got}) == 3
    same(got, engine.generate([prompt] * 3, [replace(SAMPLED, seed=derive_seed(5, i)) for i in range(3)]))
    same(got[:1], engine.generate([prompt], replace(SAMPLED, seed=5)))


def test_a_longer_answer_with_the_same_seed_begins_alike() -> None:
    engine, prompt = engine_of(), prompts_of(6)[0]
    short, long = (
        engine.generate([prompt], SamplingParams(max_tokens=count, temperature=1.0, seed=5))[0] for count in (5, 40)
    )
    assert long.tokens[:5] == short.tokens


def test_without_a_seed_torchs_generator_decides() -> None:
    engine, prompts = engine_of(), prompts_of(6, 6, 6)
    torch.manual_seed(1)
    first, second = engine.generate(prompts, SAMPLED), engine.generate(prompts, SAMPLED)
    assert [c.tokens for c in first] != [c.tokens for c in second]
    torch.manual_seed(1)
    same(engine.generate(prompts, SAMPLED), first)


def test_seeded_and_greedy_requests_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    engine_of().generate(prompts_of(3, 4), replace(SAMPLED, seed=3))
    engine_of().generate(prompts_of(3, 4), SamplingParams(max_tokens=3))
    assert torch.equal(before, torch.get_rng_state())


# --- streaming ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
def test_the_stream_is_the_batch(seed: int) -> None:
    prompt = prompts_of(8, seed=seed)[0]
    params = SamplingParams(max_tokens=40, temperature=1.0, seed=seed, stop=("e", "zz"), stop_tokens=(200,))
    stream, pieces = engine_of().stream(prompt, params), []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as end:
            completion = end.value
            break
    expected = engine_of().generate([prompt], params)[0]
    same([completion], [expected])
    assert "".join(pieces) == expected.text
    assert all(pieces)


def test_a_stream_holds_no_mode_between_its_pieces() -> None:
    model = tiny_llama()
    model.train()
    stream = engine_of(model).stream(prompts_of(4)[0], SamplingParams(max_tokens=30))
    next(stream)
    assert model.training
    assert not torch.is_inference_mode_enabled()
    stream.close()


# --- the model's state ----------------------------------------------------------------------------------------


def test_dropout_is_off_while_generating_and_every_mode_is_put_back() -> None:
    model = tiny_llama()
    expected = engine_of(model).generate(prompts_of(5, 9), SamplingParams(max_tokens=8))
    model.set_dropout(0.5)
    model.train()
    model.blocks[0].eval()
    modes = [module.training for module in model.modules()]
    same(engine_of(model).generate(prompts_of(5, 9), SamplingParams(max_tokens=8)), expected)
    assert [module.training for module in model.modules()] == modes


def test_the_engine_reads_the_weights_at_each_call() -> None:
    model = tiny_llama()
    engine = engine_of(model)
    before = engine.generate(prompts_of(5), SamplingParams(max_tokens=8))[0].tokens
    model.load_state_dict(tiny_llama(1).state_dict())
    after = engine.generate(prompts_of(5), SamplingParams(max_tokens=8))[0].tokens
    assert before != after
    assert after == engine_of(tiny_llama(1)).generate(prompts_of(5), SamplingParams(max_tokens=8))[0].tokens


def test_bf16_autocast_and_bf16_weights_stay_near_fp32() -> None:
    model, prompts = tiny_llama(), prompts_of(5, 12)
    params = SamplingParams(max_tokens=1)
    exact = [c.logprobs[0] for c in engine_of(model).generate(prompts, params)]
    mixed = [c.logprobs[0] for c in Engine(model, TOKENIZER, autocast="bf16").generate(prompts, params)]
    half = [c.logprobs[0] for c in engine_of(tiny_llama().bfloat16()).generate(prompts, params)]
    assert mixed == pytest.approx(exact, abs=0.1)
    assert half == pytest.approx(exact, abs=0.1)
    assert mixed != exact


# --- bad requests ---------------------------------------------------------------------------------------------


def test_nothing_asked_is_nothing_given() -> None:
    assert engine_of().generate([], SAMPLED) == []


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "prompt 1 is empty"),
        ([1] * 64, "prompt 1 has 64 tokens and the model's context is 64.*at most 63"),
        ([1, 272], "request 1: token 272 of prompt is not in the model's vocabulary, which has the tokens 0 to 271"),
        ([-100, 1], "token -100 of prompt"),
    ],
)
def test_bad_prompts(prompt: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        engine_of().generate([[1, 2], prompt], SAMPLED)


def test_bad_stop_tokens_numbers_of_parameters_and_sizes() -> None:
    with pytest.raises(ValueError, match="token 999 of stop_tokens"):
        engine_of().generate([[1]], SamplingParams(stop_tokens=(3, 999)))
    with pytest.raises(ValueError, match="2 SamplingParams for 1 prompts"):
        engine_of().generate([[1]], [SAMPLED, SAMPLED])
    with pytest.raises(ValueError, match="max_batch is 0"):
        engine_of(max_batch=0)
    with pytest.raises(ValueError, match="int3"):
        Engine(tiny_llama(), TOKENIZER, autocast="int3")


def test_a_stream_refuses_at_the_call() -> None:
    with pytest.raises(ValueError, match="is empty"):
        engine_of().stream([], SAMPLED)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_diverged_model_is_an_error(temperature: float) -> None:
    model = tiny_llama()
    with torch.no_grad():
        model.final_norm.weight[0] = float("nan")  # type: ignore[operator]
    with pytest.raises(ValueError, match="not finite"):
        engine_of(model).generate([[1, 2]], SamplingParams(temperature=temperature))


def test_progress_counts_up_to_all() -> None:
    calls: list[tuple[int, int]] = []
    each = [SamplingParams(max_tokens=1 + i) for i in range(7)]
    engine_of(max_batch=3).generate(prompts_of(*range(1, 8)), each, progress=lambda *call: calls.append(call))
    assert calls == sorted(calls)
    assert calls[-1] == (7, 7)
    assert len(calls) > 3


def test_what_prompts_begin_with_alike_is_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    counts: list[int] = []
    run = Runner.run
    monkeypatch.setattr(
        Runner, "run", lambda self, plan: counts.append(sum(n for _, n in plan.chunks)) or run(self, plan)
    )
    system, other = list(range(20, 32)), list(range(40, 49))
    prompts = [[*system, 1, last] for last in range(4)] + [[*other, 2, last] for last in range(3)] + [[5, 6]]
    params = SamplingParams(max_tokens=2)
    engine = Engine(tiny_llama(), byte_tokenizer())
    together = [completion.tokens for completion in engine.generate(prompts, params)]
    assert counts[:2] == [14 + 11 + 2, 3 * 1 + 2 * 1 + 3]  # those that were first go on by a token each
    assert together == [engine.generate([prompt], params)[0].tokens for prompt in prompts]
