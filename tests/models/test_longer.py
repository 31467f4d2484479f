"""Longer contexts: the angles are transformers', what is saved says so, and who cannot have one is told why."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import chatloom
from chatloom import checkpoint, cli
from chatloom.adapters import AdapterConfig, attach
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.models import FAMILIES, build, stored_names
from chatloom.models.longer import SCALINGS, ContextConfig, longer
from chatloom.nn.rope_scaling import RopeScaling
from chatloom.testing.models import tiny_config, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

LONG = 160  # 2.5 times the 64 tokens of the tiny models


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save_pretrained(tmp_path / "m", tiny_llama(), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    return tmp_path / "m"


def tables(rotary: Any) -> tuple[Tensor, Tensor]:
    half = rotary.cosines.shape[1] // 2
    return rotary.cosines[:, :half], rotary.sines[:, half:]


@pytest.mark.parametrize("kind", ["linear", "yarn"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_angles_are_those_of_transformers(family: str, kind: Any) -> None:
    pytest.importorskip("transformers")
    from transformers import AutoConfig
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    config = longer(tiny_config(family, width=256), ContextConfig(LONG, kind))
    stored = config.to_huggingface()
    theirs = AutoConfig.for_model(stored.pop("model_type"), **stored)
    frequencies, magnitude = ROPE_INIT_FUNCTIONS[kind](theirs, "cpu")
    assert theirs.max_position_embeddings == LONG
    assert theirs.rope_parameters["factor"] == 2.5
    assert kind == "linear" or theirs.rope_parameters["original_max_position_embeddings"] == 64
    angles = torch.arange(LONG).float()[:, None] * frequencies
    cosines, sines = tables(build(config).rotary)
    torch.testing.assert_close(cosines, angles.cos() * magnitude, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(sines, angles.sin() * magnitude, rtol=1e-5, atol=1e-5)


def test_ntk_slows_the_slowest_pair_by_the_factor_and_leaves_the_fastest() -> None:
    for family in ("llama", "gpt_neox", "phi3", "stablelm"):
        config = tiny_config(family, width=128)
        before, after = (tables(build(each).rotary) for each in (config, longer(config, ContextConfig(128, "ntk"))))
        assert len(after[0]) == 128
        torch.testing.assert_close(after[0][:64, 0], before[0][:, 0])
        # Twice the trained length: position 2 p turns the slowest pair as far as p did.
        torch.testing.assert_close(after[1][::2, -1], before[1][:, -1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("kind", SCALINGS)
def test_saved_is_loaded_by_us_and_by_transformers(folder: Path, tmp_path: Path, kind: Any) -> None:
    transformers = pytest.importorskip("transformers")
    lm = chatloom.load(folder, context_length=LONG, rope_scaling=kind, device="cpu")
    assert lm.engine.context_length == LONG
    tokens = torch.arange(20, 20 + 120)[None] % 250
    with torch.no_grad():
        expected = lm.model(tokens)
        lm.save(tmp_path / "long")
        assert torch.equal(chatloom.load(tmp_path / "long", device="cpu").model(tokens), expected)
        theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "long")
        torch.testing.assert_close(theirs(tokens).logits, expected, rtol=1e-4, atol=1e-4)
    assert theirs.config.max_position_embeddings == LONG
    [completion] = lm.generate([tokens[0].tolist()], max_tokens=100)
    assert len(completion.tokens) <= LONG - 120
    plain = chatloom.load(folder, device="cpu").model
    with torch.no_grad():
        assert not torch.allclose(plain(tokens[:, :60]), expected[:, :60], atol=1e-3)


def test_every_family_can_or_says_why_not() -> None:
    able: dict[str, list[str]] = {}
    for name in FAMILIES:
        config = tiny_config(name, width=64)
        if name == "bloom":
            assert longer(config, ContextConfig(LONG)).context_length == LONG
            with pytest.raises(ValueError, match="ALiBi, which needs no rope_scaling"):
                longer(config, ContextConfig(LONG, "yarn"))
            continue
        with pytest.raises(ValueError, match=r"no rope_scaling is given|no positions beyond"):
            longer(config, ContextConfig(LONG))
        able[name] = []
        for kind in SCALINGS:
            try:
                found = longer(config, ContextConfig(LONG, kind))
            except ValueError as error:
                assert "choose a model with a longer context" in str(error) or name == "phi3"  # noqa: PT017
                continue
            able[name].append(kind)
            again = type(config).from_huggingface(json.loads(json.dumps(found.to_huggingface())))
            same = ("context_length", "rope_theta", "rope_scaling")
            assert [getattr(again, field) for field in same] == [getattr(found, field) for field in same], name
            assert build(found).hidden(torch.zeros(1, LONG, dtype=torch.int64)).isfinite().all()
    unable = {"openai-gpt", "gpt2", "gpt_neo", "gptj", "codegen", "opt", "gpt_bigcode"}
    assert {name for name, kinds in able.items() if not kinds} == unable
    assert {name for name, kinds in able.items() if len(kinds) == 1} == {"phi3"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"context_length": 64, "rope_scaling": "yarn"}, "which is no less"),
        ({"context_length": 32}, "which is no less"),
        ({"context_length": LONG}, "no rope_scaling is given; for a llama it must be linear or ntk or yarn"),
        ({"rope_scaling": "yarn"}, "needs context_length"),
        ({"context_length": LONG, "rope_scaling": "su"}, "allowed: linear, ntk, yarn"),
        ({"context_length": 2**30, "rope_scaling": "ntk"}, r"context_length is 1,073,741,824; at most"),
    ],
)
def test_what_is_refused(folder: Path, given: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        chatloom.load(folder, **given)


def test_one_pair_cannot_be_slowed_by_the_base() -> None:
    with pytest.raises(ValueError, match="ntk slows pairs of channels, but not the first"):
        longer(tiny_config("gpt_neox"), ContextConfig(LONG, "ntk"))


def test_a_model_with_a_scaling_of_its_own_is_not_stretched_again() -> None:
    config = replace(tiny_config("llama"), rope_scaling=RopeScaling("yarn", 4.0, 16))
    assert longer(config, ContextConfig(64)) == config  # its own length
    with pytest.raises(ValueError, match=r"stretched already \(yarn\)"):
        longer(config, ContextConfig(LONG, "yarn"))


def test_an_adapter_remembers_what_its_base_was_opened_for(folder: Path, tmp_path: Path) -> None:
    context = ContextConfig(LONG, "ntk")
    opened = checkpoint.load_pretrained(folder, context=context)
    attach(opened.model, AdapterConfig(adapter="lora"), names=stored_names(opened.model))
    checkpoint.save_adapter(tmp_path / "a", opened.model, opened.chat, base=str(folder), context=context)
    tokens = torch.arange(100)[None]
    with torch.no_grad():
        again = checkpoint.load_pretrained(tmp_path / "a")
        assert again.model.config == opened.model.config
        torch.testing.assert_close(again.model(tokens), opened.model(tokens))
    checkpoint.load_pretrained(tmp_path / "a", context=context)
    with pytest.raises(ValueError, match=r"was trained at a context of 160 \(rope_scaling ntk\)"):
        checkpoint.load_pretrained(tmp_path / "a", context=ContextConfig(LONG, "yarn"))
    out = str(tmp_path / "kept")
    assert cli.main(["export", str(tmp_path / "a"), "--output", out, "--to", "hf", "--adapter", "keep"]) == 0
    assert chatloom.load(f"{out}/adapter", device="cpu").model.config == opened.model.config


def test_fine_tuning_at_the_longer_length(folder: Path, tmp_path: Path) -> None:
    text = " ".join(["word"] * 25)  # more than 64 tokens
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": "hi", "completion": text}) + "\n", encoding="utf-8")
    data = tmp_path / "data.jsonl"
    data.write_text(data.read_text() * 4)
    for adapter in ((), ("--adapter", "lora")):
        out = tmp_path / f"run{len(adapter)}"
        options = ("--context-length", str(LONG), "--rope-scaling", "linear", "--epochs", "1", "--batch-rows", "2")
        given = ["sft", "--model", str(folder), "--data", str(data), "--output-dir", str(out), *options, *adapter]
        assert cli.main(given) == 0
        opened = checkpoint.load_pretrained(out)
        assert opened.model.config.context_length == LONG
        assert opened.model.config.rope_scaling == RopeScaling("linear", 2.5)
