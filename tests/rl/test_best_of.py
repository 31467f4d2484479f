import math
from itertools import cycle

import pytest

from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat
from chatloom.engine.request import SamplingParams
from chatloom.rl.best_of import best_of, best_of_kl
from chatloom.rl.rewards import RuleReward
from chatloom.testing.engine import ScriptedEngine
from chatloom.testing.tokenizer import byte_tokenizer


def length(conversation: Conversation) -> float:
    return len(conversation[-1].content)


def test_keeps_what_the_reward_prefers(chat: ChatFormat) -> None:
    answers = cycle(["aa", "bbbb", "c", "dddd"])
    engine = ScriptedEngine(byte_tokenizer(), lambda prompt: next(answers))
    prompts = [(Message("user", "one"),), (Message("user", "two"),)]
    chosen = best_of(engine, RuleReward(length), prompts, 4, chat=chat)
    assert [best.rollout.text for best in chosen] == ["bbbb", "bbbb"]  # the first of equals
    assert chosen[0].scores == (2, 4, 1, 4)
    assert chosen[0].score == 4
    assert [best.rollout.conversation for best in chosen] == prompts
    assert len(chosen[1].rollouts) == 4


def test_refusals(chat: ChatFormat) -> None:
    engine = ScriptedEngine(byte_tokenizer(), lambda prompt: "x")
    with pytest.raises(ValueError, match="at least 1"):
        best_of(engine, RuleReward(length), [], 0, chat=chat)
    with pytest.raises(ValueError, match="at temperature 0"):
        best_of(engine, RuleReward(length), [], 2, chat=chat, sampling=SamplingParams())


def test_its_distance_is_known() -> None:
    assert best_of_kl(1) == 0
    assert best_of_kl(4) == pytest.approx(math.log(4) - 0.75)
