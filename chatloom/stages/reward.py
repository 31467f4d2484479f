"""Train a reward model on comparisons (Ouyang et al. 2022, section 3.5, eq. 1).

All pairs of a prompt's K answers are one batch element, so that no answer is learned K - 1 times over; ties say nothing
and are dropped. One epoch, because it overfits after. At the end gain and bias are set so that the answers it was
trained on have mean 0 and standard deviation 1 (Ziegler et al. 2019, section 2.2), and saved with the model.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import accumulate
from typing import Any

import torch

from chatloom import checkpoint, runtime
from chatloom.adapters import AdapterConfig
from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat
from chatloom.data.loader import Group, GroupLoader
from chatloom.data.preference import Comparison, read_comparisons
from chatloom.evals import judge, plots
from chatloom.evals.intervals import Estimate
from chatloom.evals.judge import Calibration
from chatloom.models import RewardModel
from chatloom.objectives.reward import comparison_loss, normalise, reward_objective
from chatloom.rl.config import RewardModelConfig
from chatloom.rl.rewards import RewardModelReward, initialise_reward_head, scored_samples
from chatloom.stages.fit import adapt, fit, loader_options, split_off
from chatloom.stages.run import Run, open_run
from chatloom.train.train_config import TrainConfig

_NORMALISED_OVER = 512  # answers or a few more set gain and bias, to some 4 %


def _defaults() -> TrainConfig:
    # InstructGPT's 9e-6, cosine to a tenth, is for 6 billion parameters; `batch_rows` counts prompts here: 64.
    return TrainConfig(learning_rate=9e-6, weight_decay=0.0, schedule="cosine", batch_rows=64)


@dataclass(frozen=True)
class Config:
    """Train a reward model on comparisons: ranked responses, prompt/chosen/rejected or transcripts."""

    # Folder of the model it starts from, usually the fine-tuned one.
    model: str
    # A file (.jsonl .jsonl.gz .json .parquet) or a folder of them.
    data: str
    # Where the run is written.
    output_dir: str
    # Held-out comparisons. None: one in ten of the data, at most 500.
    validation_data: str | None = None
    # Passes over the data.
    epochs: int = 1
    head: RewardModelConfig = field(default_factory=RewardModelConfig)
    adaptation: AdapterConfig = field(default_factory=AdapterConfig)
    # `batch_rows` is the number of prompts of an update, each with all its answers.
    train: TrainConfig = field(default_factory=_defaults)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; it must be at least 1")
        if self.train.microbatch_rows is not None:
            raise ValueError("microbatch_rows would part the answers of a prompt; to save memory, lower --batch-rows")


def run(config: Config) -> dict[str, Any]:
    """Render, train, normalise, and save the reward model."""
    stage = open_run(
        "reward",
        config,
        inputs={"model": config.model, "data": config.data, "validation_data": config.validation_data},
    )
    if stage.complete:
        return stage.results
    runtime.seed_everything(config.train.seed)
    device = runtime.pick_device()
    pretrained = checkpoint.load_pretrained(config.model, dtype="fp32", device=device)
    chat = pretrained.chat
    adapt(stage, pretrained.model, config.adaptation, base=config.model, dtype=config.train.dtype)
    model = RewardModel(pretrained.model).to(device)
    initialise_reward_head(model, config.head)
    comparisons, held_out = _read(config)
    for note in comparisons.notes:
        stage.say(note)
    options = loader_options(config.train, chat, pretrained.model.config.context_length)
    options["batch_groups"] = options.pop("batch_rows")
    loader = GroupLoader(_groups(comparisons, chat), **options, epochs=config.epochs)
    validation = GroupLoader(_groups(held_out, chat), **options | {"shuffle": False}, epochs=1)
    for note in loader.report.notes():
        stage.say(note)
    stage.say(
        f"{len(comparisons):,} comparisons, {sum(comparison.num_pairs for comparison in comparisons):,} pairs; "
        f"{len(held_out):,} held out"
    )
    objective = reward_objective(centering=config.head.centering, normalised=config.head.normalise_before)
    if config.head.normalise_before:
        _normalise(model, comparisons, chat, config.train)

    judged: list[Judgement] = []

    def evaluate() -> dict[str, float]:
        judged[:] = [judge_held_out(model, validation, config)]
        return judged[0].metrics

    metrics = fit(stage, model, objective, loader, config.train, total_steps=len(loader), evaluate=evaluate)
    judged[0].show(stage)
    if config.head.normalise_after:
        _normalise(model, comparisons, chat, config.train)
    stage.save_model(model, chat, base=config.model, adaptation=config.adaptation)
    return stage.finish(
        num_comparisons=len(comparisons),
        reward_gain=model.gain,
        reward_bias=model.bias,
        held_out_accuracy=asdict(judged[0].accuracy),
        **metrics,
    )


@dataclass(frozen=True)
class Judgement:
    """What a reward model makes of held-out comparisons: loss, accuracy over their pairs, and calibration."""

    metrics: dict[str, float]
    accuracy: Estimate
    calibration: Calibration

    def show(self, stage: Run) -> None:
        """Say it, and draw the calibration into the run's folder."""
        low, high = 100 * self.accuracy.low, 100 * self.accuracy.high
        stage.say(
            f"held out: {100 * self.accuracy.value:.1f} % of {self.calibration.num_pairs:,} pairs in order "
            f"({low:.1f} to {high:.1f}); calibration error {100 * self.calibration.expected_error:.1f} points"
        )
        if runtime.is_main():
            axis = plots.Axis("claimed probability of the preferred answer", "how often it is better")
            bins = self.calibration.bins
            predicted, observed = [one.predicted for one in bins], [one.observed for one in bins]
            drawn = plots.calibration_chart(predicted, observed, axis, name="calibration")
            runtime.write_atomically(stage.folder / "calibration.svg", drawn)


