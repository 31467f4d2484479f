"""Log-probabilities of an answer as OpenAI gives them, token by token.

A token may be a part of a character: its `token` then has U+FFFD in it, and `bytes` has what it is. In a chat the
tokens that end an answer, or that a stop string cut off, are no part of it and are left out; a completion lists every
token that was generated, which those who score texts by `echo` count on.
"""

import json
from collections.abc import Sequence
from functools import cached_property

from chatloom.engine.request import Completion
from chatloom.server.generation import Generation
from chatloom.server.schemas import Likely, TextLogprobs, TokenLogprob
from chatloom.tokenizers.bpe import Tokenizer


class TokenTexts:
    """Tokens as text and as bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer

    def text(self, token: int) -> str:
        """As a reader would see it."""
        return self.tokenizer.token(token)

    def name(self, token: int) -> str:
        """Its text, or `bytes:\\xe2\\x80` where that would not tell it from others."""
        text = self.text(token)
        if "\ufffd" not in text:
            return text
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in self.bytes(token))

    def bytes(self, token: int) -> list[int]:
        """Its UTF-8, or the part of a character that it is."""
        spelled = self._spelled.get(token)
        text = self.text(token)
        if spelled is not None and "\ufffd" in text and all(letter in self._byte_of for letter in spelled):
            return [self._byte_of[letter] for letter in spelled]
        return list(text.encode("utf-8", "replace"))

    @cached_property
    def _spelled(self) -> dict[int, str]:
        return {number: spelled for spelled, number in self.tokenizer.vocabulary.items()}

    @cached_property
    def _byte_of(self) -> dict[str, int]:
        """The letter that stands for each byte in a byte-level vocabulary (Radford et al. 2019)."""
        if "ByteLevel" not in json.dumps(json.loads(self.tokenizer.serialized)["decoder"]):
            return {}
        printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
        others = [byte for byte in range(256) if byte not in printable]
        return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


class Noted:
    """The log-probabilities of an answer, given out as its text grows."""

    def __init__(self, tokenizer: Tokenizer, generation: Generation) -> None:
        self._texts = TokenTexts(tokenizer)
        self._generation = generation
        self._given = 0

    def chat(self) -> list[TokenLogprob]:
        """Those that have come since the last time: of tokens whose text has come, none that a stop string cuts off."""
        completion = self._generation.completion
        tokens = completion.tokens
        if tokens and tokens[-1] in self._generation.sampling.stop_tokens:
            tokens = tokens[:-1]
        first, end = self._given, len(tokens)
        if self._generation.sampling.stop:
            end = first
            while end < len(tokens) and self._length(tokens[:end]) < len(completion.text):
                end += 1
        self._given = end
        return [self._entry(completion, place) for place in range(first, end)]

    def _length(self, tokens: Sequence[int]) -> int:
        """Characters of the text; one that is not whole yet does not count."""
        text = self._texts.tokenizer.decode(tokens)
        return len(text) - text.endswith("\ufffd")

    def _entry(self, completion: Completion, place: int) -> TokenLogprob:
        top = [] if completion.top_logprobs is None else completion.top_logprobs[place]
        own = self._likely(completion.tokens[place], completion.logprobs[place])
        return TokenLogprob(**own.model_dump(), top_logprobs=[self._likely(token, value) for token, value in top])

    def _likely(self, token: int, logprob: float) -> Likely:
        return Likely(token=self._texts.text(token), logprob=finite(logprob), bytes=self._texts.bytes(token))


def text_logprobs(
    texts: TokenTexts,
    tokens: Sequence[int],
    logprobs: Sequence[float | None],
    top: Sequence[Sequence[tuple[int, float]]] | None,
    *,
    offset: int,
) -> TextLogprobs:
    """Tokens and their log-probabilities as lists; the first token begins at character `offset` of the text."""
    offsets, end = [], offset
    for token in tokens:
        offsets.append(end)
        end += len(texts.tokenizer.decode([token]))
    likely: list[dict[str, float] | None] = []
    for place, (token, logprob) in enumerate(zip(tokens, logprobs)):
        if logprob is None:
            likely.append(None)
            continue
        pairs = () if top is None else top[place]
        likely.append({texts.name(each): finite(value) for each, value in (*pairs, (token, logprob))})
    return TextLogprobs(
        tokens=[texts.name(token) for token in tokens],
        token_logprobs=[None if logprob is None else finite(logprob) for logprob in logprobs],
        top_logprobs=likely,
        text_offset=offsets,
    )


def finite(logprob: float) -> float:
    """JSON has no -inf; OpenAI says -9999 for what has no probability to speak of."""
    return max(logprob, -9999.0)
