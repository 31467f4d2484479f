"""What the quickstart promises, held against what was measured; another recipe brings promises of its own.

Each claim is a sentence with its numbers and whether it is met; a claim whose numbers were not measured is left
out. The targets are those of docs/results.md and apply to the point estimates, but for best-of-n, where the paired
difference may not lie below zero with 95 % confidence.
"""

from chatloom.evals import results as schema
from chatloom.evals.intervals import Estimate
from chatloom.evals.results import Claim, Results, StageResult

SFT_FOLLOWS, BASE_SHARE = 0.85, 0.5
REWARD_ACCURACY = 0.80
WIN_RATE, MAX_KL_NATS = 0.65, 15.0
TAX_UNDONE = 0.80


def claims(results: Results) -> tuple[Claim, ...]:
    """Every claim for which the results hold the numbers, in the order of the recipe."""
    if results.promises is not None:
        return results.promises
    found = [
        _sft_follows(results),
        _base_is_behind(results),
        _reward_accuracy(results),
        _policy_wins(results),
        _policy_against_best_of_n(results),
        _tax_is_real(results),
        _tax_undone(results),
    ]
    return tuple(claim for claim in found if claim is not None)


def tax_undone(results: Results) -> float | None:
    """The share of PPO's rise in bits per byte that ptx takes back; None if there is no rise to take back."""
    ppo, ptx = _rise(results, schema.PPO), _rise(results, schema.PPO_PTX)
    return None if ppo is None or ptx is None or ppo <= 0 else 1 - ptx / ppo


def percent(share: float, digits: int = 1) -> str:
    """0.853 -> "85.3 %"."""
    return f"{100 * share:.{digits}f} %"


def interval_percent(estimate: Estimate, digits: int = 1) -> str:
    """ "85.3 % (81.2–88.9)"."""
    low, high = 100 * estimate.low, 100 * estimate.high
    return f"{percent(estimate.value, digits)} ({low:.{digits}f}–{high:.{digits}f})"


def _sft_follows(results: Results) -> Claim | None:
    sft = results.stage(schema.SFT)
    if sft is None or sft.follows is None:
        return None
    found = f"{interval_percent(sft.follows)} of {sft.follows.count:,} prompts"
    target = f"SFT follows at least {percent(SFT_FOLLOWS, 0)} of held-out instructions"
    return Claim(target, found, sft.follows.value >= SFT_FOLLOWS)


def _base_is_behind(results: Results) -> Claim | None:
    base, sft = results.stage(schema.BASE), results.stage(schema.SFT)
    if base is None or sft is None or base.follows is None or sft.follows is None:
        return None
    found = f"{interval_percent(base.follows)} against {percent(sft.follows.value)}"
    target = "The base model with few-shot prompting follows at most half of what SFT follows"
    return Claim(target, found, base.follows.value <= BASE_SHARE * sft.follows.value)


def _reward_accuracy(results: Results) -> Claim | None:
    reward = results.reward
    if reward is None or reward.gold_accuracy is None:
        return None
    found = f"{interval_percent(reward.gold_accuracy)} of {reward.gold_accuracy.count:,} pairs"
    if reward.label_accuracy is not None and reward.labeler_agreement is not None:
        noisy, people = reward.label_accuracy.value, reward.labeler_agreement.value
        found += f"; {percent(noisy)} on noisy labels, where two labelers agree on {percent(people)}"
    target = f"The reward model orders at least {percent(REWARD_ACCURACY, 0)} of pairs as gold does"
    return Claim(target, found, reward.gold_accuracy.value >= REWARD_ACCURACY)


def _policy_wins(results: Results) -> Claim | None:
    policy = results.stage(schema.PPO_PTX)
    if policy is None or policy.win_rate is None or policy.kl_nats is None:
        return None
    found = f"{interval_percent(policy.win_rate)} at a mean KL of {policy.kl_nats.value:.1f} nats"
    target = f"PPO-ptx beats SFT in at least {percent(WIN_RATE, 0)} of comparisons within {MAX_KL_NATS:.0f} nats"
    met = policy.win_rate.value >= WIN_RATE and policy.kl_nats.value <= MAX_KL_NATS
    return Claim(target, found, met)


def _policy_against_best_of_n(results: Results) -> Claim | None:
    policy, best = results.stage(schema.PPO_PTX), results.stage(f"{schema.BEST_OF_N}4")
    if policy is None or best is None or policy.gold is None or best.gold is None:
        return None
    found = f"gold score {_plain(policy.gold)} against {_plain(best.gold)}"
    difference = policy.gold_over_best
    if difference is None:
        return Claim("PPO-ptx is not below best-of-4", found, policy.gold.value >= best.gold.value)
    # The same prompts were answered by both, so the paired difference is what the interval is of.
    found += f"; paired difference {difference.value:+.2f} ({difference.low:+.2f} to {difference.high:+.2f})"
    return Claim("PPO-ptx is not below best-of-4", found, difference.high >= 0)


def _tax_is_real(results: Results) -> Claim | None:
    stage = results.stage(schema.PPO)
    rise = _rise(results, schema.PPO)
    if stage is None or rise is None:
        return None
    paired = stage.bits_per_byte_rise
    interval = "" if paired is None else f" ({paired.low:+.4f} to {paired.high:+.4f})"
    target = "PPO without ptx pays an alignment tax: held-out bits per byte rise"
    return Claim(target, f"{rise:+.4f}{interval} bits per byte", rise > 0)


def _tax_undone(results: Results) -> Claim | None:
    undone = tax_undone(results)
    if undone is None:
        return None
    target = f"ptx undoes at least {percent(TAX_UNDONE, 0)} of that tax"
    return Claim(target, f"{percent(undone)} of the rise", undone >= TAX_UNDONE)


def _rise(results: Results, name: str) -> float | None:
    """Bits per byte above SFT's: the paired measurement if there is one, else the difference of the two."""
    stage, sft = results.stage(name), results.stage(schema.SFT)
    if stage is None:
        return None
    if stage.bits_per_byte_rise is not None:
        return stage.bits_per_byte_rise.value
    return _difference(stage, sft)


def _difference(stage: StageResult, sft: StageResult | None) -> float | None:
    if sft is None or stage.bits_per_byte is None or sft.bits_per_byte is None:
        return None
    return stage.bits_per_byte.value - sft.bits_per_byte.value


def _plain(estimate: Estimate) -> str:
    return f"{estimate.value:.2f} ({estimate.low:.2f}–{estimate.high:.2f})"
