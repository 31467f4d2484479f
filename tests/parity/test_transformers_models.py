"""What we save, transformers opens and computes alike: logits, loss, gradients, cache, reward head; and the other way.

Every family is one row of `CONFIGS`; nothing is downloaded. In fp32 logits and loss agree to 1e-4 (relative) and
gradients to 1e-3 of the largest entry of their tensor; bf16 logits to 5 % of the largest.
"""

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chatloom import checkpoint, models
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.models import FAMILIES
from chatloom.models.weights import head_names, to_huggingface
from chatloom.nn.paged import Chunk, Paged
from chatloom.nn.rope_scaling import RopeScaling
from chatloom.objectives.causal_lm import causal_lm
from chatloom.testing.models import tiny_config as tiny
from chatloom.tokenizers.bpe import train_tokenizer

transformers = pytest.importorskip("transformers")


LLAMA3 = RopeScaling("llama3", 4.0, 16, low_freq_factor=1.0, high_freq_factor=4.0)
LONGROPE = RopeScaling("longrope", 8.0, 64, short_factor=(1.5, 3.0), long_factor=(2.0, 9.0))
CONFIGS = {
    "openai-gpt": tiny("openai-gpt"),
    "openai-gpt tied": tiny("openai-gpt", tie_embeddings=True),
    "gpt2": tiny("gpt2"),
    "gpt2 tied": tiny("gpt2", tie_embeddings=True, inner_width=None),
    "gpt2 gelu": tiny("gpt2", activation="gelu"),
    "gpt_neo": tiny("gpt_neo"),
    "gpt_neo tied": tiny("gpt_neo", tie_embeddings=True, num_layers=3, window_every=3),
    "gptj": tiny("gptj"),
    "gptj whole": tiny("gptj", rotary_width=8),
    "codegen": tiny("codegen"),
    "codegen wide": tiny("codegen", width=64, num_heads=8),
    "gpt_neox": tiny("gpt_neox"),
    "gpt_neox tied": tiny("gpt_neox", tie_embeddings=True, parallel=False, rotary_share=1.0),
    "gpt_neox other": tiny("gpt_neox", attention_bias=False, activation="relu", rope_theta=500.0),
    "opt": tiny("opt"),
    "opt tied": tiny("opt", tie_embeddings=True, activation="gelu"),
    "opt bare": tiny("opt", bias=False, norm_weights=False),
    "bloom": tiny("bloom"),
    "bloom tied": tiny("bloom", tie_embeddings=True, width=48, num_heads=6),
    "gpt_bigcode": tiny("gpt_bigcode"),
    "gpt_bigcode tied": tiny("gpt_bigcode", tie_embeddings=True, inner_width=None, activation="gelu"),
    "llama": tiny("llama"),
    "llama tied": tiny("llama", tie_embeddings=True, num_key_value_heads=4),
    "llama theta": tiny("llama", rope_theta=500_000.0, norm_epsilon=1e-6),
    "llama biases": tiny("llama", attention_bias=True, feedforward_bias=True),
    "llama narrow heads": tiny("llama", own_head_width=6),
    "llama linear": tiny("llama", rope_scaling=RopeScaling("linear", 4.0)),
    "llama dynamic": tiny("llama", rope_scaling=RopeScaling("dynamic", 4.0)),
    "llama yarn": tiny("llama", rope_scaling=RopeScaling("yarn", 4.0, 16)),
    "llama yarn exact": tiny(
        "llama",
        rope_scaling=RopeScaling("yarn", 4.0, 16, truncate=False, mscale=1.0, mscale_all_dim=0.5, beta_fast=8.0),
    ),
    "llama llama3": tiny("llama", rope_scaling=LLAMA3),
    "mistral": tiny("mistral"),
    "mistral tied": tiny("mistral", tie_embeddings=True, own_head_width=16, window=None),
    "mixtral": tiny("mixtral", num_experts=4, load_balancing=0.0, router_z=0.0),
    "mixtral tied": tiny("mixtral", num_experts=3, tie_embeddings=True, window=None, load_balancing=0.0, router_z=0.0),
    "qwen2": tiny("qwen2", window_from_layer=1),
    "qwen2 tied": tiny("qwen2", tie_embeddings=True, window=None),
    "qwen3": tiny("qwen3", window_from_layer=1, own_head_width=16),
    "qwen3 tied": tiny("qwen3", tie_embeddings=True, attention_bias=True, window=None),
    "qwen3_moe": tiny("qwen3_moe", window=None, num_experts=6, experts_per_token=3, load_balancing=0.0, router_z=0.0),
    "qwen3_moe tied": tiny(
        "qwen3_moe",
        window=None,
        num_experts=6,
        tie_embeddings=True,
        renormalise=False,
        load_balancing=0.0,
        router_z=0.0,
        own_head_width=16,
    ),
    "phi3": tiny("phi3"),
    "phi3 tied": tiny("phi3", tie_embeddings=True, num_key_value_heads=4, window=None),
    "phi3 longrope": tiny("phi3", rotary_share=0.5, rope_scaling=LONGROPE),
    "stablelm": tiny("stablelm"),
    "stablelm tied": tiny("stablelm", tie_embeddings=True, attention_bias=True, parallel=True, rotary_share=0.5),
    "stablelm heads": tiny("stablelm", head_norms=True, parallel=True),
    "glm4": tiny("glm4"),
    "glm4 tied": tiny("glm4", tie_embeddings=True, attention_bias=False, own_head_width=12, rotary_share=1.0),
    "gemma2": tiny("gemma2"),
    "gemma2 tied": tiny("gemma2", tie_embeddings=True, own_head_width=16, query_scale=20, attention_softcap=None),
    "gemma3_text": tiny("gemma3_text", num_layers=3, full_every=2, rope_scaling=RopeScaling("linear", 8.0)),
    "gemma3_text tied": tiny("gemma3_text", tie_embeddings=True, logit_softcap=3.0),
}
ROWS = list(CONFIGS)
ONE_EACH = list(FAMILIES)  # every family's first row has its name


