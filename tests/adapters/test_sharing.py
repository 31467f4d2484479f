"""One copy of the base weights for policy, reference, reward model and critic; and PPO learns with LoRA."""

from pathlib import Path
from typing import Any

import pytest
import torch
from adapted import KINDS, adapted, chat_format, saved_base, some_tokens, stir, tiny
from torch import nn

from chatloom import adapters, checkpoint, models
from chatloom.adapters import AdapterConfig
from chatloom.engine.engine import Engine
from chatloom.models import Decoder, RewardModel, ValueModel, llama
from chatloom.rl.config import PPOConfig
from chatloom.rl.loop import PPO
from chatloom.rl.rewards import critic_from
from chatloom.rl.training import actor_objective, actor_training, critic_objective, critic_training, num_updates
from chatloom.train.train_config import TrainConfig
from chatloom.train.trainer import Trainer

LORA = AdapterConfig(adapter="lora", adapter_rank=16)


def parts(base: Decoder, config: AdapterConfig) -> tuple[Decoder, Decoder, RewardModel, ValueModel]:
    """Policy, reference, reward model and critic on one set of weights, as `stages.ppo` makes them."""
    base.requires_grad_(False)
    names = models.stored_names(base)
    reward = RewardModel(adapters.shared(base))
    adapters.attach(reward.trunk, config, names=names)
    reference = adapters.shared(base)
    adapters.attach(base, config, names=names)
    critic = critic_from(reward, "zero")
    reward.requires_grad_(False)
    return base, reference, reward, critic


def distinct(*modules: nn.Module) -> dict[int, torch.Tensor]:
    """Parameters of all, each storage once."""
    return {parameter.data_ptr(): parameter for module in modules for parameter in module.parameters()}


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_one_copy_of_the_base(family: str) -> None:
    base = tiny(family)
    own = {name: parameter.data_ptr() for name, parameter in base.named_parameters()}
    policy, reference, reward, critic = parts(base, KINDS["lora"])
    trunks = [policy, reference, reward.trunk, critic.trunk]
    for trunk in trunks:
        found = {name: parameter.data_ptr() for name, parameter in trunk.named_parameters()}
        assert {name: found[name] for name in own} == own
        assert {buffer.data_ptr() for buffer in trunk.buffers()} == {buffer.data_ptr() for buffer in base.buffers()}
    # The adapters, though, are four different things, and so are the modes.
    updates = [next(iter(adapters.loras(trunk).values()), None) for trunk in trunks]
    assert updates[1] is None
    assert len({update.B.weight.data_ptr() for update in updates if update is not None}) == 3
    stir(policy)
    expected = tiny(family)(some_tokens())
    assert torch.equal(reference(some_tokens()), expected)
    assert not torch.allclose(policy(some_tokens()), expected, atol=0.05)
    policy.train()
    assert not reference.training


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_frozen_may_be_held_in_the_type_of_the_products(kind: str) -> None:
    policy, reference, _, critic = parts(tiny("llama"), KINDS[kind])
    stir(policy)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        before = [model(some_tokens()) for model in (policy, reference, critic)]
        adapters.hold_frozen(policy, torch.bfloat16)
        after = [model(some_tokens()) for model in (policy, reference, critic)]
    assert all(torch.equal(a, b) for a, b in zip(before, after))
    matrix = policy.get_parameter("blocks.0.attention.query.weight")
    assert matrix.dtype == (torch.float32 if kind == "dora" else torch.bfloat16)
    assert matrix.data_ptr() == critic.trunk.get_parameter("blocks.0.attention.query.weight").data_ptr()
    trained = {parameter.dtype for parameter in policy.parameters() if parameter.requires_grad}
    assert trained == {torch.float32}


def test_memory_of_everything_is_at_most_1_6_times_the_base() -> None:
    """A model of 135 million parameters (SmolLM2's shape), rank 16 on every layer, on the meta device.

    Counted are all tensors of policy, reference, reward model and critic with their gradients, both optimizers' two
    moments and the policy's average.
    """
    with torch.device("meta"):
        config = llama.Config(49_152, 2048, 30, 576, 9, 3, 1536)
        base = llama.Model(config)
    size = sum(parameter.numel() for parameter in base.parameters())
    assert size == 134_515_008
    with torch.device("meta"):
        everything = parts(base, LORA)
    tensors = {id(parameter): parameter for module in everything for parameter in module.parameters()}
    total = sum(parameter.numel() for parameter in tensors.values())
    trained = {
        "policy": sum(p.numel() for p in everything[0].parameters() if p.requires_grad),
        "critic": sum(p.numel() for p in everything[3].parameters() if p.requires_grad),
    }
    assert trained["policy"] == 4_884_480
    total += 4 * trained["policy"] + 3 * trained["critic"]  # gradient, two moments, average; no average of the critic
    assert 1.0 < total / size < 1.6
    assert total / size == pytest.approx(1.363, abs=0.001)


