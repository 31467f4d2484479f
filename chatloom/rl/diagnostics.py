"""Diagnostics that explain themselves: why KL is negative, and whether the model can learn to stop.

KL is never negative. Its estimate, the mean of log p - log ref over samples of p, is only if the samples are not of p
or the two sides are not computed alike. There are five causes in practice, and `check_kl` tests each instead of
guessing: sampling warpers, dropout, padding or positions, dtypes, a stale reference.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from chatloom import adapters
from chatloom.chat.render import Rendered
from chatloom.engine.request import SamplingParams
from chatloom.rl.config import PaddingSide
from chatloom.rl.rollout import Rollout, fitting_row_length, pack_episodes
from chatloom.rl.scoring import logprobs

Cause = Literal["sampling", "dropout", "padding", "dtype", "stale_reference", "stop"]
# Log-probabilities of each response's tokens, one tensor a rollout.
Scorer = Callable[[Sequence[Rollout]], list[Tensor]]

# Nats a token by which two computations of one number may differ: rounding, far below any real cause.
TOLERANCES = {"fp32": 1e-3, "bf16": 5e-2}
_NUM_ALONE = 8  # rollouts that are scored one at a time, enough to see a padding fault


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, in plain words, with what to do."""

    cause: Cause
    message: str


def kl_is_negative(kl: Tensor) -> bool:
    """Whether the mean of (N,) episodes' KL is below 0 by more than twice its standard error."""
    if len(kl) < 2:
        return len(kl) == 1 and float(kl) < 0
    error: float = kl.double().std(correction=1).item() / len(kl) ** 0.5
    mean: float = kl.double().mean().item()
    return mean < -max(2 * error, 1e-6)


def training_scorer(
    model: nn.Module,
    *,
    pad: int,
    context_length: int,
    temperature: float = 1.0,
    padding_side: PaddingSide = "right",
    dtype: str = "fp32",
) -> Scorer:
    """The scorer that training uses. The model's mode is kept, so dropout that is on shows."""

    def score(rollouts: Sequence[Rollout]) -> list[Tensor]:
        length = fitting_row_length(max(map(len, rollouts)), context_length)
        episodes = pack_episodes(rollouts, row_length=length, pad=pad, padding_side=padding_side)
        padded = logprobs(model, episodes, temperature=temperature, dtype=dtype)
        return [row[mask] for row, mask in zip(padded, episodes.mask)]

    return score


def check_kl(
    rollouts: Sequence[Rollout],
    *,
    policy: Scorer,
    reference: Scorer,
    sampling: SamplingParams,
    temperature: float = 1.0,
    rollout_dtype: str = "fp32",
    training_dtype: str = "fp32",
    policy_is_initial: bool = False,
    reference_is_initial: bool | None = None,
) -> list[Finding]:
    """Test every known cause of a negative KL; an empty list says that none was found.

    Args:
        rollouts: samples of the policy with its present weights, with the engine's log-probabilities.
        policy, reference: how the two are scored in training, `training_scorer` or whatever is under suspicion.
        sampling: what the rollouts were sampled with.
        temperature: what log-probabilities are computed with in training.
        rollout_dtype, training_dtype: "fp32" or "bf16" matrix products on either side.
        policy_is_initial: no training step was taken yet, so policy and reference must agree.
        reference_is_initial: whether the reference's weights are those that training started from, by `digest`; None
            where that is not known.
    """
    tolerance = max(TOLERANCES[rollout_dtype], TOLERANCES[training_dtype])
    findings = _check_sampling(sampling, temperature)
    noisy = _check_dropout(rollouts, policy=policy, reference=reference)
    findings += noisy
    if reference_is_initial is False:
        findings.append(_stale("its weights are not those that training started from"))
    if noisy:  # with dropout every other comparison is of random numbers
        return findings
    together = policy(rollouts)
    padding = _check_padding(rollouts, policy=policy, together=together, tolerance=TOLERANCES[training_dtype])
    findings += padding
    warped_scale = sampling.temperature != temperature  # log-probabilities are then of two distributions
    if not padding and not warped_scale:
        findings += _check_dtype(rollouts, together, rollout_dtype, training_dtype)
    if policy_is_initial and reference_is_initial is not False:
        apart = _mean_difference(together, reference(rollouts))
        if apart > tolerance:
            findings.append(_stale(f"before the first step it differs from the policy by {apart:.3g} nats a token"))
    return findings


def _check_sampling(sampling: SamplingParams, temperature: float) -> list[Finding]:
    warpers = []
    if sampling.top_k is not None:
        warpers.append(f"top_k is {sampling.top_k}")
    if sampling.top_p is not None and sampling.top_p < 1:
        warpers.append(f"top_p is {sampling.top_p}")
    if sampling.temperature != temperature:
        warpers.append(f"the sampling temperature is {sampling.temperature} and training scores at {temperature}")
    if not warpers:
        return []
    return [
        Finding(
            "sampling",
            f"The samples are not of the distribution that is scored: {' and '.join(warpers)}. Sample with "
            f"top_k=None, top_p=None and temperature={temperature}.",
        )
    ]


