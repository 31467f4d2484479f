"""Invariant 3: the loss and the update are the same however the batch is accumulated, padded or packed.

Sums of floats in another order differ in the last bits, so the comparison is to 1e-5, in fp32.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from chatloom.models import build, gpt2, llama
from chatloom.models.decoder import Decoder
from chatloom.objectives import Batch
from chatloom.objectives.causal_lm import causal_lm
from chatloom.train.trainer import TrainConfig, Trainer

VOCAB_SIZE, CONTEXT = 23, 24


def make_llama() -> Decoder:
    return build(
        llama.Config(
            vocab_size=VOCAB_SIZE, context_length=CONTEXT, num_layers=2, width=16, num_heads=4,
            num_key_value_heads=2, inner_width=24,
        )
    )  # fmt: skip


def make_gpt2() -> Decoder:
    return build(gpt2.Config(vocab_size=VOCAB_SIZE, context_length=CONTEXT, num_layers=2, width=16, num_heads=4))


def documents() -> list[tuple[Tensor, Tensor]]:
    """Eight documents of very different length, with very different shares of tokens that count."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for index, length in enumerate([24, 3, 11, 2, 17, 9, 22, 5]):
        tokens = torch.randint(VOCAB_SIZE, (length,), generator=generator)
        counted = torch.rand(length, generator=generator) < (index + 1) / 8
        counted[1] = True
        made.append((tokens, counted))
    return made


def lay_out(rows: list[list[int]], length: int) -> Batch:
    """The batch whose rows hold the documents of the given numbers."""
    shape = (len(rows), length)
    batch = {
        "tokens": torch.zeros(shape, dtype=torch.int64),
        "documents": torch.zeros(shape, dtype=torch.int32),
        "targets": torch.full(shape, -100),
    }
    everything = documents()
    for row, members in enumerate(rows):
        start = 0
        for number, member in enumerate(members, start=1):
            tokens, counted = everything[member]
            end = start + len(tokens)
            batch["tokens"][row, start:end] = tokens
            batch["documents"][row, start:end] = number
            batch["targets"][row, start : end - 1] = torch.where(counted[1:], tokens[1:], -100)
            start = end
    return batch


ALONE = [[index] for index in range(8)]
WAYS: dict[str, Callable[[], list[Batch]]] = {
    "batch 8 x accumulation 1": lambda: [lay_out(ALONE, CONTEXT)],
    "batch 1 x accumulation 8": lambda: [lay_out([row], CONTEXT) for row in ALONE],
    "batch 1, no padding": lambda: [lay_out([row], len(documents()[row[0]][0])) for row in ALONE],
    "batch 3 + 5": lambda: [lay_out(ALONE[:3], CONTEXT), lay_out(ALONE[3:], CONTEXT)],
    "another order": lambda: [lay_out(ALONE[::-1], CONTEXT)],
    "packed": lambda: [lay_out([[0], [6, 3], [4, 7], [2, 5, 1]], CONTEXT)],
    "packed x accumulation 2": lambda: [lay_out([[0], [3, 6]], CONTEXT), lay_out([[7, 4], [1, 5, 2]], CONTEXT)],
    "an empty row": lambda: [lay_out([*ALONE, []], CONTEXT)],
    "a micro-batch without targets": lambda: [lay_out(ALONE, CONTEXT), lay_out([[]], CONTEXT)],
}


def update(make: Callable[[], Decoder], microbatches: list[Batch], **options: bool) -> tuple[dict[str, float], Tensor]:
    torch.manual_seed(0)
    model = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)  # so that no projection is zero, as some start
    # Large epsilon: the update is then nearly proportional to the gradient, so its size is compared too.
    config = TrainConfig(learning_rate=1.0, epsilon=10.0, clip_norm=None, schedule="constant", **options)  # type: ignore[arg-type]
    metrics = Trainer(model, causal_lm, config, total_steps=1).step(microbatches)
    return metrics, torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("make", [make_llama, make_gpt2])
def test_loss_gradient_and_update_are_the_same(make: Callable[[], Decoder]) -> None:
    expected_metrics, expected_weights = update(make, WAYS["batch 8 x accumulation 1"]())
    assert expected_metrics["grad_norm"] > 0.1
    for name, microbatches in WAYS.items():
        metrics, weights = update(make, microbatches())
        for key in ("loss", "grad_norm", "accuracy", "tokens"):
            assert metrics[key] == pytest.approx(expected_metrics[key], rel=1e-5), (name, key)
        torch.testing.assert_close(weights, expected_weights, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


def test_the_loss_is_the_mean_over_all_tokens_that_count() -> None:
    torch.manual_seed(0)
    model = make_llama()
    batch = lay_out(ALONE, CONTEXT)
    nats = torch.nn.functional.cross_entropy(
        model(batch["tokens"], documents=batch["documents"]).flatten(0, 1),
        batch["targets"].flatten(),
        ignore_index=-100,
    )
    trainer = Trainer(model, causal_lm, TrainConfig(), total_steps=1)
    assert trainer.step(WAYS["batch 1 x accumulation 8"]())["loss"] == pytest.approx(nats.item(), rel=1e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, checkpointed = (update(make_llama, WAYS["packed"](), gradient_checkpointing=flag) for flag in (False, True))
    assert plain[0]["loss"] == checkpointed[0]["loss"]
    assert torch.equal(plain[1], checkpointed[1])


def test_microbatch_rows_only_cuts() -> None:
    """`run` cuts the loader's batch; here into 3 + 3 + 2 rows."""
    results = []
    for rows in (None, 3):
        torch.manual_seed(0)
        trainer = Trainer(make_llama(), causal_lm, TrainConfig(microbatch_rows=rows), total_steps=1)
        results.append(trainer.run([lay_out(ALONE, CONTEXT)]))
    for key in ("loss", "grad_norm", "accuracy"):
        assert results[0][key] == pytest.approx(results[1][key], rel=1e-5)
