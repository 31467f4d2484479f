"""Beam search: of all continuations of the `num_beams` likeliest beginnings, the `num_beams` likeliest, and so on.

Each beam is a row of one more token among all other rows. It finds the blocks of its beginning under their names: whole
ones are shared, and the one that is written next is copied first, so beams hold what they have in common once.

A beginning that ends (stop token) among the `num_beams` best candidates is put aside; the search is over when nothing
that is under way could become better than the worst of `num_beams` such. The score is the sum of log-probabilities
divided by length ** length_penalty, where the end counts (Wu et al. 2016, section 7, in the form that libraries use).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chatloom.engine.request import Completion, FinishReason
from chatloom.engine.runner import Row


@dataclass(frozen=True, slots=True)
class Beam:
    """A beginning of an answer."""

    tokens: tuple[int, ...] = ()
    logprobs: tuple[float, ...] = ()

    @property
    def total(self) -> float:
        """Its log-probability."""
        return sum(self.logprobs)


class Search:
    """One prompt's search: `rows` are to be computed, then `advance`; over when there are none."""

    def __init__(self, root: Row) -> None:
        """`root` is the prompt, settled like any request."""
        self.root = root
        self.params = root.sampling
        self.limit = root.limit
        self.live = [Beam()]
        self.done: list[tuple[float, Beam]] = []
        self._prompt = list(root.tokens)
        self._prepare(root)
        self.rows = [root]

    def advance(self) -> None:
        """Take what was computed for the rows, and have those of the next step."""
        candidates: list[Beam] = []
        for beam, row in zip(self.live, self.rows):
            if row.error is not None:
                raise row.error
            for token, logprob in row.top_logprobs[0]:
                candidates.append(Beam((*beam.tokens, token), (*beam.logprobs, logprob)))
        candidates.sort(key=lambda beam: -beam.total)  # stable: of equals the first
        width, ends = self.params.num_beams, self.params.stop_tokens
        self.done += [(self._score(beam), beam) for beam in candidates[:width] if beam.tokens[-1] in ends]
        self.live = [beam for beam in candidates if beam.tokens[-1] not in ends][:width]
        if len(self.live[0].tokens if self.live else ()) >= self.limit:
            self.done += [(self._score(beam), beam) for beam in self.live]
            self.live = []
        self.done = sorted(self.done, key=lambda pair: -pair[0])[:width]
        if self._is_over():
            self.live = []
        self.rows = [self._row(beam) for beam in self.live]

    def completions(self, decode: Callable[[list[int]], str]) -> list[Completion]:
        """The `n` best, best first."""
        given = []
        for _, beam in self.done[: self.params.n]:
            tokens = list(beam.tokens)
            stopped = tokens[-1] in self.params.stop_tokens
            reason: FinishReason = "stop" if stopped else "length"
            text = decode(tokens[:-1] if stopped else tokens)
            given.append(Completion(text, tokens, list(beam.logprobs), reason))
        return given

    def _score(self, beam: Beam, *, length: int | None = None) -> float:
        return beam.total / float((length or len(beam.tokens)) ** self.params.length_penalty)

    def _is_over(self) -> bool:
        """Whether no beam could still become one of the best: its log-probability can only fall."""
        if len(self.done) < self.params.num_beams or not self.live:
            return not self.live
        best = self.live[0]
        # Divided by more, a negative number rises.
        length = self.limit if self.params.length_penalty > 0 else len(best.tokens) + 1
        return self._score(best, length=length) <= self.done[-1][0]

    def _row(self, beam: Beam) -> Row:
        tokens = [*self._prompt, *beam.tokens]
        row = Row(
            order=self.root.order,  # the search keeps its place among the requests
            tokens=tokens,
            num_prompt=len(tokens),
            num_virtual=self.root.num_virtual,
            space=self.root.space,
            adapter=self.root.adapter,
            sampling=self.params,
            seed=None,
            limit=1,
            text=None,
        )
        self._prepare(row)
        return row

    def _prepare(self, row: Row) -> None:
        row.limit = 1
        # With so many of each row, `num_beams` are among them that do not end.
        row.num_likeliest = self.params.num_beams + len(self.params.stop_tokens)


def search(roots: Sequence[Row], compute: Callable[[list[Row]], object]) -> list[Search]:
    """Search for several prompts at once; `compute` lets rows be computed to their ends."""
    searches = [Search(root) for root in roots]
    while rows := [row for one in searches for row in one.rows]:
        compute(rows)
        for one in searches:
            if one.rows:
                one.advance()
    return searches
