import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom.data.pack import IGNORED, Sample, best_fit, lay_out, pack, pieces, shorten, split_rows, truncate

PAD = 999


def sample(tokens, mask=None, **fields):
    return Sample(
        np.asarray(tokens),
        None if mask is None else np.asarray(mask),
        {name: np.asarray(values) for name, values in fields.items()},
    )


def best_fit_by_search(lengths, capacity):
    """The slow obvious oracle: look at every bin."""
    bins, rooms = [], []
    for item in sorted(range(len(lengths)), key=lambda item: -lengths[item]):
        fitting = [index for index, room in enumerate(rooms) if room >= lengths[item]]
        if fitting:
            index = min(fitting, key=lambda index: rooms[index])
        else:
            index = len(bins)
            bins.append([])
            rooms.append(capacity)
        bins[index].append(item)
        rooms[index] -= lengths[item]
    return bins, rooms


def test_rounded_rows_are_at_most_an_eighth_more():
    for count in range(1, 200):
        rows = len(pack([sample([1, 2])] * count, 2, pad=PAD, round_rows=True)["tokens"])
        assert count <= rows <= count * 9 / 8
    assert [len(pack([sample([1, 2])] * n, 2, pad=PAD, round_rows=True)["tokens"]) for n in (15, 17, 33)] == [
        15,
        18,
        36,
    ]


# --- best fit -------------------------------------------------------------------------------------------------


def test_best_fit_by_hand():
    # 6 opens a bin (room 4); 5 opens one (room 5); 5 fills it; 4 fills the first; 3 opens a third.
    assert best_fit([3, 5, 4, 6, 5], 10) == [[3, 2], [1, 4], [0]]
    assert best_fit([], 10) == []


@given(st.lists(st.integers(1, 50), max_size=80), st.integers(50, 120))
def test_best_fit_packs_as_the_oracle_does(lengths, capacity):
    bins = best_fit(lengths, capacity)
    assert sorted(item for members in bins for item in members) == list(range(len(lengths)))
    assert all(sum(lengths[item] for item in members) <= capacity for members in bins)
    expected, rooms = best_fit_by_search(lengths, capacity)
    left = sorted(capacity - sum(lengths[item] for item in members) for members in bins)
    assert len(bins) == len(expected)
    assert left == sorted(rooms)


@pytest.mark.parametrize("lengths", [[3, 11], [3, 0]])
def test_best_fit_refuses_what_cannot_fit(lengths):
    with pytest.raises(ValueError, match="between 1 and 10"):
        best_fit(lengths, 10)


# --- pack -----------------------------------------------------------------------------------------------------


def test_pack_by_hand():
    samples = [
        sample([11, 12], old_logprobs=np.array([0.5, 0.25], np.float64), kept=[True, False]),
        sample([21, 22, 23], [0, 0, 1], old_logprobs=[1.0, 2.0, 3.0], kept=[False, True, True]),
        sample([31, 32], old_logprobs=[7.0, 8.0], kept=[True, True]),
    ]
    batch = pack(samples, 6, pad=PAD)
    # Longest first: sample 1, then 0 into the room of 3; sample 2 opens a row.
    assert batch["tokens"].tolist() == [[21, 22, 23, 11, 12, PAD], [31, 32, PAD, PAD, PAD, PAD]]
    assert batch["documents"].tolist() == [[1, 1, 1, 2, 2, 0], [1, 1, 0, 0, 0, 0]]
    ignored = IGNORED
    assert batch["targets"].tolist() == [
        [ignored, 23, ignored, 12, ignored, ignored],
        [32, ignored, ignored, ignored, ignored, ignored],
    ]
    assert batch["old_logprobs"].tolist() == [[1.0, 2.0, 3.0, 0.5, 0.25, 0.0], [7.0, 8.0, 0.0, 0.0, 0.0, 0.0]]
    assert batch["kept"].tolist() == [[False, True, True, True, False, False], [True, True, False, False, False, False]]
    assert batch["ends"].tolist() == [[0, 4], [0, 2], [1, 1]]
    assert batch["spans"].tolist() == [[0, 3, 2], [0, 0, 3], [1, 0, 2]]
    assert batch["order"].tolist() == [1, 0, 2]
    dtypes = {name: tensor.dtype for name, tensor in batch.items()}
    assert dtypes["tokens"] == dtypes["targets"] == dtypes["ends"] == torch.int64
    assert (dtypes["documents"], dtypes["old_logprobs"], dtypes["kept"]) == (torch.int32, torch.float32, torch.bool)


