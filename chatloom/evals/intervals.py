"""Estimates with 95 % intervals: the one place where an evaluation's uncertainty is computed.

Three facts. Answers to the same prompt are alike, so observations that share a *group* count as one cluster: the
interval widens by the design effect (Kish 1965). Proportions use Wilson's interval (1927), which stays inside
[0, 1] and does not collapse when every answer is right; it takes fractional successes (a tie is half a win), for
which it is conservative because a tie varies less than a coin. Ratios of sums (bits per byte) are bootstrapped
over documents (Efron 1979) from a fixed seed. Everything here is a pure function of numbers.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z_95 = 1.959963984540054  # the normal quantile that leaves 2.5 % on either side


@dataclass(frozen=True)
class Estimate:
    """A measured value with its 95 % interval; `count` is the number of observations behind it."""

    value: float
    low: float
    high: float
    count: int

    def __post_init__(self) -> None:
        if not np.isfinite([self.value, self.low, self.high]).all():
            raise ValueError(f"an estimate must be finite, got {self.value} ({self.low} to {self.high})")


def wilson(successes: float, count: float, *, observations: int | None = None) -> Estimate:
    """Wilson's score interval of `successes` out of `count` (both may be fractional: ties, effective sizes)."""
    if count <= 0 or not 0 <= successes <= count:
        raise ValueError(f"need 0 <= successes <= count and count > 0, got {successes} of {count}")
    share, square = successes / count, Z_95**2
    centre = (share + square / (2 * count)) / (1 + square / count)
    spread = Z_95 / (1 + square / count) * np.sqrt(share * (1 - share) / count + square / (4 * count**2))
    # Rounding may leave the centre a hair outside the interval at 0 and 1.
    low, high = min(share, max(0.0, centre - spread)), max(share, min(1.0, centre + spread))
    return Estimate(share, float(low), float(high), round(count) if observations is None else observations)


def proportion(values: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> Estimate:
    """The mean of values in [0, 1] with Wilson's interval, clustered by `groups` (one label a value)."""
    numbers = _numbers(values)
    if numbers.min() < 0 or numbers.max() > 1:
        raise ValueError(f"a proportion needs values in [0, 1], got {numbers.min():g} to {numbers.max():g}")
    size = effective_size(numbers, groups=groups)
    share = min(1.0, max(0.0, float(numbers.mean())))
    return wilson(share * size, size, observations=len(numbers))


def mean(values: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> Estimate:
    """The mean with its normal 95 % interval, clustered by `groups`; one cluster alone has a width of zero."""
    numbers = _numbers(values)
    half = Z_95 * float(np.sqrt(_cluster_variance(numbers, _codes(numbers, groups))))
    centre = float(numbers.mean())
    return Estimate(centre, centre - half, centre + half, len(numbers))


def effective_size(values: ArrayLike, *, groups: Sequence[Hashable] | None = None) -> float:
    """How many independent observations the clustered `values` are worth: between the groups and the values."""
    numbers = _numbers(values)
    if groups is None:
        return float(len(numbers))
    codes = _codes(numbers, groups)
    num_groups = int(codes.max()) + 1
    clustered, single = _cluster_variance(numbers, codes), _cluster_variance(numbers, np.arange(len(numbers)))
    if single == 0:  # all alike, so the data do not say how alike a cluster is: assume entirely
        return float(num_groups)
    return float(np.clip(len(numbers) * single / max(clustered, 1e-300), num_groups, len(numbers)))


def ratio(numerators: ArrayLike, denominators: ArrayLike, *, seed: int = 0, num_resamples: int = 2000) -> Estimate:
    """sum(numerators) / sum(denominators) with a percentile bootstrap over the pairs."""
    above, below = _numbers(numerators), _numbers(denominators)
    if len(above) != len(below):
        raise ValueError(f"{len(above)} numerators but {len(below)} denominators")
    if below.min() <= 0:
        raise ValueError("a ratio needs denominators above zero")
    generator = np.random.default_rng(seed)
    # Bootstrap counts are multinomial: drawing the counts avoids a (resamples, documents) table of indices.
    counts = generator.multinomial(len(above), np.full(len(above), 1 / len(above)), size=num_resamples)
    low, high = np.quantile((counts @ above) / (counts @ below), [0.025, 0.975])
    return Estimate(float(above.sum() / below.sum()), float(low), float(high), len(above))


def _numbers(values: ArrayLike) -> NDArray[np.float64]:
    numbers = np.asarray(values, dtype=np.float64)
    if numbers.ndim != 1 or len(numbers) == 0:
        raise ValueError(f"need a list of at least one number, got shape {numbers.shape}")
    return numbers


def _codes(numbers: NDArray[np.float64], groups: Sequence[Hashable] | None) -> NDArray[np.int64]:
    """Group labels as 0, 1, 2, ... in order of appearance."""
    if groups is None:
        return np.arange(len(numbers))
    if len(groups) != len(numbers):
        raise ValueError(f"{len(numbers)} values but {len(groups)} group labels")
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(group, len(seen)) for group in groups], dtype=np.int64)


def _cluster_variance(numbers: NDArray[np.float64], codes: NDArray[np.int64]) -> float:
    """Variance of the mean when observations of one cluster move together (CR1 without a regression)."""
    num_groups = int(codes.max()) + 1
    if num_groups == 1:
        return 0.0
    sums = np.bincount(codes, weights=numbers - numbers.mean(), minlength=num_groups)
    return float((sums**2).sum() / len(numbers) ** 2 * num_groups / (num_groups - 1))
