"""Texts without end: the engine with a window and sinks against the paper's rule in plain torch, in flat memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import chatloom
from chatloom import checkpoint, cli
from chatloom.adapters import AdapterConfig, attach
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.engine.engine import BLOCK_SIZE, Engine
from chatloom.engine.request import Completion, SamplingParams
from chatloom.engine.speculative import PromptLookup
from chatloom.models import Decoder, build, family, stored_names
from chatloom.nn.positions import rotate
from chatloom.testing.models import VOCAB_SIZE, tiny_config, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

WINDOW, SINKS = 40, 4  # of a context of 64
LONG = SamplingParams(max_tokens=256)


def prompts_of(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist() for length in lengths]


def engine_of(model: Decoder | None = None, **options: Any) -> Engine:
    options = {"window": WINDOW, "sinks": SINKS, **options}
    return Engine(model or tiny_llama(), byte_tokenizer(), **options)


def streaming(model: Any, tokens: list[int], window: int = WINDOW, sinks: int = SINKS) -> Tensor:
    """Logits (T, V) of StreamingLLM on a LLaMA: a token at a time, turned by its position in the cache."""
    cached: list[list[tuple[Tensor, Tensor]]] = [[] for _ in model.blocks]
    logits = []
    for token in tokens:
        x = model.embedding(torch.tensor([[token]]))
        for block, kept in zip(model.blocks, cached):
            attention, normed = block.attention, block.attention_norm(x)
            query, key, value = (
                part(normed).view(-1, attention.head_width)
                for part in (attention.query, attention.key, attention.value)
            )
            kept.append((key, value))
            if len(kept) > window + sinks:
                del kept[sinks]
            keys, values = (torch.stack([pair[i] for pair in kept], 1)[None] for i in (0, 1))  # (1, G, S, D)
            angles = model.rotary.at(torch.arange(len(kept))[None])
            last = model.rotary.at(torch.tensor([[len(kept) - 1]]))
            asks = rotate(query[None, :, None], *last)
            seen = F.scaled_dot_product_attention(asks, rotate(keys, *angles), values, enable_gqa=True)
            x = x + attention.output(seen.reshape(1, 1, -1))
            x = x + block.feedforward(block.feedforward_norm(x))
        logits.append(model.logits(model.final_norm(x))[0, 0])
    return torch.stack(logits)


def close(left: list[Completion], right: list[Completion], *, atol: float = 1e-4) -> None:
    assert [each.tokens for each in left] == [each.tokens for each in right]
    for one, other in zip(left, right):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=atol, rtol=1e-4)


@pytest.mark.parametrize(("window", "sinks"), [(WINDOW, SINKS), (60, 4), (30, 0), (20, 40)])
def test_four_contexts_of_text_are_the_papers_rule(window: int, sinks: int) -> None:
    model = tiny_llama()
    prompts = prompts_of(3, 50, 150)  # the last one is longer than the context itself
    got = engine_of(model, window=window, sinks=sinks).generate(prompts, LONG)
    for prompt, completion in zip(prompts, got):
        assert len(completion.tokens) == 256
        with torch.inference_mode():
            logits = streaming(model, [*prompt, *completion.tokens[:-1]], window, sinks)[len(prompt) - 1 :]
        assert logits.argmax(-1).tolist() == completion.tokens
        expected = logits.log_softmax(-1).gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(completion.logprobs), expected, atol=1e-4, rtol=1e-4)


def test_alone_in_company_in_pieces_preempted_and_guessed() -> None:
    prompts = prompts_of(5, 145, 1, 12, 70)
    params = [SamplingParams(max_tokens=length, temperature=1.0, seed=length) for length in (150, 30, 200, 90, 60)]
    together = engine_of().generate(prompts, params)
    close(together, [engine_of().generate([prompt], [one])[0] for prompt, one in zip(prompts, params)])
    close(together, engine_of(max_batch=3, step_tokens=16).generate(prompts, params))
    close(together, engine_of(cache_tokens=7 * BLOCK_SIZE).generate(prompts, params))
    close(together, engine_of(drafter=PromptLookup()).generate(prompts, params))


def test_blocks_stay_flat_and_come_back() -> None:
    engine = engine_of()
    held = set()
    stream = engine.submit(prompts_of(5)[0], SamplingParams(max_tokens=1000))
    while not stream._row.ended:
        engine._step()
        held.add(engine._scheduler.blocks.num_held)
    assert max(held) <= 2 + -(-WINDOW // BLOCK_SIZE) + 1 < 1005 // BLOCK_SIZE
    assert len(stream.result().tokens) == 1000
    assert engine._runner is not None
    assert engine._runner.cache.num_blocks <= engine._scheduler.blocks.num_blocks
    assert engine._scheduler.blocks.num_held == 0
    engine._scheduler.blocks.check()


def test_a_conversation_goes_on_where_it_was() -> None:
    """What was remembered of a text longer than the window is found again, and gives what was computed."""
    engine = engine_of(max_batch=8)
    tokens = prompts_of(20)[0]
    for _ in range(12):
        stream = engine.submit(tokens, SamplingParams(max_tokens=30))
        list(stream)
        answer = stream.result().tokens
        assert answer == engine_of().generate([tokens], SamplingParams(max_tokens=30))[0].tokens
        tokens = [*tokens, *answer, *prompts_of(9)[0]]
    assert len(tokens) > 6 * 64
    engine._scheduler.blocks.check()


@pytest.mark.parametrize("name", ["gpt_neox", "gptj", "glm4", "mistral", "gemma3_text", "bloom"])
def test_families_alone_and_in_pieces(name: str) -> None:
    """Parts of heads, neighbouring channels, windows of their own, two rotaries, ALiBi."""
    torch.manual_seed(0)
    model = build(tiny_config(name, vocab_size=VOCAB_SIZE)).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    prompts = prompts_of(6, 100)
    whole = engine_of(model).generate(prompts, SamplingParams(max_tokens=100))
    close(
        whole, engine_of(model, max_batch=2, step_tokens=7).generate(prompts, SamplingParams(max_tokens=100)), atol=1e-3
    )
    short = Engine(model, byte_tokenizer()).generate(prompts[:1], SamplingParams(max_tokens=WINDOW - 6))
    assert short[0].tokens == whole[0].tokens[: WINDOW - 6]  # within the window it is the model as it was


def test_with_keys_and_values_in_eight_bits() -> None:
    prompts = prompts_of(6, 100)
    plain, rounded = (
        engine_of(kv_dtype=kind).generate(prompts, SamplingParams(max_tokens=4)) for kind in (None, "int8")
    )
    for one, other in zip(plain, rounded):
        assert abs(one.logprobs[0] - other.logprobs[0]) < 0.1
        assert one.logprobs != other.logprobs


def test_what_is_refused(tmp_path: Path) -> None:
    torch.manual_seed(0)
    for options, said in (
        ({"window": 0}, "attention_window is 0; it must be at least 1"),
        ({"window": 61}, r"61 and 4 sinks exceed the model's context of 64; make the window at most 60"),
        ({"sinks": -1}, "attention_sinks is -1"),
        ({"window": None, "sinks": 2}, "attention_sinks would be ignored"),
    ):
        with pytest.raises(ValueError, match=said):
            engine_of(**options)
    for name in ("gpt2", "opt"):
        with pytest.raises(ValueError, match="this model has learned ones"):
            engine_of(build(tiny_config(name)))
    model = tiny_llama()
    engine = engine_of(model)
    attach(model, AdapterConfig(adapter="prefix", adapter_tokens=3), names=stored_names(model))
    with pytest.raises(ValueError, match="does not go with virtual tokens"):
        engine.generate(prompts_of(3), SamplingParams(max_tokens=2))


def test_it_is_chosen_where_a_model_is_opened(tmp_path: Path) -> None:
    folder = tmp_path / "m"
    checkpoint.save_pretrained(folder, tiny_llama(), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    lm = chatloom.load(folder, attention_window=30, attention_sinks=2, device="cpu")
    assert len(lm.generate(["hello"], max_tokens=200)[0].tokens) > 64
    long = [{"role": "user", "content": "hi " * 100}]
    lm.chat(long, max_tokens=4)
    with pytest.raises(ValueError, match="leaves no room"):
        chatloom.load(folder, device="cpu").chat(long)
    with pytest.raises(SystemExit):
        cli.main(["chat", str(folder), "--attention-window", "many"])
    assert family("llama").Config(context_length=64).context_length == 64
