"""What a person sees while something runs: a live bar in a terminal, a line now and then in a log file.

Everything goes to standard error, so that results on standard output can be piped. Ranks other than the first show
nothing.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from chatloom import runtime

Clock = Callable[[], float]


class Advance(Protocol):
    """Tells a progress display that work is done."""

    def __call__(self, count: int = 1, *, details: str = "") -> None:
        """`count` more items are done; `details` stand behind the bar."""


@contextlib.contextmanager
def progress(
    description: str,
    total: int,
    *,
    done: int = 0,
    console: Console | None = None,
    clock: Clock = time.monotonic,
    plain_every_seconds: float = 10.0,
) -> Iterator[Advance]:
    """Show that `total` items are worked on, `done` of them before; yields `advance(count, details=...)`.

    Args:
        console: where to; None is standard error.
        clock: seconds; tests give their own.
        plain_every_seconds: how often a line is written where there is no terminal.
    """
    console = console or Console(stderr=True)
    if not runtime.is_main():
        yield _silent
    elif console.is_terminal:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[details]}", style="dim"),
        )
        with Progress(*columns, console=console, get_time=clock, refresh_per_second=4) as bar:
            task = bar.add_task(f"{description:<12}", total=total, completed=done, details="")

            def advance(count: int = 1, *, details: str = "") -> None:
                bar.update(task, advance=count, details=details)

            yield advance
    else:
        lines = _Lines(description, total, done, console, clock, plain_every_seconds)
        try:
            yield lines.advance
        finally:
            lines.write()


def _silent(count: int = 1, *, details: str = "") -> None:
    """Another rank shows it."""


class _Lines:
    """`pretrain 120/400 · ETA 0:42 · loss 2.310`, at most one in so many seconds, and one at the end."""

    def __init__(
        self, description: str, total: int, done: int, console: Console, clock: Clock, every_seconds: float
    ) -> None:
        self.description, self.total, self.done = description, total, done
        self.console, self.clock, self.every_seconds = console, clock, every_seconds
        self.first_done, self.details, self.written = done, "", -1
        self.started = self.last_line = clock()

    def advance(self, count: int = 1, *, details: str = "") -> None:
        self.done += count
        self.details = details
        if self.clock() - self.last_line >= self.every_seconds:
            self.write()

    def write(self) -> None:
        if self.written == self.done:
            return
        self.last_line, self.written = self.clock(), self.done
        parts = [f"{self.description} {self.done}/{self.total}"]
        fresh = self.done - self.first_done
        if fresh and self.done < self.total:
            seconds = (self.last_line - self.started) / fresh * (self.total - self.done)
            parts.append(f"ETA {int(seconds) // 60}:{int(seconds) % 60:02d}")
        if self.details:
            parts.append(self.details)
        self.console.print(" · ".join(parts), markup=False, highlight=False, soft_wrap=True)
