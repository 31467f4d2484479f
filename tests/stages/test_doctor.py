import json
from pathlib import Path

import pytest
import torch

from chatloom import checkpoint, cli
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.stages import doctor
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

Capture = pytest.CaptureFixture[str]


def folder(path: Path, *, template: str = CHATLOOM_TEMPLATE) -> Path:
    checkpoint.save_pretrained(path, tiny_llama(), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    (path / "chat_template.jinja").write_text(template)
    return path


def ask(path: Path, capsys: Capture, *options: str) -> tuple[int, str]:
    capsys.readouterr()
    status = cli.main(["doctor", str(path), *options])
    said = capsys.readouterr()
    return status, " ".join((said.out + said.err).split())


def test_a_sound_model(tmp_path: Path, capsys: Capture) -> None:
    status, said = ask(folder(tmp_path / "m"), capsys, "--batch-rows", "2", "--row-length", "32")
    assert status == 0
    for part in ("llama: 2 layers of width 32", "4 heads of 8, 2 for keys", "64 tokens", "272 tokens", "tied", "sound"):
        assert part in said
    for part in (
        "<|end_of_turn|>",
        "all finite",
        "SFT",
        "LoRA of rank 16",
        "PPO, four LoRAs on one",
        "2 rows of 32 tokens",
    ):
        assert part in said


def test_damaged_weights_are_named(tmp_path: Path, capsys: Capture) -> None:
    path = folder(tmp_path / "m")
    tensors = {name: each.clone() for name, each in checkpoint.read_tensors(path / "model.safetensors").items()}
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    checkpoint.write_tensors(path / "model.safetensors", tensors)
    status, said = ask(path, capsys, "--no-memory")
    assert status == 1
    assert "blocks.1.feedforward.up.weight has 1 of 2,048 weights that are NaN or infinite" in said
    assert "copy or download the model again" in said
    assert "the logits are not finite numbers" in said


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{% for m in messages %}{{ m.content }}\n{% endfor %}", "could never learn to stop"),
        ("{% for m in messages %}<|im_start|>{{ m.role }}{{ m.content }}<|end_of_turn|>{% endfor %}", "<|im_start|>"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "more than 1,000,000 steps"),
        ("{{ messages[0].nothing.there }}", "cannot render"),
    ],
)
def test_a_template_that_cannot_be_trained_on(template: str, part: str, tmp_path: Path, capsys: Capture) -> None:
    status, said = ask(folder(tmp_path / "m", template=template), capsys, "--no-memory")
    assert status == 1
    assert part in said
    assert "chat_template.jinja" in said


def test_a_base_model_is_no_problem(tmp_path: Path, capsys: Capture) -> None:
    path = folder(tmp_path / "m")
    (path / "chat_template.jinja").unlink()
    status, said = ask(path, capsys, "--no-memory")
    assert status == 0
    assert "a base model" in said


def test_no_end_of_text(tmp_path: Path, capsys: Capture) -> None:
    report = doctor.examine(
        checkpoint.Pretrained(tiny_llama(), ChatFormat(_without_end(tmp_path), checkpoint.NO_TEMPLATE), {})
    )
    problems = [problem for check in report for problem in check.problems]
    assert [problem for problem in problems if "no token ends a text" in problem]


def _without_end(path: Path):  # type: ignore[no-untyped-def]
    from chatloom.tokenizers.bpe import Tokenizer

    data = json.loads(byte_tokenizer().serialized.replace("<|end_of_text|>", "<|end_of_document|>"))
    return Tokenizer(json.dumps(data))


def test_what_cannot_be_opened_is_status_2(tmp_path: Path, capsys: Capture) -> None:
    status, said = ask(tmp_path / "nowhere", capsys)
    assert (status, "there is no model folder" in said) == (2, True)
    status, said = ask(folder(tmp_path / "m"), capsys, "--row-length", "65")
    assert (status, "the model's context is 64" in said) == (2, True)


def test_the_check_of_a_gguf_file(tmp_path: Path, capsys: Capture) -> None:
    path = tmp_path / "m.gguf"
    source = folder(tmp_path / "m")
    assert cli.main(["export", str(source), "--to", "gguf", "--dtype", "q8_0", "--output", str(path)]) == 0
    status, said = ask(path, capsys, "--no-memory")
    assert (status, "sound" in said) == (0, True)
    assert torch.get_default_dtype() == torch.float32
