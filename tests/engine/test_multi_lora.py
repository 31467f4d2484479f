"""Named adapters: whatever is computed beside it, a request gets what a model with its adapter alone would say."""

import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import chatloom
from chatloom import adapters, checkpoint, models
from chatloom.adapters import AdapterConfig
from chatloom.chat import CHATLOOM_TEMPLATE, ChatFormat
from chatloom.engine.engine import Engine
from chatloom.engine.lowered import Lowered
from chatloom.engine.request import Completion, SamplingParams
from chatloom.engine.speculative import DraftModel, PromptLookup
from chatloom.models import Decoder, RewardModel
from chatloom.testing.models import tiny_config, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer

TOKENIZER = byte_tokenizer()
FORMAT = ChatFormat(TOKENIZER, CHATLOOM_TEMPLATE)
HELLO = [{"role": "user", "content": "hi"}]
CONFIGS = {
    "lora": AdapterConfig(adapter="lora", adapter_rank=4, adapter_alpha=8),
    "rslora": AdapterConfig(adapter="lora", adapter_rank=3, adapter_rslora=True, adapter_targets=("value", "down")),
    "dora": AdapterConfig(adapter="lora", adapter_rank=2, adapter_dora=True, adapter_targets=("query", "up", "output")),
}


def model_of(family: str = "llama") -> Decoder:
    """Frozen, so that trees over it share its tensors."""
    if family == "llama":
        return tiny_llama(context_length=160).requires_grad_(False).eval()
    torch.manual_seed(0)
    model = models.build(tiny_config(family))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model.requires_grad_(False).eval()


def trees_of(model: Decoder, names: Sequence[str] = tuple(CONFIGS)) -> dict[str, Decoder]:
    """The model with each adapter attached to it, over the same weights."""
    torch.manual_seed(1)
    trees = {}
    for name in names:
        trees[name] = tree = adapters.shared(model)
        adapters.attach(tree, CONFIGS[name], names=models.stored_names(tree))
        stir(tree)
    return trees


@torch.no_grad()
def stir(tree: Decoder) -> None:
    for name, parameter in tree.named_parameters():
        if parameter.requires_grad:
            parameter.add_((0.2 if ".B." in name else 0.05) * torch.randn_like(parameter))


def engine_of(model: Decoder, trees: dict[str, Decoder], **options: Any) -> Engine:
    engine = Engine(model, TOKENIZER, **options)
    for name, tree in trees.items():
        engine.add_adapter(name, tree)
    return engine


def crowd(names: Sequence[str | None], count: int = 24) -> tuple[list[list[int]], list[SamplingParams]]:
    """Prompts, many of which begin alike, and parameters that name adapters in turn."""
    chance = random.Random(0)
    shared = [chance.randrange(256) for _ in range(40)]
    prompts, each = [], []
    for number in range(count):
        own = [chance.randrange(256) for _ in range(chance.randint(1, 12))]
        prompts.append(shared[: chance.choice((0, 10, 36))] + own)
        temperature = chance.choice((0.0, 1.0))
        adapter = names[number % len(names)]
        each.append(SamplingParams(chance.randint(2, 12), temperature, seed=number, adapter=adapter))
    return prompts, each


def alone(
    model: Decoder, trees: dict[str, Decoder], prompts: Sequence[list[int]], each: Sequence[SamplingParams]
) -> list[Completion]:
    """What models with just the one adapter say."""
    own = [model if params.adapter is None else trees[params.adapter] for params in each]
    return [
        Engine(tree, TOKENIZER).generate([prompt], replace(params, adapter=None))[0]
        for tree, prompt, params in zip(own, prompts, each)
    ]


def same(left: Sequence[Completion], right: Sequence[Completion]) -> None:
    assert [(c.text, c.tokens, c.finish_reason) for c in left] == [(c.text, c.tokens, c.finish_reason) for c in right]
    for one, other in zip(left, right):
        torch.testing.assert_close(torch.tensor(one.logprobs), torch.tensor(other.logprobs), atol=4e-5, rtol=1e-5)


