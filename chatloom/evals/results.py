"""The schema of report.json: what an evaluation found, as frozen dataclasses.

A stage fills `Results` with what it measured and leaves the rest at its default: every part of the report that has
no numbers is left out rather than drawn empty. Nothing here computes; `write` and `read` turn it into JSON and back.
Stages are known by name: BASE, SFT, BEST_OF_N (several, one per n), PPO and PPO_PTX.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from chatloom import config, runtime
from chatloom.chat.message import Conversation
from chatloom.evals.intervals import Estimate
from chatloom.evals.judge import Calibration

BASE, SFT, PPO, PPO_PTX = "base", "sft", "ppo", "ppo_ptx"
BEST_OF_N = "best_of_"  # followed by n: "best_of_4"
FORMAT = "chatloom.report/1"


@dataclass(frozen=True)
class CategoryResult:
    """One use case: the share of instructions followed and the mean gold score."""

    category: str
    follows: Estimate
    gold: Estimate


@dataclass(frozen=True)
class StageResult:
    """What one model reached on the held-out prompts; shares lie in [0, 1]."""

    name: str  # BASE, SFT, "best_of_4", PPO, PPO_PTX or any other name
    label: str  # what a reader calls it: "Base, few-shot"
    follows: Estimate | None = None  # share of instructions followed by greedy answers, by the checker
    follows_sampled: Estimate | None = None  # the same of answers sampled at the evaluation's temperature
    gold: Estimate | None = None  # mean gold score, as everything below of sampled answers
    win_rate: Estimate | None = None  # against SFT by gold score; None for SFT itself
    gold_over_best: Estimate | None = None  # gold score minus that of best-of-n, paired by prompt
    win_rate_greedy: Estimate | None = None  # the same of greedy answers
    bits_per_byte: Estimate | None = None  # on held-out documents; None for best-of-n
    bits_per_byte_rise: Estimate | None = None  # minus SFT's, paired by document
    perplexity_rise: Estimate | None = None  # over SFT's per token: 0.02 is 2 % more
    stop_rate: Estimate | None = None  # share of answers that end by themselves
    kl_nats: Estimate | None = None  # mean KL from SFT of a whole answer
    response_tokens: Estimate | None = None  # mean length of an answer
    categories: tuple[CategoryResult, ...] = ()  # of greedy answers, where there are any


@dataclass(frozen=True)
class RewardResult:
    """How well the reward model knows what people prefer."""

    gold_accuracy: Estimate | None = None  # pairs ordered as the noise-free gold score orders them
    label_accuracy: Estimate | None = None  # pairs ordered as the noisy labels order them
    labeler_agreement: Estimate | None = None  # pairs on which two labelers agree
    calibration: Calibration | None = None


@dataclass(frozen=True)
class BestOfN:
    """Best of n samples by the reward model."""

    n: int
    kl_nats: float  # rl.best_of.best_of_kl(n)
    gold: Estimate
    proxy: float | None = None  # mean reward-model score


@dataclass(frozen=True)
class PathPoint:
    """A policy on its way: KL from SFT, what the reward model says and what is true."""

    step: int
    kl_nats: float
    proxy: float
    gold: float


@dataclass(frozen=True)
class OptimisationPath:
    """Proxy and gold score along one PPO run (Gao, Schulman, Hilton 2022)."""

    stage: str  # PPO or PPO_PTX
    points: tuple[PathPoint, ...]
    parts_at_step: int | None = None  # where gold stops following the proxy; None: it never does


@dataclass(frozen=True)
class SampleAnswer:
    """One model's answer to a sample prompt, with the parts of its gold score."""

    stage: str
    text: str
    follows: bool
    score: float
    stopped: bool
    details: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Sample:
    """A held-out prompt and every model's answer to it."""

    category: str
    prompt: Conversation
    answers: tuple[SampleAnswer, ...]
    reference: str = ""


@dataclass(frozen=True)
class Diagnostic:
    """A check that explains itself in a sentence."""

    name: str
    verdict: Literal["good", "warning", "bad"]
    sentence: str


@dataclass(frozen=True)
class Claim:
    """A promise: what was aimed at, what was found, and whether that meets it."""

    target: str
    found: str
    met: bool


@dataclass(frozen=True)
class LineageStep:
    """One link of data -> tokenizer -> base -> SFT -> reward model -> policy."""

    kind: str  # "data", "tokenizer", "base", "sft", "reward", "policy"
    name: str  # path or name
    digest: str


@dataclass(frozen=True)
class ResourceUse:
    """What a stage cost; None where it was not measured."""

    stage: str
    seconds: float
    peak_memory_bytes: int | None = None
    num_parameters: int | None = None
    num_tokens: int | None = None  # tokens processed


@dataclass(frozen=True)
class Results:
    """All that the report shows; the order of `stages` is the order of rows, bars and columns."""

    title: str
    stages: tuple[StageResult, ...]
    description: str = ""  # a sentence or two: the model, the data, the machine
    created: str = ""  # ISO 8601
    seed: int | None = None
    num_prompts: int | None = None
    reward: RewardResult | None = None
    best_of_n: tuple[BestOfN, ...] = ()
    paths: tuple[OptimisationPath, ...] = ()
    samples: tuple[Sample, ...] = ()
    diagnostics: tuple[Diagnostic, ...] = ()
    promises: tuple[Claim, ...] | None = None  # None: the quickstart's, as `claims` computes them
    lineage: tuple[LineageStep, ...] = ()
    resources: tuple[ResourceUse, ...] = ()
    commands: tuple[str, ...] = ()  # exactly what was run
    chat_command: str = ""
    config: dict[str, Any] = field(default_factory=dict)  # the stages' configs, by stage

    def stage(self, name: str) -> StageResult | None:
        """The stage of that name, if it was evaluated."""
        return next((stage for stage in self.stages if stage.name == name), None)


def to_json(results: Results, **derived: Any) -> str:
    """The text of report.json; `derived` holds what was computed from the results for a reader's convenience."""
    data = {"format": FORMAT, **config.to_dict(results), "derived": derived}
    return json.dumps(data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def write(results: Results, path: Path, **derived: Any) -> None:
    """Write report.json atomically."""
    runtime.write_atomically(path, to_json(results, **derived))


def read(path: Path) -> Results:
    """Read report.json. Raises ValueError for a file of another format."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict) or data.pop("format", None) != FORMAT:
        raise ValueError(f"{path} is not a report of format {FORMAT!r}; write it again with `chatloom evaluate`")
    data.pop("derived", None)
    return config.from_dict(Results, data)
