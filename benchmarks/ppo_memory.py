"""Memory of an iteration of PPO with LoRA on SmolLM2-135M-Instruct, against one model's weights plus activations.

Run `.venv/bin/python benchmarks/ppo_memory.py`.

Counted, not sampled: the bytes of all tensors that are alive at a time (`stages.memory.LiveBytes`), the most of a
rollout, scoring and an update of policy and critic. What it is held against is an update of one such model by itself,
all its weights frozen but the adapter: weights in fp32, as a model is opened, and the activations of the same rows.
"""

from dataclasses import dataclass, replace

import torch
import tyro
from rich.console import Console

from chatloom import adapters, checkpoint, models
from chatloom.adapters import AdapterConfig
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.models import Decoder, RewardModel
from chatloom.objectives.causal_lm import causal_lm
from chatloom.rl.config import PPOConfig
from chatloom.rl.rewards import critic_from
from chatloom.rl.training import BASE, actor_objective, critic_objective
from chatloom.stages.memory import LiveBytes
from chatloom.stages.ppo import _reference
from chatloom.train.train_config import TrainConfig
from chatloom.train.trainer import Trainer

GOAL = 1.6
LORA = AdapterConfig(adapter="lora")
console = Console(width=110, highlight=False)


@dataclass(frozen=True)
class Config:
    """Count PPO's bytes."""

    model: str = "smollm2"
    # Rows of an update and their tokens, of which the second half is the answer.
    rows: int = 8
    row_length: int = 128
    threads: int = 2


def opened(config: Config) -> checkpoint.Pretrained:
    """The model, as every stage opens it."""
    return checkpoint.load_pretrained(config.model, dtype="fp32", device=torch.device("cpu"))


def batch_of(config: Config) -> dict[str, torch.Tensor]:
    """Rows that are full."""
    tokens = torch.randint(1000, (config.rows, config.row_length), generator=torch.Generator().manual_seed(0))
    return {"tokens": tokens, "documents": torch.ones_like(tokens, dtype=torch.int32)}


def alone(config: Config) -> int:
    """Bytes of one model's weights and activations: the peak of an update of its adapter."""
    model = opened(config).model
    adapters.attach(model, LORA, names=models.stored_names(model))
    trainer = Trainer(model, causal_lm, TrainConfig(dtype="bf16"), total_steps=2)
    batch = batch_of(config)
    targets = torch.where(torch.arange(config.row_length) < config.row_length // 2, -100, batch["tokens"])
    live = LiveBytes()
    live.watch(model)
    with live:
        trainer.step([batch | {"targets": targets}])
    return live.peak


def four(config: Config) -> dict[str, int]:
    """Bytes of policy, reference, reward model and critic: at rest, and the peaks of the parts of an iteration."""
    pretrained = opened(config)
    policy: Decoder = pretrained.model
    policy.requires_grad_(False)
    rewarded = RewardModel(adapters.shared(policy))
    for trunk in (rewarded.trunk, policy):
        adapters.attach(trunk, LORA, names=models.stored_names(policy))
    adapters.hold_frozen(policy, torch.bfloat16)
    critic = critic_from(rewarded, "zero")
    rewarded.requires_grad_(False)
    reference, options = _reference(policy), PPOConfig()
    engine = Engine(policy, pretrained.tokenizer, max_batch=256, autocast="bf16")
    base = replace(BASE, dtype="bf16")
    actor = Trainer(policy, actor_objective(options), base, total_steps=2)
    learner = Trainer(critic, critic_objective(options), base, total_steps=2)
    batch = batch_of(config)
    answer = config.row_length // 2
    actions = (torch.arange(config.row_length) >= answer).expand(config.rows, -1)
    numbers = {
        name: torch.zeros(batch["tokens"].shape) for name in ("old_logprobs", "advantages", "old_values", "returns")
    }
    ends = torch.tensor([[row, config.row_length - 1] for row in range(config.rows)])
    live, peaks = LiveBytes(), dict[str, int]()
    for module in (policy, critic, reference, rewarded):
        live.watch(module)
    peaks["at rest, before the first update"] = live.now
    with live:
        for name, work in {
            "rollout": lambda: engine.generate(
                batch["tokens"][:, :answer].tolist(), SamplingParams(max_tokens=answer, temperature=1.0, seed=0)
            ),
            "scoring": lambda: _score(rewarded, reference, critic, batch, ends),
            "update of the policy": lambda: actor.step([batch | numbers | {"actions": actions}]),
            "update of the critic": lambda: learner.step([batch | numbers | {"actions": actions}]),
        }.items():
            live.peak = live.now
            work()
            peaks[name] = live.peak
    return peaks


def _score(
    rewarded: RewardModel,
    reference: Decoder,
    critic: torch.nn.Module,
    batch: dict[str, torch.Tensor],
    ends: torch.Tensor,
) -> None:
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        rewarded(batch["tokens"], documents=batch["documents"], ends=ends)
        reference.hidden(batch["tokens"], documents=batch["documents"])
        critic(batch["tokens"], documents=batch["documents"])


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    one, peaks = alone(config), four(config)
    console.print(f"one model, weights plus activations of {config.rows} x {config.row_length}: {one / 1e6:,.0f} MB")
    for name, peak in peaks.items():
        console.print(f"PPO, {name}: {peak / 1e6:,.0f} MB")
    ratio = max(peaks.values()) / one
    console.print(f"PPO's peak is {ratio:.2f} times that (goal: at most {GOAL})")


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
