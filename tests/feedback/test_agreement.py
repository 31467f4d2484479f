"""Krippendorff's alpha against the worked examples of its author, and by hand."""

import pytest

from chatloom.feedback.agreement import Agreement, agreement, both_ways


def test_the_authors_two_raters() -> None:
    """Krippendorff 2011, section B: nominal data, two observers, no missing data: alpha = 0.692."""
    found = agreement(list(zip("aabbdcccedda", "babbbccceddd")))
    assert (found.num_units, found.share) == (12, 9 / 12)
    assert found.alpha == pytest.approx(0.692, abs=5e-4)


def test_the_authors_four_raters_with_gaps() -> None:
    """The same, section C: nominal data, any number of observers, missing data: alpha = 0.743."""
    observers = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    found = agreement([value for value in column if value is not None] for column in zip(*observers))
    assert found.num_units == 11  # the last was judged once
    assert found.alpha == pytest.approx(0.743, abs=5e-4)


def test_by_hand() -> None:
    # Of the six values four are +1 and two -1: expected (36 - 16 - 4) / 5 = 3.2; two units of two disagree: 4.
    assert agreement([(1, 1), (1, -1), (-1, 1), (1,)]) == Agreement(3, 1 / 3, pytest.approx(1 - 4 / 3.2))


def test_nothing_judged_twice_and_one_value_only() -> None:
    assert agreement([(1,), (-1,)]) == agreement([]) == Agreement(0, None, None)
    assert agreement([(1, 1), (1, 1)]) == Agreement(2, 1.0, None)


def test_which_answer_is_the_first_says_nothing() -> None:
    units = [[1, 1], [1, 0], [-1, -1, 1], [1, 1]]
    turned = [[-value for value in unit] if index % 2 else unit for index, unit in enumerate(units)]
    assert agreement(both_ways(units)) == agreement(both_ways(turned))
    assert agreement(units) != agreement(turned)
