"""The decoding loop: a batch of prompts prefilled together, then one token a row and step.

Three things make it fast and keep a row's result independent of its neighbours. A prompt that several requests share
is prefilled once and its cache rows are repeated. The loop reads one number from the device a step, the count of
finished rows. When half the rows have finished, the others move into a smaller batch.

All methods run under `torch.inference_mode` in evaluation mode; `engine.py` sees to that.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from chatloom.engine.request import Completion, FinishReason, SamplingParams
from chatloom.engine.sampling import sample
from chatloom.engine.text import TextStream
from chatloom.models import Decoder
from chatloom.nn.cache import Dense

Number = TypeVar("Number", int, float)

# The share of finished rows at which the rest is worth copying into a smaller batch: the copy costs about a step.
COMPACT_AT = 0.5


@dataclass(frozen=True, slots=True)
class Row:
    """One request of a batch, with what the engine has settled: its seed and the most tokens that fit."""

    prompt: list[int]
    sampling: SamplingParams
    seed: int | None
    limit: int


class Batch:
    """Rows being decoded. Call `step` until `finished`; then `completions` has one for each row, in order."""

    def __init__(
        self,
        model: Decoder,
        rows: Sequence[Row],
        *,
        decode: Callable[[list[int]], str],
        cache_dtype: torch.dtype,
        follow: bool = False,
    ) -> None:
        """Prefill. `follow` decodes every row's text as it grows, into `pieces`; else only for stop strings."""
        self._model = model
        self._rows = rows
        self._decode = decode
        self._device = model.embedding.weight.device
        size, self._steps = len(rows), max(row.limit for row in rows)
        self._step = 0
        self._tokens = torch.zeros(self._steps, size, dtype=torch.int64, device=self._device)
        self._logprobs = torch.zeros(self._steps, size, device=self._device)
        self._distinct_limits = {row.limit for row in rows}
        self._last = [row.limit for row in rows]  # the most tokens of each row; less where a stop string ended it
        self._stop_table, self._kinds = self._stops()
        self._texts = {
            index: TextStream(decode, stop=row.sampling.stop)
            for index, row in enumerate(rows)
            if follow or row.sampling.stop
        }
        self.pieces: dict[int, list[str]] = {index: [] for index in self._texts}
        self._open = set(self._texts)  # rows whose text still grows
        self.num_finished = 0
        # What belongs to the rows still in the batch; `_active[i]` is where row i stood at first.
        self._active = torch.arange(size, device=self._device)
        self._done = torch.zeros(size, dtype=torch.bool, device=self._device)
        self._limits = torch.tensor(self._last, device=self._device)
        self._stop_kind = torch.tensor(self._kinds, device=self._device)
        self._uniforms = self._draw_uniforms()
        params = [row.sampling for row in rows]
        vocab_size = model.config.vocab_size
        self._temperature = self._setting([param.temperature for param in params])
        self._top_k = self._optional([param.top_k for param in params], vocab_size)
        self._top_p = self._optional([param.top_p for param in params], 1.0)
        self._cache, self._logits = self._prefill(cache_dtype)

    @property
    def finished(self) -> bool:
        """Whether every row has ended."""
        return self.num_finished == len(self._rows)

    def step(self) -> None:
        """Generate one token for every row that goes on."""
        if self._step:
            self._forward()
        tokens, logprobs = sample(
            self._logits,
            None if self._uniforms is None else self._uniforms[self._step],
            temperature=self._temperature,
            top_k=self._top_k,
            top_p=self._top_p,
        )
        self._tokens[self._step].index_copy_(0, self._active, tokens)
        self._logprobs[self._step].index_copy_(0, self._active, logprobs)
        self._mark_finished(tokens)

    def completions(self) -> list[Completion]:
        """The results. Raises ValueError if the model's logits were not finite numbers."""
        if not bool(torch.isfinite(self._logprobs).all()):
            raise ValueError(
                "the model gave logits that are not finite numbers, so nothing can be sampled from it; "
                "its weights are damaged or its training diverged: go back to an earlier checkpoint"
            )
        tokens, logprobs = self._tokens.t().tolist(), self._logprobs.t().tolist()
        completions = []
        for index, end in enumerate(self._first_stops()):
            by_token = end <= self._last[index]
            own = tokens[index][: min(end, self._last[index])]
            if index in self._texts:
                text, stopped = "".join(self.pieces[index]), by_token or self._texts[index].stopped
            else:
                text, stopped = self._decode(own[:-1] if by_token else own), by_token
            reason: FinishReason = "stop" if stopped else "length"
            completions.append(Completion(text, own, logprobs[index][: len(own)], reason))
        return completions

    def _first_stops(self) -> list[int]:
        """For each row the number of tokens up to its first stop token, that included; past all steps if none."""
        if self._stop_table is None:
            return [self._steps + 1] * len(self._rows)
        kinds = torch.tensor(self._kinds, device=self._device)
        hits = self._stop_table[kinds, self._tokens]  # (steps, B); what a finished row went on to say comes later
        numbers = torch.arange(1, self._steps + 1, device=self._device)[:, None]
        first: list[int] = torch.where(hits, numbers, self._steps + 1).amin(dim=0).tolist()
        return first

    # --- preparing ------------------------------------------------------------------------------------------

    def _prefill(self, cache_dtype: torch.dtype) -> tuple[Dense, Tensor]:
        """Run each distinct prompt once; the cache and the next token's logits (B, V) of every row."""
        config = self._model.config
        numbers: dict[tuple[int, ...], int] = {}
        source = [numbers.setdefault(tuple(row.prompt), len(numbers)) for row in self._rows]
        lengths = torch.tensor([len(prompt) for prompt in numbers])
        tokens = torch.zeros(len(numbers), int(lengths.max()), dtype=torch.int64)
        for number, prompt in enumerate(numbers):
            tokens[number, : len(prompt)] = torch.tensor(prompt)
        tokens, lengths = tokens.to(self._device), lengths.to(self._device)
        prefix = None if self._model.prefix is None else self._model.prefix(self._model)
        num_virtual = 0 if prefix is None else prefix[0].shape[2]
        cache = Dense(
            config.num_layers,
            len(numbers),
            num_virtual + max(len(row.prompt) + row.limit for row in self._rows),
            config.num_key_value_heads,
            config.head_width,
            dtype=cache_dtype,
            device=self._device,
        )
        if prefix is not None:
            cache.start(*prefix)
        cache.begin(lengths)
        hidden = self._model.hidden(tokens, cache=cache)  # (U, T, C)
        cache.advance()
        logits = self._model.logits(hidden[torch.arange(len(numbers), device=self._device), lengths - 1])
        if len(numbers) < len(source):
            rows = torch.tensor(source, device=self._device)
            cache, logits = cache.select(rows), logits[rows]
        return cache, logits

    def _stops(self) -> tuple[Tensor | None, list[int]]:
        """Which tokens end a row: a table (kinds, V) of booleans, and the kind of each row."""
        kinds: dict[tuple[int, ...], int] = {}
        kind = [kinds.setdefault(row.sampling.stop_tokens, len(kinds)) for row in self._rows]
        if not any(kinds):
            return None, kind
        table = torch.zeros(len(kinds), self._model.config.vocab_size, dtype=torch.bool)
        for stop_tokens, number in kinds.items():
            table[number, list(stop_tokens)] = True
        return table.to(self._device), kind

    def _draw_uniforms(self) -> Tensor | None:
        """A row's random numbers, from its own seed alone: (steps, B); None if no row samples."""
        if all(row.seed is None for row in self._rows):
            return None
        uniforms = torch.zeros(len(self._rows), self._steps)
        generator = torch.Generator()
        for row, numbers in zip(self._rows, uniforms):
            if row.seed is not None:
                generator.manual_seed(row.seed)
                torch.rand(row.limit, generator=generator, out=numbers[: row.limit])
        return uniforms.t().contiguous().to(self._device)

    def _setting(self, values: Sequence[Number]) -> Number | Tensor:
        """One number if all rows agree, which the sampler handles faster, else (B,)."""
        return values[0] if len(set(values)) == 1 else torch.tensor(values, device=self._device)

    def _optional(self, values: Sequence[Number | None], everything: Number) -> Number | Tensor | None:
        """As `_setting`, where None keeps all tokens and so does `everything`."""
        if all(value is None for value in values):
            return None
        return self._setting([everything if value is None else value for value in values])

    # --- stepping -------------------------------------------------------------------------------------------

    def _forward(self) -> None:
        """Feed the last tokens; leave the next ones' logits (B, V)."""
        tokens = self._tokens[self._step - 1].index_select(0, self._active)[:, None]  # (B, 1)
        self._cache.begin(torch.ones_like(self._active))
        hidden = self._model.hidden(tokens, cache=self._cache)  # (B, 1, C)
        self._cache.advance()
        self._logits = self._model.logits(hidden[:, 0])

    def _mark_finished(self, tokens: Tensor) -> None:
        self._step += 1
        if self._stop_table is not None:
            self._done |= self._stop_table[self._stop_kind, tokens]
        if self._texts:
            self._follow_texts(tokens)
        if self._step in self._distinct_limits:
            self._done |= self._limits <= self._step
        remaining = len(self._active) - int(self._done.sum())
        self.num_finished = len(self._rows) - remaining
        if 0 < remaining <= COMPACT_AT * len(self._active):
            self._compact()

    def _follow_texts(self, tokens: Tensor) -> None:
        """Decode the rows whose text matters now; end those that have met a stop string."""
        now = zip(self._active.tolist(), tokens.tolist(), self._done.tolist())
        for place, (index, token, at_stop_token) in enumerate(now):
            if index not in self._open:
                continue
            text = self._texts[index]
            if not at_stop_token:
                self.pieces[index].append(text.push(token))
            if text.stopped:
                self._done[place] = True
                self._last[index] = self._step
            elif at_stop_token or self._step >= self._last[index]:
                self.pieces[index].append(text.finish())
            else:
                continue
            self._open.remove(index)

    def _compact(self) -> None:
        """Keep the rows that go on."""
        keep = (~self._done).nonzero()[:, 0]
        self._cache = self._cache.select(keep)
        self._active, self._done = self._active[keep], self._done[keep]
        self._limits, self._stop_kind = self._limits[keep], self._stop_kind[keep]
        if self._uniforms is not None:
            self._uniforms = self._uniforms[:, keep]
        if isinstance(self._temperature, Tensor):
            self._temperature = self._temperature[keep]
        if isinstance(self._top_k, Tensor):
            self._top_k = self._top_k[keep]
        if isinstance(self._top_p, Tensor):
            self._top_p = self._top_p[keep]
