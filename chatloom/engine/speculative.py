"""Speculative decoding: guessed tokens are computed together, and kept as far as they are what would have been drawn.

* A guess costs no exactness. Each token is drawn from the model's own distribution with the request's own random number
  for its place, as without guesses, and guesses behind the first wrong one are forgotten. So the answer is the same,
  token for token, and its distribution is the model's (Leviathan, Kalman, Matias 2023, Fast Inference from Transformers
  via Speculative Decoding).
* Guesses come from the text itself, by what followed its last tokens before (Saxena 2023, Prompt Lookup Decoding), or
  from a smaller model, which draws with the same random numbers: where the two distributions are alike, so are the
  tokens (Daliri, Musco, Suresh 2025, Coupling without Communication and Drafter-Invariant Speculative Decoding).
* What a grammar forces is a guess, too.
* A processor that many rows keep busy gains nothing by guesses: with more than `max_rows` rows there are none.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Protocol

from chatloom.engine.runner import Row
from chatloom.engine.scheduler import Sequence as Scheduled

if TYPE_CHECKING:
    from chatloom.engine.engine import Engine

# A row of which fewer guesses than this share were right, in so many, is left alone but for every so many tokens.
_LEAST_SHARE, _AFTER, _EVERY = 0.2, 16, 32


class Drafter(Protocol):
    """Guesses what comes next."""

    @property
    def num_tokens(self) -> int:
        """The most tokens guessed at a time."""

    @property
    def max_rows(self) -> int:
        """The most rows under way for which guesses are made."""

    def draft(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        """The next tokens of each row, as many as `most` says, or fewer, or none."""


class PromptLookup:
    """Guesses that a text goes on as it did where its last tokens stood before."""

    def __init__(self, *, num_tokens: int = 8, longest: int = 3, shortest: int = 2, max_rows: int = 4) -> None:
        """At most `num_tokens` behind the latest earlier place of the last `longest` tokens, or of fewer."""
        _at_least_one(num_tokens=num_tokens, shortest=shortest, max_rows=max_rows)
        if longest < shortest:
            raise ValueError(f"longest is {longest}; it must be at least shortest, which is {shortest}")
        self.num_tokens, self.longest, self.shortest, self.max_rows = num_tokens, longest, shortest, max_rows

    def draft(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        """What followed before."""
        return [self._continuation(row.tokens, count) for row, count in zip(rows, most)]

    def _continuation(self, tokens: list[int], most: int) -> list[int]:
        last = tokens[-1]
        for size in range(self.longest, self.shortest - 1, -1):
            tail = tokens[-size:]
            for end in range(len(tokens) - 1, size - 1, -1):
                if tokens[end - 1] == last and tokens[end - size : end] == tail:
                    return tokens[end : end + most]
        return []


class DraftModel:
    """Guesses what a smaller model of the same tokenizer would say."""

    def __init__(self, engine: "Engine", *, num_tokens: int = 4, max_rows: int = 4) -> None:
        """`engine` is the smaller model's own, with nobody else to serve."""
        _at_least_one(num_tokens=num_tokens, max_rows=max_rows)
        self.engine, self.num_tokens, self.max_rows = engine, num_tokens, max_rows

    def check(self, vocab_size: int) -> None:
        """ValueError if it has not the vocabulary of the model that it guesses for."""
        own = self.engine.model.config.vocab_size
        if own != vocab_size:
            raise ValueError(
                f"the draft model has {own} tokens and the model {vocab_size}; give a draft model of the same tokenizer"
            )

    def draft(self, rows: Sequence[Row], most: Sequence[int]) -> list[list[int]]:
        """What it draws with the rows' own random numbers."""
        guesses: dict[int, Row] = {}
        for place, (row, count) in enumerate(zip(rows, most)):
            text = row.tokens[row.num_virtual :]
            if len(text) + count > self.engine.context_length:
                continue
            asked = replace(row.sampling, max_tokens=count, stop=(), n=1, best_of=None, grammar=None, adapter=None)
            [own] = self.engine._rows([text], [asked], [row.seed])
            own.uniforms = row.uniforms[len(row.logprobs) :]
            own.matcher = None if row.matcher is None else row.matcher.fork()
            own.remember_answer = True  # the next guess begins with what is kept of this one
            guesses[place] = own
        self.engine._complete(list(guesses.values()))
        return [guesses[place].answer if place in guesses else [] for place in range(len(rows))]


def propose(drafter: Drafter, running: Sequence[Scheduled], *, num_waiting: int) -> None:
    """Have each row that runs carry its guesses (`Sequence.drafted`) into the next plan, or none."""
    rows = [row for row in running if isinstance(row, Row)]
    for row in rows:
        row.drafted = []
    if num_waiting or len(rows) > drafter.max_rows:
        return
    pairs = [(row, min(drafter.num_tokens, row.limit - len(row.logprobs) - 1)) for row in rows if _pays(row)]
    pairs = [(row, count) for row, count in pairs if count > 0]
    for row, count in pairs:
        if row.matcher is not None:
            row.drafted = row.matcher.forced(count)
    pairs = [(row, count) for row, count in pairs if not row.drafted]
    if pairs:
        guesses = drafter.draft([row for row, _ in pairs], [count for _, count in pairs])
        for (row, count), guess in zip(pairs, guesses):
            row.drafted = guess[:count]


def _pays(row: Row) -> bool:
    """Whether a row waits for one token that its distribution and grammar alone decide, and guesses have been right."""
    params = row.sampling
    if row.num_missing != 1 or params.changes_logits or params.top_logprobs:
        return False
    good = row.num_guessed < _AFTER or row.num_right >= _LEAST_SHARE * row.num_guessed
    return good or len(row.logprobs) % _EVERY == 0


def _at_least_one(**numbers: int) -> None:
    for name, number in numbers.items():
        if number < 1:
            raise ValueError(f"{name} is {number}; it must be at least 1")
