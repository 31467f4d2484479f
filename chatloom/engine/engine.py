"""The engine: prompts in, completions out. Rollouts, evaluation, prompting, chat and serving all generate through it.

All requests that are under way share each step (`scheduler`), and equal beginnings are computed once (`blocks`). What
a request returns depends on its prompt, parameters and seed, not on what is decoded beside it, nor on what was
remembered (up to the rounding of matrix products of another size, about 1e-6 in a log-probability).

Weights are read at each step. When they have changed (`weights`), nothing computed before is used for a new request.
The model is put into evaluation mode while a token is computed and left in the mode it had.

`generate` computes in the caller's thread. `submit` does too, as its stream is read, unless `start` has given the
work to a thread of its own; then any number of threads may submit, read and cancel.
"""

import atexit
import contextlib
import itertools
import threading
from collections import deque
from collections.abc import Callable, Generator, Hashable, Iterator, Sequence
from pathlib import Path
from typing import Literal

import torch

from chatloom import runtime
from chatloom.engine import beams, settle
from chatloom.engine.blocks import Blocks
from chatloom.engine.cache_config import CacheConfig
from chatloom.engine.capacity import blocks_of_a_row, bytes_of_a_token, num_blocks, out_of_memory
from chatloom.engine.grammar import Grammar
from chatloom.engine.lowered import Lowered, saves
from chatloom.engine.multi_lora import Adapted, Adapters
from chatloom.engine.request import GREEDY, Completion, Load, Overloaded, Progress, SamplingParams
from chatloom.engine.runner import NotFinite, Row, Runner
from chatloom.engine.scheduler import Plan, Scheduler
from chatloom.engine.speculative import Drafter, DraftModel, propose
from chatloom.engine.stream import Stream
from chatloom.engine.structured import Grammars, Matcher
from chatloom.engine.weights import modules_of, version
from chatloom.models import Decoder
from chatloom.tokenizers.bpe import Tokenizer

STEP_TOKENS = 2048  # computed in a step: longer prompts are read in pieces
ENDLESS = 2**31 - 1
BLOCK_SIZE = 32  # smaller blocks waste less of the last one, larger ones make longer products


