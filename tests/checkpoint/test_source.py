"""What a folder holds, before it is a model: missing, foreign, damaged or hostile files."""

import json
import random
from pathlib import Path

import pytest

from chatloom import checkpoint, models
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.testing.models import tiny_config
from chatloom.testing.tokenizer import byte_tokenizer

# What takes no memory however large it is.
COSTLESS = ("window", "experts_per_token", "query_scale", "window_from_layer", "full_every")


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
