"""A server under load, against llama.cpp's on the same machine and model.

Some hundred clients ask for streamed chat answers, one after the other without a pause, for some minutes; one request
in ten is left by its client at a random moment, before its first text or after. Each server is a process of its own, on
the loopback alone, and this one is the clients: they take some of the same cores, from both sides alike. Both sides are
asked the same questions in the same order, each client its own.

Ours: `chatloom serve`. The peer: llama.cpp's HTTP server, continuous batching with as many slots as ours decodes rows
at once or fewer, whichever `--slots` says, over the file that the catalogue's model is.
"""

import asyncio
import json
import math
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

import tyro
from comparison import console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from chatloom.recipes.smollm2_rlhf import docstrings

PATIENCE = 300.0  # seconds for a server to open its model, and for an answer
PEER = """
import sys, time, xllamacpp
from chatloom import catalogue
slots, threads, context = map(int, sys.argv[1:])
params = xllamacpp.CommonParams()
params.model.path = str(catalogue.resolve("smollm2"))
params.n_ctx, params.n_parallel, params.n_gpu_layers = context * slots, slots, 0
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
params.verbosity = params.port = 0
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
time.sleep(1e6)
"""


@dataclass(frozen=True)
class Config:
    """Load both servers in turn."""

    clients: int = 256
    # Of load on each side.
    minutes: float = 2.0
    # Share of requests that their clients leave.
    leaving: float = 0.1
    # Words of a question, and tokens of an answer: anything from the first to the second number.
    words: tuple[int, int] = (8, 160)
    answer: tuple[int, int] = (16, 128)
    # What ours computes in.
    dtype: str = "int8"
    # How many answers the peer decodes at once.
    slots: int = 16
    threads: int = 2
    seed: int = 0
    # Ours alone, for a look.
    alone: bool = False


@dataclass
class Answer:
    """What a client saw of one request."""

    client: int
    seconds: float = 0.0
    first: float | None = None  # seconds to the first text
    tokens: int = 0
    outcome: str = "error"  # or "whole", "left", "refused"
    problem: str = ""


@dataclass
class Server:
    """A server that runs, and what it held before the load."""

    address: str
    process: subprocess.Popen[str]
    memory: list[float] = field(default_factory=list)  # MiB, each second

    def resident(self) -> float:
        """MiB that it holds."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@contextmanager
def running(command: Sequence[str], environment: dict[str, str]) -> Iterator[Server]:
    """Start a server that prints its address as the first word with a colon and slashes; end it."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True, env=os.environ | environment)
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r"https?://\S+", line)
            if found is None:
                log.seek(0)
                raise RuntimeError(f"{command[0]} did not start: {line}{log.read()[-2000:]}")
            yield Server(found[0].rstrip("/"), process)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


def questions(config: Config, client: int, texts: Sequence[Sequence[str]]) -> Iterator[tuple[str, int, float]]:
    """A client's questions for ever: text, most tokens of the answer, and when the client leaves.

    That is after a share of the answer, below 1, or after so many seconds, negative; 1 is never.
    """
    draw = random.Random(config.seed * 100_003 + client)
    while True:
        words, count = draw.choice(texts), draw.randint(*config.words)
        start = draw.randrange(max(1, len(words) - count))
        leaves = 1.0
        if draw.random() < config.leaving:
            leaves = draw.random() * 0.9 if draw.random() < 0.5 else -10 * draw.random()
        yield "Explain this: " + " ".join(words[start : start + count]), draw.randint(*config.answer), leaves


async def ask(server: Server, client: int, question: tuple[str, int, float]) -> Answer:
    """One streamed request."""
    text, count, leaves = question
    answer = Answer(client)
    where = urlsplit(server.address)
    body = {"model": "smollm2", "messages": [{"role": "user", "content": text}], "max_tokens": count, "stream": True}
    body |= {"temperature": 0.7, "seed": client, "stream_options": {"include_usage": True}}
    content = json.dumps(body).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {where.netloc}\r\nContent-Type: application/json\r\n"
    head += f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    start = time.monotonic()
    writer = None
    try:
        reader, writer = await asyncio.open_connection(where.hostname, where.port, limit=2**20)
        writer.write(head.encode() + content)
        async with asyncio.timeout(-leaves if leaves < 0 else None):
            status = int((await asyncio.wait_for(reader.readline(), PATIENCE)).split()[1])
            if status == 200:
                await _read(reader, answer, start, count * leaves if 0 <= leaves < 1 else math.inf)
            else:
                answer.outcome = "refused" if status in (429, 503) else "error"
                answer.problem = f"{status} {(await reader.read(2000))[-300:]!r}"
    except TimeoutError:
        answer.outcome, answer.problem = ("left", "") if leaves < 0 else ("error", f"nothing for {PATIENCE:g} s")
    except (OSError, ValueError, asyncio.IncompleteReadError) as error:
        answer.problem = f"{type(error).__name__}: {error}"
    finally:
        answer.seconds = time.monotonic() - start
        if writer is not None:
            writer.close()
    return answer


async def _read(reader: asyncio.StreamReader, answer: Answer, start: float, most: float) -> None:
    """Read events until the end, or until the client has had so many."""
    seen = 0
    while line := await asyncio.wait_for(reader.readline(), PATIENCE):
        if not line.startswith(b"data:"):
            continue
        if line[5:].strip() == b"[DONE]":
            answer.outcome = "whole"
            return
        event = json.loads(line[5:])
        if "error" in event:
            answer.problem = str(event["error"])
            return
        if any(choice["delta"].get("content") for choice in event["choices"]):
            seen += 1
            if answer.first is None:
                answer.first = time.monotonic() - start
        answer.tokens = (event.get("usage") or {}).get("completion_tokens", max(seen, answer.tokens))
        if seen > most:
            answer.outcome = "left"
            return
    answer.problem = "the answer broke off"


