"""The terminal chat: `chatloom chat REF`.

`ChatSession` is the conversation: a line in, events out, no terminal in sight. `run` puts it on a terminal, or on a
pipe, where each line of standard input is one message and the answers go to standard output; `--message` asks once.
An answer stopped with Ctrl-C stays in the conversation as far as it came.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Generator, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich.console import Console

from chatloom import runtime
from chatloom.chat.message import Message, printable, to_dicts
from chatloom.engine.cache_config import CacheConfig
from chatloom.engine.language_model import LanguageModel, load
from chatloom.engine.multi_lora import named_folders
from chatloom.engine.request import Completion, SamplingParams, derive_seed
from chatloom.models import num_parameters
from chatloom.models.longer import ContextConfig
from chatloom.stages.answer import AnswerConfig

HELP = """\
/reset         forget the conversation
/system TEXT   set the system message (alone: show it; "/system off": none)
/adapter NAME  let one of the --adapters answer (alone: which there are; "/adapter off": none)
/save FILE     write the conversation as JSON lines, the format that `chatloom sft --data` reads
/help          this list
/quit          leave (so does Ctrl-D, or Ctrl-C twice)
Ctrl-C stops an answer. Anything else that you type is said to the model."""


@dataclass(frozen=True)
class Config:
    """Talk to a model in the terminal."""

    # A run, a Hugging Face folder, a .gguf file, a hub id, or a name of the catalogue such as smollm2.
    model: str
    # Ask this alone, write the answer to standard output, and leave.
    message: str | None = None
    # The system message that opens the conversation.
    system: str | None = None
    # 0 gives the likeliest answer each time; higher is more varied.
    temperature: float = 0.7
    # Sample among the fewest tokens that hold this share of the probability; None is all.
    top_p: float | None = None
    # Most tokens of one answer.
    max_tokens: int = 256
    # Makes the conversation repeatable; None is different each time.
    seed: int | None = None
    # fp32, bf16, int8 or int4 (rounded as it is opened); None as the model was saved.
    dtype: str | None = None
    # cpu, cuda, ...; None is the best there is.
    device: str | None = None
    # Guess the next tokens, so that the same answers come sooner: lookup (what the text said before) or a smaller model
    # of the same tokenizer. None does not guess.
    draft: str | None = None
    # LoRA adapters that were trained on this model, NAME=FOLDER each; `/adapter NAME` lets one answer.
    adapters: tuple[str, ...] | None = None
    answer: AnswerConfig = field(default_factory=AnswerConfig)

    context: ContextConfig = field(default_factory=ContextConfig)
    cache: CacheConfig = field(default_factory=CacheConfig)

    @property
    def adapter_folders(self) -> dict[str, str]:
        """Where each adapter is, by its name."""
        return named_folders(self.adapters)

    def __post_init__(self) -> None:
        SamplingParams(self.max_tokens, self.temperature, top_p=self.top_p, seed=self.seed)  # refuses a bad range
        named_folders(self.adapters)  # refuses another form
        if self.message is not None and not self.message.strip():
            raise ValueError("message is empty; say something, or leave it out to talk")


@dataclass(frozen=True, slots=True)
class Event:
    """Something for the terminal: a piece of the answer, the end of it, a notice, an error, or the wish to leave."""

    kind: Literal["piece", "end", "notice", "error", "quit"]
    text: str = ""


class ChatSession:
    """A conversation with a model, and its commands."""

    def __init__(self, model: LanguageModel, config: Config) -> None:
        self._model = model
        self._config = config
        self._grammar = config.answer.grammar()
        self._num_answers = 0
        self._saved: set[Path] = set()
        self.system = config.system
        self.adapter: str | None = None
        self.turns: list[Message] = []
        self._commands: dict[str, Callable[[str], Iterator[Event]]] = {
            "/reset": self._reset,
            "/system": self._set_system,
            "/adapter": self._set_adapter,
            "/save": self._save,
            "/help": self._help,
            "/quit": self._quit,
            "/exit": self._quit,
        }

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation so far, the system message first."""
        return (*([Message("system", self.system)] if self.system else []), *self.turns)

    def handle(self, line: str) -> Generator[Event, None, None]:
        """Do what a line asks: a command, or something said to the model. Close the iterator to stop an answer."""
        line = line.strip()
        if not line:
            return
        if not line.startswith("/"):
            yield from self.ask(line)
            return
        name, _, argument = line.partition(" ")
        if name not in self._commands:
            yield Event("error", f"there is no command {name}; /help lists them")
            return
        yield from self._commands[name](argument.strip())

    # --- answering ------------------------------------------------------------------------------------------

    def ask(self, text: str) -> Iterator[Event]:
        """Say something to the model, whatever it begins with."""
        before = list(self.turns)
        self.turns.append(Message("user", text))
        try:
            dropped = self._drop_oldest()
            stream = self._stream()
        except ValueError as error:
            self.turns = before
            yield Event("error", str(error))
            return
        if dropped:
            yield Event("notice", f"(the context is full: the oldest {dropped} messages were forgotten)")
        pieces: list[str] = []
        completion = None
        try:
            completion = yield from self._collect(stream, pieces)
        finally:
            # Also when Ctrl-C or close() ended the answer: what was said stays said.
            stream.close()
            answer = "".join(pieces)
            self.turns = [*self.turns, Message("assistant", answer)] if answer.strip() else before
        if not answer.strip():
            yield Event("notice", "(the model said nothing; your message was taken back)")
        elif completion is not None and completion.finish_reason == "length":
            yield Event("notice", f"(cut off after {len(completion.tokens)} tokens)")
        yield Event("end")

    def _stream(self) -> Generator[str, None, Completion]:
        config = self._config
        self._num_answers += 1
        seed = None if config.seed is None else derive_seed(config.seed, self._num_answers - 1)
        return self._model.stream(
            self.messages,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            seed=seed,
            grammar=self._grammar,
            adapter=self.adapter,
        )

    @staticmethod
    def _collect(stream: Generator[str, None, Completion], pieces: list[str]) -> Generator[Event, None, Completion]:
        """Pass the pieces on as events and keep them; return the completion."""
        while True:
            try:
                piece = next(stream)
            except StopIteration as end:
                completion: Completion = end.value
                return completion
            pieces.append(piece)
            yield Event("piece", piece)

    def _drop_oldest(self) -> int:
        """Forget the oldest turns until an answer fits; the number of messages forgotten."""
        context = self._model.engine.context_length
        room = min(self._config.max_tokens, context // 4)
        dropped = 0
        while len(self.turns) > 1 and self._length() + room > context:
            # A question goes with its answer: what is left begins with the user.
            del self.turns[:2]
            dropped += 2
        return dropped

    def _length(self) -> int:
        return len(self._model.format_of(self.adapter).prompt(self.messages))

    # --- commands -------------------------------------------------------------------------------------------

    def _reset(self, argument: str) -> Iterator[Event]:
        self.turns = []
        yield Event("notice", "(the conversation starts anew)")

    def _set_system(self, argument: str) -> Iterator[Event]:
        if argument:
            self.system = None if argument == "off" else argument
        yield Event("notice", f"(system message: {self.system or 'none'})")

    def _set_adapter(self, argument: str) -> Iterator[Event]:
        known = tuple(self._config.adapter_folders)
        if argument and argument not in (*known, "off"):
            yield Event("error", f"there is no adapter {argument}; known: {', '.join(known) or 'none (--adapters)'}")
            return
        if argument:
            self.adapter = None if argument == "off" else argument
        yield Event("notice", f"(adapter: {self.adapter or 'none'}; known: {', '.join(known) or 'none'})")

    def _save(self, argument: str) -> Iterator[Event]:
        path = Path(argument).expanduser()
        if not argument:
            yield Event("error", "/save needs a file name, such as /save chat.jsonl")
        elif not self.turns:
            yield Event("error", "there is nothing to save yet")
        elif path.exists() and path.resolve() not in self._saved:
            yield Event("error", f"{path} exists already; choose another name")
        else:
            record = json.dumps({"messages": to_dicts(self.messages)}, ensure_ascii=False)
            try:
                runtime.write_atomically(path, record + "\n")
            except OSError as error:
                yield Event("error", f"{path} could not be written: {error.strerror or error}")
                return
            self._saved.add(path.resolve())
            yield Event("notice", f"(saved {len(self.messages)} messages to {path})")

    def _help(self, argument: str) -> Iterator[Event]:
        yield Event("notice", HELP)

    def _quit(self, argument: str) -> Iterator[Event]:
        yield Event("quit")


# --- the terminal ---------------------------------------------------------------------------------------------


def run(config: Config) -> None:
    """Chat until the user leaves, or answer `message`. Raises ValueError for what `chatloom.load` refuses."""
    config.answer.grammar()  # what is wrong with it is said before a model is opened
    options = {"dtype": config.dtype, "device": config.device, **asdict(config.context), **asdict(config.cache)}
    model = load(config.model, draft=config.draft, adapters=config.adapter_folders, **options)
    session = ChatSession(model, config)
    if config.message is not None:
        _once(session, config.message, Console(), Console(stderr=True))
    elif sys.stdin.isatty():
        _talk(session, Console(), config, model)
    else:
        _pipe(session, Console(), Console(stderr=True))


def _once(session: ChatSession, message: str, answers: Console, notices: Console) -> None:
    """One answer; an error where there is none."""
    for event in session.ask(message):
        if event.kind == "error":
            raise ValueError(event.text)
        _write(notices if event.kind == "notice" else answers, event.text + ("" if event.kind == "piece" else "\n"))


def _pipe(session: ChatSession, answers: Console, notices: Console) -> None:
    """Lines from standard input, answers to standard output, notices and errors to standard error."""
    for line in sys.stdin:
        for event in session.handle(line):
            if event.kind == "quit":
                return
            if event.kind == "piece":
                _write(answers, event.text)
            elif event.kind == "end":
                _write(answers, "\n")
            else:
                _write(notices, event.text + "\n")


def _talk(session: ChatSession, console: Console, config: Config, model: LanguageModel) -> None:
    """The conversation on a terminal."""
    with contextlib.suppress(ImportError):
        import readline  # noqa: F401  (line editing and history for `input`)
    context, window = model.engine.context_length, config.cache.attention_window
    reach = f"a context of {context} tokens" if window is None else f"a window of {window} tokens, without end"
    size = f"{num_parameters(model.model) / 1e6:.1f}M parameters, {reach}"
    _write(
        console, f"{config.model}: {size}\n/help lists the commands; Ctrl-C stops an answer, Ctrl-D leaves.\n", "dim"
    )
    interrupted = False
    while True:
        try:
            line = input(_prompt(console))
            interrupted = False
            if not _show(session.handle(line), console):
                return
        except EOFError:
            _write(console, "\n")
            return
        except KeyboardInterrupt:
            _write(console, "\n")
            if interrupted:
                return
            interrupted = True
            _write(console, "(Ctrl-C again or Ctrl-D leaves)\n", "dim")


def _show(events: Generator[Event, None, None], console: Console) -> bool:
    """Print the events as they come; False if the user wants to leave. Ctrl-C ends them."""
    in_answer = False
    try:
        for event in events:
            if event.kind == "quit":
                return False
            if event.kind in ("notice", "error"):
                style = "dim" if event.kind == "notice" else "red"
                _write(console, ("\n" if in_answer else "") + event.text + "\n", style)
                in_answer = False
            elif event.kind == "piece":
                in_answer = True
                _write(console, event.text)
            elif in_answer:
                _write(console, "\n")
    except KeyboardInterrupt:
        _write(console, "\n(stopped)\n", "dim")
    finally:
        events.close()
    return True


def _prompt(console: Console) -> str:
    """The prompt; readline must be told which bytes have no width."""
    if console.color_system is None:
        return "> "
    return "\001\033[1;36m\002> \001\033[0m\002"


def _write(console: Console, text: str, style: str | None = None) -> None:
    """Print at once, without markup."""
    safe = printable(text)
    if style is None:
        console.file.write(safe)  # rich would turn tabs into blanks
    else:
        console.out(safe, style=style, end="", highlight=False)
    console.file.flush()
