"""Next-token loss: a sum in nats over counted targets, however it is chunked."""

import math
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from chatloom.models import build, llama
from chatloom.objectives import causal_lm as module
from chatloom.objectives.causal_lm import causal_lm


class Table(nn.Module):
    """A bigram model: the logits after a token are its row of a table. Counts the rows it projects."""

    def __init__(self, rows: list[list[float]]) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.tensor(rows))
        self.projected = 0

    def hidden(self, tokens: Tensor, *, documents: Tensor | None = None) -> Tensor:
        return self.table[tokens]

    def logits(self, hidden: Tensor) -> Tensor:
        self.projected += len(hidden)
        return hidden


def batch(tokens: list[list[int]], targets: list[list[int]]) -> dict[str, Tensor]:
    return {"tokens": torch.tensor(tokens), "targets": torch.tensor(targets)}


def test_three_tokens_by_hand() -> None:
    # After token 0 the odds of tokens 0, 1, 2 are 1 : 1 : 2; after token 1 they are 1 : 8 : 1; after 2 all alike.
    model = Table([[0.0, 0.0, math.log(2)], [0.0, math.log(8), 0.0], [0.0, 0.0, 0.0]])
    loss = causal_lm(model, batch([[0, 1, 2]], [[2, 0, -100]]))
    # -log(2/4) - log(1/10) = log 2 + log 10 = log 20; the last target does not count.
    assert loss.total.item() == pytest.approx(math.log(20))
    assert loss.weight.item() == 2
    correct, count = loss.metrics["accuracy"]
    assert (correct.item(), count.item()) == (1, 2)  # 2 after 0 was the likeliest; 0 after 1 was not


def test_gradient_by_hand() -> None:
    model = Table([[0.0, 0.0, math.log(2)]])
    causal_lm(model, batch([[0]], [[2]])).total.backward()
    assert model.table.grad is not None
    torch.testing.assert_close(model.table.grad, torch.tensor([[0.25, 0.25, -0.5]]))  # p - onehot


def test_only_counted_positions_are_projected() -> None:
    model = Table([[0.0, 1.0], [1.0, 0.0]])
    loss = causal_lm(model, batch([[0, 1] * 300], [[-100, -100, 1, *[-100] * 597]]))
    assert model.projected == 256  # of 600: the one that counts, filled up to a multiple of 256
    assert loss.weight.item() == 1
    assert loss.metrics["accuracy"][0].item() == 1  # the likeliest after 0 is 1; what fills up is no hit


def test_nothing_counted_is_zero_with_zero_gradient() -> None:
    model = Table([[0.0, 1.0], [1.0, 0.0]])
    loss = causal_lm(model, batch([[0, 1]], [[-100, -100]]))
    loss.total.backward()
    assert (loss.total.item(), loss.weight.item()) == (0, 0)
    assert model.table.grad is not None
    assert model.table.grad.count_nonzero() == 0


@pytest.mark.parametrize("recomputed_logits", [2**27, 0], ids=["kept", "recomputed"])
def test_chunks_equal_one_piece(monkeypatch: pytest.MonkeyPatch, recomputed_logits: int) -> None:
    monkeypatch.setattr(module, "CHUNK_ROWS", 3)
    monkeypatch.setattr(module, "_RECOMPUTED_LOGITS", recomputed_logits)
    torch.manual_seed(0)
    model = build(llama.Config(vocab_size=17, context_length=8, num_layers=1, width=16, num_heads=2,
                               num_key_value_heads=1, inner_width=24, tie_embeddings=False))  # fmt: skip
    tokens, targets = torch.randint(17, (3, 8)), torch.randint(17, (3, 8))
    targets[torch.rand(3, 8) < 0.4] = -100
    reference = F.cross_entropy(model(tokens).flatten(0, 1), targets.flatten(), reduction="sum", ignore_index=-100)
    expected = torch.autograd.grad(reference, list(model.parameters()))
    loss = causal_lm(model, {"tokens": tokens, "targets": targets})
    loss.total.backward()
    torch.testing.assert_close(loss.total, reference)
    assert loss.weight.item() == (targets != -100).sum().item()
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-5, atol=1e-6)


def test_loss_is_fp32_under_autocast() -> None:
    torch.manual_seed(0)
    head = nn.Linear(4, 3)
    model = SimpleNamespace(hidden=lambda tokens, documents=None: head.weight[tokens], logits=head)
    with torch.autocast("cpu", torch.bfloat16):
        loss = causal_lm(model, batch([[0, 1]], [[1, 2]]))  # type: ignore[arg-type]
    assert loss.total.dtype == torch.float32
