"""How generation keeps keys and values: in which type, and of which tokens."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from chatloom.models import Decoder
from chatloom.nn.attention import Attention
from chatloom.nn.paged import Paged
from chatloom.nn.quantised_cache import Quantised
from chatloom.nn.sinks import Kept, QuantisedSinks, Sinks

KV_DTYPES = ("int8",)
_SINKS = 4  # Xiao et al. 2023, table 2: more gain nothing


@dataclass(frozen=True)
class CacheConfig:
    """How generation keeps keys and values."""

    # "int8" keeps keys and values in eight bits, half the bytes of bf16. None: in the type that is computed in.
    kv_dtype: Literal["int8"] | None = None
    # A token sees so many before it, itself among them, and the first ones of its text: so a text may go on for ever
    # in the same memory (Xiao et al. 2023). For rotary positions and ALiBi. None: a token sees all, within the context.
    attention_window: int | None = None
    # How many first tokens stay in sight of such a window.
    attention_sinks: int = _SINKS

    def __post_init__(self) -> None:
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            raise ValueError(f"kv_dtype is {self.kv_dtype!r}; allowed: None (as computed), {', '.join(KV_DTYPES)}")
        if self.attention_window is not None and self.attention_window < 1:
            raise ValueError(f"attention_window is {self.attention_window}; it must be at least 1, or None")
        if self.attention_sinks < 0:
            raise ValueError(f"attention_sinks is {self.attention_sinks}; it must be at least 0")
        if self.attention_window is None and self.attention_sinks != _SINKS:
            raise ValueError("attention_sinks would be ignored: it belongs to attention_window, which is None")

    @property
    def options(self) -> dict[str, Any]:
        """As the arguments of an `Engine`."""
        return {"kv_dtype": self.kv_dtype, "window": self.attention_window, "sinks": self.attention_sinks}

    @property
    def kept(self) -> Kept | None:
        """Which tokens of a text are kept; None is all."""
        return None if self.attention_window is None else Kept(self.attention_window, self.attention_sinks)

    def check(self, model: Decoder) -> None:
        """ValueError for a model that no window can be put on."""
        kept, context = self.kept, model.config.context_length
        if kept is None:
            return
        has_alibi = any(module.rule.alibi for module in model.modules() if isinstance(module, Attention))
        if model.position_embedding is not None or not (has_alibi or any(model.rotaries())):
            raise ValueError(
                "attention_window needs positions that are distances, rotary ones or ALiBi; this model has learned "
                "ones, which end with its context"
            )
        if kept.window + kept.sinks > context:
            raise ValueError(
                f"attention_window {kept.window} and {kept.sinks} sinks exceed the model's context of {context}; "
                f"make the window at most {context - kept.sinks}"
            )
        if model.prefix is not None:
            raise ValueError(
                "attention_window does not go with virtual tokens before the text (prompt or prefix tuning); leave it "
                "out, or use a model without"
            )

    def cache(self, model: Decoder) -> Callable[..., Paged]:
        """What makes the cache that a model decodes with. ValueError as for `check`."""
        self.check(model)
        if self.kept is None:
            return Paged if self.kv_dtype is None else Quantised
        return partial(Sinks if self.kv_dtype is None else QuantisedSinks, kept=self.kept, rotaries=model.rotaries())


PLAIN = CacheConfig()
