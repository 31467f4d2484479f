"""Best of n: sample n responses, keep the one that the reward prefers. The simplest use of a reward model.

Its distance from the policy is known without measuring: KL = log n - (n - 1) / n (Stiennon et al. 2020, appendix G.3).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chatloom.chat.message import Conversation
from chatloom.chat.render import ChatFormat
from chatloom.engine.request import SamplingParams
from chatloom.rl.rewards import Reward
from chatloom.rl.rollout import Generator, Rollout, collect

SAMPLED = SamplingParams(temperature=1.0, seed=0)


@dataclass(frozen=True, eq=False)
class Best:
    """The best of n responses to one prompt, and what the reward thought of all of them, in the order sampled."""

    rollout: Rollout
    score: float
    rollouts: tuple[Rollout, ...]
    scores: tuple[float, ...]


def best_of(
    engine: Generator,
    reward: Reward,
    prompts: Sequence[Conversation],
    num_samples: int,
    *,
    chat: ChatFormat,
    sampling: SamplingParams = SAMPLED,
) -> list[Best]:
    """The best of `num_samples` responses to each prompt; of equals the first sampled.

    Raises ValueError for temperature 0, where all samples of a prompt are the same.
    """
    if num_samples < 1:
        raise ValueError(f"num_samples is {num_samples}; it must be at least 1")
    if sampling.temperature == 0 and num_samples > 1:
        raise ValueError(
            f"at temperature 0 all {num_samples} samples of a prompt are the same; use a temperature above 0"
        )
    repeated = [prompt for prompt in prompts for _ in range(num_samples)]
    rollouts = collect(engine, chat, repeated, sampling)
    scores = reward.score(
        [rollout.answered for rollout in rollouts], stopped=[rollout.stopped for rollout in rollouts]
    ).tolist()
    chosen = []
    for start in range(0, len(rollouts), num_samples):
        own = scores[start : start + num_samples]
        best = max(range(num_samples), key=lambda index: own[index])
        group = tuple(rollouts[start : start + num_samples])
        chosen.append(Best(group[best], own[best], group, tuple(own)))
    return chosen


def best_of_kl(num_samples: int) -> float:
    """KL in nats between best-of-n and the policy it samples from."""
    return math.log(num_samples) - (num_samples - 1) / num_samples
