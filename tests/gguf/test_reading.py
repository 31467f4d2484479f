"""GGUF files that the test writes, of every type that is read, against formulas and against transformers."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

import chatloom
from chatloom import checkpoint
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.gguf.container import StoredTensor, read_container
from chatloom.gguf.reading import KINDS, dequantise
from chatloom.models import Decoder, build, gpt2, llama
from chatloom.stages.export import write_gguf
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

CHAT = ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE)
TOKENS = torch.arange(20, 60)[None]


def opened(model: Decoder) -> checkpoint.Pretrained:
    return checkpoint.Pretrained(model, CHAT, {})


def write(path: Path, model: Decoder, kind: str = "fp32") -> Path:
    write_gguf(path, opened(model), kind, name="tiny")
    return path


def stored(kind: Kind, blocks: int = 4) -> StoredTensor:
    """Random bytes with scales that are ordinary numbers."""
    block, num_bytes = gguf.GGML_QUANT_SIZES[kind]
    data = np.random.default_rng(0).integers(0, 255, (2, blocks * num_bytes), dtype=np.uint8)
    if kind not in (Kind.F32, Kind.F16, Kind.BF16):
        scales = np.random.default_rng(1).random((2, blocks, num_bytes // 2)).astype(np.float16)
        halves = data.reshape(2, blocks, num_bytes)
        for place in {Kind.Q6_K: (-2,), Kind.Q3_K: (-2,), Kind.Q2_K: (-4, -2)}.get(kind, (0, 2)):
            end = None if place == -2 else place + 2
            halves[:, :, place:end] = scales[:, :, :1].view(np.uint8)
    else:
        width = {Kind.F32: np.float32, Kind.F16: np.float16}.get(kind)
        values = np.random.default_rng(2).standard_normal((2, blocks)).astype(np.float32)
        data = (
            values.astype(width).view(np.uint8)
            if width
            else (values.view(np.uint32) >> 16).astype("<u2").view(np.uint8)
        )
    return StoredTensor("x", (2, blocks * block), kind, data)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_every_type_is_dequantised_as_the_gguf_package_does(kind: Kind) -> None:
    given = stored(kind)
    expected = gguf.quants.dequantize(given.data, kind)
    found = dequantise(given)
    assert found.shape == given.shape
    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), expected.reshape(given.shape), equal_nan=True)


def test_the_simple_types_by_their_formulas() -> None:
    """Blocks of 32: q8_0 is d * q; q4_0 is d * (q - 8), low halves of the bytes first; q4_1 is d * q + m."""
    for kind in (Kind.Q8_0, Kind.Q4_0, Kind.Q4_1):
        given = stored(kind)
        found = dequantise(given).reshape(-1, 32)
        for block, values in zip(given.data.reshape(len(found), -1), found.tolist()):
            scale = float(block[:2].view(np.float16)[0])
            if kind == Kind.Q8_0:
                expected = [scale * int(q) for q in block[2:].view(np.int8)]
            elif kind == Kind.Q4_0:
                expected = [scale * (int(q) - 8) for q in (*(block[2:] & 15), *(block[2:] >> 4))]
            else:
                least = float(block[2:4].view(np.float16)[0])
                expected = [scale * int(q) + least for q in (*(block[4:] & 15), *(block[4:] >> 4))]
            assert values == pytest.approx(expected, rel=1e-6)


def test_a_model_comes_back_as_it_was(tmp_path: Path) -> None:
    """Run -> GGUF in fp32 -> load: the same logits, tokens, template and stops, bit for bit."""
    model = tiny_llama().eval()
    again = chatloom.load(write(tmp_path / "m.gguf", model))
    assert torch.equal(model(TOKENS), again.model(TOKENS))
    assert again.model.config == model.config
    assert again.tokenizer.digest() == CHAT.tokenizer.digest()
    assert again.chat_format.template.source == CHAT.template.source
    assert again.chat_format.stop_tokens == CHAT.stop_tokens
    assert again.tokenizer.document_start == CHAT.tokenizer.document_start == [CHAT.tokenizer.bos]
    again.save(tmp_path / "folder")
    assert torch.equal(model(TOKENS), chatloom.load(tmp_path / "folder").model(TOKENS))


@pytest.mark.parametrize(("kind", "tolerance"), [("f16", 2e-2), ("bf16", 1e-1), ("q8_0", 4e-1)])
def test_smaller_types_are_near(kind: str, tolerance: float, tmp_path: Path) -> None:
    model = tiny_llama().eval()
    path = write(tmp_path / "m.gguf", model, kind)
    kinds = {each.name: each.kind for each in read_container(path).tensors.values()}
    expected = {"f16": Kind.F16, "bf16": Kind.BF16, "q8_0": Kind.Q8_0}[kind]
    assert kinds["blk.0.attn_q.weight"] == kinds["token_embd.weight"] == expected
    assert kinds["output_norm.weight"] == Kind.F32
    again = chatloom.load(path)
    assert again.model.embedding.weight.dtype == (torch.bfloat16 if kind == "bf16" else torch.float32)
    error = (model(TOKENS) - chatloom.load(path, dtype="fp32").model(TOKENS)).abs().max()
    assert 0 < error < tolerance


def test_gpt2_and_an_untied_head(tmp_path: Path) -> None:
    configs: list[Any] = [
        gpt2.Config(272, 64, 2, 32, 4),
        llama.Config(272, 64, 2, 32, 4, 2, 64, tie_embeddings=False, rope_theta=5e5),
    ]
    for number, config in enumerate(configs):
        torch.manual_seed(number)
        model = build(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(std=0.2)
        again = chatloom.load(write(tmp_path / f"{number}.gguf", model)).model
        assert torch.equal(model(TOKENS), again(TOKENS))
        assert (again.head is None) == (model.head is None)


def test_transformers_reads_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    transformers = pytest.importorskip("transformers")
    model = tiny_llama().eval()
    write(tmp_path / "m.gguf", model)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(str(tmp_path), gguf_file="m.gguf").eval()
    with torch.inference_mode():
        assert torch.allclose(theirs(TOKENS).logits, model(TOKENS), atol=2e-4)


def test_queries_and_keys_are_reordered_for_llama_cpp(tmp_path: Path) -> None:
    """Channels i and i + D/2 of a head, which turn together, stand side by side in the file."""
    model = tiny_llama()
    path = write(tmp_path / "m.gguf", model)
    theirs = dequantise(read_container(path).tensors["blk.0.attn_k.weight"])
    ours = model.state_dict()["blocks.0.attention.key.weight"]
    width = model.config.head_width
    assert torch.equal(theirs[0], ours[0])
    assert torch.equal(theirs[1], ours[width // 2])
    assert torch.equal(theirs[2], ours[1])
    assert torch.equal(theirs[width + 1], ours[width + width // 2])


def test_a_base_model_has_no_template(tmp_path: Path) -> None:
    chat = ChatFormat(byte_tokenizer(), checkpoint.NO_TEMPLATE)
    write_gguf(tmp_path / "m.gguf", checkpoint.Pretrained(tiny_llama(), chat, {}), "fp32", name="base")
    again = chatloom.load(tmp_path / "m.gguf")
    assert len(again.generate(["Ada"], max_tokens=4)) == 1
    with pytest.raises(ValueError, match="no chat template"):
        again.chat([{"role": "user", "content": "hi"}])
