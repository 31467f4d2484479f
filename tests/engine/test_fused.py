"""The compiled step against the modules that it stands for."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from chatloom import adapters, runtime
from chatloom.adapters import AdapterConfig
from chatloom.engine import fused, native
from chatloom.engine.engine import BLOCK_SIZE, Engine
from chatloom.engine.lowered import Lowered
from chatloom.engine.request import SamplingParams
from chatloom.engine.runner import Runner
from chatloom.engine.speculative import PromptLookup
from chatloom.models import FAMILIES, Decoder, build, llama, mistral, phi3, qwen2, qwen3
from chatloom.nn.paged import Chunk, Paged
from chatloom.testing.models import tiny_config
from chatloom.testing.tokenizer import byte_tokenizer

pytestmark = pytest.mark.skipif(not native.available(torch.device("cpu")), reason="nothing can be compiled here")

SIZES: dict[str, Any] = {"vocab_size": 270, "context_length": 200, "num_layers": 2, "width": 128, "inner_width": 192}
HEADS: dict[str, Any] = {"num_heads": 6, "num_key_value_heads": 2, "own_head_width": 64}
TWO: dict[str, Any] = {"num_heads": 2, "num_key_value_heads": 2}
CONFIGS = {
    "llama": llama.Config(**SIZES, **TWO, attention_bias=True, feedforward_bias=True),
    "grouped": llama.Config(**SIZES, **HEADS, tie_embeddings=False),
    "mistral": mistral.Config(**SIZES, **HEADS, window=40),
    "qwen2": qwen2.Config(**SIZES, num_heads=2, num_key_value_heads=1),
    "qwen3": qwen3.Config(**SIZES, **HEADS),
    "phi3": phi3.Config(**SIZES, **TWO, rotary_share=0.5),
    "narrow": llama.Config(**{**SIZES, "width": 96, "inner_width": 160}, num_heads=3, num_key_value_heads=1),
}


def drawn(name: str) -> Decoder:
    torch.manual_seed(0)
    model = build(CONFIGS[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.5 * parameter.shape[-1] ** -0.5)
    return model


def lowered(model: Decoder, dtype: str) -> Decoder:
    twin = Lowered(model, dtype)
    twin.refresh()
    return twin.model


def cache_of(kind: type[Paged], model: Decoder) -> Any:
    config = model.config
    cache = kind(
        config.num_layers, config.num_key_value_heads, config.head_width, block_size=BLOCK_SIZE, dtype=torch.bfloat16
    )
    cache.make_room(8)
    return cache


@torch.inference_mode()
def step(model: Decoder, cache: Any, chunks: Sequence[Chunk], tokens: list[int]) -> Tensor:
    """Logits behind each token, by the step that belongs to the cache."""
    cache.begin(chunks)
    if isinstance(cache, fused.LaidOut):
        return fused.Fused(model).logits(tokens, list(range(len(tokens))), cache)
    with runtime.autocast(torch.device("cpu"), "bf16"):
        return model(torch.tensor([tokens]), cache=cache)[0].float()


STEPS = [  # rows in blocks that are not in order: prompts, one token each, the rest of a prompt beside single tokens
    [Chunk([5, 2, 0], 0, 70), Chunk([1], 0, 9)],
    [Chunk([5, 2, 0], 70, 1), Chunk([1], 9, 1)],
    [Chunk([1], 10, 1), Chunk([5, 2, 0], 71, 20), Chunk([6, 3], 0, 33)],
]


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", CONFIGS)
def test_it_computes_what_the_modules_compute(name: str, dtype: str) -> None:
    model = lowered(drawn(name), dtype)
    assert fused.can(model, BLOCK_SIZE)
    ours, theirs = cache_of(fused.LaidOut, model), cache_of(Paged, model)
    for chunks in STEPS:
        tokens = torch.randint(0, 256, (sum(chunk.count for chunk in chunks),)).tolist()
        found, wanted = step(model, ours, chunks, tokens), step(model, theirs, chunks, tokens)
        off = 0.02 if dtype == "bf16" else 0.05  # there an input that bf16 rounds otherwise may get another code
        assert (found - wanted).norm() < off * wanted.norm()


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
@pytest.mark.parametrize("name", ["grouped", "mistral"])
def test_tokens_are_the_same_in_any_step_and_with_any_number_of_threads(name: str, dtype: str) -> None:
    model = lowered(drawn(name), dtype)
    tokens = torch.randint(0, 256, (100,)).tolist()
    whole = step(model, cache_of(fused.LaidOut, model), [Chunk([3, 1, 4, 0], 0, 100)], tokens)
    cache, place = cache_of(fused.LaidOut, model), 0
    for number, count in enumerate((7, 1, 1, 40, 1, 50)):
        beside = [Chunk([5], number, 1)] if count > 1 else []
        threads = torch.get_num_threads()
        torch.set_num_threads(1 + number % 3)
        chunks = [*beside, Chunk([0, 2, 6, 7], place, count)]
        found = step(model, cache, chunks, [9] * len(beside) + tokens[place : place + count])
        torch.set_num_threads(threads)
        assert torch.equal(found[len(beside) :], whole[place : place + count])
        place += count


def test_virtual_tokens_are_laid_out() -> None:
    model = drawn("grouped")
    adapters.attach(model, AdapterConfig(adapter="prefix", adapter_tokens=35))
    for parameter in model.prefix.parameters():  # type: ignore[union-attr]
        torch.nn.init.normal_(parameter)
    twin = lowered(model, "bf16")
    ours, theirs = cache_of(fused.LaidOut, model), cache_of(Paged, model)
    with torch.inference_mode():
        assert twin.prefix is not None
        for cache in (ours, theirs):
            cache.put([[4, 1], [2, 6]], *twin.prefix(twin))
    chunks = [Chunk([4, 1], 35, 5), Chunk([2, 6], 35, 3)]
    tokens = [1, 2, 3, 4, 5, 6, 7, 8]
    found, wanted = step(twin, ours, chunks, tokens), step(twin, theirs, chunks, tokens)
    assert (found - wanted).norm() < 0.02 * wanted.norm()


def test_the_engine_uses_it_and_answers_do_not_depend_on_company() -> None:
    engine = Engine(drawn("grouped"), byte_tokenizer(), autocast="bf16", step_tokens=64, max_batch=6)
    prompts = [torch.randint(0, 256, (length,)).tolist() for length in (3, 90, 31, 64, 33, 5, 17, 120)]
    params = SamplingParams(max_tokens=40)
    together = [(each.tokens, each.logprobs) for each in engine.generate(prompts, params)]
    runner = engine._runner
    assert isinstance(runner, Runner)
    assert isinstance(runner.cache, fused.LaidOut)
    alone = [(each.tokens, each.logprobs) for prompt in prompts for each in engine.generate([prompt], params)]
    assert [tokens for tokens, _ in together] == [tokens for tokens, _ in alone]
    guessing = Engine(drawn("grouped"), byte_tokenizer(), autocast="bf16", drafter=PromptLookup())
    assert [each.tokens for each in guessing.generate(prompts, params)] == [tokens for tokens, _ in alone]


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_not_built_so_is_left_to_torch(family: str) -> None:
    """The tiny models have heads of 4 to 16 channels, which nothing compiled is for; wider ones of few families."""
    assert not fused.can(lowered(build(tiny_config(family)), "bf16"), BLOCK_SIZE)


def test_weights_that_are_no_numbers_are_reported() -> None:
    model = drawn("llama")
    with torch.no_grad():
        model.blocks[1].feedforward.down.weight[3, 5] = float("nan")  # type: ignore[union-attr,index]
    for dtype in ("bf16", "int8"):
        with pytest.raises(ValueError, match="not finite"):
            Engine(model, byte_tokenizer(), autocast=dtype).generate([[1, 2, 3]], SamplingParams(max_tokens=4))


def test_a_block_of_another_size_is_not_for_it() -> None:
    assert not fused.can(lowered(drawn("llama"), "bf16"), 16)
    assert not fused.can(drawn("llama"), BLOCK_SIZE)


def test_rows_that_name_adapters_are_left_to_torch() -> None:
    model = drawn("grouped")
    engine = Engine(model, byte_tokenizer(), autocast="bf16")
    params = SamplingParams(max_tokens=6)
    [before] = engine.generate([[1, 2, 3]], params)
    other = adapters.shared(model)
    adapters.attach(other, AdapterConfig(adapter="lora"))
    for lora in adapters.loras(other).values():
        torch.nn.init.normal_(lora.B.weight, std=0.5)
    engine.add_adapter("one", other)
    plain, named = engine.generate([[1, 2, 3]] * 2, [params, SamplingParams(max_tokens=6, adapter="one")])
    assert plain.tokens == before.tokens
    assert named.tokens != before.tokens
    engine.remove_adapter("one")
    assert engine.generate([[1, 2, 3]], params)[0].tokens == before.tokens


@pytest.mark.parametrize("adapted", [False, True])
def test_log_probabilities_of_rollouts_are_the_trainers(adapted: bool) -> None:
    """In bf16 within 0.1 nats at most and 0.03 on average, of fp32 weights and of LoRA that is merged for decoding."""
    model = drawn("llama")
    if adapted:
        adapters.attach(model, AdapterConfig(adapter="lora"))
        for lora in adapters.loras(model).values():
            torch.nn.init.normal_(lora.B.weight, std=0.1)
    prompts = [torch.randint(0, 256, (length,)).tolist() for length in (4, 40, 9)]
    engine = Engine(model, byte_tokenizer(), autocast="bf16")
    off: list[float] = []
    for prompt, made in zip(prompts, engine.generate(prompts, SamplingParams(max_tokens=40, temperature=1.0, seed=3))):
        tokens = torch.tensor([[*prompt, *made.tokens]])
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            logprobs = model(tokens).float().log_softmax(-1)[0, len(prompt) - 1 : -1]
        chosen = logprobs.gather(1, torch.tensor(made.tokens)[:, None])[:, 0]
        off += (chosen - torch.tensor(made.logprobs)).abs().tolist()
    assert isinstance(engine._runner.cache, fused.LaidOut)  # type: ignore[union-attr]
    assert max(off) < 0.1
    assert sum(off) / len(off) < 0.03


def test_torchs_default_type_changes_nothing() -> None:
    engine = Engine(drawn("llama"), byte_tokenizer(), autocast="int8")
    params = SamplingParams(max_tokens=9, temperature=1.0, seed=1)
    [before] = engine.generate([[1, 2, 3]], params)
    for dtype in (torch.bfloat16, torch.float64):
        torch.set_default_dtype(dtype)
        try:
            [found] = engine.generate([[1, 2, 3]], params)
        finally:
            torch.set_default_dtype(torch.float32)
        assert found == before
