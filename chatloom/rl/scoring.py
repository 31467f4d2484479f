"""Log-probabilities and values of episodes, computed with the forward pass that training uses.

Micro-batches are cut as in training, so for weights that have not moved the log-probabilities are the very bits that
the policy's objective sees: the first ratio is exactly 1.
"""

import torch
from torch import Tensor, nn

from chatloom import runtime
from chatloom.data.pack import split_rows
from chatloom.objectives.ppo import action_logprobs
from chatloom.rl.rollout import PackedEpisodes


def microbatches(batch: dict[str, Tensor], rows: int | None) -> list[dict[str, Tensor]]:
    """Cut a batch of rows; None is one piece."""
    return split_rows(batch, len(batch["tokens"]) if rows is None else rows)


def logprobs(
    model: nn.Module,
    episodes: PackedEpisodes,
    *,
    temperature: float = 1.0,
    microbatch_rows: int | None = None,
    dtype: str = "fp32",
) -> Tensor:
    """Log-probabilities of the responses' tokens: (N, L) float32 on the CPU, 0 at padding. The model's mode is kept."""
    device = next(model.parameters()).device
    pieces = []
    with torch.no_grad(), runtime.autocast(device, dtype):
        for piece in microbatches(episodes.batch, microbatch_rows):
            piece = {name: tensor.to(device) for name, tensor in piece.items()}
            packed = torch.zeros(piece["tokens"].shape, device=device)
            packed[piece["actions"]] = action_logprobs(model, piece, temperature=temperature)[0]
            pieces.append(packed.cpu())
    return episodes.from_rows(torch.cat(pieces))


def values(
    critic: nn.Module, episodes: PackedEpisodes, *, microbatch_rows: int | None = None, dtype: str = "fp32"
) -> Tensor:
    """The critic's values at the responses' actions: (N, L) float32 on the CPU, 0 at padding."""
    device = next(critic.parameters()).device
    pieces = []
    with torch.no_grad(), runtime.autocast(device, dtype):
        for piece in microbatches(critic_batch(episodes.batch), microbatch_rows):
            output: Tensor = critic(piece["tokens"].to(device), documents=piece["documents"].to(device))
            pieces.append(output.float().cpu())
    return episodes.from_rows(torch.cat(pieces))


def critic_batch(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch with the documents that the critic may read (detail 1)."""
    shown = {name: tensor for name, tensor in batch.items() if name != "critic_documents"}
    if "critic_documents" in batch:
        shown["documents"] = batch["critic_documents"]
    return shown
