"""An engine that answers by rule, so that what is built on engines can be tested without a model."""

from collections.abc import Callable, Generator, Sequence

from chatloom.engine.request import GREEDY, Completion, FinishReason, Progress, SamplingParams
from chatloom.tokenizers.bpe import Tokenizer


class ScriptedEngine:
    """Answers each prompt with `answer(text of the prompt, special tokens included)`, then the end of turn.

    Keeps to `max_tokens` and to the context as the real engine does; `prompts` and `sampling` collect what was asked.
    """

    def __init__(self, tokenizer: Tokenizer, answer: Callable[[str], str], *, context_length: int = 1024) -> None:
        self.tokenizer = tokenizer
        self.answer = answer
        self.context_length = context_length
        self.prompts: list[str] = []
        self.sampling: list[SamplingParams] = []

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
