"""Pretrain a language model on text (Radford et al. 2018, eq. 1): predict every next token of every document.

Text is tokenised once into a memory-mapped store inside the run folder, so it may be larger than memory. Each document
begins with the begin-of-text token and ends with the end-of-text token; documents are packed into rows and do not see
one another. The figure to watch is bits per byte on held-out documents, which compares across tokenizers.
"""

from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from chatloom import checkpoint, models, runtime
from chatloom.adapters import AdapterConfig
from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import ChatTemplate
from chatloom.data.loader import Loader
from chatloom.data.sources import read_texts
from chatloom.data.store import TokenStore, write_store
from chatloom.evals.likelihood import bits_per_byte
from chatloom.models import Decoder
from chatloom.objectives.causal_lm import causal_lm
from chatloom.stages.fit import adapt, encoded_documents, fit, loader_options
from chatloom.stages.run import Run, open_run
from chatloom.tokenizers.bpe import Tokenizer
from chatloom.train.train_config import TrainConfig

_HELD_OUT = 500  # documents at most


@dataclass(frozen=True)
class Config:
    """Train a language model on text, from scratch or from a model folder."""

    # A text file (.txt .jsonl .jsonl.gz .parquet) or a folder of them.
    data: str
    # Where the run is written.
    output_dir: str
    # Folder of the tokenizer (`chatloom tokenizer`). Not needed when `model` is a folder.
    tokenizer: str | None = None
    # FAMILY/SIZE such as llama/mini or gpt2/124M (docs/families.md has all), or a model folder to go on from.
    model: str = "llama/mini"
    # Changes to that size. None: as the size says.
    num_layers: int | None = None
    width: int | None = None
    num_heads: int | None = None
    num_key_value_heads: int | None = None
    inner_width: int | None = None
    context_length: int | None = None
    # Held-out text. None: one document in a hundred of the data, at most 500; of less than a hundred, the last.
    validation_data: str | None = None
    # Updates; give this or `epochs`.
    steps: int | None = None
    # Passes over the data.
    epochs: int | None = None
    train: TrainConfig = field(default_factory=TrainConfig)

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either --steps or --epochs")
        for name in ("steps", "epochs"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


def run(config: Config) -> dict[str, Any]:
    """Tokenise, train, and save the model."""
    folder = config.model if Path(config.model).is_dir() else None
    stage = open_run(
        "pretrain",
        config,
        inputs={
            "data": config.data,
            "validation_data": config.validation_data,
            "tokenizer": config.tokenizer,
            "model": folder,
        },
    )
    if stage.complete:
        return stage.results
    runtime.seed_everything(config.train.seed)
    model, chat = _model(config)
    adapt(stage, model, AdapterConfig(), base=config.model)
    options = loader_options(config.train, chat, model.config.context_length)
    store, held_out = _tokenise(stage, config, chat.tokenizer)
    loader = Loader(store, **options)
    stage.say(
        f"{models.num_parameters(model):,} parameters; {store.num_tokens:,} tokens in {store.num_documents:,} "
        f"documents; rows {loader.utilisation:.1%} full"
    )
    total_steps = config.steps or (config.epochs or 0) * loader.steps_per_epoch

    def evaluate() -> dict[str, float]:
        estimate = bits_per_byte(model, tokenizer=chat.tokenizer, texts=held_out, autocast=config.train.dtype)
        return {"validation/bits_per_byte": estimate.value}

    metrics = fit(
        stage,
        model,
        causal_lm,
        loader,
        config.train,
        total_steps=total_steps,
        evaluate=evaluate if held_out else None,
    )
    stage.save_model(model, chat)
    return stage.finish(num_parameters=models.num_parameters(model), **metrics)


def _model(config: Config) -> tuple[Decoder, ChatFormat]:
    """A fresh model of the asked size for the tokenizer, or the one in the folder."""
    names = ("num_layers", "width", "num_heads", "num_key_value_heads", "inner_width", "context_length")
    changes = {name: getattr(config, name) for name in names if getattr(config, name) is not None}
    if Path(config.model).is_dir():
        if changes or config.tokenizer:
            raise ValueError(
                f"{config.model} is a model folder, which has its own sizes and tokenizer; "
                f"leave out {', '.join([*changes, *(['tokenizer'] if config.tokenizer else [])])}"
            )
        pretrained = checkpoint.load_pretrained(config.model, dtype="fp32", device=runtime.pick_device())
        return pretrained.model, pretrained.chat
    family, _, size = config.model.partition("/")
    module = models.family(family)
    if size not in module.SIZES:
        raise ValueError(f"--model {config.model!r}: {family} has the sizes {', '.join(module.SIZES)}; or a folder")
    if config.tokenizer is None:
        raise ValueError("--tokenizer is needed to train from scratch; make one with `chatloom tokenizer`")
    tokenizer, template = Tokenizer.load(config.tokenizer), ChatTemplate.load(config.tokenizer)
    if template is None:
        template = ChatTemplate(checkpoint.NO_TEMPLATE)
    unknown = [name for name in changes if name not in module.Config.__dataclass_fields__]
    if unknown:
        raise ValueError(f"{family} has no {', '.join(unknown)}; leave it out")
    changes["vocab_size"] = tokenizer.vocab_size
    model = models.build(replace(module.SIZES[size], **changes)).to(runtime.pick_device())
    return model, ChatFormat(tokenizer, template)


def _tokenise(stage: Run, config: Config, tokenizer: Tokenizer) -> tuple[TokenStore, list[str]]:
    """The token store of the training documents, written once, and the held-out texts."""
    chosen: set[int] = set()
    if config.validation_data is not None:
        held_out = list(islice(read_texts(config.validation_data), _HELD_OUT))
    else:
        chosen = _choose_held_out(config.data)
        held_out = [text for index, text in enumerate(read_texts(config.data)) if index in chosen]
    if not held_out:
        stage.say("there is only one document, so none is held out and bits per byte are not measured")
    folder = stage.folder / "tokens"
    if runtime.is_main() and not folder.exists():
        stage.say(f"tokenising {config.data}")
        texts = (text for index, text in enumerate(read_texts(config.data)) if index not in chosen)
        write_store(
            folder,
            encoded_documents(texts, tokenizer),
            tokenizer_digest=tokenizer.digest(),
            vocab_size=tokenizer.vocab_size,
        )
    runtime.barrier()
    return TokenStore(folder, tokenizer_digest=tokenizer.digest(), vocab_size=tokenizer.vocab_size), held_out


def _choose_held_out(data: str) -> set[int]:
    """One document in a hundred, at most 500; the last of fewer than a hundred; none where there is only one."""
    count = sum(1 for _ in islice(read_texts(data), 100 * _HELD_OUT))
    return set(range(99, count, 100)) or ({count - 1} if count > 1 else set())
