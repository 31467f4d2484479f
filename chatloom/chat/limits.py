"""Limits for chat templates, which are programs that came with a checkpoint and may never end.

Jinja's sandbox keeps a template from the files and from Python; it does not keep it from running for a year. Here every
round of a loop, every call, filter and operation is counted, and what would make a text or a number too large is
refused before it is made. So a template stops because its own work is over the limit, whatever the machine, and
without a clock, a signal or a thread. The limits are far above what any conversation needs.
"""

import re
from collections.abc import Callable, Iterator, MappingView
from contextvars import ContextVar
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.runtime import LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

MAX_STEPS = 1_000_000  # rounds of loops, calls, filters and operations of one rendering
MAX_CHARACTERS = 20_000_000  # of all texts that are made on the way, beyond MAX_COPIES of the conversation
MAX_COPIES = 20
_ITEM = 20  # characters that an item of a list counts for
MAX_NUMBER = 1_000_000  # of an argument: a width, a count, the end of a range
MAX_SOURCE = 1_000_000  # characters of a template
# A field of a million blanks, or as wide as an argument says.
_FORMAT_WIDTH = re.compile(r"[%:.][^a-zA-Z%{}]*(\d{6,}|\*)|\{[^{}]*\{")
# Names that are no business of a prompt: text that is random, or of any length.
_REMOVED_GLOBALS = ("lipsum",)
_REMOVED_FILTERS = ("random", "urlize", "wordwrap")


class TemplateLimitError(jinja2.TemplateError):
    """A template did more than a chat template may."""


class Work:
    """What one rendering has done so far."""

    def __init__(self, conversation_characters: int) -> None:
        self.steps = self.characters = 0
        self.most_characters = MAX_CHARACTERS + MAX_COPIES * conversation_characters

    def step(self, characters: int = 0) -> None:
        """Count one step that makes so many characters or items."""
        self.steps += 1
        self.characters += characters
        if self.steps > MAX_STEPS:
            raise TemplateLimitError(f"it takes more than {MAX_STEPS:,} steps; is there a loop without end?")
        if self.characters > self.most_characters:
            raise TemplateLimitError(f"it makes more than {self.most_characters:,} characters on the way")


_WORK: ContextVar[Work] = ContextVar("work of the template that is rendered")


def begin(conversation_characters: int = 0) -> None:
    """Start counting the rendering of a conversation of so many characters."""
    _WORK.set(Work(conversation_characters))


def _work() -> Work:
    # Jinja computes constants when it compiles, before there is a rendering.
    try:
        return _WORK.get()
    except LookupError:
        begin()
        return _WORK.get()


# --- what is counted ------------------------------------------------------------------------------------------


def size(value: Any) -> int:
    """Characters of a text, or of all that a list or mapping holds; stops when it is too much."""
    if isinstance(value, str):
        return len(value)
    if isinstance(value, (range, set, frozenset, MappingView)):
        return _ITEM * len(value)
    if not isinstance(value, (list, tuple, dict)):
        return 1
    total, num_lists, pending = 0, 0, [value]
    while pending:
        item = pending.pop()
        num_lists += 1
        if num_lists > MAX_STEPS:
            raise TemplateLimitError(f"it builds a list of more than {MAX_STEPS:,} lists")
        children = [*item.keys(), *item.values()] if isinstance(item, dict) else item
        total += _ITEM * len(children) + sum(len(child) for child in children if isinstance(child, str))
        pending += [child for child in children if isinstance(child, (list, tuple, dict))]
    return total


def _check_argument(value: Any) -> int:
    """Refuse a number that could be the length of something; the size of anything else."""
    if isinstance(value, int) and abs(value) > MAX_NUMBER:
        raise TemplateLimitError(f"it gives the number {value:.3g} to a function; at most {MAX_NUMBER:,}")
    return size(value)


def _counted(value: Any) -> Any:
    """An argument; what it yields later is counted then."""
    return _rounds(value) if isinstance(value, Iterator) and not isinstance(value, LoopContext) else value


def _filled(name: str, arguments: tuple[Any, ...], sizes: list[int]) -> int:
    """How long a text can get in which each character, line or gap is filled with another argument, or so many blanks.

    `tojson` alone may be given a long text without filling it: its only number is an indentation.
    """
    if name not in ("replace", "join", "indent", "expandtabs", "translate", "tojson"):
        return 0
    lengths = [abs(value) if isinstance(value, int) else size for value, size in zip(arguments, sizes)]
    *_, second, first = sorted([1, 1, *lengths])
    return first * second


def _rounds(iterable: Any) -> Iterator[Any]:
    """The items of a loop, each counted."""
    work = _work()
    for item in iterable:
        work.step()
        yield item


def _counted_iterable(iterable: Any) -> Any:
    """What a loop runs over. Lists keep their length, which `loop.last` and `loop.length` need not look ahead for."""
    return iterable if isinstance(iterable, jinja2.Undefined) else _Rounds(iterable)