async def load(config: Config, server: Server, label: str) -> tuple[list[Answer], float]:
    """All clients at once; their answers, and the seconds that they took."""
    answers: list[Answer] = []
    texts = [text.split() for text in islice(docstrings(), 500)]
    start = time.monotonic()
    end = start + 60 * config.minutes

    async def client(number: int) -> None:
        for question in questions(config, number, texts):
            if time.monotonic() >= end:
                return
            answers.append(await ask(server, number, question))
            if answers[-1].outcome == "refused":
                await asyncio.sleep(1.0)

    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        shown = progress.add_task(label, total=60 * config.minutes, rate="")
        work = asyncio.gather(*(client(number) for number in range(config.clients)))
        while not work.done():
            await asyncio.wait([work], timeout=1.0)
            spent = time.monotonic() - start
            server.memory.append(server.resident())
            rate = f"{sum(answer.tokens for answer in answers) / spent:,.0f} tokens/s"
            progress.update(shown, completed=min(spent, 60 * config.minutes), rate=rate)
        await work
    return answers, time.monotonic() - start


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which this share of them lies."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else math.nan


def figures(config: Config, server: Server, answers: Sequence[Answer], seconds: float) -> dict[str, float]:
    """What is compared."""
    whole = [answer for answer in answers if answer.outcome == "whole"]
    firsts = [answer.first for answer in answers if answer.first is not None]
    shares = [sum(answer.tokens for answer in answers if answer.client == number) for number in range(config.clients)]
    equal = sum(shares) ** 2 / max(1, len(shares) * sum(share**2 for share in shares))
    speeds = [answer.tokens / answer.seconds for answer in whole]
    settled = server.memory[len(server.memory) // 4 :] or [math.nan]
    return {
        "tokens/s": sum(shares) / seconds,
        "seconds to the first text, median": percentile(firsts, 0.5),
        "seconds to the first text, 95th percentile": percentile(firsts, 0.95),
        "tokens/s of an answer, waiting counted, median": statistics.median(speeds) if speeds else math.nan,
        "answers that were whole": len(whole),
        "answers that were left": sum(answer.outcome == "left" for answer in answers),
        "refused": sum(answer.outcome == "refused" for answer in answers),
        "errors": sum(answer.outcome == "error" for answer in answers),
        "fairness of the clients' tokens (Jain; 1 is equal)": equal,
        "least and most tokens of a client, their ratio": min(shares) / max(max(shares), 1),
        "memory after a quarter, MiB": settled[0],
        "memory at the end, MiB": settled[-1],
    }


def measured(config: Config, label: str, command: Sequence[str], environment: dict[str, str]) -> dict[str, float]:
    """Start a server, warm it up, load it, look at what is left in it, end it."""
    with running(command, environment) as server:
        for _ in range(100):
            warm = asyncio.run(ask(server, 0, ("Hello!", 8, 1.0)))
            if "Refused" not in warm.problem:
                break
            time.sleep(0.2)
        assert warm.outcome == "whole", warm.problem
        answers, seconds = asyncio.run(load(config, server, label))
        found = figures(config, server, answers, seconds)
        for problem in sorted({answer.problem for answer in answers if answer.outcome == "error"})[:5]:
            console.print(f"[red]{label}: {problem}", markup=True, soft_wrap=True)
        if label == "chatloom":
            time.sleep(2)
            with urllib.request.urlopen(f"{server.address}/metrics", timeout=30) as page:
                text = page.read().decode()
            left = re.findall(r"^chatloom_(running|waiting|kv_blocks_in_use)\{.*\} (\S+)$", text, re.MULTILINE)
            console.print("left in the server: " + ", ".join(f"{name} {value}" for name, value in left))
            assert len(left) == 3, text
            assert all(float(value) == 0 for _, value in left), "something was not given back"
            assert not found["errors"] + found["refused"], "a request failed"
            growth = found["memory at the end, MiB"] / found["memory after a quarter, MiB"]
            assert config.minutes < 1 or growth < 1.05, f"memory grew to {growth:.2f} times"
        return found


def main() -> None:
    """Print the table."""
    config = tyro.cli(Config)
    environment = {"OMP_NUM_THREADS": str(config.threads)}
    sides: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        ours = [sys.executable, "-m", "chatloom.cli", "serve", "smollm2", "--dtype", config.dtype, "--port", "0"]
        ours += ["--database", str(Path(folder) / "feedback.db"), "--max-waiting", str(2 * config.clients)]
        sides["chatloom"] = measured(config, "chatloom", ours, environment)
    if not config.alone:
        context = 64 + 3 * config.words[1] + config.answer[1] + 128
        peer = [sys.executable, "-c", PEER, *map(str, (config.slots, config.threads, context))]
        sides["llama.cpp"] = measured(config, "llama.cpp", peer, environment)
    table = Table("", *sides, "ratio", box=None)
    for name in sides["chatloom"]:
        values = [side[name] for side in sides.values()]
        ratio = f"{values[0] / values[1]:.2f}" if len(values) == 2 and values[1] else ""
        table.add_row(name, *(f"{value:,.2f}" for value in values), ratio)
    console.print(f"{config.clients} clients, {config.minutes:g} minutes a side, {config.threads} threads")
    console.print(table)


if __name__ == "__main__":
    main()
