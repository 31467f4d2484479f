"""Prompt tuning (Lester et al. 2021, section 2): trained embeddings of virtual tokens before the text.

What later tokens see of the virtual ones is their keys and values, and causality keeps those free of the text. So
they are computed once a forward pass and become a cache that starts non-empty, for all rows and all documents of
packed rows alike. A fresh prompt is embeddings drawn from the vocabulary (section 3.2).
"""

from typing import Any

import torch
from torch import Tensor, nn

from chatloom.nn.prefixed import keys_and_values


class PromptTuning(nn.Module):
    """Embeddings of `num_tokens` virtual tokens."""

    def __init__(self, decoder: Any, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens
        device = decoder.embedding.weight.device
        tokens = torch.randint(decoder.config.vocab_size, (num_tokens,), device=device)
        self.prompt_embeddings = nn.Parameter(decoder.embed(tokens).detach().float())  # (P, C)

    def forward(self, decoder: Any) -> tuple[Tensor, Tensor]:
        """Keys and values, each (L, G, P, D)."""
        return keys_and_values(decoder, self.prompt_embeddings.to(decoder.embedding.weight.dtype)[None])
