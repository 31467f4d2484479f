"""One step of decoding: the forward pass of a plan over the paged cache, and a token for every row that is due.

A row's result depends on nothing beside it: its keys and values are its own or those of an equal beginning, and its
random numbers come from its own seed. All methods run under `torch.inference_mode` in evaluation mode; `engine.py`
sees to that.
"""

import math
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from torch import Tensor

from chatloom.engine import fused, sampling, structured
from chatloom.engine.cache_config import PLAIN, CacheConfig
from chatloom.engine.multi_lora import Adapted, Adapter
from chatloom.engine.request import Completion, FinishReason, SamplingParams
from chatloom.engine.scheduler import Plan
from chatloom.engine.scheduler import Sequence as Scheduled
from chatloom.engine.text import TextStream
from chatloom.models import Decoder
from chatloom.nn.paged import Chunk

Number = TypeVar("Number", int, float)
_SCORED_ROWS = 256  # of a prompt's log-probabilities, (rows, V), at a time


class NotFinite(ValueError):
    """The model's numbers are spoilt, and so may be what was kept of them."""


@dataclass(slots=True, eq=False, kw_only=True)
class Row(Scheduled):
    """One completion being made: what the scheduler knows of it, and its tokens, text and end so far."""

    sampling: SamplingParams
    seed: int | None  # settled: None only where nothing is drawn
    limit: int  # most tokens that fit
    text: TextStream | None  # None: nobody reads along, and no stop string has to be found
    matcher: structured.Matcher | None = None  # where it is in its grammar
    adapter: Adapter | None = None  # None: the model as it is
    num_likeliest: int = 0  # tokens to report at each place
    num_guessed: int = 0  # tokens guessed so far (`speculative`)
    num_right: int = 0  # and those of them that were drawn
    uniforms: list[float] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    prompt_logprobs: list[float | None] | None = None  # of a prompt that is scored
    prompt_top_logprobs: list[list[tuple[int, float]]] = field(default_factory=list)
    pieces: deque[str] = field(default_factory=deque)  # of the text, not yet fetched
    kept: list[str] = field(default_factory=list)  # all pieces
    reason: FinishReason | None = None  # set when it has ended
    error: Exception | None = None  # or this

    @property
    def ended(self) -> bool:
        """Whether nothing more will come."""
        return self.reason is not None or self.error is not None

    @property
    def answer(self) -> list[int]:
        """The tokens generated so far."""
        return self.tokens[self.num_prompt :]

    def has_ended(self) -> bool:
        """As `ended`, to wait for."""
        return self.ended

    def has_news(self) -> bool:
        """Whether a reader of its text can go on."""
        return bool(self.pieces) or self.ended

    def draw(self) -> None:
        """Fill `uniforms` from the seed: what comes later does not depend on how many are drawn."""
        if self.seed is not None:
            generator = torch.Generator().manual_seed(self.seed)
            self.uniforms = torch.rand(self.limit, generator=generator, dtype=torch.float32).tolist()

    def score_prompt(self) -> None:
        """Have the prompt's log-probabilities computed, for which nothing that is remembered will do."""
        self.prompt_logprobs = [None] * (self.num_prompt - self.num_virtual)
        self.prompt_top_logprobs = [[] for _ in self.prompt_logprobs]
        self.space += f" scored {self.order}".encode()

    def take(self, token: int, logprob: float) -> bool:
        """Append one token; returns whether the row has ended with it."""
        self.tokens.append(token)
        self.logprobs.append(logprob)
        reason: FinishReason | None = None
        stopped = token in self.sampling.stop_tokens
        if stopped or (self.matcher is not None and self.matcher.take(token)):
            reason = "stop"
        elif len(self.logprobs) >= self.limit:
            reason = "length"
        if self.text is not None:
            if not stopped:
                self._say(self.text.push(token))
            if reason is not None:
                self._say(self.text.finish())
            if self.text.stopped:
                reason = "stop"
        self.reason = reason  # last, because a reader in another thread goes by it
        return reason is not None

    def completion(self, decode: Callable[[list[int]], str]) -> Completion:
        """The result of a row that has ended."""
        if self.error is not None:
            raise self.error
        assert self.reason is not None
        tokens = self.answer
        if self.text is not None:
            text = "".join(self.kept)
        else:
            stopped = self.reason == "stop" and tokens[-1] in self.sampling.stop_tokens
            text = decode(tokens[:-1] if stopped else tokens)
        scores = self.prompt_logprobs, None if self.prompt_logprobs is None else self.prompt_top_logprobs
        return Completion(text, tokens, self.logprobs, self.reason, self.top_logprobs or None, *scores)

    def _say(self, piece: str) -> None:
        if piece:
            self.pieces.append(piece)
            self.kept.append(piece)