def judge_held_out(model: RewardModel, validation: GroupLoader, config: Config) -> Judgement:
    """Score held-out comparisons in one pass, over all ranks. The claims are those of training: before gain and bias,
    unless it was trained with them."""
    device = model.score_head.weight.device
    score = model if config.head.normalise_before else model.raw_scores
    was_training = model.training
    model.eval()
    parts: list[tuple[list[float], list[tuple[int, int, int]], list[int]]] = []
    with torch.inference_mode(), runtime.autocast(device, config.train.dtype):
        for step in range(validation.steps_per_epoch):
            batch = validation.batch_at(0, step)
            found = score(
                batch["tokens"].to(device), documents=batch["documents"].to(device), ends=batch["ends"].to(device)
            )
            prompts = [(runtime.rank(), step, group) for group in batch["groups"].tolist()]
            parts.append((found.float().tolist(), prompts, batch["ranks"].tolist()))
    model.train(was_training)
    everything = [part for ranks in runtime.gather_objects(parts) for part in ranks]
    scores, names, ranks = ([value for part in everything for value in part[at]] for at in range(3))
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    groups = [numbers[name] for name in names]
    loss = comparison_loss(
        torch.tensor(scores), groups=torch.tensor(groups), ranks=torch.tensor(ranks), centering=config.head.centering
    )
    metrics = {"loss": float(loss.total / loss.weight)}
    metrics |= {name: float(value / count) for name, (value, count) in loss.metrics.items()}
    gold = [-float(rank) for rank in ranks]
    calibration = judge.calibration(scores, gold, groups)
    metrics["calibration_error"] = calibration.expected_error
    accuracy = judge.pairwise_accuracy(scores, gold, groups)
    return Judgement({f"validation/{name}": value for name, value in metrics.items()}, accuracy, calibration)


def _read(config: Config) -> tuple[Any, list[Comparison]]:
    comparisons = read_comparisons(config.data)
    if config.validation_data is not None:
        return comparisons, list(read_comparisons(config.validation_data))
    return split_off(comparisons, one_in=10)


def _answered(comparisons: Sequence[Comparison]) -> tuple[list[Conversation], list[bool]]:
    """Every answer with its prompt, and whether it ended by itself."""
    conversations = [
        (*comparison.prompt, Message("assistant", response))
        for comparison in comparisons
        for response in comparison.responses
    ]
    stopped = [each for comparison in comparisons for each in comparison.stopped or [True] * len(comparison.responses)]
    return conversations, stopped


def _normalise(model: RewardModel, comparisons: Sequence[Comparison], chat: ChatFormat, train: TrainConfig) -> None:
    """Set gain and bias on the answers of some of the training comparisons."""
    reader = RewardModelReward(model, chat, dtype=train.dtype)
    answers = list(accumulate(len(comparison.responses) for comparison in comparisons))
    enough = bisect_left(answers, _NORMALISED_OVER) + 1
    conversations, stopped = _answered(comparisons[:enough])
    normalise(model, scores=reader.raw_scores(conversations, stopped=stopped))


def _groups(comparisons: Sequence[Comparison], chat: ChatFormat) -> list[Group]:
    """Each comparison's conversations, up to and with the end of the answer's turn if it got that far."""
    conversations, stopped = _answered(comparisons)
    samples = scored_samples(chat, conversations, stopped=stopped)
    groups, at = [], 0
    for comparison in comparisons:
        size = len(comparison.responses)
        groups.append(Group(tuple(samples[at : at + size]), comparison.ranks))
        at += size
    return groups
