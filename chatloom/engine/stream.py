"""One request under way: its text in pieces, as they become certain, its result, and how to end it early."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from chatloom.engine.request import Completion
from chatloom.engine.runner import Row

if TYPE_CHECKING:
    from chatloom.engine.engine import Engine


class Stream:
    """An iterator over pieces of text; used by one thread, cancelled by any.

    A piece never ends within a character or a stop string; put together they are `Completion.text`.
    """

    def __init__(self, engine: "Engine", row: Row) -> None:
        self._engine = engine
        self._row = row

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        """The next piece; waits for it, or computes it where no worker does. Raises what went wrong with the model."""
        row = self._row
        while True:
            ended = row.reason is not None  # first: all pieces are there by then
            if piece := self.take():
                return piece
            if ended:
                raise StopIteration
            self._engine._until(row.has_news)

    def take(self) -> str:
        """The text that has come since the last piece, often none; never waits. Raises what went wrong."""
        row = self._row
        piece = "".join(row.pieces.popleft() for _ in range(len(row.pieces)))
        if not piece and row.error is not None:
            raise row.error
        return piece

    @property
    def has_news(self) -> bool:
        """Whether `take` has something to give, or nothing more will come."""
        return self._row.has_news()

    @property
    def finished(self) -> bool:
        """Whether nothing more will be computed."""
        return self._row.ended

    @property
    def num_cached(self) -> int:
        """Tokens of the prompt that were found computed when it began."""
        return max(0, self._row.num_found - self._row.num_virtual)

    def so_far(self) -> Completion:
        """What there is of the completion; as if "cancelled" while it goes on. Never waits."""
        row = self._row
        known = len(row.logprobs)  # they come last
        top = [*row.top_logprobs[:known]] or None
        text = "".join([*row.kept])
        scores = row.prompt_logprobs, None if row.prompt_logprobs is None else row.prompt_top_logprobs
        return Completion(text, row.answer[:known], row.logprobs[:known], row.reason or "cancelled", top, *scores)

    def result(self) -> Completion:
        """The whole completion; waits for its end. Raises what went wrong with the model."""
        while not self._row.ended:
            self._engine._until(self._row.has_ended)
        return self._row.completion(self._engine.tokenizer.decode)

    def cancel(self) -> None:
        """End the request now: its blocks are given back, its result is what there is. No harm where it has ended."""
        self._engine._cancel(self._row)
