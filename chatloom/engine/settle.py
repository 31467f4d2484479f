"""Requests as rows: everything checked, seeds and limits settled, before anything is computed."""

from collections.abc import Callable, Iterator, Sequence

import torch

from chatloom.engine.grammar import Grammar
from chatloom.engine.multi_lora import Adapter
from chatloom.engine.request import MAX_SEED, Completion, SamplingParams, derive_seed, sample_seed
from chatloom.engine.runner import Row
from chatloom.engine.structured import Matcher
from chatloom.engine.text import TextStream
from chatloom.models import Decoder

_ALIKE = 8  # tokens by which prompts that may have more in common are found


def each_its_own(
    sampling: SamplingParams | Sequence[SamplingParams], count: int
) -> tuple[list[SamplingParams], list[int | None]]:
    """Parameters and seed for each of `count` prompts."""
    if not isinstance(sampling, SamplingParams):
        if len(sampling) != count:
            raise ValueError(f"{len(sampling)} SamplingParams for {count} prompts; give one, or one for each")
        return list(sampling), [params.seed for params in sampling]
    seed = sampling.seed
    return [sampling] * count, [None if seed is None else derive_seed(seed, index) for index in range(count)]


def settle(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    sampling: Sequence[SamplingParams],
    seeds: Sequence[int | None],
    *,
    context: int,
    cache_tokens: int | None,
    orders: Iterator[int],
    decode: Callable[[list[int]], str],
    follow: bool = False,
    space: bytes = b"",
    matcher: Callable[[Grammar, Sequence[int]], Matcher],
    adapter: Callable[[str], Adapter],
) -> list[Row]:
    """The rows of some requests, `num_samples` of each. ValueError for what cannot be computed.

    `follow` decodes the text as it grows, which is otherwise done only to find stop strings, and lets what follows
    the answer find it computed. `space` as in `Sequence`; `matcher` begins a grammar that ends with some tokens;
    `adapter` finds one by its name, `context` is the most tokens of prompt and answer.
    """
    num_virtual = num_virtual_tokens(model)
    for index, (prompt, params) in enumerate(zip(prompts, sampling)):
        _check(model, index, prompt, params, context, cache_tokens)
    named = {params.adapter: adapter(params.adapter) for params in sampling if params.adapter is not None}
    wanted = [
        (prompt, params, None if seed is None else sample_seed(seed, sample))
        for prompt, params, seed in zip(prompts, sampling, seeds)
        for sample in range(params.num_samples)
    ]
    unseeded = sum(params.temperature > 0 and seed is None for _, params, seed in wanted)
    fresh = iter(torch.randint(MAX_SEED, (unseeded,)).tolist() if unseeded else ())
    room = context
    if cache_tokens is not None:
        room = min(room, cache_tokens - num_virtual)
    rows = []
    for prompt, params, seed in wanted:
        if params.temperature == 0:
            seed = None
        elif seed is None:
            seed = next(fresh)
        own = None if params.adapter is None else named[params.adapter]
        row = Row(
            order=next(orders),
            tokens=[*range(-num_virtual, 0), *prompt],
            num_prompt=num_virtual + len(prompt),
            num_virtual=num_virtual,
            remember_answer=follow,
            space=space if own is None else own.space + space,
            adapter=own,
            sampling=params,
            seed=seed,
            num_likeliest=params.top_logprobs,
            limit=min(params.max_tokens, room - len(prompt)),
            text=TextStream(decode, stop=params.stop) if follow or params.stop else None,
            matcher=None if params.grammar is None else matcher(params.grammar, params.stop_tokens),
        )
        if params.prompt_logprobs is not None:
            row.score_prompt()
        row.draw()
        rows.append(row)
    _mark(rows)
    return rows


def _mark(rows: Sequence[Row]) -> None:
    """Say of rows that begin alike how far, so that it is computed once."""
    alike: dict[tuple[int, ...], list[Row]] = {}
    for row in rows:
        alike.setdefault(tuple(row.tokens[: row.num_virtual + _ALIKE]), []).append(row)
    for group in alike.values():
        if len(group) > 1:
            first, last = (each(row.tokens for row in group) for each in (min, max))  # all others lie between
            mark = next((place for place, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
            for row in group:
                row.mark = mark


def chosen(made: Sequence[Sequence[Completion]], sampling: Sequence[SamplingParams]) -> list[Completion]:
    """Of what each request's rows made the `n` that are given: all, or the likeliest, the first of equals."""
    given: list[Completion] = []
    at = 0
    for params in sampling:
        own = [completion for row in made[at : at + params.num_samples] for completion in row]
        at += params.num_samples
        if params.best_of is not None:
            own = sorted(own, key=lambda one: -one.mean_logprob)[: params.n]
        given += own
    return given


def num_virtual_tokens(model: Decoder) -> int:
    """How many tokens prompt or prefix tuning puts before every text."""
    return 0 if model.prefix is None else int(model.prefix.num_tokens)  # type: ignore[arg-type]


def _check(
    model: Decoder,
    index: int,
    prompt: Sequence[int],
    sampling: SamplingParams,
    context: int,
    cache_tokens: int | None,
) -> None:
    vocab_size = model.config.vocab_size
    if len(prompt) == 0:
        raise ValueError(f"prompt {index} is empty; give at least one token, such as the begin-of-text token")
    if len(prompt) >= context:
        raise ValueError(
            f"prompt {index} has {len(prompt)} tokens and the model's context is {context}, which "
            f"leaves no room for an answer; shorten it to at most {context - 1}"
        )
    most = context if cache_tokens is None else cache_tokens - num_virtual_tokens(model)
    if len(prompt) >= most:
        raise ValueError(
            f"prompt {index} has {len(prompt)} tokens and the engine keeps {cache_tokens} (cache_tokens), which leaves "
            f"no room for an answer; shorten it to at most {most - 1}, or give the engine more"
        )
    biased = tuple(token for token, _ in sampling.logit_bias)  # type: ignore[misc]
    for name, tokens in (("prompt", prompt), ("stop_tokens", sampling.stop_tokens), ("logit_bias", biased)):
        for token in (min(tokens, default=0), max(tokens, default=0)):
            if not 0 <= token < vocab_size:
                raise ValueError(
                    f"request {index}: token {token} of {name} is not in the model's vocabulary, "
                    f"which has the tokens 0 to {vocab_size - 1}"
                )
