from itertools import pairwise

import numpy as np
import pytest
import torch

from chatloom.data.loader import Group, GroupLoader, Loader
from chatloom.data.pack import IGNORED, Sample
from chatloom.data.sources import DataError
from chatloom.data.store import write_store

PAD = 0


def make_samples(count=57, longest=30):
    """Samples whose tokens occur nowhere else, so each can be followed."""
    lengths = np.random.default_rng(0).integers(2, longest + 1, count)
    ends = np.cumsum(lengths) + 1
    return [
        Sample(np.arange(end - length, end), None, {"copy": np.arange(end - length, end, dtype=np.float32)})
        for end, length in zip(ends, lengths)
    ]


def make_loader(samples=None, **options):
    defaults = {"batch_rows": 4, "row_length": 32, "seed": 3, "pad": PAD, "epochs": 2}
    return Loader(make_samples() if samples is None else samples, **{**defaults, **options})


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def tokens_in(batches):
    return sorted(token for batch in batches for token in batch["tokens"][batch["documents"] > 0].tolist())


# --- epochs and batches ---------------------------------------------------------------------------------------


def test_every_epoch_has_every_token_once_in_batches_of_one_shape():
    samples = make_samples()
    loader = make_loader(samples)
    batches = list(loader)
    assert len(batches) == len(loader) == loader.total_steps == 2 * loader.steps_per_epoch
    assert {tuple(batch["tokens"].shape) for batch in batches} == {(4, 32)}
    everything = sorted(token for sample in samples for token in sample.tokens.tolist())
    for epoch in (0, 1):
        part = batches[epoch * loader.steps_per_epoch : (epoch + 1) * loader.steps_per_epoch]
        assert tokens_in(part) == everything
    assert not all(same(a, b) for a, b in zip(batches, batches[loader.steps_per_epoch :]))  # shuffled anew
    for batch in batches:
        assert torch.equal(batch["copy"], batch["tokens"].float())
        assert batch.keys() == {"tokens", "documents", "targets", "copy"}
    assert loader.utilisation > 0.9


def test_the_short_last_batch_is_filled_with_empty_rows_or_dropped():
    filled, dropped = make_loader(), make_loader(drop_last=True)
    assert filled.num_rows % 4
    assert filled.steps_per_epoch == dropped.steps_per_epoch + 1
    last = filled.batch_at(0, filled.steps_per_epoch - 1)
    empty = last["documents"].sum(1) == 0
    assert empty.sum() == 4 - filled.num_rows % 4
    assert (last["targets"][empty] == IGNORED).all()
    for step in range(dropped.steps_per_epoch):
        assert same(dropped.batch_at(0, step), filled.batch_at(0, step))


def test_batches_depend_on_the_seed_alone():
    assert all(same(a, b) for a, b in zip(make_loader(), make_loader(), strict=True))
    assert not same(make_loader().next_batch(), make_loader(seed=4).next_batch())
    assert all(same(a, b) for a, b in zip(make_loader(shuffle=False), make_loader(shuffle=False, seed=4), strict=True))