def _check_dropout(rollouts: Sequence[Rollout], *, policy: Scorer, reference: Scorer) -> list[Finding]:
    some = rollouts[:_NUM_ALONE]
    noisy = [
        name
        for name, scorer in (("policy", policy), ("reference", reference))
        if _mean_difference(scorer(some), scorer(some)) > 0
    ]
    if not noisy:
        return []
    return [
        Finding(
            "dropout",
            f"Scoring the same responses twice gives different log-probabilities for the {' and the '.join(noisy)}: "
            "dropout is on. Set dropout to 0 in every model of RLHF (dropout_off=True).",
        )
    ]


def _check_padding(
    rollouts: Sequence[Rollout], *, policy: Scorer, together: list[Tensor], tolerance: float
) -> list[Finding]:
    # Those that batching pads most are the shortest.
    order = sorted(range(len(rollouts)), key=lambda index: len(rollouts[index]))
    worst = 0.0
    for index in order[:_NUM_ALONE]:
        alone = policy([rollouts[index]])
        worst = max(worst, _mean_difference(alone, [together[index]]))
    if worst <= tolerance:
        return []
    return [
        Finding(
            "padding",
            f"A response scored in a batch and alone differs by {worst:.3g} nats a token: padding is attended to, or "
            "positions count it. Positions must be cumsum(mask) - mask, and padding must be masked.",
        )
    ]


def _check_dtype(
    rollouts: Sequence[Rollout], together: list[Tensor], rollout_dtype: str, training_dtype: str
) -> list[Finding]:
    engine = [torch.tensor(rollout.logprobs) for rollout in rollouts]
    apart = _mean_difference(engine, together)
    differ = rollout_dtype != training_dtype
    if apart <= (TOLERANCES["fp32"] if differ else TOLERANCES[training_dtype]):
        return []
    advice = (
        "Run both in one dtype, or weight by importance_cap."
        if differ
        else "The dtypes agree, so the weights do not: give the engine the model that is trained."
    )
    return [
        Finding(
            "dtype",
            f"Log-probabilities of the rollout ({rollout_dtype}) and of training ({training_dtype}) differ by "
            f"{apart:.3g} nats a token. {advice}",
        )
    ]


def _stale(reason: str) -> Finding:
    return Finding(
        "stale_reference",
        f"The reference is not the policy that training started from: {reason}. Give PPO a copy of the initial policy, "
        "and the same one when it resumes.",
    )


def _mean_difference(one: list[Tensor], other: list[Tensor]) -> float:
    """Largest mean absolute difference of any response, in nats a token."""
    return max(float((a - b).abs().mean()) for a, b in zip(one, other, strict=True))


def digest(model: nn.Module) -> str:
    """Sixteen hex digits of a model's weights. An adapter that changes nothing yet does not count."""
    total = hashlib.sha256()
    dormant = adapters.dormant_names(model)
    for name, tensor in sorted(model.state_dict().items()):
        if name in dormant:
            continue
        total.update(name.encode())
        total.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()[:16]


def check_stop(
    samples: Sequence[Rendered],
    *,
    end_of_turn: int,
    stop_tokens: Sequence[int],
    stop_rate: float | None = None,
    least_stop_rate: float = 0.9,
) -> list[Finding]:
    """Is end-of-turn trained, and is it the stop? An empty list says yes.

    Args:
        samples: training samples as rendered for SFT.
        end_of_turn: the token that the chat template puts after a reply.
        stop_tokens: what ends generation.
        stop_rate: share of responses that stopped by themselves, if known.
        least_stop_rate: below this it is reported.
    """
    findings = []
    untrained = sum(not _is_trained(sample, end_of_turn) for sample in samples)
    if untrained:
        absent = sum(end_of_turn not in sample.tokens for sample in samples)
        why = f"{absent} do not contain it at all" if absent else "it is there but the loss mask leaves it out"
        findings.append(
            f"The end of turn (token {end_of_turn}) is not trained in {untrained} of {len(samples)} samples; {why}. "
            "The loss looks healthy without it, and the model never stops. Use a template that ends a reply with it."
        )
    if end_of_turn not in stop_tokens:
        findings.append(
            f"The end of turn (token {end_of_turn}) is not among the stop tokens {list(stop_tokens)}, so generation "
            "runs on past it. Add it."
        )
    if stop_rate is not None and stop_rate < least_stop_rate:
        cause = "see above" if findings else "responses are cut at the token limit: raise it, or train SFT for longer"
        findings.append(f"Only {stop_rate:.0%} of responses stop by themselves; {cause}.")
    return [Finding("stop", message) for message in findings]


def _is_trained(sample: Rendered, end_of_turn: int) -> bool:
    return any(token == end_of_turn and counted for token, counted in zip(sample.tokens, sample.loss_mask))
