"""Rewards are interchangeable, and the reward model reads what it was trained on."""

from typing import Any

import pytest
import torch

from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat
from chatloom.models import RewardModel
from chatloom.rl import rewards
from chatloom.rl.rewards import Reward, RewardModelReward, RuleReward, TaskReward, scored_samples
from chatloom.tasks.example import Example, Grade
from chatloom.testing.models import tiny_llama


def asked(text: str) -> Conversation:
    return (Message("user", text),)


def answered(question: str, answer: str) -> Conversation:
    return (Message("user", question), Message("assistant", answer))


class Echo:
    """A task: repeat the question."""

    name = "echo"

    def examples(self, split: str, count: int, seed: int = 0) -> list[Example]:
        return [Example(f"echo-{i}", asked(f"say {i}"), "copy", f"{i}", {"answer": f"{i}"}) for i in range(count)]

    def prompt(self, example: Example) -> Conversation:
        return example.prompt

    def grade(self, example: Example, answer: str, *, stopped: bool = True) -> Grade:
        right = answer == example.check["answer"]
        return Grade(float(right) - (0.0 if stopped else 0.5), right, {})


def test_rule_and_task() -> None:
    rule: Reward = RuleReward(lambda conversation: len(conversation[-1].content))
    assert rule.score([answered("a", "xyz"), answered("b", "")]).tolist() == [3, 0]
    task = Echo()
    reward: Reward = TaskReward(task, task.examples("train", 3))
    replies = [answered("say 0", "0"), answered("say 1", "7"), answered("say 2", "2")]
    assert reward.score(replies).tolist() == [1, 0, 1]
    assert reward.score(replies, stopped=[True, True, False]).tolist() == [1, 0, 0.5]
    with pytest.raises(ValueError, match="none of this reward's 3 examples"):
        reward.score([answered("say 9", "9")])


def test_one_prompt_with_two_checks_is_refused() -> None:
    task = Echo()
    example = task.examples("train", 1)[0]
    other = Example("other", example.prompt, "copy", "x", {"answer": "x"})
    with pytest.raises(ValueError, match="echo-0 and other"):
        TaskReward(task, [example, other])


def test_the_score_is_read_at_the_end_of_turn(chat: ChatFormat) -> None:
    stopped, cut, empty = scored_samples(
        chat, [answered("q", "yes"), answered("q", "yes"), answered("q", "")], stopped=[True, False, False]
    )
    assert stopped.tokens[-1] == chat.end_of_turn
    assert cut.tokens.tolist() == stopped.tokens[:-1].tolist()
    assert empty.tokens[-1] == chat.end_of_turn
    assert stopped.tokens.tolist() == [*chat.prompt(asked("q")), *chat.tokenizer.encode("yes"), chat.end_of_turn]
    assert stopped.fields["reply"].sum() == 4
    with pytest.raises(ValueError, match="ends with a user turn"):
        scored_samples(chat, [asked("q"), answered("q", "a")][:1])


def conversations() -> list[Conversation]:
    return [answered("q" * (1 + index % 5), "answer"[: index % 6]) for index in range(13)]


def test_batched_is_alone_and_a_plain_forward(chat: ChatFormat) -> None:
    model = RewardModel(tiny_llama())
    model.gain, model.bias = 2.0, -1.0
    together = RewardModelReward(model, chat, batch_rows=2).score(conversations())
    reward = RewardModelReward(model, chat)
    for conversation, score in zip(conversations(), together.tolist()):
        assert reward.score([conversation]).item() == pytest.approx(score, abs=1e-4)
        tokens = torch.tensor([chat.render(conversation).tokens])
        plain = model(tokens, ends=torch.tensor([[0, tokens.shape[1] - 1]]))
        assert plain.item() == pytest.approx(score, abs=1e-4)
    assert reward.score([]).tolist() == []


def test_few_rows_at_a_time_where_they_are_long(chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    model = RewardModel(tiny_llama())
    expected = RewardModelReward(model, chat).score(conversations())
    sizes = []
    read = model.raw_scores

    def noted(tokens: torch.Tensor, **options: torch.Tensor) -> torch.Tensor:
        sizes.append(tokens.numel())
        return read(tokens, **options)

    monkeypatch.setattr(model, "raw_scores", noted)
    monkeypatch.setattr(rewards, "_MOST_TOKENS", 1)
    torch.testing.assert_close(RewardModelReward(model, chat, row_length=64).score(conversations()), expected)
    assert len(sizes) > 1
    assert max(sizes) == 64


def test_scoring_leaves_the_mode_and_ignores_dropout(chat: ChatFormat) -> None:
    model = RewardModel(tiny_llama())
    model.trunk.set_dropout(0.5)
    model.train()
    model.trunk.blocks[0].eval()
    reward = RewardModelReward(model, chat)
    assert torch.equal(reward.score(conversations()), reward.score(conversations()))
    assert model.training
    assert not model.trunk.blocks[0].training


def test_longer_than_the_context_keeps_the_end(chat: ChatFormat) -> None:
    reward = RewardModelReward(RewardModel(tiny_llama()), chat)
    long: Any = [answered("z" * 100, "yes"), answered("z" * 100, "no")]
    one, two = reward.score(long).tolist()
    assert one != two
