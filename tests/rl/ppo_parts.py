"""A complete PPO on tiny random models, of which a test changes what it is about."""

from collections.abc import Callable
from typing import Any

import torch

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


PROMPTS: list[Conversation] = [(Message("user", text),) for text in ("a", "bcd", "efghij", "kl", "mnopq")]

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


def build_ppo(**changes: Any) -> PPO:
    """PPO with config fields changed, and parts: PPO's own arguments, `policy` and `run_folder`."""
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
        "prompts": PROMPTS,
    }
    chat = ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)
    return PPO(config, actor=actor, critic=critic, chat=chat, **{**defaults, **given})


def pretraining(rows: int = 6) -> dict[str, torch.Tensor]:
    """Packed rows of random lower-case letters."""
    tokens = torch.randint(97, 123, (rows, 24), generator=torch.Generator().manual_seed(3))
    targets = tokens.roll(-1, dims=1)
    targets[:, -1] = -100
    return {"tokens": tokens, "documents": torch.ones_like(tokens), "targets": targets}
