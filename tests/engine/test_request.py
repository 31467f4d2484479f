from typing import Any

import pytest

from chatloom.engine.request import MAX_SEED, SamplingParams, derive_seed


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 2.5, "whole number"),
        ("max_tokens", True, "whole number"),
        ("temperature", -0.1, "any positive number"),
        ("temperature", float("nan"), "any positive number"),
        ("temperature", float("inf"), "any positive number"),
        ("top_k", 0, "at least 1"),
        ("top_p", 0.0, "above 0 and at most 1"),
        ("top_p", 1.1, "above 0 and at most 1"),
        ("seed", -1, f"from 0 to {MAX_SEED}"),
        ("stop", ("",), "non-empty strings"),
        ("stop", "abc", "tuple of non-empty strings"),
        ("stop_tokens", 3, "tuple of token numbers"),
        ("stop_tokens", ("a",), "tuple of token numbers"),
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