class Runner:
    """Computes plans with a model, whose weights are read at each step, and a cache of its own."""

    def __init__(
        self,
        model: Decoder,
        *,
        dtype: torch.dtype,
        block_size: int,
        kept: CacheConfig = PLAIN,
        adapted: Adapted | None = None,
        whole: bool = True,
    ) -> None:
        """`dtype` is that of the keys and values that are kept, if `kept` does not say otherwise.

        `adapted` computes rows that name adapters. `whole`: whether steps may be compiled whole (`fused`), whose cache
        nothing else can read.
        """
        self.model, self._adapted = model, adapted
        self._device = model.embedding.weight.device
        config = model.config
        whole = whole and kept == PLAIN and fused.can(model, block_size)
        self._fused = fused.Fused(model) if whole else None
        kind = fused.LaidOut if whole else kept.cache(model)
        sizes = config.num_layers, config.num_key_value_heads, config.head_width
        self.cache = kind(*sizes, block_size=block_size, dtype=dtype, device=self._device)
        self._prefix: tuple[Tensor, Tensor] | None = None if model.prefix is None else model.prefix(model)
        self.num_virtual = 0 if self._prefix is None else self._prefix[0].shape[2]

    @property
    def whole(self) -> bool:
        """Whether steps are compiled whole."""
        return self._fused is not None

    def continues(self, other: "Runner") -> bool:
        """Take over the other's cache if it has the right shape."""
        mine, theirs = self.cache.keys, other.cache.keys
        fits = (mine.shape[2:], mine.dtype, mine.device) == (theirs.shape[2:], theirs.dtype, theirs.device)
        fits = fits and len(mine) == len(theirs) and self.num_virtual == other.num_virtual
        fits = fits and type(self.cache) is type(other.cache)
        if fits:
            self.cache = other.cache
        return fits

    def run(self, plan: Plan) -> list[Row]:
        """Compute a plan; returns the rows that have one more token. Those whose logits are not finite get an error."""
        self._prepare(plan)
        model = self._model_of(plan)
        rows: list[Row] = []  # those due, and once more for each guess
        guesses: list[int | None] = []  # what was guessed for the token before
        tokens, ends = list[int](), list[int]()
        guessed_for: dict[int, Row] = {}  # places in the plan
        scored: list[tuple[Row, int, int]] = []  # whose prompt, and the slice of the step's tokens that predict it
        for place, (row, count) in enumerate(plan.chunks):
            assert isinstance(row, Row)
            start = row.num_computed
            if row.prompt_logprobs is not None and start < row.num_prompt - 1:
                scored.append((row, len(tokens), len(tokens) + min(count, row.num_prompt - 1 - start)))
            tokens += row.tokens[start : start + count] if count > 1 else (row.tokens[start],)
            guessed = row.drafted[: max(0, start + count - len(row.tokens))]
            if guessed:
                tokens += guessed
                guessed_for[place] = row
            if start + count >= len(row.tokens):
                rows += [row] * (1 + len(guessed))
                guesses += [None, *guessed]
                ends += range(len(tokens) - 1 - len(guessed), len(tokens))
        masks = structured.begin([row.matcher for row in rows], guesses)  # computed beside the model
        self.cache.begin([chunk for row, count in plan.chunks for chunk in _chunks(row, count)])
        logits = self._logits(model, tokens, ends + [place for _, *places in scored for place in range(*places)])
        if scored:
            logits, others = logits[: len(ends)], logits[len(ends) :]
            _score(scored, others)
        if not rows:
            return rows
        self._sample(rows, guesses, logits, masks())
        for place, row in guessed_for.items():  # of wrong guesses, keys and values will be written over
            taken = max(1, len(row.tokens) - row.num_computed - 1)
            row.num_guessed += plan.chunks[place][1] - 1
            row.num_right += taken - 1
            plan.chunks[place] = row, taken
        return list(dict.fromkeys(rows))

    def _logits(self, model: Decoder, tokens: list[int], ends: list[int]) -> Tensor:
        """Compute the rows announced to the cache; the logits behind the tokens at `ends`, (ends, V)."""
        if self._fused is not None and isinstance(self.cache, fused.LaidOut):
            assert model is self.model, "named adapters are not compiled"
            return self._fused.logits(tokens, ends, self.cache)
        hidden = model.hidden(torch.tensor([tokens], device=self._device), cache=self.cache)[0]  # (N, C)
        if ends != [*range(len(tokens))]:
            hidden = hidden[torch.tensor(ends, dtype=torch.int64, device=self._device)]
        return model.logits(hidden)

    def _model_of(self, plan: Plan) -> Decoder:
        """What computes a step: the model, or, where any row names an adapter, the tree that adds its update."""
        if all(row.adapter is None for row, _ in plan.chunks):  # type: ignore[attr-defined]
            return self.model
        assert self._adapted is not None
        plan.chunks.sort(key=_by_adapter)  # stable
        self._adapted.begin([(row.adapter, count) for row, count in plan.chunks])  # type: ignore[attr-defined]
        return self._adapted.model

    def _prepare(self, plan: Plan) -> None:
        for pairs in (plan.moves, plan.copies):
            if pairs:
                self.cache.copy(pairs)
        if plan.fresh:
            assert self._prefix is not None
            self.cache.put([row.blocks for row in plan.fresh], *self._prefix)

    def _sample(
        self,
        rows: Sequence[Row],
        guesses: Sequence[int | None],
        logits: Tensor,
        masks: Mapping[int, Tensor | ValueError],
    ) -> None:
        """Draw a token for each row from its logits (B, V), some with a bias (V,), and let the row take it.

        A row that is there once more takes another token if the one before is what was guessed.
        """
        params = [row.sampling for row in rows]
        if all(param is params[0] for param in params):
            params = params[:1]
        temperature = self._setting([param.temperature for param in params])
        drawn_from = logits
        if any(param.changes_logits for param in params):
            drawn_from = sampling.changed(logits, _changes(rows))
        biases = {place: mask for place, mask in masks.items() if isinstance(mask, Tensor)}
        if biases:
            drawn_from = sampling.biased(drawn_from, biases)
        tokens, logprobs = sampling.sample(
            drawn_from,
            self._uniforms(rows, guesses),
            temperature=temperature,
            top_k=self._optional([param.top_k for param in params], logits.shape[1]),
            top_p=self._optional([param.top_p for param in params], 1.0),
            min_p=self._optional([param.min_p for param in params], 0.0),
        )
        most = max(row.num_likeliest for row in rows)
        if most or drawn_from is not logits:
            every = sampling.logprobs_of(logits, temperature)  # (B, V)
            logprobs = every.gather(1, tokens[:, None])[:, 0]
            if most:
                _note_likeliest(rows, every, most)
        right = True
        drawn = zip(rows, guesses, tokens.tolist(), logprobs.tolist())
        for place, (row, guess, token, logprob) in enumerate(drawn):
            right = guess is None or (right and row.tokens[-1] == guess)
            if row.ended or not right:
                continue
            stuck = masks.get(place)
            if isinstance(stuck, ValueError):
                row.error = stuck
            elif math.isfinite(logprob):
                row.take(token, logprob)
            else:
                row.error = NotFinite(
                    "the model gave logits that are not finite numbers, so nothing can be sampled from it; "
                    "its weights are damaged or its training diverged: go back to an earlier checkpoint"
                )

    def _uniforms(self, rows: Sequence[Row], guesses: Sequence[int | None]) -> Tensor | None:
        """The random number of each row's next token, or of one behind its guesses, (B,); None if no row draws."""
        if all(row.seed is None for row in rows):
            return None
        numbers = list[float]()
        behind = 0
        for row, guess in zip(rows, guesses):
            behind = 0 if guess is None else behind + 1
            numbers.append(row.uniforms[len(row.logprobs) + behind] if row.uniforms else 0.0)
        return torch.tensor(numbers, dtype=torch.float32, device=self._device)

    def _setting(self, values: Sequence[Number]) -> Number | Tensor:
        """One number if all rows agree, which the sampler handles faster, else (B,)."""
        return values[0] if len(set(values)) == 1 else torch.tensor(values, device=self._device)

    def _optional(self, values: Sequence[Number | None], everything: Number) -> Number | Tensor | None:
        """As `_setting`, where None keeps all tokens and so does `everything`."""
        if all(value is None for value in values):
            return None
        return self._setting([everything if value is None else value for value in values])


