"""The paged cache in eight bits: half the bytes of bf16, so twice the tokens, at a scale for each token and head.

A key or value (D,) is kept as codes of -127 to 127 and one bf16 scale, its largest magnitude / 127. KIVI (Liu et al.
2024, section 3) finds that keys want scales for each channel, because some channels are large in every token; that is
so at two bits. At eight, on SmolLM2-135M, scales for each token cost as much as bf16's rounding of everything else
(docs/results.md), and a token can be written without its neighbours.

Everybody sees what was rounded, a prompt its own tokens too: so an answer does not depend on how a prompt was cut into
pieces. Blocks are dequantised where they are read, one layer's at a time, into a buffer that the layers share; a layer
grows by itself, so that growing takes one layer's room more and not twice everything.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from chatloom.nn.cache import PLAIN, Rule
from chatloom.nn.paged import STRETCH, Chunk, Paged

_SCALE = torch.bfloat16  # codes go by the rounded scale, so its few bits cost nothing
_MOST = 127


def quantised(x: Tensor) -> tuple[Tensor, Tensor]:
    """Codes (..., D) int8 and scales (...,) of vectors (..., D)."""
    scales = (x.abs().amax(-1).float() / _MOST).to(_SCALE)
    steps = torch.where(scales == 0, 1.0, scales.float())[..., None]
    return (x.float() / steps).round_().clamp_(-_MOST, _MOST).to(torch.int8), scales


def bytes_of_a_head(head_width: int) -> int:
    """What a key or a value of one head takes."""
    return head_width + torch.finfo(_SCALE).bits // 8


class Quantised(Paged):
    """As `Paged`, which computes in `dtype`; `keys` and `values` stay without blocks."""

    def __init__(
        self,
        num_layers: int,
        num_key_value_heads: int,
        head_width: int,
        *,
        block_size: int = 32,
        dtype: torch.dtype = torch.float32,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(num_layers, num_key_value_heads, head_width, block_size=block_size, dtype=dtype, device=device)
        shape = (2, 0, num_key_value_heads, block_size)  # keys and values
        self._codes = [torch.zeros(*shape, head_width, dtype=torch.int8, device=device) for _ in range(num_layers)]
        self._scales = [torch.zeros(shape, dtype=_SCALE, device=device) for _ in range(num_layers)]
        self._read: Tensor | slice = slice(0, 0)
        self._buffer = self.keys[0]

    @property
    def num_blocks(self) -> int:
        """Blocks there is room for, in every layer."""
        return min(scales.shape[1] for scales in self._scales)

    @property
    def num_bytes(self) -> int:
        """What codes and scales take."""
        return sum(kept.nbytes for kept in (*self._codes, *self._scales))

    def make_room(self, num_blocks: int, *, most: int | None = None) -> None:
        """As `Paged.make_room`, a layer after the other; where memory ends, some may have more room than others."""
        if num_blocks <= self.num_blocks:
            return
        wanted = max(num_blocks, 2 * self.num_blocks)
        wanted = wanted if most is None else max(num_blocks, min(wanted, most))
        self._buffer = self.keys[0]
        for tensors in (self._codes, self._scales):
            for layer, kept in enumerate(tensors):
                if kept.shape[1] < wanted:
                    tensors[layer] = kept.new_zeros(2, wanted, *kept.shape[2:])
                    tensors[layer][:, : kept.shape[1]] = kept

    def clear(self) -> None:
        """Overwrite everything with zeros."""
        for kept in (*self._codes, *self._scales):
            kept.zero_()

    def copy(self, pairs: Sequence[tuple[int, int]]) -> None:
        """Copy blocks, (from, to), all at once."""
        origin, target = torch.tensor(pairs, device=self.keys.device).unbind(1)
        for kept in (*self._codes, *self._scales):
            kept[:, target] = kept[:, origin]

    def put(self, rows: Sequence[Sequence[int]], keys: Tensor, values: Tensor) -> None:
        """Put keys and values (L, G, P, D) of virtual tokens at the beginning of rows, given by their blocks."""
        size, both = self.block_size, torch.stack((keys, values), 1)  # (L, 2, G, P, D)
        for start in range(0, keys.shape[2], size):
            blocks = [row[start // size] for row in rows]
            codes, scales = quantised(both[:, :, :, start : start + size])
            for layer in range(len(keys)):
                self._codes[layer][:, blocks, :, : codes.shape[3]] = codes[layer][:, None]
                self._scales[layer][:, blocks, :, : codes.shape[3]] = scales[layer][:, None]

    def begin(self, chunks: Sequence[Chunk]) -> None:
        """Announce the rows of the next forward pass: the blocks that they see are read into a buffer, in order."""
        size, device = self.block_size, self.keys.device
        seen = [chunk.blocks[: -(-(chunk.start + chunk.count) // size)] for chunk in chunks]
        read: Sequence[int] = sorted({block for blocks in seen for block in blocks})
        stretch = range(read[0], read[-1] + 1)  # read as it lies, if little of it is not needed
        read = stretch if len(stretch) <= STRETCH * len(read) else read
        at = {block: place for place, block in enumerate(read)}
        places = [[at[block] for block in blocks] for blocks in seen]
        super().begin([Chunk(own, chunk.start, chunk.count) for own, chunk in zip(places, chunks)])
        numbers = torch.tensor(read, device=device)
        self._read = slice(read.start, read.stop) if isinstance(read, range) else numbers
        slots = self.keys.shape[2] * size  # of a block, for all heads
        block = self._slots // slots  # in the buffer
        self._slots = self._slots + (numbers[block] - block) * slots

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, *, rule: Rule = PLAIN) -> Tensor:
        """Store this step's keys and values, rounded, then let each token see its own row up to itself."""
        key, value = self.write(layer, key, value)
        keys, values = self._dequantised(*(kept[layer][:, self._read] for kept in (self._codes, self._scales)))
        return self._attended(query, key, value, keys, values, rule)

    def write(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Store the announced tokens' keys and values (1, G, N, D); returns them rounded."""
        codes, scales = self._codes[layer], self._scales[layer]
        own = []
        for part, given in enumerate((key, value)):
            rounded, steps = quantised(given[0].transpose(0, 1))  # (N, G, D)
            codes[part].view(-1, given.shape[3]).index_copy_(0, self._slots, rounded.flatten(0, 1))
            scales[part].view(-1).index_copy_(0, self._slots, steps.flatten())
            exact = (rounded * steps.float()[..., None]).to(self.keys.dtype)
            own.append(exact.to(given.dtype).transpose(0, 1)[None])
        return own[0], own[1]

    def read(self, layer: int, blocks: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of some blocks (n,), each (n, G, size, D), until the next ones are read."""
        return self._dequantised(*(kept[layer].index_select(1, blocks) for kept in (self._codes, self._scales)))

    def _dequantised(self, codes: Tensor, scales: Tensor) -> tuple[Tensor, Tensor]:
        if self._buffer.shape != codes.shape:
            self._buffer = torch.empty(codes.shape, dtype=self.keys.dtype, device=codes.device)
        self._buffer.copy_(codes).mul_(scales[..., None].to(self.keys.dtype))  # a product of two types is far slower
        keys, values = self._buffer
        return keys, values
