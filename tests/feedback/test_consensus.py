"""From judgements to comparisons and labels: small cases that can be checked by hand."""

from collections import Counter

import pytest

from chatloom.chat.message import Message as Turn
from chatloom.feedback.consensus import Answer, Judged, agreed, answer_of, comparisons, labels, pair_values
from chatloom.feedback.records import Made, Message, Pair, Ranking, Rating

PROMPT = (Turn("user", "Why?"),)


def message(name: str, text: str | None = None, **more: object) -> Message:
    return Message(name, "c", "q", "assistant", name.upper() if text is None else text, 0.0, 0.0, **more)  # type: ignore[arg-type]


def ranking(rater: str, *groups: str, created: float = 0.0) -> Ranking:
    """ranking("ann", "a", "bc"): a is the best, b and c are level."""
    return Ranking(
        f"{rater}{created}", "c", rater, created, True, PROMPT, tuple(tuple(map(message, each)) for each in groups)
    )


def pair(rater: str, better: str, worse: str, *, tie: bool = False, created: float = 0.0) -> Pair:
    return Pair("p", "c", rater, created, True, PROMPT, message(better), message(worse), tie)


def rating(rater: str, name: str, value: int) -> Rating:
    return Rating("r", "c", rater, 0.0, True, PROMPT, message(name), value)


def ranks(judged: Judged) -> dict[str, float]:
    return {answer.text: rank for answer, rank in zip(judged.answers, judged.ranks)}


def together(*feedback: Pair | Ranking | Rating) -> tuple[list[dict[str, float]], dict[str, int]]:
    dropped: Counter[str] = Counter()
    return [ranks(each) for each in agreed(comparisons(feedback, dropped), dropped)], dict(dropped)


def test_a_majority_of_pairs_counts() -> None:
    assert together(pair("ann", "a", "b"), pair("bob", "b", "a"), pair("eve", "b", "a")) == ([{"A": 1, "B": 0}], {})
    assert together(pair("ann", "a", "b"), pair("bob", "b", "a", tie=True)) == ([{"A": 0, "B": 1}], {})


def test_where_raters_are_evenly_divided_nothing_follows() -> None:
    assert together(pair("ann", "a", "b"), pair("bob", "b", "a")) == ([], {"raters who are evenly divided": 1})
    assert together(pair("ann", "a", "b", tie=True)) == ([], {"ties": 1})


def test_rankings_become_one_by_the_mean_place() -> None:
    # Places: a 0+1+0, b 1+0+2, c 2+2+1 -> a, b, c.
    assert together(ranking("ann", "a", "b", "c"), ranking("bob", "b", "a", "c"), ranking("eve", "a", "c", "b")) == (
        [{"A": 0, "B": 1, "C": 2}],
        {},
    )
    # A tie is half a place to each: a 0 + 1.5, b 1 + 1.5, c 2 + 0.
    assert together(ranking("ann", "a", "b", "c"), ranking("bob", "c", "ab")) == ([{"A": 0, "B": 2, "C": 1}], {})


def test_other_answers_are_another_comparison() -> None:
    found, dropped = together(pair("ann", "a", "b"), pair("ann", "a", "c"), ranking("ann", "a", "b", "c"))
    assert (found, dropped) == ([{"A": 0, "B": 1}, {"A": 0, "C": 1}, {"A": 0, "B": 1, "C": 2}], {})


def test_a_thumb_up_beside_a_thumb_down_is_a_comparison_of_that_rater() -> None:
    assert together(rating("ann", "a", 1), rating("ann", "b", -1), rating("ann", "c", -1)) == (
        [{"A": 0, "B": 1, "C": 1}],
        {},
    )
    reason = "thumbs with none the other way beside them"
    assert together(rating("ann", "a", 1), rating("bob", "b", -1)) == ([], {reason: 2})


def test_the_same_answer_twice_keeps_its_best_place_and_an_empty_one_goes() -> None:
    twice = Ranking(
        "r", "c", "ann", 0.0, True, PROMPT, ((message("a"),), (message("b"),), (message("c", "A"), message("d", " ")))
    )
    assert together(twice) == ([{"A": 0, "B": 1}], {})
    alone = Pair("p", "c", "ann", 0.0, True, PROMPT, message("a"), message("b", "A"))
    assert together(alone) == ([], {"an empty answer, or the same one twice": 1})


def test_an_answer_that_was_cut_is_not_the_one_that_ended() -> None:
    assert answer_of(message("a")) == Answer("A")
    assert answer_of(message("a", status="stopped")) == Answer("A", ended=False)
    assert answer_of(message("a", made=Made("tiny", finish_reason="length"))) == Answer("A", ended=False)
    assert answer_of(message("a", made=Made("tiny", finish_reason="stop"))) == Answer("A")


def test_labels_are_a_majority() -> None:
    dropped: Counter[str] = Counter()
    given = [("ann", "a", 1), ("bob", "a", 1), ("eve", "a", -1), ("ann", "b", -1), ("ann", "c", 1), ("bob", "c", -1)]
    found = [(each.answer.text, each.good) for each in labels((rating(*each) for each in given), dropped)]
    assert found == [("A", True), ("B", False)]
    assert dropped == {"raters who are evenly divided": 1}


@pytest.mark.parametrize("turned", [False, True])
def test_what_raters_said_of_each_pair_the_newest_of_each(turned: bool) -> None:
    feedback = [
        pair("ann", "b", "a", created=1),
        ranking("ann", "a", "bc", created=2),
        ranking("bob", "ab", "c", created=1),
    ]
    found = pair_values(feedback[::-1] if turned else feedback)
    assert sorted(map(sorted, found)) == [
        [0, 1],
        [0, 1],
        [1, 1],
    ]  # bc and c: ann level, bob b; ab: ann a, bob level; ac
