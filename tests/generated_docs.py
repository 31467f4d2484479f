"""Writes docs/families.md (`families_page.py`) and docs/commands.md: every verb with its options, types and defaults.

Nothing in these pages is kept by hand. Names, types and defaults come from the stages' config dataclasses; what an
option does is the comment above its field, and a `# --- title ---` line begins a section. `make docs` writes the
pages, and `make check` runs this with --check, which fails when one is not what the source says. The text does not
depend on the terminal.
"""

import ast
import dataclasses
import importlib
import inspect
import re
import sys
import textwrap
import types
import typing
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import families_page
import tyro

from chatloom.cli import VERBS

DOCS = Path(__file__).parent.parent / "docs"
HEADER = """\
<!-- Written by `make docs` from the source. Change the comments there, not this page. -->

# Commands

`chatloom VERB --help` shows the same in a terminal. An option that is not required may be left out. An option
that does not exist is an error that names the nearest one. A stage that is given again with the same options goes on
where it stopped, and a finished one does nothing.
"""
_TYPES = {str: "text", int: "whole number", float: "number", bool: "flag", types.NoneType: "None"}
_TITLE = re.compile(r"# --- (.+?) -+$")


@dataclasses.dataclass(frozen=True)
class Option:
    """One option of a verb. `default` is None where the option is required, else as it is typed."""

    field: str
    kind: str
    default: str | None
    text: str
    section: str
    positional: bool

    @property
    def name(self) -> str:
        """As it is typed: `--batch-rows`, or `MODEL` for one that has no dashes."""
        return self.field.upper() if self.positional else f"--{self.field.replace('_', '-')}"


@dataclasses.dataclass(frozen=True)
class Group:
    """A dataclass of options: a verb's own, or one that is nested in it. `text` is what the verb says about it."""

    cls: type[Any]
    options: tuple[Option, ...]
    text: str = ""

    @property
    def title(self) -> str:
        """`TrainConfig` -> "train options"."""
        words = re.findall(r"[A-Z]+(?=[A-Z][a-z])|[A-Z][a-z]+|[A-Z]+", self.cls.__name__.removesuffix("Config"))
        return f"{' '.join(word if word.isupper() else word.lower() for word in words)} options"


# --- reading the source ---------------------------------------------------------------------------------------


def groups_of(config: type[Any]) -> list[Group]:
    """A stage's own options, then each nested dataclass's with the defaults that it has in this stage."""
    own, nested = [], []
    for field, option in _fields(config, None):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if dataclasses.is_dataclass(default):
            options = tuple(each for _, each in _fields(type(default), default))
            nested.append(Group(type(default), options, option.text))
        else:
            own.append(option)
    return [Group(config, tuple(own)), *nested]


def _fields(cls: type[Any], instance: Any) -> Iterator[tuple[dataclasses.Field[Any], Option]]:
    comments = _comments(cls)
    hints = typing.get_type_hints(cls, include_extras=True)
    for field in dataclasses.fields(cls):
        hint = hints[field.name]
        positional = tyro.conf.Positional in getattr(hint, "__metadata__", ())
        default = field.default if instance is None else getattr(instance, field.name)
        text, section = comments[field.name]
        shown = None if default is dataclasses.MISSING else _typed(default)
        yield field, Option(field.name, _kind(hint), shown, text, section, positional)


def _comments(cls: type[Any]) -> dict[str, tuple[str, str]]:
    """Field -> the comment directly above it, and the title of its section."""
    source = textwrap.dedent(inspect.getsource(cls))
    lines = [line.strip() for line in source.splitlines()]
    found, section, last = {}, "", 0
    (definition,) = ast.parse(source).body
    assert isinstance(definition, ast.ClassDef)
    for node in definition.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            for line in lines[last : node.lineno - 1]:
                section = match.group(1) if (match := _TITLE.match(line)) else section
            at = node.lineno - 1
            while lines[at - 1].startswith("# ") and not _TITLE.match(lines[at - 1]):
                at -= 1
            text = " ".join(line.removeprefix("# ") for line in lines[at : node.lineno - 1])
            found[node.target.id] = (text, section)
        last = node.end_lineno or 0
    return found


