"""Grammars at work: which tokens may come next, so that an answer is a text of its grammar.

`llguidance` compiles a grammar and keeps, for every request, a parser over the bytes written so far; of each token it
says whether its bytes can go on. It is Earley's parser over derivatives of regular expressions, computed as they are
needed, and counts its steps: a hostile grammar is an error and not a wait.

* A stop token may come exactly where the grammar may end, whatever else the token is. Where nothing else could come,
  the answer ends by itself.
* No other special token may come.
* Masks are computed in a thread while the model runs. They depend on the request's own tokens alone.
"""

import json
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from chatloom.chat.calls import CallForm
from chatloom.engine.grammar import IN_LISTS, IN_MAPPINGS, MAX_CALLS, SINGLE, Grammar, GrammarError
from chatloom.tokenizers.bpe import Tokenizer

if TYPE_CHECKING:
    from llguidance import LLMatcher

_NUM_KEPT = 64  # compiled grammars
# Eight tokens' biases by the byte that has a bit for each: the first is the lowest.
_BIASES = np.where(np.arange(256)[:, None] >> np.arange(8) & 1, 0, -np.inf).astype(np.float32)
_MOST_TRIES = 100  # to find the part of a schema that an error is about
# Small models like to write blanks for ever, so there may be one, or a line end and an indentation.
_LAYOUT = {"whitespace_pattern": r" ?|\n {0,16}"}
# As chat templates write calls, so that a call in a conversation that goes on has the tokens that it had when it came.
_CALL_LAYOUT = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


class Matcher:
    """One request's place in its grammar."""

    def __init__(
        self, parser: "LLMatcher", *, num_tokens: int, ends: Sequence[int], never: Sequence[int], pool: Executor
    ) -> None:
        """`ends` are the tokens that end it, `never` those that nobody may write; `num_tokens` is the vocabulary."""
        self.pool = pool  # where masks are computed
        self._parser = parser
        self._num_tokens = num_tokens
        self._ends = list(ends)
        self._never = list(never)

    def bias(self) -> Tensor:
        """What makes a choice of what may come next, added to the logits: (V,) fp32, 0 or -inf.

        ValueError if nothing may come, or the grammar has become too complex.
        """
        bits = np.frombuffer(self._parser.compute_bitmask(), dtype=np.uint8)
        found = _BIASES.take(bits, axis=0).ravel()[: self._num_tokens]
        found[self._never] = -np.inf
        found[self._ends] = 0 if self._parser.is_accepting() else -np.inf
        problem = self._parser.get_error()
        if problem and "NoExtension" not in problem:
            raise ValueError(f"the grammar became too complex: {_first_line(problem)}")
        if found.max() < 0:
            raise ValueError("the grammar cannot go on: no token of the vocabulary may come next; use a wider one")
        return torch.from_numpy(found)

    def biases(self, guesses: Sequence[int]) -> list[Tensor | ValueError]:
        """As `bias`, for what comes next and for what comes behind each of some guesses, or what went wrong.

        A guess that may not come, and what is behind it, is never asked about: an error stands in for its bias.
        """
        found: list[Tensor | ValueError] = []
        fork = self
        for guess in (None, *guesses):
            if guess is not None:
                fork = self.fork() if fork is self else fork
                if not fork._parser.consume_token(guess) or fork._parser.is_stopped():
                    break
            try:
                found.append(fork.bias())
            except ValueError as error:
                found.append(error)
                break
        return found + [ValueError("behind a wrong guess")] * (1 + len(guesses) - len(found))

    def forced(self, most: int) -> list[int]:
        """What must come next, whatever the model would rather say: at most so many tokens, often none."""
        tokens: list[int] = self._parser.compute_ff_tokens()
        return tokens[:most]

    def fork(self) -> "Matcher":
        """Another at the same place, which goes its own way."""
        parser = self._parser.deep_copy()
        return Matcher(parser, num_tokens=self._num_tokens, ends=self._ends, never=self._never, pool=self.pool)

    def take(self, token: int) -> bool:
        """Go on by a token that was allowed and ends nothing; returns whether nothing may follow it."""
        taken = self._parser.consume_token(token)
        return taken and self._parser.is_stopped()


