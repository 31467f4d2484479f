"""AdamW is torch's; Muon is compared with a slow version that takes one matrix at a time."""

import copy
import subprocess
import sys

import pytest
import torch
from torch import Tensor, nn

from chatloom.models import RewardModel, build, gpt2, llama
from chatloom.train.optimizers import MuonAdamW, build_optimizer, hidden_matrices, orthogonalise
from chatloom.train.train_config import TrainConfig

TINY = llama.Config(vocab_size=13, context_length=8, num_layers=2, width=16, num_heads=2, num_key_value_heads=1,
                    inner_width=24, tie_embeddings=False)  # fmt: skip


def set_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def names_of(optimizer: MuonAdamW, **wanted: object) -> set[str]:
    groups = [group for group in optimizer.param_groups if all(group[key] == value for key, value in wanted.items())]
    return {name for group in groups for name in group["parameters"]}


def test_muon_takes_the_matrices_inside_blocks_only() -> None:
    model = RewardModel(build(TINY))
    optimizer = build_optimizer(model, TrainConfig(optimizer="muon"))
    muon = names_of(optimizer, algorithm="muon")
    assert muon == hidden_matrices(model)
    assert len(muon) == 2 * 7
    assert {"trunk.embedding.weight", "trunk.head.weight", "score_head.weight"}.isdisjoint(muon)
    assert len(names_of(optimizer)) == len(list(model.parameters()))


def test_only_matrices_decay() -> None:
    model = build(gpt2.Config(vocab_size=13, context_length=8, num_layers=1, width=16, num_heads=2))
    optimizer = build_optimizer(model, TrainConfig(weight_decay=0.1))
    decayed = names_of(optimizer, weight_decay=0.1)
    assert decayed == {name for name, parameter in model.named_parameters() if parameter.ndim == 2}
    assert any("bias" in name for name in names_of(optimizer, weight_decay=0.0))


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_every_step_is_seen(name: str) -> None:
    model = build(TINY)
    optimizer = build_optimizer(model, TrainConfig(optimizer=name))  # type: ignore[arg-type]
    for seed in range(2):
        set_gradients(model, seed)
        before = {name: parameter._version for name, parameter in model.named_parameters()}
        optimizer.step()
        assert all(parameter._version > before[name] for name, parameter in model.named_parameters())


def test_frozen_parameters_are_left_out() -> None:
    model = build(TINY)
    model.embedding.requires_grad_(False)
    assert "embedding.weight" not in names_of(build_optimizer(model, TrainConfig()))
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="all are frozen"):
        build_optimizer(model, TrainConfig())


def test_muon_without_blocks() -> None:
    with pytest.raises(ValueError, match="use optimizer = 'adamw'"):
        build_optimizer(nn.Linear(2, 2), TrainConfig(optimizer="muon"))


def test_adamw_is_torchs() -> None:
    config = TrainConfig(learning_rate=0.01, betas=(0.8, 0.9), epsilon=1e-5, weight_decay=0.3)
    ours, theirs = build(TINY), build(TINY)
    theirs.load_state_dict(ours.state_dict())
    matrices = [p for p in theirs.parameters() if p.ndim >= 2]
    vectors = [p for p in theirs.parameters() if p.ndim < 2]
    reference = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.3}, {"params": vectors, "weight_decay": 0.0}],
        lr=0.01, betas=(0.8, 0.9), eps=1e-5,
    )  # fmt: skip
    optimizer = build_optimizer(ours, config)
    for seed in range(3):
        set_gradients(ours, seed)
        set_gradients(theirs, seed)
        optimizer.step()
        reference.step()
    for parameter, expected in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=1e-5, atol=1e-7)


def slow_muon(weight: Tensor, gradients: list[Tensor], *, lr: float, momenta: list[float], decay: float) -> Tensor:
    """Jordan 2024, line by line, for one matrix in fp32."""
    average = torch.zeros_like(weight)
    for gradient, momentum in zip(gradients, momenta, strict=True):
        average = momentum * average + (1 - momentum) * gradient
        x = momentum * average + (1 - momentum) * gradient
        x = x / x.norm()
        for _ in range(5):
            gram = x @ x.T
            x = 3.4445 * x - 4.7750 * gram @ x + 2.0315 * gram @ gram @ x
        weight = weight * (1 - lr * decay)
        weight = weight - lr * max(1.0, len(weight) / len(weight.T)) ** 0.5 * x
    return weight


def test_muon_against_a_slow_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("chatloom.train.optimizers._iteration_dtype", lambda device: torch.float32)
    config = TrainConfig(
        optimizer="muon", muon_learning_rate=0.1, muon_weight_decay=0.2, muon_momentum=0.95, muon_momentum_steps=2
    )
    model = build(TINY)
    names = sorted(hidden_matrices(model))
    first = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    gradients: dict[str, list[Tensor]] = {name: [] for name in names}
    optimizer = build_optimizer(model, config)
    for seed in range(3):
        set_gradients(model, seed)
        for name in names:
            gradient = model.get_parameter(name).grad
            assert gradient is not None
            gradients[name].append(gradient.clone())
        optimizer.step()
    for name in names:
        momenta = [0.85, 0.90, 0.95]  # the warm-up over two updates
        expected = slow_muon(first[name], gradients[name], lr=0.1, momenta=momenta, decay=0.2)
        torch.testing.assert_close(model.get_parameter(name), expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3, 16, 16), (2, 48, 16), (2, 16, 48)])
def test_singular_values_come_near_one(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices, dtype=dtype)
    values = torch.linalg.svdvals(result.float())
    assert result.shape == shape
    assert values.max() < 1.3
    assert values.median() > 0.6
    # Same singular vectors: the polar factor U V^T has the largest possible product with the matrix.
    left, _, right = torch.linalg.svd(matrices, full_matrices=False)
    overlap = (result.float() * (left @ right)).sum() / (result.float().norm() * (left @ right).norm())
    assert overlap > 0.97


def test_a_matrix_is_treated_alike_alone_and_in_company() -> None:
    matrices = torch.randn(4, 16, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(orthogonalise(matrices)[2:3], orthogonalise(matrices[2:3]))


def test_zeros_stay_zeros() -> None:
    assert orthogonalise(torch.zeros(1, 4, 4)).count_nonzero() == 0


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_state_round_trip(name: str) -> None:
    config = TrainConfig(optimizer=name, learning_rate=0.01)  # type: ignore[arg-type]
    model = build(TINY)
    optimizer = build_optimizer(model, config)
    set_gradients(model, 0)
    optimizer.step()
    twin = copy.deepcopy(model)
    other = build_optimizer(twin, config)
    other.load_state_dict(optimizer.state_dict())
    for each, its in ((model, optimizer), (twin, other)):
        set_gradients(each, 1)
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters(), strict=True))


def test_state_of_another_optimizer() -> None:
    model = build(TINY)
    optimizer = build_optimizer(model, TrainConfig(optimizer="muon"))
    set_gradients(model, 0)
    optimizer.step()
    with pytest.raises(ValueError, match=r"keeps momentum of blocks\.0.*, which this one does not"):
        build_optimizer(model, TrainConfig()).load_state_dict(optimizer.state_dict())


def test_no_compiler_is_imported() -> None:
    code = (
        "import sys, torch; from chatloom.train.optimizers import build_optimizer;"
        "from chatloom.train.train_config import TrainConfig;"
        "layer = torch.nn.Linear(2, 2); layer(torch.ones(2)).sum().backward();"
        "build_optimizer(layer, TrainConfig()).step(); assert 'torch._dynamo' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
