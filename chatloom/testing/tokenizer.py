"""A tokenizer without merges: one token a byte, and the special tokens. Needs no training text worth the name."""

from functools import cache

from chatloom.tokenizers.bpe import MINIMUM_VOCAB_SIZE, Tokenizer, train_tokenizer


@cache
def byte_tokenizer() -> Tokenizer:
    """The tokenizer, of MINIMUM_VOCAB_SIZE tokens."""
    return train_tokenizer(["a"], vocab_size=MINIMUM_VOCAB_SIZE)
