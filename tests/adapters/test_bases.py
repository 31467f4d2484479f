"""An adapter's base may be anything that `chatloom.load` opens: a folder, a .gguf file, a hub id, a catalogue name."""

import importlib.metadata
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from adapted import KINDS, adapted, saved_base, some_tokens

import chatloom
from chatloom import adapters, catalogue, checkpoint, cli
from chatloom.catalogue import Entry
from chatloom.models import RewardModel
from chatloom.stages.export import write_gguf
from chatloom.stages.run import read_manifest

LORA = KINDS["lora"]


@pytest.fixture
def refs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """One model under four names."""
    saved_base(tmp_path / "base", "llama")
    write_gguf(tmp_path / "base.gguf", checkpoint.load_pretrained(tmp_path / "base"), "fp32", name="tiny")
    monkeypatch.setattr(catalogue, "snapshot", lambda hub_id: tmp_path / "base")
    monkeypatch.setitem(catalogue.CATALOGUE, "tiny", Entry("tiny-package", "base.gguf", "tiny-package", "tiny"))
    package = SimpleNamespace(locate_file=lambda name: tmp_path / name)
    monkeypatch.setattr(importlib.metadata, "distribution", lambda name: package)
    named = {"folder": tmp_path / "base", "file": tmp_path / "base.gguf", "hub": "someone/tiny", "name": "tiny"}
    return {kind: str(ref) for kind, ref in named.items()}


@pytest.mark.parametrize("kind", ["folder", "file", "hub", "name"])
@pytest.mark.parametrize("adapter", ["lora", "prefix"])
def test_the_base_is_opened_again(kind: str, adapter: str, refs: dict[str, str], tmp_path: Path) -> None:
    opened = checkpoint.load_pretrained(refs[kind])
    model = adapted(opened.model, KINDS[adapter])
    checkpoint.save_adapter(tmp_path / "run", model, opened.chat, base=refs[kind])
    again = checkpoint.load_pretrained(tmp_path / "run", merge=False)
    with torch.no_grad():
        assert torch.equal(again.model(some_tokens()), model(some_tokens()))
    assert again.tokenizer.digest() == opened.tokenizer.digest()
    assert checkpoint.is_adapter_of(tmp_path / "run", refs[kind])
    assert checkpoint.is_adapter_of(str(tmp_path / "run"), refs["folder"]) == (kind in ("folder", "hub"))
    for name in ("tokenizer.json", "chat_template.jinja"):
        (tmp_path / "run" / name).unlink()
    chat = chatloom.load(tmp_path / "run").chat_format
    assert chat.tokenizer.digest() == opened.tokenizer.digest()
    assert chat.template.source == opened.chat.template.source


def test_a_file_that_has_changed_or_gone_is_told(refs: dict[str, str], tmp_path: Path) -> None:
    opened = checkpoint.load_pretrained(refs["file"])
    checkpoint.save_adapter(tmp_path / "run", adapted(opened.model, LORA), opened.chat, base=refs["file"])
    saved_base(tmp_path / "other", "llama", seed=3)
    other = checkpoint.load_pretrained(tmp_path / "other")
    write_gguf(Path(refs["file"]), other, "fp32", name="tiny")
    with pytest.raises(ValueError, match="an adapter of another base model"):
        checkpoint.load_pretrained(tmp_path / "run")
    Path(refs["file"]).unlink()
    with pytest.raises(ValueError, match=r"its base model .*base\.gguf is not there"):
        checkpoint.load_pretrained(tmp_path / "run")


def test_a_file_and_its_adapter_may_move_together(refs: dict[str, str], tmp_path: Path) -> None:
    opened = checkpoint.load_pretrained(refs["file"])
    (tmp_path / "all").mkdir()
    shutil.copy(refs["file"], tmp_path / "all" / "m.gguf")
    model = adapted(opened.model, LORA)
    checkpoint.save_adapter(tmp_path / "all" / "run", model, opened.chat, base=str(tmp_path / "all" / "m.gguf"))
    (tmp_path / "all").rename(tmp_path / "moved")
    again = checkpoint.load_pretrained(tmp_path / "moved" / "run", merge=False).model
    with torch.no_grad():
        assert torch.equal(again(some_tokens()), model(some_tokens()))


def test_a_reward_adapter_is_put_on_the_policys_file(refs: dict[str, str], tmp_path: Path) -> None:
    opened = checkpoint.load_pretrained(refs["name"])
    policy = opened.model.requires_grad_(False)
    reward = RewardModel(adapters.shared(policy))
    adapted(reward.trunk, LORA)
    reward.gain, reward.bias = 2.0, -1.0
    checkpoint.save_adapter(tmp_path / "reward", reward, opened.chat, base=refs["name"])
    again = checkpoint.load_reward(tmp_path / "reward", trunk=adapters.shared(policy)).model
    tokens, ends = some_tokens(), torch.tensor([[0, 16], [2, 9]])
    with torch.no_grad():
        assert torch.equal(again(tokens, ends=ends), reward(tokens, ends=ends))
    assert again.trunk.embedding.weight.data_ptr() == policy.embedding.weight.data_ptr()


@pytest.mark.parametrize("kind", ["file", "name"])
def test_stages_with_an_adapter_on_it(kind: str, refs: dict[str, str], tmp_path: Path) -> None:
    """SFT, reward model and PPO on one copy of a quantised file's weights, by its path or its name."""
    records = [(f"Who has {word}?", f"Ada has {word}.") for word in ("bread", "tea", "ink", "wool", "salt", "rope")]
    for name, text in (
        ("sft", '{{"prompt": "{0}", "completion": "{1}"}}'),
        ("comparisons", '{{"prompt": "{0}", "chosen": "{1}", "rejected": "No."}}'),
        ("prompts", '{{"prompt": "{0}"}}'),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(text.format(*record) + "\n" for record in records))
    shared = ["--model", refs[kind], "--adapter", "lora", "--adapter-rank", "2"]
    training = ["--batch-rows", "2", "--row-length", "60", "--epochs", "1"]
    runs = {
        "sft": ["--data", str(tmp_path / "sft.jsonl"), *training],
        "reward": ["--data", str(tmp_path / "comparisons.jsonl"), *training],
        "ppo": [
            *("--data", str(tmp_path / "prompts.jsonl"), "--reward", str(tmp_path / "reward"), "--iterations", "1"),
            *("--episodes-per-iteration", "4", "--minibatches", "1", "--epochs-per-batch", "1"),
            *("--max-response-tokens", "4", "--ptx-coefficient", "0"),
        ],
    }
    for stage, options in runs.items():
        command = [stage, *shared, *options, "--output-dir", str(tmp_path / stage)]
        assert cli.main(command) == 0
        assert cli.main(command) == 0  # done already
        manifest = read_manifest(tmp_path / stage)
        assert manifest is not None
        assert manifest["inputs"]["model"] == {"path": refs[kind], "digest": checkpoint.weights_digest(refs[kind])}
    assert len(chatloom.load(tmp_path / "ppo").chat([{"role": "user", "content": "Who?"}], max_tokens=3)) > 0
