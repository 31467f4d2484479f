import json
from pathlib import Path

import pytest
import torch

import chatloom
from chatloom import checkpoint, cli
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

TOKENS = torch.arange(20, 40)[None]
MESSAGES = [{"role": "user", "content": "Who bakes?"}]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    checkpoint.save_pretrained(tmp_path / "m", tiny_llama(), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    return tmp_path / "m"


def export(folder: Path, output: Path, *options: str) -> int:
    return cli.main(["export", str(folder), "--output", str(output), *options])


@pytest.mark.parametrize(
    ("dtype", "stored"), [("fp32", torch.float32), ("f16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_a_hugging_face_folder(dtype: str, stored: torch.dtype, folder: Path, tmp_path: Path) -> None:
    assert export(folder, tmp_path / "out", "--to", "hf", "--dtype", dtype) == 0
    tensors = checkpoint.read_tensors(tmp_path / "out" / "model.safetensors")
    assert {each.dtype for each in tensors.values()} == {stored}
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == str(stored).removeprefix("torch.")
    again, before = chatloom.load(tmp_path / "out", dtype="fp32"), chatloom.load(folder)
    assert again.prompt_tokens(MESSAGES) == before.prompt_tokens(MESSAGES)
    assert torch.allclose(again.model(TOKENS), before.model(TOKENS), atol=0.2)


def test_gguf_and_back(folder: Path, tmp_path: Path) -> None:
    """run -> gguf -> hf: the same logits, tokens, template and answer."""
    assert export(folder, tmp_path / "m.gguf", "--to", "gguf") == 0
    assert export(tmp_path / "m.gguf", tmp_path / "out") == 0
    before, again = chatloom.load(folder), chatloom.load(tmp_path / "out")
    assert torch.equal(before.model(TOKENS), again.model(TOKENS))
    assert before.tokenizer.digest() == again.tokenizer.digest()
    assert before.chat_format.template.source == again.chat_format.template.source
    assert before.chat(MESSAGES, max_tokens=12) == again.chat(MESSAGES, max_tokens=12)
    for name in ("config.json", "generation_config.json"):
        assert json.loads((folder / name).read_text()) == json.loads((tmp_path / "out" / name).read_text())


def test_nothing_is_overwritten(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "m.gguf").write_bytes(b"precious")
    assert export(folder, tmp_path / "m.gguf", "--to", "gguf") == 2
    assert (tmp_path / "m.gguf").read_bytes() == b"precious"
    assert export(folder, folder) == 2
    assert "exists already" in capsys.readouterr().err


def test_options_that_do_not_go_together(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for options, part in (
        (("--dtype", "q8_0"), "q8_0 is a number type of GGUF"),
        (("--to", "gguf"), "must end in .gguf"),
    ):
        with pytest.raises(SystemExit) as stopped:
            export(folder, tmp_path / "out", *options)
        assert stopped.value.code == 2
        assert part in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()


def test_a_failed_write_leaves_nothing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("chatloom.gguf.writing.GGUFWriter.write_tensors_to_file", full)
    (tmp_path / "out").mkdir()
    assert export(folder, tmp_path / "out" / "m.gguf", "--to", "gguf") == 2
    assert list((tmp_path / "out").iterdir()) == []
