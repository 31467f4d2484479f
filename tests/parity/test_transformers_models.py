"""What we save, transformers opens and computes alike: logits, gradients, cache, reward head. Nothing is downloaded."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chatloom import checkpoint, models
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.models import gpt2, llama
from chatloom.nn.cache import Dense
from chatloom.tokenizers.bpe import train_tokenizer

transformers = pytest.importorskip("transformers")

LLAMA = llama.Config(320, 64, 2, 32, 4, 2, 48, tie_embeddings=False)
GPT2 = gpt2.Config(320, 64, 2, 32, 4)
CONFIGS = {
    "llama": LLAMA,
    "llama-tied": replace(LLAMA, tie_embeddings=True, num_key_value_heads=4),
    "llama-theta": replace(LLAMA, rope_theta=500_000.0, norm_epsilon=1e-6),
    "gpt2": GPT2,
    "gpt2-untied": replace(GPT2, tie_embeddings=False, inner_width=40),
}


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(train_tokenizer(["the miller sings at noon"] * 4, vocab_size=280), CHATLOOM_TEMPLATE)


def shaken(config: Any) -> models.Decoder:
    """A model none of whose weights is zero, so that nothing can hide."""
    torch.manual_seed(1)
    model = models.build(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_and_gradients(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    model = shaken(CONFIGS[name])
    checkpoint.save_pretrained(tmp_path, model, chat)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(0, 320, (2, 12))

    ours, theirs = model(tokens), peer(tokens).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)

    ours.square().mean().backward()
    theirs.square().mean().backward()
    torch.testing.assert_close(model.embedding.weight.grad, peer.get_input_embeddings().weight.grad)
    stored = {key: value.grad for key, value in peer.named_parameters()}
    names = models.family(name.split("-")[0]).WEIGHT_NAMES
    grads = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    from chatloom.models.weights import to_huggingface

    for key, grad in to_huggingface(grads, names, 2).items():
        torch.testing.assert_close(grad, stored[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_what_is_saved_is_what_is_loaded(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    model = shaken(CONFIGS[name])
    checkpoint.save_pretrained(tmp_path, model, chat)
    again = checkpoint.load_pretrained(tmp_path)
    assert again.model.config == model.config
    state = again.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert again.chat.template.source == chat.template.source
    assert again.tokenizer.digest() == chat.tokenizer.digest()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_a_folder_written_by_transformers_opens(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    checkpoint.save_pretrained(tmp_path / "ours", shaken(CONFIGS[name]), chat)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours")
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="20kB")
    chat.tokenizer.save(tmp_path / "theirs")
    chat.template.save(tmp_path / "theirs")
    assert list((tmp_path / "theirs").glob("*.index.json")), "the folder must be sharded for this test"
    tokens = torch.randint(0, 320, (2, 12))
    again = checkpoint.load_pretrained(tmp_path / "theirs").model
    torch.testing.assert_close(again(tokens), peer(tokens).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_padded_rows_match(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    model = shaken(CONFIGS[name])
    checkpoint.save_pretrained(tmp_path, model, chat)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    tokens = torch.randint(0, 320, (2, 8))
    mask = torch.tensor([[1] * 8, [0] * 3 + [1] * 5])  # left padding, as transformers decodes
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    theirs = peer(tokens, attention_mask=mask, position_ids=positions).logits
    ours = model(tokens, documents=mask)
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_reward_model_is_a_sequence_classifier(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    reward = models.RewardModel(shaken(CONFIGS[name]))
    reward.gain, reward.bias = 2.5, -0.75
    checkpoint.save_pretrained(tmp_path, reward, chat)
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    tokens = torch.randint(10, 320, (2, 8))
    ends = torch.tensor([[0, 7], [1, 7]])
    raw = reward.raw_scores(tokens, ends=ends)
    torch.testing.assert_close(raw, peer(tokens).logits[:, 0], rtol=1e-5, atol=1e-5)
    again = checkpoint.load_reward(tmp_path).model
    assert (again.gain, again.bias) == (2.5, -0.75)
    torch.testing.assert_close(again(tokens, ends=ends), 2.5 * raw - 0.75)


@pytest.mark.parametrize("name", CONFIGS)
def test_cached_equals_full(name: str) -> None:
    model = shaken(CONFIGS[name])
    tokens, lengths = torch.randint(0, 320, (3, 10)), torch.tensor([7, 3, 5])
    cache = Dense(2, 3, 16, model.config.num_key_value_heads, model.config.head_width)
    cache.begin(lengths)
    model(tokens[:, :7], cache=cache)
    cache.advance()
    full = model(tokens)
    for step in range(3):
        cache.begin(torch.ones(3, dtype=torch.int64))
        got = model(tokens[torch.arange(3), lengths + step][:, None], cache=cache)[:, 0]
        cache.advance()
        torch.testing.assert_close(got, full[torch.arange(3), lengths + step], rtol=1e-4, atol=1e-5)
    picked = cache.select(torch.tensor([2, 0, 2]))
    assert picked.lengths.tolist() == [8, 10, 8]