@pytest.mark.parametrize("stop", [0, 1, 7, 13])
def test_resume_is_exact(stop):
    whole = list(make_loader())
    loader = make_loader()
    for _ in range(stop):
        loader.next_batch()
    state = loader.state_dict()
    assert state == {"epoch": stop // loader.steps_per_epoch, "step": stop % loader.steps_per_epoch}
    resumed = make_loader()
    resumed.load_state_dict(state)
    assert all(same(a, b) for a, b in zip(resumed, whole[stop:], strict=True))
    assert resumed.finished


def test_the_end():
    loader = make_loader(epochs=1)
    for _ in loader:
        pass
    assert loader.finished
    with pytest.raises(ValueError, match="all 1 epochs"):
        loader.next_batch()
    endless = make_loader(epochs=None)
    assert endless
    assert endless.total_steps is None
    with pytest.raises(TypeError, match="steps_per_epoch"):
        len(endless)
    for _ in range(3 * endless.steps_per_epoch):
        endless.next_batch()
    assert endless.state_dict() == {"epoch": 3, "step": 0}


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_batch_is_the_same_whatever_the_number_of_ranks(world_size, drop_last):
    alone = make_loader(drop_last=drop_last)
    ranks = [make_loader(rank=rank, world_size=world_size, drop_last=drop_last) for rank in range(world_size)]
    for batch, *parts in zip(alone, *ranks, strict=True):
        for name in batch:
            assert torch.equal(torch.cat([part[name] for part in parts]), batch[name])


def test_long_samples_are_counted():
    samples = [*make_samples(), Sample(np.arange(9_000, 9_100))]
    samples[-1].fields["copy"] = np.zeros(100, np.float32)
    loader = make_loader(samples)
    assert loader.report.truncated == 1
    assert loader.report.tokens_cut == 68


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_rows": 3, "world_size": 2}, "batch_rows is 3 on 2 ranks"),
        ({"batch_rows": 0}, "batch_rows is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2 of 2"),
        ({"epochs": 0}, "epochs is 0"),
        ({"batch_rows": 1000, "drop_last": True}, "fewer than one batch of 1,000"),
        ({"samples": []}, "nothing is left to train on"),
        ({"samples": [Sample(np.arange(5), np.zeros(5))]}, "none of 1 sequences has a trained token"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(**options)


def test_a_state_of_other_data_is_refused():
    loader = make_loader()
    with pytest.raises(ValueError, match="step 99 of epoch 0, but an epoch has"):
        loader.load_state_dict({"epoch": 0, "step": 99})


# --- token stores ---------------------------------------------------------------------------------------------


def make_store(folder, lengths):
    """Documents that begin with token 1; every other token is one more than the token before it in the corpus."""
    ends = np.cumsum(lengths)
    documents = [[1, *range(end - length + 3, end + 2)] for end, length in zip(ends.tolist(), lengths)]
    return documents, write_store(folder, documents, tokenizer_digest="d", vocab_size=65_536)


def test_every_token_of_a_store_is_a_target_once(tmp_path):
    lengths = [*np.random.default_rng(1).integers(1, 200, 60).tolist(), 16, 17, 31, 32, 1, 2]
    documents, store = make_store(tmp_path / "store", lengths)
    loader = make_loader(store, row_length=16, batch_rows=6, epochs=1)
    batches = list(loader)
    targets = sorted(token for batch in batches for token in batch["targets"][batch["targets"] >= 0].tolist())
    assert targets == sorted(token for document in documents for token in document[1:])
    after = {first: second for document in documents for first, second in pairwise(document[1:])}
    for batch in batches:
        assert batch["tokens"].shape == (6, 16)
        counted = batch["targets"] >= 0
        for token, target in zip(batch["tokens"][counted].tolist(), batch["targets"][counted].tolist()):
            assert token == 1 or after[token] == target
    assert loader.utilisation > 0.8


def test_a_piece_begins_with_the_document_or_goes_on(tmp_path):
    _, store = make_store(tmp_path / "store", [10])
    loader = make_loader(store, row_length=4, batch_rows=3, epochs=1, shuffle=False)
    (batch,) = list(loader)
    assert batch["tokens"].tolist() == [[1, 3, 4, 5], [5, 6, 7, 8], [8, 9, 10, 11]]
    assert batch["targets"].tolist() == [[3, 4, 5, IGNORED], [6, 7, 8, IGNORED], [9, 10, 11, IGNORED]]


def test_packing_goes_buffer_by_buffer(tmp_path, monkeypatch):
    monkeypatch.setattr("chatloom.data.loader.BUFFER", 7)
    samples = make_samples()
    assert tokens_in(make_loader(samples, epochs=1)) == sorted(t for sample in samples for t in sample.tokens.tolist())


def test_a_store_of_lone_tokens_is_an_error(tmp_path):
    _, store = make_store(tmp_path / "store", [1, 1])
    with pytest.raises(DataError, match="nothing is left to train on"):
        make_loader(store)


# --- groups ---------------------------------------------------------------------------------------------------


def make_groups(count=11):
    rng = np.random.default_rng(2)
    groups = []
    for number in range(count):
        responses = int(rng.integers(2, 6))
        samples = tuple(
            Sample(np.arange(length) + 1 + 1_000 * number + 100 * k)
            for k, length in enumerate(rng.integers(3, 20, responses))
        )
        groups.append(Group(samples, tuple(rng.permutation(responses).tolist())))
    return groups


def make_group_loader(groups=None, **options):
    defaults = {"batch_groups": 4, "row_length": 32, "seed": 3, "pad": PAD, "epochs": 2}
    return GroupLoader(make_groups() if groups is None else groups, **{**defaults, **options})


def whole_groups(batch):
    """(number of the group in the data, ((number of the response, rank), ...)) for each group of the batch."""
    found = {}
    for (row, column), group, rank in zip(batch["ends"].tolist(), batch["groups"].tolist(), batch["ranks"].tolist()):
        token = int(batch["tokens"][row, column]) - 1
        found.setdefault(group, []).append((token // 1_000, token % 1_000 // 100, rank))
    return [found[group] for group in sorted(found)]


def test_groups_stay_whole_with_their_ranks():
    groups = make_groups()
    expected = [[(n, k, rank) for k, rank in enumerate(group.ranks)] for n, group in enumerate(groups)]
    loader = make_group_loader(groups)
    batches = list(loader)
    assert len(batches) == len(loader) == 2 * 3
    for epoch in (batches[:3], batches[3:]):
        assert [len(whole_groups(batch)) for batch in epoch] == [4, 4, 3]
        assert sorted(group for batch in epoch for group in whole_groups(batch)) == expected


@pytest.mark.parametrize("world_size", [2, 4])
def test_groups_are_shared_out_over_ranks(world_size):
    ranks = [make_group_loader(rank=rank, world_size=world_size) for rank in range(world_size)]
    for batch, *parts in zip(make_group_loader(), *ranks, strict=True):
        assert [group for part in parts for group in whole_groups(part)] == whole_groups(batch)
        assert all(part["tokens"].shape[1] <= 32 for part in parts)


def test_a_rank_without_groups_has_an_empty_batch():
    loader = make_group_loader(make_groups(5), rank=3, world_size=4, epochs=1)
    last = loader.batch_at(0, 1)
    assert last["tokens"].shape == (1, 32)
    assert last["documents"].sum() == 0
    assert last["ends"].shape == (0, 2)
    assert last["ranks"].shape == last["groups"].shape == (0,)


def test_group_resume_is_exact():
    whole = list(make_group_loader())
    loader = make_group_loader()
    loader.load_state_dict({"epoch": 1, "step": 1})
    assert all(same(a, b) for a, b in zip(loader, whole[4:], strict=True))


def test_long_responses_keep_their_end():
    long = Sample(np.arange(1, 51))
    loader = make_group_loader([Group((long, Sample(np.arange(1, 4))), (1, 0))], epochs=1)
    batch = loader.next_batch()
    row, end = batch["ends"][0].tolist()
    assert batch["tokens"][row, end - 30 : end + 1].tolist() == list(range(20, 51))
    assert batch["tokens"][row, 0] == 1
    assert loader.report.notes() == ["1 of 2 samples were longer than 32 tokens and were cut"]


def test_bad_groups():
    with pytest.raises(ValueError, match="one rank for each sample"):
        Group((Sample(np.arange(3)),), (0, 1))
    with pytest.raises(DataError, match="no groups"):
        make_group_loader([])
    with pytest.raises(ValueError, match="batch_groups is 3 on 2 ranks"):
        make_group_loader(batch_groups=3, world_size=2)