def begin(
    matchers: Sequence[Matcher | None], guesses: Sequence[int | None]
) -> Callable[[], dict[int, Tensor | ValueError]]:
    """Start to compute what may come next; the result waits for it: a bias (V,) by place, or what went wrong.

    A matcher that is there once more is at the place behind its guess, and those before.
    """
    present: dict[int, tuple[Matcher, list[int]]] = {}
    behind = list[int]()
    for place, (matcher, guess) in enumerate(zip(matchers, guesses)):
        if matcher is None:
            continue
        if guess is None:
            present[place] = matcher, (behind := [])
        else:
            behind.append(guess)
    if not present:
        return dict
    pool = next(iter(present.values()))[0].pool

    def compute() -> dict[int, Tensor | ValueError]:
        found: dict[int, Tensor | ValueError] = {}
        for place, (matcher, own) in present.items():
            found.update(enumerate(matcher.biases(own), place))
        return found

    return pool.submit(compute).result


def guidance() -> Any:
    """The package that parses. ValueError, which says how to get it, where it is missing."""
    try:
        import llguidance
    except ImportError:
        raise ValueError(
            'a grammar for the answer takes one more package: pip install "chatloom[structured]"; or ask without it'
        ) from None
    return llguidance


class Grammars:
    """The grammars of one tokenizer, compiled once."""

    def __init__(self, tokenizer: Tokenizer, vocab_size: int) -> None:
        """`vocab_size` is the model's: tokens that only it has are never written. ValueError without `llguidance`."""
        self._guidance = guidance()
        special = tokenizer.special
        self._never = [number for number in special.values() if number < vocab_size]
        self._vocab_size = vocab_size
        self._tokenizer = self._guidance.LLTokenizer(
            tokenizer.serialized,
            n_vocab=max(vocab_size, tokenizer.vocab_size),
            eos_token=None if tokenizer.eos_token is None else tokenizer.eos,
        )
        self._never += [token for token in self._tokenizer.eos_tokens if token < vocab_size]
        self._compiled: OrderedDict[Grammar, LLMatcher] = OrderedDict()
        self._one_at_a_time = threading.Lock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="grammar")

    def matcher(self, grammar: Grammar, stop_tokens: Sequence[int]) -> Matcher:
        """The beginning of a grammar. ValueError, which names the place, for one that is wrong or that nothing fits."""
        with self._one_at_a_time:
            if grammar not in self._compiled:
                self._compiled[grammar] = self._compile(grammar)
            self._compiled.move_to_end(grammar)
            if len(self._compiled) > _NUM_KEPT:
                self._compiled.popitem(last=False)
            parser = self._compiled[grammar].deep_copy()
        return self._begun(parser, stop_tokens)

    def _compile(self, grammar: Grammar) -> "LLMatcher":
        written = self._written(grammar)
        parser = self._parser(written)
        if parser.is_error():
            raise self._explained(grammar, parser.get_error())
        try:
            self._begun(parser, ()).bias()  # something must fit
        except ValueError as error:
            raise GrammarError(str(error)) from error
        return parser

    def _begun(self, parser: "LLMatcher", ends: Sequence[int]) -> Matcher:
        return Matcher(parser, num_tokens=self._vocab_size, ends=ends, never=self._never, pool=self._pool)

    def _parser(self, written: str) -> "LLMatcher":
        limits = self._guidance.LLParserLimits(verbose_errors=False)
        parser: LLMatcher = self._guidance.LLMatcher(self._tokenizer, written, log_level=0, limits=limits)
        return parser

    def _written(self, grammar: Grammar) -> str:
        """The grammar as the parser reads it."""
        matcher, source = self._guidance.LLMatcher, grammar.source
        if grammar.kind == "regex":
            written: str = matcher.grammar_from_regex(source)
        elif grammar.kind == "choice":
            written = matcher.grammar_from_regex("|".join(map(_literal, json.loads(source))))
        elif grammar.kind == "tool_call":
            written = matcher.grammar_from_lark(_of_calls(json.loads(source)))
        else:
            written = self._of_schema(json.loads(source))
        return written

    def _of_schema(self, schema: Mapping[str, Any]) -> str:
        written: str = self._guidance.LLMatcher.grammar_from_json_schema(json.dumps({**schema, "x-guidance": _LAYOUT}))
        return written

    def _explained(self, grammar: Grammar, message: str) -> GrammarError:
        """An error in the words of who wrote the grammar."""
        if grammar.kind in ("json", "json_schema"):
            return GrammarError(self._explained_schema("the JSON schema", json.loads(grammar.source), message))
        if grammar.kind == "tool_call":
            asked = json.loads(grammar.source)
            parts: list[tuple[str | None, Any]] = [*asked["tools"].items()]
            parts += [(None, asked["otherwise"])] if isinstance(asked["otherwise"], dict) else []
            for tool, schema in parts:
                own = self._parser(self._of_schema(schema)).get_error()
                if own:
                    what = "the JSON schema" if tool is None else f"the parameters of tool {tool!r}"
                    return GrammarError(self._explained_schema(what, schema, own), tool=tool)
            return GrammarError(f"the tools cannot be used: {_first_line(message)}")
        what = "the regular expression" if grammar.kind == "regex" else "the choices"
        reason = re.search(r"error: (.*)", message)
        marked = re.search(r"^    (.*)\n    ( *)\^", message, re.MULTILINE)
        place = "" if marked is None else f" at character {len(marked[2])} ({grammar.source[len(marked[2]) :]!r:.40})"
        return GrammarError(f"{what} is wrong{place}: {reason[1] if reason else _first_line(message)}")

    def _explained_schema(self, what: str, schema: Mapping[str, Any], message: str) -> str:
        """As above, with the smallest part of the schema that has the same error by itself."""
        place, part, tries = "#", schema, 0
        message = _cause(message)
        definitions = {key: schema[key] for key in ("$defs", "definitions") if key in schema}
        found = True
        while found:
            found = False
            for step, inner in _parts(part):
                tries += 1
                if tries > _MOST_TRIES:
                    break
                if _cause(self._parser(self._of_schema({**definitions, **inner})).get_error()) == message:
                    place, part, found = f"{place}/{step}", inner, True
                    break
        return f"{what} is wrong at {place}: {' '.join(message.split())}"


