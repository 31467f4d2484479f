"""Does serving hold its memory? `python benchmarks/soak.py [--minutes 15] [--model smollm2] [--plot soak.svg]`.

Some clients send one engine in its serving mode random requests, one after the other: greedy and sampled, with stop
strings, penalties, grammars and shared beginnings; some are cancelled on the way, and some are too long or nonsense and
must be refused. The cache is too small for all of them, so that requests also give way and are computed again.

The exit status is 1 if a request fails or hangs, if a block is held at the end, or if memory is not flat: the line
fitted to the resident memory after the first quarter, which is warming up, may rise by no more than `--tolerance` from
there to the end. Linux alone: it reads /proc.
"""

import gc
import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import tyro
from rich.console import Console

import chatloom
from chatloom import runtime
from chatloom.engine.engine import Engine
from chatloom.engine.grammar import Grammar
from chatloom.engine.request import MAX_SEED, Overloaded, SamplingParams
from chatloom.engine.speculative import PromptLookup
from chatloom.evals import plots
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

MIB = 1 << 20
PATIENCE = 120.0  # seconds that a request may take
GRAMMARS: tuple[tuple[Grammar, Callable[[str], bool] | None], ...] = (
    (Grammar.choice(["yes", "no", "perhaps"]), lambda text: text in ("yes", "no", "perhaps")),
    (Grammar.regex("[0-9]{1,4}(-[0-9]{2}){0,2}"), lambda text: set(text) <= set("0123456789-")),
    (Grammar.json(), None),
    (
        Grammar.json_schema({"type": "array", "items": {"enum": [1, 22, None]}, "maxItems": 5}),
        lambda text: text.startswith("["),
    ),
)
console = Console(width=110, highlight=False)


@dataclass(frozen=True)
class Config:
    """Serve random requests for a while and watch the memory."""

    minutes: float = 15.0
    # "tiny" is a random model of two layers; else what chatloom.load opens.
    model: str = "tiny"
    dtype: str | None = None
    threads: int = 1
    # Clients, each with one request at a time; fewer run at once.
    clients: int = 12
    max_batch: int = 8
    # Longest prompt and answer, and tokens whose keys and values are kept: room for about half of what runs at once.
    longest: int = 96
    cache_tokens: int = 1024
    seed: int = 0
    # Guess tokens by prompt look-up while few requests run.
    draft: bool = True
    # How much the line through the resident memory may rise, in per cent of it, or 8 MiB where that is more.
    tolerance: float = 2.0
    # Draw the memory into this file.
    plot: Path | None = None


