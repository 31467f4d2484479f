"""What adapters promise: fresh ones change nothing, merged is attached, cached is full, batched is alone."""

from typing import Any

import pytest
import torch
from adapted import FAMILIES, KINDS, LORA, adapted, some_tokens, tiny
from torch import Tensor

from chatloom import adapters, models
from chatloom.adapters import AdapterConfig
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.models import Decoder
from chatloom.objectives.causal_lm import causal_lm
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.train.train_config import TrainConfig
from chatloom.train.trainer import Trainer

LORAS = [kind for kind, config in KINDS.items() if config.adapter == "lora"]
VIRTUAL = ["prompt", "prefix"]


def logits(model: Decoder, tokens: Tensor, **options: Any) -> Tensor:
    with torch.no_grad():
        return model(tokens, **options)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", LORAS)
def test_fresh_is_the_base_bit_for_bit(family: str, kind: str) -> None:
    expected = logits(tiny(family), some_tokens())
    model = adapted(tiny(family), KINDS[kind], fresh=True)
    assert adapters.dormant_names(model)
    assert torch.equal(logits(model, some_tokens()), expected)
    assert not adapters.dormant_names(adapted(tiny(family), KINDS[kind]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_off_is_the_base_bit_for_bit(family: str, kind: str) -> None:
    expected = logits(tiny(family), some_tokens())
    model = adapted(tiny(family), KINDS[kind])
    on = logits(model, some_tokens())
    with adapters.off(model):
        assert torch.equal(logits(model, some_tokens()), expected)
        assert model.config.context_length == 64
    assert torch.equal(logits(model, some_tokens()), on)
    assert not torch.allclose(on, expected, atol=0.05)
    adapters.detach(model)
    assert torch.equal(logits(model, some_tokens()), expected)
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert {name for name, _ in model.named_parameters()} == {name for name, _ in tiny(family).named_parameters()}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", LORAS)
def test_merged_is_attached_and_unmerged_is_the_base(family: str, kind: str) -> None:
    model = adapted(tiny(family), KINDS[kind])
    attached = logits(model, some_tokens())
    bystander = adapters.shared(model)
    adapters.merge(model)
    assert (logits(model, some_tokens()) - attached).abs().max() < 1e-5 * attached.abs().max()
    with pytest.raises(ValueError, match="unmerge it first"), adapters.off(model):
        pass
    assert torch.equal(logits(bystander, some_tokens()), attached)
    adapters.unmerge(model)
    assert torch.equal(logits(model, some_tokens()), attached)
    with adapters.off(model):
        assert torch.equal(logits(model, some_tokens()), logits(tiny(family), some_tokens()))


def test_merged_is_attached_in_bf16() -> None:
    """Weights of three digits: all logits together are off by two in a hundred at most."""
    model = adapted(tiny("llama"), LORA).to(torch.bfloat16)
    attached = logits(model, some_tokens()).float()
    adapters.merge(model)
    assert (logits(model, some_tokens()).float() - attached).norm() < 0.02 * attached.norm()


def test_virtual_tokens_cannot_be_merged() -> None:
    with pytest.raises(ValueError, match="prefix tuning adds virtual tokens, which cannot be merged"):
        adapters.merge(adapted(tiny("llama"), KINDS["prefix"]))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_generation_is_a_loop_of_full_forwards(family: str, kind: str) -> None:
    """Through the engine, prompts of several lengths at once: cached = full, batched = alone."""
    model = adapted(tiny(family), KINDS[kind])
    prompts = [some_tokens(1, length, seed=length)[0].tolist() for length in (3, 9, 5)]
    completions = Engine(model, byte_tokenizer()).generate([*prompts, prompts[1]], SamplingParams(max_tokens=6))
    assert completions[1].tokens == completions[3].tokens
    for prompt, completion in zip(prompts, completions):
        tokens = list(prompt)
        for token, logprob in zip(completion.tokens, completion.logprobs, strict=True):
            scores = logits(model, torch.tensor([tokens]))[0, -1].log_softmax(-1)
            assert int(scores.argmax()) == token
            assert float(scores[token]) == pytest.approx(logprob, abs=1e-4)
            tokens.append(token)
        assert len(completion.tokens) == 6


@pytest.mark.parametrize("kind", VIRTUAL)
def test_virtual_tokens_take_their_place_in_the_context(kind: str) -> None:
    model = adapted(tiny("gpt2"), KINDS[kind])
    assert model.config.context_length == 59
    assert len(Engine(model, byte_tokenizer()).generate([[1, 2]], SamplingParams(max_tokens=99))[0].tokens) == 57
    with pytest.raises(ValueError, match="60 tokens does not fit the model's context of 59"):
        model(some_tokens(1, 60))
    with pytest.raises(ValueError, match="64 virtual tokens leave no room"):
        adapted(tiny("gpt2"), AdapterConfig(adapter="prompt", adapter_tokens=64))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_packed_documents_are_each_alone(family: str, kind: str) -> None:
    model = adapted(tiny(family), KINDS[kind])
    tokens = some_tokens(1, 20)
    documents = torch.tensor([[1] * 7 + [2] * 9 + [0] * 4])
    together = logits(model, tokens, documents=documents)[0]
    assert (together[:7] - logits(model, tokens[:, :7])[0]).abs().max() < 1e-5
    assert (together[7:16] - logits(model, tokens[:, 7:16])[0]).abs().max() < 1e-5
    rows = logits(model, some_tokens())
    assert (rows[1] - logits(model, some_tokens()[1:2])[0]).abs().max() < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_only_the_adapter_learns_and_checkpointing_changes_nothing(family: str, kind: str) -> None:
    tokens = some_tokens(4, 16)
    batch = {"tokens": tokens, "targets": tokens.roll(-1, dims=1), "documents": torch.ones_like(tokens)}
    losses: list[list[float]] = []
    for checkpointing in (False, True):
        model = adapted(tiny(family), KINDS[kind])
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        options = TrainConfig(
            learning_rate=1e-2, schedule="constant", gradient_checkpointing=checkpointing, ema_decay=0.9
        )
        trainer = Trainer(model, causal_lm, options, total_steps=8)
        losses.append([trainer.step([batch])["loss"] for _ in range(8)])
        assert losses[-1][-1] < losses[-1][0] - 0.05
        changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
        assert changed
        assert all(".lora." in name or name.startswith("prefix.") for name in changed)
        state = trainer.state_dict()
        trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
        assert set(state["weights"]) == set(state["average"]) == set(state["optimizer"]["state"]) == trained
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_gradients_are_those_of_the_merged_weight() -> None:
    """By the chain rule: with W = W0 + s B A, dB = s dW A' and dA = s B' dW."""
    model = adapted(tiny("llama"), LORA)
    tokens = some_tokens(4, 16)
    batch = {"tokens": tokens, "targets": tokens.roll(-1, dims=1)}
    causal_lm(model, batch).total.backward()
    whole = adapted(tiny("llama"), LORA)
    adapters.merge(whole)
    whole.requires_grad_(True)
    causal_lm(whole, batch).total.backward()
    for path, lora in adapters.loras(model).items():
        of_weight = whole.get_submodule(path).weight.grad
        assert lora.scale == 2.0
        torch.testing.assert_close(lora.B.weight.grad, 2 * of_weight @ lora.A.weight.T, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(lora.A.weight.grad, 2 * lora.B.weight.T @ of_weight, rtol=1e-3, atol=1e-3)


def test_dora_by_hand() -> None:
    """Rows of W + s B A are brought to their trained lengths; each row's length is m (Liu et al. 2024, eq. 5)."""
    model = adapted(tiny("llama"), KINDS["dora"])
    path, lora = next(iter(adapters.loras(model).items()))
    weight = model.get_submodule(path).weight.detach()
    moved = weight + 2.0 * lora.B.weight @ lora.A.weight
    expected = lora.magnitude[:, None] * moved / moved.norm(dim=1, keepdim=True)
    torch.testing.assert_close(lora.merged(weight), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(lora.merged(weight).norm(dim=1), lora.magnitude.detach())


def test_scale_is_alpha_by_rank_or_its_root() -> None:
    assert LORA.scale == 2.0
    assert KINDS["rslora"].scale == 4.0


def test_dropout_is_the_adapters_own() -> None:
    config = AdapterConfig(adapter="lora", adapter_rank=4, adapter_dropout=0.5)
    model = adapted(tiny("llama"), config)
    Trainer(model, causal_lm, TrainConfig(), total_steps=1)  # sets every nn.Dropout to its own 0
    tokens = some_tokens()
    assert torch.equal(logits(model, tokens), logits(model, tokens))
    model.train()
    assert not torch.equal(logits(model, tokens), logits(model, tokens))
    with adapters.off(model):
        assert torch.equal(logits(model, tokens), logits(model, tokens))


def test_muon_takes_a_and_b_where_it_is_asked_for() -> None:
    model = adapted(tiny("llama"), LORA)
    tokens = some_tokens()
    trainer = Trainer(model, causal_lm, TrainConfig(optimizer="muon"), total_steps=1)
    trainer.step([{"tokens": tokens, "targets": tokens.roll(-1, dims=1)}])
    assert all(set(state) == {"momentum"} for state in trainer.optimizer.state.values())


@pytest.mark.parametrize("family", FAMILIES)
def test_targets(family: str) -> None:
    names = {"llama": ("q_proj", "query"), "gpt2": ("attn.c_proj", "attention.output")}[family]
    found = []
    for target in names:
        model = tiny(family)
        config = AdapterConfig(adapter="lora", adapter_targets=(target,))
        adapters.attach(model, config, names=models.stored_names(model))
        found.append(list(adapters.loras(model)))
    assert found[0] == found[1]
    assert len(found[0]) == 2
    every = adapters.loras(adapted(tiny(family), LORA))
    assert len(every) == {"llama": 14, "gpt2": 12}[family]
    unknown = AdapterConfig(adapter="lora", adapter_targets=("q",))
    with pytest.raises(ValueError, match="no linear layer's path ends with 'q'; there are"):
        adapters.attach(tiny(family), unknown)
    with pytest.raises(ValueError, match="has an adapter already"):
        adapters.attach(model, LORA)


def test_a_stored_matrix_has_one_a() -> None:
    model = adapted(tiny("gpt2"), LORA)
    updates = adapters.loras(model)
    attention = [updates[f"blocks.0.attention.{part}"] for part in ("query", "key", "value")]
    assert attention[0].A is attention[1].A is attention[2].A
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    assert trained == 2 * 4 * ((32 + 96) + (32 + 32) + (32 + 64) + (64 + 32))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adapter_rank": 8}, "adapter_rank would be ignored with adapter=None; it belongs to lora"),
        ({"adapter": "prefix", "adapter_dora": True}, "adapter_dora would be ignored with adapter=prefix"),
        ({"adapter": "lora", "adapter_tokens": 3}, "adapter_tokens would be ignored with adapter=lora"),
        ({"adapter": "prompt", "adapter_merge": True}, "adapter_merge would be ignored"),
        ({"adapter": "lorra"}, "must be one of lora, prompt, prefix"),
        ({"adapter": "lora", "adapter_rank": 0}, "adapter_rank is 0; it must be at least 1"),
        ({"adapter": "lora", "adapter_alpha": 0.0}, r"adapter_alpha is 0\.0"),
        ({"adapter": "lora", "adapter_dropout": 1.0}, r"adapter_dropout is 1\.0"),
        ({"adapter": "lora", "adapter_targets": ()}, "adapter_targets is empty"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdapterConfig(**options)
