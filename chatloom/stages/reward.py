"""Train a reward model on comparisons (Ouyang et al. 2022, section 3.5, eq. 1).

All pairs of a prompt's K answers are one batch element, so that no answer is learned K - 1 times over; ties say nothing
and are dropped. One epoch, because it overfits after. At the end gain and bias are set so that the answers it was
trained on have mean 0 and standard deviation 1 (Ziegler et al. 2019, section 2.2), and saved with the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from chatloom import checkpoint, runtime
from chatloom.adapters import AdapterConfig
from chatloom.chat.message import Conversation, Message
from chatloom.chat.render import ChatFormat
from chatloom.data.loader import Group, GroupLoader
from chatloom.data.preference import Comparison, read_comparisons
from chatloom.models import RewardModel
from chatloom.objectives.reward import normalise, reward_objective
from chatloom.rl.config import RewardModelConfig
from chatloom.rl.rewards import RewardModelReward, initialise_reward_head, scored_samples
from chatloom.stages.fit import adapt, fit, loader_options, mean_loss, split_off
from chatloom.stages.run import open_run
from chatloom.train.train_config import TrainConfig

_NORMALISED_OVER = 512  # comparisons whose answers set gain and bias


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
    adapt(stage, pretrained.model, config.adaptation, base=config.model)
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

    def evaluate() -> dict[str, float]:
        return mean_loss(model, objective, validation, config.train, prefix="validation")

    metrics = fit(stage, model, objective, loader, config.train, total_steps=len(loader), evaluate=evaluate)
    if config.head.normalise_after:
        _normalise(model, comparisons, chat, config.train)
    stage.save_model(model, chat, base=config.model, adaptation=config.adaptation)
    return stage.finish(num_comparisons=len(comparisons), reward_gain=model.gain, reward_bias=model.bias, **metrics)


def _read(config: Config) -> tuple[Any, list[Comparison]]:
    comparisons = read_comparisons(config.data)
    if config.validation_data is not None:
        return comparisons, list(read_comparisons(config.validation_data))
    return split_off(comparisons, one_in=10)


def _conversations(comparisons: Sequence[Comparison]) -> list[Conversation]:
    return [
        (*comparison.prompt, Message("assistant", response))
        for comparison in comparisons
        for response in comparison.responses
    ]


def _normalise(model: RewardModel, comparisons: Sequence[Comparison], chat: ChatFormat, train: TrainConfig) -> None:
    """Set gain and bias on the answers of some of the training comparisons."""
    reader = RewardModelReward(model, chat, dtype=train.dtype)
    normalise(model, scores=reader.raw_scores(_conversations(comparisons[:_NORMALISED_OVER])))


def _groups(comparisons: Sequence[Comparison], chat: ChatFormat) -> list[Group]:
    """Each comparison's conversations, up to and with the end of the answer's turn."""
    samples = scored_samples(chat, _conversations(comparisons))
    groups, at = [], 0
    for comparison in comparisons:
        size = len(comparison.responses)
        groups.append(Group(tuple(samples[at : at + size]), comparison.ranks))
        at += size
    return groups
