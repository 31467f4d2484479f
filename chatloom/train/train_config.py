"""Options of training that every stage shares, with where each default comes from."""

from dataclasses import dataclass
from typing import Literal

from chatloom.runtime import QUANTISED
from chatloom.train.schedules import SCHEDULES

OPTIMIZERS = ("adamw", "muon")
DTYPES = ("fp32", "bf16")  # fp16 would need loss scaling; bf16 has fp32's range


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; what is trained on, and for how long, is the stage's."""

    # --- optimizer ---

    # "muon": the matrices inside the blocks by Muon, the rest by AdamW; faster for training from scratch.
    optimizer: Literal["adamw", "muon"] = "adamw"
    # Of AdamW. nanoGPT's for a GPT-2 from scratch; 2e-5 is usual for fine-tuning a 7B model (Vicuna).
    learning_rate: float = 6e-4
    # Of Muon's matrices (Jordan 2024; nanochat).
    muon_learning_rate: float = 0.02
    # AdamW's averages of gradient and square: GPT-3 (Brown et al. 2020, appendix B).
    betas: tuple[float, float] = (0.9, 0.95)
    # AdamW's denominator. GPT-3's 1e-8; PPO uses 1e-5 (Ziegler et al. 2019, code).
    epsilon: float = 1e-8
    # AdamW, on matrices only: GPT-3's 0.1. Norms and biases never decay.
    weight_decay: float = 0.1
    # Muon's decay, multiplied by its larger learning rate; Jordan's has none.
    muon_weight_decay: float = 0.0
    # Muon's momentum rises from 0.85 to this within `muon_momentum_steps` updates (Jordan's speed runs; nanochat).
    muon_momentum: float = 0.95
    muon_momentum_steps: int = 300
    # Largest norm of the whole gradient, after summing over micro-batches and ranks (GPT-3). None: no clipping.
    clip_norm: float | None = 1.0

    # --- schedule ---

    # Cosine to a tenth is GPT-3's; linear to 0 is nanochat's for SFT; constant is InstructGPT's for PPO.
    schedule: Literal["constant", "linear", "cosine", "wsd", "warmdown"] = "cosine"
    warmup_steps: int = 0
    # Fraction of the learning rate where the warm-up starts; InstructGPT's PPO: 0.1.
    warmup_start: float = 0.0
    final_learning_rate_ratio: float = 0.1
    # Last part of the run in which "wsd" (None: 0.2) and "warmdown" (None: 0.65) let the learning rate fall.
    decay_fraction: float | None = None

    # --- model while training ---

    # InstructGPT's SFT: 0.2. Pretraining on plenty of text, the reward model and PPO: 0.
    dropout: float = 0.0
    # Average of the weights, new = decay * old + (1 - decay) * weights. InstructGPT's PPO: 0.992. None: no average.
    ema_decay: float | None = None
    # Of the matrix products; the weights and the optimizer stay fp32. bf16 is faster on CPUs and GPUs that have it.
    dtype: Literal["fp32", "bf16"] = "fp32"
    # Recompute activations in the backward pass: a third more compute for the memory of one block.
    gradient_checkpointing: bool = False

    # --- batch ---

    # Rows of one update, over all micro-batches and ranks.
    batch_rows: int = 32
    # Rows of one forward pass on one rank; only memory decides, the result is the same. None: all at once.
    microbatch_rows: int | None = None
    # Tokens of a row; several documents are packed into one. None: the model's context length.
    row_length: int | None = None

    # --- along the way ---

    save_every_steps: int = 100
    keep_checkpoints: int = 1
    log_every_steps: int = 1
    evaluate_every_steps: int = 100
    # Measure the held-out loss before the first update too: what there was to gain on a model that exists already.
    evaluate_at_start: bool = False
    # Also write TensorBoard event files (needs `pip install "chatloom[tensorboard]"`).
    tensorboard: bool = False
    # Stop when the loss is above this many times its running average (taken as at least 1) for several updates in a
    # row. For losses that are nats; None where a loss may be anything, as in PPO. A NaN always stops.
    max_loss_ratio: float | None = 3.0
    max_loss_patience: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        _one_of("schedule", self.schedule, SCHEDULES)
        if self.dtype in QUANTISED:
            raise ValueError(
                f"dtype is {self.dtype!r}, whose weights are only read (chat, evaluate, rank); training has "
                f"{' and '.join(DTYPES)}"
            )
        _one_of("dtype", self.dtype, DTYPES)
        for name in ("learning_rate", "muon_learning_rate", "epsilon"):
            _check(name, getattr(self, name), getattr(self, name) > 0, "a number above 0")
        for name in ("weight_decay", "muon_weight_decay", "warmup_steps", "muon_momentum_steps", "seed"):
            _check(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        for name in ("warmup_start", "final_learning_rate_ratio"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) <= 1, "between 0 and 1")
        for name in ("dropout", "muon_momentum"):
            _check(name, getattr(self, name), 0 <= getattr(self, name) < 1, "at least 0 and below 1")
        two = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        _check("betas", self.betas, two, "two numbers, each at least 0 and below 1")
        counts = ("save_every_steps", "keep_checkpoints", "log_every_steps", "evaluate_every_steps")
        for name in (*counts, "batch_rows", "max_loss_patience"):
            _check(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        for name in ("microbatch_rows", "row_length"):
            value = getattr(self, name)
            _check(name, value, value is None or value >= 1, "1 or more, or None")
        self._check_optional()

    def _check_optional(self) -> None:
        clip, average, ratio, part = self.clip_norm, self.ema_decay, self.max_loss_ratio, self.decay_fraction
        _check("clip_norm", clip, clip is None or clip > 0, "above 0, or None for no clipping")
        _check("ema_decay", average, average is None or 0 < average < 1, "between 0 and 1, or None for no average")
        _check("max_loss_ratio", ratio, ratio is None or ratio > 1, "above 1, or None for no limit")
        _check("decay_fraction", part, part is None or 0 < part <= 1, "above 0 and at most 1, or None")
        if part is not None and self.schedule not in ("wsd", "warmdown"):
            raise ValueError(f"schedule {self.schedule!r} has no decay_fraction; only wsd and warmdown do")
        if self.microbatch_rows is not None and self.microbatch_rows > self.batch_rows:
            raise ValueError(
                f"microbatch_rows is {self.microbatch_rows}, but a batch has only batch_rows = {self.batch_rows}"
            )


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} is {value!r}; allowed: {', '.join(allowed)}")


def _check(name: str, value: object, holds: bool, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} is {value}; it must be {allowed}")
