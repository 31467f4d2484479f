"""Options of reward-model training and of PPO, with the reason for each.

The numbers "detail 1" to "detail 18" are those of "The N implementation details of RLHF with PPO" (Huang, Liu, von
Werra 2023), read from the code of Ziegler et al. (2019); each has its field here and a test in
tests/rl/test_details.py. Where InstructGPT (Ouyang et al. 2022, appendix C) differs, its value is the default and
the comment says so. A setting that would be ignored is an error.
"""

from dataclasses import dataclass
from typing import Literal, get_args

PaddingSide = Literal["right", "left"]
HeadInit = Literal["paper", "zero"]
ValueHeadInit = Literal["zero", "reward_model"]
ScorePlacement = Literal["last", "spread"]
RewardNormalisation = Literal["saved", "reference"]
MissingStop = Literal["reject", "penalty", "eos_trick"]
KLEstimator = Literal["k1", "k2", "k3"]
KLPlacement = Literal["token", "last"]
KLControllerName = Literal["fixed", "adaptive"]
WhitenScope = Literal["minibatch", "batch"]


@dataclass(frozen=True)
class RewardModelConfig:
    """What belongs to the reward model itself, whatever trains it."""

    # Detail 7: "paper" starts the head N(0, 1/sqrt(width + 1)), so first scores are of size 1 whatever the width;
    # "zero" starts every comparison at even odds.
    reward_head_init: HeadInit = "paper"
    # Detail 8, first half: set gain and bias before training and compare normalised scores. The preference loss sees
    # only differences, so the gain acts as a step size; InstructGPT does not do it.
    normalise_before: bool = False
    # Detail 8, second half: set gain and bias after training, so that reference responses have mean 0 and standard
    # deviation 1. The KL coefficient, the value loss and the missing-stop value assume a reward of that scale.
    normalise_after: bool = True
    # Coefficient of (score_a + score_b)^2 (TRL recommends 0.01): keeps raw scores near zero; 0 is off.
    centering: float = 0.0

    def __post_init__(self) -> None:
        _one_of("reward_head_init", self.reward_head_init, HeadInit)
        _at_least("centering", self.centering, 0.0)


