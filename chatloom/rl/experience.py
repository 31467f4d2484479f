"""What one iteration's rollouts teach: log-probabilities, KL, scores, rewards, values, and advantages from them.

Everything is of the rollouts of this rank, (N,) a response or (N, L) a token, on the CPU. Numbers that depend on other
responses (whitening) are computed over all ranks, so they do not depend on how episodes are spread.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatloom import runtime
from chatloom.rl.advantages import gae, whiten
from chatloom.rl.config import PPOConfig
from chatloom.rl.rollout import PackedEpisodes, Rollout


@dataclass(frozen=True, eq=False)
class Experience:
    """One iteration's episodes and what was computed of them before learning."""

    rollouts: Sequence[Rollout]
    minibatches: Sequence[tuple[Tensor, PackedEpisodes]]  # of the first pass: which episodes, and their rows
    mask: Tensor  # (N, L) bool
    rollout_logprobs: Tensor  # (N, L) the engine's
    old_logprobs: Tensor  # (N, L) what the ratio is against
    reference_logprobs: Tensor  # (N, L)
    values: Tensor  # (N, L)
    raw_scores: Tensor  # (N,) as the reward gave them
    scores: Tensor  # (N,) as they are used: normalised, with missing stops, clipped
    rewards: Tensor  # (N, L) score and KL penalty

    @property
    def kl(self) -> Tensor:
        """(N,) k1 of each episode in nats."""
        return ((self.old_logprobs - self.reference_logprobs) * self.mask).sum(dim=1)


@dataclass
class RewardScale:
    """Mean and deviation of the reward on the first rollouts (detail 8, "reference"); 0 and 1 change nothing."""

    mean: float = 0.0
    deviation: float = 1.0

    def measure(self, scores: Tensor) -> None:
        """Take them from the reference policy's scores (N,), over all ranks."""
        wide = scores.double()
        sums = torch.stack([wide.new_tensor(len(wide)), wide.sum(), wide.square().sum()])
        count, total, squares = total_of_ranks(sums).tolist()
        self.mean = total / count
        variance = squares / count - self.mean**2
        if variance < 1e-12:
            raise ValueError(
                f"all {int(count)} responses of the reference policy got the reward {self.mean:.4g}, so there is no "
                "deviation to normalise by; use reward_normalisation='saved', or look at the reward"
            )
        self.deviation = variance**0.5

    def apply(self, scores: Tensor) -> Tensor:
        """Scores (N,) with the reference at mean 0 and deviation 1."""
        return (scores - self.mean) / self.deviation


def total_of_ranks(tensor: Tensor) -> Tensor:
    """Sum of a CPU tensor over ranks, by way of the device that ranks talk through."""
    if runtime.world_size() == 1:
        return tensor
    return runtime.sum_across_ranks(tensor.to(runtime.pick_device())).cpu()


def settle_scores(config: PPOConfig, scores: Tensor, stopped: Tensor) -> Tensor:
    """Scores (N,) after what the config says about responses without a stop (detail 12), clipped."""
    value = -1.0 if config.missing_stop_value is None else config.missing_stop_value
    if config.missing_stop == "reject":
        scores = torch.where(stopped, scores, torch.full_like(scores, value))
    elif config.missing_stop == "penalty":
        scores = torch.where(stopped, scores, scores + value)
    if config.reward_clip is not None:
        scores = scores.clamp(-config.reward_clip, config.reward_clip)
    return scores


def advantages_and_returns(config: PPOConfig, rewards: Tensor, values: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Whiten rewards, estimate advantages, whiten them (details 13 and 15): two of (N, L).

    Returns for the critic are the advantages before whitening plus the values.
    """
    if config.whiten_rewards:
        rewards = whiten(rewards, mask, shift_mean=False, reduce=total_of_ranks)
    advantages = gae(rewards, values, mask, gamma=config.gamma, lambda_=config.gae_lambda)
    returns = (advantages + values) * mask
    if config.whiten_advantages:
        advantages = whiten(advantages, mask, shift_mean=True, reduce=total_of_ranks)
    return advantages, returns
