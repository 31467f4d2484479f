"""What the stages share: adapters, the loader's options, a held-out loss, and training with a bar and saves."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import nn

from chatloom import adapters, models, runtime
from chatloom.adapters import AdapterConfig
from chatloom.chat.render import ChatFormat
from chatloom.data.sources import Loaded
from chatloom.models import Decoder
from chatloom.objectives import Batch, Objective
from chatloom.stages.run import Run
from chatloom.tokenizers.bpe import Tokenizer
from chatloom.train.callbacks import Evaluate, ProgressBar
from chatloom.train.metrics import read_metrics
from chatloom.train.train_config import TrainConfig
from chatloom.train.trainer import Trainer

T = TypeVar("T")
_MOST_HELD_OUT = 500
_DOCUMENTS_AT_ONCE = 1_000


def adapt(stage: Run, model: Decoder, adaptation: AdapterConfig, *, base: str, dtype: str = "fp32") -> None:
    """Put the adapter on a model that was opened from `base`, if there is to be one.

    `dtype` is that of all products with the model's matrices: what is not trained is kept in it, unless the adapter is
    to be merged into it at the end.

    ValueError for a model that has virtual tokens already: they cannot be merged, so nothing can be trained on top.
    """
    if adapters.is_adapted(model):
        raise ValueError(
            f"{base} is a model with virtual tokens before its text, which cannot be trained further; "
            "start from its base model, or use an adapter of kind lora"
        )
    adapters.attach(model, adaptation, names=models.stored_names(model))
    if adaptation.adapter is not None:
        if dtype != "fp32" and not adaptation.adapter_merge:
            adapters.hold_frozen(model, runtime.pick_dtype(dtype))
        trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        stage.say(f"{adaptation.adapter}: {trained:,} of {models.num_parameters(model):,} parameters are trained")


def loader_options(train: TrainConfig, chat: ChatFormat, context_length: int) -> dict[str, Any]:
    """What every loader is given: sizes, seed, padding and ranks. ValueError for rows beyond the context."""
    row_length = train.row_length or context_length
    if row_length > context_length:
        raise ValueError(f"row_length is {row_length}; the model's context is {context_length}, so at most that")
    tokenizer = chat.tokenizer
    return {
        "batch_rows": train.batch_rows,
        "row_length": row_length,
        "seed": train.seed,
        "pad": tokenizer.filler,
        "rank": runtime.rank(),
        "world_size": runtime.world_size(),
    }


def encoded_documents(texts: Iterator[str], tokenizer: Tokenizer, *, end: bool = True) -> Iterator[list[int]]:
    """Documents as tokens, begin-of-text first and (with `end`) end-of-text last where the tokenizer has them."""
    begin = tokenizer.document_start
    ending = [tokenizer.eos] if end and tokenizer.eos_token is not None else []
    while batch := list(islice(texts, _DOCUMENTS_AT_ONCE)):
        for tokens in tokenizer.encode_batch(batch):
            yield [*begin, *tokens, *ending]


def split_off(items: Loaded[T], *, one_in: int) -> tuple[Loaded[T], list[T]]:
    """Hold out every `one_in`-th item, at most 500 and at least one. ValueError if there are not two items."""
    if len(items) < 2:
        raise ValueError(
            "there is only one record, so none can be held out; give more data, or --validation-data of your own"
        )
    chosen = set(range(len(items) - 1, -1, -one_in)[:_MOST_HELD_OUT])
    kept: Loaded[T] = Loaded()
    kept.notes = items.notes
    kept.extend(item for index, item in enumerate(items) if index not in chosen)
    return kept, [items[index] for index in sorted(chosen)]


def mean_loss(
    model: nn.Module, objective: Objective, batches: Any, train: TrainConfig, *, prefix: str
) -> dict[str, float]:
    """The objective's loss and metrics over held-out batches, without gradients: {"<prefix>/loss": ...}."""
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    sums: dict[str, list[float]] = {}
    with torch.inference_mode():
        for step in range(batches.steps_per_epoch):
            batch: Batch = {name: tensor.to(device) for name, tensor in batches.batch_at(0, step).items()}
            with runtime.autocast(device, train.dtype):
                loss = objective(model, batch)
            values = {"loss": (loss.total, loss.weight), **loss.metrics}
            for name, (value, count) in values.items():
                sums.setdefault(name, [0.0, 0.0])
                sums[name][0] += float(value)
                sums[name][1] += float(count)
    model.train(was_training)
    reduced = runtime.sum_across_ranks(torch.tensor([sums[name] for name in sums], dtype=torch.float64, device="cpu"))
    return {f"{prefix}/{name}": value / max(count, 1e-9) for name, (value, count) in zip(sums, reduced.tolist())}


class _NoteSeconds:
    """Keeps the manifest's time up to date wherever the run may be taken up again."""

    def __init__(self, stage: Run, *, every_steps: int) -> None:
        self.stage, self.every_steps = stage, every_steps

    def on_step(self, trainer: Trainer, metrics: dict[str, float]) -> None:
        if trainer.step_index % self.every_steps == 0:
            self.stage.note_seconds()

    def on_end(self, trainer: Trainer) -> None:
        pass


def fit(
    stage: Run,
    model: nn.Module,
    objective: Objective,
    loader: Iterable[Batch],
    train: TrainConfig,
    *,
    total_steps: int,
    evaluate: Callable[[], dict[str, float]] | None = None,
) -> dict[str, float]:
    """Train from the last checkpoint, or from the start, to `total_steps`; returns what was evaluated at the end."""
    callbacks: list[Any] = [ProgressBar(stage.stage), _NoteSeconds(stage, every_steps=train.save_every_steps)]
    found: dict[str, float] = {}
    if evaluate is not None:

        def measure(_: nn.Module) -> dict[str, float]:
            found.update(evaluate())
            return dict(found)

        callbacks.insert(0, Evaluate(measure, every_steps=train.evaluate_every_steps, averaged=True))
    trainer = Trainer(model, objective, train, total_steps=total_steps, run_folder=stage.folder, callbacks=callbacks)
    if trainer.resume():
        stage.say(f"going on from step {trainer.step_index} of {total_steps}")
    elif evaluate is not None and train.evaluate_at_start:
        at_start = {name.replace("validation/", "before/"): value for name, value in evaluate().items()}
        stage.say("before training: " + ", ".join(f"{name} {value:.3f}" for name, value in at_start.items()))
    last = trainer.run(loader) or read_metrics(stage.folder / "metrics.jsonl")[-1]  # a kill came after the last step
    if trainer.ema is not None:
        trainer.ema.copy_to_model()
    if not found and evaluate is not None:
        found.update(evaluate())
    return {"loss": last["loss"], **found}
