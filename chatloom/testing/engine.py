"""An engine that answers by rule, so that what is built on engines can be tested without a model."""

import threading
from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

from chatloom.engine.request import GREEDY, Completion, FinishReason, Load, Overloaded, Progress, SamplingParams
from chatloom.tokenizers.bpe import Tokenizer


class ScriptedStream:
    """One answer of a scripted engine, as `engine.stream.Stream` gives it to the server."""

    num_cached = 0

    def __init__(self, completion: Completion, *, at_once: bool) -> None:
        self._completion = completion
        self._known = len(completion.text) if at_once else 0  # characters
        self._taken = 0
        self._cancelled = False

    @property
    def finished(self) -> bool:
        """Whether nothing more will come."""
        return self._cancelled or self._known >= len(self._completion.text)

    @property
    def has_news(self) -> bool:
        """Whether there is something to take, or nothing more will come."""
        return self.finished or self._taken < self._known

    def take(self) -> str:
        """What has come since the last time."""
        start, self._taken = self._taken, self._known
        return self._completion.text[start : self._taken]

    def so_far(self) -> Completion:
        """What there is."""
        if not self._cancelled and self.finished:
            return self._completion
        known = self._known  # a byte tokenizer's: a token a character
        own = self._completion
        text, tokens, logprobs = own.text[:known], own.tokens[:known], own.logprobs[:known]
        return replace(own, text=text, tokens=tokens, logprobs=logprobs, finish_reason="cancelled")

    def cancel(self) -> None:
        """End it."""
        self._cancelled = self._cancelled or not self.finished

    def say_more(self) -> None:
        """Let one more character come."""
        if not self.finished:
            self._known += 1


class ScriptedEngine:
    """Answers each prompt with `answer(text of the prompt, special tokens included)`, then the end of turn.

    Keeps to `max_tokens` and to the context as the real engine does; `prompts` and `sampling` collect what was asked.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        answer: Callable[[str], str],
        *,
        context_length: int = 1024,
        pause: float = 0,
    ) -> None:
        """Answer by rule. Between the characters of what is submitted are `pause` seconds."""
        self.tokenizer = tokenizer
        self.answer = answer
        self.context_length = context_length
        self.prompts: list[str] = []
        self.sampling: list[SamplingParams] = []
        self.adapters: tuple[str, ...] = ()
        self.max_waiting: int | None = None
        self.pause = pause
        self._live: list[ScriptedStream] = []
        self._listeners: list[Callable[[], None]] = []
        self._ended = threading.Event()
        self._worker: threading.Thread | None = None

    @property
    def load(self) -> Load:
        """How much is under way."""
        return Load(sum(not each.finished for each in self._live), 0, 0, 1)

    def submit(self, prompt: Sequence[int], sampling: SamplingParams = GREEDY) -> ScriptedStream:
        """The scripted completion, as it comes."""
        self._live = [each for each in self._live if not each.finished]
        if self.max_waiting is not None and len(self._live) > self.max_waiting:
            raise Overloaded(f"{len(self._live)} requests wait; send this one again later")
        stream = ScriptedStream(self._complete(prompt, sampling), at_once=not self.pause)
        self._live.append(stream)
        return stream

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every character."""
        self._listeners.append(callback)
        return lambda: self._listeners.remove(callback)

    def start(self) -> None:
        """Say something every `pause` seconds."""
        if self.pause and self._worker is None:
            self._ended.clear()
            self._worker = threading.Thread(target=self._talk, daemon=True)
            self._worker.start()

    def stop(self) -> None:
        """Fall silent."""
        self._ended.set()
        if self._worker is not None:
            self._worker.join()
            self._worker = None

    def _talk(self) -> None:
        while not self._ended.wait(self.pause):
            for stream in list(self._live):
                stream.say_more()
            for listener in list(self._listeners):
                listener()

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        *,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """One scripted completion a prompt."""
        each = [sampling] * len(prompts) if isinstance(sampling, SamplingParams) else sampling
        completions = []
        for prompt, params in zip(prompts, each, strict=True):
            completions.append(self._complete(prompt, params))
            if progress is not None:
                progress(len(completions), len(prompts))
        return completions

    def stream(self, prompt: Sequence[int], sampling: SamplingParams = GREEDY) -> Generator[str, None, Completion]:
        """The completion's text, a character at a time."""
        completion = self._complete(prompt, sampling)
        yield from completion.text
        return completion

    def _complete(self, prompt: Sequence[int], sampling: SamplingParams) -> Completion:
        text = self.tokenizer.decode(prompt, skip_special=False)
        self.prompts.append(text)
        self.sampling.append(sampling)
        tokens = [*self.tokenizer.encode(self.answer(text)), self.tokenizer.end_of_turn]
        limit = min(sampling.max_tokens, self.context_length - len(prompt))
        own = tokens[:limit]
        reason: FinishReason = "stop" if len(own) == len(tokens) else "length"
        return Completion(self.tokenizer.decode(own), own, [0.0] * len(own), reason)
