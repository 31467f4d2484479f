"""What is asked of the engine and what it gives back. Plain data: this file imports no torch.

`SamplingParams` refuses every value it cannot honour, so that no setting is silently ignored. The seed belongs to
the request, not to the batch: the same prompt, parameters and seed give the same text whatever is decoded beside it.

The order in which they apply: logit bias and penalties change the logits, a grammar leaves tokens out, the temperature
divides, then top-k, top-p and min-p leave tokens out. Log-probabilities are the model's own: of the unchanged logits
divided by the temperature.
"""

import hashlib
import math
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from chatloom.engine.grammar import Grammar

# Called with (finished requests, all requests).
Progress = Callable[[int, int], None]
FinishReason = Literal["stop", "length", "cancelled"]

MAX_SEED = 2**63 - 1
MAX_TOP_K = 2**31 - 1
COLDEST = 1e-6  # logits divided by less might not be finite
MAX_SAMPLES = 128
MAX_TOP_LOGPROBS = 20
MAX_BIAS = 100.0
MAX_BEAMS = 64


class Overloaded(RuntimeError):
    """A request was refused or given up because others, or the memory, leave no room for it: send it again later."""


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How one completion is sampled. Raises ValueError, naming the allowed range, for a value outside it."""

    # Most tokens to generate; the context limit may end a completion earlier.
    max_tokens: int = 64
    # 0 takes the likeliest token, and so does less than COLDEST; 1 samples the model's own distribution, as RL needs.
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
    # Sample among the tokens at least this share as likely as the likeliest (Nguyen et al. 2024); None is all.
    min_p: float | None = None
    # Logits of tokens that the prompt or the answer has are divided by it if positive, else multiplied (Keskar et al.
    # 2019); 1 changes nothing.
    repetition_penalty: float = 1.0
    # Taken off a logit for each time that the answer has the token; 0 changes nothing.
    frequency_penalty: float = 0.0
    # Taken off a logit if the answer has the token; 0 changes nothing.
    presence_penalty: float = 0.0
    # Added to the logits of these tokens: {token: bias}, or pairs.
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    # How many of the likeliest tokens to report at each place, with their log-probabilities.
    top_logprobs: int = 0
    # How many completions of the prompt; they follow one another.
    n: int = 1
    # Sample so many and give the `n` whose tokens are the likeliest on average, best first; None samples `n`.
    best_of: int | None = None
    # What the text may be; stop tokens may come exactly where it may end. None is any text.
    grammar: Grammar | None = None
    # Beam search of this width for the likeliest completions, `n` of them, best first; 1 is no search.
    num_beams: int = 1
    # Beams are compared by log-probability / length ** length_penalty: above 0 favours long ones, 0 is the plain sum.
    length_penalty: float = 1.0
    # The name of an adapter that was given to the engine (`Engine.add_adapter`); None is the model as it is.
    adapter: str | None = None
    # Also report the log-probability of each token of the prompt, and so many of the likeliest at its place; None
    # reports none. Such a prompt is computed whole, whatever is remembered.
    prompt_logprobs: int | None = None

    def __post_init__(self) -> None:
        _whole("max_tokens", self.max_tokens, 1, None)
        if not _is_number(self.temperature) or not 0 <= self.temperature < math.inf:
            raise _refusal("temperature", self.temperature, "0 (the likeliest token) or any positive number")
        if self.temperature < COLDEST:
            object.__setattr__(self, "temperature", 0.0)
        if self.top_k is not None:
            _whole("top_k", self.top_k, 1, MAX_TOP_K, none="None for all tokens")
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
        if self.min_p is not None and not (_is_number(self.min_p) and 0 <= self.min_p <= 1):
            raise _refusal("min_p", self.min_p, "from 0 to 1, or None for all tokens")
        if not _is_number(self.repetition_penalty) or not 0 < self.repetition_penalty < math.inf:
            raise _refusal("repetition_penalty", self.repetition_penalty, "a positive number; 1 changes nothing")
        for name in ("frequency_penalty", "presence_penalty"):
            value = getattr(self, name)
            if not _is_number(value) or not -2 <= value <= 2:
                raise _refusal(name, value, "from -2 to 2")
        _whole("top_logprobs", self.top_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.prompt_logprobs is not None:
            _whole("prompt_logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS, none="None for no log-probabilities")
        _whole("n", self.n, 1, MAX_SAMPLES)
        if self.best_of is not None:
            _whole("best_of", self.best_of, self.n, MAX_SAMPLES, none=f"None; it is at least n, {self.n}")
        if self.adapter is not None and not (isinstance(self.adapter, str) and self.adapter):
            raise _refusal("adapter", self.adapter, "the name of an adapter, or None for the model as it is")
        self._check_beams()
        if self.num_samples > 1 and self.temperature == 0:
            raise ValueError(f"{self.num_samples} samples at temperature 0 would all be the same; give a temperature")
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        if self.grammar is not None and not isinstance(self.grammar, Grammar):
            raise _refusal("grammar", self.grammar, "a Grammar such as Grammar.json(), or None for any text")

    def _check_beams(self) -> None:
        _whole("num_beams", self.num_beams, 1, MAX_BEAMS)
        if not _is_number(self.length_penalty) or not abs(self.length_penalty) < math.inf:
            raise _refusal("length_penalty", self.length_penalty, "a number")
        if self.num_beams == 1:
            if self.length_penalty != 1:
                raise ValueError("length_penalty is for beam search, and num_beams is 1; give num_beams as well")
            return
        if self.n > self.num_beams:
            raise ValueError(f"n is {self.n} and num_beams {self.num_beams}: a search gives no more than its beams")
        excluded = {
            "temperature": self.temperature,
            "stop": self.stop,
            "best_of": self.best_of,
            "grammar": self.grammar,
            "top_logprobs": self.top_logprobs,
            "prompt_logprobs": self.prompt_logprobs is not None,
            "a bias or penalty": self.changes_logits,
        }
        for name, value in excluded.items():
            if value:
                raise ValueError(f"{name} is given with num_beams {self.num_beams}; beam search goes without it")

    @property
    def num_samples(self) -> int:
        """How many completions are sampled."""
        if self.num_beams > 1:
            return 1
        return self.n if self.best_of is None else self.best_of

    @property
    def changes_logits(self) -> bool:
        """Whether a bias or a penalty is in use."""
        penalties = (self.repetition_penalty != 1, self.frequency_penalty, self.presence_penalty)
        return bool(self.logit_bias) or any(penalties)


@dataclass(frozen=True, slots=True)
class Completion:
    """What the engine generated for one prompt.

    `logprobs[i]` belongs to `tokens[i]`: the log-softmax of the logits divided by the temperature, and of the plain
    logits at temperature 0; no bias, penalty, top-k, top-p, min-p or grammar changes it. `finish_reason` is "stop" (a
    stop token or string, or nothing may follow in the grammar), "length" or "cancelled".
    """

    text: str
    tokens: list[int]
    logprobs: list[float]
    finish_reason: FinishReason
    # At each place the `SamplingParams.top_logprobs` likeliest tokens, likeliest first; None if none were asked for.
    top_logprobs: list[list[tuple[int, float]]] | None = None
    # Of each token of the prompt, by the plain logits; None for the first, which nothing predicts. None if none were
    # asked for.
    prompt_logprobs: list[float | None] | None = None
    # And the `SamplingParams.prompt_logprobs` likeliest at its place.
    prompt_top_logprobs: list[list[tuple[int, float]]] | None = None

    @property
    def mean_logprob(self) -> float:
        """What best-of goes by."""
        return sum(self.logprobs) / max(len(self.logprobs), 1)


@dataclass(frozen=True, slots=True)
class Load:
    """How much an engine has under way."""

    num_running: int
    num_waiting: int
    blocks_in_use: int  # of the cache, by those that run; what is only remembered is free
    num_blocks: int


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


def sample_seed(seed: int, sample: int) -> int:
    """The seed of one of a request's samples; sample 0 uses `seed` itself."""
    if sample == 0:
        return seed
    return int.from_bytes(hashlib.blake2b(f"{seed}:sample:{sample}".encode(), digest_size=8).digest(), "big") & MAX_SEED


def _pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    pairs = tuple(bias.items() if isinstance(bias, Mapping) else bias)
    for pair in pairs:
        fine = isinstance(pair, tuple) and len(pair) == 2 and _is_whole(pair[0]) and _is_number(pair[1])
        if not fine or not -MAX_BIAS <= pair[1] <= MAX_BIAS:
            raise _refusal(
                "logit_bias", bias, f"tokens with numbers from {-MAX_BIAS:g} to {MAX_BIAS:g}, such as {{5: -100}}"
            )
    return pairs


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