class Engine:
    """Generates with a model, which may go on training between the calls."""

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        *,
        max_batch: int = 128,
        autocast: str = "fp32",
        step_tokens: int | None = None,
        cache_tokens: int | None = None,
        max_waiting: int | None = None,
        drafter: Drafter | None = None,
        kv_dtype: Literal["int8"] | None = None,
        window: int | None = None,
        sinks: int = 4,
    ) -> None:
        """Wrap a model and the tokenizer that decodes for it.

        Args:
            model: any family.
            tokenizer: used to decode only.
            max_batch: the most rows decoded at once; memory grows with it.
            autocast: "fp32" computes in the model's own type, "bf16" runs its matrix products in bfloat16, with copies
                of the matrices in that type, LoRA merged into them (`lowered`); "int8" and "int4" round those copies
                (`quantised`) and compute the rest in bfloat16.
            step_tokens: the most tokens computed in a step, so that a long prompt does not hold up the others; None
                is 2048 and no less than `max_batch`.
            cache_tokens: the most tokens whose keys and values are kept; None is `max_batch` full contexts, and no more
                than a quarter of the memory. Rows that find no room wait.
            max_waiting: the most requests that wait; `submit` and `stream` refuse those beyond (`Overloaded`), where
                `generate` computes whatever its caller brings. None is no limit.
            drafter: guesses tokens while few rows are under way (`speculative`); the answers stay the same.
            kv_dtype: "int8" keeps keys and values in eight bits, half the bytes of bf16; None in the type computed in.
            window: a token sees so many before it, itself among them, and the first `sinks` of its text: it may go on
                for ever, and what is kept of it stays the same (`nn/sinks.py`). None: it sees all, within the context.
            sinks: see `window`.
        """
        if max_batch < 1:
            raise ValueError(f"max_batch is {max_batch}; it must be at least 1")
        if cache_tokens is not None and cache_tokens < 2 * BLOCK_SIZE:
            raise ValueError(f"cache_tokens is {cache_tokens}; it must be at least {2 * BLOCK_SIZE}")
        if max_waiting is not None and max_waiting < 0:
            raise ValueError(f"max_waiting is {max_waiting}; it must be at least 0, or None for no limit")
        runtime.pick_dtype(autocast, quantised=True)
        if isinstance(drafter, DraftModel):
            drafter.check(model.config.vocab_size)
        self.model = model
        self.tokenizer = tokenizer
        self.max_batch = max_batch
        self.autocast = autocast
        self.max_waiting = max_waiting
        self.drafter = drafter
        self._kept = CacheConfig(kv_dtype, window, sinks)
        self._kept.check(model)
        self._less: tuple[int, int] | None = None  # rows and tokens of a step while memory is short
        self._room: int | None = None  # blocks beyond which the cache could not grow
        self._step_tokens = max(STEP_TOKENS, max_batch) if step_tokens is None else step_tokens
        self._cache_tokens = None if cache_tokens is None else -(-cache_tokens // BLOCK_SIZE) * BLOCK_SIZE
        self._scheduler = Scheduler(Blocks(2, BLOCK_SIZE), max_rows=max_batch, step_tokens=self._step_tokens)
        self._runner: Runner | None = None
        self._lowered: Lowered | None = None
        self._adapters = Adapters(model)
        self._version: Hashable = None
        self._grammars: Grammars | None = None
        self._orders = itertools.count()
        self._arrived: deque[Row] = deque()
        self._cancelled: deque[Row] = deque()
        self._stepping = threading.RLock()  # guards all of the above but the two queues
        self._news = threading.Condition()  # told after every step
        self._work = threading.Event()  # told when there may be something to do
        self._worker: threading.Thread | None = None
        self._listeners: tuple[Callable[[], None], ...] = ()

    @property
    def context_length(self) -> int:
        """The most tokens of a prompt and its answer together; of a window there is no end."""
        return self.model.config.context_length if self._kept.kept is None else ENDLESS

    @property
    def adapters(self) -> tuple[str, ...]:
        """The names that `SamplingParams.adapter` may have."""
        return self._adapters.names

    def add_adapter(self, name: str, adapter: str | Path | Decoder, *, base: str | Path | None = None) -> None:
        """Let requests name a LoRA adapter (rsLoRA, DoRA), which is added to the rows of theirs alone.

        Args:
            name: what they call it.
            adapter: its folder, Chatloom's or `peft`'s; or a model with it attached, over the same weights
                (`adapters.shared`), which may go on training.
            base: the folder, file or name that the engine's model was opened from, to make sure that the adapter was
                trained on it; None goes by names and shapes.

        Raises:
            ValueError: no adapter there, one of another base or kind, the name taken, or the model has its own adapter.
        """
        self._adapters.add(name, adapter, base=base)

    def remove_adapter(self, name: str) -> None:
        """Let no new request name an adapter; those under way end with it. ValueError if there is none."""
        self._adapters.remove(name)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParams | Sequence[SamplingParams] = GREEDY,
        *,
        progress: Progress | None = None,
    ) -> list[Completion]:
        """The completions of each prompt, `SamplingParams.n` of them, in order.

        Args:
            prompts: token lists. Equal beginnings are computed once.
            sampling: one for all, or one for each. A seed given once for a list is the seed of request 0; request i
                uses `derive_seed(seed, i)`. Requests that sample without a seed draw one from torch's generator.
            progress: called with (finished requests, all requests) as they finish.

        Raises:
            ValueError: a prompt that is empty, does not fit the context or the cache, or has tokens outside the
                vocabulary; as many parameters as prompts were expected; a grammar that is wrong
                or became too complex; a model whose logits are not finite.
        """
        each, seeds = settle.each_its_own(sampling, len(prompts))
        with self._stepping:
            rows = self._rows(prompts, each, seeds, space=self._own_space())
            plain = [row for row in rows if row.sampling.num_beams == 1]
            self._add(plain)
        roots = [row for row in rows if row.sampling.num_beams > 1]
        self._to_the_end(plain, progress, of=len(rows))
        searches = {id(one.root): one for one in beams.search(roots, self._complete)}
        if roots and progress is not None:
            progress(len(rows), len(rows))
        decode = self.tokenizer.decode
        made = [
            searches[id(row)].completions(decode) if id(row) in searches else [row.completion(decode)] for row in rows
        ]
        return settle.chosen(made, each)

    def _complete(self, rows: list[Row]) -> None:
        self._add(rows)
        self._to_the_end(rows, None, of=len(rows))

    def _to_the_end(self, rows: list[Row], progress: Progress | None, *, of: int) -> None:
        """Compute rows that were added; they are given up where that fails. `progress` hears of them among `of`."""
        try:
            if self._worker is None:
                with self._stepping, self._inference():
                    self._take_in()
                    self._refresh()  # once: nobody else has a say before the end
                    self._finish(rows, progress, lambda done: self._compute(), of)
            else:
                self._finish(rows, progress, self._until, of)
        finally:
            for row in rows:
                self._cancel(row)

    def stream(self, prompt: Sequence[int], sampling: SamplingParams = GREEDY) -> Generator[str, None, Completion]:
        """The text of one completion in pieces, as they become certain; the generator returns the Completion.

        A piece never ends within a character or a stop string; put together they are `Completion.text`. Errors as
        for `generate`, raised at the call. Closing the generator ends the work.
        """
        return self._stream(self._one(prompt, sampling))

    def submit(self, prompt: Sequence[int], sampling: SamplingParams = GREEDY) -> Stream:
        """Let a request join those under way; the stream gives its text, its result, and cancels it.

        Errors as for `generate`, raised at the call; `SamplingParams.n` must be 1. Raises Overloaded where as many
        wait as may, or where memory has run out and somebody waits for it.
        """
        row = self._one(prompt, sampling)
        self._add([row])
        return Stream(self, row)

    def start(self) -> None:
        """Compute in a thread of its own from now on, until `stop`."""
        if self._worker is None:
            self._worker = threading.Thread(target=self._serve, name="engine", daemon=True)
            self._worker.start()
            atexit.register(self.stop)  # a thread that is cut off within a product takes the process down

    def stop(self) -> None:
        """End the thread. Requests under way stay; whoever reads them computes."""
        worker, self._worker = self._worker, None
        if worker is not None:
            atexit.unregister(self.stop)
            self._work.set()
            worker.join()
            self._tell()

    def listen(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Call back after every step, from the thread that computed it; returns what ends that.

        It must be quick and raise nothing: the next step waits for it.
        """

        def end() -> None:
            self._listeners = tuple(each for each in self._listeners if each is not callback)

        self._listeners = (*self._listeners, callback)
        return end

    @property
    def load(self) -> Load:
        """How much is under way."""
        blocks = self._scheduler.blocks
        waiting = len(self._arrived) + self._scheduler.num_waiting
        return Load(self._scheduler.num_running, waiting, blocks.num_blocks - blocks.num_available, blocks.num_blocks)

    def reset(self) -> None:
        """Forget everything computed: needed only after a change of weights that torch cannot see (`weights`)."""
        with self._stepping:
            self._version = self._runner = self._room = self._lowered = None

    # --- requests -------------------------------------------------------------------------------------------

    def _rows(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sequence[SamplingParams],
        seeds: Sequence[int | None],
        *,
        follow: bool = False,
        space: bytes = b"",
    ) -> list[Row]:
        return settle.settle(
            self.model,
            prompts,
            sampling,
            seeds,
            context=self.context_length,
            cache_tokens=None if self._kept.kept else self._cache_tokens,
            orders=self._orders,
            decode=self.tokenizer.decode,
            follow=follow,
            space=space,
            matcher=self._matcher,
            adapter=self._adapters.find,
        )

    def _matcher(self, grammar: Grammar, stop_tokens: Sequence[int]) -> Matcher:
        if self._grammars is None:
            self._grammars = Grammars(self.tokenizer, self.model.config.vocab_size)
        return self._grammars.matcher(grammar, stop_tokens)

    def _own_space(self) -> bytes:
        """Where the requests of a call share with each other and with nothing before: its results are exact then.

        A sum over remembered keys and one over keys computed together differ in the last bit.
        """
        if self._arrived or self._scheduler.num_waiting or self._scheduler.num_running:
            return f"call {next(self._orders)}".encode()
        self._scheduler.forget()
        return b""

    def _one(self, prompt: Sequence[int], sampling: SamplingParams) -> Row:
        if sampling.num_beams > 1:
            raise ValueError("a stream shows what is certain, and beams are not before their end; use `generate`")
        if sampling.num_samples > 1:
            raise ValueError(
                f"a stream has one completion, and {sampling.num_samples} are asked for; send as many requests"
            )
        self._refuse_beyond_limits()
        return self._rows([prompt], [sampling], [sampling.seed], follow=True)[0]

    def _refuse_beyond_limits(self) -> None:
        waiting = len(self._arrived) + self._scheduler.num_waiting
        free = max(0, self._scheduler.max_rows - self._scheduler.num_running)
        if self._less is not None and waiting >= free:
            raise Overloaded(f"memory has run out and {waiting} requests wait for it; send this one again later")
        if self.max_waiting is not None and waiting >= self.max_waiting + free:
            raise Overloaded(
                f"{waiting} requests wait and the engine lets {self.max_waiting} wait beyond the {free} that can start "
                "(max_waiting); send this one again later"
            )

    def _stream(self, row: Row) -> Generator[str, None, Completion]:
        self._add([row])
        stream = Stream(self, row)
        try:
            yield from stream
        finally:
            stream.cancel()
        return stream.result()

    def _add(self, rows: Sequence[Row]) -> None:
        self._arrived.extend(rows)
        self._work.set()

    def _cancel(self, row: Row) -> None:
        if row.ended:
            return
        self._cancelled.append(row)
        self._work.set()
        if self._worker is None:
            with self._stepping:
                self._take_in()

    def _take_in(self) -> None:
        """What other threads have asked for since the last step."""
        while self._arrived:
            self._scheduler.add(self._arrived.popleft())
        while self._cancelled:
            row = self._cancelled.popleft()
            if not row.ended:
                self._scheduler.remove(row)
                row.reason = "cancelled"

    def _finish(
        self,
        rows: list[Row],
        progress: Progress | None,
        go_on: Callable[[Callable[[], bool]], object],
        of: int,
    ) -> None:
        """Go on until all have ended, and tell how many have, among `of`."""
        left, reported = rows, 0
        while left:
            go_on(left[0].has_ended)
            left = [row for row in left if not row.ended]
            if progress is not None and len(rows) - len(left) > reported:
                reported = len(rows) - len(left)
                progress(reported, of)

    def _until(self, done: Callable[[], bool]) -> None:
        """Wait until it is done, or compute a step towards it if nobody else does."""
        if self._worker is not None:
            with self._news:
                self._news.wait_for(lambda: done() or self._worker is None)
            return
        with self._stepping:
            moved = done() or self._step()
            assert moved or done(), "a request is under way and nothing is left to compute"

    # --- steps ----------------------------------------------------------------------------------------------

    def _step(self) -> bool:
        """Compute one step for all that are under way; False if there was nothing to do."""
        with self._stepping, self._inference():
            self._take_in()  # before the model is looked at, which they were settled for
            self._refresh()
            return self._compute()

    def _compute(self) -> bool:
        """As `_step`, by who holds the engine and has looked at the weights."""
        self._take_in()
        if self._adapters.any_came and self._runner is not None and self._runner.whole:
            self._refresh()  # an adapter came since
        runner, scheduler = self._runner, self._scheduler
        assert runner is not None
        if self.drafter is not None:
            propose(self.drafter, scheduler.running, num_waiting=scheduler.num_waiting)
        plan = scheduler.plan()
        if not plan:
            self._tell()  # something may have been cancelled
            return False
        try:
            runner.cache.make_room(scheduler.blocks.high_water, most=scheduler.blocks.num_blocks)
            rows = runner.run(plan)
        except BaseException as error:
            scheduler.restart()  # nobody knows how much of the step was done
            scheduler.forget()
            if not isinstance(error, Exception) or not out_of_memory(error):
                raise
            self._do_with_less(plan)
            return True
        scheduler.advance(plan)
        for row in rows:
            if row.ended:
                scheduler.remove(row)
        if self._less is not None and not scheduler.num_running and not scheduler.num_waiting:
            self._less, scheduler.max_rows, scheduler.step_tokens = None, self.max_batch, self._step_tokens
        if any(isinstance(row.error, NotFinite) for row in rows):
            scheduler.restart()
            scheduler.forget()
            runner.cache.clear()
        self._tell()
        return True

    def _do_with_less(self, plan: Plan) -> None:
        """After a step for which there was no memory: half of it from now on; what cannot be halved is given up.

        Who was computed begins anew or waits, and nobody new is taken until all have ended.
        """
        assert self._runner is not None
        num_rows, num_tokens = len(plan.chunks), sum(count for _, count in plan.chunks)
        self._less = max(1, num_rows // 2), max(BLOCK_SIZE, num_tokens // 2)
        if num_rows == 1 and num_tokens <= BLOCK_SIZE:
            [(row, _)] = plan.chunks
            assert isinstance(row, Row)
            self._scheduler.remove(row)
            row.error = Overloaded(
                f"memory ran out at a request of {len(row.tokens)} tokens, computed alone; shorten it or make room"
            )
            self._less = None  # the others may do better without it
        cache = self._runner.cache
        if self._scheduler.blocks.high_water > cache.num_blocks:
            self._room = cache.num_blocks
        self._replace_scheduler(cache.keys.dtype, cache.keys.device)
        self._tell()

    def _refresh(self) -> None:
        """Have a runner, with nothing remembered if the model is not what the last step saw."""
        whole = not self._adapters.any_came  # rows that name adapters are computed by torch, with a cache it reads
        now = version(self.model), self._adapters.version(), whole
        if self._runner is not None and now == self._version:
            return
        self._version = None  # until all is made
        weight = self.model.embedding.weight
        dtype = weight.dtype if self.autocast == "fp32" else runtime.pick_dtype(self.autocast, quantised=True)
        model = self._as_read()
        places = {} if self._lowered is None else self._lowered.places
        adapted = Adapted(model, self.model, places, dtype=dtype)
        runner = Runner(model, dtype=dtype, block_size=BLOCK_SIZE, adapted=adapted, kept=self._kept, whole=whole)
        if self._runner is not None and runner.continues(self._runner):
            self._scheduler.forget()
        else:
            self._replace_scheduler(dtype, weight.device)
        self._runner, self._version = runner, now

    def _as_read(self) -> Decoder:
        """The model, or its twin with matrices of the type that they are multiplied in."""
        if self.autocast == "fp32" or not saves(self.model, self.autocast):
            self._lowered = None
            return self.model
        if self._lowered is None or not self._lowered.fits(self.model):
            self._lowered = Lowered(self.model, self.autocast)
        self._lowered.refresh()
        model: Decoder = self._lowered.model
        return model

    def _replace_scheduler(self, dtype: torch.dtype, device: torch.device) -> None:
        """Begin with an empty cache of the right size; what was under way is computed anew."""
        num_virtual = settle.num_virtual_tokens(self.model)
        kept = self._kept.kept
        a_row = blocks_of_a_row(self.model.config, BLOCK_SIZE, num_virtual, kept)
        most = num_blocks(
            a_row,
            rows=self.max_batch,
            block_size=BLOCK_SIZE,
            token_bytes=bytes_of_a_token(self.model.config, dtype, self._kept.kv_dtype),
            device=device,
        )
        if self._cache_tokens is not None:
            most = max(self._cache_tokens // BLOCK_SIZE, 0 if kept is None else a_row)
        if self._room is not None:
            most = min(most, max(self._room, a_row))
        max_rows, step_tokens = self._less or (self.max_batch, self._step_tokens)
        scheduler = Scheduler(Blocks(most, BLOCK_SIZE), max_rows=max_rows, step_tokens=step_tokens, kept=kept)
        for row in self._scheduler.emptied():
            assert isinstance(row, Row)
            if row.num_virtual == num_virtual:
                scheduler.add(row)
            else:
                row.error = ValueError("the model's adapter was changed while a request was under way; send it again")
        self._scheduler = scheduler

    @contextlib.contextmanager
    def _inference(self) -> Iterator[None]:
        """No gradients, no dropout, the engine's number type; every module's mode is put back."""
        training = [module for module in modules_of(self.model) if module.training]
        if training:
            self.model.eval()
        try:
            with torch.inference_mode(), runtime.autocast(self.model.embedding.weight.device, self.autocast):
                yield
        finally:
            for module in training:
                module.training = True

    def _tell(self) -> None:
        with self._news:
            self._news.notify_all()
        for listener in self._listeners:
            listener()

    def _serve(self) -> None:
        """What the worker does: steps while there is work, and an error for everybody if one fails."""
        while self._worker is threading.current_thread():
            self._work.clear()
            try:
                busy = self._step()
            except Exception as error:
                busy = False
                failed = RuntimeError(f"the engine's step failed: {type(error).__name__}: {error}")
                failed.__cause__ = error
                with self._stepping:
                    for row in self._scheduler.emptied():
                        assert isinstance(row, Row)
                        row.error = failed  # nobody's request is at fault: not a ValueError
                self._tell()
            if not busy:
                self._work.wait()
