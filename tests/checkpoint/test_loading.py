"""Weights, configuration and tokenizer that belong together, and those that do not."""

import json
from pathlib import Path

import pytest
import torch

from chatloom import checkpoint
from chatloom.chat.render import ChatFormat
from chatloom.models import RewardModel
from chatloom.tokenizers.bpe import train_tokenizer


def test_missing_and_extra_tensors_are_named(folder: Path) -> None:
    tensors = checkpoint.read_tensors(folder / "model.safetensors")
    tensors["model.extra"] = tensors.pop("model.norm.weight")
    checkpoint.write_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"missing final_norm\.weight; not expected model\.extra"):
        checkpoint.load_pretrained(folder)


def test_checkpoint_of_another_vocabulary(folder: Path) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"vocab_size": 200}))
    with pytest.raises(ValueError, match=r"embedding\.weight is \(300, 16\)"):
        checkpoint.load_pretrained(folder)


def test_tokenizer_larger_than_the_model(folder: Path, chat: ChatFormat) -> None:
    train_tokenizer([f"word{i} other{i}" for i in range(200)], vocab_size=400).save(folder)
    with pytest.raises(ValueError, match="do not belong together"):
        checkpoint.load_pretrained(folder)


def test_a_language_model_is_not_a_reward_model(folder: Path, chat: ChatFormat, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no reward head"):
        checkpoint.load_reward(folder)
    checkpoint.save_pretrained(tmp_path / "r", RewardModel(checkpoint.load_pretrained(folder).model), chat)
    with pytest.raises(ValueError, match="is a reward model"):
        checkpoint.load_pretrained(tmp_path / "r")


def test_loading_leaves_the_random_generator_alone(folder: Path) -> None:
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    checkpoint.load_pretrained(folder)
    assert torch.equal(torch.rand(2), expected)


def test_bf16_folder_stays_bf16(folder: Path, chat: ChatFormat, tmp_path: Path) -> None:
    half = checkpoint.load_pretrained(folder, dtype="bf16")
    checkpoint.save_pretrained(tmp_path / "h", half.model, chat)
    assert checkpoint.load_pretrained(tmp_path / "h").model.embedding.weight.dtype == torch.bfloat16
    assert checkpoint.load_pretrained(tmp_path / "h", dtype="fp32").model.embedding.weight.dtype == torch.float32
