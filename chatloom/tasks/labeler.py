"""Simulated labelers: the gold score plus each person's own noise.

A labeler sees score + scale * Gumbel noise and ranks by it, which makes two answers a Bradley-Terry choice:
P(better one preferred) = sigmoid(difference / scale), the model that a pairwise reward loss assumes. The scale is
set so that two labelers agree on 73 % of pairs, as InstructGPT's did (72.6 ± 1.5 %; Ouyang et al. 2022, section
3.4). The noise is a function of labeler, example and answer, so the order of work never changes a label.
"""

import math
import random
from collections.abc import Iterable, Sequence

from chatloom.tasks.example import Example, Task

AGREEMENT = 0.73
# What `calibrate_noise` gives for imperfect demonstrations, one in four of them about something else.
DEFAULT_NOISE = 0.68
TIE = 0.1  # seen differences below this share of the noise are ties


class Labeler:
    """One person who ranks answers. Two seeds are two people; `noise` is the scale of their whims, 0 for none."""

    def __init__(self, seed: int, *, task: Task, noise: float = DEFAULT_NOISE) -> None:
        if noise < 0:
            raise ValueError(f"noise is {noise}; it must be 0 (the gold ranking) or more")
        self.seed, self.task, self.noise = seed, task, noise

    def rank(
        self, example: Example, answers: Sequence[str], *, stopped: Sequence[bool] | None = None
    ) -> tuple[int, ...]:
        """Ranks of the answers: 0 is best, equal ranks are ties. Equal answers always tie.

        `stopped` says which answers ended by themselves; None: all. ValueError where the lengths differ.
        """
        ended = [True] * len(answers) if stopped is None else list(stopped)
        if len(ended) != len(answers):
            raise ValueError(f"{len(answers)} answers and {len(ended)} values of stopped: give one for each answer")
        seen = [self._impression(example, answer, stop) for answer, stop in zip(answers, ended)]
        order = sorted(range(len(seen)), key=lambda index: -seen[index])
        ranks, rank = [0] * len(seen), 0
        for position, index in enumerate(order):
            if position and seen[order[position - 1]] - seen[index] > TIE * self.noise:
                rank += 1
            ranks[index] = rank
        return tuple(ranks)

    def _impression(self, example: Example, answer: str, stopped: bool) -> float:
        score = self.task.grade(example, answer, stopped=stopped).score
        if self.noise == 0:
            return score
        uniform = random.Random(f"{self.seed}|{example.id}|{stopped}|{answer}").random()
        return score - self.noise * math.log(-math.log(max(uniform, 1e-12)))


def agreement(first: Sequence[Sequence[int]], second: Sequence[Sequence[int]]) -> float:
    """The share of pairs, not tied for either, that two labelers order alike; one ranking a prompt from each.

    ValueError where the rankings do not belong together or leave no pair.
    """
    same = total = 0
    for ours, theirs in zip(first, second, strict=True):
        if len(ours) != len(theirs):
            raise ValueError(f"one labeler ranks {len(ours)} answers of a prompt, the other {len(theirs)}")
        for a in range(len(ours)):
            for b in range(a):
                if ours[a] != ours[b] and theirs[a] != theirs[b]:
                    total += 1
                    same += (ours[a] < ours[b]) == (theirs[a] < theirs[b])
    if total == 0:
        raise ValueError("every pair of answers is tied; give answers that differ")
    return same / total


def calibrate_noise(pairs: Iterable[tuple[float, float]], *, target: float = AGREEMENT) -> float:
    """The noise at which two labelers agree on `target` of pairs of gold scores.

    Every pair counts, also one of equal scores, whose order is a coin's; give pairs of different answers only.
    ValueError where no noise gives the target: it must lie between 0.5 and what full attention would give.
    """
    differences = [abs(first - second) for first, second in pairs]
    if not differences:
        raise ValueError("there is no pair to calibrate on; give pairs of gold scores of different answers")
    low, high = 1e-3, 1e3
    best = _expected_agreement(differences, low)
    if not 0.5 < target < best:
        raise ValueError(
            f"an agreement of {target} cannot be reached: it must be above 0.5 and, for these pairs, below {best:.3f}"
        )
    for _ in range(60):
        middle = math.sqrt(low * high)
        if _expected_agreement(differences, middle) > target:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)


def _expected_agreement(differences: Sequence[float], noise: float) -> float:
    """With p the chance that a labeler prefers the better answer, two agree with p² + (1 - p)²."""
    total = 0.0
    for difference in differences:
        right = 1 / (1 + math.exp(-min(difference / noise, 700.0)))
        total += right**2 + (1 - right) ** 2
    return total / len(differences)
