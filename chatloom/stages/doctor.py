"""What a model is, whether it is sound, and how much memory it would take: `chatloom doctor REF`.

Each check says what is wrong and the way out. The exit status is 1 if one fails, so that a script can ask.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chatloom import checkpoint, runtime
from chatloom.chat.message import Message
from chatloom.chat.render import ChatFormat
from chatloom.checkpoint import Pretrained
from chatloom.engine.cache_config import PLAIN, CacheConfig
from chatloom.engine.capacity import bytes_of_a_token
from chatloom.models import Decoder, num_parameters
from chatloom.models.longer import ContextConfig
from chatloom.stages import memory


@dataclass(frozen=True)
class Config:
    """Look at a model and check it."""

    # A run, a Hugging Face folder, a .gguf file, a hub id or a name of the catalogue.
    model: str
    # Rows of a micro-batch, or conversations at a time, for which memory is estimated.
    batch_rows: int = 8
    # Tokens of a row. None: the model's context length, at most 1024.
    row_length: int | None = None
    # Number type of the matrix products in training, for the estimate; int8 and int4 are of weights that are only read,
    # and training is then in bf16.
    dtype: Literal["fp32", "bf16", "int8", "int4"] = "fp32"
    # Leave the estimate out, which takes some seconds.
    memory: bool = True
    context: ContextConfig = field(default_factory=ContextConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    def __post_init__(self) -> None:
        for name in ("batch_rows", "row_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True)
class Check:
    """One thing looked at: what was found, and what is wrong with it, one sentence each; empty when sound."""

    name: str
    found: str
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Report:
    """All that was found."""

    checks: tuple[Check, ...]
    memory: memory.Memory | None

    @property
    def problems(self) -> list[str]:
        """What is wrong, one sentence each."""
        return [problem for check in self.checks for problem in check.problems]


def run(config: Config) -> Report:
    """Open, check, estimate and print. Raises ValueError for what cannot be opened at all."""
    opened = checkpoint.load_pretrained(config.model, device=runtime.pick_device(), context=config.context)
    config.cache.check(opened.model)
    checks = tuple(examine(opened, config.cache))
    found = None
    context = opened.model.config.context_length
    length = min(config.row_length or 1024, context)
    if config.row_length is not None and config.row_length > context:
        raise ValueError(f"row_length is {config.row_length}; the model's context is {context}, so at most that")
    if config.memory:
        found = memory.estimate(
            opened.model.config,
            rows=config.batch_rows,
            length=length,
            weights_dtype=opened.model.embedding.weight.dtype,
            dtype=config.dtype,
            kept=config.cache,
        )
    report = Report(checks, found)
    _print(config, report, length)
    return report


# --- checks -----------------------------------------------------------------------------------------------------


def examine(opened: Pretrained, kept: CacheConfig = PLAIN) -> Iterator[Check]:
    """Everything but memory."""
    model, chat = opened.model, opened.chat
    config = model.config
    family = str(opened.config.get("model_type"))
    heads = f"{config.num_heads} heads of {config.head_width}"
    if config.num_key_value_heads != config.num_heads:
        heads += f", {config.num_key_value_heads} for keys and values"
    yield Check("architecture", f"{family}: {config.num_layers} layers of width {config.width}, {heads}")
    dtype = str(model.embedding.weight.dtype).removeprefix("torch.")
    yield Check("parameters", f"{num_parameters(model):,} as {dtype}")
    yield Check("context", f"{config.context_length:,} tokens")
    token_bytes = bytes_of_a_token(config, model.embedding.weight.dtype, kept.kv_dtype)
    whole = f"{token_bytes * config.context_length / 2**20:,.1f} MiB in all of the context"
    yield Check("keys and values", f"{token_bytes:,} bytes a token, {whole}")
    yield _vocabulary(model, chat)
    yield _special_tokens(chat)
    yield from _template(chat)
    yield _tied(model)
    yield _weights(model)
    yield _forward(model, chat)


def _vocabulary(model: Decoder, chat: ChatFormat) -> Check:
    size, rows = chat.tokenizer.vocab_size, model.config.vocab_size
    found = f"{size:,} tokens" + (f", padded to {rows:,}" if size != rows else "")
    text = "It's 12,345 – naïve 你好 🙂\n\tEnd"
    again = chat.tokenizer.decode(chat.tokenizer.encode(text))
    if again.strip() == text:
        return Check("vocabulary", found)
    problem = f"text does not survive the tokenizer: {text!r} comes back as {again!r}; save the tokenizer again"
    return Check("vocabulary", found, (problem,))


def _special_tokens(chat: ChatFormat) -> Check:
    tokenizer = chat.tokenizer
    roles = {"begin": tokenizer.bos_token, "end": tokenizer.eos_token, "padding": tokenizer.pad_token}
    found = ", ".join(f"{role} {text} ({tokenizer.special[text]})" for role, text in roles.items() if text is not None)
    if tokenizer.eos_token is None:
        problem = (
            "no token ends a text, so generation from raw prompts never stops; declare one in tokenizer_config.json "
            '("eos_token")'
        )
        return Check("special tokens", found or "none", (problem,))
    return Check("special tokens", found)


def _template(chat: ChatFormat) -> Iterator[Check]:
    if chat.template.source == checkpoint.NO_TEMPLATE:
        yield Check("chat template", "none: a base model, which `chatloom sft` makes a chat model")
        return
    problems = tuple(
        f"{problem}; correct chat_template.jinja, or give the model another by `chatloom sft`"
        for problem in chat.check()
    )
    try:
        ends = ", ".join(f"{chat.tokenizer.token(token)} ({token})" for token in chat.stop_tokens)
        turns = (Message("user", "Hello"), Message("assistant", "Hi."))
        rendered = chat.render(turns)
        found = f"{len(rendered)} tokens for a turn of two words, {sum(rendered.loss_mask)} in the loss"
    except ValueError as error:
        ends, found = "none", "cannot be rendered"
        problems = problems or (str(error),)
    yield Check("chat template", found, problems)
    yield Check("stops", ends)


def _tied(model: Decoder) -> Check:
    if model.head is None:
        return Check("output head", "tied to the embedding")
    same = model.head.weight.shape == model.embedding.weight.shape and torch.equal(
        model.head.weight, model.embedding.weight
    )
    return Check("output head", "its own" + (", though equal to the embedding: it could be tied" if same else ""))


def _weights(model: Decoder) -> Check:
    bad, dead = [], []
    for name, parameter in model.named_parameters():
        if not bool(torch.isfinite(parameter).all()):
            count = int((~torch.isfinite(parameter)).sum())
            bad.append(f"{name} has {count:,} of {parameter.numel():,} weights that are NaN or infinite")
        elif parameter.ndim > 1 and not bool(parameter.any()):
            dead.append(name)
    found = "all finite" if not bad else f"{len(bad)} tensors are damaged"
    found += f"; all zero: {', '.join(dead[:4])}{' ...' if len(dead) > 4 else ''}" if dead else ""
    way_out = "copy or download the model again, or go back to an earlier checkpoint"
    return Check("weights", found, tuple(f"{each}; {way_out}" for each in bad[:8]))


def _forward(model: Decoder, chat: ChatFormat) -> Check:
    """Nats per token of a plain sentence: a model that knows its own tokens is far below the uniform guess."""
    tokens = chat.tokenizer.document_start + chat.tokenizer.encode("The quick brown fox jumps over the lazy dog.")
    tokens = tokens[: model.config.context_length]
    row = torch.tensor([tokens], device=model.embedding.weight.device)
    with torch.inference_mode():
        logits = model(row)[0, :-1].float()
    nats = float(torch.nn.functional.cross_entropy(logits, row[0, 1:]))
    if nats == nats and nats != float("inf"):
        return Check("forward pass", f"{nats:.2f} nats a token of a plain sentence")
    problem = "the logits are not finite numbers; the weights are damaged, or the dtype is too small: try dtype fp32"
    return Check("forward pass", "not finite", (problem,))


# --- printing ---------------------------------------------------------------------------------------------------


def _print(config: Config, report: Report, length: int) -> None:
    console = Console(highlight=False)
    table = Table("", "", "", title=escape(config.model), title_justify="left", box=None, show_header=False)
    for check in report.checks:
        mark = "[bold red]✗[/]" if check.problems else "[green]✓[/]"
        table.add_row(mark, check.name, escape(check.found))
        for problem in check.problems:
            table.add_row("", "", f"[red]{escape(problem)}[/]")
    console.print(table)
    if report.memory is not None:
        sizes = Table("", "memory", title="", box=None)
        sizes.columns[1].justify = "right"
        for name, label in (
            ("inference", "inference"),
            ("sft", "SFT"),
            ("lora", f"SFT, LoRA of rank {memory.LORA.adapter_rank}"),
            ("ppo", "PPO, four networks"),
            ("ppo_lora", "PPO, four LoRAs on one"),
        ):
            sizes.add_row(label, f"{getattr(report.memory, name) / 2**20:,.0f} MiB")
        console.print(sizes)
        training = memory.training_dtype(config.dtype)
        what = f"{config.batch_rows} rows of {length:,} tokens at a time, training in {training}"
        if training != config.dtype:
            what += f", inference in {config.dtype} beside the weights as they were opened"
        console.print(f"[dim]{what}; tensors alone: add about 300 MiB for Python and torch[/]")
    console.print(f"[bold red]{len(report.problems)} problems[/]" if report.problems else "[bold green]sound[/]")