FIGURES = Path(__file__).with_name("figures.json")  # for docs/families.md


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return make_chat()


def make_chat() -> ChatFormat:
    return ChatFormat(train_tokenizer(["the miller sings at noon"] * 4, vocab_size=280), CHATLOOM_TEMPLATE)


def shaken(config: Any) -> models.Decoder:
    """A model none of whose weights is zero, so that nothing can hide."""
    torch.manual_seed(1)
    model = models.build(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def saved(name: str, folder: Path, chat: ChatFormat, **options: Any) -> tuple[models.Decoder, Any]:
    """Our model, and transformers' from the folder that ours was saved in."""
    model = shaken(CONFIGS[name])
    checkpoint.save_pretrained(folder, model, chat)
    return model, transformers.AutoModelForCausalLM.from_pretrained(folder, **options).eval()


def assert_gradients_match(name: str, model: models.Decoder, peer: Any) -> None:
    """To a thousandth of each tensor's largest entry; where that is nothing (a key's bias), to 1e-8 of the others'."""
    grads = {key: value.grad for key, value in model.named_parameters() if value.grad is not None}
    ours = to_huggingface(grads, FAMILIES[name.split()[0]].WEIGHT_NAMES, model.config)
    theirs = in_stored_names(peer)
    assert ours.keys() == theirs.keys()
    least = 1e-5 * max(float(grad.abs().max()) for grad in theirs.values())
    for key, grad in ours.items():
        scale = max(float(theirs[key].abs().max()), least)
        torch.testing.assert_close(grad / scale, theirs[key] / scale, rtol=0, atol=1e-3, msg=key)


def in_stored_names(peer: Any) -> dict[str, torch.Tensor]:
    """The peer's gradients by the names of a folder: it keeps experts in one tensor, and renames a few."""
    found: dict[str, torch.Tensor] = {}
    mixtral = peer.config.model_type == "mixtral"
    for key, parameter in peer.named_parameters():
        grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
        if peer.config.model_type == "gpt_neox":
            key = key.replace("lm_head", "embed_out")
        if mixtral:
            key = key.replace(".mlp.", ".block_sparse_moe.")
        names = ("w1", "w3", "w2") if mixtral else ("gate_proj", "up_proj", "down_proj")
        if key.endswith("experts.gate_up_proj"):
            for expert, both in enumerate(grad):
                for part, half in zip(names, both.chunk(2)):
                    found[key.replace("gate_up_proj", f"{expert}.{part}.weight")] = half
        elif key.endswith("experts.down_proj"):
            for expert, matrix in enumerate(grad):
                found[key.replace("down_proj", f"{expert}.{names[2]}.weight")] = matrix
        else:
            found[key] = grad
    return found


@pytest.mark.parametrize("name", ["mixtral", "qwen3_moe"])
def test_balanced_experts_have_the_same_loss(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    # With one layer: transformers counts the layers' tokens together, eq. 4 each layer's own.
    config = replace(CONFIGS[name], num_layers=1, load_balancing=0.5)
    model = shaken(config).train()
    checkpoint.save_pretrained(tmp_path, model, chat)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path).train()
    assert peer.config.output_router_logits
    tokens = torch.randint(10, 320, (2, 12))
    targets = torch.full_like(tokens, -100)
    targets[:, :-1] = tokens[:, 1:]
    loss = causal_lm(model, {"tokens": tokens, "targets": targets})
    their_loss = peer(tokens, labels=tokens).loss
    assert float(loss.metrics["router/loss"][0] / loss.weight) > 0.5
    torch.testing.assert_close(loss.total / loss.weight, their_loss, rtol=1e-4, atol=0)
    (loss.total / loss.weight).backward()
    their_loss.backward()
    assert_gradients_match(name, model, peer)


def logit_difference(name: str, folder: Path, chat: ChatFormat) -> float:
    """The largest absolute difference of fp32 logits on two rows of 48 tokens."""
    model, peer = saved(name, folder, chat)
    tokens = torch.randint(10, 320, (2, 48))
    with torch.no_grad():
        return float((model(tokens) - peer(tokens).logits).abs().max())


@pytest.mark.parametrize("name", ONE_EACH)
def test_the_figure_in_the_documents_is_the_measured_one(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    figures = json.loads(FIGURES.read_text(encoding="utf-8"))
    assert list(figures) == ONE_EACH, f"write {FIGURES.name} again: python {Path(__file__).name}"
    # Another processor rounds otherwise, so only the order of magnitude is held.
    assert logit_difference(name, tmp_path, chat) < 10 * figures[name] + 1e-6


def test_every_family_is_tested() -> None:
    assert {name.split()[0] for name in CONFIGS} == set(FAMILIES)
    assert all(type(CONFIGS[name]) is FAMILIES[name].Config for name in ONE_EACH)


@pytest.mark.parametrize("name", ROWS)
def test_logits_loss_and_gradients(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    model, peer = saved(name, tmp_path, chat)
    tokens = torch.randint(10, 320, (2, 12))
    ours, theirs = model(tokens), peer(tokens).logits
    assert theirs.std() > 0.1
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)

    targets = torch.full_like(tokens, -100)
    targets[:, :-1] = tokens[:, 1:]
    loss = causal_lm(model, {"tokens": tokens, "targets": targets})
    their_loss = peer(tokens, labels=tokens).loss
    torch.testing.assert_close(loss.total / loss.weight, their_loss, rtol=1e-4, atol=0)
    (loss.total / loss.weight).backward()
    their_loss.backward()
    assert_gradients_match(name, model, peer)


@pytest.mark.parametrize("name", ONE_EACH)
def test_bf16_logits(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    model = shaken(CONFIGS[name]).to(torch.bfloat16)
    checkpoint.save_pretrained(tmp_path, model, chat)
    peer = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    tokens = torch.randint(10, 320, (2, 12))
    with torch.no_grad():
        ours, theirs = model(tokens).float(), peer(tokens).logits.float()
    error = (ours - theirs).abs()
    # A token whose experts are all but equally likely may go to others; the typical one may not.
    assert float(error.median() if "router" in str(model) else error.max()) < 0.05 * float(theirs.abs().max())


@pytest.mark.parametrize("name", ROWS)
def test_what_is_saved_is_what_is_loaded(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    model = shaken(CONFIGS[name])
    checkpoint.save_pretrained(tmp_path, model, chat)
    again = checkpoint.load_pretrained(tmp_path)
    assert again.model.config == model.config
    state = again.model.state_dict()
    assert state.keys() == model.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert again.chat.template.source == chat.template.source
    assert again.tokenizer.digest() == chat.tokenizer.digest()


@pytest.mark.parametrize("name", ROWS)
def test_a_folder_written_by_transformers_opens(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    _, peer = saved(name, tmp_path / "ours", chat)
    peer.save_pretrained(tmp_path / "theirs", max_shard_size="20kB")
    chat.tokenizer.save(tmp_path / "theirs")
    chat.template.save(tmp_path / "theirs")
    assert list((tmp_path / "theirs").glob("*.index.json")), "the folder must be sharded for this test"
    tokens = torch.randint(10, 320, (2, 12))
    again = checkpoint.load_pretrained(tmp_path / "theirs").model
    torch.testing.assert_close(again(tokens), peer(tokens).logits, rtol=1e-4, atol=1e-4)
    assert again.config == CONFIGS[name]


@pytest.mark.parametrize("name", ONE_EACH)
def test_a_folder_as_old_releases_have_it_opens(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    """Without the base model's prefix, with the buffers that were saved once, and without `rope_parameters`."""
    model = shaken(CONFIGS[name])
    checkpoint.save_pretrained(tmp_path, model, chat)
    tensors = checkpoint.read_tensors(tmp_path / "model.safetensors")
    heads = head_names(FAMILIES[name].WEIGHT_NAMES)
    renamed = {key if key in heads else key.split(".", 1)[1]: value for key, value in tensors.items()}
    buffers = {f"h.0.{ending.removeprefix('.')}": torch.ones(1) for ending in FAMILIES[name].IGNORED}
    checkpoint.write_tensors(tmp_path / "model.safetensors", renamed | buffers)
    stored = json.loads((tmp_path / "config.json").read_text())
    if name != "gemma3_text":
        assert stored.pop("rope_parameters", None) or model.rotary is None or name in ("gptj", "codegen")
    (tmp_path / "config.json").write_text(json.dumps(stored))
    again = checkpoint.load_pretrained(tmp_path).model
    assert again.config == model.config
    tokens = torch.randint(10, 320, (2, 12))
    assert torch.equal(again(tokens), model(tokens))


@pytest.mark.parametrize("name", ONE_EACH)
def test_padded_rows_match(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    model, peer = saved(name, tmp_path, chat)
    tokens = torch.randint(10, 320, (2, 12))
    mask = torch.tensor([[1] * 12, [0] * 3 + [1] * 9])  # left padding, as transformers decodes
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    extra = {} if name == "bloom" else {"position_ids": positions}
    theirs = peer(tokens, attention_mask=mask, **extra).logits
    ours = model(tokens, documents=mask)
    torch.testing.assert_close(ours[mask.bool()], theirs[mask.bool()], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ONE_EACH)
def test_packed_documents_do_not_see_each_other(name: str) -> None:
    model = shaken(CONFIGS[name])
    tokens = torch.randint(10, 320, (1, 16))
    documents = torch.tensor([[1] * 7 + [2] * 9])
    packed = model(tokens, documents=documents)
    torch.testing.assert_close(packed[:, :7], model(tokens[:, :7]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(packed[:, 7:], model(tokens[:, 7:]), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ONE_EACH)
def test_reward_model_is_a_sequence_classifier(name: str, chat: ChatFormat, tmp_path: Path) -> None:
    reward = models.RewardModel(shaken(CONFIGS[name]))
    reward.gain, reward.bias = 2.5, -0.75
    checkpoint.save_pretrained(tmp_path, reward, chat)
    tokens = torch.randint(10, 320, (2, 8))
    ends = torch.tensor([[0, 7], [1, 7]])
    raw = reward.raw_scores(tokens, ends=ends)
    again = checkpoint.load_reward(tmp_path).model
    assert (again.gain, again.bias) == (2.5, -0.75)
    torch.testing.assert_close(again(tokens, ends=ends), 2.5 * raw - 0.75)
    if name == "codegen":
        return  # transformers has no classifier for it
    peer = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(raw, peer(tokens).logits[:, 0], rtol=1e-4, atol=1e-4)
    assert type(peer).__name__ == peer.config.architectures[0]


@pytest.mark.parametrize("name", ROWS)
def test_cached_equals_full(name: str) -> None:
    model = shaken(CONFIGS[name])
    tokens, lengths = torch.randint(10, 320, (3, 14)), [9, 3, 7]
    cache = Paged(model.config.num_layers, model.config.num_key_value_heads, model.config.head_width, block_size=4)
    cache.make_room(12)
    blocks = [list(range(row, 12, 3)) for row in range(3)]
    full = model(tokens)
    cache.begin([Chunk(blocks[row], 0, length) for row, length in enumerate(lengths)])
    prefilled = model(torch.cat([tokens[row, :length] for row, length in enumerate(lengths)])[None], cache=cache)[0]
    for row, part in enumerate(prefilled.split(lengths)):
        torch.testing.assert_close(part, full[row, : lengths[row]], rtol=1e-4, atol=1e-4)
    for step in range(5):
        places = torch.tensor(lengths) + step
        cache.begin([Chunk(blocks[row], int(place), 1) for row, place in enumerate(places)])
        got = model(tokens[torch.arange(3), places][None], cache=cache)[0]
        torch.testing.assert_close(got, full[torch.arange(3), places], rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        measured = {name: logit_difference(name, Path(temporary) / name, make_chat()) for name in ONE_EACH}
    FIGURES.write_text(json.dumps({name: float(f"{value:.1e}") for name, value in measured.items()}, indent=2) + "\n")
