"""Adapters in `peft`'s layout, both ways: the same logits here and there, over the same base."""

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from adapted import FAMILIES, KINDS, LORA, adapted, chat_format, saved_base, some_tokens, stir, tiny, twin
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from chatloom import adapters, checkpoint, models
from chatloom.adapters import AdapterConfig
from chatloom.adapters.peft import to_peft
from chatloom.models import RewardModel

TOLERANCE = 2e-5


def their_logits(model: Any, tokens: Tensor, *, virtual: int = 0) -> Tensor:
    """Of real tokens; with a prompt peft gives those of the virtual tokens too."""
    with torch.no_grad():
        return model(input_ids=tokens).logits[:, virtual:]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_trained_here_loads_in_peft(family: str, kind: str, tmp_path: Path) -> None:
    model = adapted(saved_base(tmp_path / "base", family), KINDS[kind])
    checkpoint.save_adapter(tmp_path / "run", model, chat_format(), base=str(tmp_path / "base"))
    tokens = some_tokens()
    with torch.no_grad():
        ours = model(tokens)
        with adapters.off(model):
            assert (model(tokens) - ours).abs().max() > 0.05  # the adapter matters
    peer = peft.PeftModel.from_pretrained(twin(tmp_path / "base"), str(tmp_path / "run")).eval()
    theirs = their_logits(peer, tokens, virtual=5 if kind == "prompt" else 0)
    assert theirs.shape == ours.shape
    assert (theirs - ours).abs().max() < TOLERANCE
    again = checkpoint.load_pretrained(tmp_path / "run", merge=False).model
    with torch.no_grad():
        assert torch.equal(again(tokens), ours)  # what is saved is what is loaded
        assert (checkpoint.load_pretrained(tmp_path / "run").model(tokens) - ours).abs().max() < TOLERANCE


def their_config(family: str, kind: str) -> Any:
    if kind == "prompt":
        return peft.PromptTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    if kind == "prefix":
        return peft.PrefixTuningConfig(num_virtual_tokens=5, task_type="CAUSAL_LM")
    targets = ["q_proj", "v_proj", "down_proj"] if family == "llama" else ["c_attn", "c_proj"]
    return peft.LoraConfig(
        r=4, lora_alpha=8, use_rslora=kind == "rslora", use_dora=kind == "dora", target_modules=targets,
        fan_in_fan_out=family == "gpt2", task_type="CAUSAL_LM", rank_pattern={targets[0]: 6},
        alpha_pattern={targets[0]: 10},
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_trained_in_peft_loads_here_and_goes_back(family: str, kind: str, tmp_path: Path) -> None:
    saved_base(tmp_path / "base", family)
    torch.manual_seed(3)
    peer = peft.get_peft_model(twin(tmp_path / "base"), their_config(family, kind)).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if parameter.requires_grad:
                parameter.add_((0.2 if "lora_B" in name else 0.05) * torch.randn_like(parameter))
    peer.save_pretrained(tmp_path / "theirs")
    tokens = some_tokens()
    theirs = their_logits(peer, tokens, virtual=5 if kind == "prompt" else 0)
    opened = checkpoint.load_pretrained(tmp_path / "theirs", merge=False)
    with torch.no_grad():
        assert (opened.model(tokens) - theirs).abs().max() < TOLERANCE
    checkpoint.save_adapter(tmp_path / "back", opened.model, opened.chat, base=str(tmp_path / "base"))
    before, after = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("theirs", "back"))
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    config = json.loads((tmp_path / "back" / "adapter_config.json").read_text())
    if kind not in ("prompt", "prefix"):
        assert set(config["alpha_pattern"].values()) == {10}
        assert set(config["rank_pattern"].values()) == {6}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "prefix"])
def test_reward_head_is_saved_with_the_adapter(family: str, kind: str, tmp_path: Path) -> None:
    model = RewardModel(adapted(saved_base(tmp_path / "base", family), KINDS[kind]))
    model.gain, model.bias = 1.5, -0.25
    checkpoint.save_adapter(tmp_path / "run", model.eval(), chat_format(), base=str(tmp_path / "base"))
    tokens = some_tokens()
    ends = torch.tensor([[row, tokens.shape[1] - 1] for row in range(len(tokens))])
    with torch.no_grad():
        ours = model(tokens, ends=ends)
    opened = checkpoint.load_reward(tmp_path / "run").model
    with torch.no_grad():
        assert (opened(tokens, ends=ends) - ours).abs().max() < TOLERANCE
    base = AutoModelForSequenceClassification.from_pretrained(tmp_path / "base", num_labels=1)
    base.config.pad_token_id = 0
    peer = peft.PeftModel.from_pretrained(base, str(tmp_path / "run")).eval()
    with torch.no_grad():
        raw = peer(input_ids=tokens.clamp(min=1)).logits[:, 0]
        mine = opened.raw_scores(tokens.clamp(min=1), ends=ends)
    assert (raw - mine).abs().max() < TOLERANCE
    with pytest.raises(ValueError, match="is a reward model"):
        checkpoint.load_pretrained(tmp_path / "run")


