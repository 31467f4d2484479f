"""KL divergence between policy and reference: estimators, and controllers of the penalty's coefficient.

With log-ratio d = log p(x) - log ref(x) at a sample x of p (Schulman 2020, "Approximating KL divergence"):
k1 = d is unbiased and of either sign; k2 = d^2 / 2 is biased and never negative; k3 = exp(-d) - 1 + d is unbiased and
never negative, so it is what to report. As a reward k1 is right: its expected value is the KL itself.
"""

from dataclasses import dataclass

from torch import Tensor

from chatloom.rl.config import KLEstimator, PPOConfig


def estimate(logprobs: Tensor, reference_logprobs: Tensor, estimator: KLEstimator) -> Tensor:
    """KL(policy, reference) estimated at each sampled token, in nats; any shape."""
    difference = logprobs - reference_logprobs
    if estimator == "k1":
        return difference
    if estimator == "k2":
        return 0.5 * difference.square()
    if estimator == "k3":
        return (-difference).exp() - 1 + difference
    raise ValueError(f"KL estimator {estimator!r} is unknown; allowed: k1, k2, k3")


@dataclass
class KLController:
    """The coefficient beta of the KL penalty. With neither target nor horizon it never changes.

    Adaptive (Ziegler et al. 2019, section 2.2): after `num_episodes` episodes of mean KL `kl`, the proportional error
    kl / target - 1 is clipped to +-0.2 and beta is multiplied by 1 + error * num_episodes / horizon.
    """

    beta: float
    target: float | None = None
    horizon: int | None = None
    error_clip: float = 0.2

    def update(self, kl: float, *, num_episodes: int) -> None:
        """Take in one iteration's mean KL in nats an episode."""
        if self.target is None or self.horizon is None:
            return
        error = min(max(kl / self.target - 1.0, -self.error_clip), self.error_clip)
        self.beta *= 1.0 + error * num_episodes / self.horizon


def controller(config: PPOConfig) -> KLController:
    """The controller that the config describes, at its start."""
    if config.kl_controller == "fixed":
        return KLController(0.02 if config.kl_coefficient is None else config.kl_coefficient)
    return KLController(
        0.15 if config.kl_coefficient is None else config.kl_coefficient,
        target=6.0 if config.kl_target is None else config.kl_target,
        horizon=10_000 if config.kl_horizon is None else config.kl_horizon,
    )
