"""AdamW for everything, or Muon for the matrices inside the blocks and AdamW for the rest: one optimizer, one state.

Facts worth knowing:
* AdamW (Loshchilov and Hutter 2017) decays matrices only (nanoGPT); norms and biases never. torch's fused kernel is
  used where there is one, the CPU included: 60 matrices of 128 x 128 take 0.7 ms instead of 4.3 ms.
* Muon (Jordan 2024) replaces a matrix's Nesterov momentum by the nearest matrix with all singular values near 1,
  found by five steps of a quintic Newton-Schulz iteration. Matrices of one shape are iterated together.
* The iteration runs in bf16 where that is fast, as in Jordan's own code: half the time of fp32 on a CPU with AVX-512
  bf16 (16 matrices of 128 x 128: 3.1 against 7.2 ms). It is deterministic either way.
* Embeddings, output heads, score heads, norms and biases are AdamW's: Muon takes the weight of every `nn.Linear` that
  stands below a module called `blocks`, in any model, however it is wrapped.
"""

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import increment_version
from torch.optim.adamw import adamw

from chatloom.train.train_config import TrainConfig

_QUINTIC = (3.4445, -4.7750, 2.0315)  # Jordan 2024: steepest at 0 among those that end near 1
_FIRST_MOMENTUM = 0.85


def build_optimizer(module: nn.Module, config: TrainConfig) -> "MuonAdamW":
    """The optimizer of `config` over the parameters of `module` that are trained.

    Raises:
        ValueError: nothing is trained, or `muon` finds no matrix inside `blocks`.
    """
    named = {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}
    if not named:
        raise ValueError(f"{type(module).__name__} has no parameter that is trained: all are frozen")
    matrices = hidden_matrices(module) if config.optimizer == "muon" else set()
    if config.optimizer == "muon" and not matrices:
        raise ValueError(
            f"{type(module).__name__} has no linear layer inside `blocks` for Muon; use optimizer = 'adamw'"
        )
    rest = {name: parameter for name, parameter in named.items() if name not in matrices}
    adamw_options = {"algorithm": "adamw", "lr": config.learning_rate, "betas": config.betas, "eps": config.epsilon}
    muon_options = {
        "algorithm": "muon",
        "lr": config.muon_learning_rate,
        "momentum": config.muon_momentum,
        "momentum_steps": config.muon_momentum_steps,
        "weight_decay": config.muon_weight_decay,
    }
    decayed = {name: parameter for name, parameter in rest.items() if parameter.ndim >= 2}
    others = {name: parameter for name, parameter in rest.items() if parameter.ndim < 2}
    hidden = {name: parameter for name, parameter in named.items() if name in matrices}
    groups = [
        {"parameters": decayed, "weight_decay": config.weight_decay, **adamw_options},
        {"parameters": others, "weight_decay": 0.0, **adamw_options},
        {"parameters": hidden, **muon_options},
    ]
    return MuonAdamW([group for group in groups if group["parameters"]])


def hidden_matrices(module: nn.Module) -> set[str]:
    """Names of the trained weights of linear layers inside `blocks`."""
    return {
        f"{path}.weight"
        for path, layer in module.named_modules()
        if isinstance(layer, nn.Linear) and "blocks" in path.split(".") and layer.weight.requires_grad
    }


