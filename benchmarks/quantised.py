"""What each number type costs in quality: `python benchmarks/quantised.py [REF] [--text FILE] [--num-tokens N]`.

Perplexity of real text (docstrings of Python's standard library, or a file), how often the likeliest next token is
that of fp32, and the mean KL divergence from fp32's distribution, in nats a token; then bytes a weight. What is
measured is what decoding computes: matrices rounded by `engine.lowered`, all else in bf16, the catalogue's SmolLM2
(Q4_1 in its file, which flatters int4: weights that came from four bits are found again) or any model.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import real_text
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from chatloom import checkpoint, runtime
from chatloom.engine.lowered import Lowered
from chatloom.engine.quantised import Matrix
from chatloom.stages.memory import copies

DTYPES = ("bf16", "int8", "int4")
PLAIN = {"fp32": 4.0, "bf16": 2.0}  # bytes a weight
console = Console(width=110, highlight=False)


@dataclass(frozen=True)
class Config:
    """Measure a model in each number type."""

    model: Annotated[str, tyro.conf.Positional] = "smollm2"
    # A text file. None: docstrings of the standard library.
    text: str | None = None
    num_tokens: int = 8192
    # Tokens of a row, each scored but the first.
    row_length: int = 256
    threads: int = 1
    # Fresh noise on the weights, as a share of their spread: a model that no file has rounded before.
    noise: float = 0.0


@torch.inference_mode()
def logprobs(model: Any, rows: Tensor, dtype: str) -> Tensor:
    """(rows, T - 1, V) in fp32."""
    with runtime.autocast(rows.device, dtype):
        return model(rows)[:, :-1].float().log_softmax(-1)


def main() -> None:
    """Print the table."""
    config = tyro.cli(Config)
    torch.set_num_threads(config.threads)
    opened = checkpoint.load_pretrained(config.model, dtype="fp32")
    model = opened.model
    if config.noise:
        torch.manual_seed(0)
        with torch.no_grad():
            for weight in (each for each in model.parameters() if each.ndim == 2):
                weight.add_(torch.randn_like(weight), alpha=config.noise * float(weight.std()))
    rows = real_text.rows(opened.tokenizer, config.text, config.num_tokens, config.row_length)
    lowered = {dtype: Lowered(model, dtype) for dtype in DTYPES}
    for each in lowered.values():
        each.refresh()
    sums = {dtype: torch.zeros(3, dtype=torch.float64) for dtype in ("fp32", *lowered)}  # nats, agreement, KL
    for some in rows.split(2):
        exact = logprobs(model, some, "fp32")
        for dtype, total in sums.items():
            found = exact if dtype == "fp32" else logprobs(lowered[dtype].model, some, dtype)
            nats = -found.gather(2, some[:, 1:, None]).sum()
            same = (found.argmax(-1) == exact.argmax(-1)).sum()
            total += torch.stack((nats, same, (exact.exp() * (exact - found)).sum())).double()
    scored = rows[:, 1:].numel()
    matrices = [each for each in lowered["bf16"].model.modules() if isinstance(each, Matrix)]
    weights = sum(each.in_features * each.out_features for each in matrices)
    table = Table("", "perplexity", "rise", "top-1 as fp32", "KL to fp32, nats", "bytes a weight", box=None)
    base = float(sums["fp32"][0]) / scored
    for dtype, total in sums.items():
        nats, same, kl = (total / scored).tolist()
        rise = "" if dtype == "fp32" else f"{100 * math.expm1(nats - base):+.2f} %"
        size = PLAIN.get(dtype) or copies(model.config, dtype) / weights
        table.add_row(dtype, f"{math.exp(nats):.3f}", rise, f"{100 * same:.2f} %", f"{kl:.5f}", f"{size:.2f}")
    console.print(f"{config.model}, {scored:,} tokens" + (f", noise of {config.noise:g}" if config.noise else ""))
    console.print(table)


if __name__ == "__main__":
    main()