def _chunks(row: Scheduled, count: int) -> list[Chunk]:
    """Guesses are tokens of one each: they attend as they would without guesses, to the last bit."""
    if row.num_missing > 1:
        return [Chunk(row.blocks, row.num_computed, count)]
    return [Chunk(row.blocks, row.num_computed + place, 1) for place in range(count)]


def _by_adapter(chunk: tuple[Scheduled, int]) -> tuple[int, int]:
    """Where a chunk stands in a step: as the scheduler has it, one token, guesses, prompts; then adapter by adapter."""
    row, count = chunk
    assert isinstance(row, Row)
    return (count > 1) + (row.num_missing > 1), -1 if row.adapter is None else row.adapter.number


def _changes(rows: Sequence[Row]) -> list[sampling.Change]:
    changes = []
    for place, row in enumerate(rows):
        param = row.sampling
        if param.changes_logits:
            seen = set(row.tokens[row.num_virtual :]) if param.repetition_penalty != 1 else ()
            answered = Counter(row.answer) if param.frequency_penalty or param.presence_penalty else {}
            penalties = param.repetition_penalty, param.frequency_penalty, param.presence_penalty
            changes.append(sampling.Change(place, tuple(param.logit_bias), *penalties, list(seen), answered))  # type: ignore[arg-type]
    return changes