class _Rounds:
    def __init__(self, iterable: Any) -> None:
        self._iterable = iterable

    def __iter__(self) -> Iterator[Any]:
        return _rounds(self._iterable)

    def __len__(self) -> int:
        return len(self._iterable)


def _made(value: Any) -> Any:
    """A list, tuple or mapping that the template wrote down."""
    _work().step(size(value))
    return value


def _joined(*parts: Any) -> str:
    """The `~` of Jinja."""
    _work().step(sum(_check_argument(part) if not isinstance(part, int) else 20 for part in parts))
    return "".join(map(str, parts))


def _limited(function: Callable[..., Any], name: str) -> Callable[..., Any]:
    """A filter or function whose arguments and result are counted."""

    def limited(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tuple(map(_counted, args)), {name: _counted(value) for name, value in kwargs.items()}
        sizes = [_check_argument(value) for value in (*args, *kwargs.values())]
        filled = _filled(name, (*args, *kwargs.values()), sizes)
        if name == "format":
            _check_format(next((value for value in args if isinstance(value, str)), ""))
        _work().step(sum(sizes) + filled)
        return _result(function(*args, **kwargs))

    if hasattr(function, "jinja_pass_arg"):  # whether it is handed the context or the environment first
        limited.jinja_pass_arg = function.jinja_pass_arg  # type: ignore[attr-defined]
    return limited


def _result(value: Any) -> Any:
    if isinstance(value, (str, list, tuple, dict)):
        _work().step(size(value))
    return value


def _check_format(text: str) -> None:
    if _FORMAT_WIDTH.search(text.replace("{{", "").replace("}}", "")):
        raise TemplateLimitError("it formats a field of unlimited width")


# --- the environment ------------------------------------------------------------------------------------------


class LimitedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox in which every step is counted."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        for name in _REMOVED_GLOBALS:
            del self.globals[name]
        for name in _REMOVED_FILTERS:
            del self.filters[name]
        for name, function in [*self.filters.items()]:
            self.add_filter(name, function)
        self.filters |= {"_rounds": _counted_iterable, "_made": _made, "_joined": _joined}

    def add_filter(self, name: str, function: Callable[..., Any]) -> None:
        """Give templates a filter, counted."""
        self.filters[name] = _limited(function, name)

    def call(self, context: Any, called: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a function of a template: a macro, a method of a text, `range`, ..."""
        name = getattr(called, "__name__", "")
        own = getattr(getattr(called, "__wrapped__", called), "__self__", None)  # the text of a text's method
        own = own if isinstance(own, str) else ""
        if name in ("format", "format_map"):
            _check_format(own)
        args, kwargs = tuple(map(_counted, args)), {name: _counted(value) for name, value in kwargs.items()}
        sizes = [_check_argument(value) for value in (*args, *kwargs.values())]
        filled = _filled(name, (own, *args, *kwargs.values()), [len(own), *sizes])
        _work().step(sum(sizes) + filled)
        return _result(super().call(context, called, *args, **kwargs))

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """An operation of two values, if its result cannot be enormous."""
        work = _work()
        if operator == "*":
            for many, once in ((left, right), (right, left)):
                if isinstance(many, (str, list, tuple)) and isinstance(once, int):
                    work.step(size(many) * max(once, 0))
        if operator in ("*", "**") and isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length() + right.bit_length() if operator == "*" else left.bit_length() * max(right, 0)
            if bits > 4096:
                raise TemplateLimitError("it computes an enormous number")
        if operator == "%" and isinstance(left, str):
            _check_format(left)
        work.step(size(left) + size(right) if isinstance(left, (str, list, tuple)) else 0)
        return super().call_binop(context, operator, left, right)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if len(source) > MAX_SOURCE:
            raise jinja2.TemplateSyntaxError(f"it is longer than {MAX_SOURCE:,} characters", 1)
        parsed: nodes.Template = _Counting().visit(super()._parse(source, name, filename))
        return parsed


class _Counting(NodeTransformer):
    """Puts the counters into a template's syntax tree."""

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        node.iter = _filtered("_rounds", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        first, *others = node.nodes
        return nodes.Filter(first, "_joined", others, [], None, None, lineno=node.lineno)

    def visit_List(self, node: nodes.List) -> nodes.Node:
        return self._literal(node, node.items)

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        return self._literal(node, node.items) if node.ctx == "load" else node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Node:
        return self._literal(node, node.items)

    def _literal(self, node: nodes.Expr, items: list[Any]) -> nodes.Node:
        if all(isinstance(item, nodes.Const) for item in items):
            return node  # ['system', 'user'] cannot grow
        self.generic_visit(node)
        return _filtered("_made", node)


def _filtered(name: str, node: Any) -> nodes.Expr:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno)
