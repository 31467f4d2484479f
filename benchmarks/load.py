"""How long a GGUF file takes to open: `python benchmarks/load.py [--rounds N]`. Goal: three times as fast.

SmolLM2-135M-Instruct, quantised to four bits (Q4_1), opened as fp32 with its tokenizer and chat template, in turn with
transformers (`AutoModelForCausalLM` and `AutoTokenizer` with `gguf_file`, its fastest setting: nothing else changes
its time). The weights of the two are compared first: the same, but for rounding.
"""

import time
from dataclasses import dataclass
from typing import Any

import torch
import transformers
import tyro
from comparison import begin, console, in_turn, show

import chatloom
from chatloom import catalogue


@dataclass(frozen=True)
class Options:
    """What is measured."""

    rounds: int = 3
    threads: int = 1


def main(options: Options) -> None:
    begin("opening SmolLM2-135M-Instruct, Q4_1", options.threads)
    file = catalogue.resolve("smollm2")

    def ours() -> float:
        started = time.perf_counter()
        chatloom.load("smollm2")
        return time.perf_counter() - started

    def theirs() -> float:
        started = time.perf_counter()
        _open_theirs(str(file.parent), file.name)
        return time.perf_counter() - started

    tokens = torch.arange(200, 264)[None]
    with torch.inference_mode():
        difference = chatloom.load("smollm2").model(tokens) - _open_theirs(str(file.parent), file.name)(tokens).logits
    console.print(f"largest difference of a logit: {difference.abs().max():.1e}")
    rounds = in_turn(ours, theirs, rounds=options.rounds)
    show({"load": (rounds, "fp32")}, peer="transformers", what="seconds", digits=2, more_is_better=False, goal=3.0)


def _open_theirs(folder: str, name: str) -> Any:
    transformers.AutoTokenizer.from_pretrained(folder, gguf_file=name)
    return transformers.AutoModelForCausalLM.from_pretrained(folder, gguf_file=name).eval()


if __name__ == "__main__":
    main(tyro.cli(Options))
