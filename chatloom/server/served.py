"""The models that are served, by the names that clients call them; an adapter is a model of its own with a parent."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import torch

import chatloom
from chatloom.chat.message import Message
from chatloom.chat.render import ChatFormat
from chatloom.engine.language_model import LanguageModel
from chatloom.server import errors
from chatloom.server.generation import Bridge, Generation, ServingEngine
from chatloom.tokenizers.bpe import Tokenizer

MAX_WAITING = 512


@dataclass(frozen=True, eq=False)
class Served:
    """One name that a client may ask for."""

    name: str
    model: LanguageModel
    bridge: Bridge
    adapter: str | None = None  # and what the engine calls it
    parent: str | None = None  # the name of the model that it adapts
    revision: str = ""  # changes whenever the same request may be answered otherwise: `system_fingerprint`
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def format(self) -> ChatFormat:
        """Its tokenizer and template."""
        return self.model.format_of(self.adapter)

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer."""
        return self.format.tokenizer

    @property
    def context_length(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self.model.engine.context_length

    async def chat_tokens(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] = (), *, param: str = "messages"
    ) -> list[int]:
        """The tokens that ask for the next answer of a conversation. APIError where they leave no room for one."""
        self._refuse_endless(sum(len(message.content) for message in messages), param)
        written = self.format.with_tools(tools) if tools else self.format
        tokens = await asyncio.to_thread(written.prompt, tuple(messages))
        self.refuse_long(tokens, param)
        return tokens

    async def text_tokens(self, text: str) -> list[int]:
        """The tokens of a prompt that is no conversation, as `LanguageModel.generate` has it. Errors as above."""
        self._refuse_endless(len(text), "prompt")
        tokens = self.tokenizer.document_start + await asyncio.to_thread(self.tokenizer.encode, text)
        self.refuse_long(tokens, "prompt")
        return tokens

    def refuse_long(self, tokens: Sequence[int], param: str) -> None:
        """APIError for tokens that leave no room for an answer."""
        if len(tokens) >= self.context_length:
            raise errors.context_exceeded(self.context_length, len(tokens), param=param)

    def _refuse_endless(self, num_characters: int, param: str) -> None:
        """Text of which it is known before it is tokenised that it does not fit."""
        least = num_characters // _longest(self.tokenizer)
        if least >= self.context_length:
            raise errors.context_exceeded(self.context_length, f"at least {least}", param=param)


class ServedModels(Mapping[str, Served]):
    """Models by name, with their adapters; started and stopped together."""

    def __init__(
        self,
        models: Mapping[str, LanguageModel],
        *,
        max_waiting: int | None = MAX_WAITING,
        revisions: Mapping[str, str] | None = None,
    ) -> None:
        """Serve models by the names given, and their adapters by theirs.

        Args:
            models: by name; their engines are started and stopped with this.
            max_waiting: requests of a model that may wait beyond those that run; None is any number.
            revisions: what else distinguishes a model's answers, such as the type it computes in.

        Raises:
            ValueError: no model, or two by one name.
        """
        if not models:
            raise ValueError("there is no model to serve; name one at least")
        self._served: dict[str, Served] = {}
        self._bridges: list[Bridge] = []
        for name, model in models.items():
            engine = cast(ServingEngine, model.engine)
            engine.max_waiting = max_waiting
            bridge = Bridge(engine)
            self._bridges.append(bridge)
            revision = f"{revision_of(model)} {(revisions or {}).get(name, '')}"
            self._add(Served(name, model, bridge, revision=_fingerprint(revision)))
            for adapter in engine.adapters:
                own = _fingerprint(f"{revision} {adapter}")
                self._add(Served(adapter, model, bridge, adapter=adapter, parent=name, revision=own))

    def __getitem__(self, name: str) -> Served:
        return self._served[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._served)

    def __len__(self) -> int:
        return len(self._served)

    def find(self, name: str) -> Served:
        """A model by its name; OpenAI's error if there is none."""
        if name not in self._served:
            raise errors.no_such_model(name, tuple(self._served))
        return self._served[name]

    @property
    def num_live(self) -> int:
        """Answers under way, of all models."""
        return sum(bridge.num_live for bridge in self._bridges)

    def start(self, on_end: Callable[[str, Generation], None] | None = None) -> None:
        """Start all engines; `on_end` hears of each answer that has ended, by the name of the model's own."""
        for served in self.values():
            if served.adapter is None:
                served.bridge.on_end = None if on_end is None else _named(on_end, served)
                served.bridge.start()

    def cancel(self) -> None:
        """Cancel what is under way."""
        for bridge in self._bridges:
            bridge.cancel()

    def stop(self) -> None:
        """Cancel what is under way and stop all engines."""
        for bridge in self._bridges:
            bridge.stop()

    def _add(self, served: Served) -> None:
        if served.name in self._served:
            raise ValueError(f"two models are called {served.name!r}; give one another name, NAME=REF")
        self._served[served.name] = served


def _named(on_end: Callable[[str, Generation], None], served: Served) -> Callable[[Generation], None]:
    def told(generation: Generation) -> None:
        on_end(generation.sampling.adapter or served.name, generation)

    return told


def revision_of(model: LanguageModel) -> str:
    """What an answer depends on but the request: the code, the type, the tokenizer, and a sample of the weights."""
    decoder: Any = model.model
    sample = [
        parameter.detach().flatten()[:: max(1, parameter.numel() // 64)][:64].float().sum().item()
        for parameter in decoder.parameters()
    ]
    autocast = getattr(model.engine, "autocast", "")
    template = model.chat_format.template.source
    return f"{chatloom.__version__} {torch.__version__} {autocast} {model.tokenizer.digest()} {template} {sample}"


def _fingerprint(text: str) -> str:
    return "fp_" + hashlib.sha256(text.encode()).hexdigest()[:12]


_LONGEST: dict[str, int] = {}


def _longest(tokenizer: Tokenizer) -> int:
    """Characters of its longest token, by which a text's tokens are bounded from below."""
    digest = tokenizer.digest()
    if digest not in _LONGEST:
        _LONGEST[digest] = max(map(len, tokenizer.vocabulary))
    return _LONGEST[digest]