def _score(scored: Sequence[tuple[Row, int, int]], logits: Tensor) -> None:
    """Note the log-probabilities of the tokens of prompts, behind the ones whose logits (N, V) are given."""
    for row, first, end in scored:
        assert row.prompt_logprobs is not None
        assert row.sampling.prompt_logprobs is not None
        own, logits = logits[: end - first], logits[end - first :]
        for place in range(0, len(own), _SCORED_ROWS):
            every = sampling.logprobs_of(own[place : place + _SCORED_ROWS], 1)
            start = row.num_computed + place + 1
            tokens = torch.tensor(row.tokens[start : start + len(every)], device=every.device)
            places = slice(start - row.num_virtual, start - row.num_virtual + len(every))
            row.prompt_logprobs[places] = every.gather(1, tokens[:, None])[:, 0].tolist()
            best = every.topk(min(row.sampling.prompt_logprobs, every.shape[1]), dim=1)
            pairs = zip(best.indices.tolist(), best.values.tolist())
            row.prompt_top_logprobs[places] = [list(zip(*each)) for each in pairs]


def _note_likeliest(rows: Sequence[Row], logprobs: Tensor, most: int) -> None:
    best = logprobs.topk(min(most, logprobs.shape[1]), dim=1)
    for row, tokens, values in zip(rows, best.indices.tolist(), best.values.tolist()):
        if row.num_likeliest:
            row.top_logprobs.append(list(zip(tokens, values))[: row.num_likeliest])
