"""A mixture of experts in place of a feed-forward layer: each token goes to the k experts its router likes best.

Facts worth knowing:
* Probabilities are a softmax in fp32 over all experts; the k largest are used, divided by their sum where the family
  does so (Mixtral: Jiang et al. 2024, section 2.1; Qwen3-MoE by its config). No token is ever dropped.
* A router left alone sends everything to few experts. `load_balancing` (Switch Transformer: Fedus et al. 2021, eq. 4)
  is least when all are used alike, and `router_z` (ST-MoE: Zoph et al. 2022, eq. 5) keeps the router's logits small.
* Balance is a property of a batch: accumulated micro-batches are each balanced for themselves.
* Both want the routing of the forward pass: in training it is kept on the module until the next one.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatloom.nn.feedforward import SwiGLU


class Experts(nn.Module):
    """E SwiGLU layers and the router that chooses k of them for each token."""

    def __init__(
        self, width: int, inner_width: int, *, num_experts: int, experts_per_token: int, renormalise: bool = True
    ) -> None:
        super().__init__()
        self.router = nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(SwiGLU(width, inner_width) for _ in range(num_experts))
        self.experts_per_token = experts_per_token
        self.renormalise = renormalise
        self.routing: Tensor | None = None  # logits (B, T, E) of the last forward pass in training

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, C) -> (B, T, C)."""
        tokens = x.reshape(-1, x.shape[-1])  # (N, C)
        logits = self.router(tokens)  # (N, E)
        self.routing = logits.view(*x.shape[:-1], -1) if self.training and torch.is_grad_enabled() else None
        weights, chosen = logits.float().softmax(-1).topk(self.experts_per_token, dim=-1)  # (N, k)
        if self.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        order = chosen.flatten().argsort(stable=True)  # the N * k choices, expert by expert
        counts = self.counts(chosen, len(self.experts))
        source = order // self.experts_per_token  # whose choice it is
        shares = weights.flatten()[order, None].to(x.dtype)
        parts = zip(self.experts, torch.split(tokens[source], counts))
        # An expert that nobody chose is run on nothing, so that every weight has a gradient on every rank.
        answers = torch.cat([expert(part) for expert, part in parts]) * shares
        mixed = torch.zeros_like(tokens, dtype=answers.dtype).index_add(0, source, answers)
        return mixed.view(x.shape)

    @staticmethod
    def counts(chosen: Tensor, num_experts: int) -> list[int]:
        """How often each expert is chosen."""
        counts: list[int] = chosen.flatten().bincount(minlength=num_experts).tolist()
        return counts


def load_balancing(routing: Tensor, *, experts_per_token: int) -> Tensor:
    """Fedus et al. 2021, eq. 4 without its coefficient, of router logits (N, E): E * sum_i f_i P_i.

    f_i is the number of tokens that went to expert i over the number of tokens (eq. 5; the f_i sum to k where a token
    goes to k experts, as Mixtral's training code counts), P_i the mean probability of i (eq. 6). k when balanced.
    """
    probabilities = routing.float().softmax(-1)
    num_experts = routing.shape[-1]
    chosen = probabilities.topk(experts_per_token, dim=-1).indices
    fraction = F.one_hot(chosen, num_experts).sum(1).float().mean(0)  # (E,)
    return num_experts * (fraction * probabilities.mean(0)).sum()


def router_z(routing: Tensor) -> Tensor:
    """Zoph et al. 2022, eq. 5, of router logits (N, E): the mean of log(sum_j exp x_j)^2."""
    return routing.float().logsumexp(-1).square().mean()
