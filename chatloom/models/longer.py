"""A model opened for a context longer than it was trained on.

Rotary positions are what can be stretched; the factor s is the new length over the trained one.

* `linear`: all angles are divided by s, so that no distance is larger than in training (Chen et al. 2023, position
  interpolation). Needs fine-tuning at the new length.
* `ntk`: the base grows to base * s^(D / (D - 2)), D channels being turned: the slowest pair turns s times slower and
  the fastest as before (bloc97 2023; Peng et al. 2023, section 3.1). Once, for the new length: a base that moved with
  the text would leave cached keys behind. In a config it is a larger `rope_theta` and nothing else.
* `yarn`: by the wavelength of each pair, and all attention a little sharper (Peng et al. 2023, sections 3.2 and 3.3).
  The one that costs least without fine-tuning.

The config goes with the model when it is saved, so no later stage is asked again.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

from chatloom.nn.rope_scaling import RopeScaling

SCALINGS = ("linear", "ntk", "yarn")


@dataclass(frozen=True)
class ContextConfig:
    """For how long a text a model is opened."""

    # Tokens of context, more than the model was trained on. None: the model's own.
    context_length: int | None = None
    # How rotary positions are stretched to it (Chen et al. 2023; bloc97 2023; Peng et al. 2023). "linear" needs
    # fine-tuning at that length, which "ntk" and "yarn" gain by. Models with ALiBi need none.
    rope_scaling: Literal["linear", "ntk", "yarn"] | None = None

    def __post_init__(self) -> None:
        if self.rope_scaling is not None and self.rope_scaling not in SCALINGS:
            raise ValueError(f"rope_scaling is {self.rope_scaling!r}; allowed: {', '.join(SCALINGS)}")
        if self.rope_scaling is not None and self.context_length is None:
            raise ValueError(f"rope_scaling {self.rope_scaling!r} needs context_length, the length to stretch to")
        if self.context_length is not None and self.context_length < 1:
            raise ValueError(f"context_length is {self.context_length}; it must be at least 1")

    def __bool__(self) -> bool:
        return self.context_length is not None


def longer(config: Any, context: ContextConfig) -> Any:
    """A family's config for the longer context. ValueError where positions do not reach, or have been stretched."""
    trained, wanted, kind = config.context_length, context.context_length, context.rope_scaling
    if wanted is None or (wanted == trained and kind is None):
        return config
    asked = f"context_length is {wanted}, and the model was trained on {trained} tokens"
    if wanted <= trained:
        raise ValueError(f"{asked}, which is no less; leave context_length and rope_scaling out")
    if config.ENDLESS_POSITIONS:
        if kind is not None:
            raise ValueError(f"a {config.MODEL_TYPE} has ALiBi, which needs no rope_scaling; give context_length alone")
        return replace(config, context_length=wanted)
    allowed = config.ROPE_SCALINGS
    if not allowed:
        raise ValueError(
            f"{asked}; a {config.MODEL_TYPE} has no positions beyond those that could be stretched, so choose a model "
            "with a longer context"
        )
    if config.rope_scaling is not None:
        raise ValueError(
            f"{asked} with rotary positions that are stretched already ({config.rope_scaling.rope_type}); start from "
            "the model without that, or choose one with a longer context"
        )
    if kind not in allowed:
        given = "no rope_scaling" if kind is None else f"rope_scaling {kind!r}"
        raise ValueError(f"{asked}: {given} is given; for a {config.MODEL_TYPE} it must be {' or '.join(allowed)}")
    factor = wanted / trained
    if kind == "ntk":
        turned = int(config.head_width * getattr(config, "rotary_share", 1.0))
        if turned <= 2:
            raise ValueError(f"{asked}: ntk slows pairs of channels, but not the first, and a head has no other here")
        theta = config.rope_theta * factor ** (turned / (turned - 2))
        return replace(config, context_length=wanted, rope_theta=theta)
    original = trained if kind == "yarn" else None
    scaling = RopeScaling(str(kind), factor, original_max_position_embeddings=original)
    return replace(config, context_length=wanted, rope_scaling=scaling)
