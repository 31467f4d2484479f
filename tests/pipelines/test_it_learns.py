"""It learns, through the commands and out of the saved folder: SFT its demonstrations by heart, the RM a simple rule.

That PPO raises a known reward is in `tests/rl/test_ppo_loop.py`; that pretraining, SFT and the reward model lower
their losses step by step in `tests/golden`.
"""

import json
import random
from pathlib import Path
from typing import Any

import chatloom
from chatloom import checkpoint, cli
from chatloom.chat.message import Message
from chatloom.engine.request import SamplingParams
from chatloom.rl.rewards import RewardModelReward

HANDFUL = [
    [("user", "Who bakes?"), ("assistant", "Ada bakes the bread.")],
    [("user", "Who sings?"), ("assistant", "Bo sings at noon.")],
    [("user", "Who bakes at night?"), ("assistant", "I don't know.")],
    [("user", "Count to three."), ("assistant", "One, two, three.")],
    [("system", "Be short."), ("user", "Who bakes?"), ("assistant", "Ada.")],
    [("user", "Say hello."), ("assistant", "Hello!"), ("user", "Again."), ("assistant", "Hello again! 😀")],
]


def results(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "manifest.json").read_text())["results"]
    return found


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def test_sft_learns_a_handful_by_heart_and_stops(quickstart: Path, tmp_path: Path) -> None:
    conversations = [[{"role": role, "content": text} for role, text in turns] for turns in HANDFUL]
    data = write(tmp_path / "data.jsonl", [{"messages": turns} for turns in conversations])
    folder = tmp_path / "sft"
    arguments = ["sft", "--model", str(quickstart / "base"), "--data", data, "--validation-data", data]
    training = ["--epochs", "80", "--batch-rows", "8", "--row-length", "128", "--schedule", "linear"]
    muon = ["--optimizer", "muon", "--learning-rate", "1e-2", "--muon-learning-rate", "0.02"]
    assert cli.main([*arguments, *training, *muon, "--output-dir", str(folder)]) == 0
    assert results(folder)["loss"] < 0.1
    assert results(folder)["validation/loss"] < 0.1
    lm = chatloom.load(folder)
    for turns in conversations:
        for index, turn in enumerate(turns):
            if turn["role"] != "assistant":
                continue
            assert lm.chat(turns[:index], max_tokens=60) == turn["content"]
            sampling = SamplingParams(max_tokens=60, stop_tokens=lm.chat_format.stop_tokens)
            completion = lm.engine.generate([lm.prompt_tokens(turns[:index])], sampling)[0]
            assert completion.finish_reason == "stop"
            assert completion.tokens[-1] == lm.chat_format.end_of_turn


def test_the_reward_model_learns_a_rule(quickstart: Path, tmp_path: Path) -> None:
    """An answer that says "please" is better; on prompts that it has not seen, and as it was saved."""
    source = random.Random(0)
    words = ["the", "miller", "sings", "at", "noon", "and", "bread", "is", "baked", "by", "Ada", "in", "Redhill"]

    def answer(polite: bool) -> str:
        chosen = source.choices(words, k=6)
        if polite:
            chosen[source.randrange(6)] = "please"
        return " ".join(chosen) + "."

    def records(count: int) -> list[dict[str, Any]]:
        return [
            {
                "prompt": f"Say {' '.join(source.choices(words, k=2))}.",
                "responses": [answer(True), answer(False), answer(False)],
            }
            | {"ranks": [0, 1, 1]}
            for _ in range(count)
        ]

    data, held_out = write(tmp_path / "data.jsonl", records(200)), records(60)
    folder = tmp_path / "reward"
    arguments = ["reward", "--model", str(quickstart / "sft"), "--data", data, "--output-dir", str(folder)]
    arguments += ["--validation-data", write(tmp_path / "held_out.jsonl", held_out)]
    training = ["--epochs", "4", "--batch-rows", "8", "--row-length", "64", "--learning-rate", "3e-3"]
    assert cli.main([*arguments, *training]) == 0
    assert results(folder)["validation/accuracy"] > 0.9
    opened = checkpoint.load_reward(folder)
    reward = RewardModelReward(opened.model, opened.chat)
    asked = [
        (Message("user", record["prompt"]), Message("assistant", response))
        for record in held_out
        for response in record["responses"]
    ]
    scores = reward.score(asked).view(-1, 3)  # (prompts, responses)
    assert (scores[:, :1] > scores[:, 1:]).float().mean() > 0.9
    assert -1.5 < scores.mean() < 1.5  # normalised on the training answers
    assert 0.3 < scores.std() < 3
