from typing import Any

import pytest

from chatloom.engine.request import MAX_SEED, SamplingParams, derive_seed, sample_seed


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 2.5, "whole number"),
        ("max_tokens", True, "whole number"),
        ("temperature", -0.1, "any positive number"),
        ("temperature", float("nan"), "any positive number"),
        ("temperature", float("inf"), "any positive number"),
        ("top_k", 0, "from 1 to"),
        ("top_k", 2**63, "from 1 to 2147483647"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("seed", -1, f"from 0 to {MAX_SEED}"),
        ("stop", ("",), "non-empty strings"),
        ("stop", "abc", "tuple of non-empty strings"),
        ("stop_tokens", 3, "tuple of token numbers"),
        ("stop_tokens", ("a",), "tuple of token numbers"),
        ("min_p", 1.5, "from 0 to 1"),
        ("repetition_penalty", 0.0, "positive number"),
        ("frequency_penalty", 2.5, "from -2 to 2"),
        ("presence_penalty", float("nan"), "from -2 to 2"),
        ("logit_bias", {3: 101.0}, "numbers from -100 to 100"),
        ("logit_bias", (4,), "numbers from -100 to 100"),
        ("top_logprobs", 21, "from 0 to 20"),
        ("n", 0, "from 1 to 128"),
        ("best_of", 129, "from 1 to 128"),
    ],
)
def test_refuses_and_names_the_allowed_range(name: str, value: Any, allowed: str) -> None:
    with pytest.raises(ValueError, match=allowed) as caught:
        SamplingParams(**{name: value})
    assert name in str(caught.value)
    assert repr(value) in str(caught.value)


def test_lists_become_tuples() -> None:
    params = SamplingParams(stop=["x"], stop_tokens=[1, 2])  # type: ignore[arg-type]
    assert (params.stop, params.stop_tokens) == (("x",), (1, 2))


def test_derived_seeds_differ_and_the_first_is_the_seed() -> None:
    seeds = {derive_seed(seed, index) for seed in range(20) for index in range(50)}
    assert len(seeds) == 1000
    assert derive_seed(7, 0) == 7
    assert all(0 <= seed <= MAX_SEED for seed in seeds)


def test_samples_are_counted_and_need_chance() -> None:
    assert SamplingParams(temperature=1.0, n=3).num_samples == 3
    assert SamplingParams(temperature=1.0, n=3, best_of=5).num_samples == 5
    with pytest.raises(ValueError, match="best_of is 2; it must be a whole number from 3 to 128"):
        SamplingParams(temperature=1.0, n=3, best_of=2)
    with pytest.raises(ValueError, match="3 samples at temperature 0 would all be the same"):
        SamplingParams(n=3)
    seeds = {sample_seed(seed, sample) for seed in range(20) for sample in range(50)}
    assert len(seeds) == 1000
    assert sample_seed(7, 0) == 7


def test_what_changes_logits() -> None:
    assert not SamplingParams(temperature=1.0, top_k=3, min_p=0.1, top_logprobs=2).changes_logits
    assert SamplingParams(logit_bias={4: 1.0}).logit_bias == ((4, 1.0),)
    for change in ({"logit_bias": {4: 1.0}}, {"repetition_penalty": 1.1}, {"presence_penalty": -1.0}):
        assert SamplingParams(**change).changes_logits  # type: ignore[arg-type]


def test_a_temperature_next_to_none_is_none() -> None:
    assert SamplingParams(temperature=1e-40).temperature == 0
    assert SamplingParams(temperature=1e-5).temperature == 1e-5
