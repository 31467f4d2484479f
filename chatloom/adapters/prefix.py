"""Prefix tuning (Li and Liang 2021, section 4.2): trained keys and values that every token of every layer sees.

They are a cache that starts non-empty, so nothing in a model knows of them. A fresh prefix is the keys and values of
real tokens, drawn from the vocabulary (section 7.4: far better than random numbers when data is scarce). The paper's
reparametrisation by an MLP is not used for training; what `peft` writes after training with one is read.
"""

from typing import Any

import torch
from torch import Tensor, nn

from chatloom.nn.prefixed import keys_and_values


class PrefixTuning(nn.Module):
    """Keys and values of `num_tokens` virtual tokens in every layer, as one matrix, in `peft`'s order."""

    def __init__(self, decoder: Any, num_tokens: int) -> None:
        super().__init__()
        config = decoder.config
        self.num_tokens = num_tokens
        self.shape = (num_tokens, config.num_layers, 2, config.num_key_value_heads, config.head_width)
        device = decoder.embedding.weight.device
        tokens = torch.randint(config.vocab_size, (num_tokens,), device=device)
        with torch.no_grad():
            drawn = keys_and_values(decoder, decoder.embed(tokens)[None])
        stacked = torch.stack(drawn, dim=1)  # (L, 2, G, P, D)
        self.prompt_embeddings = nn.Parameter(stacked.permute(3, 0, 1, 2, 4).reshape(num_tokens, -1).float())

    def forward(self, decoder: Any) -> tuple[Tensor, Tensor]:
        """Keys and values, each (L, G, P, D)."""
        keys, values = self.prompt_embeddings.view(self.shape).permute(2, 1, 3, 0, 4)
        return keys, values
