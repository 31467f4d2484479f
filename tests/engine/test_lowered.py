"""The twin that bf16 decoding reads: the model's own numbers, whatever is changed in it."""

import pytest
import torch
from torch import Tensor

from chatloom import adapters
from chatloom.adapters import AdapterConfig
from chatloom.engine.engine import Engine
from chatloom.engine.lowered import Lowered
from chatloom.engine.quantised import Matrix
from chatloom.engine.request import SamplingParams
from chatloom.models import FAMILIES, Decoder, build
from chatloom.objectives.causal_lm import causal_lm
from chatloom.testing.models import tiny_config, tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer
from chatloom.train.train_config import TrainConfig
from chatloom.train.trainer import Trainer

TOKENS = torch.arange(1, 21)[None]
SIXTEEN = SamplingParams(max_tokens=16)


def drawn(family: str) -> Decoder:
    torch.manual_seed(0)
    model = build(tiny_config(family))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return model


def adapted(kind: str = "lora", **options: object) -> Decoder:
    model = tiny_llama()
    adapters.attach(model, AdapterConfig(adapter=kind, **options))  # type: ignore[arg-type]
    for lora in adapters.loras(model).values():
        torch.nn.init.normal_(lora.B.weight, std=0.1)
    return model


@torch.no_grad()
def logits(model: Decoder) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return model(TOKENS).float()


def apart(a: Decoder, b: Decoder) -> float:
    """Mean distance of their logits: about 0.02 where bf16 rounds in another order, of logits that spread by 2."""
    return float((logits(a) - logits(b)).abs().mean())


@pytest.mark.parametrize("family", FAMILIES)
def test_it_is_the_model_under_autocast(family: str) -> None:
    model = drawn(family).eval()
    twin = Lowered(model, "bf16")
    twin.refresh()
    assert apart(twin.model, model) < 0.02 * float(logits(model).std())


@pytest.mark.parametrize("options", [{}, {"adapter_dora": True}, {"adapter_targets": ("query", "down")}])
def test_lora_is_merged_into_the_copies_alone(options: dict[str, object]) -> None:
    model = adapted(**options)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    wanted = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    twin = Lowered(model, "bf16")
    twin.refresh()
    assert not adapters.loras(twin.model)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == wanted
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    assert apart(twin.model, model) < 0.05
    with adapters.off(model):
        assert apart(twin.model, model) > 0.2
        twin.refresh()
        assert apart(twin.model, model) < 0.05
    twin.refresh()
    assert apart(twin.model, model) < 0.05


def test_an_update_is_copied_anew() -> None:
    model = adapted()
    twin = Lowered(model, "bf16")
    twin.refresh()
    old = logits(twin.model)
    with torch.no_grad():
        for lora in adapters.loras(model).values():
            lora.B.weight.mul_(-1)
    twin.refresh()
    assert float((logits(twin.model) - old).abs().mean()) > 0.2
    assert apart(twin.model, model) < 0.05


def test_an_engine_sees_updates_and_adapters_that_come_later() -> None:
    model = tiny_llama()
    engine = Engine(model, byte_tokenizer(), autocast="bf16")

    def answer() -> list[int]:
        return engine.generate([[5, 6, 7]], SIXTEEN)[0].tokens

    def fresh() -> list[int]:
        return Engine(model, byte_tokenizer(), autocast="bf16").generate([[5, 6, 7]], SIXTEEN)[0].tokens

    answers = [answer()]
    with torch.no_grad():
        model.get_parameter("blocks.1.feedforward.down.weight").mul_(-3)
    answers.append(answer())
    assert answers[-1] == fresh()
    adapters.attach(model, AdapterConfig(adapter="lora"))
    for lora in adapters.loras(model).values():
        torch.nn.init.normal_(lora.B.weight, std=0.5)
    answers.append(answer())
    assert answers[-1] == fresh()
    assert len({tuple(each) for each in answers}) == 3


def test_tensors_that_are_exchanged_are_the_twins_too() -> None:
    model = tiny_llama()
    engine = Engine(model, byte_tokenizer(), autocast="bf16")
    before = engine.generate([[5, 6, 7]], SIXTEEN)[0].tokens
    model.load_state_dict(tiny_llama(seed=1).state_dict(), assign=True)
    found = engine.generate([[5, 6, 7]], SIXTEEN)[0].tokens
    assert found == Engine(model, byte_tokenizer(), autocast="bf16").generate([[5, 6, 7]], SIXTEEN)[0].tokens
    assert found != before


@pytest.mark.parametrize("kind", [None, "lora"])
def test_a_training_step_reaches_the_next_answer(kind: str | None) -> None:
    model = tiny_llama()
    adapters.attach(model, AdapterConfig(adapter=kind))  # type: ignore[arg-type]
    engine = Engine(model, byte_tokenizer(), autocast="bf16")
    trainer = Trainer(model, causal_lm, TrainConfig(learning_rate=0.05, dtype="bf16"), total_steps=4)
    tokens = torch.full((2, 12), 9)
    for _ in range(4):
        engine.generate([[5, 6, 7]], SIXTEEN)  # so that there are copies, filled with what were the weights then
        trainer.step([{"tokens": tokens, "targets": tokens}])
    found = engine.generate([[5, 6, 7]], SIXTEEN)[0]
    assert found.tokens == Engine(model, byte_tokenizer(), autocast="bf16").generate([[5, 6, 7]], SIXTEEN)[0].tokens
    assert found.tokens.count(9) > 8


def test_virtual_tokens_come_along() -> None:
    model = adapted("prefix", adapter_tokens=3)
    torch.nn.init.normal_(next(p for p in model.parameters() if p.requires_grad))
    twin = Lowered(model, "bf16")
    twin.refresh()
    assert apart(twin.model, model.eval()) < 0.05


def test_a_refresh_that_is_interrupted_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    twin = Lowered(model, "bf16")
    twin.refresh()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(-1.5)
    fill, count = Matrix.fill, 0

    def interrupted(self: Matrix, *args: Tensor) -> None:
        nonlocal count
        count += 1
        if count == 3:
            raise KeyboardInterrupt
        fill(self, *args)

    monkeypatch.setattr(Matrix, "fill", interrupted)
    with pytest.raises(KeyboardInterrupt):
        twin.refresh()
    monkeypatch.setattr(Matrix, "fill", fill)
    twin.refresh()
    fresh = Lowered(model, "bf16")
    fresh.refresh()
    assert torch.equal(logits(twin.model), logits(fresh.model))
