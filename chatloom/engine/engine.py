"""The engine: prompts in, completions out. Rollouts, evaluation, prompting and chat all generate through it.

`generate` sorts the prompts by length, decodes them in batches of at most `max_batch` rows and gives the results in
the order of the prompts. What a request returns depends on its prompt, parameters and seed, not on what is decoded
beside it (up to the rounding of matrix products of another size, about 1e-6 in a log-probability).

The model is put into evaluation mode while a token is computed and left in the mode it had.
"""

import contextlib
from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace

import torch

from chatloom import runtime
from chatloom.engine.request import GREEDY, MAX_SEED, Completion, Progress, SamplingParams, derive_seed
from chatloom.engine.runner import Batch, Row
from chatloom.models import Decoder
from chatloom.tokenizers.bpe import Tokenizer


class Engine:
    """Generates with a model, which may go on training between the calls: weights are read at each call."""

    def __init__(self, model: Decoder, tokenizer: Tokenizer, *, max_batch: int = 128, autocast: str = "fp32") -> None:
        """Wrap a model and the tokenizer that decodes for it.

        Args:
            model: any family.
            tokenizer: used to decode only.
            max_batch: the most rows decoded at once; memory grows with it.
            autocast: "fp32" computes in the model's own type, "bf16" runs its matrix products in bfloat16.
        """
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
        runtime.pick_dtype(autocast)
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        self.autocast = autocast

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its answer together."""
        return self.model.config.context_length

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        *,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """One completion a prompt, in order.

        Args:
            prompts: token lists. Equal ones share their prefill, so K samples of a prompt are K equal prompts.
            sampling: one for all, or one for each. A seed given once for a list is the seed of request 0; request i
                uses `derive_seed(seed, i)`. Requests that sample without a seed draw one from torch's generator.
            progress: called with (finished requests, all requests) as they finish.

        Raises:
            ValueError: a prompt that is empty, does not fit the context, or has tokens outside the vocabulary; as
                many parameters as prompts were expected; a model whose logits are not finite.
        """
        rows = self._settle(prompts, self._each(sampling, len(prompts)))
        order = sorted(range(len(rows)), key=lambda index: (len(rows[index].prompt), rows[index].prompt))
        completions: dict[int, Completion] = {}
        with self._inference():
            for start in range(0, len(order), self.max_batch):
                chosen = order[start : start + self.max_batch]
                batch = self._batch([rows[index] for index in chosen])
                reported = 0
                while not batch.finished:
                    batch.step()
                    if progress is not None and batch.num_finished > reported:
                        reported = batch.num_finished
                        progress(start + reported, len(rows))
                completions.update(zip(chosen, batch.completions()))
        return [completions[index] for index in range(len(rows))]

    def stream(self, prompt: Sequence[int], sampling: SamplingParams = GREEDY) -> Generator[str, None, Completion]:
        """The text of one completion in pieces, as they become certain; the generator returns the Completion.

        A piece never ends within a character or a stop string; put together they are `Completion.text`. Errors as
        for `generate`, raised at the call. Closing the generator ends the work.
        """
        return self._stream(self._settle([prompt], [sampling])[0])

    def _stream(self, row: Row) -> Generator[str, None, Completion]:
        # Inference mode is per thread: it is entered for each step, never held while the caller runs.
        with self._inference():
            batch = self._batch([row], follow=True)
        num_sent = 0
        while not batch.finished:
            with self._inference():
                batch.step()
            piece, num_sent = "".join(batch.pieces[0][num_sent:]), len(batch.pieces[0])
            if piece:
                yield piece
        return batch.completions()[0]

    def _batch(self, rows: list[Row], *, follow: bool = False) -> Batch:
        dtype = self.model.embedding.weight.dtype if self.autocast == "fp32" else runtime.pick_dtype(self.autocast)
        return Batch(self.model, rows, decode=self.tokenizer.decode, cache_dtype=dtype, follow=follow)

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, no dropout, the engine's number type; every module's mode is put back."""
        training = [module for module in self.model.modules() if module.training]
        if training:
            self.model.eval()
        try:
            with torch.inference_mode(), runtime.autocast(self.model.embedding.weight.device, self.autocast):
                yield
        finally:
            for module in training:
                module.training = True

    # --- requests -------------------------------------------------------------------------------------------

    def _each(self, sampling: SamplingParams | Sequence[SamplingParams], count: int) -> list[SamplingParams]:
        """Parameters for each of `count` prompts."""
        if not isinstance(sampling, SamplingParams):
            if len(sampling) != count:
                raise ValueError(f"{len(sampling)} SamplingParams for {count} prompts; give one, or one for each")
            return list(sampling)
        if sampling.seed is None:
            return [sampling] * count
        return [replace(sampling, seed=derive_seed(sampling.seed, index)) for index in range(count)]

    def _settle(self, prompts: Sequence[Sequence[int]], sampling: Sequence[SamplingParams]) -> list[Row]:
        """Check the requests and settle their seeds and limits."""
        seeds = [params.seed if params.temperature > 0 else None for params in sampling]
        unseeded = [i for i, params in enumerate(sampling) if params.temperature > 0 and params.seed is None]
        if unseeded:
            for index, seed in zip(unseeded, torch.randint(MAX_SEED, (len(unseeded),)).tolist()):
                seeds[index] = seed
        rows = []
        for index, (prompt, params) in enumerate(zip(prompts, sampling)):
            self._check(index, prompt, params)
            limit = min(params.max_tokens, self.context_length - len(prompt))
            rows.append(Row(list(prompt), params, seeds[index], limit))
        return rows

    def _check(self, index: int, prompt: Sequence[int], sampling: SamplingParams) -> None:
        vocab_size = self.model.config.vocab_size
        if len(prompt) == 0:
            raise ValueError(f"prompt {index} is empty; give at least one token, such as the begin-of-text token")
        if len(prompt) >= self.context_length:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens and the model's context is {self.context_length}, which "
                f"leaves no room for an answer; shorten it to at most {self.context_length - 1}"
            )
        for name, tokens in (("prompt", prompt), ("stop_tokens", sampling.stop_tokens)):
            for token in (min(tokens, default=0), max(tokens, default=0)):
                if not 0 <= token < vocab_size:
                    raise ValueError(
                        f"request {index}: token {token} of {name} is not in the model's vocabulary, "
                        f"which has the tokens 0 to {vocab_size - 1}"
                    )
