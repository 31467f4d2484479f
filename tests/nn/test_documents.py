"""Documents that continue others, against each one written out by itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from chatloom import adapters
from chatloom.adapters import AdapterConfig
from chatloom.data.pack import Sample, pack_branches
from chatloom.models import RewardModel, build
from chatloom.nn.documents import continuing, positions, visible
from chatloom.testing.models import tiny_config

FAMILIES = ["gpt2", "gpt_neo", "bloom", "llama", "mistral", "gemma2", "gemma3_text", "qwen3_moe"]


def test_a_row_by_hand() -> None:
    # A prompt of 2, two answers of 2 and 1, another document of 2, padding.
    own = torch.tensor([[1, 1, 2, 2, 3, 4, 4, 0]])
    parent = torch.tensor([[0, 0, 1, 1, 1, 0, 0, 0]])
    documents = continuing(own, parent)
    assert positions(documents).tolist() == [[0, 1, 2, 3, 2, 0, 1, 0]]
    seen = [row.nonzero().flatten().tolist() for row in visible(documents)[0]]
    assert seen == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 4], [5], [5, 6], [7]]


def test_numbers_that_continue_nothing_are_the_same_in_both_dtypes() -> None:
    documents = torch.tensor([[0, 0, 1, 1, 2, 2], [1, 1, 1, 2, 0, 0]])
    assert torch.equal(visible(documents), visible(documents.int()))
    assert torch.equal(positions(documents), positions(documents.int()))


@pytest.mark.parametrize("adapter", [None, "prefix"])
@pytest.mark.parametrize("name", FAMILIES)
def test_scores_and_gradients_are_those_of_each_answer_alone(name: str, adapter: str | None) -> None:
    torch.manual_seed(0)
    trunk = build(tiny_config(name))
    for parameter in trunk.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.2)
    adapters.attach(trunk, AdapterConfig(adapter=adapter, **({"adapter_tokens": 3} if adapter else {})))
    model = RewardModel(trunk)
    rng = np.random.default_rng(0)
    families = []
    for answers, prompt in ((3, 9), (1, 4), (4, 1)):
        beginning = rng.integers(1, 300, prompt)
        families.append(
            [Sample(np.concatenate([beginning, [k + 1], rng.integers(1, 300, 3 + k)])) for k in range(answers)]
        )
    batch = pack_branches(families, 40, pad=0)
    shared = model.raw_scores(batch["tokens"], documents=batch["documents"], ends=batch["ends"])
    alone = []
    for sample in (sample for family in families for sample in family):
        tokens = torch.from_numpy(sample.tokens)[None]
        alone.append(model.raw_scores(tokens, ends=torch.tensor([[0, len(sample) - 1]])))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    weights = torch.randn(len(shared), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(shared, torch.cat(alone), rtol=1e-4, atol=1e-5)
    for found, expected in zip(
        torch.autograd.grad((shared * weights).sum(), trained, allow_unused=True),
        torch.autograd.grad((torch.cat(alone) * weights).sum(), trained, allow_unused=True),
    ):
        if expected is not None:
            torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.lists(st.integers(1, 2), min_size=1, max_size=12), min_size=1, max_size=5), min_size=1, max_size=6
    )
)
def test_every_sample_can_be_read_back(lists: list[list[list[int]]]) -> None:
    families = [[Sample(np.array(tokens)) for tokens in family] for family in lists]
    batch = pack_branches(families, 16, pad=9)
    seen, places = visible(batch["documents"]), positions(batch["documents"])
    tokens = [tokens for family in lists for tokens in family]
    assert batch["tokens"].shape[1] <= 16
    for (row, end), expected in zip(batch["ends"].tolist(), tokens, strict=True):
        columns = seen[row, end]
        assert batch["tokens"][row, columns].tolist() == expected
        assert places[row, columns].tolist() == list(range(len(expected)))


def test_a_beginning_is_there_once() -> None:
    prompt = np.arange(1, 21)
    batch = pack_branches([[Sample(np.append(prompt, [30 + k, 40])) for k in range(4)]], 64, pad=0)
    assert int((batch["documents"] != 0).sum()) == 20 + 4 * 2
    assert batch["tokens"].shape == (1, 64)
    parted = pack_branches([[Sample(np.append(prompt, [30 + k, 40])) for k in range(4)]], 24, pad=0)
    assert int((parted["documents"] != 0).sum()) == 2 * (20 + 2 * 2)
