"""Every family that GGUF has a name for comes back as it was; what would come back as another is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from chatloom import checkpoint, models
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.gguf.architectures import ARCHITECTURES, RUN_AS
from chatloom.models import FAMILIES, Decoder
from chatloom.nn.rope_scaling import RopeScaling
from chatloom.stages.export import write_gguf
from chatloom.testing.models import tiny_config
from chatloom.testing.tokenizer import byte_tokenizer

CHAT = ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)
TOKENS = torch.arange(20, 60)[None]
WRITTEN = [*ARCHITECTURES, *RUN_AS]
# What GGUF takes for granted.
OWN: dict[str, dict[str, Any]] = {
    "mistral": {"window": None},
    "qwen2": {"window": None},
    "qwen3": {"window": None},
    "mixtral": {"window": None},
    "qwen3_moe": {"window": None},
    "gemma2": {"query_scale": 8, "tie_embeddings": True},
    "gemma3_text": {"query_scale": 8},
}


def drawn(family: str, **changes: Any) -> Decoder:
    torch.manual_seed(0)
    model = models.build(tiny_config(family, **(OWN.get(family, {}) | changes)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    return model.eval()


def written(path: Path, model: Decoder) -> Path:
    write_gguf(path, checkpoint.Pretrained(model, CHAT, {}), "fp32", name="tiny")
    return path


def _named(value: Any) -> str:
    return "-".join(value) if isinstance(value, dict) else str(value)


VARIANTS: list[tuple[str, dict[str, Any]]] = [
    *((family, {}) for family in WRITTEN),
    *((family, {"tie_embeddings": True}) for family in WRITTEN),
    ("llama", {"attention_bias": True, "feedforward_bias": True}),
    ("llama", {"own_head_width": 16}),
    ("llama", {"rope_scaling": RopeScaling("linear", factor=2.0)}),
    ("gemma3_text", {"rope_scaling": RopeScaling("linear", factor=8.0), "rope_theta": 5e5}),
    ("llama", {"rope_scaling": RopeScaling("yarn", factor=4.0, original_max_position_embeddings=32)}),
    ("llama", {"rope_scaling": RopeScaling("llama3", 8.0, 8192, 1.0, 4.0), "rope_theta": 1e6}),
    ("mistral", {"window": 64}),  # as long as the context, so that it hides nothing
    ("qwen2", {"window": 5, "window_from_layer": 28}),  # beyond the last layer
    ("stablelm", {"attention_bias": True}),
    ("mixtral", {"num_experts": 3, "experts_per_token": 1}),
    ("mixtral", {"load_balancing": 0.01, "router_z": 0.001}),
    ("qwen3_moe", {"own_head_width": 16, "rope_scaling": RopeScaling("yarn", 4.0, 32)}),
    ("glm4", {"attention_bias": False, "own_head_width": 16}),
    ("glm4", {"rotary_share": 1.0}),
    ("gpt_bigcode", {"inner_width": None}),
    ("gpt_neox", {"parallel": False}),
]


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=_named)
def test_a_family_comes_back_as_it_was(family: str, changes: dict[str, Any], tmp_path: Path) -> None:
    model = drawn(family, **changes)
    again = checkpoint.load_pretrained(written(tmp_path / "m.gguf", model)).model
    with torch.no_grad():
        assert torch.equal(model(TOKENS), again(TOKENS))


@pytest.mark.parametrize("family", sorted(FAMILIES.keys() - set(WRITTEN)))
def test_a_family_that_gguf_has_no_name_for_is_refused(family: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"{family} cannot be written as GGUF; known: llama.*--to hf"):
        written(tmp_path / "m.gguf", drawn(family))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("family", "changes", "part"),
    [
        ("mistral", {"window": 5}, "window=5"),
        ("qwen2", {"window": 5, "window_from_layer": 1}, "window=5"),
        ("mixtral", {"window": 5}, "window=5"),
        ("qwen3_moe", {"renormalise": False}, "renormalise=False"),
        ("gpt_bigcode", {"activation": "relu"}, "activation='relu'"),
        ("gemma2", {"query_scale": 32}, "query_scale=32"),
        ("gemma3_text", {"full_every": 2}, "full_every=2"),
        ("gpt2", {"activation": "gelu"}, "activation='gelu'"),
        ("gemma2", {"tie_embeddings": False}, "no name for lm_head.weight"),
        ("llama", {"rope_scaling": RopeScaling("llama3", 8.0, 32, 1.0, 4.0)}, "with other numbers"),
        ("llama", {"rope_scaling": RopeScaling("dynamic", factor=2.0)}, "'dynamic' cannot be written"),
    ],
    ids=_named,
)
def test_what_would_come_back_as_another_model_is_refused(
    family: str, changes: dict[str, Any], part: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=part):
        written(tmp_path / "m.gguf", drawn(family, **changes))