@pytest.mark.parametrize("family", models.FAMILIES)
def test_a_row_in_a_mixed_batch_is_that_of_a_model_with_its_adapter(family: str) -> None:
    model = model_of(family)
    trees = trees_of(model, ["lora"])
    trees["few"] = adapters.shared(model)
    config = AdapterConfig(adapter="lora", adapter_rank=2, adapter_dora=True, adapter_targets=("value", "output"))
    adapters.attach(trees["few"], config, names=models.stored_names(model))
    stir(trees["few"])
    prompts, each = crowd([None, "lora", "few"], 9)
    expected = alone(model, trees, prompts, each)
    same(engine_of(model, trees).generate(prompts, each), expected)
    plain = alone(model, trees, prompts, [replace(params, adapter=None) for params in each])
    for params, one, other in zip(each, expected, plain):
        assert (one.logprobs == other.logprobs) == (params.adapter is None)  # each adapter matters


@pytest.mark.parametrize(
    ("max_batch", "step_tokens", "cache_tokens"),
    [(64, None, None), (5, 9, None), (16, 40, 224), (7, 7, 128)],
    ids=["all at once", "in pieces", "blocks run out", "hardly room for one"],
)
def test_a_crowd_of_all_kinds(max_batch: int, step_tokens: int | None, cache_tokens: int | None) -> None:
    model = model_of()
    trees = trees_of(model)
    prompts, each = crowd(["lora", None, "dora", "rslora"])
    expected = alone(model, trees, prompts, each)
    engine = engine_of(model, trees, max_batch=max_batch, step_tokens=step_tokens, cache_tokens=cache_tokens)
    same(engine.generate(prompts, each), expected)
    streams = [engine.submit(prompt, params) for prompt, params in zip(prompts, each)]
    same([stream.result() for stream in streams], expected)
    engine._scheduler.blocks.check()
    assert engine._scheduler.blocks.num_held == 0


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_over_the_twins_that_decoding_reads(dtype: str) -> None:
    """The reference is fp32 over the rounded weights; what it differs by is the rounding of activations."""
    model = model_of()
    trees = trees_of(model)
    twin = Lowered(model, dtype)
    twin.refresh()
    rounded = {
        name: twin.model.get_submodule(twin.places.get(name, (name, 0))[0]).dequantised()
        for name, layer in model.named_modules()
        if isinstance(layer, torch.nn.Linear)
    }
    prompts, each = crowd([None, *trees], 16)
    each = [SamplingParams(1, top_logprobs=20, adapter=params.adapter) for params in each]
    engine = engine_of(model, trees, autocast=dtype)
    together = engine.generate(prompts, each)
    off: list[float] = []
    for prompt, params, found in zip(prompts, each, together):
        [apart] = engine.generate([prompt], params)
        assert apart.tokens == found.tokens
        tree = adapters.shared(model if params.adapter is None else trees[params.adapter])
        with torch.no_grad():
            for name, whole in rounded.items():
                layer: Any = tree.get_submodule(name)
                first = twin.places.get(name, (name, 0))[1]
                layer.weight = torch.nn.Parameter(whole[first : first + layer.out_features].clone())
            logits = tree(torch.tensor([prompt]))[0, -1]
        assert found.top_logprobs is not None
        [likeliest] = found.top_logprobs
        expected = logits.log_softmax(0)[[token for token, _ in likeliest]]
        off.append(float((torch.tensor([logprob for _, logprob in likeliest]) - expected).abs().mean()))
    assert max(off) < 0.2
    assert sum(off) < 0.06 * len(off)