random_samples = st.lists(
    st.tuples(st.integers(1, 20), st.integers(0, 2**20 - 1), st.booleans()), min_size=1, max_size=40
)


@settings(deadline=None)
@given(random_samples, st.integers(20, 50))
def test_pack_loses_nothing_and_crosses_nothing(shapes, row_length):
    # Every token is unlike every other, so each can be followed to its place.
    first = 1
    samples = []
    for length, bits, masked in shapes:
        mask = np.array([bits >> position & 1 for position in range(length)]) if masked else None
        tokens = np.arange(first, first + length)
        samples.append(Sample(tokens, mask, {"copy": tokens.astype(np.float32)}))
        first += length
    batch = pack(samples, row_length, pad=0)
    tokens, documents, targets = batch["tokens"], batch["documents"], batch["targets"]
    assert sorted(tokens[tokens > 0].tolist()) == list(range(1, first))  # none lost, none twice
    assert ((tokens > 0) == (documents > 0)).all()
    assert torch.equal(batch["copy"], tokens.float())
    expected = torch.full_like(targets, IGNORED)
    for index, each in enumerate(samples):
        row, start, length = batch["spans"][index].tolist()
        assert tokens[row, start : start + length].tolist() == each.tokens.tolist()
        assert len(set(documents[row, start : start + length].tolist())) == 1
        assert batch["ends"][index].tolist() == [row, start + length - 1]
        for position in range(1, length):
            if each.loss_mask is None or each.loss_mask[position]:
                expected[row, start + position - 1] = each.tokens[position]
    assert torch.equal(targets, expected)
    for row in documents.tolist():  # 1, 2, 3, ... then padding
        numbers = [number for number in row if number]
        assert row == numbers + [0] * (len(row) - len(numbers))
        assert sorted(set(numbers)) == list(range(1, len(set(numbers)) + 1))
        assert numbers == sorted(numbers)
    reading_order = [tokens[row, column].item() for row, column in zip(*torch.where(documents > 0))]
    assert reading_order == [token for index in batch["order"].tolist() for token in samples[index].tokens.tolist()]


def test_scores_are_gathered_in_the_order_given():
    samples = [sample(range(10 * number, 10 * number + length)) for number, length in enumerate([3, 8, 5, 2, 7])]
    batch = pack(samples, 10, pad=PAD)
    rows, columns = batch["ends"].T
    assert batch["tokens"][rows, columns].tolist() == [each.tokens[-1] for each in samples]


def test_lay_out_takes_rows_as_given_and_leaves_rows_empty():
    samples = [sample([1, 2]), sample([3])]
    batch = lay_out(samples, [[1, 0], []], 4, pad=PAD)
    assert batch["tokens"].tolist() == [[3, 1, 2, PAD], [PAD] * 4]
    assert batch["documents"].tolist() == [[1, 2, 2, 0], [0] * 4]
    assert batch["targets"].tolist() == [[IGNORED, 2, IGNORED, IGNORED], [IGNORED] * 4]


def test_tokens_of_a_store_may_be_narrow():
    batch = pack([Sample(np.array([65_535, 1], np.uint16))], 2, pad=0)
    assert batch["tokens"].tolist() == [[65_535, 1]]
    assert batch["targets"].tolist() == [[1, IGNORED]]


