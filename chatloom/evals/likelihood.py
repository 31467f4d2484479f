"""Likelihood: bits per byte of held-out documents, which compares models across tokenizers.

bits per byte = total nats / ln 2 / UTF-8 bytes. What counts: every token of a document's text is predicted exactly
once, from begin-of-text and the text before it, and the bytes are those of that text. Where the tokenizer begins no
text with a token, nothing predicts a document's first token, and its bytes do not count. The end-of-text token has no
bytes, so by default it is not scored; `count_end=True` adds its nats (never bytes). A document longer than the row
goes on in a chunk whose first token is the last of the chunk before, seen but not scored a second time: that chunk
sees less context, which makes the figure an upper bound. Documents are packed into rows without seeing one another.
The interval is a bootstrap over documents; differences between models are paired by document.
"""

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from chatloom import runtime
from chatloom.data import pack
from chatloom.evals import intervals
from chatloom.evals.intervals import Estimate
from chatloom.objectives import causal_lm
from chatloom.tokenizers.bpe import Tokenizer


@dataclass(frozen=True, eq=False)
class Likelihood:
    """Nats, bytes and scored tokens of each document, in the order given."""

    nats: NDArray[np.float64]
    num_bytes: NDArray[np.int64]
    num_tokens: NDArray[np.int64]

    def bits_per_byte(self, *, seed: int = 0) -> Estimate:
        """Over all documents, with a bootstrap interval."""
        return intervals.ratio(self.nats / math.log(2), self.num_bytes, seed=seed)

    @property
    def loss(self) -> float:
        """Mean nats per scored token, which does not compare across tokenizers."""
        return float(self.nats.sum() / self.num_tokens.sum())


def bits_per_byte(
    model: nn.Module,
    *,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    batch_rows: int = 8,
    row_length: int | None = None,
    autocast: str = "fp32",
    count_end: bool = False,
    seed: int = 0,
) -> Estimate:
    """Bits per byte of held-out `texts` with a 95 % interval; arguments as for `measure`."""
    found = measure(
        model,
        tokenizer=tokenizer,
        texts=texts,
        batch_rows=batch_rows,
        row_length=row_length,
        autocast=autocast,
        count_end=count_end,
    )
    return found.bits_per_byte(seed=seed)


def rise(after: Likelihood, before: Likelihood, *, seed: int = 0) -> Estimate:
    """Bits per byte of `after` minus those of `before` on the same documents, paired by document."""
    if not np.array_equal(after.num_bytes, before.num_bytes):
        raise ValueError("the two likelihoods are of different documents, so there is no difference to report")
    return intervals.ratio((after.nats - before.nats) / math.log(2), after.num_bytes, seed=seed)


def perplexity_rise(after: Likelihood, before: Likelihood, *, seed: int = 0) -> Estimate:
    """How much higher `after`'s perplexity is, 0.02 for 2 %: same tokenizer, same documents, paired by document."""
    if not np.array_equal(after.num_tokens, before.num_tokens):
        raise ValueError("perplexity is per token, so it compares models of one tokenizer on the same documents only")
    more = intervals.ratio(after.nats - before.nats, after.num_tokens, seed=seed)
    return Estimate(math.expm1(more.value), math.expm1(more.low), math.expm1(more.high), more.count)


def measure(
    model: nn.Module,
    *,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    batch_rows: int = 8,
    row_length: int | None = None,
    autocast: str = "fp32",
    count_end: bool = False,
) -> Likelihood:
    """Nats and bytes of each document.

    Args:
        model: a decoder with `hidden` and `logits`; it is put into evaluation mode for the while.
        tokenizer: the model's own.
        texts: documents; those of which nothing is predicted are left out: empty, or one token that begins the text.
        batch_rows: rows in one forward pass.
        row_length: tokens in a row; the model's context length if None, and never more.
        autocast: "fp32", or "bf16" for bfloat16 matrix products.
        count_end: also score the end-of-text token after each document.

    Raises:
        ValueError: no document has any text.
    """
    begin, ending = tokenizer.document_start, [tokenizer.eos] if count_end else []
    texts = [text for text in texts if text]
    encoded = [(text, [*begin, *tokens, *ending]) for text, tokens in zip(texts, tokenizer.encode_batch(texts))]
    documents = [(text, tokens) for text, tokens in encoded if len(tokens) > 1]
    if not documents:
        raise ValueError("there is no held-out text to measure: give at least one document that is not empty")
    network: Any = model
    length = min(row_length or network.config.context_length, network.config.context_length)
    sequences = [tokens for _, tokens in documents]
    chunks = [(number, np.array(chunk)) for number, tokens in enumerate(sequences) for chunk in _chunks(tokens, length)]
    nats = np.zeros(len(documents))
    for owner, amount in zip(
        (number for number, _ in chunks),
        _chunk_nats(model, [chunk for _, chunk in chunks], length, batch_rows, autocast, tokenizer.filler),
    ):
        nats[owner] += amount
    return Likelihood(
        nats,
        np.array(
            [_num_bytes(text) - (0 if begin else _num_bytes_of(tokens[0], tokenizer)) for text, tokens in documents]
        ),
        np.array([len(tokens) - 1 for tokens in sequences]),
    )


def _num_bytes(text: str) -> int:
    return len(text.encode("utf-8"))


def _num_bytes_of(token: int, tokenizer: Tokenizer) -> int:
    """Bytes of a token's text; what is no whole character comes out as U+FFFD and counts as one."""
    text = tokenizer.decode([token])
    return _num_bytes(text.replace("\ufffd", "?"))


def _chunks(tokens: Sequence[int], length: int) -> list[Sequence[int]]:
    """Pieces of at most `length` tokens, each starting with the last token of the one before."""
    return [tokens[start : start + length] for start in range(0, max(1, len(tokens) - 1), length - 1)]


def _chunk_nats(
    model: nn.Module,
    chunks: Sequence[NDArray[Any]],
    length: int,
    batch_rows: int,
    autocast: str,
    pad: int,
) -> list[float]:
    """-log p of all tokens but the first of each chunk, in nats."""
    network: Any = model
    device = next(model.parameters()).device
    batch = pack.pack([pack.Sample(chunk) for chunk in chunks], length, pad=pad)
    spans = batch["spans"].tolist()
    by_row: dict[int, list[int]] = {}
    for index, (row, _, _) in enumerate(spans):
        by_row.setdefault(row, []).append(index)
    nats = [0.0] * len(chunks)
    with _evaluating(model), torch.no_grad(), runtime.autocast(device, autocast):
        for first in range(0, len(batch["tokens"]), batch_rows):
            rows = {
                name: batch[name][first : first + batch_rows].to(device) for name in ("tokens", "documents", "targets")
            }
            hidden = network.hidden(rows["tokens"], documents=rows["documents"])  # (B, T, C)
            for row in range(len(hidden)):
                for index in by_row[first + row]:
                    _, start, size = spans[index]
                    scored = slice(start, start + size - 1)
                    loss = causal_lm.cross_entropy(network, hidden[row, scored], rows["targets"][row, scored])
                    nats[index] = float(loss.total)
    return nats


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, and every module's mode put back."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
