"""Judging: who wins, how often two rankings agree, and whether a reward model's confidence is earned.

A win rate counts a tie as half a win, so that a policy compared with itself scores exactly one half. Pairs are
only ever formed within one prompt, and all intervals are clustered by prompt. A reward model claims, by the
Bradley-Terry model (1952), that it prefers a to b with probability sigmoid(score_a - score_b); `calibration`
holds that claim against the labels (reliability diagram and expected calibration error: Guo et al. 2017).
"""

import math
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

from chatloom.evals import intervals
from chatloom.evals.intervals import Estimate


@dataclass(frozen=True)
class Verdict:
    """Outcome of a comparison: `win_rate` = (wins + ties / 2) / all."""

    win_rate: Estimate
    wins: int
    ties: int
    losses: int


@dataclass(frozen=True)
class CalibrationBin:
    """Pairs whose claimed probability lies in [low, high): what was claimed and how often it was so."""

    low: float
    high: float
    predicted: float  # mean claimed probability of the preferred answer
    observed: Estimate  # how often the labels prefer it too


@dataclass(frozen=True)
class Calibration:
    """Reliability of a reward model; empty bins are left out."""

    bins: tuple[CalibrationBin, ...]
    expected_error: float  # mean |predicted - observed| over the bins, weighted by their pairs
    num_pairs: int


def compare(
    scores_a: Sequence[float],
    scores_b: Sequence[float],
    *,
    groups: Sequence[Hashable] | None = None,
    margin: float = 0.0,
) -> Verdict:
    """How often a beats b, position by position.

    `groups` labels the prompt of each position where a prompt has several samples. Scores that differ by no more
    than `margin` are a tie. Raises ValueError for lists of different lengths or empty ones.
    """
    if len(scores_a) != len(scores_b):
        raise ValueError(f"a has {len(scores_a)} scores and b has {len(scores_b)}: compare the same prompts")
    outcomes = [_outcome(a - b, margin) for a, b in zip(scores_a, scores_b)]
    estimate = intervals.proportion(outcomes, groups=groups)
    return Verdict(estimate, outcomes.count(1.0), outcomes.count(0.5), outcomes.count(0.0))


def ranking_agreement(first: Sequence[Sequence[float]], second: Sequence[Sequence[float]]) -> Estimate:
    """How often two labelers order a pair of responses alike.

    One ranking a prompt, in ranks or in scores as long as both use the same direction. Pairs that either of them
    calls a tie are left out (InstructGPT, section 3.4, reports 72.6 % for people).
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} rankings but {len(second)} to compare them with")
    agreements: list[float] = []
    prompts: list[int] = []
    for prompt, (one, other) in enumerate(zip(first, second)):
        if len(one) != len(other):
            raise ValueError(f"ranking {prompt} has {len(one)} responses and its counterpart {len(other)}")
        for i, j in _pairs(len(one)):
            if one[i] != one[j] and other[i] != other[j]:
                agreements.append(float((one[i] < one[j]) == (other[i] < other[j])))
                prompts.append(prompt)
    if not agreements:
        raise ValueError("no pair is ordered by both rankings, so there is no agreement to report")
    return intervals.proportion(agreements, groups=prompts)


def pairwise_accuracy(scores: Sequence[float], gold: Sequence[float], groups: Sequence[Hashable]) -> Estimate:
    """How often `scores` order a pair of the same group as `gold` does.

    Pairs that gold calls equal are left out; a pair that the scores call equal counts half, as a guess would.
    `groups` holds the prompt of each response. Raises ValueError when no pair can be formed.
    """
    margins, labels = _labelled_margins(scores, gold, groups)
    outcomes = [_outcome(margin, 0.0) for margin in margins]
    return intervals.proportion(outcomes, groups=labels)


def calibration(
    scores: Sequence[float], gold: Sequence[float], groups: Sequence[Hashable], *, num_bins: int = 10
) -> Calibration:
    """Claimed probability against frequency, over the pairs of `pairwise_accuracy`.

    A pair is seen from the side that the reward model prefers, so the claims lie in [0.5, 1]; the other side would
    say the same twice. `num_bins` bins of equal width.
    """
    margins, labels = _labelled_margins(scores, gold, groups)
    # A margin is score(better by gold) - score(worse by gold): above zero means that the preference was right.
    claims = [1 / (1 + math.exp(-min(abs(margin), 700.0))) for margin in margins]
    members: list[list[int]] = [[] for _ in range(num_bins)]
    for index, claim in enumerate(claims):
        members[min(int((claim - 0.5) * 2 * num_bins), num_bins - 1)].append(index)
    bins, error = [], 0.0
    for number, inside in enumerate(members):
        if not inside:
            continue
        predicted = sum(claims[index] for index in inside) / len(inside)
        right = [_outcome(margins[index], 0.0) for index in inside]
        observed = intervals.proportion(right, groups=[labels[index] for index in inside])
        bounds = (0.5 + number / (2 * num_bins), 0.5 + (number + 1) / (2 * num_bins))
        bins.append(CalibrationBin(*bounds, predicted, observed))
        error += abs(predicted - observed.value) * len(inside) / len(claims)
    return Calibration(tuple(bins), error, len(claims))


def _outcome(difference: float, margin: float) -> float:
    if math.isnan(difference):
        raise ValueError("a score is NaN: an answer without a score cannot be compared")
    return 0.5 if abs(difference) <= margin else float(difference > 0)


def _pairs(size: int) -> Iterator[tuple[int, int]]:
    return ((i, j) for i in range(size) for j in range(i + 1, size))


def _labelled_margins(
    scores: Sequence[float], gold: Sequence[float], groups: Sequence[Hashable]
) -> tuple[list[float], list[Hashable]]:
    """score(better by gold) - score(worse by gold) of every pair that gold orders, and the pair's group."""
    if not len(scores) == len(gold) == len(groups):
        raise ValueError(f"{len(scores)} scores, {len(gold)} gold scores and {len(groups)} groups must be equal")
    members: dict[Hashable, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    margins: list[float] = []
    labels: list[Hashable] = []
    for group, inside in members.items():
        for i, j in _pairs(len(inside)):
            first, second = inside[i], inside[j]
            if gold[first] != gold[second]:
                sign = 1.0 if gold[first] > gold[second] else -1.0
                margins.append(sign * (scores[first] - scores[second]))
                labels.append(group)
    if not margins:
        raise ValueError("gold orders no pair within a group: give at least two different responses a prompt")
    return margins, labels