class MuonAdamW:
    """Groups of named parameters; `algorithm` says how a group is updated, `base_lr` is what a schedule multiplies.

    It has the methods of a torch optimizer but is none: the first one that a process makes imports torch's compiler,
    which takes two seconds.
    """

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        self.param_groups = [{**group, "base_lr": group["lr"]} for group in groups]
        self.state: dict[str, dict[str, Tensor]] = {}  # by parameter name
        self.num_updates = 0

    @torch.no_grad()
    def step(self) -> None:
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            present = {name: p for name, p in group["parameters"].items() if p.grad is not None}
            if present:
                _UPDATES[group["algorithm"]](self, group, present)
        self.num_updates += 1

    def zero_grad(self) -> None:
        """Drop all gradients."""
        for parameter in self._parameters().values():
            parameter.grad = None

    def state_dict(self) -> dict[str, Any]:
        """Moments by parameter name, and the number of updates; the options are the config's."""
        return {"state": self.state, "num_updates": self.num_updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Undo of `state_dict`. Raises ValueError if it is of another model or another optimizer."""
        parameters = self._parameters()
        kinds = {name: group["algorithm"] for group in self.param_groups for name in group["parameters"]}
        for name, moments in state["state"].items():
            if name not in parameters or set(moments) != _STATE_KEYS[kinds[name]]:
                raise ValueError(
                    f"the checkpoint's optimizer keeps {', '.join(moments)} of {name}, which this one does not; "
                    "resume with the options that the run was started with"
                )
        self.state = {
            name: {key: moment.to(parameters[name].device, copy=True) for key, moment in moments.items()}
            for name, moments in state["state"].items()
        }
        self.num_updates = int(state["num_updates"])

    def _parameters(self) -> dict[str, nn.Parameter]:
        return {name: p for group in self.param_groups for name, p in group["parameters"].items()}

    def _adamw(self, group: dict[str, Any], parameters: dict[str, nn.Parameter]) -> None:
        for name, parameter in parameters.items():
            if name not in self.state:
                count = torch.zeros((), dtype=torch.float32, device=parameter.device)
                averages = {key: torch.zeros_like(parameter) for key in ("exp_avg", "exp_avg_sq")}
                self.state[name] = {"num_updates": count, **averages}
        states = [self.state[name] for name in parameters]
        beta1, beta2 = group["betas"]
        adamw(
            list(parameters.values()),
            [_gradient(parameter) for parameter in parameters.values()],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["num_updates"] for state in states],
            fused=next(iter(parameters.values())).device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
        # The fused kernel does not say that it wrote, and an engine would go on with the old weights.
        for parameter in parameters.values():
            increment_version(parameter)

    def _muon(self, group: dict[str, Any], parameters: dict[str, nn.Parameter]) -> None:
        warm = min(self.num_updates / max(1, group["momentum_steps"]), 1.0)
        momentum = _FIRST_MOMENTUM + (group["momentum"] - _FIRST_MOMENTUM) * warm
        if group["weight_decay"]:
            torch._foreach_mul_(list(parameters.values()), 1 - group["lr"] * group["weight_decay"])
        by_shape: dict[torch.Size, list[str]] = defaultdict(list)
        for name, parameter in parameters.items():
            if name not in self.state:
                self.state[name] = {"momentum": torch.zeros_like(parameter)}
            by_shape[parameter.shape].append(name)
        for (rows, columns), names in by_shape.items():
            alike: list[Tensor] = [parameters[name] for name in names]
            gradients = [_gradient(parameter) for parameter in alike]
            averages = [self.state[name]["momentum"] for name in names]
            torch._foreach_lerp_(averages, gradients, 1 - momentum)
            ahead = torch._foreach_lerp(gradients, averages, momentum)  # Nesterov
            updates = orthogonalise(torch.stack(list(ahead))).to(alike[0].dtype)  # (n, rows, columns)
            # A tall matrix's update is spread over more rows; this keeps its root-mean-square per row (Jordan 2024).
            rate = group["lr"] * max(1.0, rows / columns) ** 0.5
            torch._foreach_add_(alike, list(updates.unbind()), alpha=-rate)


_UPDATES = {"adamw": MuonAdamW._adamw, "muon": MuonAdamW._muon}
_STATE_KEYS = {"adamw": {"num_updates", "exp_avg", "exp_avg_sq"}, "muon": {"momentum"}}


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def orthogonalise(matrices: Tensor, *, num_steps: int = 5, dtype: torch.dtype | None = None) -> Tensor:
    """Newton-Schulz iteration towards U V^T of each matrix's singular value decomposition U S V^T (Jordan 2024).

    Args:
        matrices: (n, rows, columns); a matrix of zeros stays zeros.
        num_steps: five bring all but the smallest singular values to between about 0.7 and 1.2.
        dtype: of the iteration; None is bf16 where the device multiplies it fast, else fp32.
    """
    a, b, c = _QUINTIC
    x: Tensor = matrices / (torch.linalg.matrix_norm(matrices, keepdim=True) + 1e-7)  # largest singular value at most 1
    x = x.to(dtype or _iteration_dtype(matrices.device))
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    for _ in range(num_steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return x.mT if tall else x


def _iteration_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    fast = getattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    return torch.bfloat16 if device.type == "cpu" and fast() else torch.float32
