"""One token from each row of logits, by the inverse of the cumulative distribution.

The randomness comes in as one uniform number a row, so the draw of a row depends on nothing beside it, and a test
can say which token must come. Log-probabilities are those of the full distribution at the given temperature: they
are what PPO's ratio needs, and top-k/top-p ("warpers") do not change them (Ziegler et al. 2019 sample without).

Settings that a whole batch shares are plain numbers, which skips work; rows that differ pass tensors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from chatloom.engine import native


def sample(
    logits: Tensor,
    uniforms: Tensor | None,
    *,
    temperature: float | Tensor = 1.0,
    top_k: int | Tensor | None = None,
    top_p: float | Tensor | None = None,
    min_p: float | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Draw one token a row.

    Args:
        logits: (B, V), any floating type; the arithmetic is fp32.
        uniforms: (B,) in [0, 1); may be None if every temperature is 0.
        temperature: one number, or (B,); 0 takes the likeliest token.
        top_k: None, one number, or (B,) int64; at least V keeps all.
        top_p: None, one number, or (B,); 1 keeps all.
        min_p: None, one number, or (B,); 0 keeps all.

    Returns:
        tokens (B,) int64 and their log-probabilities (B,) fp32: log-softmax of logits / temperature, of the plain
        logits where the temperature is 0.
    """
    logits = logits.float()
    if not native.available(logits.device):
        return _sample(logits, uniforms, temperature, top_k, top_p, min_p)
    # Who draws from all tokens does so in the same way whatever rows beside it do.
    some = torch.zeros(len(logits), dtype=torch.bool, device=logits.device)
    if top_k is not None:
        some |= torch.as_tensor(top_k) < logits.shape[1]
    if top_p is not None:
        some |= torch.as_tensor(top_p) < 1
    if min_p is not None:
        some |= torch.as_tensor(min_p) > 0
    if bool(some.all()):
        return _sample(logits, uniforms, temperature, top_k, top_p, min_p)
    tokens, logprobs = native.sample(logits, uniforms, temperature)
    if not bool(some.any()):
        return tokens, logprobs
    others = _sample(logits, uniforms, temperature, top_k, top_p, min_p)
    return torch.where(some, others[0], tokens), torch.where(some, others[1], logprobs)


def _sample(
    logits: Tensor,
    uniforms: Tensor | None,
    temperature: float | Tensor,
    top_k: int | Tensor | None,
    top_p: float | Tensor | None,
    min_p: float | Tensor | None,
) -> tuple[Tensor, Tensor]:
    if isinstance(temperature, Tensor):
        greedy = temperature == 0
        logits = logits / torch.where(greedy, 1.0, temperature)[:, None]
    else:
        greedy = None
        if temperature == 0:
            return _likeliest(logits)
        if temperature != 1:
            logits = logits / temperature
    assert uniforms is not None
    largest = logits.amax(dim=1, keepdim=True)
    weights = (logits - largest).exp_()  # (B, V), the likeliest token has weight 1
    cumulative = weights.cumsum(dim=1)
    total = cumulative[:, -1:]
    if top_k is not None or top_p is not None:
        weights = weights.masked_fill_(weights < _threshold(weights, top_k, top_p), 0.0)
    if min_p is not None:
        weights = weights.masked_fill_(weights < _column(min_p, weights), 0.0)
    if top_k is not None or top_p is not None or min_p is not None:
        cumulative = weights.cumsum(dim=1)
    # The first token whose cumulative weight exceeds u * (sum of weights): never one of weight 0, and u < 1 keeps
    # the product below the last entry.
    aim = uniforms[:, None] * cumulative[:, -1:]
    tokens = torch.searchsorted(cumulative, aim, right=True).clamp_(max=logits.shape[1] - 1)
    if greedy is not None:
        tokens = torch.where(greedy[:, None], logits.argmax(dim=1, keepdim=True), tokens)
    logprobs = logits.gather(1, tokens) - largest - total.log()
    return tokens[:, 0], logprobs[:, 0]


@dataclass(frozen=True, slots=True)
class Change:
    """What bias and penalties do to one row's logits: the settings, and how often which tokens were there."""

    row: int
    bias: Sequence[tuple[int, float]]
    repetition: float
    frequency: float
    presence: float
    seen: Sequence[int]  # distinct tokens of prompt and answer
    answered: Mapping[int, int]  # how often the answer has its tokens


def changed(logits: Tensor, changes: Sequence[Change]) -> Tensor:
    """The logits (B, V) that tokens are drawn from, in fp32; those given stay as they are."""
    logits = logits.float().clone()
    device = logits.device
    for change in changes:
        own = logits[change.row]
        if change.repetition != 1 and change.seen:
            seen = torch.tensor(change.seen, device=device)
            now = own[seen]
            own[seen] = torch.where(now > 0, now / change.repetition, now * change.repetition)
        if (change.frequency or change.presence) and change.answered:
            answered = torch.tensor(list(change.answered), device=device)
            counts = torch.tensor(list(change.answered.values()), dtype=torch.float32, device=device)
            own[answered] -= change.frequency * counts + change.presence
        if change.bias:
            tokens, amounts = zip(*change.bias)
            own[torch.tensor(tokens, device=device)] += torch.tensor(amounts, dtype=torch.float32, device=device)
    return logits


def biased(logits: Tensor, biases: Mapping[int, Tensor]) -> Tensor:
    """The logits (B, V), in fp32, where rows have biases (V,) by place; those given stay as they are."""
    logits = logits.to(torch.float32, copy=True)
    for place, bias in biases.items():  # a row at a time is faster than all by a list of places
        logits[place] += bias.to(logits.device)
    return logits


def logprobs_of(logits: Tensor, temperature: float | Tensor) -> Tensor:
    """The log-probabilities (B, V) that `sample` reports: of logits / temperature, of the plain ones at 0."""
    if isinstance(temperature, Tensor):
        return (logits.float() / torch.where(temperature == 0, 1.0, temperature)[:, None]).log_softmax(1)
    return (logits.float() if temperature in (0, 1) else logits.float() / temperature).log_softmax(1)


def _likeliest(logits: Tensor) -> tuple[Tensor, Tensor]:
    tokens = logits.argmax(dim=1, keepdim=True)
    return tokens[:, 0], logits.log_softmax(1).gather(1, tokens)[:, 0]  # faster than logsumexp


def _threshold(weights: Tensor, top_k: int | Tensor | None, top_p: float | Tensor | None) -> Tensor:
    """The smallest weight that top-k, then top-p, keep in each row: (B, 1)."""
    size = weights.shape[1]
    if top_p is None and isinstance(top_k, int):
        return weights.topk(min(top_k, size), dim=1).values[:, -1:]
    ordered = weights.sort(dim=1, descending=True).values
    keep = torch.full_like(ordered[:, :1], size, dtype=torch.int64)  # (B, 1), how many of the ordered stay
    if top_k is not None:
        keep = torch.clamp(_column(top_k, keep), max=size)
    if top_p is not None:
        cumulative = ordered.cumsum(dim=1)
        within_k = cumulative.gather(1, keep - 1)  # the top-k tokens' weight, which top-p is a share of
        before = cumulative - ordered
        share = _column(top_p, ordered)
        enough = (before < share * within_k).sum(dim=1, keepdim=True).clamp_(min=1)
        keep = torch.where(share < 1, torch.minimum(keep, enough), keep)
    return ordered.gather(1, keep - 1)


def _column(value: float | Tensor, like: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value[:, None].to(like.dtype)
    return torch.full_like(like[:, :1], value)
