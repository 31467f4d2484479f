"""Rows of real text: docstrings of Python's standard library, or a file of one's own."""

from pathlib import Path

import torch
from torch import Tensor

from chatloom.recipes.smollm2_rlhf import docstrings
from chatloom.tokenizers.bpe import Tokenizer


def rows(tokenizer: Tokenizer, file: str | None, num_tokens: int, length: int) -> Tensor:
    """As many whole rows of `length` tokens as `num_tokens` fill: (rows, length). None: the docstrings."""
    tokens: list[int] = []
    for text in docstrings() if file is None else [Path(file).read_text(encoding="utf-8")]:
        if len(tokens) >= num_tokens:
            break
        tokens += tokenizer.document_start + tokenizer.encode(text)
    count = min(len(tokens), num_tokens) // length
    return torch.tensor(tokens[: count * length]).view(count, length)
