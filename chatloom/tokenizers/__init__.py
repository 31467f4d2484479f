"""Training, saving and loading byte-level tokenizers; Hugging Face `tokenizers` does the work."""

from chatloom.tokenizers.bpe import SPECIAL_TOKENS, Tokenizer, train_tokenizer

__all__ = ["SPECIAL_TOKENS", "Tokenizer", "train_tokenizer"]
