"""The whole ChatGPT recipe on a small invented world, on two CPU cores, in minutes.

Text → tokenizer → GPT → instructions → comparisons → reward model → PPO and PPO-ptx → report. The world is
`data/miniature.py`, where every fact is known, so that each stage's gain is measured and not believed. Every stage is
an ordinary one, with files as a user would have them; the report lists the commands. Steps, never seconds, decide how
long a stage runs, so the same seed gives the same weights on the same machine, however often it is interrupted.
"""

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from chatloom.chat.message import to_dicts
from chatloom.recipes import running
from chatloom.rl import training
from chatloom.rl.config import PPOConfig
from chatloom.stages import evaluate, ppo, pretrain, rank, reward, sft, tokenizer
from chatloom.tasks.miniature import Miniature
from chatloom.train.train_config import TrainConfig

_MINUTES = 5.0  # what the amounts of `stages` are for, on two cores
# Of everything that is sampled: rankings, rollouts and evaluation. A model this small and this briefly trained is too
# unsure of itself at 1; Ziegler et al. (2019) sampled at 0.7.
_TEMPERATURE = 0.8


@dataclass(frozen=True)
class Config:
    """Run the whole recipe on the embedded world; interrupted, the same command goes on where it stopped."""

    # Where everything is written.
    output_dir: str = "runs/quickstart"
    # Of everything that is random.
    seed: int = 0
    # One dial for the amount of work: about this long on two cores.
    minutes: float = _MINUTES
    # A run of seconds that exercises everything and learns little; for tests.
    tiny: bool = False

    def __post_init__(self) -> None:
        if not 0.5 <= self.minutes <= 1000:
            raise ValueError(f"minutes is {self.minutes}; it must be from 0.5 to 1000")
        if self.tiny and self.minutes != _MINUTES:
            raise ValueError("minutes would be ignored: tiny has a size of its own; leave one of them out")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be at least 0")


@dataclass(frozen=True)
class Amounts:
    """How much of everything; `Config.minutes` scales it."""

    documents: int = 30_000
    pretrain_steps: int = 175
    demonstrations: int = 41_000
    sft_epochs: int = 1
    ranked_prompts: int = 2_000
    ppo_prompts: int = 4_000
    ppo_iterations: int = 15
    episodes: int = 256
    evaluated: int = 400
    held_out_documents: int = 300
    vocab_size: int = 1536
    width: int = 128
    num_layers: int = 4


TINY = Amounts(
    documents=300,
    pretrain_steps=6,
    demonstrations=200,
    ranked_prompts=20,
    ppo_prompts=40,
    ppo_iterations=2,
    episodes=16,
    evaluated=12,
    held_out_documents=30,
    vocab_size=400,
    width=32,
    num_layers=2,
)


def amounts(config: Config) -> Amounts:
    """The amounts of a run: steps are counted, not timed."""
    if config.tiny:
        return TINY
    scale = config.minutes / _MINUTES
    base = Amounts()
    scaled = ("documents", "pretrain_steps", "demonstrations", "ranked_prompts", "ppo_prompts", "ppo_iterations")
    return replace(base, **{name: max(4, round(getattr(base, name) * scale)) for name in scaled})


def tiny(output_dir: str) -> Config:
    """The quickstart in seconds."""
    return Config(output_dir=output_dir, tiny=True)


