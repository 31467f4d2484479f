"""Every family and kind of adapter: decoding is the full forward, packed is alone, and peft has the same logits."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapted import KINDS, adapted, chat_format, some_tokens, twin

from chatloom import adapters, checkpoint, models
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.models import FAMILIES, Decoder
from chatloom.testing.models import VOCAB_SIZE
from chatloom.testing.tokenizer import byte_tokenizer

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "context_length": 64,
    "num_layers": 2,
    "width": 32,
    "num_heads": 4,
    "num_key_value_heads": 2,
    "inner_width": 48,
    "rotary_width": 4,
    "window": 5,
}
NO_WINDOW = ("qwen3_moe",)  # its folder does not keep one
NO_CACHE = ("openai-gpt",)  # in transformers, so that peft cannot give it a prefix


def drawn(family: str) -> Decoder:
    """A two-layer model, every matrix drawn."""
    config = models.family(family).SIZES["mini"]
    sizes = {field.name: SIZES[field.name] for field in fields(config) if field.name in SIZES}
    if family in NO_WINDOW:
        sizes.pop("window", None)
    torch.manual_seed(0)
    model = models.build(replace(config, **sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


@pytest.mark.parametrize("kind", ["lora", "dora", "prompt", "prefix"])
@pytest.mark.parametrize("family", FAMILIES)
def test_here_and_in_peft(family: str, kind: str, tmp_path: Path) -> None:
    base = drawn(family)
    checkpoint.save_pretrained(tmp_path / "base", base, chat_format())
    model = adapted(base, KINDS[kind])
    tokens = some_tokens()
    with torch.no_grad():
        ours = model(tokens)
        packed = model(tokens[:1], documents=torch.tensor([[1] * 7 + [2] * 10]))[0]
        assert (packed[:7] - model(tokens[:1, :7])[0]).abs().max() < 5e-5
        assert (packed[7:] - model(tokens[:1, 7:])[0]).abs().max() < 5e-5
    prompt = tokens[0, :9].tolist()
    completion = Engine(model, byte_tokenizer()).generate([prompt, prompt[:4]], SamplingParams(max_tokens=6))[0]
    with torch.no_grad():
        scores = model(torch.tensor([prompt + completion.tokens]))[0, 8:-1].log_softmax(-1)
    found = scores.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
    assert (found - torch.tensor(completion.logprobs)).abs().max() < 1e-4
    checkpoint.save_adapter(tmp_path / "run", model, chat_format(), base=str(tmp_path / "base"))
    with torch.no_grad():
        assert torch.equal(checkpoint.load_pretrained(tmp_path / "run", merge=False).model(tokens), ours)
    if kind in ("lora", "dora"):
        merged = adapters.shared(model)
        adapters.merge(merged)
        with torch.no_grad():
            assert (merged(tokens) - ours).abs().max() < 1e-4
    if kind == "prefix" and family in NO_CACHE:
        return
    peer: Any = peft.PeftModel.from_pretrained(twin(tmp_path / "base"), str(tmp_path / "run")).eval()
    with torch.no_grad():
        theirs = peer(input_ids=tokens).logits[:, 5 if kind == "prompt" else 0 :]
    assert (theirs - ours).abs().max() < 1e-4
