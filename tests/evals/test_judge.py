"""Judging by examples of three or four scores."""

import math

import pytest

from chatloom.evals import judge


def test_a_tie_is_half_a_win() -> None:
    verdict = judge.compare([3.0, 2.0, 1.0, 5.0], [1.0, 2.0, 4.0, 0.0])
    assert (verdict.wins, verdict.ties, verdict.losses) == (2, 1, 1)
    assert verdict.win_rate.value == pytest.approx(2.5 / 4)


def test_a_policy_against_itself_scores_one_half() -> None:
    verdict = judge.compare([0.3, 0.1, 0.2], [0.3, 0.1, 0.2])
    assert verdict.win_rate.value == 0.5
    assert verdict.ties == 3


def test_who_is_a_and_who_is_b_mirrors_the_verdict() -> None:
    a, b = [3.0, 2.0, 1.0, 5.0, 4.0], [1.0, 2.0, 4.0, 0.0, 0.0]
    one, other = judge.compare(a, b).win_rate, judge.compare(b, a).win_rate
    assert (one.value, one.low, one.high) == pytest.approx((1 - other.value, 1 - other.high, 1 - other.low))


def test_the_margin_makes_ties() -> None:
    verdict = judge.compare([1.0, 1.0], [0.95, 0.5], margin=0.1)
    assert (verdict.wins, verdict.ties) == (1, 1)


def test_samples_of_one_prompt_are_one_cluster() -> None:
    a, b, prompts = [1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0], ["x", "x", "y", "y"]
    clustered, plain = judge.compare(a, b, groups=prompts).win_rate, judge.compare(a, b).win_rate
    assert clustered.value == plain.value == 0.5
    assert clustered.high - clustered.low > plain.high - plain.low


def test_ranking_agreement_counts_pairs_that_both_order() -> None:
    # Of three pairs the second labeler ties (a, b) and reverses (b, c): one agreement of two.
    found = judge.ranking_agreement([[0, 1, 2]], [[0, 0, -1]])
    assert (found.value, found.count) == (0.0, 2)
    assert judge.ranking_agreement([[0, 1, 2]], [[0, 2, 1]]).value == pytest.approx(2 / 3)
    with pytest.raises(ValueError, match="no pair is ordered"):
        judge.ranking_agreement([[0, 0]], [[0, 1]])


def test_pairwise_accuracy_stays_within_prompts_and_drops_gold_ties() -> None:
    scores, gold = [2.0, 1.0, 9.0, 8.0], [1.0, 0.0, 0.0, 0.0]
    # Across prompts 9 > 2 would be wrong, and the second prompt is a tie by gold: one pair is left, and it is right.
    found = judge.pairwise_accuracy(scores, gold, ["x", "x", "y", "y"])
    assert (found.value, found.count) == (1.0, 1)
    assert judge.pairwise_accuracy([1.0, 1.0], [1.0, 0.0], ["x", "x"]).value == 0.5


def test_calibration_of_two_pairs() -> None:
    # Margins log 3 and log 3 claim 75 % each; one is right and one is wrong, so the error is 25 points.
    third = math.log(3)
    found = judge.calibration([third, 0.0, third, 0.0], [1.0, 0.0, 0.0, 1.0], ["x", "x", "y", "y"])
    (only,) = found.bins
    assert (only.predicted, only.observed.value, only.observed.count) == pytest.approx((0.75, 0.5, 2))
    assert only.low <= 0.75 <= only.high
    assert (found.expected_error, found.num_pairs) == (pytest.approx(0.25), 2)


def test_a_reward_model_that_is_sure_and_right_is_calibrated() -> None:
    found = judge.calibration([900.0, 0.0], [1.0, 0.0], ["x", "x"])
    assert found.expected_error == pytest.approx(0.0, abs=1e-9)
    assert found.bins[0].high == 1.0


def test_refusals() -> None:
    with pytest.raises(ValueError, match="a has 1 scores and b has 2"):
        judge.compare([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="NaN"):
        judge.compare([float("nan")], [1.0])
    with pytest.raises(ValueError, match="must be equal"):
        judge.pairwise_accuracy([1.0], [1.0, 2.0], ["x"])
    with pytest.raises(ValueError, match="orders no pair"):
        judge.calibration([1.0, 2.0], [1.0, 1.0], ["x", "x"])
