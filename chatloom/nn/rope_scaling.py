"""Rotary frequencies for contexts longer than a model was first trained on, by the names that config files give them.

* `linear`: every angle is divided by `factor` (Chen et al. 2023, position interpolation, eq. 4).
* `dynamic`: the base grows with the length of what is read beyond the trained context ("NTK-aware", see Peng et al.
  2023, appendix B.1). Up to the trained context, the only length that a model reads here, it changes nothing: a base
  that moves while a text grows would turn cached keys and full ones by different angles.
* `yarn`: fast channels stay, slow ones are interpolated, those between are mixed (Peng et al. 2023, section 3.2), and
  all are scaled for the longer context's softer attention (section 3.3).
* `longrope`: every pair has a divisor of its own, one table for rows within the trained context and one for longer ones
  (Ding et al. 2024; Phi-3). Here rows are within it, for the reason given for `dynamic`.
* `llama3`: as yarn's, with bounds in wavelengths and no scaling (Llama 3.1; Grattafiori et al. 2024, section 3.4.1).
"""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

KINDS = ("linear", "dynamic", "yarn", "llama3", "longrope")
_NEEDED = {
    "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "longrope": ("short_factor", "long_factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class RopeScaling:
    """The fields are those of a `config.json`; None stands for what is absent there."""

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float | None = None
    beta_slow: float | None = None
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True
    short_factor: tuple[float, ...] | None = None
    long_factor: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.rope_type not in KINDS:
            raise ValueError(f"rope scaling {self.rope_type!r} is not supported; allowed: default, {', '.join(KINDS)}")
        missing = [name for name in _NEEDED.get(self.rope_type, ()) if getattr(self, name) is None]
        if missing:
            raise ValueError(f"rope scaling {self.rope_type!r} needs {', '.join(missing)}")

    def to_dict(self) -> dict[str, Any]:
        """What stands in a `config.json`."""
        found = {name: value for name, value in asdict(self).items() if value is not None}
        return {name: value for name, value in found.items() if name != "truncate" or value is False}

    def scaled(self, frequencies: Tensor, *, theta: float, context_length: int) -> tuple[Tensor, float]:
        """Turns a token of each channel pair (D/2,), and the factor on cosines and sines."""
        original = self.original_max_position_embeddings or context_length
        if self.rope_type == "linear":
            return frequencies / self.factor, 1.0
        if self.rope_type == "llama3":
            return self._llama3(frequencies, original), 1.0
        if self.rope_type == "longrope":
            return self._longrope(frequencies), self._longrope_magnitude(original)
        if self.rope_type == "yarn":
            return self._yarn(frequencies, theta, original), self._magnitude()
        return frequencies, 1.0

    def _llama3(self, frequencies: Tensor, original: int) -> Tensor:
        assert self.low_freq_factor is not None
        assert self.high_freq_factor is not None
        turns = original * frequencies / (2 * math.pi)  # of each pair over the trained context
        share = (turns - self.low_freq_factor) / (self.high_freq_factor - self.low_freq_factor)
        return frequencies * torch.lerp(
            torch.full_like(share, 1 / self.factor), torch.ones_like(share), share.clamp(0, 1)
        )

    def _longrope(self, frequencies: Tensor) -> Tensor:
        assert self.short_factor is not None
        if len(self.short_factor) != len(frequencies):
            raise ValueError(f"short_factor has {len(self.short_factor)} numbers; there are {len(frequencies)} pairs")
        return frequencies / torch.tensor(self.short_factor, dtype=torch.float32)

    def _longrope_magnitude(self, original: int) -> float:
        if self.attention_factor is not None:
            return self.attention_factor
        return 1.0 if self.factor <= 1 else math.sqrt(1 + math.log(self.factor) / math.log(original))

    def _yarn(self, frequencies: Tensor, theta: float, original: int) -> Tensor:
        pairs = len(frequencies)

        def pair_that_turns(times: float) -> float:
            """The (fractional) pair that turns so often over the trained context."""
            return pairs * math.log(original / (times * 2 * math.pi)) / math.log(theta)

        first, last = pair_that_turns(self.beta_fast or 32), pair_that_turns(self.beta_slow or 1)
        if self.truncate:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, 2 * pairs - 1)
        slow = ((torch.arange(pairs, dtype=torch.float32) - first) / max(last - first, 0.001)).clamp(0, 1)
        return frequencies * torch.lerp(torch.ones_like(slow), torch.full_like(slow, 1 / self.factor), slow)

    def _magnitude(self) -> float:
        if self.attention_factor is not None:
            return self.attention_factor

        def growth(weight: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return growth(self.mscale) / growth(self.mscale_all_dim)
        return growth(1.0)