def test_part_of_a_fused_matrix(tmp_path: Path) -> None:
    """The paper's query and value alone, of a model that stores them with the key."""
    for dora in (False, True):
        config = AdapterConfig(adapter="lora", adapter_rank=4, adapter_targets=("query", "value"), adapter_dora=dora)
        model = adapted(saved_base(tmp_path / "base", "gpt2"), config)
        assert len(adapters.loras(model)) == 4
        checkpoint.save_adapter(tmp_path / "run", model, chat_format(), base=str(tmp_path / "base"))
        peer = peft.PeftModel.from_pretrained(twin(tmp_path / "base"), str(tmp_path / "run")).eval()
        with torch.no_grad():
            assert (their_logits(peer, some_tokens()) - model(some_tokens())).abs().max() < TOLERANCE


def test_updates_of_their_own_do_not_fit_a_fused_matrix() -> None:
    model = tiny("gpt2")
    adapters.attach(model, LORA)
    with pytest.raises(ValueError, match="c_attn is one matrix"):
        to_peft(model, models.stored_names(model), base="base")


def test_another_base_is_refused(tmp_path: Path) -> None:
    model = adapted(saved_base(tmp_path / "base", "llama"), LORA)
    checkpoint.save_adapter(tmp_path / "run", model, chat_format(), base=str(tmp_path / "base"))
    saved_base(tmp_path / "base", "llama", seed=9)
    with pytest.raises(ValueError, match=r"adapter of another base model: the weights of .* \(digest"):
        checkpoint.load_pretrained(tmp_path / "run")
    # Without a digest, as from peft, shapes and names tell.
    (tmp_path / "run" / "adapter_base.json").unlink()
    saved_base(tmp_path / "base", "gpt2")
    with pytest.raises(ValueError, match="belongs to no linear layer of this model's blocks"):
        checkpoint.load_pretrained(tmp_path / "run")
    for kind in ("prompt", "prefix"):
        model = adapted(tiny("llama"), KINDS[kind])
        with torch.no_grad():
            model.prefix.prompt_embeddings = torch.nn.Parameter(torch.zeros(5, 7))
        checkpoint.save_adapter(tmp_path / kind, model, chat_format(), base=str(tmp_path / "base"))
        with pytest.raises(ValueError, match="trained on another base model: its virtual tokens have 7 numbers"):
            checkpoint.load_pretrained(tmp_path / kind)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"peft_type": "IA3"}, "of type 'IA3'; those known are LORA"),
        ({"bias": "all"}, "bias='all', which is not here"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"modules_to_save": ["embed_tokens"]}, "also replaces embed_tokens"),
        ({"use_dora": True}, "the adapter has A and B of"),
    ],
)
def test_what_is_not_here_is_refused(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    model = adapted(saved_base(tmp_path / "base", "llama"), LORA)
    checkpoint.save_adapter(tmp_path / "run", model, chat_format(), base=str(tmp_path / "base"))
    path = tmp_path / "run" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=message):
        checkpoint.load_pretrained(tmp_path / "run")


def test_damaged_folders(tmp_path: Path) -> None:
    model = adapted(saved_base(tmp_path / "base", "llama"), LORA)
    run = tmp_path / "run"
    checkpoint.save_adapter(run, model, chat_format(), base=str(tmp_path / "base"))
    weights = run / "adapter_model.safetensors"
    whole = load_file(weights)
    save_file({name: tensor[:, :1].contiguous() for name, tensor in whole.items()}, weights)
    with pytest.raises(ValueError, match=r"another base model: [AB] of"):
        checkpoint.load_pretrained(run)
    weights.write_bytes(b"\xff" * 40)
    with pytest.raises(ValueError, match="not a whole safetensors file"):
        checkpoint.load_pretrained(run)
    weights.unlink()
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        checkpoint.load_pretrained(run)
    save_file(whole, weights)
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match=r"its base model .* is not there"):
        checkpoint.load_pretrained(run)
    (run / "adapter_config.json").write_text("{")
    with pytest.raises(ValueError, match="not valid JSON"):
        checkpoint.load_pretrained(run)


