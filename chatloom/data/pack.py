"""Packing: samples of different lengths side by side in rows of one length, with little padding.

* `best_fit` is best-fit decreasing (Johnson 1973; for language models, Ding et al. 2024, "Fewer truncations improve
  language modeling"): the longest sample first, each into the fullest row that still has room for it. Open rows are
  kept by the room they have left, and an integer's bits say which amounts occur, so finding the row is two
  operations on integers: 20,000 samples take some 20 ms.
* A batch says which sample each token belongs to (`documents`), so attention and targets never cross samples.
* `targets` are the next tokens, already shifted; what is not counted is IGNORED.

Batch layout (B rows, T = row_length, N samples):
    tokens     (B, T)  int64   `pad` where there is no sample
    documents  (B, T)  int32   0 is padding, samples are 1, 2, ... within a row
    targets    (B, T)  int64   tokens[t + 1] where that is the same sample and its loss mask is set, else IGNORED
    <field>    (B, T)          each of Sample.fields, 0 or False where there is no sample
    ends       (N, 2)  int64   row and column of each sample's last token, in the order the samples were given
    spans      (N, 3)  int64   row, first column and length of each sample, in the order given
    order      (N,)    int64   which sample comes j-th when the rows are read from the top left
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from chatloom.nn.documents import LARGEST, continuing

Batch = dict[str, Tensor]

IGNORED = -100  # the index that torch's cross entropy leaves out
# Keys with one entry a sample; every other key of a batch is (B, T).
SAMPLE_KEYS = frozenset({"ends", "spans", "order", "groups", "ranks"})


@dataclass(frozen=True, eq=False)
class Sample:
    """One sequence to pack: tokens (n,); loss_mask (n,), None for all; fields, each (n,), float32, int64 or bool."""

    tokens: NDArray[Any]
    loss_mask: NDArray[Any] | None = None
    fields: dict[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        shape = np.shape(self.tokens)
        if len(shape) != 1 or not shape[0]:
            raise ValueError(f"the tokens of a sample have shape {shape}; they must be one sequence, not empty")
        for name, values in {"loss_mask": self.loss_mask, **self.fields}.items():
            if values is not None and np.shape(values) != shape:
                raise ValueError(f"`{name}` has shape {np.shape(values)} and tokens {shape}; they must be aligned")

    def __len__(self) -> int:
        return len(self.tokens)

    def slice(self, positions: NDArray[np.int64] | slice) -> "Sample":
        """The sample at `positions` only."""
        return Sample(
            self.tokens[positions],
            None if self.loss_mask is None else self.loss_mask[positions],
            {name: values[positions] for name, values in self.fields.items()},
        )


# --- long samples ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PackReport:
    """What `truncate` did to samples: how many it got, cut and dropped, and how many tokens went."""

    samples: int
    truncated: int
    dropped: int
    tokens_cut: int
    row_length: int

    def notes(self) -> list[str]:
        """Sentences for the stage to print; none if nothing happened."""
        notes = []
        if self.truncated:
            notes.append(
                f"{self.truncated:,} of {self.samples:,} samples were longer than {self.row_length:,} tokens "
                "and were cut"
            )
        if self.dropped:
            notes.append(
                f"{self.dropped:,} of {self.samples:,} samples were left out: no trained token "
                f"within {self.row_length:,} tokens"
            )
        return notes


def truncate(
    samples: Sequence[Sample], row_length: int, *, keep: Literal["start", "end"] = "start"
) -> tuple[list[Sample], PackReport]:
    """Cut every sample to at most `row_length` tokens, and drop those that are left with nothing to learn from.

    keep="start" cuts the tail (demonstrations). keep="end" keeps the first token (begin of text) and the tail, so
    that the answer and its end-of-turn survive (comparisons). A dropped sample has no token after its first whose
    loss mask is set.
    """
    _check_row_length(row_length)
    kept = []
    truncated = cut = 0
    for sample in samples:
        if len(sample) > row_length:
            truncated += 1
            cut += len(sample) - row_length
            sample = shorten(sample, row_length, keep=keep)
        if len(sample) > 1 and (sample.loss_mask is None or np.any(sample.loss_mask[1:])):
            kept.append(sample)
    return kept, PackReport(len(samples), truncated, len(samples) - len(kept), cut, row_length)


def shorten(sample: Sample, row_length: int, *, keep: Literal["start", "end"]) -> Sample:
    """The sample cut to at most `row_length` tokens: its start, or its first token and its end."""
    length = len(sample)
    if length <= row_length:
        return sample
    if keep == "start":
        return sample.slice(slice(0, row_length))
    return sample.slice(np.concatenate([np.zeros(1, np.int64), np.arange(length - row_length + 1, length)]))


def pieces(tokens: Sequence[int] | NDArray[np.int64], row_length: int) -> list[Sample]:
    """A document in pieces of at most `row_length` tokens that overlap by one: every token but the first is a target
    once. A document of one token has no piece."""
    _check_row_length(row_length)
    array = np.asarray(tokens)
    return [Sample(array[start : start + row_length]) for start in range(0, len(array) - 1, row_length - 1)]


def _check_row_length(row_length: int) -> None:
    if row_length < 2:
        raise ValueError(f"row_length is {row_length}; it must be at least 2, a token and the one after it")


# --- packing --------------------------------------------------------------------------------------------------


def best_fit(lengths: Sequence[int] | NDArray[np.int64], capacity: int) -> list[list[int]]:
    """Assign items to bins of `capacity` by best-fit decreasing: bins of item indices, the longest item first.

    Raises ValueError if an item is longer than `capacity` or not positive.
    """
    sizes = np.asarray(lengths, dtype=np.int64)
    if not sizes.size:
        return []
    if sizes.min() < 1 or sizes.max() > capacity:
        raise ValueError(
            f"lengths are between {sizes.min()} and {sizes.max()}; each must be between 1 and {capacity}: "
            "cut the long samples with `truncate` first"
        )
    order = np.argsort(-sizes, kind="stable").tolist()
    ordered = sizes[order].tolist()
    bins: list[list[int]] = []
    open_bins: list[list[int]] = [[] for _ in range(capacity + 1)]  # by room left
    rooms = 0  # bit r is set where open_bins[r] is not empty
    for item, size in zip(order, ordered):
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            bin_index = open_bins[room].pop()
            if not open_bins[room]:
                rooms ^= 1 << room
            bins[bin_index].append(item)
        else:
            room = capacity
            bin_index = len(bins)
            bins.append([item])
        left = room - size
        if left:
            open_bins[left].append(bin_index)
            rooms |= 1 << left
    return bins


def pack(samples: Sequence[Sample], row_length: int, *, pad: int, round_rows: bool = False) -> Batch:
    """Pack samples into as few rows as best fit finds. Returns the batch described at the top of this file.

    With `round_rows` up to an eighth more, empty rows, make their number a rounder one: where batch after batch is
    packed, fewer different shapes mean fewer kernels that a CPU has to compile and keep.

    Raises ValueError for a sample longer than `row_length`, and for samples with different `fields`.
    """
    _check_row_length(row_length)
    if not samples:
        raise ValueError("there are no samples to pack; give at least one")
    rows = best_fit([len(sample) for sample in samples], row_length)
    if round_rows:
        rows += [[] for _ in range(-len(rows) % (1 << max(0, len(rows).bit_length() - 4)))]
    return lay_out(samples, rows, row_length, pad=pad)


def pack_branches(families: Sequence[Sequence[Sample]], row_length: int, *, pad: int) -> Batch:
    """Pack families of samples that begin alike, such as the answers to one prompt, with each beginning there once.

    What the samples of a family have in common is one document, and the rest of each another that continues it
    (`nn/documents.py`); a family that does not fit a row is parted, and its beginning repeated. Rows are as long as
    the fullest one needs, in steps of 64.

    Returns:
        tokens and documents (B, T) of at most `row_length`, and `ends` (N, 2) of the samples in the order given.

    Raises ValueError for a sample longer than `row_length`.
    """
    _check_row_length(row_length)
    num_samples = sum(map(len, families))
    trees: list[Sample] = []
    tree_of, end_of = np.empty(num_samples, np.int64), np.empty(num_samples, np.int64)
    first = 0
    for family in families:
        common = _common_beginning([sample.tokens for sample in family])
        for some in best_fit([len(sample) - common for sample in family], row_length - common):
            parts = [family[0].tokens[:common], *(family[index].tokens[common:] for index in some)]
            sizes = np.array([len(part) for part in parts])
            tree_of[[first + index for index in some]] = len(trees)
            end_of[[first + index for index in some]] = np.cumsum(sizes)[1:] - 1
            trees.append(Sample(np.concatenate(parts), fields={"branch": np.repeat(np.arange(len(parts)), sizes)}))
        first += len(family)
    rows = best_fit([len(tree) for tree in trees], row_length)
    fullest = max(sum(len(trees[tree]) for tree in row) for row in rows)
    batch = lay_out(trees, rows, min(row_length, -(-fullest // 64) * 64), pad=pad)
    branch = batch["branch"]
    trunk = batch["documents"].long() * (int(branch.max()) + 1)  # 0 at padding
    assert int(trunk.max()) + int(branch.max()) <= LARGEST, "documents are told apart by their numbers"
    spans = batch["spans"][tree_of]
    return {
        "tokens": batch["tokens"],
        "documents": continuing(trunk + branch, torch.where(branch > 0, trunk, 0)),
        "ends": torch.stack([spans[:, 0], spans[:, 1] + torch.from_numpy(end_of)], dim=1),
    }


def _common_beginning(sequences: Sequence[NDArray[Any]]) -> int:
    """How many tokens all sequences begin with alike; at least one is left to each. A sequence alone shares none."""
    shortest = min(map(len, sequences))
    if len(sequences) == 1 or shortest < 2:
        return 0
    heads = np.stack([sequence[: shortest - 1] for sequence in sequences])
    differs = (heads != heads[0]).any(axis=0)
    return int(differs.argmax()) if differs.any() else shortest - 1


def lay_out(samples: Sequence[Sample], rows: Sequence[Sequence[int]], row_length: int, *, pad: int) -> Batch:
    """The batch whose row r holds samples rows[r] in that order. Each sample is in one row; a row may be empty."""
    lengths = np.fromiter((len(sample) for sample in samples), np.int64, len(samples))
    order, row_of, start_of, document_of = _place(rows, lengths)
    shape = (len(rows), row_length)
    placed = [samples[index] for index in order.tolist()]
    sizes = lengths[order]
    # Where each token goes in the flattened batch: its sample's place, and on from there.
    begins = np.cumsum(sizes) - sizes
    where = np.repeat(row_of * row_length + start_of - begins, sizes) + np.arange(int(sizes.sum()))

    def scatter(values: NDArray[Any], fill: int | bool, dtype: Any) -> NDArray[Any]:
        out = np.full(shape, fill, dtype)
        out.reshape(-1)[where] = values
        return out

    flat = _concatenate([sample.tokens for sample in placed]).astype(np.int64)
    counted = _concatenate([_loss_mask(sample) for sample in placed])
    counted[begins] = False  # what comes before a sample's first token is another sample
    targets = np.full(len(flat), IGNORED, np.int64)
    targets[:-1] = np.where(counted[1:], flat[1:], IGNORED)
    arrays = {
        "tokens": scatter(flat, pad, np.int64),
        "documents": scatter(np.repeat(document_of, sizes), 0, np.int32),
        "targets": scatter(targets, IGNORED, np.int64),
    }
    for name in _field_names(samples):
        values = _concatenate([sample.fields[name] for sample in placed])
        arrays[name] = scatter(values, 0, np.float32 if values.dtype.kind == "f" else values.dtype)
    spans = np.empty((len(samples), 3), np.int64)
    spans[order] = np.stack([row_of, start_of, sizes], axis=1)
    arrays["ends"] = np.stack([spans[:, 0], spans[:, 1] + spans[:, 2] - 1], axis=1)
    arrays["spans"] = spans
    arrays["order"] = order
    return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _place(rows: Sequence[Sequence[int]], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], ...]:
    """For the samples in reading order: which sample, its row, its first column, its number within the row."""
    counts = np.fromiter((len(row) for row in rows), np.int64, len(rows))
    order = np.fromiter((index for row in rows for index in row), np.int64, int(counts.sum()))
    assert len(order) == len(lengths), "each sample is in exactly one row"
    row_of = np.repeat(np.arange(len(rows)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)  # place in `order` of the first sample of the row
    before = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths[order])])
    start_of = before[:-1] - before[first]
    return order, row_of, start_of, np.arange(len(order)) - first + 1


def _concatenate(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(arrays) if arrays else np.zeros(0, np.int64)


def _loss_mask(sample: Sample) -> NDArray[np.bool_]:
    if sample.loss_mask is None:
        return np.ones(len(sample), np.bool_)
    return np.asarray(sample.loss_mask, dtype=np.bool_)


def _field_names(samples: Sequence[Sample]) -> list[str]:
    names = list(samples[0].fields) if samples else []
    for index, sample in enumerate(samples):
        if sample.fields.keys() != set(names):
            raise ValueError(
                f"sample {index} has the fields {sorted(sample.fields)} and sample 0 {sorted(names)}; "
                "all samples of a batch need the same"
            )
    return names


# --- microbatches ---------------------------------------------------------------------------------------------


def split_rows(batch: Batch, microbatch_rows: int) -> list[Batch]:
    """Cut a batch into microbatches of `microbatch_rows` rows (the last may have fewer), for token-level objectives.

    Keys with one entry a sample (SAMPLE_KEYS) are left out: a sample's place is another one in a microbatch.
    """
    if microbatch_rows < 1:
        raise ValueError(f"microbatch_rows is {microbatch_rows}; it must be at least 1")
    rows = len(batch["tokens"])
    return [
        {name: tensor[at : at + microbatch_rows] for name, tensor in batch.items() if name not in SAMPLE_KEYS}
        for at in range(0, rows, microbatch_rows)
    ]
