"""A complete PPO on tiny random models, of which a test changes what it is about."""

from collections.abc import Callable
from typing import Any

import pytest

from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.engine.engine import Engine
from chatloom.models import ValueModel
from chatloom.rl.config import PPOConfig
from chatloom.rl.loop import PPO
from chatloom.rl.rewards import RuleReward
from chatloom.rl.training import actor_objective, actor_training, critic_objective, critic_training, num_updates
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.train.trainer import Trainer

MakePPO = Callable[..., PPO]


def letters(conversation: Conversation) -> float:
    """Share of the response's characters that are letters; about a fifth for random bytes."""
    text = conversation[-1].content
    return sum(character.isascii() and character.isalpha() for character in text) / max(1, len(text))


SMALL: dict[str, Any] = {
    "iterations": 4,
    "episodes_per_iteration": 8,
    "epochs_per_batch": 2,
    "minibatches": 2,
    "max_response_tokens": 8,
    "actor_learning_rate": 1e-3,
    "critic_learning_rate": 1e-3,
    "warmup_iterations": 0,
    "ptx_coefficient": 0.0,
    "missing_stop": None,
}


@pytest.fixture
def chat() -> ChatFormat:
    return ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)


@pytest.fixture
def prompts() -> list[Conversation]:
    return [(Message("user", text),) for text in ("a", "bcd", "efghij", "kl", "mnopq")]


@pytest.fixture
def make_ppo(chat: ChatFormat, prompts: list[Conversation]) -> MakePPO:
    """`make_ppo(config field=value, ..., part=value, ...)`; parts are PPO's own arguments and `run_folder`."""

    def make(**changes: Any) -> PPO:
        parts = {"reference", "reward", "engine", "prompts", "ptx", "seed", "run_folder", "policy"}
        given = {name: changes.pop(name) for name in list(changes) if name in parts}
        config = PPOConfig(**{**SMALL, **changes})
        policy = given.pop("policy", None) or tiny_llama()
        folder = given.pop("run_folder", None)
        actor = Trainer(
            policy,
            actor_objective(config),
            actor_training(config),
            total_steps=num_updates(config, of="actor"),
            run_folder=folder,
        )
        critic = Trainer(
            ValueModel(tiny_llama(1)),
            critic_objective(config),
            critic_training(config),
            total_steps=num_updates(config, of="critic"),
        )
        defaults: dict[str, Any] = {
            "reference": tiny_llama(),
            "reward": RuleReward(letters),
            "engine": Engine(policy, byte_tokenizer()),
            "prompts": prompts,
        }
        return PPO(config, actor=actor, critic=critic, chat=chat, **{**defaults, **given})

    return make
