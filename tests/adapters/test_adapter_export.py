"""An adapted model on its way out: merged into one set of weights, or its base and its adapter, which peft joins."""

import json
from pathlib import Path

import peft
import pytest
import torch
from adapted import FAMILIES, KINDS, adapted, chat_format, saved_base, some_tokens, twin

import chatloom
from chatloom import checkpoint, cli
from chatloom.adapters import AdapterConfig
from chatloom.models import RewardModel
from chatloom.stages.export import write_gguf

TOLERANCE = 2e-5


def saved_run(folder: Path, family: str, kind: str) -> torch.nn.Module:
    """A base and a run with an adapter on it."""
    model = adapted(saved_base(folder / "trained-on", family), KINDS[kind])
    checkpoint.save_adapter(folder / "run", model, chat_format(), base=str(folder / "trained-on"))
    return model


def export(folder: Path, *options: str) -> int:
    return cli.main(["export", str(folder / "run"), "--output", str(folder / "out"), *options])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["lora", "dora", "prompt", "prefix"])
def test_a_kept_adapter_loads_in_peft_on_the_base_beside_it(family: str, kind: str, tmp_path: Path) -> None:
    model = saved_run(tmp_path, family, kind)
    assert export(tmp_path, "--adapter", "keep") == 0
    for gone in ("trained-on", "run"):
        (tmp_path / gone).rename(tmp_path / f"no-longer-{gone}")
    tokens = some_tokens()
    peer = peft.PeftModel.from_pretrained(twin(tmp_path / "out" / "base"), str(tmp_path / "out" / "adapter")).eval()
    with torch.no_grad():
        ours = model(tokens)
        theirs = peer(input_ids=tokens).logits[:, 5 if kind == "prompt" else 0 :]
        assert (theirs - ours).abs().max() < TOLERANCE
        assert torch.equal(checkpoint.load_pretrained(tmp_path / "out" / "adapter", merge=False).model(tokens), ours)
    (tmp_path / "out").rename(tmp_path / "moved")
    opened = chatloom.load(tmp_path / "moved" / "adapter")
    assert opened.chat_format.template.source == chat_format().template.source
    config = json.loads((tmp_path / "moved" / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "out" / "base")


def test_a_kept_adapter_takes_the_number_type_of_its_base(tmp_path: Path) -> None:
    saved_run(tmp_path, "llama", "lora")
    assert export(tmp_path, "--adapter", "keep", "--dtype", "bf16") == 0
    for name in ("base/model.safetensors", "adapter/adapter_model.safetensors"):
        assert {each.dtype for each in checkpoint.read_tensors(tmp_path / "out" / name).values()} == {torch.bfloat16}


def test_the_base_of_a_kept_adapter_may_be_a_file(tmp_path: Path) -> None:
    """A .gguf file is written as a folder, which is what peft can put the adapter on."""
    saved_base(tmp_path / "trained-on", "llama")
    opened = checkpoint.load_pretrained(tmp_path / "trained-on")
    write_gguf(tmp_path / "m.gguf", opened, "fp32", name="tiny")
    model = adapted(opened.model, KINDS["lora"])
    checkpoint.save_adapter(tmp_path / "run", model, chat_format(), base=str(tmp_path / "m.gguf"))
    assert export(tmp_path, "--adapter", "keep") == 0
    peer = peft.PeftModel.from_pretrained(twin(tmp_path / "out" / "base"), str(tmp_path / "out" / "adapter")).eval()
    with torch.no_grad():
        assert (peer(input_ids=some_tokens()).logits - model(some_tokens())).abs().max() < TOLERANCE


def test_what_cannot_be_kept_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved_run(tmp_path, "llama", "lora")
    with pytest.raises(SystemExit) as stopped:
        cli.main(["export", str(tmp_path / "run"), "--output", "m.gguf", "--to", "gguf", "--adapter", "keep"])
    assert stopped.value.code == 2
    assert "use --adapter merge, or --to hf" in " ".join(capsys.readouterr().err.split())
    output = ["--output", str(tmp_path / "out"), "--adapter", "keep"]
    assert cli.main(["export", str(tmp_path / "trained-on"), *output]) == 2
    assert "has no adapter that could be kept" in " ".join(capsys.readouterr().err.split())
    reward = RewardModel(adapted(saved_base(tmp_path / "trained-on", "llama"), KINDS["lora"]))
    checkpoint.save_adapter(tmp_path / "reward", reward, chat_format(), base=str(tmp_path / "trained-on"))
    assert cli.main(["export", str(tmp_path / "reward"), *output]) == 2
    assert "is a reward model" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_an_adapter_that_cannot_be_merged_is_not_lost(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved_run(tmp_path, "llama", kind)
    for to, output in (("hf", "out"), ("gguf", "out.gguf")):
        assert cli.main(["export", str(tmp_path / "run"), "--to", to, "--output", str(tmp_path / output)]) == 2
        assert "use --to hf --adapter keep" in " ".join(capsys.readouterr().err.split())
        assert not (tmp_path / output).exists()


def test_lora_is_merged_on_the_way_out(tmp_path: Path) -> None:
    model = adapted(saved_base(tmp_path / "base", "llama"), AdapterConfig(adapter="lora", adapter_rank=2))
    checkpoint.save_adapter(tmp_path / "run", model, chat_format(), base=str(tmp_path / "base"))
    output = tmp_path / "out.gguf"
    assert cli.main(["export", str(tmp_path / "run"), "--to", "gguf", "--output", str(output)]) == 0
    with torch.no_grad():
        assert (chatloom.load(output).model(some_tokens()) - model(some_tokens())).abs().max() < 1e-4
    assert cli.main(["doctor", str(tmp_path / "run"), "--no-memory"]) == 0