def _kind(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kind(arguments[0])
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_kind(each) for each in arguments)
    if origin is typing.Literal:
        return " or ".join(f"`{each}`" for each in arguments)
    if origin is tuple:
        several = arguments[-1] is Ellipsis
        return f"{_kind(arguments[0])}s" if several else " and ".join(_kind(each) for each in arguments)
    return _TYPES.get(hint, getattr(hint, "__name__", str(hint)))


def _typed(value: Any) -> str:
    """A default as one types it."""
    if isinstance(value, tuple):
        return " ".join(map(_typed, value))
    return str(value)


# --- writing the page -----------------------------------------------------------------------------------------


def page() -> str:
    """The whole of docs/commands.md."""
    verbs = {verb: groups_of(importlib.import_module(module).Config) for verb, (module, _) in VERBS.items()}
    uses = Counter(group.cls for groups in verbs.values() for group in groups[1:])
    shared = [cls for cls, count in uses.items() if count > 1]
    parts = [HEADER, "| command | what it does |\n|---|---|"]
    parts += [f"| [`chatloom {verb}`](#chatloom-{verb}) | {what} |" for verb, (_, what) in VERBS.items()]
    for verb, groups in verbs.items():
        parts += ["", *_verb(verb, groups, shared)]
    for cls in shared:
        group = _shared(cls)
        users = ", ".join(f"`{verb}`" for verb, groups in verbs.items() if cls in [each.cls for each in groups])
        parts += ["", f"## {group.title.capitalize()}", "", f"Of {users}. {_summary(cls)}", "", *_tables(group.options)]
    return "\n".join(parts) + "\n"


def _shared(cls: type[Any]) -> Group:
    return Group(cls, tuple(option for _, option in _fields(cls, cls())))


def _verb(verb: str, groups: Sequence[Group], shared: Sequence[type[Any]]) -> list[str]:
    own = groups[0]
    required = [
        option.name if option.positional else f"{option.name} ..." for option in own.options if option.default is None
    ]
    parts = [f"## chatloom {verb}", "", _summary(own.cls), "", f"    chatloom {' '.join([verb, *required])} [OPTIONS]"]
    parts += ["", *_tables(own.options)]
    for group in groups[1:]:
        if group.cls not in shared:
            parts += ["", f"### {verb}: {group.title}", "", *_paragraph(_summary(group.cls), group.text)]
            parts += _tables(group.options)
            continue
        usual = {option.field: option.default for option in _shared(group.cls).options}
        other = [option for option in group.options if option.default != usual[option.field]]
        link = f"Also the [{group.title}](#{group.title.replace(' ', '-')})"
        sentence = f"{link}. {group.text}".rstrip()
        if other:
            listed = ", ".join(f"`{option.name} {option.default}`" for option in other)
            sentence += f" Defaults of this command's own: {listed}."
        parts += ["", sentence]
    return parts


def _summary(cls: type[Any]) -> str:
    return " ".join((cls.__doc__ or "").split())


def _paragraph(*sentences: str) -> list[str]:
    return [" ".join(sentence for sentence in sentences if sentence), ""]


def _tables(options: Sequence[Option]) -> list[str]:
    """One table for each section, in the order of the source."""
    parts: list[str] = []
    section = None
    for option in options:
        if option.section != section:
            section = option.section
            parts += [""] if parts else []
            parts += [f"**{section[:1].upper()}{section[1:]}**", ""] if section else []
            parts += ["| option | type | default | what it is |", "|---|---|---|---|"]
        parts.append(_row(option))
    return parts


def _row(option: Option) -> str:
    name = f"`{option.name}`"
    if option.kind == "flag":
        name += f", `--no-{option.field.replace('_', '-')}`"
    default = "required" if option.default is None else f"`{option.default}`" if option.default else "none"
    return f"| {name} | {option.kind} | {default} | {option.text} |".replace("\\", "\\\\")


def main(arguments: Sequence[str]) -> int:
    """Write the pages, or with --check say whether they are up to date."""
    if arguments not in ([], ["--check"]):
        sys.stderr.write("usage: generated_docs.py [--check]\n")
        return 2
    stale = 0
    for name, text in (("commands.md", page()), ("families.md", families_page.page())):
        path = DOCS / name
        if not arguments:
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            sys.stderr.write(f"docs/{name} is not what the source says; `make docs` writes it\n")
            stale = 1
    return stale


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
