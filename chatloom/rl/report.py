"""The metrics of one PPO iteration, under the names that the field uses, over all ranks."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from chatloom.rl.config import PPOConfig
from chatloom.rl.experience import Experience, advantages_and_returns, total_of_ranks
from chatloom.rl.kl import estimate

# Of a trainer's own metrics: name there -> name here.
_ACTOR = {"loss": "loss", "grad_norm": "policy/grad_norm", "learning_rate": "learning_rate"}
_CRITIC = {"grad_norm": "value/grad_norm", "learning_rate": "value/learning_rate"}
_COUNTED = ("tokens", "tokens_per_second")


@dataclass
class StepLog:
    """Collects the metrics of an iteration's updates."""

    sums: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)
    num_tokens: float = 0.0

    def add_actor(self, metrics: dict[str, float]) -> None:
        """Take in one update of the policy."""
        self._add(metrics, _ACTOR)

    def add_critic(self, metrics: dict[str, float]) -> None:
        """Take in one update of the critic; its own loss is `value/loss`."""
        self._add({name: value for name, value in metrics.items() if name != "loss"}, _CRITIC)

    def _add(self, metrics: dict[str, float], names: dict[str, str]) -> None:
        self.num_tokens += metrics["tokens"]
        for name, value in metrics.items():
            if name not in _COUNTED:
                key = names.get(name, name)
                self.sums[key] = self.sums.get(key, 0.0) + value
                self.counts[key] = self.counts.get(key, 0) + 1

    def means(self) -> dict[str, float]:
        """Each metric's mean over the updates that reported it."""
        return {name: total / self.counts[name] for name, total in self.sums.items()}


def summarise(config: PPOConfig, experience: Experience, *, beta: float) -> dict[str, float]:
    """What the rollouts of an iteration were like, before learning from them."""
    mask, old, reference = experience.mask, experience.old_logprobs, experience.reference_logprobs
    kl = experience.kl
    charged = (estimate(old, reference, config.kl_penalty_estimator) * mask).sum(dim=1)
    stopped = torch.tensor([float(rollout.stopped) for rollout in experience.rollouts])
    an_episode = {
        "objective/kl": kl,
        "objective/kl_k3": (estimate(old, reference, "k3") * mask).sum(dim=1),
        "objective/score": experience.scores,
        "objective/raw_score": experience.raw_scores,
        "objective/rlhf_reward": experience.scores - beta * charged,
        "objective/response_length": mask.sum(dim=1).float(),
        "objective/stop_rate": stopped,
    }
    _, returns = advantages_and_returns(config, experience.rewards, experience.values, mask)
    errors = returns - experience.values
    a_token = {
        "returns": returns[mask],
        "returns_squared": returns[mask].square(),
        "errors": errors[mask],
        "errors_squared": errors[mask].square(),
    }
    if config.recompute_logprobs:
        a_token["rollout/logprob_difference"] = (old - experience.rollout_logprobs)[mask].abs()
    means = _means({**an_episode, **a_token})
    spread = means.pop("returns_squared") - means.pop("returns") ** 2
    unexplained = means.pop("errors_squared") - means.pop("errors") ** 2
    return {**means, "value/explained_variance": 1 - unexplained / max(spread, 1e-12), "kl/beta": beta}


def _means(values: dict[str, Tensor]) -> dict[str, float]:
    """Mean of each tensor over all ranks."""
    sums = torch.stack([tensor.double().sum() for tensor in values.values()])
    counts = torch.tensor([float(tensor.numel()) for tensor in values.values()], dtype=torch.float64)
    sums, counts = total_of_ranks(torch.stack([sums, counts]))
    return dict(zip(values, (sums / counts).tolist(), strict=True))
