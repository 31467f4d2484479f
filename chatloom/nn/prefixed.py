"""A cache that starts non-empty: keys and values of virtual tokens, which all tokens of all documents see.

Virtual tokens take the positions 0 to P - 1, and the text of every document goes on from P. Decoding needs no more
than `Paged.put`; this file is for whole forward passes.
"""

from typing import Any

import torch
from torch import Tensor

from chatloom.nn.cache import PLAIN, Cache, Causal, Mask, Rule
from chatloom.nn.documents import positions, visible


class Prefixed:
    """Causal attention as `inner` has it, and of every token to the prefix: `keys` and `values` (L, G, P, D)."""

    def __init__(self, keys: Tensor, values: Tensor, *, documents: Tensor | None) -> None:
        """`documents` (B, T) as in `Packed`; None for one document a row."""
        self.keys, self.values = keys, values
        self.num_tokens = keys.shape[2]
        self._documents = documents
        self._mask = Mask(None)

    def positions(self, tokens: Tensor) -> Tensor:
        """Position of each token, after the virtual ones."""
        batch, time = tokens.shape
        index = torch.arange(time, device=tokens.device)
        causal = index[:, None] >= index  # (T, T)
        if self._documents is None:
            own, places = causal[None], index.expand(batch, time)
        else:
            own, places = visible(self._documents), positions(self._documents)  # (B, T, T), (B, T)
        places = places + self.num_tokens
        prefix = own.new_ones(()).expand(own.shape[0], time, self.num_tokens)
        seen = torch.cat((prefix, own), dim=2)[:, None]  # (B or 1, 1, T, P + T)
        virtual = torch.arange(self.num_tokens, device=tokens.device).expand(batch, -1)
        keys = torch.cat((virtual, places), dim=1)  # (B, P + T), where each key stands
        self._mask = Mask(seen, (places, keys))
        return places

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        """Attention over the prefix and what the row's own document has so far."""
        key, value = (self._behind(some[layer], own) for some, own in ((self.keys, key), (self.values, value)))
        return self._mask.attend(query, key, value, rule)

    @staticmethod
    def _behind(prefix: Tensor, own: Tensor) -> Tensor:
        """(G, P, D) and (B, G, T, D) -> (B, G, P + T, D)."""
        return torch.cat((prefix.to(own.dtype).expand(own.shape[0], -1, -1, -1), own), dim=2)


class _Recorder:
    """A causal cache that notes the keys and values of each layer."""

    def __init__(self) -> None:
        self._inner: Cache = Causal()
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def positions(self, tokens: Tensor) -> Tensor:
        return self._inner.positions(tokens)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
        self.keys[layer], self.values[layer] = key, value
        return self._inner.attend(layer, query, key, value, **options)


def keys_and_values(decoder: Any, embeddings: Tensor) -> tuple[Tensor, Tensor]:
    """What tokens with `embeddings` (1, P, C) at positions 0 to P - 1 leave in a cache: two of (L, G, P, D)."""
    recorder = _Recorder()
    decoder.through(embeddings, recorder.positions(embeddings[..., 0]), recorder)
    keys, values = (torch.cat([noted[layer] for layer in sorted(noted)]) for noted in (recorder.keys, recorder.values))
    return keys, values
