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
        while not row.pieces:
            if row.error is not None:
                raise row.error
            if row.reason is not None and not row.pieces:
                raise StopIteration
            self._engine._until(row.has_news)
        return "".join(row.pieces.popleft() for _ in range(len(row.pieces)))

    @property
    def finished(self) -> bool:
        """Whether nothing more will be computed."""
        return self._row.ended

    def result(self) -> Completion:
        """The whole completion; waits for its end. Raises what went wrong with the model."""
        while not self._row.ended:
            self._engine._until(self._row.has_ended)
        return self._row.completion(self._engine.tokenizer.decode)

    def cancel(self) -> None:
        """End the request now: its blocks are given back, its result is what there is. No harm where it has ended."""
        self._engine._cancel(self._row)