@pytest.mark.parametrize("dtype", ["bf16", "int8", "int4"])
def test_over_a_twin_the_company_changes_nothing(dtype: str) -> None:
    model = model_of()
    trees = trees_of(model)
    prompts = [[number, *range(50, 52 + number)] for number in range(12)]
    each = [SamplingParams(1, adapter=name) for name in [None, *trees] * 3]
    engine = engine_of(model, trees, autocast=dtype)
    for prompt, params, found in zip(prompts, each, engine.generate(prompts, each)):
        [apart] = engine.generate([prompt], [params])
        assert apart.tokens == found.tokens
        assert abs(apart.logprobs[0] - found.logprobs[0]) < 1e-3


def test_layers_of_one_matrix_share_what_they_shared() -> None:
    """GPT-2's query, key and value have one A; LLaMA's have three."""
    for family, rank in (("gpt2", 4), ("llama", 12)):
        model = model_of(family)
        engine = engine_of(model, trees_of(model, ["lora"]), autocast="bf16")
        engine.generate([[1, 2]], SamplingParams(1, adapter="lora"))
        adapted: Any = engine._runner and engine._runner._adapted
        [updates] = adapted._ready.values()
        layer = adapted._layers["blocks.0.attention.joined"]
        assert updates[layer.number].low.shape == (32, rank)