@dataclass(frozen=True)
class PPOConfig:
    """Everything that PPO and PPO-ptx can be told. See the module docstring for "detail"."""

    # --- how much -------------------------------------------------------------------------------------------------

    # Rounds of rollout and learning. InstructGPT: 256k episodes in all, 512 an iteration.
    iterations: int = 100
    # Episodes (prompt and response) an iteration, over all ranks.
    episodes_per_iteration: int = 256
    # Passes over each iteration's episodes. InstructGPT 1, Ziegler et al. 4; clipping is what makes several safe.
    epochs_per_batch: int = 4
    # Optimiser steps a pass. InstructGPT: 512 episodes in minibatches of 64.
    minibatches: int = 4
    # Most rows of one forward-and-backward; None is all of a minibatch. Changes memory, not numbers.
    ppo_microbatch_rows: int | None = None
    # Tokens of a packed row; None fits the longest episode. Changes speed, not numbers.
    ppo_row_length: int | None = None
    # Longest response, its stop token included.
    max_response_tokens: int = 64
    # Iterations in which only the critic learns, so that first advantages are not noise of a fresh value head.
    critic_only_iterations: int = 0

    # --- rollouts -------------------------------------------------------------------------------------------------

    # Detail 1: critic and reward model read the prompt and the response. Off, they see the response alone (the
    # critic from the prompt's last token on): for measuring how much reading the prompt matters.
    read_prompt: bool = True
    # Detail 2: Ziegler et al. pad left. Positions are cumsum(mask) - mask and padding is its own document, never the
    # end-of-text token, so that both sides give the same numbers; right is what packing makes.
    padding_side: PaddingSide = "right"
    # Detail 3: sample from the full distribution. The KL penalty compares full distributions, so samples of a
    # truncated one make KL negative. These two exist to show it.
    rollout_top_k: int | None = None
    rollout_top_p: float | None = None
    # Detail 5: a seed for each rank; with one seed for all, ranks would sample alike and learn from copies.
    seed_per_rank: bool = True
    # Detail 9: logits are divided by it when sampling, and again before every log-probability, entropy and KL.
    # InstructGPT 1, Ziegler et al. 0.7.
    rollout_temperature: float = 1.0
    # Recompute the rollout's log-probabilities with the training forward, so that the first ratio is exactly 1.
    # Off saves a forward pass and trusts the engine's numbers.
    recompute_logprobs: bool = True
    # Truncated importance weights for rollouts of another engine: each action is weighted by
    # min(training / rollout probability, cap); 2 to 3 is usual. None: no weights.
    importance_cap: float | None = None

    # --- rewards --------------------------------------------------------------------------------------------------

    # Detail 6: the score lands on the response's last token, where the reward model read it. "spread" gives every
    # token an equal part, for comparison.
    score_placement: ScorePlacement = "last"
    # Detail 8: "saved" takes the reward as it is given, with the gain and bias saved in a reward model; "reference"
    # measures mean and deviation on the first rollouts, those of the reference policy, and keeps them.
    reward_normalisation: RewardNormalisation = "saved"
    # Scores are clipped to +- this, against outliers of the reward model (5 to 10 is usual). None: not clipped.
    reward_clip: float | None = 10.0
    # Detail 12, a response without a stop: "reject" gives it `missing_stop_value` instead of a score (Ziegler et al.),
    # "penalty" adds that value to its score (TRL's missing-EOS penalty), "eos_trick" scores it as if it had stopped,
    # so that the reward model reads the token that it was trained to read; None scores it as it stands.
    missing_stop: MissingStop | None = "reject"
    # None is -1 for "reject" and "penalty".
    missing_stop_value: float | None = None
    # Detail 14: per-token reward is -beta * KL, plus the score at the end. "last" charges the whole KL at the end.
    kl_placement: KLPlacement = "token"
    # k1 = log(p/ref) is unbiased, which a penalty must be; k2 and k3 (Schulman 2020) are never negative but biased
    # as a reward.
    kl_penalty_estimator: KLEstimator = "k1"
    # Detail 15: whiten rewards, mean kept (the sign of a reward has meaning) ...
    whiten_rewards: bool = True

    # --- advantages -----------------------------------------------------------------------------------------------

    # Detail 13: no discount. An answer is short and only its end is judged.
    gamma: float = 1.0
    # Generalised advantage estimation (Schulman et al. 2015): 1 is all return, 0 all critic.
    gae_lambda: float = 0.95
    # ... and advantages, mean shifted to 0. Both with the population's variance.
    whiten_advantages: bool = True
    # Detail 15: over which episodes the two are whitened, all ranks together.
    whiten_scope: WhitenScope = "minibatch"

    # --- losses ---------------------------------------------------------------------------------------------------

    # The ratio is clipped to [1 - clip, 1 + clip]: a sample stops pulling once its probability moved this far.
    clip: float = 0.2
    # Upper clip of its own (DAPO 0.28); None is `clip`.
    clip_high: float | None = None
    # Bounds the loss of a bad action that became likely (Ye et al. 2020: 3.0). None: PPO's own form.
    dual_clip: float | None = None
    # Bonus for entropy; InstructGPT has none, the KL penalty keeps the policy broad.
    entropy_coefficient: float = 0.0
    # Detail 16: the new value may leave the old by this much before it stops helping the loss. None: not clipped.
    clip_value: float | None = 0.2
    # Ziegler et al. 0.1, with policy and value in one network. Ours is separate (InstructGPT), where it only scales
    # the critic's gradient.
    value_coefficient: float = 1.0
    # InstructGPT's ptx: actor loss + 27.8 * language-model loss on pretraining text, not a convex mix. Both are means
    # per token here. (Eq. 2 of the paper has expectations over episodes; for sums over tokens instead of means,
    # multiply by tokens of an episode / tokens of a pretraining example.) 0 is plain PPO.
    ptx_coefficient: float = 27.8
    # Rows of pretraining text beside each minibatch, per rank. InstructGPT: 8 examples an episode.
    ptx_rows: int = 16

    # --- the KL penalty's coefficient -----------------------------------------------------------------------------

    # Detail 17: "adaptive" steers KL to a target (Ziegler et al., section 2.2); InstructGPT keeps beta fixed.
    kl_controller: KLControllerName = "fixed"
    # beta, or where it starts. None: 0.02 fixed (InstructGPT: best between 0.01 and 0.02), 0.15 adaptive.
    kl_coefficient: float | None = None
    # Nats an episode that "adaptive" steers to. None is 6.
    kl_target: float | None = None
    # Episodes over which "adaptive" corrects an error of 100 %. None is 10,000.
    kl_horizon: int | None = None

    # --- optimisers -----------------------------------------------------------------------------------------------

    # InstructGPT: 8.05e-6 to 1.6e-5 for billions of parameters; a model of a million takes about a hundred times that.
    actor_learning_rate: float = 9.65e-6
    # InstructGPT: 9e-6.
    critic_learning_rate: float = 9e-6
    # Detail 4: Ziegler et al. anneal both rates linearly to 0; InstructGPT keeps them.
    anneal_learning_rate: bool = False
    # InstructGPT: from a tenth of the rate to all of it in 10 iterations.
    warmup_iterations: int = 10
    warmup_from: float = 0.1
    # Detail 18: Adam's epsilon is 1e-5 and not torch's 1e-8, which lets first steps be smaller.
    adam_epsilon: float = 1e-5
    # Average of the actor's weights, which is what is kept (InstructGPT 0.992). None: the last weights are.
    actor_ema_decay: float | None = 0.992
    # Detail 10: the value head starts at zero; "reward_model" starts it as the reward model's head.
    value_head_init: ValueHeadInit = "zero"
    # Detail 11: no dropout in policy, reference and critic, or the ratio of a policy to itself is not 1.
    dropout_off: bool = True

    def __post_init__(self) -> None:
        for name in ("iterations", "episodes_per_iteration", "epochs_per_batch", "minibatches", "max_response_tokens"):
            _at_least(name, getattr(self, name), 1)
        for name in ("ppo_microbatch_rows", "ppo_row_length", "rollout_top_k", "kl_horizon"):
            _at_least(name, getattr(self, name), 1)
        for name in ("critic_only_iterations", "entropy_coefficient", "value_coefficient", "ptx_coefficient"):
            _at_least(name, getattr(self, name), 0)
        for name in ("kl_coefficient", "warmup_iterations", "actor_learning_rate", "critic_learning_rate"):
            _at_least(name, getattr(self, name), 0)
        positive = ("rollout_temperature", "reward_clip", "clip", "clip_high", "clip_value", "kl_target")
        for name in (*positive, "adam_epsilon", "importance_cap", "ptx_rows"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ValueError(f"{name} is {value}; it must be above 0")
        for name in ("gamma", "gae_lambda", "warmup_from", "rollout_top_p", "actor_ema_decay"):
            value = getattr(self, name)
            if value is not None and not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must be from 0 to 1")
        _one_of("padding_side", self.padding_side, PaddingSide)
        _one_of("score_placement", self.score_placement, ScorePlacement)
        _one_of("reward_normalisation", self.reward_normalisation, RewardNormalisation)
        _one_of("kl_placement", self.kl_placement, KLPlacement)
        _one_of("kl_penalty_estimator", self.kl_penalty_estimator, KLEstimator)
        _one_of("whiten_scope", self.whiten_scope, WhitenScope)
        _one_of("kl_controller", self.kl_controller, KLControllerName)
        _one_of("value_head_init", self.value_head_init, ValueHeadInit)
        if self.missing_stop is not None:
            _one_of("missing_stop", self.missing_stop, MissingStop)
        self._check_combinations()

    def _check_combinations(self) -> None:
        if self.minibatches > self.episodes_per_iteration:
            raise ValueError(
                f"{self.episodes_per_iteration} episodes cannot be split into {self.minibatches} minibatches; "
                "raise episodes_per_iteration or lower minibatches"
            )
        if self.dual_clip is not None and not self.dual_clip > 1 + (self.clip_high or self.clip):
            raise ValueError(
                f"dual_clip is {self.dual_clip}; it bounds ratios beyond the clip and must be above "
                f"{1 + (self.clip_high or self.clip):g} (usual: 3.0)"
            )
        ignored = {
            "kl_target": self.kl_target is not None and self.kl_controller != "adaptive",
            "kl_horizon": self.kl_horizon is not None and self.kl_controller != "adaptive",
            "missing_stop_value": (
                self.missing_stop_value is not None and self.missing_stop not in ("reject", "penalty")
            ),
            "importance_cap": self.importance_cap is not None and not self.recompute_logprobs,
        }
        needs = {
            "kl_target": "kl_controller='adaptive'",
            "kl_horizon": "kl_controller='adaptive'",
            "missing_stop_value": "missing_stop='reject' or 'penalty'",
            "importance_cap": "recompute_logprobs=True (without it the ratio already is against the rollout)",
        }
        for name, is_ignored in ignored.items():
            if is_ignored:
                raise ValueError(f"{name} would be ignored; it needs {needs[name]}. Leave it out or change that")


def _at_least(name: str, value: float | None, low: float) -> None:
    if value is not None and not value >= low:
        raise ValueError(f"{name} is {value}; it must be at least {low:g}")


def _one_of(name: str, value: str, allowed: object) -> None:
    names = get_args(allowed)
    if value not in names:
        raise ValueError(f"{name} is {value!r}; it must be one of {', '.join(names)}")
