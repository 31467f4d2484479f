"""Train the tokenizer: the first stage, because the chat tokens have to be there before anything is learned."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE, ChatTemplate
from chatloom.data.sources import read_texts
from chatloom.stages.run import open_run
from chatloom.tokenizers.bpe import train_tokenizer


@dataclass(frozen=True)
class Config:
    """Train a byte-level BPE tokenizer on text, with chat tokens reserved."""

    # A text file (.txt .jsonl .jsonl.gz .parquet) or a folder of them.
    data: str
    # Where the tokenizer is written.
    output_dir: str
    # Tokens in all, special ones included; small text may give fewer.
    vocab_size: int = 4096
    # Read at most this many documents. None: all.
    num_documents: int | None = None
    # A Jinja chat template to store with the tokenizer. None: Chatloom's own.
    chat_template: str | None = None

    def __post_init__(self) -> None:
        if self.num_documents is not None and self.num_documents < 1:
            raise ValueError(f"num_documents is {self.num_documents}; it must be at least 1, or None for all")


def run(config: Config) -> dict[str, Any]:
    """Train and save a tokenizer with its chat template."""
    stage = open_run("tokenizer", config, inputs={"data": config.data, "chat_template": config.chat_template})
    if stage.complete:
        return stage.results
    template = _template(config)
    texts = islice(read_texts(config.data), config.num_documents)
    tokenizer = train_tokenizer(texts, vocab_size=config.vocab_size)
    chat = ChatFormat(tokenizer, template)
    problems = chat.check()
    if problems:
        raise ValueError(f"the chat template does not fit the tokenizer: {'; '.join(problems)}")
    tokenizer.save(stage.folder)
    chat.template.save(stage.folder)
    stage.say(f"{tokenizer.vocab_size:,} tokens")
    return stage.finish(vocab_size=tokenizer.vocab_size, digest=tokenizer.digest())


def _template(config: Config) -> ChatTemplate:
    """The chat template that is asked for, compiled, before any text is read."""
    if config.chat_template is None:
        return ChatTemplate(CHATLOOM_TEMPLATE)
    try:
        return ChatTemplate(Path(config.chat_template).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"--chat-template {config.chat_template} is not a Jinja template: {error}") from error
