"""Chat templates: Jinja, as Hugging Face folders carry them in `chat_template.jinja`.

A template is a program that came with a checkpoint, so it runs in Jinja's sandbox, sees the conversation and
nothing else (no clock, no files), and the same conversation always renders to the same text. Its steps are counted, so
one that never ends is an error (`limits.py`). Whitespace rules, the
`raise_exception` function, the `tojson` filter, `break`/`continue` and the `{% generation %}` tag are those of
transformers. Text becomes tokens in `render.py`.
"""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import jinja2
import jinja2.nodes
from jinja2.ext import Extension
from jinja2.parser import Parser

from chatloom.chat import limits
from chatloom.chat.message import Message, to_dicts
from chatloom.runtime import write_atomically

TEMPLATE_FILE = "chat_template.jinja"

# Nothing stands between the pieces, not even a line end: in a small model every token counts, and no text can then
# merge with its neighbour. `generation` marks for other trainers what is ours to learn: the reply and its end.
CHATLOOM_TEMPLATE = """\
{{- '<|begin_of_text|>' -}}
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}
        {{- '<|assistant|>' -}}
        {%- generation -%}
            {{- message['content'] + '<|end_of_turn|>' -}}
        {%- endgeneration -%}
    {%- elif message['role'] in ['system', 'user'] -%}
        {{- '<|' + message['role'] + '|>' + message['content'] + '<|end_of_turn|>' -}}
    {%- else -%}
        {{- raise_exception('the role is ' + message['role'] + '; it must be system, user or assistant') -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|assistant|>' -}}
{%- endif -%}
"""

# For a base model from elsewhere whose tokenizer has an end-of-text token and no token for who speaks. A reply
# begins on a line of its own, so that no tokenizer merges its first letters with the label before it.
PLAIN_TEMPLATE = """\
{{- bos_token if bos_token is defined and bos_token != eos_token else '' -}}
{%- for message in messages -%}
    {%- if message['role'] not in ['system', 'user', 'assistant'] -%}
        {{- raise_exception('the role is ' + message['role'] + '; it must be system, user or assistant') -}}
    {%- endif -%}
    {{- '### ' + message['role'] + ':\n' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}
            {{- message['content'] + eos_token -}}
        {%- endgeneration -%}
    {%- else -%}
        {{- message['content'] + '\n' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '### assistant:\n' -}}
{%- endif -%}
"""

TEMPLATES = {"chatloom": CHATLOOM_TEMPLATE, "plain": PLAIN_TEMPLATE}


_FAILURES = (
    *(jinja2.TemplateError, TypeError, AttributeError, LookupError, ArithmeticError, ValueError),
    *(RecursionError, MemoryError),
)


class ChatTemplate:
    """A compiled chat template. `source` is its text. A syntax error is a ValueError that gives the line."""

    def __init__(self, source: str) -> None:
        self.source = source
        try:
            self._compiled = _environment().from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise ValueError(f"the chat template has an error in line {error.lineno}: {error.message}") from error
        except (RecursionError, SyntaxError, MemoryError, ValueError, jinja2.TemplateError) as error:
            raise ValueError(f"the chat template cannot be compiled: {type(error).__name__}: {error}") from error

    def render(
        self,
        messages: Iterable[Message],
        *,
        add_generation_prompt: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> str:
        """Return the conversation as text, with the opening of the assistant's turn if `add_generation_prompt`.

        `variables` are the template's others, such as bos_token and eos_token. Raises ValueError where the template
        refuses the conversation (`raise_exception`) or fails.
        """
        context = {**(variables or {}), "messages": to_dicts(messages)}
        limits.begin()
        try:
            limits.begin(limits.size([context["messages"], context.get("tools", ())]))
            return self._compiled.render(**context, add_generation_prompt=add_generation_prompt)
        except _FAILURES as error:
            raise ValueError(f"the chat template cannot render this conversation: {error}") from error

    def save(self, folder: str | Path) -> None:
        """Write `chat_template.jinja` into the folder."""
        write_atomically(Path(folder) / TEMPLATE_FILE, self.source)

    @classmethod
    def named(cls, name: str) -> "ChatTemplate":
        """Return one of `TEMPLATES`, or the template in a file. Raises ValueError where there is neither."""
        if name in TEMPLATES:
            return cls(TEMPLATES[name])
        if not Path(name).is_file():
            raise ValueError(f"chat template {name!r} is neither a file nor one of {', '.join(TEMPLATES)}")
        return cls(Path(name).read_bytes().decode("utf-8"))

    @classmethod
    def load(cls, folder: str | Path) -> "ChatTemplate | None":
        """Return the template of a folder, or None where it has none (a base model).

        `chat_template.jinja` comes first, then the `chat_template` of tokenizer_config.json, where older folders keep
        it: a text, or a list of named ones of which "default" is taken.
        """
        path = Path(folder) / TEMPLATE_FILE
        if path.is_file():
            # Bytes, because reading text would rewrite line ends.
            return cls(path.read_bytes().decode("utf-8"))
        path = Path(folder) / "tokenizer_config.json"
        if not path.is_file():
            return None
        try:
            source = json.loads(path.read_text(encoding="utf-8")).get("chat_template")
        except ValueError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
        if isinstance(source, list):
            named = {entry["name"]: entry["template"] for entry in source}
            if "default" not in named:
                raise ValueError(f'{path} has no chat template named "default"; it has {", ".join(named)}')
            source = named["default"]
        return None if source is None else cls(source)


class _Generation(Extension):
    """`{% generation %}...{% endgeneration %}`: a mark for other trainers; it renders what is inside."""

    tags = {"generation"}  # noqa: RUF012 (Jinja's own interface)

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.Scope(body, lineno=line)


def _environment() -> limits.LimitedEnvironment:
    environment = limits.LimitedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, "jinja2.ext.loopcontrols"]
    )
    environment.add_filter("tojson", _to_json)
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(value: Any, **options: Any) -> str:
    """Jinja's own filter escapes for HTML pages, which a prompt is not."""
    return json.dumps(value, ensure_ascii=False, **options)
