"""Every family trains through the ordinary stages, answers through the engine, and refuses what it does not do."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import chatloom
from chatloom import checkpoint, models
from chatloom.chat.templates import CHATLOOM_TEMPLATE, ChatTemplate
from chatloom.engine.engine import Engine
from chatloom.engine.request import SamplingParams
from chatloom.models import FAMILIES
from chatloom.models.heads import ValueModel
from chatloom.nn.rope_scaling import RopeScaling
from chatloom.objectives.causal_lm import causal_lm
from chatloom.stages import pretrain, reward, sft
from chatloom.testing.models import tiny_config
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.tokenizers.bpe import train_tokenizer
from chatloom.train.train_config import TrainConfig

ALL = list(FAMILIES)
TRAIN = TrainConfig(batch_rows=4, row_length=64, save_every_steps=100)


def written(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return str(path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    written(folder / "text.jsonl", [{"text": f"the miller sings at noon, day {day}"} for day in range(30)])
    question = {"role": "user", "content": "who sings?"}
    answer = {"role": "assistant", "content": "the miller."}
    written(folder / "chat.jsonl", [{"messages": [question, answer]} for _ in range(12)])
    pair = {"prompt": "who sings?", "chosen": "the miller.", "rejected": "the baker"}
    written(folder / "pairs.jsonl", [pair] * 10 + [{**pair, "rejected": "nobody"}] * 10)
    train_tokenizer(["the miller sings at noon"] * 4, vocab_size=280).save(folder / "tokenizer")
    ChatTemplate(CHATLOOM_TEMPLATE).save(folder / "tokenizer")
    return folder


@pytest.mark.parametrize("name", ALL)
def test_it_trains_through_the_stages(name: str, data: Path, tmp_path: Path) -> None:
    """Pretraining in bf16 on packed documents, then SFT and a reward model; each reopens what the last one saved."""
    base, tuned, judge = (str(tmp_path / folder) for folder in ("base", "sft", "reward"))
    found = pretrain.run(
        pretrain.Config(
            data=str(data / "text.jsonl"), output_dir=base, tokenizer=str(data / "tokenizer"), model=f"{name}/mini",
            num_layers=2, width=64, context_length=64, steps=2, train=replace(TRAIN, dtype="bf16"),
        )
    )  # fmt: skip
    assert found["loss"] < 8
    assert found["validation/bits_per_byte"] > 0
    found = sft.run(sft.Config(model=base, data=str(data / "chat.jsonl"), output_dir=tuned, epochs=1, train=TRAIN))
    assert 0 < found["loss"] < 8
    reward.run(reward.Config(model=tuned, data=str(data / "pairs.jsonl"), output_dir=judge, train=TRAIN))
    judged = checkpoint.load_reward(judge).model
    assert type(judged.trunk) is FAMILIES[name].Model
    critic = ValueModel.from_reward_model(judged, copy_head=True)
    tokens = torch.randint(0, 280, (2, 9))
    ends = torch.tensor([[0, 8], [1, 8]])
    torch.testing.assert_close(critic(tokens)[:, -1], judged(tokens, ends=ends), rtol=1e-4, atol=1e-4)
    assert isinstance(chatloom.load(tuned).chat([{"role": "user", "content": "who sings?"}], max_tokens=3), str)


@pytest.mark.parametrize("name", ALL)
def test_generation_is_a_loop_of_full_forwards(name: str) -> None:
    """Beyond the window of 5, for prompts of different lengths."""
    torch.manual_seed(0)
    model = models.build(tiny_config(name)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    prompts = [torch.randint(0, 272, (length,)).tolist() for length in (1, 9, 4, 9)]
    got = Engine(model, byte_tokenizer(), max_batch=8).generate(prompts, SamplingParams(max_tokens=8))
    for prompt, completion in zip(prompts, got):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion.tokens]]))[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(completion.tokens)[:, None])[:, 0]
        torch.testing.assert_close(chosen, logits.amax(1), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "gemma3_text", "mixtral", "gptj"])
def test_gradient_checkpointing_changes_nothing(name: str) -> None:
    changes = {"load_balancing": 0.1, "router_z": 0.1} if name == "mixtral" else {}
    model = models.build(tiny_config(name, **changes)).train()
    tokens = torch.randint(0, 320, (2, 12))
    batch = {"tokens": tokens, "targets": tokens.roll(-1, 1)}
    gradients = []
    for kept in (False, True):
        model.gradient_checkpointing = kept
        model.zero_grad()
        causal_lm(model, batch).total.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_padding_is_not_routed_for_the_loss() -> None:
    model = models.build(tiny_config("mixtral", load_balancing=0.1, router_z=0.1)).train()
    tokens = torch.randint(0, 320, (1, 12))
    model(tokens[:, :8])
    alone = model.router_loss()
    model(tokens, documents=torch.tensor([[1] * 8 + [0] * 4]))
    torch.testing.assert_close(model.router_loss(torch.tensor([[1] * 8 + [0] * 4])), alone)
    model.eval()(tokens)
    assert model.router_loss() is None


@pytest.mark.parametrize("name", ALL)
def test_sizes_are_whole(name: str) -> None:
    """Every size named is a config that can be written and read back."""
    for size, config in FAMILIES[name].SIZES.items():
        assert models.module_of(config) is FAMILIES[name], size
        assert type(config).from_huggingface(config.to_huggingface()) == config, size


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("opt", {"word_embed_proj_dim": 16}, "OPT-350M"),
        ("opt", {"do_layer_norm_before": False}, "do_layer_norm_before=False is not supported"),
        ("opt", {"activation_function": "swish7"}, "allowed: gelu_new"),
        ("gptj", {"tie_word_embeddings": True}, "tie_word_embeddings=True"),
        ("gptj", {"rotary_dim": 10}, "at most a head's width, 8"),
        ("codegen", {"n_head": 2}, "multiple of 4"),
        ("gpt_neo", {"attention_types": [[["local", "global"], 1]]}, "local at every n-th layer"),
        ("gpt_bigcode", {"multi_query": False}, "multi_query=False"),
        ("bloom", {"apply_residual_connection_post_layernorm": True}, "allowed: False"),
        ("llama", {"hidden_act": "relu"}, "hidden_act='relu'"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "ntk"}},
            "allowed: default, linear, dynamic, yarn, llama3, longrope",
        ),
        ("llama", {"rope_parameters": {"rope_type": "linear"}}, "needs factor"),
        ("llama", {"rope_parameters": {"rope_type": "llama3", "factor": 8}}, "needs low_freq_factor"),
        ("phi3", {"rope_parameters": {"rope_type": "longrope"}}, "needs short_factor, long_factor"),
        ("phi3", {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}, "allowed: default, longrope"),
        ("gemma2", {"layer_types": ["full_attention", "sliding_attention"]}, "full_attention at every n-th layer"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}, "max_window_layers"),
        ("mixtral", {"num_experts_per_tok": 9}, "there are 8 experts"),
        ("qwen3_moe", {"mlp_only_layers": [0]}, "mlp_only_layers"),
    ],
)
def test_what_a_family_does_not_do_is_refused(name: str, changes: dict[str, Any], message: str) -> None:
    stored = tiny_config(name).to_huggingface()
    with pytest.raises(ValueError, match=message):
        FAMILIES[name].Config.from_huggingface(stored | changes)


def test_a_config_without_a_size_names_the_key() -> None:
    stored = tiny_config("gptj").to_huggingface()
    del stored["n_embd"]
    with pytest.raises(KeyError, match="n_embd"):
        FAMILIES["gptj"].Config.from_huggingface(stored)


def test_unknown_families_list_those_known() -> None:
    for name in ("lama", "zebra"):
        with pytest.raises(ValueError, match=r"known: bloom, codegen, .*stablelm"):
            models.family(name)


def test_older_config_files_mean_what_they_meant() -> None:
    """Keys of releases before `rope_parameters`, and those that are absent."""
    sizes = {"vocab_size": 9, "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 1,
             "intermediate_size": 8, "max_position_embeddings": 32}  # fmt: skip
    llama = FAMILIES["llama"].Config.from_huggingface({**sizes, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert llama.rope_scaling == RopeScaling("linear", 2.0)
    assert (llama.num_key_value_heads, llama.norm_epsilon, llama.tie_embeddings) == (4, 1e-6, False)
    assert FAMILIES["mistral"].Config.from_huggingface(sizes).window == 4096
    assert FAMILIES["mixtral"].Config.from_huggingface(sizes).rope_theta == 1e6
    neox = FAMILIES["gpt_neox"].Config.from_huggingface({**sizes, "rotary_pct": 1.0, "rotary_emb_base": 500})
    assert (neox.rotary_share, neox.rope_theta) == (1.0, 500.0)
    gemma = FAMILIES["gemma3_text"].Config.from_huggingface({**sizes, "rope_local_base_freq": 123.0})
    assert (gemma.rope_theta, gemma.window_rope_theta, gemma.full_every, gemma.head_width) == (1e6, 123.0, 6, 256)
    bloom = {"vocab_size": 9, "n_embed": 32, "num_attention_heads": 4, "n_layer": 1}
    assert FAMILIES["bloom"].Config.from_huggingface(bloom).context_length == 2048
