"""What the comparisons share: the same weights on both sides, rounds in turn, and how a result is printed.

* The two sides run in one process, one after the other in every round, and take turns in going first. Whatever slows
  the machine slows both, so the ratio of a round is steadier than either time.
* The peer is taken at its best: every setting that makes it faster and computes the same is on.
"""

import os
import platform
import statistics
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

os.environ["HF_HUB_OFFLINE"] = "1"  # a benchmark talks to nobody

import torch
import transformers
from rich.console import Console
from rich.table import Table

from chatloom.models import llama
from chatloom.models.weights import to_huggingface

OURS = "chatloom"
console = Console(width=110, highlight=False)
warnings.filterwarnings("ignore", category=FutureWarning)


@dataclass(frozen=True)
class Rounds:
    """One figure of each side a round."""

    ours: Sequence[float]
    peer: Sequence[float]

    def ratios(self, *, more_is_better: bool) -> list[float]:
        """How many times better ours was, by round."""
        return [a / b if more_is_better else b / a for a, b in zip(self.ours, self.peer)]


def in_turn(ours: Callable[[], float], peer: Callable[[], float], *, rounds: int) -> Rounds:
    """Measure both sides `rounds` times after a round of warming up, which does not count: A B, B A, A B ..."""
    ours(), peer()
    measured: dict[bool, list[float]] = {True: [], False: []}
    for number in range(rounds):
        for is_ours in (True, False) if number % 2 == 0 else (False, True):
            measured[is_ours].append(ours() if is_ours else peer())
    return Rounds(measured[True], measured[False])


def random_llama(config: llama.Config, *, seed: int) -> llama.Model:
    """A model in which no matrix is zero, as some of a fresh one are, so that a wrong one would show."""
    torch.manual_seed(seed)
    model = llama.Model(config)
    with torch.no_grad():
        for block in model.blocks:
            for matrix in (block.attention.output, block.feedforward.down):
                matrix.weight.normal_(std=0.5 * matrix.in_features**-0.5)
    return model


def transformers_llama(model: llama.Model, *, attention: str) -> transformers.LlamaForCausalLM:
    """The peer's model with the same weights; `attention` is its implementation, "sdpa" or "eager"."""
    config = transformers.LlamaConfig(**model.config.to_huggingface(), attn_implementation=attention, use_cache=False)
    peer = transformers.LlamaForCausalLM(config)
    weights = to_huggingface(model.state_dict(), llama.WEIGHT_NAMES, model.config)
    found = peer.load_state_dict({name: tensor.clone() for name, tensor in weights.items()}, strict=False)
    assert set(found.missing_keys) | set(found.unexpected_keys) <= {"lm_head.weight"}, found  # which is tied
    peer.tie_weights()
    return peer


def begin(title: str, threads: int) -> None:
    """Fix the number of threads and say what the figures depend on; warns when the machine is not idle."""
    torch.set_num_threads(threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    console.print(f"[bold]{title}[/]")
    versions = f"torch {torch.__version__}, transformers {transformers.__version__}, python {platform.python_version()}"
    console.print(f"{threads} thread(s) on {os.cpu_count()} cores, {versions}")
    load = os.getloadavg()[0]
    if load > 0.5:
        console.print(f"[yellow]the machine is busy (load {load:.1f}): several threads suffer most; trust ratios only")


def show(
    rows: Mapping[str, tuple[Rounds, str]], *, peer: str, what: str, digits: int, more_is_better: bool, goal: float
) -> None:
    """Print a table of medians and ratios, then the line that is quoted: the ratio of each row against the goal.

    Args:
        rows: label -> rounds and a remark, such as which setting of the peer was best.
        peer: its name.
        what: the figure and its unit.
        digits: behind the point.
        more_is_better: whether a ratio is ours to the peer's, or the other way round.
        goal: the ratio that is asked for.
    """
    table = Table("", OURS, peer, "ratio (min to max)", "", title=what, title_justify="left", box=None)
    verdicts = []
    for label, (rounds, remark) in rows.items():
        ratios = rounds.ratios(more_is_better=more_is_better)
        ratio = statistics.median(ratios)
        ours, theirs = (f"{statistics.median(values):,.{digits}f}" for values in (rounds.ours, rounds.peer))
        table.add_row(label, ours, theirs, f"[bold]{ratio:.2f}[/] ({min(ratios):.2f} to {max(ratios):.2f})", remark)
        verdicts.append(f"{label} {ratio:.2f}x")
    console.print(table)
    console.print(f"load now {os.getloadavg()[0]:.1f}")
    console.print(f"[bold]{OURS} against {peer}: {', '.join(verdicts)} (goal {goal}x)[/]", soft_wrap=True)
