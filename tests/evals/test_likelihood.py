"""Bits per byte: a model that knows nothing has a known figure, and packing must not change any."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from chatloom.evals import likelihood
from chatloom.evals.likelihood import Likelihood, bits_per_byte, measure, perplexity_rise, rise
from chatloom.testing.models import VOCAB_SIZE, tiny_llama
from chatloom.testing.tokenizer import beginless_tokenizer, byte_tokenizer

TEXTS = ["the cat sat", "A longer document about the boats of Tollen.", "é😀", "x"]


class Ignorant(nn.Module):
    """Gives every token the same probability."""

    def __init__(self, context_length: int = 64) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.config = SimpleNamespace(context_length=context_length)

    def hidden(self, tokens: torch.Tensor, *, documents: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*tokens.shape, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        return torch.zeros(*hidden.shape[:-1], VOCAB_SIZE)


def measured(model: nn.Module, texts: list[str], **options: object) -> likelihood.Likelihood:
    return measure(model, tokenizer=byte_tokenizer(), texts=texts, **options)


def test_ignorance_costs_log2_of_the_vocabulary_per_byte() -> None:
    # One token a byte, so each byte of text costs log2(V) bits; the end costs nothing unless it is asked for.
    estimate = bits_per_byte(Ignorant(), tokenizer=byte_tokenizer(), texts=TEXTS)
    assert estimate.value == pytest.approx(math.log2(VOCAB_SIZE))
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value, estimate.value))
    assert estimate.count == len(TEXTS)
    with_end = bits_per_byte(Ignorant(), tokenizer=byte_tokenizer(), texts=["abcd"], count_end=True)
    assert with_end.value == pytest.approx(math.log2(VOCAB_SIZE) * 5 / 4)


def test_bytes_are_those_of_utf8() -> None:
    assert measured(Ignorant(), TEXTS).num_bytes.tolist() == [11, 44, 6, 1]


@pytest.mark.parametrize("row_length", [2, 3, 7, 64])
def test_every_token_of_a_long_document_is_scored_once(row_length: int) -> None:
    found = measured(Ignorant(), ["abcdefghij" * 5], row_length=row_length)
    assert found.nats[0] == pytest.approx(50 * math.log(VOCAB_SIZE), rel=1e-5)
    assert found.num_tokens.tolist() == [50]


def test_packed_together_is_each_alone_by_the_slow_oracle() -> None:
    model, tokenizer = tiny_llama(context_length=64), byte_tokenizer()
    together = measured(model, TEXTS, batch_rows=1)
    for index, text in enumerate(TEXTS):
        tokens = torch.tensor([[tokenizer.bos, *tokenizer.encode(text)]])
        with torch.no_grad():
            logprobs = model(tokens).log_softmax(-1)[0, :-1]
        alone = -logprobs.gather(1, tokens[0, 1:, None]).sum()
        assert together.nats[index] == pytest.approx(float(alone), rel=1e-5)


@pytest.mark.parametrize("row_length", [3, 64])
def test_a_text_begins_as_the_model_was_trained(row_length: int) -> None:
    """Without a begin-of-text token the first token is not predicted: its nats and its bytes are left out."""
    model, tokenizer = tiny_llama(context_length=64), beginless_tokenizer()
    assert tokenizer.bos_token is not None
    assert tokenizer.document_start == []
    found = measure(model, tokenizer=tokenizer, texts=["the cat sat", "x", "é😀"], row_length=row_length)
    assert found.num_tokens.tolist() == found.num_bytes.tolist() == [10, 5]  # of "x" nothing is predicted
    if row_length == 64:
        tokens = torch.tensor([tokenizer.encode("the cat sat")])
        with torch.no_grad():
            logprobs = model(tokens).log_softmax(-1)[0, :-1]
        assert found.nats[0] == pytest.approx(-float(logprobs.gather(1, tokens[0, 1:, None]).sum()), rel=1e-5)


def test_the_model_is_left_in_the_mode_it_had() -> None:
    model = tiny_llama()
    model.train()
    model.get_submodule("blocks.0" if hasattr(model, "blocks") else "norm").eval()
    before = [module.training for module in model.modules()]
    measured(model, TEXTS)
    assert [module.training for module in model.modules()] == before


def test_a_difference_is_paired_by_document() -> None:
    before, after = measured(tiny_llama(0), TEXTS), measured(tiny_llama(1), TEXTS)
    found = rise(after, before)
    assert found.value == pytest.approx(after.bits_per_byte().value - before.bits_per_byte().value)
    assert rise(before, before).high == 0.0
    with pytest.raises(ValueError, match="different documents"):
        rise(after, measured(tiny_llama(0), TEXTS[:2]))


def test_no_text_is_an_error_and_empty_documents_are_left_out() -> None:
    assert len(measured(Ignorant(), ["", "ab"]).nats) == 1
    with pytest.raises(ValueError, match="no held-out text"):
        measured(Ignorant(), ["", ""])


def test_the_rise_in_perplexity_is_a_ratio_by_hand() -> None:
    tokens, num_bytes = np.array([4, 6]), np.array([10, 20])
    before = Likelihood(np.array([8.0, 12.0]), num_bytes, tokens)  # 2 nats a token
    after = Likelihood(np.array([8.4, 12.6]), num_bytes, tokens)  # 2.1 nats a token
    found = perplexity_rise(after, before)
    assert found.value == pytest.approx(math.exp(0.1) - 1)
    assert found.low == pytest.approx(found.value)  # every document rises alike
    assert perplexity_rise(before, before).value == 0.0
    with pytest.raises(ValueError, match="one tokenizer"):
        perplexity_rise(Likelihood(after.nats, num_bytes, tokens + 1), before)
