"""Over-optimisation: the proxy reward goes on rising while the gold score that it stands for turns down.

Gao, Schulman and Hilton (2022): with d = sqrt(KL) from the initial policy, the gold score follows
d (alpha - beta ln d) in reinforcement learning and d (alpha - beta d) in best-of-n. Both have one peak; beyond it more
optimisation makes the model worse. `parting_step` finds where a run passed it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Form = Literal["reinforcement", "best_of_n"]


@dataclass(frozen=True)
class GoldFit:
    """gold(d) = start + d (alpha - beta f(d)), with f = ln for reinforcement learning and f(d) = d for best-of-n."""

    start: float
    alpha: float
    beta: float
    residual: float  # standard deviation of what the curve leaves unexplained
    form: Form

    @property
    def peak(self) -> float:
        """The distance sqrt(KL) of the highest gold score; infinite where the curve never turns."""
        if self.beta <= 0:
            return math.inf
        if self.form == "best_of_n":
            return max(0.0, self.alpha / (2 * self.beta))
        return math.exp(min(self.alpha / self.beta - 1, 700.0))

    def __call__(self, distance: float) -> float:
        """The fitted gold score at sqrt(KL)."""
        return self.start + float(_features(np.array([distance]), self.form)[0] @ np.array([self.alpha, self.beta]))


def _features(distance: NDArray[np.float64], form: Form) -> NDArray[np.float64]:
    bend = distance if form == "best_of_n" else np.log(np.maximum(distance, 1e-12))
    return np.stack([distance, -distance * bend], axis=1)


def fit_gold(kl: Sequence[float], gold: Sequence[float], *, form: Form = "reinforcement") -> GoldFit:
    """Least-squares fit of the gold score against sqrt(KL). Raises ValueError for fewer than 4 points.

    Args:
        kl: nats an episode of each measurement; estimates below 0 count as 0.
        gold: the gold score there.
        form: the paper's law for reinforcement learning or for best-of-n.
    """
    if len(kl) != len(gold) or len(kl) < 4:
        raise ValueError(f"the fit needs at least 4 pairs of KL and score; given: {len(kl)} and {len(gold)}")
    distance = np.sqrt(np.maximum(np.array(kl, dtype=np.float64), 0.0))
    design = np.concatenate([np.ones((len(distance), 1)), _features(distance, form)], axis=1)
    wanted = np.array(gold, dtype=np.float64)
    solution = np.linalg.lstsq(design, wanted, rcond=None)[0]
    residual = float(np.sqrt(np.square(wanted - design @ solution).sum() / max(1, len(wanted) - 3)))
    start, alpha, beta = (float(number) for number in solution)
    return GoldFit(start, alpha, beta, residual, form)


def parting_step(
    kl: Sequence[float],
    proxy: Sequence[float],
    gold: Sequence[float],
    *,
    steps: Sequence[int] | None = None,
    form: Form = "reinforcement",
) -> int | None:
    """The step at which proxy and gold part, or None if they did not.

    They part at the peak of the fitted gold curve if the run went beyond it, the gold scores measured furthest out are
    below those around the peak by more than noise explains, and the proxy did not fall with them. The fit only says
    where to look: a gold score that levels off also bends the curve. A good run stops at this step.

    Args:
        kl, proxy, gold: one of each a measurement, in order of training.
        steps: the step of each measurement; None counts them 0, 1, 2, ...
        form: see `fit_gold`.
    """
    if len(proxy) != len(kl):
        raise ValueError(f"there are {len(kl)} KLs and {len(proxy)} proxy scores; give one of each a measurement")
    if len(kl) < 4:
        return None
    fit = fit_gold(kl, gold, form=form)
    distance = np.sqrt(np.maximum(np.array(kl, dtype=np.float64), 0.0))
    beyond = distance >= fit.peak
    if int(beyond.sum()) < 2:
        return None
    order = np.argsort(distance, kind="stable")
    scores, truth = np.array(proxy, dtype=np.float64), np.array(gold, dtype=np.float64)
    few = max(2, len(order) // 8)
    outside = order[-few:]
    around = order[np.argsort(np.abs(distance[order] - fit.peak), kind="stable")[:few]]
    # Noise of one measurement, from neighbours: it does not depend on how well the law fits.
    noise = float(np.diff(truth[order]).std()) / math.sqrt(2)
    fell = truth[around].mean() - truth[outside].mean()
    if fell <= 3 * noise * math.sqrt(2 / few) + 1e-9 or scores[outside].mean() <= scores[around].mean():
        return None
    first = int(np.argmax(beyond))
    return first if steps is None else steps[first]
