"""Requests that share the engine: crowds, remembered beginnings, cancelled neighbours, threads, changed weights."""

import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from chatloom import adapters
from chatloom.adapters.config import AdapterConfig
from chatloom.engine.engine import Engine
from chatloom.engine.request import Completion, SamplingParams
from chatloom.models import Decoder
from chatloom.testing.models import VOCAB_SIZE, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()


def same(left: Sequence[Completion], right: Sequence[Completion]) -> None:
    assert [(c.text, c.tokens, c.finish_reason) for c in left] == [(c.text, c.tokens, c.finish_reason) for c in right]
    for one, other in zip(left, right):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=2e-5, rtol=1e-5)


def crowd(count: int, *, seed: int = 0, longest: int = 60) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts, many of which begin alike, and parameters for each."""
    chance = random.Random(seed)
    shared = [[chance.randrange(256) for _ in range(40)] for _ in range(3)]
    prompts, each = [], []
    for number in range(count):
        own = [chance.randrange(256) for _ in range(chance.randint(1, longest - 40))]
        prompts.append(chance.choice(shared)[: chance.choice((0, 10, 40))] + own)
        stop = ("A",) if number % 5 == 0 else ()
        each.append(
            SamplingParams(
                max_tokens=chance.randint(1, 30),
                temperature=chance.choice((0.0, 1.0)),
                seed=number,
                stop=stop,
                stop_tokens=tuple(range(number % 7, VOCAB_SIZE, 20)),
            )
        )
    return prompts, each


def model_of(context_length: int = 160) -> Decoder:
    return tiny_llama(context_length=context_length)


def alone(model: Decoder, prompts: Sequence[Sequence[int]], each: Sequence[SamplingParams]) -> list[Completion]:
    return [Engine(model, TOKENIZER).generate([prompt], [params])[0] for prompt, params in zip(prompts, each)]


@pytest.mark.parametrize(
    ("max_batch", "step_tokens", "cache_tokens"),
    [(64, None, None), (5, 9, None), (16, 40, 256), (7, 7, 160)],
    ids=["all at once", "in pieces", "blocks run out", "hardly room for one"],
)
def test_a_crowd_of_requests_is_each_alone(max_batch: int, step_tokens: int | None, cache_tokens: int | None) -> None:
    model = model_of()
    prompts, each = crowd(40)
    engine = Engine(model, TOKENIZER, max_batch=max_batch, step_tokens=step_tokens, cache_tokens=cache_tokens)
    expected = alone(model, prompts, each)
    same(engine.generate(prompts, each), expected)
    first = engine.submit(prompts[0], each[0])  # and beside a stream that is under way
    same([*engine.generate(prompts[1:], each[1:])], expected[1:])
    same([first.result()], expected[:1])
    engine._scheduler.blocks.check()
    assert engine._scheduler.blocks.num_held == 0


@pytest.mark.parametrize("kind", ["prompt", "prefix", "lora"])
def test_adapted_models(kind: Any) -> None:
    torch.manual_seed(0)
    model = model_of()
    size = {"adapter_rank": 4} if kind == "lora" else {"adapter_tokens": 37}
    adapters.attach(model, AdapterConfig(adapter=kind, **size))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    prompts, each = crowd(12)
    engine = Engine(model, TOKENIZER, max_batch=4, step_tokens=30, cache_tokens=384)
    expected = []
    for prompt, params in zip(prompts, each):
        expected.append(Engine(model, TOKENIZER).generate([prompt], [params])[0])
        tokens = torch.tensor([prompt + expected[-1].tokens])
        with torch.no_grad():
            logits = model.eval()(tokens)[0, len(prompt) - 1 : -1]
        found = logits.log_softmax(1).gather(1, tokens[0, len(prompt) :, None])[:, 0]
        torch.testing.assert_close(found, torch.tensor(expected[-1].logprobs), atol=2e-5, rtol=1e-5)
    same(engine.generate(prompts, each), expected)
    streams = [engine.submit(prompt, params) for prompt, params in zip(prompts, each)]
    same([stream.result() for stream in streams], expected)


def test_each_token_has_a_random_number_of_its_own() -> None:
    """A model that likes all tokens alike shows the numbers it was drawn with."""
    model = model_of()
    with torch.no_grad():
        model.embedding.weight.zero_()
    tokens = Engine(model, TOKENIZER).generate([[1]], SamplingParams(max_tokens=60, temperature=1.0, seed=1))[0].tokens
    uniforms = torch.rand(60, generator=torch.Generator().manual_seed(1))
    assert tokens == (uniforms * VOCAB_SIZE).long().tolist()


def test_a_conversation_is_not_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    engine = Engine(model, TOKENIZER)
    fed: list[int] = []
    hidden = model.hidden
    monkeypatch.setattr(model, "hidden", lambda tokens, **o: fed.append(tokens.numel()) or hidden(tokens, **o))
    first = engine.submit([5] * 50, SamplingParams(max_tokens=20)).result()
    turn = [5] * 50 + first.tokens + [7, 8, 9]
    fed.clear()
    got = engine.submit(turn, SamplingParams(max_tokens=4)).result()
    assert fed[0] == 4  # the answer's last token was never fed
    same([got], Engine(model, TOKENIZER).generate([turn], SamplingParams(max_tokens=4)))


def test_changed_weights_are_never_mixed_with_remembered_keys() -> None:
    model = model_of()
    engine, prompt = Engine(model, TOKENIZER), list(range(70))
    params = SamplingParams(max_tokens=8)

    def check() -> None:
        same([engine.submit(prompt, params).result()], Engine(model, TOKENIZER).generate([prompt], params))

    check()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    model(torch.tensor([prompt])).logsumexp(-1).sum().backward()
    optimizer.step()
    check()
    model.load_state_dict(tiny_llama(3, context_length=160).state_dict())
    check()
    model.blocks[0].attention.value.weight = torch.nn.Parameter(torch.randn(16, 32))  # type: ignore[union-attr]
    check()
    adapters.attach(model, AdapterConfig(adapter="lora", adapter_rank=4))
    torch.nn.init.normal_(next(p for name, p in model.named_parameters() if name.endswith("lora.B.weight")))
    check()
    with adapters.off(model):
        check()
    check()
    model.blocks[0].attention.value.weight.data.zero_()  # type: ignore[union-attr, operator]
    engine.reset()  # this cannot be seen
    check()
    model.bfloat16()
    check()


def test_generate_is_exactly_repeatable_whatever_was_before() -> None:
    model = model_of()
    prompts, each = crowd(20)
    engine = Engine(model, TOKENIZER)
    first = engine.generate(prompts, each)
    engine.submit(prompts[3], each[3]).result()
    assert engine.generate(prompts, each) == first
    assert Engine(model, TOKENIZER).generate(prompts, each) == first


def test_cancelled_at_any_moment() -> None:
    model = model_of()
    prompts, each = crowd(24, seed=1)
    expected = alone(model, prompts, each)
    chance = random.Random(0)
    engine = Engine(model, TOKENIZER, max_batch=6, step_tokens=24, cache_tokens=320)
    streams = [engine.submit(prompt, params) for prompt, params in zip(prompts, each)]
    for number in range(0, 24, 2):
        for _ in range(chance.randrange(4)):
            engine._step()
        streams[number].cancel()
        assert streams[number].finished
        streams[number].cancel()
    for number, stream in enumerate(streams):
        got = stream.result()
        if got.finish_reason == "cancelled":
            assert number % 2 == 0
            assert got.tokens == expected[number].tokens[: len(got.tokens)]
        else:
            same([got], [expected[number]])
    assert {stream.result().finish_reason for stream in streams} == {"stop", "length", "cancelled"}
    assert engine._scheduler.blocks.num_held == 0
    engine._scheduler.blocks.check()


def test_closing_a_stream_gives_its_blocks_back() -> None:
    engine = Engine(model_of(), TOKENIZER)
    stream = engine.stream([1, 2, 3], SamplingParams(max_tokens=50))
    assert engine._scheduler.num_running == 0
    next(stream)
    assert engine._scheduler.num_running == 1
    stream.close()
    assert engine._scheduler.num_running == 0


def test_many_threads_and_a_worker() -> None:
    model = model_of()
    prompts, each = crowd(24, seed=2)
    expected = alone(model, prompts, each)
    engine = Engine(model, TOKENIZER, max_batch=8, step_tokens=64)
    engine.start()
    results: dict[int, Completion] = {}

    def use(number: int) -> None:
        stream = engine.submit(prompts[number], each[number])
        if number % 6 == 5:
            next(stream, None)
            stream.cancel()
            return
        pieces = "".join(stream)
        results[number] = stream.result()
        assert pieces == results[number].text

    threads = [threading.Thread(target=use, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    same(engine.generate(prompts[:5], each[:5]), expected[:5])
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    engine.stop()
    assert len(results) == 20
    same([results[number] for number in sorted(results)], [expected[number] for number in sorted(results)])
    same([engine.submit(prompts[0], each[0]).result()], expected[:1])  # without the worker again
    while engine._step():
        pass
    assert engine._scheduler.blocks.num_held == 0


def test_a_model_that_fails_fails_its_requests_and_not_the_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    engine = Engine(model, TOKENIZER)
    expected = engine.generate([[1, 2]])
    engine.start()
    with monkeypatch.context() as patch:
        patch.setattr(model, "logits", lambda hidden: int("of no request"))
        with pytest.raises(RuntimeError, match=r"step failed: ValueError: .*of no request"):  # no ValueError itself
            engine.submit([1, 2]).result()
    same([engine.submit([1, 2]).result()], expected)
    engine.stop()


def test_numbers_that_are_not_finite_stay_with_their_request() -> None:
    """Token 9 is poisoned: who never meets it is not harmed, now or by the blocks that are left."""
    model = model_of()
    expected = Engine(model, TOKENIZER).generate([[1, 2, 3]], SamplingParams(max_tokens=8))
    with torch.no_grad():
        model.head = torch.nn.Linear(32, VOCAB_SIZE, bias=False)
        model.head.weight.copy_(model.embedding.weight)
        model.embedding.weight[9] = float("nan")
    assert 9 not in expected[0].tokens
    engine = Engine(model, TOKENIZER)
    fine, ill = engine.submit([1, 2, 3], SamplingParams(max_tokens=8)), engine.submit([4, 9])
    with pytest.raises(ValueError, match="not finite"):
        ill.result()
    same([fine.result()], expected)
    same([engine.submit([1, 2, 3], SamplingParams(max_tokens=8)).result()], expected)


def test_sizes_are_refused_by_name() -> None:
    model = model_of()
    with pytest.raises(ValueError, match="cache_tokens is 10; it must be at least 64"):
        Engine(model, TOKENIZER, cache_tokens=10)
    with pytest.raises(ValueError, match="step_tokens is 3; it must be at least max_rows, 128"):
        Engine(model, TOKENIZER, step_tokens=3)
    engine = Engine(model, TOKENIZER, cache_tokens=64)
    with pytest.raises(ValueError, match=r"has 64 tokens and the engine keeps 64 \(cache_tokens\).*at most 63"):
        engine.generate([[1] * 64])
    assert len(engine.generate([[1] * 60], SamplingParams(max_tokens=50))[0].tokens) == 4
    with pytest.raises(ValueError, match="a stream has one completion, and 3 are asked for"):
        engine.submit([1], SamplingParams(n=3, temperature=1.0))


def test_a_program_may_end_while_the_engine_works() -> None:
    program = (
        "import atexit\n"
        "from chatloom.engine.engine import Engine\n"
        "from chatloom.engine.request import SamplingParams\n"
        "from chatloom.testing.models import tiny_llama\n"
        "from chatloom.testing.tokenizer import byte_tokenizer\n"
        "engine = Engine(tiny_llama(context_length=4096), byte_tokenizer())\n"
        "atexit.register(lambda: print('stopped' if engine._worker is None else 'cut off'))\n"
        "engine.start()\n"
        "next(engine.submit([5], SamplingParams(max_tokens=4000, temperature=1.0)))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (0, "stopped\n"), done.stderr
