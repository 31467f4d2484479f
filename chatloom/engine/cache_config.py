"""How generation keeps keys and values: in which type, and how many of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from chatloom.models import Decoder
from chatloom.nn.paged import Paged
from chatloom.nn.quantised_cache import Quantised

KV_DTYPES = ("int8",)


@dataclass(frozen=True)
class CacheConfig:
    """How generation keeps keys and values."""

    # "int8" keeps keys and values in eight bits, half the bytes of bf16. None: in the type that is computed in.
    kv_dtype: Literal["int8"] | None = None

    def __post_init__(self) -> None:
        if self.kv_dtype is not None and self.kv_dtype not in KV_DTYPES:
            raise ValueError(f"kv_dtype is {self.kv_dtype!r}; allowed: None (as computed), {', '.join(KV_DTYPES)}")

    @property
    def options(self) -> dict[str, Any]:
        """As the arguments of an `Engine`."""
        return {"kv_dtype": self.kv_dtype}

    def cache(self, model: Decoder) -> Callable[..., Paged]:
        """What makes the cache that a model decodes with."""
        return Paged if self.kv_dtype is None else Quantised


PLAIN = CacheConfig()
