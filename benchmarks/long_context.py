"""What longer texts cost: `python benchmarks/long_context.py [REF] [--num-tokens N]`.

* Keys and values in eight bits against those as computed, on real text: perplexity, how often the likeliest next token
  stays, and the mean KL divergence in nats a token. Weights and all else are fp32.
* A window with and without attention sinks on texts of several windows: perplexity behind the first two windows.
* 128K tokens of keys and values in eight bits: bytes as allocated and filled, and the time of one token behind them.

The first two read the text through the cache that generation has.
"""

import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import real_text
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from chatloom import checkpoint
from chatloom.engine.cache_config import CacheConfig
from chatloom.engine.capacity import bytes_of_a_token
from chatloom.models.longer import ContextConfig
from chatloom.nn.paged import Chunk
from chatloom.nn.quantised_cache import Quantised

SIZE = 32
console = Console(width=110, highlight=False)


@dataclass(frozen=True)
class Config:
    """Measure a model."""

    model: Annotated[str, tyro.conf.Positional] = "smollm2"
    # A text file. None: docstrings of the standard library.
    text: str | None = None
    # Tokens that are scored in each of the first two parts.
    num_tokens: int = 2048
    window: int = 256
    # Tokens of the last part.
    context: int = 131_072
    threads: int = 1


@torch.inference_mode()
def logprobs(model: Any, row: Tensor, kept: CacheConfig) -> Tensor:
    """Of every next token behind a row (T,), read through the cache of generation: (T - 1, V)."""
    config, num_blocks = model.config, -(-len(row) // SIZE)
    cache = kept.cache(model)(config.num_layers, config.num_key_value_heads, config.head_width, block_size=SIZE)
    cache.make_room(num_blocks)
    cache.begin([Chunk(range(num_blocks), 0, len(row))])
    found: Tensor = model.logits(model.hidden(row[None], cache=cache)[0, :-1]).log_softmax(-1)
    return found


def kept_in_eight_bits(model: Any, rows: Tensor) -> None:
    """The first part."""
    sums = {name: torch.zeros(3, dtype=torch.float64) for name in ("as computed", "int8")}
    for row in rows:
        exact = logprobs(model, row, CacheConfig())
        for name, total in sums.items():
            found = exact if name == "as computed" else logprobs(model, row, CacheConfig("int8"))
            nats = -found.gather(1, row[1:, None]).sum()
            same = (found.argmax(-1) == exact.argmax(-1)).sum()
            total += torch.stack((nats, same, (exact.exp() * (exact - found)).sum())).double()
    table = Table("keys and values", "perplexity", "top-1 as computed", "KL, nats", "bytes a token", box=None)
    for name, total in sums.items():
        nats, same, kl = (total / (rows.numel() - len(rows))).tolist()
        size = bytes_of_a_token(model.config, torch.bfloat16, None if name == "as computed" else name)
        table.add_row(name, f"{math.exp(nats):.3f}", f"{100 * same:.2f} %", f"{kl:.5f}", f"{size:,}")
    console.print(f"{rows.numel():,} tokens in rows of {rows.shape[1]}; bytes beside bf16", table)


def windows(model: Any, rows: Tensor, window: int) -> None:
    """The second part."""
    table = Table("a token sees", "perplexity behind two windows", box=None)
    kinds = {"everything": CacheConfig()} | {
        f"{window} tokens and {sinks} sinks": CacheConfig(attention_window=window, attention_sinks=sinks)
        for sinks in (4, 1, 0)
    }
    for name, kept in kinds.items():
        nats = [-logprobs(model, row, kept).gather(1, row[1:, None])[2 * window :].mean() for row in rows]
        table.add_row(name, f"{math.exp(float(torch.stack(nats).mean())):.3f}")
    console.print(f"{len(rows)} texts of {rows.shape[1]:,} tokens", table)


@torch.inference_mode()
def many(model_name: str, context: int) -> None:
    """The third part."""
    opened = checkpoint.load_pretrained(model_name, dtype="bf16", context=ContextConfig(context, "yarn"))
    model, config = opened.model, opened.model.config
    before = resident()
    sizes = config.num_layers, config.num_key_value_heads, config.head_width
    cache = Quantised(*sizes, block_size=SIZE, dtype=torch.bfloat16)
    cache.make_room(context // SIZE)
    for codes, scales in zip(cache._codes, cache._scales):
        codes.random_(-127, 128)
        scales.fill_(0.01)
    filled = resident()
    cache.begin([Chunk(range(context // SIZE), context - 1, 1)])
    started = time.perf_counter()
    logits = model.logits(model.hidden(torch.zeros(1, 1, dtype=torch.int64), cache=cache))
    seconds = time.perf_counter() - started
    assert logits.isfinite().all()
    table = Table(f"{context:,} tokens", "MiB", box=None)
    for name, size in (
        ("stated (`capacity.bytes_of_a_token`)", context * bytes_of_a_token(config, torch.bfloat16, "int8")),
        ("allocated", cache.num_bytes),
        ("resident when filled", filled - before),
        ("resident more behind one token", resident() - filled),
        ("bf16 would take", context * bytes_of_a_token(config, torch.bfloat16)),
    ):
        table.add_row(name, f"{size / 2**20:,.0f}")
    console.print(table, f"one token behind them: {seconds:.1f} s")


def resident() -> int:
    """Bytes of this process that are in memory (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    """Print the three parts."""
    config = tyro.cli(Config)
    torch.set_num_threads(config.threads)
    many(config.model, config.context)
    opened = checkpoint.load_pretrained(config.model, dtype="fp32")

    def rows(length: int) -> Tensor:
        return real_text.rows(opened.tokenizer, config.text, config.num_tokens, length)

    kept_in_eight_bits(opened.model, rows(512))
    windows(opened.model, rows(8 * config.window), config.window)


if __name__ == "__main__":
    main()
