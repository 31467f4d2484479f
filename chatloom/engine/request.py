"""What is asked of the engine and what it gives back. Plain data: this file imports no torch.

`SamplingParams` refuses every value it cannot honour, so that no setting is silently ignored. The seed belongs to
the request, not to the batch: the same prompt, parameters and seed give the same text whatever is decoded beside it.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

# Called with (finished requests, all requests).
Progress = Callable[[int, int], None]
FinishReason = Literal["stop", "length"]

MAX_SEED = 2**63 - 1


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is sampled. Raises ValueError, naming the allowed range, for a value outside it."""

    # Most tokens to generate; the context limit may end a completion earlier.
    max_tokens: int = 64
    # 0 takes the likeliest token; 1 samples the model's own distribution, which is what RL needs.
    temperature: float = 0.0
    # Sample among the k likeliest tokens; None is all. (Exact ties with the k-th are kept.)
    top_k: int | None = None
    # Sample among the fewest tokens whose probabilities reach top_p (Holtzman et al. 2020); None is all.
    top_p: float | None = None
    # None draws a seed from torch's global generator.
    seed: int | None = None
    # Generation ends before the first of these; the text never contains one.
    stop: tuple[str, ...] = ()
    # Generation ends with one of these; `Completion.tokens` contains it and `Completion.text` does not.
    stop_tokens: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, 1, None)
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise _refusal("temperature", self.temperature, "0 (the likeliest token) or any positive number")
        if self.top_k is not None:
            _whole("top_k", self.top_k, 1, None, none="None for all tokens")
        if self.top_p is not None and not (_is_number(self.top_p) and 0 < self.top_p <= 1):
            raise _refusal("top_p", self.top_p, "above 0 and at most 1, or None for all tokens")
        if self.seed is not None:
            _whole("seed", self.seed, 0, MAX_SEED, none="None for a random one")
        if isinstance(self.stop, str) or not all(isinstance(text, str) and text for text in self.stop):
            raise _refusal("stop", self.stop, 'a tuple of non-empty strings such as ("\\n",)')
        if isinstance(self.stop_tokens, int) or not all(_is_whole(token) for token in self.stop_tokens):
            raise _refusal("stop_tokens", self.stop_tokens, "a tuple of token numbers such as (1, 6)")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "stop_tokens", tuple(self.stop_tokens))


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine generated for one prompt.

    `logprobs[i]` belongs to `tokens[i]`: the log-softmax of the logits divided by the temperature, before top-k and
    top-p, and of the plain logits at temperature 0. `finish_reason` is "stop" (a stop token or string) or "length".
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason


class AnyEngine(Protocol):
    """What callers need of an engine; `engine.Engine` is the real one, `testing.engine` has a scripted one."""

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its answer together."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams] = ...,
        *,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in order."""

    def stream(self, prompt: Sequence[int], sampling: SamplingParams = ...) -> Generator[str, None, Completion]:
        """The pieces of one completion's text; the generator returns the Completion."""


def derive_seed(seed: int, index: int) -> int:
    """The seed of request `index` of a list that was given one `seed`; request 0 uses `seed` itself."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}:{index}".encode(), digest_size=8).digest(), "big") & MAX_SEED


def _whole(name: str, value: Any, low: int, high: int | None, *, none: str | None = None) -> None:
    if _is_whole(value) and value >= low and (high is None or value <= high):
        return
    allowed = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    raise _refusal(name, value, allowed if none is None else f"{allowed}, or {none}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _refusal(name: str, value: Any, allowed: str) -> ValueError:
    return ValueError(f"{name} is {value!r}; it must be {allowed}")


# The defaults: the likeliest token each time.
GREEDY = SamplingParams()
