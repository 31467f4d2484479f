"""Collect comparisons without people: a model answers each prompt several times, a task's labeler ranks them.

InstructGPT's labelers ranked K = 4 to 9 answers of each prompt (Ouyang et al. 2022, section 3.5) and agreed with one
another on 73 % of the pairs. The simulated labeler knows the gold score and adds noise; the noise is set on this
model's own answers so that two such labelers agree just as often. An answer that ran into `max_tokens` is written with
`finish_reason` "length": a task's grade is told so, and whoever reads the file can leave it out.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import Any

from chatloom import runtime
from chatloom.chat.message import to_dicts
from chatloom.engine.cache_config import CacheConfig
from chatloom.engine.engine import Engine
from chatloom.engine.language_model import load
from chatloom.engine.request import SamplingParams
from chatloom.models.longer import ContextConfig
from chatloom.rl.rollout import Rollout, collect
from chatloom.stages.run import open_run
from chatloom.tasks import Example, Labeler, Task, calibrate_noise, get_task
from chatloom.train.progress import progress

TRAIN, VALIDATION = "comparisons.jsonl", "validation.jsonl"
_PROMPTS_AT_ONCE = 64


@dataclass(frozen=True)
class Config:
    """Sample answers to a task's prompts and rank them with its simulated labeler."""

    # Folder of the model that answers.
    model: str
    # Where comparisons.jsonl and validation.jsonl (one prompt in ten, at least one) are written.
    output_dir: str
    # Which task has the prompts, the gold score and the labeler.
    task: str = "miniature"
    # Prompts in all.
    num_prompts: int = 1000
    # Answers of a prompt, drawn evenly from this range (InstructGPT: 4 to 9).
    fewest_responses: int = 4
    most_responses: int = 9
    max_tokens: int = 64
    temperature: float = 1.0
    # Share of pairs on which two labelers agree (InstructGPT: 72.6 %). 1 is a labeler without noise.
    agreement: float = 0.73
    # Number type of generation: fp32, bf16, int8 or int4.
    dtype: str = "fp32"
    seed: int = 0
    context: ContextConfig = field(default_factory=ContextConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        if not 2 <= self.fewest_responses <= self.most_responses:
            raise ValueError(
                f"responses from {self.fewest_responses} to {self.most_responses}: "
                "give at least 2, and the fewest not above the most"
            )
        runtime.pick_dtype(self.dtype, quantised=True)
        if self.num_prompts < 2:
            raise ValueError(f"num_prompts is {self.num_prompts}; it must be at least 2")
        if not 0.5 < self.agreement <= 1:
            raise ValueError(f"agreement is {self.agreement}; it must be above 0.5 and at most 1")
        if not self.temperature > 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0, or all answers would be the same")


def run(config: Config) -> dict[str, Any]:
    """Sample, calibrate the labeler, rank, and write the comparisons."""
    stage = open_run("rank", config, inputs={"model": config.model})
    if stage.complete:
        return stage.results
    task = get_task(config.task)
    examples = task.examples("feedback", config.num_prompts, seed=config.seed)
    choose = random.Random(config.seed)
    counts = [choose.randint(config.fewest_responses, config.most_responses) for _ in examples]
    answers = _sample(config, examples, counts)
    noise = _noise(config, task, examples, answers)
    labeler = Labeler(config.seed, task=task, noise=noise)
    records = []
    for example, rollouts in zip(examples, answers):
        texts, stopped = _texts(rollouts)
        ranks = labeler.rank(example, texts, stopped=stopped)
        responses = [
            {"text": rollout.text, "rank": rank, "finish_reason": "stop" if rollout.stopped else "length"}
            for rollout, rank in zip(rollouts, ranks)
        ]
        if len(set(ranks)) > 1 and len({rollout.text for rollout in rollouts}) > 1:
            record = {"prompt": to_dicts(example.prompt), "responses": responses, "example": example.id}
            records.append(json.dumps(record, ensure_ascii=False))
    lines = _split(config, records)
    for name, chosen in lines.items():
        runtime.write_atomically(stage.folder / name, "\n".join(chosen) + "\n")
    stage.say(f"{sum(counts):,} answers to {len(examples):,} prompts; labeler's noise {noise:.3f}")
    return stage.finish(num_responses=sum(counts), noise=noise, **{name: len(lines[name]) for name in lines})


def _sample(config: Config, examples: Sequence[Example], counts: Sequence[int]) -> list[list[Rollout]]:
    """Each example's answers, `counts` of them."""
    lm = load(config.model, dtype="fp32", **asdict(config.context))
    engine = Engine(lm.model, lm.tokenizer, max_batch=256, autocast=config.dtype, **config.cache.options)
    answers: list[list[Rollout]] = []
    with progress("rank", sum(counts)) as advance:
        for at in range(0, len(examples), _PROMPTS_AT_ONCE):
            some = range(at, min(at + _PROMPTS_AT_ONCE, len(examples)))
            prompts = [examples[index].prompt for index in some for _ in range(counts[index])]
            seed = config.seed * 1_000_003 + at
            sampling = SamplingParams(max_tokens=config.max_tokens, temperature=config.temperature, seed=seed)
            rollouts = iter(collect(engine, lm.chat_format, prompts, sampling))
            answers += [[next(rollouts) for _ in range(counts[index])] for index in some]
            advance(len(prompts))
    return answers


def _split(config: Config, records: list[str]) -> dict[str, list[str]]:
    """One comparison in ten for validation, at least one; ValueError where there are not two."""
    if len(records) < 2:
        raise ValueError(
            f"{len(records)} of {config.num_prompts} prompts gave answers of which one is better, and at least 2 are "
            "needed; raise --num-prompts or --temperature"
        )
    chosen = set(range(len(records) - 1, -1, -10))
    return {
        TRAIN: [record for index, record in enumerate(records) if index not in chosen],
        VALIDATION: [record for index, record in enumerate(records) if index in chosen],
    }


def _noise(config: Config, task: Task, examples: Sequence[Example], answers: Sequence[Sequence[Rollout]]) -> float:
    """The noise at which two labelers agree as often as asked on pairs of different answers."""
    if config.agreement == 1:
        return 0.0
    pairs = []
    for example, rollouts in zip(examples, answers):
        different = {rollout.text: rollout for rollout in rollouts}.values()
        scores = [task.grade(example, rollout.text, stopped=rollout.stopped).score for rollout in different]
        pairs += list(combinations(scores, 2))
    try:
        return calibrate_noise(pairs, target=config.agreement)
    except ValueError as error:
        raise ValueError(f"the answers are too alike in gold score for --agreement: {error}") from error


def _texts(rollouts: Sequence[Rollout]) -> tuple[list[str], list[bool]]:
    return [rollout.text for rollout in rollouts], [rollout.stopped for rollout in rollouts]