def _of_calls(asked: Mapping[str, Any]) -> str:
    """The grammar of tool calls. A mark in a text begins calls: what is lazy has ended before what goes on."""
    form = CallForm(**asked["form"])
    calls, rules = list[str](), list[str]()
    for index, (name, parameters) in enumerate(asked["tools"].items()):
        calls.append(f"{_quoted(name + form.middle)} arguments_{index}")
        rules.append(f"arguments_{index}: %json {json.dumps({**parameters, 'x-guidance': _CALL_LAYOUT})}")
    rules.append(f"call: {' | '.join(calls)}")
    more = f"({_quoted(form.next)} call){{0,{MAX_CALLS - 1}}}" if asked["many"] and form.next is not None else ""
    rules.append(f"calls: call {more} {_quoted(form.last)}")
    begun, otherwise = f"{_quoted(form.first)} calls", asked["otherwise"]
    if otherwise is None:
        start = begun
    elif otherwise == "text":
        start = f"TEXT | before {_quoted(form.first.removeprefix(form.mark))} calls"
        mark = _literal(form.mark)
        rules.append("TEXT: /(?s:.*)/")
        rules.append(f"before[lazy]: /(?s:.*)/ /{mark}/")
    else:
        start = f"other | {begun}"
        rules.append(f"other: %json {json.dumps({**otherwise, 'x-guidance': _LAYOUT})}")
    return "\n".join([f"start: {start}", *rules])


def _quoted(text: str) -> str:
    """A text as a grammar writes it; nothing where it is empty."""
    return json.dumps(text, ensure_ascii=False) if text else ""


def _parts(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The schemas right within a schema, and the steps of a JSON pointer to them."""
    found: list[tuple[str, Any]] = []
    for key in IN_MAPPINGS:
        if isinstance(schema.get(key), dict):
            found += [(f"{key}/{name}", inner) for name, inner in schema[key].items()]
    for key in IN_LISTS:
        if isinstance(schema.get(key), list):
            found += [(f"{key}/{index}", inner) for index, inner in enumerate(schema[key])]
    found += [(key, schema[key]) for key in SINGLE if key in schema]
    return ((step, inner) for step, inner in found if isinstance(inner, dict))


def _literal(text: str) -> str:
    """A text as a regular expression."""
    return "".join(one if one.isalnum() else f"\\x{{{ord(one):x}}}" for one in text)


def _cause(message: str) -> str:
    """An error of a schema without the reference that led to it."""
    return message.split("while processing json-schema:")[0].strip()


def _first_line(message: str) -> str:
    return next((line.strip() for line in message.splitlines() if line.strip()), "unknown reason")
