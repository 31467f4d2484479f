"""The forward pass that all families share: embed, run the blocks, normalise, project to the vocabulary.

A family subclasses `Decoder` only to build its parts; nothing here asks which family it is. `hidden` and `logits` are
separate so that an objective can project just the positions it counts, which saves most of the vocabulary
projection in instruction tuning.
"""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from chatloom.nn.cache import Cache, Causal, Packed
from chatloom.nn.experts import Experts, load_balancing, router_z
from chatloom.nn.positions import Angles, Rotary
from chatloom.nn.prefixed import Prefixed


class DecoderConfig(Protocol):
    """The fields that code outside a family may read of any family's config."""

    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def context_length(self) -> int: ...  # noqa: D102
    @property
    def num_layers(self) -> int: ...  # noqa: D102
    @property
    def width(self) -> int: ...  # noqa: D102
    @property
    def num_heads(self) -> int: ...  # noqa: D102
    @property
    def num_key_value_heads(self) -> int: ...  # noqa: D102
    @property
    def head_width(self) -> int: ...  # noqa: D102
    @property
    def tie_embeddings(self) -> bool: ...  # noqa: D102
    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""


class Decoder(nn.Module):
    """A decoder-only language model. `__init__` sets what most families do without."""

    config: DecoderConfig
    embedding: nn.Embedding
    embedding_scale: float = 1.0
    embedding_norm: nn.Module | None
    position_embedding: nn.Embedding | None
    position_offset: int = 0  # the first row of the position embedding that a token has
    rotary: Rotary | None
    blocks: nn.ModuleList
    final_norm: nn.Module
    head: nn.Linear | None  # None: tied to the embedding
    logit_softcap: float | None = None
    prefix: nn.Module | None  # what the cache starts with, from prompt or prefix tuning (see adapters)
    gradient_checkpointing: bool = False

    def hidden(self, tokens: Tensor, *, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Final normalised hidden states.

        Args:
            tokens: (B, T) int64.
            documents: (B, T) document numbers of packed rows, 0 for padding; None for one document a row.
            cache: a decoding cache instead; excludes `documents`.

        Returns:
            (B, T, C).

        Raises:
            ValueError: a row is longer than the model's context.
        """
        if cache is None:
            if tokens.shape[1] > self.config.context_length:
                raise ValueError(
                    f"a row of {tokens.shape[1]} tokens does not fit the model's context of "
                    f"{self.config.context_length}; use shorter rows or a model with a longer context"
                )
            if self.prefix is not None:
                cache = Prefixed(*self.prefix(self), documents=documents)
            else:
                cache = Causal() if documents is None else Packed(documents)
        return self.through(self.embed(tokens), cache.positions(tokens), cache)

    def embed(self, tokens: Tensor) -> Tensor:
        """What tokens (...) are before anything is known of their places: (..., C)."""
        x: Tensor = self.embedding(tokens)
        if self.embedding_scale != 1.0:
            x = x * torch.tensor(self.embedding_scale, dtype=self.embedding.weight.dtype)
        return x

    def through(self, x: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Hidden states (B, T, C) of tokens whose embeddings are `x` (B, T, C)."""
        if self.position_embedding is not None:
            x = x + self.position_embedding(positions + self.position_offset)
        if self.embedding_norm is not None:
            x = self.embedding_norm(x)
        x = self.embedding_dropout(x)
        angles = self.angles(positions)
        for layer, block in enumerate(self.blocks):
            if self.gradient_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, x, layer, cache, angles[layer], use_reentrant=False)
            else:
                x = block(x, layer, cache, angles[layer])
        normalised: Tensor = self.final_norm(x)
        return normalised

    def angles(self, positions: Tensor) -> list[Angles | None]:
        """The rotary tables of every layer at `positions` (B, T)."""
        angles = None if self.rotary is None else self.rotary.at(positions)
        return [angles] * len(self.blocks)

    def rotaries(self) -> list[Rotary | None]:
        """What turns the queries and keys of every layer."""
        return [self.rotary] * len(self.blocks)

    def logits(self, hidden: Tensor) -> Tensor:
        """Project hidden states (..., C) to the vocabulary (..., V)."""
        if self.head is None:
            logits = nn.functional.linear(hidden, self.embedding.weight)
        else:
            logits = self.head(hidden)
        if self.logit_softcap is not None:
            logits = self.logit_softcap * torch.tanh(logits / self.logit_softcap)
        return logits

    def forward(self, tokens: Tensor, *, documents: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits (B, T, V) of `tokens` (B, T); see `hidden` for the arguments."""
        return self.logits(self.hidden(tokens, documents=documents, cache=cache))

    def router_loss(self, documents: Tensor | None = None) -> Tensor | None:
        """What a mixture's config adds to the loss of one token, for the last training pass; None if nothing.

        The mean over the layers of load_balancing * (Fedus et al. 2021, eq. 4) + router_z * (Zoph et al. 2022, eq. 5);
        tokens whose document is 0 (B, T) are padding and do not count.
        """
        balance, z = getattr(self.config, "load_balancing", 0.0), getattr(self.config, "router_z", 0.0)
        layers = [module for module in self.modules() if isinstance(module, Experts) and module.routing is not None]
        if not layers or not (balance or z):
            return None
        total = torch.zeros((), device=self.embedding.weight.device)
        for layer in layers:
            assert layer.routing is not None
            routing = layer.routing.flatten(0, -2) if documents is None else layer.routing[documents != 0]
            total = total + balance * load_balancing(routing, experts_per_token=layer.experts_per_token)
            total = total + z * router_z(routing)
        return total / len(layers)

    def set_dropout(self, probability: float) -> None:
        """Set every dropout layer's probability (InstructGPT fine-tunes with 0.2; RLHF needs 0)."""
        for module in self.modules():
            if isinstance(module, nn.Dropout):
                module.p = probability

    def __init__(self) -> None:
        super().__init__()
        self.embedding_norm = self.position_embedding = self.rotary = None
        self.embedding_dropout = nn.Dropout(0.0)
        self.register_module("prefix", None)


def num_parameters(model: nn.Module) -> int:
    """The number of weights; a tied matrix counts once."""
    return sum(parameter.numel() for parameter in model.parameters())
