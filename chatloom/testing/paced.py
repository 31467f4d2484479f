"""An engine that speaks when a test says so: for what must be seen while an answer is under way."""

import threading
from collections.abc import Callable, Sequence

from chatloom.chat.render import ChatFormat
from chatloom.chat.templates import CHATLOOM_TEMPLATE
from chatloom.engine.language_model import LanguageModel
from chatloom.engine.request import GREEDY, SamplingParams
from chatloom.testing.engine import ScriptedEngine, ScriptedStream
from chatloom.testing.models import tiny_llama
from chatloom.testing.tokenizer import byte_tokenizer


class PacedEngine(ScriptedEngine):
    """Gives answers at once, until `hold`; then as many characters as `say` lets come, until `release`."""

    def __init__(self, answer: Callable[[str], str], *, context_length: int = 2048) -> None:
        """Answer by rule, with the byte tokenizer."""
        super().__init__(byte_tokenizer(), answer, context_length=context_length, pause=0.0)
        self._held = False
        self._lock = threading.Lock()

    def hold(self) -> None:
        """Answers that are asked for from now on wait for `say`."""
        self._held = True

    def release(self) -> None:
        """Let everything come, now and later."""
        self._held = False
        self.say(1_000_000)

    def say(self, characters: int) -> None:
        """Let so many more characters of every answer come."""
        with self._lock:
            for stream in self._live:
                for _ in range(characters):
                    if stream.finished:
                        break
                    stream.say_more()
        for listener in list(self._listeners):
            listener()

    def submit(self, prompt: Sequence[int], sampling: SamplingParams = GREEDY) -> ScriptedStream:
        """The scripted completion."""
        with self._lock:
            self._live = [each for each in self._live if not each.finished]
            stream = ScriptedStream(self._complete(prompt, sampling), at_once=not self._held)
            self._live.append(stream)
            return stream


def paced(answer: Callable[[str], str], *, context_length: int = 2048) -> LanguageModel:
    """A model that says `answer(prompt)`, when its engine lets it."""
    engine = PacedEngine(answer, context_length=context_length)
    model = tiny_llama(0, context_length=context_length)
    return LanguageModel(model, ChatFormat(byte_tokenizer(), CHATLOOM_TEMPLATE), engine=engine)