def make_ppo(folder: Path | None = None, *, adaptation: AdapterConfig = KINDS["lora"], **changes: Any) -> PPO:
    from ppo_parts import PROMPTS, SMALL, letters

    from chatloom.rl.rewards import RuleReward

    config = PPOConfig(**{**SMALL, **changes})
    torch.manual_seed(0)
    policy, reference, _, critic = parts(tiny("llama"), adaptation)
    actor = Trainer(
        policy,
        actor_objective(config),
        actor_training(config),
        total_steps=num_updates(config, of="actor"),
        run_folder=folder,
    )
    trained = Trainer(
        critic, critic_objective(config), critic_training(config), total_steps=num_updates(config, of="critic")
    )
    return PPO(
        config,
        actor=actor,
        critic=trained,
        reference=reference,
        reward=RuleReward(letters),
        engine=Engine(policy, chat_format().tokenizer),
        chat=chat_format(),
        prompts=PROMPTS,
    )


@pytest.fixture
def rl_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "rl"))


@pytest.mark.usefixtures("rl_parts")
def test_ppo_with_lora_starts_at_the_reference_and_raises_a_known_reward() -> None:
    options: dict[str, Any] = {
        "iterations": 12,
        "episodes_per_iteration": 64,
        "epochs_per_batch": 4,
        "actor_learning_rate": 2e-2,
        "critic_learning_rate": 1e-2,
        "warmup_iterations": 3,
        "kl_coefficient": 0.01,
    }
    ppo = make_ppo(**options)
    base = {name: tensor.clone() for name, tensor in ppo.reference.state_dict().items()}
    history = [ppo.iteration()]
    assert ppo.findings == []  # an adapter that changes nothing yet is no stale reference
    history += [ppo.iteration() for _ in range(11)]
    scores = [metrics["objective/score"] for metrics in history]
    assert scores[0] < 0.4
    assert sum(scores[-2:]) / 2 > 0.8
    assert history[0]["rollout/logprob_difference"] < 1e-5
    for module in (ppo.reference, ppo.actor.model, ppo.critic.model.trunk):
        assert all(torch.equal(module.state_dict()[name], tensor) for name, tensor in base.items())


@pytest.mark.usefixtures("rl_parts")
def test_the_first_ratio_is_exactly_one_and_kl_zero() -> None:
    for kind in ("lora", "dora"):
        metrics = make_ppo(adaptation=KINDS[kind], epochs_per_batch=1, minibatches=1).iteration()
        assert metrics["val/ratio"] == 1.0
        assert metrics["objective/kl"] == 0.0


def test_a_reward_adapter_is_put_on_the_policys_weights(tmp_path: Path) -> None:
    trained = RewardModel(adapted(saved_base(tmp_path / "base", "llama"), KINDS["lora"])).eval()
    trained.gain, trained.bias = 2.0, 0.5
    checkpoint.save_adapter(tmp_path / "reward", trained, chat_format(), base=str(tmp_path / "base"))
    assert checkpoint.is_adapter_of(tmp_path / "reward", tmp_path / "base")
    assert not checkpoint.is_adapter_of(tmp_path / "base", tmp_path / "base")
    policy = checkpoint.load_pretrained(tmp_path / "base").model.requires_grad_(False)
    opened = checkpoint.load_reward(tmp_path / "reward", trunk=adapters.shared(policy)).model
    tokens, ends = some_tokens(), torch.tensor([[0, 3], [2, 16]])
    assert torch.equal(opened(tokens, ends=ends), trained(tokens, ends=ends))
    assert distinct(policy).keys() <= distinct(opened).keys()
    # The critic goes on with the reward model's adapter, on a copy of it.
    critic = critic_from(opened, "reward_model")
    values = critic(tokens)
    assert torch.allclose(values[ends[:, 0], ends[:, 1]], opened(tokens, ends=ends), atol=1e-5)
    Trainer(critic, critic_objective(PPOConfig()), TrainConfig(), total_steps=1)
    stir(critic)
    assert torch.equal(opened(tokens, ends=ends), trained(tokens, ends=ends))
    assert distinct(policy).keys() <= distinct(critic).keys()
