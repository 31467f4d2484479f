"""Proximal policy optimisation of a language model (Schulman et al. 2017, eq. 7; Ouyang et al. 2022, eq. 2).

Facts worth knowing:
* An action at position `t` is the choice of token `t + 1`. `actions`, `old_logprobs`, `advantages`, `returns` and
  `old_values` all sit at `t`, where the model's output for that choice is. The last column is never an action.
* Hidden states are selected at the actions before the vocabulary projection, so prompts cost no logits.
* Losses are sums over actions with the number of actions as weight: the mean per *token*, as in the code of Ziegler
  et al. (2019). A long answer therefore weighs more than a short one, as it has more decisions in it.
* PPO-ptx adds `coefficient * language-model loss` to the actor's loss. It is a sum, not a convex mix: the actor keeps
  its full weight. See `policy` for how both are normalised.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from chatloom.objectives import Loss, Objective
from chatloom.objectives.causal_lm import causal_lm, padded
from chatloom.objectives.chosen import chosen_logprobs

_CHUNK_LOGITS = 2**21  # see causal_lm: chunks of logits that stay in a CPU's cache
_CHUNK_ROWS = 512


def action_logprobs(
    model: nn.Module,
    batch: dict[str, Tensor],
    *,
    temperature: float = 1.0,
    entropy: Literal["none", "detached", "differentiable"] = "none",
) -> tuple[Tensor, Tensor]:
    """Log-probabilities of the chosen tokens at the actions of packed rows, and the entropies there.

    Args:
        model: anything with the decoder's `hidden` and `logits`.
        batch: tokens (B, T) int64, documents (B, T), actions (B, T) bool with A true entries.
        temperature: logits are divided by it, as the sampler did (detail 9); otherwise the ratio of a policy to
            itself is not 1.
        entropy: whether to compute the entropy, and with a gradient or not.

    Returns:
        (A,) and (A,) float32 in nats, actions in row-major order; entropies are 0 with "none".
    """
    network: Any = model
    actions = batch["actions"]
    hidden = network.hidden(batch["tokens"], documents=batch["documents"])[actions]  # (A, C)
    chosen = batch["tokens"].roll(-1, dims=1)[actions]  # (A,) the token after each action's position
    num_actions = len(hidden)
    hidden, chosen = padded(hidden, 0.0), padded(chosen, 0)
    rows = max(_CHUNK_ROWS, _CHUNK_LOGITS // network.config.vocab_size // _CHUNK_ROWS * _CHUNK_ROWS)
    logprobs, entropies = [], []
    for some_hidden, some_chosen in zip(torch.split(hidden, rows), torch.split(chosen, rows), strict=True):
        logits = network.logits(some_hidden)  # (a, V)
        some, uncertainty, _ = chosen_logprobs(
            logits, some_chosen, temperature=temperature, entropy=entropy == "detached"
        )
        if entropy == "differentiable":
            each = (logits.float() / temperature).log_softmax(dim=-1)
            uncertainty = -(each.exp() * each).sum(dim=-1)
        logprobs.append(some)
        entropies.append(uncertainty)
    return torch.cat(logprobs)[:num_actions], torch.cat(entropies)[:num_actions]


def clipped_policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
) -> tuple[Tensor, Tensor]:
    """PPO's loss for each action (eq. 7, negated), and whether clipping decided it. All (A,).

    Args:
        clip: the ratio is clipped below at 1 - clip, and above at 1 + clip unless `clip_high` is given.
        clip_high: upper clip of its own; above `clip` it lets rare tokens grow (DAPO: Yu et al. 2025, 0.28).
        dual_clip: bound on the loss where the advantage is negative and the ratio huge (Ye et al. 2020, eq. 5; 3.0).
    """
    ratio = (logprobs - old_logprobs).exp()
    clipped_ratio = ratio.clamp(1 - clip, 1 + (clip if clip_high is None else clip_high))
    free, clipped = -advantages * ratio, -advantages * clipped_ratio
    loss = torch.maximum(free, clipped)
    decided = clipped > free
    if dual_clip is not None:
        bound = -advantages * dual_clip
        too_large = (advantages < 0) & (loss > bound)
        loss = torch.where(too_large, bound, loss)
        decided = decided | too_large
    return loss, decided


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, *, clip: float | None = 0.2
) -> tuple[Tensor, Tensor]:
    """Half the squared error for each action, and whether clipping decided it (detail 16). All (A,).

    The worse of the new value's error and that of the new value held within `clip` of the old one; None: no clip.
    """
    free = 0.5 * (values - returns).square()
    if clip is None:
        return free, torch.zeros_like(free, dtype=torch.bool)
    held = old_values + (values - old_values).clamp(-clip, clip)
    clipped = 0.5 * (held - returns).square()
    return torch.maximum(free, clipped), clipped > free


def policy(
    *,
    clip: float = 0.2,
    clip_high: float | None = None,
    dual_clip: float | None = None,
    temperature: float = 1.0,
    entropy_coefficient: float = 0.0,
    importance_cap: float | None = None,
) -> Objective:
    """Make the actor's objective.

    Args:
        clip, clip_high, dual_clip: see `clipped_policy_loss`.
        temperature: that of the rollouts.
        entropy_coefficient: entropy bonus; InstructGPT has none.
        importance_cap: for rollouts from another engine: each action is weighted by
            min(old policy / rollout policy, cap), which needs `rollout_logprobs` in the batch.

    Returns:
        `(model, batch) -> Loss` over a packed batch of tokens, documents, actions, old_logprobs and advantages,
        all (B, T); total is the sum over actions, weight their number.

        With `ptx_tokens`, `ptx_documents`, `ptx_targets` (B', T') and the scalar `ptx_scale` in the batch, total gains
        ptx_scale * (sum of the language-model loss). The trainer divides the whole by the number of actions of the
        step, so with ptx_scale = coefficient * actions of the step / ptx tokens of the step (over all micro-batches
        and ranks) the step's loss is exactly

            mean over actions of the actor's loss + coefficient * mean over ptx tokens of the language-model loss.
    """

    def objective(model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        logprobs, entropy = action_logprobs(
            model, batch, temperature=temperature, entropy="differentiable" if entropy_coefficient else "detached"
        )
        actions = batch["actions"]
        old_logprobs, advantages = batch["old_logprobs"][actions], batch["advantages"][actions]
        losses, decided = clipped_policy_loss(
            logprobs, old_logprobs, advantages, clip=clip, clip_high=clip_high, dual_clip=dual_clip
        )
        if importance_cap is not None:
            losses = losses * (old_logprobs - batch["rollout_logprobs"][actions]).exp().clamp(max=importance_cap)
        total = losses.sum()
        if entropy_coefficient:
            total = total - entropy_coefficient * entropy.sum()
        num_actions = logprobs.new_tensor(float(len(logprobs)))
        change = (logprobs - old_logprobs).detach()  # log ratio
        sums = {
            "policy/loss": losses,
            "policy/clipfrac": decided,
            "policy/approxkl": change.exp() - 1 - change,  # k3 of KL(old, new): never negative
            "policy/approxkl_k1": -change,
            "val/ratio": change.exp(),
            "objective/entropy": entropy,
        }
        metrics = {name: (value.detach().float().sum(), num_actions) for name, value in sums.items()}
        if "ptx_tokens" in batch:
            pretraining = {name: batch[f"ptx_{name}"] for name in ("tokens", "documents", "targets")}
            language = causal_lm(model, pretraining)
            total = total + batch["ptx_scale"] * language.total
            metrics["ptx/loss"] = (language.total.detach(), language.weight)
        return Loss(total, num_actions, metrics)

    return objective


def value(*, clip: float | None = 0.2, coefficient: float = 1.0) -> Objective:
    """Make the critic's objective.

    Args:
        clip: see `clipped_value_loss`; None turns it off.
        coefficient: factor of the loss. With a critic of its own it only scales the gradient, which Adam undoes up to
            its epsilon and the gradient clip; it matters where critic and policy share weights (Ziegler et al.: 0.1).

    Returns:
        `(model, batch) -> Loss` over a packed batch of tokens, documents, actions, old_values and returns, all
        (B, T), for a model that maps tokens to values (B, T); total is the sum over actions, weight their number.
    """

    def objective(model: nn.Module, batch: dict[str, Tensor]) -> Loss:
        actions = batch["actions"]
        values: Tensor = model(batch["tokens"], documents=batch["documents"])[actions].float()
        losses, decided = clipped_value_loss(values, batch["old_values"][actions], batch["returns"][actions], clip=clip)
        num_actions = values.new_tensor(float(len(values)))
        metrics = {
            "value/loss": (losses.detach().sum(), num_actions),
            "value/clipfrac": (decided.float().sum(), num_actions),
            "value/mean": (values.detach().sum(), num_actions),
        }
        return Loss(coefficient * losses.sum(), num_actions, metrics)

    return objective
