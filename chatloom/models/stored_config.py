"""A family's config as a `config.json`, written and read by one table of names.

A config that is read may lack a key: then the value is the one that transformers' class would take (`ABSENT`), or the
field's default. A key that asks for what a family here does not do (`FIXED`) is an error, never overlooked.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Self

from chatloom.nn.feedforward import ACTIVATIONS


class StoredConfig:
    """What the config dataclasses of the families inherit."""

    MODEL_TYPE: ClassVar[str]
    ARCHITECTURE: ClassVar[str]
    # Key of `config.json` -> our field.
    KEYS: ClassVar[Mapping[str, str]]
    # Key of `config.json` -> the values that are allowed; the first is written, and stands for an absent key.
    FIXED: ClassVar[Mapping[str, tuple[Any, ...]]] = {}
    # Our field -> its value where the key is absent.
    ABSENT: ClassVar[Mapping[str, Any]] = {}
    REQUIRED: ClassVar[tuple[str, ...]] = ("vocab_size", "num_layers", "width", "num_heads")
    # How its rotary positions may be stretched so that transformers' class reads it too (`longer`), and whether it has
    # positions of every length without.
    ROPE_SCALINGS: ClassVar[tuple[str, ...]] = ()
    ENDLESS_POSITIONS: ClassVar[bool] = False

    def to_huggingface(self) -> dict[str, Any]:
        """The `config.json` that transformers expects."""
        return {
            "model_type": self.MODEL_TYPE,
            "architectures": [self.ARCHITECTURE],
            **{stored: getattr(self, ours) for stored, ours in self.KEYS.items()},
            **{stored: allowed[0] for stored, allowed in self.FIXED.items()},
        }

    @classmethod
    def from_huggingface(cls, data: dict[str, Any]) -> Self:
        """Read a `config.json`. ValueError for a feature that is not here, KeyError for a missing size."""
        for stored, allowed in cls.FIXED.items():
            if data.get(stored, allowed[0]) not in allowed:
                shown = ", ".join(map(repr, allowed))
                raise ValueError(
                    f"a {cls.MODEL_TYPE} with {stored}={data[stored]!r} is not supported; allowed: {shown}"
                )
        return cls(**cls._fields(data))

    @classmethod
    def _fields(cls, data: dict[str, Any]) -> dict[str, Any]:
        """The arguments of the dataclass; a family adds what is no plain copy."""
        fields = {}
        for stored, ours in cls.KEYS.items():
            if stored in data:
                fields[ours] = data[stored]
            elif ours in cls.REQUIRED:
                raise KeyError(stored)
            elif ours in cls.ABSENT:
                fields[ours] = cls.ABSENT[ours]
            if ours == "activation" and fields.get(ours, "gelu") not in ACTIVATIONS:
                raise ValueError(f"{stored}={data[stored]!r} is not supported; allowed: {', '.join(ACTIVATIONS)}")
        return fields


class PlainHeads:
    """What the configs of GPT-2's relatives share: as many key/value heads as heads, `width` divided among them."""

    width: int
    num_heads: int

    def __post_init__(self) -> None:
        if self.width % self.num_heads:
            raise ValueError(f"width {self.width} must be a multiple of num_heads {self.num_heads}")

    @property
    def num_key_value_heads(self) -> int:
        """As many as query heads."""
        return self.num_heads

    @property
    def head_width(self) -> int:
        """Channels of one head."""
        return self.width // self.num_heads


def full_attention_every(data: dict[str, Any], usual: int) -> int:
    """Every how many layers one sees everything and not a window alone, from `layer_types`. ValueError if irregular."""
    types = data.get("layer_types")
    if types is None:
        return int(data.get("sliding_window_pattern", usual))
    every = types.index("full_attention") + 1 if "full_attention" in types else max(usual, len(types) + 1)
    pattern = ["sliding_attention" if (layer + 1) % every else "full_attention" for layer in range(len(types))]
    if list(types) != pattern:
        raise ValueError(f"layer_types {types} is not supported; allowed: full_attention at every n-th layer")
    return every
