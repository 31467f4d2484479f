"""Learning to score from comparisons (InstructGPT: Ouyang et al. 2022, eq. 1).

Facts worth knowing:
* All C(K, 2) pairs of a prompt are one element of the batch, weighted 1/pairs. Shuffling pairs as if they were
  independent made the paper's reward model overfit in one epoch; this way each response is also read only once.
* Ties are dropped, so a prompt is divided by its number of *strict* pairs.
* Training compares raw scores. A difference of scores does not change with a bias, but a head without one stays
  arbitrary by a constant; gain and bias are therefore set afterwards, on reference responses (`normalise`), and
  saved with the model.
"""

from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatloom.objectives import Loss, Objective


class _Scored(Protocol):
    """What `normalise` sets."""

    gain: float
    bias: float


def pairwise(model: nn.Module, batch: dict[str, Tensor]) -> Loss:
    """Eq. 1 on raw scores, without a centring term: see `reward_objective`."""
    return _PAIRWISE(model, batch)


def reward_objective(*, centering: float = 0.0, normalised: bool = False) -> Objective:
    """Make the objective of a reward model.

    Args:
        centering: coefficient of (score_a + score_b)^2, which keeps scores near zero (Eisenstein et al. 2023; TRL
            recommends 0.01). It only removes drift; the preference loss cannot see it.
        normalised: compare gain * raw + bias instead of raw scores, for a model that was normalised before training
            (Ziegler et al. 2019). The gain then scales the gradient.

    Returns:
        `(model, batch) -> Loss`: total is the sum over prompts, weight the number of prompts with a strict pair.
        The batch holds tokens and documents (B, T), ends (N, 2) the row and column of each response's last token,
        groups (N,) the prompt it answers, ranks (N,) with 0 the best and equal ranks a tie.
    """
    if not centering >= 0:
        raise ValueError(f"centering is {centering}; it is a coefficient and must be 0 (off) or above, such as 0.01")

    def objective(model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        score = model if normalised else model.raw_scores
        scores: Tensor = score(batch["tokens"], documents=batch["documents"], ends=batch["ends"])  # type: ignore[operator]
        return comparison_loss(scores.float(), groups=batch["groups"], ranks=batch["ranks"], centering=centering)

    return objective


def comparison_loss(scores: Tensor, *, groups: Tensor, ranks: Tensor, centering: float = 0.0) -> Loss:
    """Bradley-Terry over all strict pairs within each group, averaged within and summed over groups. All (N,)."""
    better, worse = strict_pairs(groups, ranks)
    margins = scores[better] - scores[worse]  # (P,)
    prompts, prompt = torch.unique(groups[better], return_inverse=True)
    share = 1.0 / torch.bincount(prompt, minlength=len(prompts))[prompt].to(margins.dtype)  # 1 / pairs of the prompt
    losses = F.softplus(-margins)  # -log sigmoid(margin)
    if centering:
        losses = losses + centering * (scores[better] + scores[worse]).square()
    num_pairs = scores.new_tensor(float(len(margins)))
    # A batch of ties alone has no pair; the sum over scores keeps the graph (and other ranks' backward) alive.
    total = (losses * share).sum() + 0.0 * scores.sum()
    metrics = {
        "accuracy": ((margins > 0).to(margins.dtype).sum().detach(), num_pairs),
        "rewards/margins": (margins.detach().sum(), num_pairs),
        "rewards/mean": (scores.detach().sum(), scores.new_tensor(float(len(scores)))),
    }
    return Loss(total, scores.new_tensor(float(len(prompts))), metrics)


def strict_pairs(groups: Tensor, ranks: Tensor) -> tuple[Tensor, Tensor]:
    """Indices (better, worse), each (P,), of all pairs of one group whose ranks differ."""
    same_prompt = groups[:, None] == groups[None, :]
    pairs = (same_prompt & (ranks[:, None] < ranks[None, :])).nonzero()
    return pairs[:, 0], pairs[:, 1]


def normalise(model: _Scored, *, scores: Tensor) -> None:
    """Set gain and bias so that responses whose *raw* scores are `scores` (N,) get mean 0 and standard deviation 1.

    The reference responses are the demonstrations (InstructGPT) or samples of the policy that RL starts from
    (Ziegler et al. 2019, section 2.2). The deviation is that of the population.

    Raises:
        ValueError: fewer than two scores, a score that is not finite, or all scores equal.
    """
    scores = scores.double()
    if len(scores) < 2 or not bool(scores.isfinite().all()):
        raise ValueError(
            f"normalising needs at least two finite reference scores; given were {len(scores)}, "
            f"{int((~scores.isfinite()).sum())} of them not finite"
        )
    deviation = float(scores.std(correction=0))
    if deviation < 1e-8:
        raise ValueError(
            f"all {len(scores)} reference responses have the raw score {float(scores[0]):.4g}, so no gain gives them "
            "a deviation of 1; use different reference responses, or train the reward model first"
        )
    model.gain = 1.0 / deviation
    model.bias = -float(scores.mean()) / deviation


_PAIRWISE = reward_objective()
