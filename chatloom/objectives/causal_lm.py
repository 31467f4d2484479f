"""Next-token prediction (Radford et al. 2018, eq. 1): pretraining, instruction tuning and the ptx term of PPO alike.

Facts worth knowing:
* Which tokens count stands in `targets` (-100: not counted), made where text becomes tokens. Pretraining counts
  every token, instruction tuning the assistant's and their end-of-turn.
* Positions are selected before the vocabulary projection: in instruction tuning most of it is never computed.
* The projection runs over chunks of positions, and the cross-entropy over slices of them that stay in the cache of a
  CPU (`chosen`). When there are very many logits they are recomputed in the backward pass, so that they never fill the
  memory.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chatloom.objectives import Loss
from chatloom.objectives.chosen import chosen_logprobs

IGNORED = -100  # the target of a position that does not count; torch's own convention
_CHUNK_ROWS = 1024
_ROW_MULTIPLE = 256
_RECOMPUTED_LOGITS = 2**27  # above this many logits (512 MiB in fp32) chunks are recomputed, which costs a third


def causal_lm(model: nn.Module, batch: dict[str, Tensor]) -> Loss:
    """Sum of -log p(target) in nats over the positions that count.

    Args:
        model: anything with the decoder's `hidden` and `logits`.
        batch: tokens (B, T) int64; targets (B, T) int64 with -100 where not counted; documents (B, T) if packed.

    Returns:
        total in nats, weight the number of targets, metrics `accuracy` (the target was the likeliest token). To the
        total of a mixture of experts in training its router's loss is added, once for every target.
    """
    network: Any = model
    documents = batch.get("documents")
    hidden = network.hidden(batch["tokens"], documents=documents)  # (B, T, C)
    counted = batch["targets"] != IGNORED
    loss = cross_entropy(network, hidden[counted], batch["targets"][counted])
    router = network.router_loss(documents) if hasattr(network, "router_loss") else None
    if router is None:
        return loss
    metrics = {**loss.metrics, "router/loss": (router.detach() * loss.weight, loss.weight)}
    return Loss(loss.total + router * loss.weight, loss.weight, metrics)


def cross_entropy(network: Any, hidden: Tensor, targets: Tensor) -> Loss:
    """The same for hidden states (N, C) and targets (N,) that are already selected; `network` has `logits`."""
    weight = hidden.new_tensor(float(len(targets)), dtype=torch.float32)
    total = correct = hidden.new_zeros((), dtype=torch.float32)
    hidden, targets = padded(hidden, 0.0), padded(targets, IGNORED)
    num_logits = 0  # of the whole call; known after the first chunk
    # When nothing counts there is one empty chunk, and the loss is zero, but with a graph.
    for some_hidden, some_targets in zip(
        torch.split(hidden, _CHUNK_ROWS), torch.split(targets, _CHUNK_ROWS), strict=True
    ):
        if num_logits > _RECOMPUTED_LOGITS and torch.is_grad_enabled():
            nats, hits, vocab_size = checkpoint(
                _chunk, network, some_hidden, some_targets, use_reentrant=False, preserve_rng_state=False
            )
        else:
            nats, hits, vocab_size = _chunk(network, some_hidden, some_targets)
        num_logits = len(targets) * vocab_size
        total, correct = total + nats, correct + hits
    return Loss(total, weight, {"accuracy": (correct, weight)})


def padded(rows: Tensor, value: float) -> Tensor:
    """Rows (N, ...) filled up with `value` to a multiple of 256.

    The number that counts is another one in every batch, and oneDNN compiles and keeps a matrix product for every
    shape it meets: without this, memory grows by several megabytes a step.
    """
    missing = -len(rows) % _ROW_MULTIPLE
    return rows if missing == 0 else torch.cat((rows, rows.new_full((missing, *rows.shape[1:]), value)))


def _chunk(network: Any, hidden: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, int]:
    """Sum of nats and number of hits of (n, C) and (n,), in fp32 whatever the autocast; and V."""
    logits = network.logits(hidden)  # (n, V)
    counted = targets != IGNORED
    logprobs, _, likeliest = chosen_logprobs(logits, targets.clamp(min=0))
    return -torch.where(counted, logprobs, 0.0).sum(), (likeliest & counted).sum().float(), logits.shape[-1]
