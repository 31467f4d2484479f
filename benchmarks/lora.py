"""Step time and memory of LoRA: our adapters and trainer against `peft` on a `transformers` model.

Run `make peers`, then `.venv-peers/bin/python benchmarks/lora.py`, with nothing else running.

Both sides make full updates (forward, backward, gradient norm clipped at 1, AdamW of the adapter, loss read back) of
LoRA on every linear layer of the same LLaMA, from the same weights and the same fresh adapter, on the same rows.
Before anything is timed the script checks that two updates on each side give the same losses and gradient norms.

Memory is counted, not sampled: the bytes of all weights, gradients and moments, and the bytes that the forward pass
keeps for the backward pass, each storage once. It is the same number on every machine.
"""

import time
from dataclasses import dataclass
from itertools import cycle
from typing import Any

import peft
import torch
import tyro
from comparison import Rounds, begin, console, in_turn, random_llama, show, transformers_llama
from torch import Tensor

from chatloom import adapters, models, runtime
from chatloom.adapters import AdapterConfig
from chatloom.adapters.peft import to_peft
from chatloom.models import llama
from chatloom.models.decoder import num_parameters
from chatloom.objectives.causal_lm import IGNORED, causal_lm
from chatloom.train.train_config import TrainConfig
from chatloom.train.trainer import Trainer

GOAL = 1.0
LEARNING_RATE = 2e-4
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}  # of loss and gradient norm, relative

NOT_ALIKE = """Not alike: ours also counts the accuracy, watches for losses that are not finite or explode and follows
a learning-rate schedule; the peer's loop has none of these. Ours projects to the vocabulary in chunks. In bf16 ours
keeps the frozen matrices in bf16; the peer's stay fp32 under autocast, because a model that transformers opens in
bf16 adds up its layers in bf16 too, which is another computation. The peer's attention is sdpa. Neither compiles, and
neither recomputes activations."""


@dataclass(frozen=True)
class Config:
    """Measure LoRA."""

    threads: int = 2
    rounds: int = 5
    # Updates of one side in a round.
    steps: int = 3
    rank: int = 16
    sizes: tuple[str, ...] = ("6M", "34M")
    dtypes: tuple[str, ...] = ("fp32", "bf16")
    dora: bool = False
    # Measure the processor's time, not the clock's: for development with one thread on a busy machine.
    cpu_time: bool = False


@dataclass(frozen=True)
class Size:
    """A model and its batch."""

    model: llama.Config
    rows: int
    row_length: int


SIZES = {
    "6M": Size(llama.Config(4096, 256, 6, 256, 4, 4, 704), rows=8, row_length=256),
    # The width of SmolLM2-135M, with fewer layers and a smaller vocabulary.
    "34M": Size(llama.Config(16_384, 512, 7, 576, 9, 3, 1536), rows=2, row_length=512),
}


class Ours:
    """The trainer with an adapter."""

    def __init__(self, model: llama.Model, rows: list[Tensor], *, dtype: Any) -> None:
        config = TrainConfig(
            learning_rate=LEARNING_RATE, dtype=dtype, schedule="constant", weight_decay=0.0, max_loss_ratio=None
        )
        self.trainer = Trainer(model, causal_lm, config, total_steps=10**6)
        self.batches = cycle([self._batch(tokens) for tokens in rows])

    @staticmethod
    def _batch(tokens: Tensor) -> dict[str, Tensor]:
        targets = torch.full_like(tokens, IGNORED)
        targets[:, :-1] = tokens[:, 1:]
        return {"tokens": tokens, "targets": targets}

    def step(self) -> tuple[float, float]:
        """One update: the loss and the gradient's norm."""
        metrics = self.trainer.step([next(self.batches)])
        return metrics["loss"], metrics["grad_norm"]

    def memory(self) -> float:
        """Bytes of an update."""
        model, dtype, batch = self.trainer.model, self.trainer.config.dtype, next(self.batches)
        moments = [moment for state in self.trainer.optimizer.state.values() for moment in state.values()]
        with runtime.autocast(batch["tokens"].device, dtype):
            return counted(model, moments, lambda: causal_lm(model, batch).total)