def test_bad_samples():
    with pytest.raises(ValueError, match="not empty"):
        sample([])
    with pytest.raises(ValueError, match=r"`advantages` has shape \(2,\) and tokens \(3,\)"):
        sample([1, 2, 3], advantages=[0.0, 1.0])
    with pytest.raises(ValueError, match="`loss_mask` has shape"):
        sample([1, 2, 3], [1, 1])
    with pytest.raises(ValueError, match="all samples of a batch need the same"):
        pack([sample([1], a=[1.0]), sample([1])], 4, pad=0)
    with pytest.raises(ValueError, match="no samples"):
        pack([], 4, pad=0)
    with pytest.raises(ValueError, match="cut the long samples with `truncate`"):
        pack([sample(range(5))], 4, pad=0)
    with pytest.raises(ValueError, match="row_length is 1"):
        pack([sample([1])], 1, pad=0)


# --- truncate -------------------------------------------------------------------------------------------------


def test_truncate_cuts_the_tail_and_drops_what_trains_nothing():
    samples = [
        sample([1, 2, 3], [0, 1, 1]),
        sample([1, 2, 3, 4, 5, 6], [0, 1, 1, 1, 0, 1], copy=[1, 2, 3, 4, 5, 6]),
        sample([1, 2, 3, 4, 5], [0, 0, 0, 0, 1]),  # its only trained token is cut
        sample([1, 2], [1, 0]),  # a first token is never a target
        sample([7]),
    ]
    kept, report = truncate(samples, 4)
    assert [each.tokens.tolist() for each in kept] == [[1, 2, 3], [1, 2, 3, 4]]
    assert kept[1].loss_mask.tolist() == [0, 1, 1, 1]
    assert kept[1].fields["copy"].tolist() == [1, 2, 3, 4]
    assert (report.samples, report.truncated, report.dropped, report.tokens_cut) == (5, 2, 3, 3)
    assert report.notes() == [
        "2 of 5 samples were longer than 4 tokens and were cut",
        "3 of 5 samples were left out: no trained token within 4 tokens",
    ]
    assert truncate(samples[:1], 4)[1].notes() == []


def test_shorten_at_the_end_keeps_begin_of_text_and_the_answer():
    long = sample([0, 1, 2, 3, 4, 5], [0, 0, 0, 1, 1, 1])
    assert shorten(long, 4, keep="end").tokens.tolist() == [0, 3, 4, 5]
    assert shorten(long, 4, keep="end").loss_mask.tolist() == [0, 1, 1, 1]
    assert shorten(long, 6, keep="end") is long
    assert truncate([long], 4, keep="end")[0][0].tokens.tolist() == [0, 3, 4, 5]


# --- microbatches ---------------------------------------------------------------------------------------------


def test_split_rows_keeps_rows_and_leaves_out_places():
    batch = pack([sample(range(number + 1), old=[1.0] * (number + 1)) for number in range(9)], 10, pad=0)
    rows = len(batch["tokens"])
    parts = split_rows(batch, 2)
    assert [len(part["tokens"]) for part in parts] == [2] * (rows // 2) + [1] * (rows % 2)
    for name in ("tokens", "documents", "targets", "old"):
        assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])
    assert all(part.keys() == {"tokens", "documents", "targets", "old"} for part in parts)
    with pytest.raises(ValueError, match="at least 1"):
        split_rows(batch, 0)


# --- pieces ---------------------------------------------------------------------------------------------------


def test_pieces_by_hand():
    assert [piece.tokens.tolist() for piece in pieces([1, 2, 3, 4, 5, 6], 3)] == [[1, 2, 3], [3, 4, 5], [5, 6]]
    assert [piece.tokens.tolist() for piece in pieces([1, 2, 3], 3)] == [[1, 2, 3]]
    assert pieces([1], 3) == []
    with pytest.raises(ValueError, match="row_length is 1"):
        pieces([1, 2], 1)


@given(st.integers(1, 60), st.integers(2, 12))
def test_every_token_but_the_first_is_a_target_once(length, row_length):
    cut = pieces(list(range(length)), row_length)
    assert [token for piece in cut for token in piece.tokens[1:].tolist()] == list(range(1, length))
    assert all(2 <= len(piece) <= row_length for piece in cut)
