"""Loaders: samples, a token store or groups of samples become batches, the same ones every time.

* A batch is a pure function of (data, seed, epoch, step). The state of a loader is {"epoch", "step"}, and setting it
  is all that a resume needs.
* Rows are packed once, from the shuffled data, BUFFER sequences at a time; each epoch then shuffles the rows. So
  every epoch has the same number of steps, and memory is about 40 bytes a sequence, whatever their length: the
  tokens themselves are read when a batch is made. Sequences in a row do not see each other, so it does not matter
  that they stay together.
* `batch_rows` counts over all ranks. Rank r of W takes the r-th W-th of the batch's rows, so the batch, and the
  loss, are the same whatever the number of ranks.
* The last batch of an epoch may not fill up. By default it is completed with empty rows (documents 0, targets
  ignored), which no loss counts, so shapes never change; drop_last=True leaves those rows out for this epoch.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from chatloom.data.files import DataError
from chatloom.data.pack import Batch, PackReport, Sample, best_fit, lay_out, pack_branches, shorten, truncate
from chatloom.data.store import TokenStore

BUFFER = 2_000  # sequences that are packed together: enough for rows that are over 99 % full


class _Epochs:
    """Where a loader is, in epochs of `steps_per_epoch` steps, and the iteration that both loaders share."""

    def __init__(
        self,
        *,
        num_items: int,
        batch_items: int,
        seed: int,
        epochs: int | None,
        drop_last: bool,
        shuffle: bool,
        rank: int,
        world_size: int,
        unit: str,
    ) -> None:
        _check_sizes(batch_items, epochs, rank, world_size, unit)
        if drop_last and num_items < batch_items:
            raise DataError(
                f"the data makes {num_items:,} {unit}, fewer than one batch of {batch_items:,}; "
                f"lower batch_{unit}, give more data, or do not use drop_last"
            )
        self.seed = seed
        self.epochs = epochs
        self.shuffle = shuffle
        self.rank = rank
        self.world_size = world_size
        self.num_items = num_items
        self.batch_items = batch_items
        self.steps_per_epoch = num_items // batch_items if drop_last else -(-num_items // batch_items)
        self._epoch = 0
        self._step = 0
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch_at(self, epoch: int, step: int) -> Batch:
        """This rank's part of the batch at a step of an epoch."""
        raise NotImplementedError

    def _items_at(self, epoch: int, step: int) -> NDArray[np.int64]:
        """Which items (rows or groups) this rank has at a step; fewer where the epoch's last batch is short."""
        if not 0 <= step < self.steps_per_epoch:
            raise IndexError(f"step {step} of an epoch of {self.steps_per_epoch}")
        if self._order is None or self._order[0] != epoch:
            items = np.arange(self.num_items)
            if self.shuffle:
                items = np.random.default_rng([self.seed, 1, epoch]).permutation(self.num_items)
            self._order = (epoch, items)
        share = self.batch_items // self.world_size
        begin = step * self.batch_items + self.rank * share
        return self._order[1][begin : begin + share]

    @property
    def total_steps(self) -> int | None:
        """Batches in all epochs; None when endless."""
        return None if self.epochs is None else self.epochs * self.steps_per_epoch

    @property
    def finished(self) -> bool:
        """Whether every epoch has been handed out."""
        return self.epochs is not None and self._epoch >= self.epochs

    def __len__(self) -> int:
        """Batches in all epochs, those already handed out included. Raises TypeError when endless."""
        if self.epochs is None:
            raise TypeError("an endless loader has no length; give `epochs`, or use `steps_per_epoch`")
        return self.epochs * self.steps_per_epoch

    def __bool__(self) -> bool:
        return True

    def next_batch(self) -> Batch:
        """The next batch. Raises ValueError after the last epoch."""
        if self.finished:
            raise ValueError(f"all {self.epochs} epochs have been handed out; give more epochs, or None for no end")
        batch = self.batch_at(self._epoch, self._step)
        self._step += 1
        if self._step == self.steps_per_epoch:
            self._epoch, self._step = self._epoch + 1, 0
        return batch

    def __iter__(self) -> Iterator[Batch]:
        """The batches from where the loader is to the end of the last epoch."""
        while not self.finished:
            yield self.next_batch()

    def state_dict(self) -> dict[str, int]:
        """Where the next batch comes from: {"epoch", "step"}."""
        return {"epoch": self._epoch, "step": self._step}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go to a state that `state_dict` gave. Raises ValueError if this data has no such step."""
        epoch, step = int(state["epoch"]), int(state["step"])
        if epoch < 0 or not 0 <= step < self.steps_per_epoch:
            raise ValueError(
                f"the saved state is step {step} of epoch {epoch}, but an epoch has {self.steps_per_epoch} steps now; "
                "resume with the data, batch size and row length that the run was started with"
            )
        self._epoch, self._step = epoch, step


def _check_sizes(batch_items: int, epochs: int | None, rank: int, world_size: int, unit: str) -> None:
    if batch_items < 1 or batch_items % world_size:
        raise ValueError(
            f"batch_{unit} is {batch_items} on {world_size} ranks; it must be a positive multiple of the ranks"
        )
    if not 0 <= rank < world_size:
        raise ValueError(f"rank is {rank} of {world_size}; it must be from 0 to {world_size - 1}")
    if epochs is not None and epochs < 1:
        raise ValueError(f"epochs is {epochs}; it must be at least 1, or None for no end")


# --- rows -----------------------------------------------------------------------------------------------------


class Loader(_Epochs):
    """Packed batches of exactly batch_rows / world_size rows a rank, from samples or from a token store.

    Samples longer than `row_length` are cut or left out by `truncate`; see `report`. Documents of a store are cut
    into pieces of `row_length` tokens that overlap by one, so that every token but a document's first is a target
    exactly once an epoch. Raises DataError when nothing is left to train on.
    """

    def __init__(
        self,
        source: Sequence[Sample] | TokenStore,
        *,
        batch_rows: int,
        row_length: int,
        seed: int,
        pad: int,
        epochs: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self.row_length = row_length
        self.batch_rows = batch_rows
        self.pad = pad
        self.report: PackReport | None = None
        self._sequences: _Pieces | list[Sample]
        if isinstance(source, TokenStore):
            self._sequences = _Pieces(source, row_length)
            lengths = self._sequences.lengths
        else:
            self._sequences, self.report = truncate(source, row_length)
            lengths = np.fromiter(map(len, self._sequences), np.int64, len(self._sequences))
        if not len(lengths):
            raise DataError(
                f"nothing is left to train on: none of {len(source):,} sequences has a trained token after its first "
                f"within {row_length:,} tokens; check the data, or raise the row length"
            )
        self.num_tokens = int(lengths.sum())
        self._members, self._row_begins = _pack_rows(lengths, row_length, seed if shuffle else None)
        super().__init__(
            num_items=len(self._row_begins) - 1,
            batch_items=batch_rows,
            seed=seed,
            epochs=epochs,
            drop_last=drop_last,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            unit="rows",
        )

    @property
    def num_rows(self) -> int:
        """Packed rows in an epoch."""
        return self.num_items

    @property
    def utilisation(self) -> float:
        """The part of the rows that is not padding, from 0 to 1."""
        return self.num_tokens / (self.num_rows * self.row_length)

    def batch_at(self, epoch: int, step: int) -> Batch:
        """This rank's part of the batch: tokens, documents, targets and fields, each (rows, row_length)."""
        rows: list[list[int]] = []
        samples: list[Sample] = []
        for row in self._items_at(epoch, step).tolist():
            members = self._members[self._row_begins[row] : self._row_begins[row + 1]].tolist()
            rows.append(list(range(len(samples), len(samples) + len(members))))
            samples += [self._sequences[member] for member in members]
        rows += [[] for _ in range(self.batch_items // self.world_size - len(rows))]
        batch = lay_out(samples, rows, self.row_length, pad=self.pad)
        fields = self._sequences[0].fields
        if not samples:  # this rank's part of the last batch is empty: keep the names and types of the fields
            for name, values in fields.items():
                dtype = np.float32 if values.dtype.kind == "f" else values.dtype
                batch[name] = torch.from_numpy(np.zeros(batch["tokens"].shape, dtype))
        return {name: batch[name] for name in ("tokens", "documents", "targets", *fields)}


class _Pieces:
    """The documents of a store in pieces of at most `row_length` tokens, each beginning with the last one's end."""

    def __init__(self, store: TokenStore, row_length: int) -> None:
        stride = row_length - 1
        num_targets = store.lengths - 1
        counts = -(-num_targets // stride)  # a document of one token has no target, so no piece
        self._store = store
        self._document = np.repeat(np.arange(len(counts)), counts)
        first = np.repeat(np.cumsum(counts) - counts, counts)
        self._start = (np.arange(len(first)) - first) * stride
        self.lengths = np.minimum(num_targets[self._document] - self._start, stride) + 1

    def __getitem__(self, index: int) -> Sample:
        start = self._start[index]
        tokens = self._store.document(int(self._document[index]))
        return Sample(tokens[start : start + self.lengths[index]])


def _pack_rows(
    lengths: NDArray[np.int64], row_length: int, seed: int | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Pack sequences into rows: row r holds members[begins[r] : begins[r + 1]]."""
    order = np.arange(len(lengths))
    if seed is not None:
        order = np.random.default_rng([seed, 0]).permutation(len(lengths))
    members = np.empty(len(lengths), np.int64)
    sizes: list[int] = []
    for begin in range(0, len(order), BUFFER):
        buffer = order[begin : begin + BUFFER]
        bins = best_fit(lengths[buffer], row_length)
        members[begin : begin + len(buffer)] = buffer[np.concatenate([np.asarray(items) for items in bins])]
        sizes += map(len, bins)
    return members, np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])


# --- groups ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Group:
    """Samples that belong in one batch, such as the K responses to a prompt, with their ranks (0 is the best)."""

    samples: tuple[Sample, ...]
    ranks: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.samples or len(self.samples) != len(self.ranks):
            raise ValueError(f"{len(self.samples)} samples and {len(self.ranks)} ranks; give one rank for each sample")


class GroupLoader(_Epochs):
    """Packed batches of whole groups: batch_groups / world_size a rank (fewer in an epoch's last batch).

    A batch is that of `pack_branches` (what a group's samples begin with alike is there once) and, for its N samples
    in order, `groups` (N,) int64, the number of the group within the batch, and `ranks` (N,) int64. The number of
    rows and their length vary. Samples longer than `row_length` lose tokens after
    the first (of the prompt, as long as there are any), so that the end of the response stays; see `report`.

    Where the last batch has fewer groups than ranks, a rank may have none: its batch then has one empty row and N=0.
    """

    def __init__(
        self,
        groups: Sequence[Group],
        *,
        batch_groups: int,
        row_length: int,
        seed: int,
        pad: int,
        epochs: int | None = None,
        shuffle: bool = True,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        if not groups:
            raise DataError("there are no groups to train on; check the data")
        self.row_length = row_length
        self.batch_groups = batch_groups
        self.pad = pad
        self.groups, self.report = _truncate_groups(groups, row_length)
        super().__init__(
            num_items=len(groups),
            batch_items=batch_groups,
            seed=seed,
            epochs=epochs,
            drop_last=drop_last,
            shuffle=shuffle,
            rank=rank,
            world_size=world_size,
            unit="groups",
        )

    def batch_at(self, epoch: int, step: int) -> Batch:
        """This rank's part of the batch."""
        groups = [self.groups[item] for item in self._items_at(epoch, step).tolist()]
        return pack_groups(groups, self.row_length, pad=self.pad)


def pack_groups(groups: Sequence[Group], row_length: int, *, pad: int) -> Batch:
    """Pack whole groups: the batch of `pack_branches`, with `groups` (N,) and `ranks` (N,).

    No groups give one empty row.
    """
    if groups:
        batch = pack_branches([group.samples for group in groups], row_length, pad=pad)
    else:
        empty = lay_out([], [[]], row_length, pad=pad)
        batch = {name: empty[name] for name in ("tokens", "documents", "ends")}
    numbers = [number for number, group in enumerate(groups) for _ in group.samples]
    batch["groups"] = torch.tensor(numbers, dtype=torch.int64)
    batch["ranks"] = torch.tensor([rank for group in groups for rank in group.ranks], dtype=torch.int64)
    return batch


def _truncate_groups(groups: Sequence[Group], row_length: int) -> tuple[list[Group], PackReport]:
    """Cut long samples at the front. None is dropped, since a group is a whole: their loss masks are not looked at."""
    cut_groups: list[Group] = []
    samples = truncated = cut = 0
    for group in groups:
        longest = max(map(len, group.samples))
        samples += len(group.samples)
        if longest > row_length:
            truncated += sum(len(sample) > row_length for sample in group.samples)
            cut += sum(max(len(sample) - row_length, 0) for sample in group.samples)
            group = Group(tuple(shorten(sample, row_length, keep="end") for sample in group.samples), group.ranks)
        cut_groups.append(group)
    return cut_groups, PackReport(samples, truncated, 0, cut, row_length)
