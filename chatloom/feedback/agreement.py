"""Whether raters agree: the share of agreeing judgements, and Krippendorff's alpha, which takes luck away.

alpha = 1 - observed / expected disagreement (Krippendorff, "Computing Krippendorff's Alpha-Reliability", 2011; nominal
values). It holds for any number of raters and for units that only some of them judged: 1 is full agreement, 0 what
chance would give. InstructGPT's labelers agreed on 72.6 +- 1.5 % of pairs (Ouyang et al. 2022, section 3.4).

Which of two answers is called the first says nothing, so a pair is counted both ways round (`both_ways`).
"""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Agreement:
    """Of the units that two or more raters judged: how many, the share of agreeing pairs of raters, and alpha.

    `share` and `alpha` are None where nothing was judged twice; alpha also where all values are one.
    """

    num_units: int
    share: float | None
    alpha: float | None


def agreement(units: Iterable[Sequence[Hashable]]) -> Agreement:
    """Agreement on units, each the values that its raters gave; those with fewer than two say nothing."""
    pairable = [Counter(values) for values in units if len(values) > 1]
    totals: Counter[Hashable] = Counter()
    agreeing = pairs = 0
    observed = 0.0
    for counts in pairable:
        size = counts.total()
        same = sum(count * (count - 1) for count in counts.values())
        totals += counts
        agreeing += same
        pairs += size * (size - 1)
        observed += (size * (size - 1) - same) / (size - 1)
    if not pairs:
        return Agreement(0, None, None)
    size = totals.total()
    expected = (size * size - sum(count * count for count in totals.values())) / (size - 1)
    return Agreement(len(pairable), agreeing / pairs, 1 - observed / expected if expected else None)


def both_ways(units: Iterable[Sequence[int]]) -> list[list[int]]:
    """Judgements of pairs (1: the first is better, -1: the second, 0: a tie), each unit as given and turned round."""
    return [[sign * value for value in values] for values in units for sign in (1, -1)]