def resident() -> float:
    """MiB of memory that the process holds."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / MIB


def opened(config: Config) -> Engine:
    """The engine, small enough to be crowded."""
    options: dict[str, Any] = {"max_batch": config.max_batch, "cache_tokens": config.cache_tokens}
    options |= {"max_waiting": 2 * config.clients, "step_tokens": 64}
    options["drafter"] = PromptLookup(shortest=1, max_rows=config.max_batch) if config.draft else None
    if config.model == "tiny":
        return Engine(tiny_llama(context_length=2 * config.longest + 64), byte_tokenizer(), **options)
    lm = chatloom.load(config.model, dtype=config.dtype)
    assert isinstance(lm.engine, Engine)
    return Engine(lm.model, lm.tokenizer, autocast=lm.engine.autocast, **options)


class Soak:
    """The clients and what came of their requests."""

    def __init__(self, config: Config, engine: Engine) -> None:
        self.config, self.engine = config, engine
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self.num_tokens = 0
        self.since = [time.monotonic()] * config.clients  # when each client last began a request
        self.stop = threading.Event()
        draw = random.Random(config.seed)
        self._words = min(engine.model.config.vocab_size, 40_000) - 20
        self._shared = [self._tokens(draw, config.longest // 2) for _ in range(5)]
        self._lock = threading.Lock()

    def client(self, number: int) -> None:
        """Requests, one after the other, until it is told to stop."""
        draw = random.Random(self.config.seed * 1000 + number + 1)
        kinds: tuple[Callable[[random.Random], str], ...] = (
            *(self._ordinary, self._ordinary, self._ordinary, self._held, self._cancelled, self._several),
            *(self._too_long, self._nonsense),
        )
        while not self.stop.is_set():
            self.since[number] = time.monotonic()
            kind = draw.choice(kinds)
            try:
                outcome = kind(draw)
            except Overloaded:
                outcome = "shed"
                time.sleep(0.1)
            except Exception as error:
                outcome = "failed"
                with self._lock:
                    self.errors.append(f"{kind.__name__}: {type(error).__name__}: {error}")
            with self._lock:
                self.counts[outcome] += 1

    def _tokens(self, draw: random.Random, count: int) -> list[int]:
        return [20 + draw.randrange(self._words) for _ in range(count)]

    def _prompt(self, draw: random.Random) -> list[int]:
        """Half of them begin like others."""
        beginning = draw.choice(self._shared) if draw.random() < 0.5 else []
        return beginning + self._tokens(draw, draw.randint(1, self.config.longest - len(beginning)))

    def _params(self, draw: random.Random, **fixed: Any) -> SamplingParams:
        options: dict[str, Any] = {"max_tokens": draw.randint(1, self.config.longest), "temperature": 0.0}
        if draw.random() < 0.6:
            options |= {"temperature": draw.choice((0.7, 1.0, 1.5)), "seed": draw.randrange(MAX_SEED)}
            options |= draw.choice(({}, {"top_k": 20}, {"top_p": 0.9}, {"min_p": 0.05}))
        options |= draw.choice(({}, {}, {"repetition_penalty": 1.2}, {"presence_penalty": 0.5}, {"top_logprobs": 3}))
        options |= draw.choice(({}, {}, {"stop": ("e", " the")}, {"stop_tokens": (20, 21, 22)}))
        return SamplingParams(**(options | fixed))

    def _count(self, num_tokens: int) -> None:
        with self._lock:
            self.num_tokens += num_tokens

    def _ordinary(self, draw: random.Random) -> str:
        params = self._params(draw)
        stream = self.engine.submit(self._prompt(draw), params)
        text = "".join(stream)
        done = stream.result()
        self._count(len(done.tokens))
        assert text == done.text, "the pieces are not the text"
        assert not any(stop in text for stop in params.stop), "a stop string is in the text"
        assert done.finish_reason in ("stop", "length")
        return "ordinary"

    def _held(self, draw: random.Random) -> str:
        grammar, fits = draw.choice(GRAMMARS)
        params = self._params(draw, grammar=grammar, stop=(), stop_tokens=())
        done = self.engine.submit(self._prompt(draw), params).result()
        self._count(len(done.tokens))
        whole = done.finish_reason == "stop"
        assert not whole or fits is None or fits(done.text), f"{done.text!r} is not of its grammar"
        return "held to a grammar"

    def _cancelled(self, draw: random.Random) -> str:
        stream = self.engine.submit(self._prompt(draw), self._params(draw))
        if draw.random() < 0.7:
            for _ in range(draw.randint(1, 8)):
                if next(stream, None) is None:
                    break
        stream.cancel()
        self._count(len(stream.result().tokens))
        return "cancelled"

    def _several(self, draw: random.Random) -> str:
        fixed: dict[str, Any] = {"n": 2, "temperature": 1.0, "max_tokens": 8}
        if draw.random() < 0.3:
            fixed = {"num_beams": 2, "temperature": 0.0, "max_tokens": 6}
        params = SamplingParams(**fixed)
        done = self.engine.generate([self._prompt(draw), self._prompt(draw)], params)
        self._count(sum(len(each.tokens) for each in done))
        assert len(done) == 2 * params.n
        return "several at once"

    def _too_long(self, draw: random.Random) -> str:
        try:
            self.engine.submit(self._tokens(draw, self.engine.context_length + draw.randrange(9)), self._params(draw))
        except ValueError:
            return "refused"
        raise AssertionError("a prompt that does not fit was taken")

    def _nonsense(self, draw: random.Random) -> str:
        try:
            if draw.random() < 0.5:
                self.engine.submit([self.engine.model.config.vocab_size], self._params(draw))
            else:
                self.engine.submit([30], self._params(draw, grammar=Grammar.regex("(a"), stop=()))
        except ValueError:
            return "refused"
        raise AssertionError("nonsense was taken")

    # --- the end ------------------------------------------------------------------------------------------------

    def run(self) -> list[tuple[float, float]]:
        """Minutes and resident MiB, once a second, until the time is up or a request hangs."""
        clients = [
            threading.Thread(target=self.client, args=(number,), daemon=True) for number in range(self.config.clients)
        ]
        start = time.monotonic()
        samples = [(0.0, resident())]
        for each in clients:
            each.start()
        while (now := time.monotonic()) < start + 60 * self.config.minutes:
            time.sleep(min(1.0, self.config.minutes))
            samples.append(((now - start) / 60, resident()))
            if now - min(self.since) > PATIENCE:
                break
        self.stop.set()
        end = time.monotonic() + PATIENCE
        for each in clients:
            each.join(max(0.0, end - time.monotonic()))
        hung = sum(each.is_alive() for each in clients)
        if hung:
            self.errors.append(f"{hung} requests had no end after {PATIENCE:g} seconds")
        return samples

    def leaked(self) -> int:
        """Blocks that somebody still holds, and rows that nobody waits for."""
        scheduler = self.engine._scheduler
        scheduler.blocks.check()
        return scheduler.blocks.num_held + scheduler.num_running + scheduler.num_waiting


def slope(points: list[tuple[float, float]]) -> float:
    """Of the line through some points that is nearest by least squares."""
    x = torch.tensor([point[0] for point in points], dtype=torch.float64)
    y = torch.tensor([point[1] for point in points], dtype=torch.float64)
    spread = ((x - x.mean()) ** 2).sum()
    return float(((x - x.mean()) * (y - y.mean())).sum() / spread) if spread > 0 else 0.0


def judge(config: Config, soak: Soak, samples: list[tuple[float, float]], leaked: int) -> list[str]:
    """Say what happened; what was wrong."""
    begun, last = samples[0][1], samples[-1]
    settled = [sample for sample in samples if sample[0] >= config.minutes / 4]
    warm, rate = settled[0][1], slope(settled)
    rise = rate * (last[0] - settled[0][0])
    allowed = max(8.0, config.tolerance / 100 * warm)
    requests = sum(soak.counts.values())
    by_kind = ", ".join(f"{count:,} {kind}" for kind, count in soak.counts.most_common())
    console.print(f"requests: {requests:,} in {last[0]:.1f} minutes ({by_kind})")
    console.print(f"tokens generated: {soak.num_tokens:,}, {soak.num_tokens / max(60 * last[0], 1e-9):,.0f}/s")
    console.print(f"errors: {len(soak.errors)}; blocks leaked: {leaked}")
    console.print(
        f"resident memory: {begun:,.0f} MiB at the start, {warm:,.0f} after warming up, {last[1]:,.0f} at the end; "
        f"the line rises by {rise:+.1f} MiB, {60 * rate:+.1f} an hour (allowed {allowed:.1f})",
        soft_wrap=True,
    )
    wrong = [*soak.errors[:5], *([f"and {len(soak.errors) - 5} more errors"] if len(soak.errors) > 5 else [])]
    wrong += [f"{leaked} blocks or rows leaked"] if leaked else []
    wrong += [f"memory is not flat: it rises by {rise:.1f} MiB"] if rise > allowed else []
    wrong += ["no request was answered"] if not soak.num_tokens else []
    return wrong


def draw(samples: list[tuple[float, float]], path: Path) -> None:
    """The memory over time."""
    minutes, memory = ([sample[place] for sample in samples] for place in (0, 1))
    kept = plots.thin(minutes), plots.thin(memory)
    series = [plots.Series("resident memory", "sft", *kept)]
    drawn = plots.line_chart(series, plots.Axis("minutes", "resident memory, MiB"), name="soak")
    runtime.write_atomically(path, drawn)


def main() -> None:
    """Soak, report, and exit with 1 if something was wrong."""
    config = tyro.cli(Config)
    torch.set_num_threads(config.threads)
    engine = opened(config)
    engine.start()
    soak = Soak(config, engine)
    console.print(f"[bold]Soak of {config.model}[/]: {config.clients} clients, {config.minutes:g} minutes")
    samples = soak.run()
    engine.stop()
    gc.collect()
    wrong = judge(config, soak, samples, soak.leaked())
    if config.plot is not None:
        draw(samples, config.plot)
    for each in wrong:
        console.print(each, style="red", markup=False)
    status: Literal[0, 1] = 1 if wrong else 0
    sys.stdout.flush()
    os._exit(status) if soak.errors else sys.exit(status)  # a client that hangs would keep the process


if __name__ == "__main__":
    main()
