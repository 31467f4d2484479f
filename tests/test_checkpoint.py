import json
import random
from pathlib import Path

import pytest
import torch

from chatloom import checkpoint, models
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.models import RewardModel, llama
from chatloom.testing.models import tiny_config
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.tokenizers.bpe import train_tokenizer

# What takes no memory however large it is.
COSTLESS = ("window", "experts_per_token", "query_scale", "window_from_layer", "full_every")


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(train_tokenizer(["the miller sings at noon"] * 4, vocab_size=280), CHATLOOM_TEMPLATE)


@pytest.fixture
def folder(chat: ChatFormat, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    checkpoint.save_pretrained(tmp_path / "m", llama.Model(llama.Config(300, 32, 1, 16, 2, 2, 24)), chat)
    return tmp_path / "m"


def edit(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_missing_folder_and_missing_files(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no model folder"):
        checkpoint.load_pretrained(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no config\.json"):
        checkpoint.load_pretrained(tmp_path)


def test_unknown_family_lists_those_known(folder: Path) -> None:
    edit(folder, model_type="lama")
    with pytest.raises(ValueError, match="did you mean 'llama'"):
        checkpoint.load_pretrained(folder)


def test_truncated_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.load_pretrained(folder)


def test_pickle_is_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="a pickle"):
        checkpoint.load_pretrained(folder)


def test_missing_and_extra_tensors_are_named(folder: Path) -> None:
    tensors = checkpoint.read_tensors(folder / "model.safetensors")
    tensors["model.extra"] = tensors.pop("model.norm.weight")
    checkpoint.write_tensors(folder / "model.safetensors", tensors)
    with pytest.raises(ValueError, match=r"missing final_norm\.weight; not expected model\.extra"):
        checkpoint.load_pretrained(folder)


def test_checkpoint_of_another_vocabulary(folder: Path) -> None:
    edit(folder, vocab_size=200)
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


def test_state_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "checkpoints" / "step_000001"
    checkpoint.save_state(target, {"a": torch.arange(3)}, {"step": 1})
    tensors, scalars = checkpoint.load_state(target)
    assert tensors["a"].tolist() == [0, 1, 2]
    assert scalars == {"step": 1}

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        checkpoint.save_state(target.with_name("step_000002"), {"a": torch.arange(3)}, {})
    assert checkpoint.latest_checkpoint(tmp_path) == target
    assert [path.name for path in target.parent.iterdir()] == ["step_000001"]


def test_bf16_folder_stays_bf16(folder: Path, chat: ChatFormat, tmp_path: Path) -> None:
    half = checkpoint.load_pretrained(folder, dtype="bf16")
    checkpoint.save_pretrained(tmp_path / "h", half.model, chat)
    assert checkpoint.load_pretrained(tmp_path / "h").model.embedding.weight.dtype == torch.bfloat16
    assert checkpoint.load_pretrained(tmp_path / "h", dtype="fp32").model.embedding.weight.dtype == torch.float32


def test_a_config_of_a_larger_model_takes_no_memory(folder: Path) -> None:
    """What the weights could not fill is refused before it is built."""
    for changes, part in (
        ({"vocab_size": 10**12}, "asks for .* weights, and"),
        ({"num_hidden_layers": 10**9}, "1,000,000,000 layers, and there are"),
        ({"intermediate_size": 10**10}, "asks for .* weights, and"),
        ({"max_position_embeddings": 10**12}, "asks for a context of 1,000,000,000,000"),
        ({"hidden_size": 0}, "width is 0"),
        ({"num_attention_heads": 0}, "num_heads is 0"),
        ({"num_hidden_layers": "two"}, "num_layers is 'two'"),
        ({"vocab_size": -5}, "vocab_size is -5"),
        ({"hidden_size": None}, "width is None"),
    ):
        before = (folder / "config.json").read_text()
        edit(folder, **changes)
        with pytest.raises(ValueError, match=part):
            checkpoint.load_pretrained(folder)
        (folder / "config.json").write_text(before)


def test_damaged_safetensors_are_an_error_or_other_numbers(folder: Path) -> None:
    """Random flips and cuts: never anything but a ValueError, and never a large allocation from a header."""
    weights = folder / "model.safetensors"
    whole, chooser, refused = weights.read_bytes(), random.Random(0), 0
    for number in range(120):
        damaged = bytearray(whole[: chooser.randrange(len(whole))] if number % 4 == 0 else whole)
        for _ in range(chooser.choice((1, 3, 20))):
            if damaged:
                damaged[chooser.randrange(min(len(damaged), 1800))] = chooser.randrange(256)
        weights.write_bytes(damaged)
        try:
            checkpoint.load_pretrained(folder)
        except ValueError:
            refused += 1
    assert refused > 60
    weights.write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.load_pretrained(folder)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_no_family_takes_memory_for_a_larger_config(family: str, tmp_path: Path) -> None:
    """Every size of every family: refused by what the file holds, and the file itself still opens."""
    model = models.build(tiny_config(family))
    checkpoint.save_pretrained(tmp_path / "m", model, ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    assert checkpoint.load_pretrained(tmp_path / "m").model.config.width == 32
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    for stored, ours in models.family(family).Config.KEYS.items():
        if not isinstance(value := config[stored], int) or isinstance(value, bool) or ours in COSTLESS:
            continue
        (tmp_path / "m" / "config.json").write_text(json.dumps(config | {stored: 10**9}))
        with pytest.raises(ValueError, match=r"config\.json"):
            checkpoint.load_pretrained(tmp_path / "m")
