"""How much memory a model takes to use and to train, known before anything is launched.

The estimate is a rehearsal: the same model, objective and number of tokens run on tensors that have shapes but no
numbers (torch's fake tensors), and what would be alive at each moment is added up. So no formula has to be kept in step
with the families, and a 7B model is rehearsed on a laptop. Tests measure real steps with the same count (`LiveBytes`).

Counted are tensors: weights, gradients, Adam's two averages, activations, caches, logits. Not counted are Python and
torch themselves (about 0.3 GB), what the allocator leaves unused, and the data. Every token is taken to count in the
loss, which is the most that it can be.
"""

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from chatloom import adapters, models, runtime
from chatloom.adapters import AdapterConfig
from chatloom.engine import native
from chatloom.engine.cache_config import PLAIN, CacheConfig
from chatloom.engine.capacity import bytes_of_a_token
from chatloom.engine.engine import BLOCK_SIZE, STEP_TOKENS
from chatloom.engine.quantised import num_bytes, stored_in
from chatloom.models import Decoder, DecoderConfig, RewardModel, ValueModel
from chatloom.nn.experts import Experts
from chatloom.nn.sinks import AT_ONCE
from chatloom.objectives import Loss, ppo
from chatloom.objectives.causal_lm import cross_entropy

LORA = AdapterConfig(adapter="lora")
ALL = AdapterConfig()  # no adapter: all weights are trained


