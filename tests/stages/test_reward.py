"""What the reward stage says of held-out comparisons, against a pass over each of them alone."""

import json
import math
from pathlib import Path

import pytest
import torch

from chatloom import checkpoint
from chatloom.chat.message import Message
from chatloom.data.loader import GroupLoader
from chatloom.data.preference import Comparison, read_comparisons
from chatloom.stages import reward
from chatloom.train.metrics import read_metrics


def test_accuracy_and_calibration_are_those_of_the_pairs(quickstart: Path) -> None:
    config = reward.Config(
        model=str(quickstart / "sft"),
        data=str(quickstart / "comparisons" / "validation.jsonl"),
        output_dir="unused",
        train=reward.TrainConfig(dtype="fp32"),
    )
    pretrained = checkpoint.load_reward(quickstart / "reward")
    model = pretrained.model
    comparisons = read_comparisons(config.data)
    groups = reward._groups(comparisons, pretrained.chat)
    options = {"row_length": 256, "seed": 0, "pad": 0, "epochs": 1, "shuffle": False}
    found = reward.judge_held_out(model, GroupLoader(groups, batch_groups=3, **options), config)
    right, nats, error = [], [], 0.0
    for group in groups:
        scores = []
        for sample in group.samples:
            tokens = torch.from_numpy(sample.tokens)[None]
            scores.append(float(model.raw_scores(tokens, ends=torch.tensor([[0, len(sample) - 1]]))))
        margins = [
            scores[a] - scores[b]
            for a in range(len(scores))
            for b in range(len(scores))
            if group.ranks[a] < group.ranks[b]
        ]
        right += [margin > 0 for margin in margins]
        nats.append(sum(math.log1p(math.exp(-margin)) for margin in margins) / len(margins))
        error += sum(1 / (1 + math.exp(-abs(margin))) - (margin > 0) for margin in margins)
    assert found.accuracy.value == pytest.approx(sum(right) / len(right))
    assert found.metrics["validation/accuracy"] == pytest.approx(sum(right) / len(right))
    assert found.metrics["validation/loss"] == pytest.approx(sum(nats) / len(nats), rel=1e-4)
    # The error by bins is no less than the difference of the means.
    assert found.calibration.expected_error >= abs(error) / len(right) - 1e-6
    assert found.calibration.num_pairs == len(right)


def test_the_run_shows_them(quickstart: Path) -> None:
    assert (quickstart / "reward" / "calibration.svg").read_text(encoding="utf-8").startswith("<svg")
    last = read_metrics(quickstart / "reward" / "metrics.jsonl")[-1]
    manifest = json.loads((quickstart / "reward" / "manifest.json").read_text(encoding="utf-8"))
    found = manifest["results"]
    assert (
        found["held_out_accuracy"]["low"]
        < found["held_out_accuracy"]["value"]
        == pytest.approx(last["validation/accuracy"])
    )
    assert found["validation/calibration_error"] == last["validation/calibration_error"]


def test_an_answer_that_was_cut_is_read_without_an_end(quickstart: Path) -> None:
    chat = checkpoint.load_reward(quickstart / "reward").chat
    prompt = (Message("user", "Well?"),)
    ended, cut = (Comparison(prompt, ("yes", "no"), (0, 1), stopped) for stopped in ((), (True, False)))
    [one], [other] = reward._groups([ended], chat), reward._groups([cut], chat)
    assert one.samples[0].tokens.tolist() == other.samples[0].tokens.tolist()
    assert one.samples[1].tokens.tolist()[:-1] == other.samples[1].tokens.tolist()
