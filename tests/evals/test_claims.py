"""What was promised, against what was found."""

from dataclasses import replace

import pytest
from synthetic import results

from chatloom.evals import claims
from chatloom.evals.intervals import Estimate
from chatloom.evals.results import Results, StageResult


def with_stage(found: Results, name: str, **changes: object) -> Results:
    stages = tuple(replace(stage, **changes) if stage.name == name else stage for stage in found.stages)  # type: ignore[arg-type]
    return replace(found, stages=stages)


def exactly(value: float) -> Estimate:
    return Estimate(value, value, value, 400)


def unmet(found: Results) -> list[str]:
    return [claim.target for claim in claims.claims(found) if not claim.met]


def test_good_results_meet_all_seven() -> None:
    assert len(claims.claims(results())) == 7
    assert unmet(results()) == []


@pytest.mark.parametrize(
    ("stage", "changes", "words"),
    [
        ("sft", {"follows": exactly(0.849)}, "SFT follows at least 85 %"),
        ("base", {"follows": exactly(0.46)}, "at most half"),
        ("ppo_ptx", {"win_rate": exactly(0.64)}, "65 %"),
        ("ppo_ptx", {"kl_nats": exactly(15.1)}, "within 15 nats"),
        ("best_of_4", {"gold": exactly(2.9)}, "not below best-of-4"),
        ("ppo_ptx", {"bits_per_byte_rise": exactly(0.05)}, "undoes at least 80 %"),
    ],
)
def test_each_promise_can_be_broken(stage: str, changes: dict[str, Estimate], words: str) -> None:
    (broken,) = unmet(with_stage(results(), stage, **changes))
    assert words in broken


def test_the_share_of_the_tax_that_is_undone() -> None:
    found = with_stage(results(), "ppo", bits_per_byte_rise=exactly(0.2))
    found = with_stage(found, "ppo_ptx", bits_per_byte_rise=exactly(0.03))
    assert claims.tax_undone(found) == pytest.approx(0.85)
    # Without a rise there is nothing to undo, and the promise of a tax is broken.
    without = with_stage(found, "ppo", bits_per_byte_rise=exactly(-0.01))
    assert claims.tax_undone(without) is None
    assert unmet(without) == ["PPO without ptx pays an alignment tax: held-out bits per byte rise"]


def test_the_difference_serves_where_no_paired_rise_was_measured() -> None:
    found = with_stage(results(), "ppo", bits_per_byte_rise=None, bits_per_byte=exactly(1.328))
    found = with_stage(found, "ppo_ptx", bits_per_byte_rise=None, bits_per_byte=exactly(1.148))
    assert claims.tax_undone(found) == pytest.approx(0.9)


def test_what_was_not_measured_is_not_claimed() -> None:
    assert claims.claims(Results("empty", ())) == ()
    assert claims.claims(Results("one", (StageResult("sft", "SFT", bits_per_byte=exactly(1.0)),))) == ()