class LiveBytes(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that operations under it make, while they live; `peak` is the most at a time."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._alive: dict[int, Any] = {}

    def watch(self, module: nn.Module) -> None:
        """Count a module's weights and buffers, which were there before."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._add(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._add(each)
        return result

    def _add(self, tensor: Tensor) -> None:
        held: Any = tensor.untyped_storage()
        key = id(held)
        if key in self._alive:
            return
        num_bytes = held.nbytes()
        self._alive[key] = weakref.finalize(held, self._remove, key, num_bytes)
        self.now += num_bytes
        self.peak = max(self.peak, self.now)

    def _remove(self, key: int, num_bytes: int) -> None:
        self.now -= num_bytes
        self._alive.pop(key, None)


@dataclass(frozen=True)
class Memory:
    """Peak bytes of each use at a batch of rows of a length; training in fp32 weights."""

    inference: int
    sft: int
    lora: int
    ppo: int
    ppo_lora: int


def estimate(
    config: DecoderConfig,
    *,
    rows: int,
    length: int,
    weights_dtype: torch.dtype,
    dtype: str,
    kept: CacheConfig = PLAIN,
) -> Memory:
    """Rehearse all five; LoRA is that of `--adapter lora` without further options.

    Args:
        config: the model's.
        rows: rows of a micro-batch, or conversations answered at a time.
        length: tokens of a row, or of a conversation with its answer.
        weights_dtype: of the weights when the model is used; training keeps them fp32.
        dtype: of the matrix products in training, "fp32" or "bf16"; "int8" and "int4" are of inference.
        kept: how inference keeps keys and values; PPO's rollouts keep them as they are computed.
    """
    shape: dict[str, Any] = {"rows": rows, "length": length, "dtype": training_dtype(dtype)}
    own = "bf16" if weights_dtype == torch.bfloat16 else "fp32"
    return Memory(
        inference(config, rows=rows, length=length, dtype=weights_dtype, kept=kept)
        + copies(config, dtype if dtype in runtime.QUANTISED else own),
        supervised(config, **shape),
        supervised(config, **shape, adaptation=LORA),
        reinforced(config, **shape),
        reinforced(config, **shape, adaptation=LORA),
    )


def training_dtype(dtype: str) -> str:
    """What training is in where decoding is in `dtype`."""
    return "bf16" if dtype in runtime.QUANTISED else dtype


def copies(config: DecoderConfig, dtype: str) -> int:
    """Bytes of the matrices that a CPU reads when it decodes a model in `dtype` whose own weights are not narrower."""
    cpu = torch.device("cpu")
    if dtype == "fp32" or (dtype == "bf16" and not native.available(cpu)):
        return 0
    model = _shapes(config)
    kept = {id(module.router) for module in model.modules() if isinstance(module, Experts)}
    linear = {path: each for path, each in model.named_modules() if isinstance(each, nn.Linear)}
    weights = {path: each.weight for path, each in linear.items() if id(each) not in kept or dtype == "bf16"}
    if model.head is None:
        weights["head"] = model.embedding.weight
    return sum(num_bytes(stored_in(path, dtype), len(weight), weight.shape[1], cpu) for path, weight in weights.items())


@contextlib.contextmanager
def _rehearsal() -> Iterator[LiveBytes]:
    state = torch.get_rng_state()
    with FakeTensorMode(), LiveBytes() as live:
        yield live
    torch.set_rng_state(state)


# --- the uses ---------------------------------------------------------------------------------------------------


def inference(config: DecoderConfig, *, rows: int, length: int, dtype: torch.dtype, kept: CacheConfig = PLAIN) -> int:
    """Weights, the cache of keys and values, and what the prefill of prompts that nearly fill the rows takes; bytes."""
    window = kept.attention_window
    piece = min(length, STEP_TOKENS, window or length)  # the tokens of a prompt that the engine reads in a step
    at_once = min(rows, STEP_TOKENS // piece)
    with _rehearsal() as live, torch.no_grad():
        model = _evenly_routed(_built(config, dtype)).eval()
        weights = live.peak = live.now
        model.hidden(_tokens(at_once, piece))
        prefill = live.peak - weights
        last = torch.empty(rows, config.width, dtype=dtype)
        live.peak = live.now
        model.logits(last).float()
        sampling = live.peak - weights + rows * config.vocab_size * 4  # and the probabilities
    remembered = length if kept.kept is None else min(length, BLOCK_SIZE * kept.kept.num_blocks(BLOCK_SIZE))
    cache = rows * remembered * bytes_of_a_token(config, dtype, kept.kv_dtype)
    if kept.kv_dtype is not None:  # one layer's, dequantised
        cache += rows * remembered * bytes_of_a_token(config, dtype) // config.num_layers
    mask = at_once * piece * length  # who sees whom, a byte each: prompts need not be of one length
    if window is not None:  # scores and shares of some queries, written out
        seen = min(length, window + kept.attention_sinks + AT_ONCE + 2 * BLOCK_SIZE)
        mask = seen * (at_once * piece + 2 * 4 * config.num_heads * min(piece, AT_ONCE))
    elif piece < length:  # a number each for the kernel, which is given the past's keys and values for every head
        size, heads = torch.finfo(dtype).bits // 8, config.num_heads + config.num_key_value_heads
        mask += length * (piece + 2 * heads * config.head_width) * size
    return weights + cache + max(prefill + mask, sampling)


def supervised(config: DecoderConfig, *, rows: int, length: int, dtype: str, adaptation: AdapterConfig = ALL) -> int:
    """An update of all weights, or of an adapter; bytes."""
    with _rehearsal() as live:
        model = _evenly_routed(models.build(config))
        adapters.attach(model, adaptation, names=models.stored_names(model))
        _hold_frozen(model, adaptation, dtype)
        kept = _averages(model)
        live.peak = live.now
        tokens = _tokens(rows, length)
        with runtime.autocast(torch.device("cpu"), dtype):
            hidden = model.hidden(tokens, documents=torch.ones_like(tokens, dtype=torch.int32)).flatten(0, 1)
            loss = cross_entropy(model, hidden, tokens.flatten())
        del hidden
        loss.total.backward()  # type: ignore[no-untyped-call]
        del kept
        return live.peak


def reinforced(config: DecoderConfig, *, rows: int, length: int, dtype: str, adaptation: AdapterConfig = ALL) -> int:
    """PPO's four networks of one size: policy and critic in training, reference and reward model at rest; bytes.

    With an adapter they share one copy of the weights, as where the reward model is an adapter of the policy's base.
    """
    rollout = inference(config, rows=rows, length=length, dtype=runtime.pick_dtype(dtype))
    if dtype == "fp32":  # decoded from the policy's own weights; else from a copy of its matrices in that type
        rollout -= 4 * models.num_parameters(_shapes(config))
    with _rehearsal() as live:
        policy, critic, *resting = _networks(config, adaptation)
        _hold_frozen(policy, adaptation, dtype)
        kept = [*_averages(policy), *_averages(critic)]
        at_rest = live.peak = live.now
        fields = ("old_logprobs", "advantages", "old_values", "returns")
        tokens = _tokens(rows, length)
        batch: dict[str, Any] = {name: torch.zeros(1, rows * length) for name in fields}
        # One row of all tokens and the index 0 stand for "every token is an action", which needs no numbers.
        batch |= {
            "tokens": tokens.view(1, -1),
            "documents": torch.ones_like(tokens, dtype=torch.int32).view(1, -1),
            "actions": 0,
        }
        for model, objective in ((_InRows(policy, rows), ppo.policy()), (_InRows(critic, rows), ppo.value())):
            with runtime.autocast(torch.device("cpu"), dtype):
                loss: Loss = objective(model, batch)
            loss.total.backward()  # type: ignore[no-untyped-call]
            model.zero_grad()
            del loss
        peak = live.peak
        del resting, kept
    return max(peak, at_rest + rollout)


class _InRows(nn.Module):
    """A model that is given all tokens as one row, reads them as `rows` rows, and gives one row back."""

    def __init__(self, model: nn.Module, rows: int) -> None:
        super().__init__()
        self.model, self.rows = model, rows
        self.config: Any = model.config if isinstance(model, Decoder) else None

    def hidden(self, tokens: Tensor, *, documents: Tensor) -> Tensor:
        network: Any = self.model
        hidden: Tensor = network.hidden(tokens.view(self.rows, -1), documents=documents.view(self.rows, -1))
        return hidden.flatten(0, 1)[None]

    def logits(self, hidden: Tensor) -> Tensor:
        network: Any = self.model
        logits: Tensor = network.logits(hidden)
        return logits

    def forward(self, tokens: Tensor, *, documents: Tensor) -> Tensor:
        values: Tensor = self.model(tokens.view(self.rows, -1), documents=documents.view(self.rows, -1))
        return values.flatten()[None]


def _networks(config: DecoderConfig, adaptation: AdapterConfig) -> tuple[Decoder, ValueModel, Decoder, RewardModel]:
    """Policy, critic, reference and reward model, as `stages.ppo` makes them."""
    policy = _evenly_routed(models.build(config))
    if adaptation.adapter is None:
        critic = ValueModel(_evenly_routed(models.build(config)))
        return policy, critic, models.build(config), RewardModel(models.build(config))
    names = models.stored_names(policy)
    policy.requires_grad_(False)
    reference, *adapted = (adapters.shared(policy) for _ in range(3))
    for each in (policy, *adapted):
        adapters.attach(each, adaptation, names=names)
    rewarded, critic = RewardModel(adapted[0]), ValueModel(adapted[1])
    rewarded.requires_grad_(False)
    return policy, critic, reference, rewarded


def _hold_frozen(model: Decoder, adaptation: AdapterConfig, dtype: str) -> None:
    if adaptation.adapter is not None and dtype != "fp32":
        adapters.hold_frozen(model, runtime.pick_dtype(dtype))


def _evenly_routed(model: Decoder) -> Decoder:
    """A mixture without numbers cannot say how many tokens go to which expert: to all alike."""
    for module in model.modules():
        if isinstance(module, Experts):
            module.counts = _evenly  # type: ignore[method-assign]
    return model


def _evenly(chosen: Tensor, num_experts: int) -> list[int]:
    total = chosen.numel()
    return [total * (expert + 1) // num_experts - total * expert // num_experts for expert in range(num_experts)]


def _built(config: DecoderConfig, dtype: torch.dtype) -> Decoder:
    """A model of that type from the start: a fake one cannot be converted."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        return models.build(config)
    finally:
        torch.set_default_dtype(default)


def _tokens(rows: int, length: int) -> Tensor:
    return torch.zeros(rows, length, dtype=torch.int64)


def _averages(model: nn.Module) -> list[Tensor]:
    """Adam's two averages of every trained weight (Kingma and Ba 2015)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [torch.zeros_like(parameter) for parameter in trained for _ in range(2)]


def _shapes(config: DecoderConfig) -> Decoder:
    with torch.device("meta"):
        return models.build(config)
