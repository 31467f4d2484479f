"""How many blocks the cache may have, and whether an error says that there is no memory for more."""

import os

import torch

from chatloom.models import DecoderConfig
from chatloom.nn.quantised_cache import bytes_of_a_head
from chatloom.nn.sinks import Kept

_SHARE = 0.25  # of the memory there is: weights, activations and other programs need theirs


def num_blocks(a_row: int, *, rows: int, block_size: int, token_bytes: int, device: torch.device) -> int:
    """Enough for `rows` rows of `a_row` blocks if they take no more than a quarter of the memory; for one at least."""
    return max(a_row, min(rows * a_row, int(_SHARE * _memory_bytes(device)) // (block_size * token_bytes)))


def bytes_of_a_token(config: DecoderConfig, dtype: torch.dtype, kv_dtype: str | None = None) -> int:
    """What the keys and values of one token take, computed in `dtype`, kept in that or in "int8"."""
    width = config.head_width
    a_head = width * (torch.finfo(dtype).bits // 8) if kv_dtype is None else bytes_of_a_head(width)
    return 2 * config.num_layers * config.num_key_value_heads * a_head


def blocks_of_a_row(config: DecoderConfig, block_size: int, num_virtual: int, kept: Kept | None = None) -> int:
    """The most blocks that a row needs: the whole context, or what is kept of an endless text."""
    whole = -(-(config.context_length + num_virtual) // block_size)
    return whole if kept is None else kept.num_blocks(block_size)


def out_of_memory(error: Exception) -> bool:
    """Whether a computation failed for want of memory: torch has a type of its own for that on a GPU only."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and "allocate memory" in str(error)


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