class Peer:
    """The loop that people write around `peft`."""

    def __init__(self, model: llama.Model, rows: list[Tensor], *, dtype: str, rank: int, dora: bool) -> None:
        bare = transformers_llama(model, attention="sdpa")
        described, tensors = to_peft(model, models.stored_names(model), base="base")
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=described["lora_alpha"],
            target_modules=described["target_modules"],
            use_dora=dora,
            task_type="CAUSAL_LM",
        )
        self.model = peft.get_peft_model(bare, config).train()
        peft.set_peft_model_state_dict(self.model, {name: each.detach().clone() for name, each in tensors.items()})
        self.dtype, defaults = dtype, TrainConfig()
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(
            self.trained, lr=LEARNING_RATE, betas=defaults.betas, eps=defaults.epsilon, weight_decay=0.0, fused=True
        )
        self.batches = cycle(rows)

    def _loss(self, tokens: Tensor) -> Tensor:
        with runtime.autocast(tokens.device, self.dtype):
            loss: Tensor = self.model(input_ids=tokens, labels=tokens).loss
        return loss

    def step(self) -> tuple[float, float]:
        """One update: the loss and the gradient's norm."""
        loss = self._loss(next(self.batches))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.item(), norm.item()

    def memory(self) -> float:
        """Bytes of an update."""
        moments = [moment for state in self.optimizer.state.values() for moment in state.values()]
        return counted(self.model, moments, lambda: self._loss(next(self.batches)))


def counted(model: torch.nn.Module, moments: list[Tensor], loss: Any) -> float:
    """Megabytes of weights, gradients, moments, and of what `loss()` keeps for its backward pass, each storage once."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        total = loss()
    for tensor in (*model.parameters(), *moments):
        note(tensor)
    gradients = sum(parameter.nbytes for parameter in model.parameters() if parameter.requires_grad)
    del total
    return (sum(kept.values()) + gradients) / 1e6


def check_alike(ours: Ours, peer: Peer, *, dtype: str) -> None:
    """Two updates on each side; raises ValueError when losses or gradient norms differ."""
    for update in range(2):
        for name, a, b in zip(("loss", "gradient norm"), ours.step(), peer.step()):
            if abs(a - b) > TOLERANCE[dtype] * abs(b):
                raise ValueError(f"update {update + 1} in {dtype}: our {name} is {a:.6f} and the peer's {b:.6f}")


def measure(size: Size, dtype: str, config: Config) -> tuple[Rounds, Rounds]:
    """Milliseconds a step by round, and megabytes, of both sides."""
    model = random_llama(size.model, seed=0)
    adapters.attach(
        model,
        AdapterConfig(adapter="lora", adapter_rank=config.rank, adapter_dora=config.dora),
        names=models.stored_names(model),
    )
    generator = torch.Generator().manual_seed(1)
    shape = (size.rows, size.row_length)
    rows = [torch.randint(size.model.vocab_size, shape, generator=generator) for _ in range(4)]
    peer = Peer(model, rows, dtype=dtype, rank=config.rank, dora=config.dora)
    if dtype != "fp32":
        adapters.hold_frozen(model, runtime.pick_dtype(dtype))  # as `chatloom sft` does
    ours = Ours(model, rows, dtype=dtype)
    check_alike(ours, peer, dtype=dtype)
    clock = time.process_time if config.cpu_time else time.perf_counter

    def milliseconds(side: Ours | Peer) -> float:
        started = clock()
        for _ in range(config.steps):
            side.step()
        return (clock() - started) / config.steps * 1e3

    memory = Rounds([ours.memory()], [peer.memory()])
    times = in_turn(lambda: milliseconds(ours), lambda: milliseconds(peer), rounds=config.rounds)
    return times, memory


def main(config: Config) -> None:
    begin("LoRA on a LLaMA: chatloom against peft on transformers", config.threads)
    console.print(f"peft {peft.__version__}, rank {config.rank} on every linear layer")
    times, memory = {}, {}
    for name in config.sizes:
        size = SIZES[name]
        parameters = num_parameters(llama.Model(size.model)) / 1e6
        for dtype in config.dtypes:
            label = f"{name} ({parameters:.1f}M, {size.rows} x {size.row_length}) {dtype}"
            took, used = measure(size, dtype, config)
            times[label], memory[label] = (took, ""), (used, "")
    show(times, peer="peft", what="milliseconds a step, median", digits=0, more_is_better=False, goal=GOAL)
    show(memory, peer="peft", what="megabytes of an update", digits=0, more_is_better=False, goal=GOAL)
    console.print(NOT_ALIKE, soft_wrap=True)


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
