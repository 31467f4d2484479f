"""Synthetic runs that follow the paper's law, with noise: where they part, and that good runs do not."""

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from chatloom.rl.overoptimisation import fit_gold, parting_step

DISTANCE: NDArray[np.float64] = np.linspace(0.1, 6.0, 40)
KL = DISTANCE**2


def noise(seed: int, scale: float = 0.02) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0, scale, len(DISTANCE))


def law(alpha: float, beta: float) -> NDArray[np.float64]:
    result: NDArray[np.float64] = DISTANCE * (alpha - beta * np.log(DISTANCE))
    return result


def test_the_fit_recovers_the_law() -> None:
    fit = fit_gold(KL.tolist(), (0.3 + law(1.0, 0.6)).tolist())
    assert (fit.start, fit.alpha, fit.beta) == pytest.approx((0.3, 1.0, 0.6), abs=1e-6)
    assert fit.peak == pytest.approx(math.exp(1 / 0.6 - 1))
    assert fit(2.0) == pytest.approx(0.3 + 2 * (1 - 0.6 * math.log(2)))
    best_of_n = fit_gold(KL.tolist(), (DISTANCE * (1.0 - 0.2 * DISTANCE)).tolist(), form="best_of_n")
    assert best_of_n.peak == pytest.approx(2.5)


@pytest.mark.parametrize("seed", range(5))
def test_gold_turns_down_while_the_proxy_rises(seed: int) -> None:
    gold, proxy = law(1.0, 0.6) + noise(seed), 0.8 * DISTANCE + noise(seed + 100)
    parted = parting_step(KL.tolist(), proxy.tolist(), gold.tolist(), steps=list(range(0, 400, 10)))
    assert parted is not None
    assert DISTANCE[parted // 10] == pytest.approx(math.exp(1 / 0.6 - 1), abs=0.4)


@pytest.mark.parametrize("seed", range(5))
def test_runs_that_did_not_part(seed: int) -> None:
    kl, proxy = KL.tolist(), (0.8 * DISTANCE + noise(seed)).tolist()
    assert parting_step(kl, proxy, (0.7 * DISTANCE + noise(seed + 1)).tolist()) is None  # both rise
    assert parting_step(kl, proxy, (np.tanh(DISTANCE) + noise(seed + 2)).tolist()) is None  # gold levels off
    assert parting_step(kl, proxy, noise(seed + 3).tolist()) is None  # nothing happens to gold
    both_fall = (law(1.0, 0.6) + noise(seed + 4)).tolist()
    assert parting_step(kl, both_fall, both_fall) is None  # the proxy sees it too


def test_too_little_to_say() -> None:
    assert parting_step([0.1, 1.0], [0.0, 1.0], [1.0, 0.0]) is None
    with pytest.raises(ValueError, match="at least 4"):
        fit_gold([1.0], [1.0])
    with pytest.raises(ValueError, match="one of each"):
        parting_step([1.0], [], [1.0])
