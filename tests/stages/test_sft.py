"""Fine-tuning a base model from elsewhere, whose tokenizer knows an end of text and nothing of who speaks."""

import json
import re
from pathlib import Path

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as HuggingFaceTokenizer

import chatloom
from chatloom import checkpoint, cli
from chatloom.chat.message import Message
from chatloom.chat.render import ChatFormat
from chatloom.models import gpt2
from chatloom.tokenizers.bpe import Tokenizer
from chatloom.train.metrics import read_metrics

TURNS = (Message("user", "Who bakes?"), Message("assistant", "Ada."), Message("user", "And?"))


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A model folder as GPT-2's: 256 bytes and <|endoftext|>, no chat template."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = HuggingFaceTokenizer(models.BPE(vocab={text: at for at, text in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|endoftext|>", special=True)])
    folder = tmp_path / "base"
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = dict.fromkeys(("bos_token", "eos_token"), "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2TokenizerFast"} | named))
    chat = ChatFormat(Tokenizer.load(folder), checkpoint.NO_TEMPLATE)
    checkpoint.save_pretrained(folder, gpt2.Model(gpt2.Config(257, 128, 1, 16, 2)), chat)
    return folder


def sft(base: Path, tmp_path: Path, *options: str) -> int:
    data = tmp_path / "data.jsonl"
    line = json.dumps({"prompt": "Who bakes?", "completion": "Ada."})
    data.write_text("\n".join([line] * 8))
    sizes = ("--epochs", "1", "--batch-rows", "2", "--row-length", "64")
    return cli.main(["sft", "--model", str(base), "--data", str(data), "--output-dir", str(tmp_path / "run"), *sizes,
                     *options])  # fmt: skip


def test_without_a_template_it_says_how_to_choose_one(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sft(base, tmp_path) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "has no chat template; choose one, such as --chat-template plain" in said
    assert sft(base, tmp_path, "--chat-template", "chatloom") == 2  # the tokens it writes are not this tokenizer's
    assert "which is no special token of this tokenizer" in " ".join(capsys.readouterr().err.split())


def test_the_plain_template_goes_with_the_model(base: Path, tmp_path: Path) -> None:
    assert sft(base, tmp_path, "--chat-template", "plain") == 0
    opened = chatloom.load(tmp_path / "run")
    assert opened.chat_format.check() == []
    tokens = opened.prompt_tokens(TURNS)
    asked = "### user:\nWho bakes?\n### assistant:\nAda.<|endoftext|>### user:\nAnd?\n### assistant:\n"
    assert opened.tokenizer.decode(tokens, skip_special=False) == asked
    assert opened.chat_format.stop_tokens == (opened.tokenizer.eos,)


def test_the_loss_before_training_is_that_of_the_model_given(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--chat-template", "plain", "--learning-rate", "1e-9", "--evaluate-at-start")
    assert sft(base, tmp_path, *options) == 0
    said = " ".join(capsys.readouterr().out.split())
    [before] = re.findall(r"before training: before/loss ([0-9.]+)", said)
    last = read_metrics(tmp_path / "run" / "metrics.jsonl")[-1]
    assert float(before) == pytest.approx(last["validation/loss"], abs=2e-3)
