"""Tokens per second of pretraining: our trainer against a plain `transformers` training loop.

Run `make peers`, then `.venv-peers/bin/python benchmarks/pretrain.py`, with nothing else running.

Both sides make full updates (forward, backward, gradient norm clipped at 1, AdamW with the same groups, loss read
back) of the same LLaMA from the same weights on the same rows. Before anything is timed the script checks that two
updates on each side give the same losses and gradient norms.
"""

import time
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import torch
import tyro
from comparison import Rounds, begin, console, in_turn, random_llama, show, transformers_llama
from torch import Tensor

from chatloom import runtime
from chatloom.models import llama
from chatloom.models.decoder import num_parameters
from chatloom.objectives.causal_lm import IGNORED, causal_lm
from chatloom.train.train_config import TrainConfig
from chatloom.train.trainer import Trainer

GOAL = 1.3
LEARNING_RATE = 6e-4
# Of loss and gradient norm, relative. The two round differently: in bf16 about three digits are left.
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}

NOT_ALIKE = """Not alike: ours also counts the accuracy, watches for losses that are not finite or explode, follows a
learning-rate schedule and (with --documents) may pack documents; the peer's loop has none of these. Ours projects to
the vocabulary in chunks and fuses nothing else by hand; the peer's attention is the faster of its sdpa and eager.
Neither compiles: torch.compile made both slower on two cores."""


@dataclass(frozen=True)
class Config:
    """Measure pretraining."""

    threads: int = 2
    rounds: int = 7
    # Updates of one side in a round.
    steps: int = 8
    sizes: tuple[str, ...] = ("quickstart", "6M")
    dtypes: tuple[str, ...] = ("bf16", "fp32")
    # Measure the processor's time, not the clock's: for development with one thread on a busy machine.
    cpu_time: bool = False
    # Give our side document numbers, as `chatloom pretrain` does, though every row is one document.
    documents: bool = True


@dataclass(frozen=True)
class Size:
    """A model and its batch."""

    model: llama.Config
    rows: int
    row_length: int


SIZES = {
    "quickstart": Size(llama.Config(), rows=64, row_length=128),
    "6M": Size(
        llama.Config(vocab_size=4096, width=256, num_layers=6, num_heads=4, num_key_value_heads=4, inner_width=704),
        rows=16,
        row_length=256,
    ),
}


class Ours:
    """The trainer on full rows."""

    def __init__(self, model: llama.Model, rows: list[Tensor], *, dtype: Any, documents: bool) -> None:
        config = TrainConfig(learning_rate=LEARNING_RATE, dtype=dtype, schedule="constant", max_loss_ratio=None)
        self.trainer = Trainer(model, causal_lm, config, total_steps=10**6)
        self.batches = cycle([self._batch(tokens, documents) for tokens in rows])

    @staticmethod
    def _batch(tokens: Tensor, documents: bool) -> dict[str, Tensor]:
        targets = torch.full_like(tokens, IGNORED)
        targets[:, :-1] = tokens[:, 1:]
        batch = {"tokens": tokens, "targets": targets}
        return {**batch, "documents": torch.ones_like(tokens, dtype=torch.int32)} if documents else batch

    def step(self) -> tuple[float, float]:
        """One update: the loss and the gradient's norm."""
        metrics = self.trainer.step([next(self.batches)])
        return metrics["loss"], metrics["grad_norm"]


class Peer:
    """The loop that people write around `transformers`."""

    def __init__(self, model: llama.Model, rows: list[Tensor], *, dtype: str, attention: str) -> None:
        self.model = transformers_llama(model, attention=attention).train()
        defaults, self.dtype = TrainConfig(), dtype
        decayed = [parameter for parameter in self.model.parameters() if parameter.ndim >= 2]
        others = [parameter for parameter in self.model.parameters() if parameter.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": decayed, "weight_decay": defaults.weight_decay},
                {"params": others, "weight_decay": 0.0},
            ],
            lr=LEARNING_RATE,
            betas=defaults.betas,
            eps=defaults.epsilon,
            fused=True,
        )
        self.batches = cycle(rows)

    def step(self) -> tuple[float, float]:
        """One update: the loss and the gradient's norm."""
        tokens = next(self.batches)
        with runtime.autocast(tokens.device, self.dtype):
            loss = self.model(input_ids=tokens, labels=tokens).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item(), norm.item()


def check_alike(ours: Ours, peers: list[Peer], *, dtype: str) -> None:
    """Two updates on each side; raises ValueError when losses or gradient norms differ."""
    for update in range(2):
        own = ours.step()
        for theirs in (peer.step() for peer in peers):
            for name, a, b in zip(("loss", "gradient norm"), own, theirs):
                if abs(a - b) > TOLERANCE[dtype] * abs(b):
                    raise ValueError(f"update {update + 1} in {dtype}: our {name} is {a:.6f} and the peer's {b:.6f}")


def measure(size: Size, dtype: str, config: Config) -> tuple[Rounds, str]:
    """Tokens per second of both sides by round, and which attention the peer was fastest with."""
    model = random_llama(size.model, seed=0)
    generator = torch.Generator().manual_seed(1)
    shape = (size.rows, size.row_length)
    rows = [torch.randint(size.model.vocab_size, shape, generator=generator) for _ in range(4)]
    peers = {name: Peer(model, rows, dtype=dtype, attention=name) for name in ("sdpa", "eager")}
    ours = Ours(model, rows, dtype=dtype, documents=config.documents)
    check_alike(ours, list(peers.values()), dtype=dtype)

    clock = time.process_time if config.cpu_time else time.perf_counter

    def rate(side: Ours | Peer) -> float:
        started = clock()
        for _ in range(config.steps):
            side.step()
        return config.steps * size.rows * size.row_length / (clock() - started)

    rates = {name: max(rate(peer) for _ in range(2)) for name, peer in peers.items()}
    best = max(rates, key=lambda name: rates[name])
    return in_turn(lambda: rate(ours), lambda: rate(peers[best]), rounds=config.rounds), f"peer: {best}"


def main(config: Config) -> None:
    begin("Pretraining a LLaMA: chatloom's trainer against a transformers loop", config.threads)
    rows = {}
    for name in config.sizes:
        size = SIZES[name]
        parameters = num_parameters(llama.Model(size.model)) / 1e6
        for dtype in config.dtypes:
            label = f"{name} ({parameters:.2f}M, {size.rows} x {size.row_length}) {dtype}"
            rows[label] = measure(size, dtype, config)
    show(rows, peer="transformers", what="tokens per second, median", digits=0, more_is_better=True, goal=GOAL)
    console.print(NOT_ALIKE, soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