def stages(config: Config) -> dict[str, tuple[Any, Any]]:
    """Name -> (stage module, its config), in the order in which they run."""
    size, root, seed = amounts(config), Path(config.output_dir), config.seed
    data = {name: str(root / "data" / f"{name}.jsonl") for name in ("corpus", "demonstrations", "prompts")}
    folder = {
        name: str(root / name)
        for name in ("tokenizer", "base", "sft", "comparisons", "reward", "ppo", "ppo_without_ptx", "evaluation")
    }
    shared: dict[str, Any] = {"dtype": "bf16", "seed": seed, "row_length": 128, "weight_decay": 0.0}
    muon: dict[str, Any] = {"optimizer": "muon", **shared}
    with_ptx = ppo.Config(
        model=folder["sft"],
        reward=folder["reward"],
        data=data["prompts"],
        output_dir=folder["ppo"],
        ptx_data=data["corpus"],
        gold_task="miniature",
        rollout_dtype="bf16",
        ppo=PPOConfig(
            iterations=size.ppo_iterations,
            episodes_per_iteration=size.episodes,
            epochs_per_batch=1,
            minibatches=4,
            actor_learning_rate=1.5e-4,
            critic_learning_rate=1e-3,
            whiten_rewards=False,
            clip_value=None,
            critic_only_iterations=1,
            anneal_learning_rate=True,
            warmup_iterations=1,
            kl_coefficient=0.2,
            actor_ema_decay=None,
            ptx_coefficient=0.1,
            ptx_rows=8,
            rollout_temperature=_TEMPERATURE,
            recompute_logprobs=False,
        ),
        train=replace(training.BASE, dtype="bf16", seed=seed, row_length=128, save_every_steps=5),
    )
    return {
        "tokenizer": (
            tokenizer,
            tokenizer.Config(
                data=data["corpus"],
                output_dir=folder["tokenizer"],
                vocab_size=size.vocab_size,
                num_documents=3_000,
            ),
        ),
        "base": (
            pretrain,
            pretrain.Config(
                data=data["corpus"],
                output_dir=folder["base"],
                tokenizer=folder["tokenizer"],
                width=size.width,
                num_layers=size.num_layers,
                inner_width=3 * size.width,
                steps=size.pretrain_steps,
                train=TrainConfig(
                    **muon | {"row_length": 256},
                    learning_rate=3e-3,
                    schedule="warmdown",
                    warmup_steps=5,
                    final_learning_rate_ratio=0.0,
                    batch_rows=32,
                ),
            ),
        ),
        "sft": (
            sft,
            sft.Config(
                model=folder["base"],
                data=data["demonstrations"],
                output_dir=folder["sft"],
                pretraining_data=data["corpus"],
                epochs=size.sft_epochs,
                train=TrainConfig(
                    **muon,
                    learning_rate=2e-3,
                    muon_learning_rate=0.015,
                    schedule="linear",
                    warmup_steps=10,
                    final_learning_rate_ratio=0.0,
                    batch_rows=64,
                ),
            ),
        ),
        "comparisons": (
            rank,
            rank.Config(
                model=folder["sft"],
                output_dir=folder["comparisons"],
                num_prompts=size.ranked_prompts,
                temperature=_TEMPERATURE,
                dtype="bf16",
                seed=seed,
            ),
        ),
        "reward": (
            reward,
            reward.Config(
                model=folder["sft"],
                data=str(Path(folder["comparisons"]) / rank.TRAIN),
                validation_data=str(Path(folder["comparisons"]) / rank.VALIDATION),
                output_dir=folder["reward"],
                train=TrainConfig(**shared, learning_rate=1e-3, schedule="cosine", warmup_steps=2, batch_rows=16),
            ),
        ),
        "ppo": (ppo, with_ptx),
        "ppo_without_ptx": (
            ppo,
            replace(
                with_ptx,
                output_dir=folder["ppo_without_ptx"],
                ptx_data=None,
                ppo=replace(with_ptx.ppo, ptx_coefficient=0.0),
            ),
        ),
        "evaluation": (
            evaluate,
            evaluate.Config(
                model=folder["sft"],
                base=folder["base"],
                reward=folder["reward"],
                ppo=folder["ppo_without_ptx"],
                ppo_ptx=folder["ppo"],
                output_dir=folder["evaluation"],
                num_prompts=size.evaluated,
                num_documents=size.held_out_documents,
                temperature=_TEMPERATURE,
                dtype="bf16",
                seed=seed,
            ),
        ),
    }


def run(config: Config) -> dict[str, Any]:
    """Write the world, run every stage that is not done, and show what came of it."""
    started = time.monotonic()
    root, size = Path(config.output_dir), amounts(config)
    running.claim(root, config, recipe="quickstart")
    _write_world(root / "data", size, config.seed)
    steps = stages(config)
    found = running.run_stages(steps)
    running.publish(found, steps["evaluation"][1])
    running.show(found, root, time.monotonic() - started)
    return {"report": str(root / "report.html")}


def _write_world(folder: Path, size: Amounts, seed: int) -> None:
    """The corpus, the demonstrations and the prompts, as files that a user might have."""
    world = Miniature()
    running.write_lines(folder / "corpus.jsonl", ({"text": text} for text in world.documents(seed, size.documents)))
    running.write_lines(
        folder / "demonstrations.jsonl",
        ({"messages": to_dicts(each)} for each in world.demonstrations(size.demonstrations, seed=seed)),
    )
    running.write_lines(
        folder / "prompts.jsonl",
        (each.to_record() for each in world.examples("feedback", size.ppo_prompts, seed=seed + 1)),
    )
