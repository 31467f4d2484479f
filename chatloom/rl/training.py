"""From PPO's options to the two trainers: the actor's and the critic's objective and training config."""

import hashlib
from collections.abc import Callable

import torch

from chatloom import config as configuration
from chatloom import runtime
from chatloom.data.pack import Batch
from chatloom.objectives import Objective, ppo
from chatloom.rl.config import PPOConfig
from chatloom.train.train_config import TrainConfig

# What InstructGPT and Ziegler et al. do not decay, we do not either: the KL penalty holds the weights.
BASE = TrainConfig(weight_decay=0.0, schedule="constant", max_loss_ratio=None)


def actor_objective(config: PPOConfig) -> Objective:
    """The clipped policy loss, with ptx where the batch brings it."""
    return ppo.policy(
        clip=config.clip,
        clip_high=config.clip_high,
        dual_clip=config.dual_clip,
        temperature=config.rollout_temperature,
        entropy_coefficient=config.entropy_coefficient,
        importance_cap=config.importance_cap,
    )


def critic_objective(config: PPOConfig) -> Objective:
    """The clipped value loss."""
    return ppo.value(clip=config.clip_value, coefficient=config.value_coefficient)


def num_updates(config: PPOConfig, *, of: str) -> int:
    """Optimiser steps of the "actor" or the "critic" in the whole run: the trainer's `total_steps`."""
    assert of in ("actor", "critic")
    rounds = config.iterations - (config.critic_only_iterations if of == "actor" else 0)
    if rounds < 1:
        raise ValueError(
            f"critic_only_iterations is {config.critic_only_iterations} of {config.iterations} iterations, so the "
            "actor would never learn; lower it or raise iterations"
        )
    return rounds * config.epochs_per_batch * config.minibatches


def actor_training(config: PPOConfig, *, base: TrainConfig = BASE) -> TrainConfig:
    """`base` with everything that PPO's config says about the actor's optimiser."""
    return _training(config, base, learning_rate=config.actor_learning_rate, ema_decay=config.actor_ema_decay)


def critic_training(config: PPOConfig, *, base: TrainConfig = BASE) -> TrainConfig:
    """`base` with everything that PPO's config says about the critic's optimiser. The critic needs no average."""
    return _training(config, base, learning_rate=config.critic_learning_rate, ema_decay=None)


def _training(config: PPOConfig, base: TrainConfig, *, learning_rate: float, ema_decay: float | None) -> TrainConfig:
    return configuration.override(
        base,
        optimizer="adamw",
        learning_rate=learning_rate,
        epsilon=config.adam_epsilon,
        schedule="linear" if config.anneal_learning_rate else "constant",
        final_learning_rate_ratio=0.0,
        warmup_steps=config.warmup_iterations * config.epochs_per_batch * config.minibatches,
        warmup_start=config.warmup_from,
        ema_decay=ema_decay,
        dropout=0.0 if config.dropout_off else base.dropout,
        max_loss_ratio=None,  # neither loss is in nats: a healthy policy loss is near 0 and of either sign
    )


def pretraining_rows(batch: Batch, *, rows: int, seed: int) -> Callable[[int], Batch]:
    """A source of ptx batches that is a pure function of the update's number, so it has nothing to resume.

    Args:
        batch: packed pretraining text: tokens, documents and targets (R, T), all that may be drawn from.
        rows: rows an update on each rank. Every row is seen once before any is seen twice.
        seed: of the order, which is another one each time round.

    Returns:
        step -> batch of `rows` rows; ranks get different ones.
    """
    total = len(batch["tokens"])
    if total < 1:
        raise ValueError("there is no pretraining text for ptx; give some, or set ptx_coefficient to 0")

    def at(step: int) -> Batch:
        first = (step * runtime.world_size() + runtime.rank()) * rows
        chosen = torch.tensor(shuffled(total, first, rows, seed=stream_seed(seed, "ptx")))
        return {name: batch[name][chosen] for name in ("tokens", "documents", "targets")}

    return at


def shuffled(size: int, first: int, count: int, *, seed: int) -> list[int]:
    """Entries `first` to `first + count` of an endless sequence of shuffles of 0 .. size - 1, each seeded anew."""
    orders: dict[int, list[int]] = {}
    chosen = []
    for number in range(first, first + count):
        epoch, place = divmod(number, size)
        if epoch not in orders:
            generator = torch.Generator().manual_seed(stream_seed(seed, epoch))
            orders[epoch] = torch.randperm(size, generator=generator).tolist()
        chosen.append(orders[epoch][place])
    return chosen


def stream_seed(*parts: int | str) -> int:
    """A seed for each purpose, iteration and rank, so that everything random is a function of where training is."""
    digest = hashlib.blake2b(":".join(map(str, parts)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)
