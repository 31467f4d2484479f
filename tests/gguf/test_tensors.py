"""The experts of a layer are one tensor in GGUF."""

from pathlib import Path

import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from chatloom import checkpoint, models
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.gguf.architectures import ARCHITECTURES
from chatloom.gguf.container import read_container
from chatloom.gguf.tensors import as_gguf, as_huggingface, tensor_names
from chatloom.stages.export import write_gguf
from chatloom.testing.models import tiny_config
from chatloom.testing.tokenizer import byte_tokenizer

CHAT = ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
@pytest.mark.parametrize("kind", ["bf16", "q8_0"])
def test_experts_are_stacked_and_their_router_stays_exact(family: str, kind: str, tmp_path: Path) -> None:
    model = models.build(tiny_config(family, window=None, inner_width=64, num_experts=3, experts_per_token=2))
    write_gguf(tmp_path / "m.gguf", checkpoint.Pretrained(model, CHAT, {}), kind, name="tiny")
    tensors = read_container(tmp_path / "m.gguf").tensors
    wanted = Kind.BF16 if kind == "bf16" else Kind.Q8_0
    for part, shape in (("gate", (3, 64, 32)), ("up", (3, 64, 32)), ("down", (3, 32, 64))):
        stacked = tensors[f"blk.1.ffn_{part}_exps.weight"]
        assert (stacked.shape, stacked.kind) == (shape, wanted)
    assert tensors["blk.1.ffn_gate_inp.weight"].kind == Kind.F32
    again = checkpoint.load_pretrained(tmp_path / "m.gguf").model
    assert again.embedding.weight.dtype == (torch.bfloat16 if kind == "bf16" else torch.float32)
    for name, tensor in model.state_dict().items():
        assert (again.state_dict()[name].float() - tensor).abs().max() <= 0.01 * tensor.abs().max(), name


def test_what_a_file_says_of_experts_is_not_believed(tmp_path: Path) -> None:
    row = ARCHITECTURES["mixtral"]
    names = tensor_names(models.family("mixtral"), row.name, 1)
    stack = torch.empty(513, 4, 4, device="meta")
    with pytest.raises(ValueError, match=r"ffn_up_exps\.weight is 513 experts; at most 512"):
        list(as_huggingface("blk.0.ffn_up_exps.weight", stack, names, row, {}))
    found = [name for name, _ in as_huggingface("blk.0.ffn_up_exps.weight", stack[:2], names, row, {})]
    assert found == [f"model.layers.0.block_sparse_moe.experts.{number}.w3.weight" for number in (0, 1)]
    with pytest.raises(ValueError, match=r"no name for model\.layers\.0\.block_sparse_moe\.experts\.7\.w3"):
        as_gguf({"model.layers.0.block_sparse_moe.experts.7.w3.weight": torch.zeros(1, 1)}, names, row, {})
    model = models.build(tiny_config("mixtral", window=None, num_experts=3, experts_per_token=1))
    write_gguf(tmp_path / "m.gguf", checkpoint.Pretrained(model, CHAT, {}), "fp32", name="tiny")
    whole = (tmp_path / "m.gguf").read_bytes()
    for claimed in (2, 4, 2**31):
        before, after = (
            b"llama.expert_count\x04\x00\x00\x00" + number.to_bytes(4, "little") for number in (3, claimed)
        )
        assert whole.count(before) == 1
        (tmp_path / "m.gguf").write_bytes(whole.replace(before, after))
        with pytest.raises(ValueError, match="experts"):
            checkpoint.load_pretrained(tmp_path / "m.gguf")
