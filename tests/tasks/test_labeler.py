"""Simulated labelers: noiseless ones give the gold order, noisy ones agree as often as people."""

import random

import pytest

from chatloom.tasks import Example, Labeler, agreement, calibrate_noise, get_task
from chatloom.tasks.miniature import Miniature, demonstrate

TASK = Miniature()


@pytest.fixture(scope="module")
def answered() -> list[tuple[Example, list[str]]]:
    """Five answers a prompt: imperfect demonstrations, one in four of another example of the same use case."""
    source = random.Random(0)
    examples = TASK.examples("feedback", 600, 0)
    alike: dict[str, list[Example]] = {}
    for each in examples:
        alike.setdefault(each.category, []).append(each)
    return [
        (
            each,
            [
                demonstrate(source, source.choice(alike[each.category]) if source.random() < 0.25 else each)
                for _ in range(5)
            ],
        )
        for each in examples
    ]


def test_without_noise_the_order_is_gold() -> None:
    each = TASK.examples("test", 1, 0)[0]
    answers = ["", each.reference, each.reference.split(" ", 1)[1], each.reference]
    ranks = Labeler(0, task=TASK, noise=0).rank(each, answers)
    assert ranks[1] == ranks[3] == 0
    assert ranks[0] == max(ranks) > ranks[2] > 0
    assert Labeler(0, task=TASK, noise=0).rank(each, [each.reference] * 2, stopped=[True, False]) == (0, 1)
    with pytest.raises(ValueError, match="2 answers and 1 values of stopped"):
        Labeler(0, task=TASK).rank(each, ["a", "b"], stopped=[True])


def test_labels_depend_on_labeler_and_answers_alone(answered: list[tuple[Example, list[str]]]) -> None:
    labeler, again, other = (Labeler(seed, task=get_task("miniature")) for seed in (1, 1, 2))
    ranks = [labeler.rank(each, answers) for each, answers in answered[:50]]
    assert ranks == [again.rank(each, answers) for each, answers in answered[:50]]
    assert ranks != [other.rank(each, answers) for each, answers in answered[:50]]
    each, answers = answered[0]
    assert labeler.rank(each, answers[::-1]) == labeler.rank(each, answers)[::-1]
    assert labeler.rank(each, [answers[0]] * 2) == (0, 0)


def test_two_labelers_agree_as_people_do(answered: list[tuple[Example, list[str]]]) -> None:
    pairs = []
    for each, answers in answered:
        scores = [TASK.grade(each, answer).score for answer in answers]
        pairs += [(scores[a], scores[b]) for a in range(5) for b in range(a) if answers[a] != answers[b]]
    noise = calibrate_noise(pairs)
    for scale in (noise, Labeler(0, task=TASK).noise):  # as calibrated here, and as shipped
        first, second = (
            [Labeler(seed, task=TASK, noise=scale).rank(each, answers) for each, answers in answered] for seed in (1, 2)
        )
        assert agreement(first, second) == pytest.approx(0.73, abs=0.025)
        gold = [Labeler(0, task=TASK, noise=0).rank(each, answers) for each, answers in answered]
        assert agreement(first, gold) > agreement(first, second) + 0.05


def test_agreement_by_hand() -> None:
    # 0 < 1 for both; 0 < 2 for both; 1 and 2 the other way round: two of three pairs
    assert agreement([(0, 1, 2)], [(0, 2, 1)]) == pytest.approx(2 / 3)
    assert agreement([(0, 0, 1)], [(0, 1, 1)]) == 1.0  # one pair is tied for neither
    with pytest.raises(ValueError, match="every pair of answers is tied"):
        agreement([(0, 0)], [(0, 1)])


def test_calibration_by_hand() -> None:
    # p² + (1 - p)² = 0.73 at p = 0.8391, which is the sigmoid of 1.6514
    assert calibrate_noise([(3.0, 2.0)]) == pytest.approx(1 / 1.6514, rel=1e-3)
    assert calibrate_noise([(0.0, 2.0)]) == pytest.approx(2 / 1.6514, rel=1e-3)
    with pytest.raises(ValueError, match="cannot be reached"):
        calibrate_noise([(1.0, 1.0)])
    with pytest.raises(ValueError, match="no pair"):
        calibrate_noise([])
    with pytest.raises(ValueError, match="must be 0"):
        Labeler(0, task=TASK, noise=-1.0)
