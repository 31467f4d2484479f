"""A whole step of decoding as one compiled call, for models that are built like LLaMA.

Those are: pre-norm layers with RMSNorm, rotary positions, grouped queries and SwiGLU, with or without biases, norms
of queries and keys, and a window (LLaMA, SmolLM2, Mistral, Qwen2 and 3, Phi-3). All other models, and devices, are
computed by torch, module by module. The residual stream and all sums are in fp32 here; keys, values and what matrices
read are in bf16, or rounded to 8 bits where matrices are (`quantised`).
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from chatloom.engine import native
from chatloom.engine.quantised import Matrix
from chatloom.models import Decoder
from chatloom.nn.attention import Attention
from chatloom.nn.block import Block
from chatloom.nn.feedforward import ACTIVATIONS, SwiGLU
from chatloom.nn.norms import RMSNorm
from chatloom.nn.paged import Chunk, Paged

_BLOCK_SIZE = 32  # keys that a block has
_WIDEST = 256  # head


class LaidOut(Paged):
    """The paged cache as compiled attention reads it: a block's keys 16 side by side, its values by pairs of keys."""

    def begin(self, chunks: Sequence[Chunk]) -> None:
        """Announce the rows of the next step, in the order of their tokens."""
        counts = [chunk.count for chunk in chunks]
        self.num_chunks, self.most = len(chunks), max(len(chunk.blocks) for chunk in chunks)
        firsts = [0]
        for count in counts[:-1]:
            firsts.append(firsts[-1] + count)
        self.rows = _numbers([firsts, counts])
        positions = [place for chunk in chunks for place in range(chunk.start, chunk.start + chunk.count)]
        self.places = _numbers(positions)
        padding = [0] * self.most
        self.table = _numbers([[*chunk.blocks, *padding[len(chunk.blocks) :]] for chunk in chunks])
        ends = [chunk.start + chunk.count for chunk in chunks]
        self.longest = max(ends)
        # Compiled code looks at no bounds.
        assert all(len(chunk.blocks) * self.block_size >= end for chunk, end in zip(chunks, ends)), "a block is missing"
        assert 0 <= int(self.table.min()) <= int(self.table.max()) < self.num_blocks, "a block that is not there"

    def put(self, rows: Sequence[Sequence[int]], keys: Tensor, values: Tensor) -> None:
        """Put keys and values (L, G, P, D) of virtual tokens at the beginning of rows, given by their blocks."""
        layers, blocks, groups, size, width = self.keys.shape
        kept_keys = self.keys.view(layers, blocks, groups, size // 16, width // 2, 16, 2)
        kept_values = self.values.view(layers, blocks, groups, width // 16, size // 2, 16, 2)
        for place in range(keys.shape[2]):
            own, slot = [row[place // size] for row in rows], place % size
            key, value = (each[:, None, :, place].to(self.keys.dtype) for each in (keys, values))  # (L, 1, G, D)
            kept_keys[:, own, :, slot // 16, :, slot % 16] = torch.unflatten(key, -1, (-1, 2))
            kept_values[:, own, :, :, slot // 2, :, slot % 2] = torch.unflatten(value, -1, (-1, 16))


class Fused:
    """The compiled step of a model whose matrices are compiled (`Lowered.model`), as its weights are now."""

    def __init__(self, model: Decoder) -> None:
        """Raises nothing for a model for which `can` holds."""
        assert model.rotary is not None
        self._model = model
        self._kept: list[Tensor] = []
        config, rotary = model.config, model.rotary
        blocks: list[Any] = list(model.blocks)
        first, head = blocks[0], cast(Any, model.head)
        cosines, sines = self._floats(rotary.cosines), self._floats(rotary.sines)
        layers = [self._layer(block, cosines, sines) for block in blocks]
        self._layers = (native.Layer * len(layers))(*layers)
        scale = first.attention.rule.scale
        self._network = native.Network(
            len(layers),
            config.width,
            config.num_heads,
            config.num_key_value_heads,
            config.head_width,
            first.feedforward.down.in_features,
            rotary.cosines.shape[1],
            first.attention_norm.epsilon,
            config.head_width**-0.5 if scale is None else scale,
            self._layers,
            self._norm(model.final_norm),
            head.native,
        )
        self._vocab_size: int = head.out_features
        self._context = len(rotary.cosines)
        # Their tensors are pointed at; refilled, they have others.
        self._matrices = [each.kept for each in model.modules() if isinstance(each, Matrix)]

    def logits(self, tokens: Sequence[int], ends: Sequence[int], cache: LaidOut) -> Tensor:
        """Compute the rows that were announced to the cache; the logits behind the tokens at `ends`, (ends, V)."""
        x = self._model.embed(torch.tensor(tokens, dtype=torch.int64, device="cpu")).float().contiguous()
        assert cache.places.shape == (len(tokens),), f"{len(tokens)} tokens for {len(cache.places)} announced"
        assert cache.longest <= self._context, "a position beyond the rotary table"
        logits = torch.empty(len(ends), self._vocab_size, dtype=torch.float32, device="cpu")
        asked = _numbers(ends)
        firsts, counts = cache.rows
        native.compute(
            self._network,
            native.Step(
                0,
                len(tokens),
                cache.num_chunks,
                cache.most,
                len(ends),
                *(native.pointer(each) for each in (x, cache.places, firsts, counts, cache.table)),
                *(native.pointer(each) for each in (cache.keys, cache.values)),
                cache.num_blocks,
                *(native.pointer(each) for each in (asked, logits)),
            ),
        )
        return logits

    def _layer(self, block: Any, cosines: int, sines: int) -> native.Layer:
        attention, feedforward = block.attention, block.feedforward
        return native.Layer(
            self._norm(block.attention_norm),
            self._norm(block.feedforward_norm),
            self._norm(attention.query_norm),
            self._norm(attention.key_norm),
            *(each.native for each in (attention.joined, attention.output, feedforward.joined, feedforward.down)),
            attention.rule.window or 0,
            cosines,
            sines,
        )

    def _norm(self, norm: Any) -> int | None:
        return None if norm is None else self._floats(norm.weight.detach().float() + norm.offset)

    def _floats(self, tensor: Tensor) -> int:
        """Where a copy in fp32 lies that stays for as long as this does."""
        self._kept.append(tensor.detach().float().contiguous())
        return self._kept[-1].data_ptr()


def can(model: Decoder, block_size: int) -> bool:
    """Whether a lowered model is one whose steps are compiled whole."""
    config, blocks = model.config, cast(Any, model.blocks)
    plain = (model.embedding_norm, model.position_embedding, model.logit_softcap)
    methods = (type(model).angles, type(model).through, type(model).hidden, type(model).logits)
    own = (Decoder.angles, Decoder.through, Decoder.hidden, Decoder.logits)
    return (
        block_size == _BLOCK_SIZE
        and _compiled(model.head)
        and all(each is None for each in plain)
        and methods == own
        and model.rotary is not None
        and not model.rotary.interleaved
        and config.width % native.GROUP == 0
        and _normalises(model.final_norm, config.width)
        and config.head_width % 32 == 0
        and config.head_width <= _WIDEST
        and all(_is_plain(block, config.width, config.head_width) for block in blocks)
        and {_heads(each.attention) for each in blocks} == {_heads(config)}
        and len({(each.attention.rule.scale, each.feedforward.down.in_features) for each in blocks}) == 1
        and len({each.bits for each in model.blocks.modules() if isinstance(each, Matrix)}) == 1
        and len({norm.epsilon for norm in model.modules() if isinstance(norm, RMSNorm)}) == 1
    )


def _heads(sizes: Any) -> tuple[int, int, int]:
    return sizes.num_heads, sizes.num_key_value_heads, sizes.head_width


def _is_plain(block: nn.Module, width: int, head_width: int) -> bool:
    if type(block) is not Block or block.attention_output_norm is not None or block.feedforward_output_norm is not None:
        return False
    attention: Any = block.attention
    feedforward = block.feedforward
    if type(attention) is not Attention or type(feedforward) is not SwiGLU:
        return False
    matrices: list[Any] = [attention.joined, attention.output, feedforward.joined, feedforward.down]
    norms = (attention.query_norm, attention.key_norm)
    return (
        all(_compiled(each) and each.in_features % native.GROUP == 0 for each in matrices)
        and _normalises(block.attention_norm, width)
        and _normalises(block.feedforward_norm, width)
        and (norms == (None, None) or all(_normalises(each, head_width) for each in norms))
        and feedforward.activation is ACTIVATIONS["silu"]
        and not attention.rule.alibi
        and attention.rule.softcap is None
    )


def _numbers(values: Any) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device="cpu")


def _compiled(module: nn.Module | None) -> bool:
    return isinstance(module, Matrix) and module.compiled


def _normalises(module: nn.Module | None, width: int) -> bool:
    return type(module) is RMSNorm and module.weight.shape == (width,)
