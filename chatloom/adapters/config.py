"""Options of adapters, the same for every stage that trains with one."""

from dataclasses import dataclass
from typing import Literal

ADAPTERS = ("lora", "prompt", "prefix")
EVERY_LAYER = "all"
# Which adapters an option belongs to; with another one it would be ignored, which is an error.
_BELONGS_TO = {
    **dict.fromkeys(("rank", "alpha", "targets", "dropout", "rslora", "dora"), ("lora",)),
    "tokens": ("prompt", "prefix"),
    "merge": ("lora",),
}


@dataclass(frozen=True)
class AdapterConfig:
    """How a model is adapted; without `adapter` all its weights are trained."""

    # "lora": low-rank updates of the blocks' matrices (Hu et al. 2021); "prompt": trained embeddings before the text
    # (Lester et al. 2021); "prefix": trained keys and values in every layer (Li and Liang 2021). The model's own
    # weights stay as they are, so the learning rate may be ten times that of training them all (LoRA: 1e-4 to 5e-4).
    adapter: Literal["lora", "prompt", "prefix"] | None = None
    # Rank r of LoRA's update B A.
    adapter_rank: int = 16
    # The update is multiplied by alpha / r.
    adapter_alpha: float = 32.0
    # Linear layers that LoRA is put on, by the end of their module path, in our names (query, feedforward.up) or
    # Hugging Face's (q_proj, c_attn). "all": every linear layer of the blocks (Dettmers et al. 2023, section 4), but
    # of a mixture neither experts nor router.
    adapter_targets: tuple[str, ...] = (EVERY_LAYER,)
    # Dropout of what LoRA reads. Not in PPO.
    adapter_dropout: float = 0.0
    # Multiply by alpha / sqrt(r), so that a high rank learns as fast as a low one (Kalajdzievski 2023, theorem 3.2).
    adapter_rslora: bool = False
    # Learn the length of each row of the matrix apart from its direction (DoRA: Liu et al. 2024, eq. 5).
    adapter_dora: bool = False
    # Virtual tokens of prompt and prefix tuning; they take their place in the context.
    adapter_tokens: int = 20
    # Write the model with LoRA merged into it, instead of the adapter alone.
    adapter_merge: bool = False

    def __post_init__(self) -> None:
        if self.adapter is not None and self.adapter not in ADAPTERS:
            raise ValueError(f"adapter is {self.adapter!r}; it must be one of {', '.join(ADAPTERS)}, or None")
        for name, adapters in _BELONGS_TO.items():
            field = f"adapter_{name}"
            if self.adapter not in adapters and getattr(self, field) != getattr(type(self), field):
                raise ValueError(
                    f"{field} would be ignored with adapter={self.adapter}; it belongs to {' and '.join(adapters)}"
                )
        for name in ("rank", "tokens"):
            if getattr(self, f"adapter_{name}") < 1:
                raise ValueError(f"adapter_{name} is {getattr(self, f'adapter_{name}')}; it must be at least 1")
        if not self.adapter_alpha > 0:
            raise ValueError(f"adapter_alpha is {self.adapter_alpha}; it must be above 0")
        if not 0 <= self.adapter_dropout < 1:
            raise ValueError(f"adapter_dropout is {self.adapter_dropout}; it must be at least 0 and below 1")
        if not self.adapter_targets:
            raise ValueError(f'adapter_targets is empty; name linear layers, or "{EVERY_LAYER}"')

    @property
    def scale(self) -> float:
        """What LoRA's update is multiplied by."""
        return scale(self.adapter_alpha, self.adapter_rank, rslora=self.adapter_rslora)


def scale(alpha: float, rank: int, *, rslora: bool) -> float:
    """alpha / r (Hu et al. 2021, section 4.1), or alpha / sqrt(r)."""
    return float(alpha / (rank**0.5 if rslora else rank))
