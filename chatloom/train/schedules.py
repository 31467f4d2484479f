"""Learning-rate schedules as pure functions of the step: no state, so nothing to save and nothing to resume.

`factor` is what the base learning rate is multiplied by. Every schedule warms up linearly first and falls to
`final_ratio`. Sources: cosine (Loshchilov and Hutter 2016), warm-up-stable-decay with the 1 - sqrt cooldown
(Hu et al. 2024, MiniCPM; Hägele et al. 2024, section 4), warm-down (nanochat: constant, then linear over most of
the run).
"""

import math

SCHEDULES = ("constant", "linear", "cosine", "wsd", "warmdown")
DECAY_FRACTIONS = {"wsd": 0.2, "warmdown": 0.65}  # of the whole run, at its end


def factor(
    name: str,
    step: int,
    total_steps: int,
    *,
    warmup_steps: int = 0,
    warmup_start: float = 0.0,
    final_ratio: float = 0.0,
    decay_fraction: float | None = None,
) -> float:
    """The multiplier of the learning rate for update number `step`, counted from 0.

    Args:
        name: one of `SCHEDULES`.
        total_steps: updates in the whole run; a later step has the last one's factor.
        warmup_steps: updates before the first with the full rate.
        warmup_start: where the ramp starts (InstructGPT's PPO: a tenth); update 0 is one increment above it.
        final_ratio: what remains at the end.
        decay_fraction: the last part of the run in which `wsd` and `warmdown` fall; None is `DECAY_FRACTIONS`.
    """
    if name not in SCHEDULES:
        raise ValueError(f"schedule {name!r} is unknown; allowed: {', '.join(SCHEDULES)}")
    if step < warmup_steps:
        return warmup_start + (1 - warmup_start) * (step + 1) / (warmup_steps + 1)
    if name == "constant":
        return 1.0
    start: float = warmup_steps
    if name in DECAY_FRACTIONS:
        fraction = DECAY_FRACTIONS[name] if decay_fraction is None else decay_fraction
        start = max(start, total_steps * (1 - fraction))
    progress = min(max(0.0, (step - start) / max(1.0, total_steps - start)), 1.0)
    if name == "cosine":
        remaining = 0.5 * (1 + math.cos(math.pi * progress))
    elif name == "wsd":
        remaining = 1 - math.sqrt(progress)
    else:
        remaining = 1 - progress
    return final_ratio + (1 - final_ratio) * remaining
