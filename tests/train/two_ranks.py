"""Run by test_parallel.py under torchrun, and alone: three updates on documents of very different length."""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from chatloom import runtime
from chatloom.data.loader import Loader
from chatloom.data.pack import Sample
from chatloom.models import build, llama
from chatloom.objectives.causal_lm import causal_lm
from chatloom.train.metrics import read_metrics
from chatloom.train.trainer import TrainConfig, Trainer, TrainingError


def main(folder: Path, mode: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(runtime.rank())  # ranks start apart; the trainer brings them together
    config = llama.Config(
        vocab_size=19, context_length=16, num_layers=1, width=16, num_heads=2, num_key_value_heads=1, inner_width=24
    )
    model = build(config)
    source = np.random.default_rng(0)
    # A row holds one sample (longer than half a row) and counts between 1 and 15 of its tokens.
    samples = []
    for size in source.integers(9, 17, size=16):
        mask = np.zeros(size, dtype=np.int64)
        mask[1 : 1 + source.integers(1, size)] = 1
        samples.append(Sample(source.integers(19, size=size), loss_mask=mask))
    loader = Loader(
        samples, batch_rows=4, row_length=16, seed=1, pad=0, rank=runtime.rank(), world_size=runtime.world_size()
    )
    options = TrainConfig(
        optimizer="muon", learning_rate=0.01, schedule="constant",
        clip_norm=0.5, batch_rows=4, microbatch_rows=1, save_every_steps=2,
        ema_decay=0.9, max_loss_ratio=None,
    )  # fmt: skip
    trainer = Trainer(model, causal_lm, options, total_steps=4, run_folder=folder)
    if mode == "resume":
        trainer.total_steps = 2
        trainer.run(loader)
        trainer.total_steps = 4
        torch.manual_seed(99)
        assert trainer.resume()
    trainer.run(loader)
    weights = {name: parameter.detach() for name, parameter in trainer.model.named_parameters()}
    for other in runtime.gather_objects(weights):
        assert all(torch.equal(weights[name], other[name]) for name in weights), "ranks have drifted apart"
    if runtime.is_main():
        save_file({name: weight.contiguous() for name, weight in weights.items()}, folder / "weights.safetensors")
        assert [line["step"] for line in read_metrics(folder / "metrics.jsonl")] == [1, 2, 3, 4]
    if runtime.world_size() > 1:
        report_poison(trainer)


def report_poison(trainer: Trainer) -> None:
    """Rank 1's second micro-batch is NaN: every rank stops, and says so."""
    good = {"tokens": torch.zeros(1, 4, dtype=torch.int64), "targets": torch.ones(1, 4, dtype=torch.int64)}
    calls = []

    def poisoned(model, batch):  # type: ignore[no-untyped-def]
        calls.append(batch)
        loss = causal_lm(model, batch)
        factor = float("nan") if runtime.rank() == 1 and len(calls) == 2 else 1.0
        return type(loss)(loss.total * factor, loss.weight, loss.metrics)

    trainer.objective = poisoned
    try:
        trainer.step([good, good])
    except TrainingError as error:
        messages = runtime.gather_objects(str(error))
    assert len(set(messages)) == 1
    assert "micro-batch 2 of 2 on rank 1" in messages[0], messages[0]


if __name__ == "__main__":
    with runtime.distributed():
        main(Path(sys.argv[1]), sys.argv[2])
