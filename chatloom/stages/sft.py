"""Supervised fine-tuning on conversations (Ouyang et al. 2022, section 3.5): learn what to say, and to stop.

The loss counts the assistant's tokens and the end of its turn, divided by their number over the whole batch. The chat
template is the one in the model's folder, where the tokenizer stage put it; it goes on with the fine-tuned model.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from chatloom import checkpoint, runtime
from chatloom.adapters import AdapterConfig
from chatloom.chat.message import Conversation
from chatloom.chat.render import ChatFormat, TrainOn
from chatloom.chat.templates import ChatTemplate
from chatloom.data.formats import read_conversations
from chatloom.data.loader import Loader
from chatloom.data.pack import Sample, pieces
from chatloom.data.sources import read_texts
from chatloom.models.longer import ContextConfig
from chatloom.objectives.causal_lm import causal_lm
from chatloom.stages.fit import adapt, encoded_documents, fit, loader_options, mean_loss, split_off
from chatloom.stages.run import open_run
from chatloom.train.train_config import TrainConfig


def _defaults() -> TrainConfig:
    return TrainConfig(learning_rate=2e-5, weight_decay=0.0, schedule="cosine")


@dataclass(frozen=True)
class Config:
    """Fine-tune a model on conversations: messages, Alpaca, ShareGPT or prompt/completion files."""

    # Folder of the model to fine-tune.
    model: str
    # A file (.jsonl .jsonl.gz .json .parquet) or a folder of them.
    data: str
    # Where the run is written.
    output_dir: str
    # Chat template: "plain" (needs only an end-of-text token), "chatloom", or a file of Jinja. None: the model's own.
    chat_template: str | None = None
    # Held-out conversations. None: two in a hundred of the data, at most 500.
    validation_data: str | None = None
    # Passes over the data. (InstructGPT: 16, chosen by reward-model score; Vicuna: 3.)
    epochs: int = 3
    # Pretraining text to mix in, so that less of it is forgotten (InstructGPT mixes 10 % into the SFT that PPO starts
    # from; appendix C.3). None: none.
    pretraining_data: str | None = None
    # Tokens of pretraining text for each token of conversation.
    pretraining_ratio: float = 0.1
    # Learn every reply of a conversation, or only its last.
    train_on: TrainOn = "all"
    context: ContextConfig = field(default_factory=ContextConfig)
    adaptation: AdapterConfig = field(default_factory=AdapterConfig)
    train: TrainConfig = field(default_factory=_defaults)

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs is {self.epochs}; it must be at least 1")


def run(config: Config) -> dict[str, Any]:
    """Render, train, and save the model."""
    stage = open_run(
        "sft",
        config,
        inputs={
            "model": config.model,
            "data": config.data,
            "validation_data": config.validation_data,
            "pretraining_data": config.pretraining_data,
        },
    )
    if stage.complete:
        return stage.results
    runtime.seed_everything(config.train.seed)
    device = runtime.pick_device()
    pretrained = checkpoint.load_pretrained(config.model, dtype="fp32", device=device, context=config.context)
    model, chat = pretrained.model, _chat(config, pretrained.chat)
    adapt(stage, model, config.adaptation, base=config.model, dtype=config.train.dtype)
    conversations, held_out = _read(config)
    for note in conversations.notes:
        stage.say(note)
    options = loader_options(config.train, chat, model.config.context_length)
    training = _samples(conversations, chat, config.train_on)
    if config.pretraining_data is not None:
        num_tokens = config.pretraining_ratio * sum(map(len, training))
        training += _pretraining(config.pretraining_data, chat, num_tokens, row_length=options["row_length"])
    loader = Loader(training, **options, epochs=config.epochs)
    validation = Loader(_samples(held_out, chat, config.train_on), **options | {"shuffle": False}, epochs=1)
    for note in loader.report.notes() if loader.report else ():
        stage.say(note)
    stage.say(f"{len(conversations):,} conversations; rows {loader.utilisation:.1%} full; {len(held_out):,} held out")

    def evaluate() -> dict[str, float]:
        return mean_loss(model, causal_lm, validation, config.train, prefix="validation")

    metrics = fit(stage, model, causal_lm, loader, config.train, total_steps=len(loader), evaluate=evaluate)
    stage.save_model(model, chat, base=config.model, adaptation=config.adaptation, context=config.context)
    return stage.finish(num_conversations=len(conversations), **metrics)


def _chat(config: Config, own: ChatFormat) -> ChatFormat:
    """How conversations are written: the model's way, or the one that was asked for."""
    if config.chat_template is None and own.template.source == checkpoint.NO_TEMPLATE:
        raise ValueError(
            f"{config.model} has no chat template; choose one, such as --chat-template plain, or give a file of Jinja"
        )
    chat = own
    if config.chat_template is not None:
        chat = ChatFormat(own.tokenizer, ChatTemplate.named(config.chat_template))
    if problems := chat.check():
        raise ValueError(
            f"{config.model} cannot be fine-tuned with {config.chat_template or 'its own chat template'}: "
            f"{'; '.join(problems)}"
        )
    return chat


def _read(config: Config) -> tuple[Any, list[Conversation]]:
    conversations = read_conversations(config.data)
    if config.validation_data is not None:
        return conversations, list(read_conversations(config.validation_data))
    return split_off(conversations, one_in=50)


def _samples(conversations: list[Conversation], chat: ChatFormat, train_on: TrainOn) -> list[Sample]:
    return [
        Sample(np.asarray(rendered.tokens), np.asarray(rendered.loss_mask))
        for rendered in chat.render_many(conversations, train_on=train_on)
    ]


def _pretraining(path: str, chat: ChatFormat, num_tokens: float, *, row_length: int) -> list[Sample]:
    """Documents of pretraining text, about `num_tokens` of them, every token counted."""
    samples: list[Sample] = []
    for tokens in encoded_documents(read_texts(path), chat.tokenizer):
        if num_tokens <= 0:
            break
        samples += pieces(tokens, row_length)
        num_tokens -= len(tokens)
    return samples