@pytest.fixture
def counts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The tokens of each forward pass."""
    found: list[int] = []
    hidden = Decoder.hidden

    def count(self: Decoder, tokens: torch.Tensor, **options: Any) -> torch.Tensor:
        found.append(tokens.numel())
        return hidden(self, tokens, **options)

    monkeypatch.setattr(Decoder, "hidden", count)
    return found


def test_keys_of_one_adapter_are_not_read_by_another(counts: list[int]) -> None:
    model = model_of()
    trees = trees_of(model)
    prompt = list(range(70))
    engine = engine_of(model, trees)
    each = [SamplingParams(4, adapter=name) for name in (None, "lora", "dora")]
    expected = alone(model, trees, [prompt] * 3, each)
    for params, completion in zip(each, expected):
        counts.clear()
        same([engine.submit(prompt, params).result()], [completion])
        assert counts[0] == 70  # nothing of it was known
    for params, completion in zip(each, expected):
        counts.clear()
        same([engine.submit(prompt, params).result()], [completion])
        assert counts[0] == 1  # all of it was
    counts.clear()
    same(engine.generate([prompt] * 3, each), expected)  # in one call nobody waits for another's blocks
    assert counts[0] == 210


def test_removed_and_replaced(counts: list[int]) -> None:
    model = model_of()
    trees = trees_of(model)
    prompt, params = list(range(50)), SamplingParams(12, adapter="style")
    engine = Engine(model, TOKENIZER)
    engine.add_adapter("style", trees["lora"])
    under_way = engine.submit(prompt, params)
    for _ in range(3):
        engine._step()
    engine.remove_adapter("style")
    assert engine.adapters == ()
    with pytest.raises(ValueError, match="there is no adapter 'style'; known: none"):
        engine.submit(prompt, params)
    with pytest.raises(ValueError, match="there is no adapter 'style'"):
        engine.remove_adapter("style")
    engine.add_adapter("style", trees["dora"])
    after = engine.submit(prompt, params)
    same([under_way.result()], alone(model, {"style": trees["lora"]}, [prompt], [params]))
    same([after.result()], alone(model, {"style": trees["dora"]}, [prompt], [params]))
    adapted: Any = engine._runner and engine._runner._adapted
    assert len(adapted._ready) == 2
    del under_way
    assert len(adapted._ready) == 1  # what was made for the first is gone


def test_an_adapter_that_is_trained_reaches_the_next_answer() -> None:
    model = model_of()
    trees = trees_of(model, ["lora", "dora"])
    engine = engine_of(model, trees)
    prompt = list(range(40))
    each = [SamplingParams(8, adapter=name) for name in ("lora", "dora", None)]
    for _ in range(3):
        expected = alone(model, trees, [prompt] * 3, each)
        same([engine.submit(prompt, params).result() for params in each], expected)
        stir(trees["lora"])
    with torch.no_grad():  # and the base below them
        model.get_parameter("blocks.1.feedforward.down.weight").mul_(-1)
        model.get_parameter("blocks.0.attention.query.weight").mul_(2)
    expected = alone(model, trees, [prompt] * 3, each)
    same([engine.submit(prompt, params).result() for params in each], expected)


def test_without_a_name_nothing_is_different() -> None:
    model = model_of().requires_grad_(True)
    before = [id(module) for module in model.modules()]
    trees = trees_of(model_of(), ["lora"])  # over weights that are equal and not the same
    prompts, each = crowd([None], 8)
    engine = engine_of(model, trees)
    assert engine.generate(prompts, each) == Engine(model, TOKENIZER).generate(prompts, each)
    adapted: Any = engine._runner and engine._runner._adapted
    assert adapted._layers == {}  # the tree was never used
    engine.generate(prompts, SamplingParams(4, adapter="lora"))
    assert len(adapted._layers) == 14
    assert engine.generate(prompts, each) == Engine(model, TOKENIZER).generate(prompts, each)
    assert [id(module) for module in model.modules()] == before
    assert all(parameter.requires_grad for parameter in model.parameters())
    own = {id(parameter) for parameter in model.parameters()}
    assert {id(parameter) for parameter in adapted.model.parameters()} == own  # one copy of the weights


def test_numbers_that_are_not_finite_stay_with_their_adapter() -> None:
    model = model_of()
    trees = trees_of(model, ["lora", "dora"])
    engine = engine_of(model, trees)
    prompts, each = crowd([None, "lora", "dora"], 6)
    expected = alone(model, trees, prompts, each)
    with torch.no_grad():
        adapters.loras(trees["dora"])["blocks.0.attention.query"].B.weight.fill_(float("nan"))
    streams = [engine.submit(prompt, params) for prompt, params in zip(prompts, each)]
    for stream, params, completion in zip(streams, each, expected):
        if params.adapter == "dora":
            with pytest.raises(ValueError, match="not finite"):
                stream.result()
        else:
            same([stream.result()], [completion])


def test_samples_beams_and_guesses() -> None:
    model = model_of()
    trees = trees_of(model, ["lora", "dora"])
    prompts = [[5, 17, 99, 4] * 6, [7, 8]]
    for params in (
        SamplingParams(10, 1.0, seed=3, n=3),
        SamplingParams(10, num_beams=3, n=2),
        SamplingParams(20, stop=("A",)),
    ):
        for name in trees:
            expected = Engine(trees[name], TOKENIZER).generate(prompts, params)
            same(engine_of(model, trees).generate(prompts, replace(params, adapter=name)), expected)
    greedy = SamplingParams(20, adapter="lora")
    expected = Engine(trees["lora"], TOKENIZER).generate(prompts, SamplingParams(20))
    for drafter in (PromptLookup(), DraftModel(Engine(tiny_llama(context_length=160), TOKENIZER))):
        same(engine_of(model, trees, drafter=drafter).generate(prompts, greedy), expected)


def test_names_that_are_not_there() -> None:
    model = model_of()
    engine = engine_of(model, trees_of(model, ["lora", "dora"]))
    assert engine.adapters == ("lora", "dora")
    for call in (engine.submit, engine.stream):
        with pytest.raises(ValueError, match="there is no adapter 'loro'; known: 'lora', 'dora'"):
            call([1], SamplingParams(adapter="loro"))
    with pytest.raises(ValueError, match="there is no adapter 'loro'; known: 'lora', 'dora'"):
        engine.generate([[1], [2]], [SamplingParams(), SamplingParams(adapter="loro")])
    assert engine._scheduler.num_waiting == 0
    for name in ("", 3):
        with pytest.raises(ValueError, match="it must be the name of an adapter, or None"):
            SamplingParams(adapter=name)  # type: ignore[arg-type]


def test_what_cannot_be_named_is_refused() -> None:
    model = model_of()
    trees = trees_of(model, ["lora"])
    engine = engine_of(model, trees)
    with pytest.raises(ValueError, match="there is an adapter 'lora' already"):
        engine.add_adapter("lora", trees["lora"])
    with pytest.raises(ValueError, match="name is ''; it must be a text"):
        engine.add_adapter("", trees["lora"])
    with pytest.raises(ValueError, match="'plain': the model that is given has no LoRA beside its weights"):
        engine.add_adapter("plain", model)
    with pytest.raises(ValueError, match=r"'other': the model that is given has another base: its .* is not this"):
        engine.add_adapter("other", trees_of(tiny_llama(3, context_length=160).requires_grad_(False), ["lora"])["lora"])
    with pytest.raises(ValueError, match=r"the model has an adapter of its own, .*merge it into the weights"):
        Engine(trees["lora"], TOKENIZER).add_adapter("lora", trees["lora"])
    adapters.attach(model, CONFIGS["lora"])
    with pytest.raises(ValueError, match="the model has an adapter of its own"):
        engine.submit([1], SamplingParams(adapter="lora"))
    adapters.detach(model)
    mixture = model_of("mixtral").requires_grad_(False)
    tree = adapters.shared(mixture)
    adapters.attach(tree, AdapterConfig(adapter="lora", adapter_targets=("experts.0.up",)))
    with pytest.raises(ValueError, match=r"adapts blocks.0.feedforward.experts.0.up, an expert of a mixture"):
        Engine(mixture, TOKENIZER).add_adapter("expert", tree)


# --- folders ------------------------------------------------------------------------------------------------------


def saved(folder: Path, *, configs: dict[str, AdapterConfig] | None = None) -> dict[str, Decoder]:
    """A base in `folder`/base, and adapters on it in folders of their names."""
    model = tiny_llama(context_length=160).requires_grad_(False)
    checkpoint.save_pretrained(folder / "base", model, FORMAT)
    torch.manual_seed(2)
    trees = {}
    for name, config in (configs or CONFIGS).items():
        trees[name] = tree = adapters.shared(model)
        adapters.attach(tree, config, names=models.stored_names(tree))
        stir(tree)
        checkpoint.save_adapter(folder / name, tree, FORMAT, base=str(folder / "base"))
    return trees


def test_folders_over_one_base(tmp_path: Path) -> None:
    trees = saved(tmp_path)
    lm = chatloom.load(tmp_path / "base", device="cpu", adapters={name: tmp_path / name for name in CONFIGS})
    for name, tree in trees.items():
        own = chatloom.load(tmp_path / name, device="cpu")  # merged
        assert lm.chat(HELLO, max_tokens=8, adapter=name) == own.chat(HELLO, max_tokens=8)
        assert "".join(lm.stream(HELLO, max_tokens=8, adapter=name)) == own.chat(HELLO, max_tokens=8)
        attached = Engine(tree.eval(), TOKENIZER).generate([[5, 6, 7]], SamplingParams(12))
        same(lm.generate([[5, 6, 7]], max_tokens=12, adapter=name), attached)
    assert lm.chat(HELLO, max_tokens=8) == chatloom.load(tmp_path / "base", device="cpu").chat(HELLO, max_tokens=8)
    for call in (lm.chat, lm.stream):
        with pytest.raises(ValueError, match="no adapter 'nobody'; known: 'lora', 'rslora', 'dora'"):
            call(HELLO, adapter="nobody")
    with pytest.raises(ValueError, match="no adapter 'nobody'; known: 'lora', 'rslora', 'dora'"):
        lm.generate(["a"], adapter="nobody")


def test_an_adapter_of_pefts(tmp_path: Path) -> None:
    """Of other ranks and scales in some layers, beside another one."""
    import peft
    from transformers import AutoModelForCausalLM

    saved(tmp_path)
    torch.manual_seed(3)
    config = peft.LoraConfig(
        r=4, lora_alpha=8, use_rslora=True, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM",
        rank_pattern={"q_proj": 6}, alpha_pattern={"q_proj": 10},
    )  # fmt: skip
    peer = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config).eval()
    with torch.no_grad():
        for name, parameter in peer.named_parameters():
            if "lora_B" in name:
                parameter.add_(0.2 * torch.randn_like(parameter))
    peer.save_pretrained(tmp_path / "theirs")
    folders = {"theirs": tmp_path / "theirs", "lora": tmp_path / "lora"}
    lm = chatloom.load(tmp_path / "base", device="cpu", adapters=folders)
    each = [SamplingParams(12, adapter=name) for name in ("theirs", "lora")]
    found, _ = lm.engine.generate([[5, 6, 7]] * 2, each)
    with torch.no_grad():
        logits = peer(input_ids=torch.tensor([[5, 6, 7, *found.tokens]])).logits[0, 2:-1]
    assert found.tokens == logits.argmax(1).tolist()
    expected = logits.log_softmax(1).gather(1, torch.tensor(found.tokens)[:, None])[:, 0]
    torch.testing.assert_close(torch.tensor(found.logprobs), expected, atol=4e-5, rtol=1e-5)


def test_an_adapter_is_talked_to_by_its_own_template(tmp_path: Path) -> None:
    saved(tmp_path, configs={"lora": CONFIGS["lora"]})
    (tmp_path / "lora" / "chat_template.jinja").write_text(FORMAT.template.source.replace("{{", "{{ 'So: ' }}{{", 1))
    folders = {"own": tmp_path / "lora"}
    lm = chatloom.load(tmp_path / "base", device="cpu", adapters=folders)
    assert lm.prompt_tokens(HELLO, adapter="own") == chatloom.load(tmp_path / "lora", device="cpu").prompt_tokens(HELLO)
    assert lm.prompt_tokens(HELLO, adapter="own") != lm.prompt_tokens(HELLO)
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / "lora" / file).unlink(missing_ok=True)
    lm = chatloom.load(tmp_path / "base", device="cpu", adapters=folders)
    assert lm.prompt_tokens(HELLO, adapter="own") == lm.prompt_tokens(HELLO)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    kinds: dict[str, Any] = {"lora": CONFIGS["lora"], "prefix": AdapterConfig(adapter="prefix", adapter_tokens=3)}
    trees = saved(tmp_path, configs=kinds)

    def refused(name: str, message: str) -> None:
        with pytest.raises(ValueError, match=message):
            chatloom.load(tmp_path / "base", device="cpu", adapters={"mine": tmp_path / name})

    refused("prefix", r"adapter 'mine' \(.*prefix\): prefix tuning adds virtual tokens .*only LoRA")
    refused("base", r"adapter 'mine' .*is no adapter's folder; that holds adapter_config.json")
    refused("nowhere", "adapter 'mine' .*nowhere")
    checkpoint.save_adapter(tmp_path / "reward", RewardModel(trees["lora"]), FORMAT, base=str(tmp_path / "base"))
    refused("reward", "the adapter is a reward model's")
    config = tmp_path / "lora" / "adapter_config.json"
    whole = config.read_text()
    config.write_text(whole.replace('"modules_to_save": null', '"modules_to_save": ["embed_tokens"]'))
    refused("lora", "also replaces embed_tokens")
    config.write_text(whole)
    with pytest.raises(ValueError, match="the model has an adapter of its own"):
        chatloom.load(tmp_path / "prefix", device="cpu", adapters={"mine": tmp_path / "lora"})
    checkpoint.save_pretrained(tmp_path / "base", tiny_llama(9, context_length=160), FORMAT)
    refused("lora", r"is an adapter of another base model: the weights of .*base are not those .*digest")
    engine = Engine(tiny_llama(vocab_size=300), TOKENIZER)
    engine.add_adapter("unchecked", tmp_path / "lora")  # shapes alone say nothing against it
    assert engine.adapters == ("unchecked",)
