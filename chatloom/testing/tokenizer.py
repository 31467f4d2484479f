"""A tokenizer without merges: one token a byte, and the special tokens. Needs no training text worth the name."""

from functools import cache

from chatloom.tokenizers.bpe import END_OF_TEXT, MINIMUM_VOCAB_SIZE, Tokenizer, train_tokenizer


@cache
def byte_tokenizer() -> Tokenizer:
    """The tokenizer, of MINIMUM_VOCAB_SIZE tokens."""
    return train_tokenizer(["a"], vocab_size=MINIMUM_VOCAB_SIZE)


@cache
def beginless_tokenizer() -> Tokenizer:
    """The same of a chat model that declares a bos with which no text of its begins, as SmolLM2 does."""
    config = {"bos_token": "<|reserved_0|>", "eos_token": END_OF_TEXT}
    return Tokenizer(byte_tokenizer().serialized, config=config)
