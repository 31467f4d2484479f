"""Intervals by numbers that can be checked by hand or in a table."""

import math

import pytest

from chatloom.evals import intervals


def test_wilson_of_five_in_ten_is_the_textbook_interval() -> None:
    found = intervals.wilson(5, 10)
    assert (found.value, found.count) == (0.5, 10)
    assert (found.low, found.high) == pytest.approx((0.2366, 0.7634), abs=1e-4)


def test_wilson_does_not_collapse_when_all_are_right() -> None:
    found = intervals.wilson(10, 10)
    # At the edge the interval has a closed form: n / (n + z^2) to 1.
    assert (found.value, found.high) == (1.0, 1.0)
    assert found.low == pytest.approx(10 / (10 + intervals.Z_95**2))
    assert intervals.wilson(0, 10).high == pytest.approx(1 - found.low)


def test_mean_of_one_two_three() -> None:
    found = intervals.mean([1.0, 2.0, 3.0])
    half = intervals.Z_95 * 1.0 / math.sqrt(3)  # the standard deviation is 1
    assert (found.value, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half))


def test_repeating_every_answer_in_its_cluster_adds_no_certainty() -> None:
    values, groups = [1.0, 0.0, 1.0, 1.0], list("abcd")
    once = intervals.mean(values, groups=groups)
    thrice = intervals.mean(values * 3, groups=groups * 3)
    assert (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    shares = intervals.proportion(values * 3, groups=groups * 3)
    assert (shares.low, shares.high) == pytest.approx((intervals.wilson(3, 4).low, intervals.wilson(3, 4).high))
    assert shares.count == 12


def test_answers_that_differ_within_their_clusters_count_in_full() -> None:
    values, groups = [1.0, 0.0] * 4, [0, 0, 1, 1, 2, 2, 3, 3]
    assert intervals.effective_size(values, groups=groups) == 8.0
    assert intervals.effective_size([1.0] * 8, groups=groups) == 4.0  # all alike: nothing shows they are independent


def test_ratio_divides_sums_and_is_deterministic() -> None:
    found = intervals.ratio([1.0, 4.0], [1.0, 2.0], seed=3)
    assert found.value == pytest.approx(5 / 3)
    assert found == intervals.ratio([1.0, 4.0], [1.0, 2.0], seed=3)
    # A resample holds 0, 1 or 2 copies of the second: 2/2, 5/3 or 8/4.
    assert (found.low, found.high) == (1.0, 2.0)


def test_the_bootstrap_has_about_the_width_of_the_normal_interval() -> None:
    values = [float(number % 7) for number in range(400)]
    found, normal = intervals.ratio(values, [1.0] * 400), intervals.mean(values)
    assert found.high - found.low == pytest.approx(normal.high - normal.low, rel=0.08)


@pytest.mark.parametrize("bad", [[], [[0.5]], [1.5]])
def test_what_is_no_list_of_shares_is_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match=r"need|needs"):
        intervals.proportion(bad)


def test_other_refusals() -> None:
    with pytest.raises(ValueError, match="2 values but 1 group labels"):
        intervals.mean([1.0, 2.0], groups=["a"])
    with pytest.raises(ValueError, match="above zero"):
        intervals.ratio([1.0], [0.0])
    with pytest.raises(ValueError, match="finite"):
        intervals.mean([float("nan")])
    with pytest.raises(ValueError, match="0 <= successes <= count"):
        intervals.wilson(11, 10)
