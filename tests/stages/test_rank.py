"""Comparisons as the rank stage writes them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.checkpoint import save_pretrained
from chatloom.data.preference import read_comparisons
from chatloom.rl.rollout import Rollout
from chatloom.stages import rank
from chatloom.tasks import Example
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer


def test_an_answer_that_was_cut_is_known_in_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The labeler is told (the same words rank lower when they were cut), and so is who reads the file."""

    def answers(config: rank.Config, examples: Sequence[Example], counts: Sequence[int]) -> list[list[Rollout]]:
        return [
            [
                Rollout(example.prompt, [1], [2], [0.0], text, stopped)
                for text, stopped in ((example.reference, True), (example.reference, False), ("Hm", True))
            ]
            for example in examples
        ]

    save_pretrained(tmp_path / "m", tiny_llama(), ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE))
    monkeypatch.setattr(rank, "_sample", answers)
    config = rank.Config(str(tmp_path / "m"), str(tmp_path / "out"), num_prompts=4, agreement=1.0)
    rank.run(config)
    lines = (tmp_path / "out" / "comparisons.jsonl").read_text().splitlines()
    for line in lines:
        whole, cut, other = json.loads(line)["responses"]
        assert [each["finish_reason"] for each in (whole, cut, other)] == ["stop", "length", "stop"]
        assert whole["rank"] < cut["rank"]
    assert len(read_comparisons(tmp_path / "out" / "comparisons.jsonl")) == len(lines) == 3