def test_a_folder_of_runs_may_move(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    model = adapted(saved_base(runs / "base", "llama"), LORA)
    checkpoint.save_adapter(runs / "lora", model, chat_format(), base=str(runs / "base"))
    runs.rename(tmp_path / "elsewhere")
    opened = checkpoint.load_pretrained(tmp_path / "elsewhere" / "lora", merge=False)
    stirred = opened.model
    with torch.no_grad():
        assert torch.equal(stirred(some_tokens()), model(some_tokens()))
    with pytest.raises(ValueError, match="has an adapter; save that alone"):
        checkpoint.save_pretrained(tmp_path / "whole", model, chat_format())
    stir(stirred)


def test_an_adapter_is_not_its_own_base(tmp_path: Path) -> None:
    model = adapted(saved_base(tmp_path / "base", "llama"), LORA)
    checkpoint.save_adapter(tmp_path / "run", model, chat_format(), base=str(tmp_path / "base"))
    (tmp_path / "run" / "adapter_base.json").unlink()
    path = tmp_path / "run" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / "run")}))
    with pytest.raises(ValueError, match="names itself as its base model"):
        checkpoint.load_pretrained(tmp_path / "run")
    path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": None}))
    with pytest.raises(ValueError, match="does not say what the adapter's base is"):
        checkpoint.load_pretrained(tmp_path / "run")


def test_adapters_that_name_one_another_as_base(tmp_path: Path) -> None:
    """By tokenizer, by weights and as a base of a third: an error, where there was endless recursion."""
    model = adapted(saved_base(tmp_path / "base", "llama"), LORA)
    for name, base in (("one", "two"), ("two", "one"), ("three", "one")):
        checkpoint.save_adapter(tmp_path / name, model, chat_format(), base=str(tmp_path / "base"))
        (tmp_path / name / "adapter_base.json").unlink()
        (tmp_path / name / "tokenizer.json").unlink()
        path = tmp_path / name / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"base_model_name_or_path": str(tmp_path / base)}))
    for name, circle in (("one", "one -> .*two -> .*one"), ("three", "one -> .*two -> .*one")):
        for opened in (checkpoint.load_pretrained, checkpoint.load_reward, checkpoint.load_chat):
            with pytest.raises(ValueError, match=f"name one another as their base model: .*{circle}; say in"):
                opened(tmp_path / name)


def test_an_adapter_on_an_adapter(tmp_path: Path) -> None:
    """A base that is an adapter is merged, and is what the next one was trained on."""
    model = adapted(saved_base(tmp_path / "base", "llama"), LORA)
    checkpoint.save_adapter(tmp_path / "first", model, chat_format(), base=str(tmp_path / "base"))
    second = adapted(checkpoint.load_pretrained(tmp_path / "first").model, LORA, seed=4)
    checkpoint.save_adapter(tmp_path / "second", second, chat_format(), base=str(tmp_path / "first"))
    again = checkpoint.load_pretrained(tmp_path / "second", merge=False)
    with torch.no_grad():
        assert torch.equal(again.model(some_tokens()), second(some_tokens()))


def test_an_adapter_without_a_tokenizer_has_its_bases(tmp_path: Path) -> None:
    model = adapted(saved_base(tmp_path / "base", "llama"), LORA)
    checkpoint.save_adapter(tmp_path / "run", model, chat_format(), base=str(tmp_path / "base"))
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / "run" / name).unlink()
    opened = checkpoint.load_pretrained(tmp_path / "run")
    assert opened.tokenizer.digest() == chat_format().tokenizer.digest()
    assert opened.chat.template.source == chat_format().template.source


def test_a_prefix_that_was_trained_through_an_mlp(tmp_path: Path) -> None:
    """peft writes the keys and values that the reparametrisation ended with (Li and Liang 2021, section 4.3)."""
    saved_base(tmp_path / "base", "llama")
    torch.manual_seed(3)
    config = peft.PrefixTuningConfig(
        num_virtual_tokens=5, task_type="CAUSAL_LM", prefix_projection=True, encoder_hidden_size=8
    )
    peer = peft.get_peft_model(twin(tmp_path / "base"), config).eval()
    peer.save_pretrained(tmp_path / "theirs")
    with torch.no_grad():
        ours = checkpoint.load_pretrained(tmp_path / "theirs").model(some_tokens())
    assert (ours - their_logits(peer, some_tokens())).abs().max() < TOLERANCE
