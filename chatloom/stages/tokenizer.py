"""Train the tokenizer: the first stage, because the chat tokens have to be there before anything is learned."""

from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
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


def run(config: Config) -> dict[str, Any]:
    """Train and save a tokenizer with its chat template."""
    stage = open_run("tokenizer", config, inputs={"data": config.data, "chat_template": config.chat_template})
    if stage.complete:
        return stage.results
    template = Path(config.chat_template).read_text(encoding="utf-8") if config.chat_template else CHATLOOM_TEMPLATE
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
