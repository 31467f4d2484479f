"""Conversations to tokens and loss mask: the only place where text becomes training tokens.

SFT, the reward model, PPO, evaluation and chat all come through `ChatFormat`, so a conversation that was trained on
and the same conversation when served cannot differ: `prompt(c[:i])`, then the reply's tokens, then the end of turn
is a prefix of `render(c).tokens`, token for token. Three facts make that hold:

* The template is rendered with a placeholder for each message, so that its own text and the messages' are told
  apart. Special tokens are parsed in the template's text only: a message that contains "<|assistant|>" is spelled out.
* Where a reply begins is where the rendering of the messages before it, with the generation prompt, ends. No token
  crosses that line. If that rendering is not a prefix of the whole, the template is refused rather than guessed at.
* What ends a turn is read off the template: the special token that follows a reply. It is in the loss and it stops
  generation, both from the same property.

Where placeholders do not give the text that the messages themselves would (a template that edits or inspects
content), the messages are rendered directly; no message may contain a special token then, which is checked.
For ordinary text the tokens are those of transformers' `apply_chat_template`, but for a merge across the line where a
reply begins, which cannot occur when serving either. (Tokenizers that put a blank before the first word of a text
only, as sentencepiece does, would put it before each piece here; byte-level ones have no such rule.)
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

from chatloom.chat.calls import HERMES, CallForm
from chatloom.chat.message import Conversation, Message, Role
from chatloom.chat.templates import ChatTemplate
from chatloom.chat.tools import form_of, written
from chatloom.tokenizers.bpe import Tokenizer

TrainOn = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as tokens; `loss_mask` is 1 on what the assistant must learn to produce, 0 elsewhere."""

    tokens: list[int]
    loss_mask: list[int]

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True, slots=True)
class _Special:
    """A special token of the template. `reply` is the message whose reply it is part of, or None."""

    text: str
    token: int
    reply: int | None


@dataclass(frozen=True, slots=True)
class _Run:
    """Text between special tokens, encoded as one piece: template text and numbers of messages, in order."""

    parts: tuple[str | int, ...]
    reply: int | None
    strip_left: bool = False
    strip_right: bool = False

    def text(self, contents: Sequence[str]) -> str:
        return "".join(part if isinstance(part, str) else contents[part] for part in self.parts)

    def encoded_text(self, contents: Sequence[str]) -> str:
        """Return the text less the blanks that a neighbouring special token swallows."""
        text = self.text(contents)
        text = text.lstrip() if self.strip_left else text
        return text.rstrip() if self.strip_right else text


_Step = _Special | _Run
_Piece = tuple[int | str, int | None]  # a token or a text to encode, and the reply it is part of


class ChatFormat:
    """A tokenizer and a chat template, which together turn conversations into tokens."""

    def __init__(self, tokenizer: Tokenizer, template: ChatTemplate | str) -> None:
        self.tokenizer = tokenizer
        self.template = ChatTemplate(template) if isinstance(template, str) else template
        special = tokenizer.special
        longest_first = sorted(special, key=len, reverse=True)
        self._special = special
        self._special_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._marker_pattern = re.compile(f"{_PLACEHOLDER.pattern}|{self._special_pattern.pattern}")
        self._strips = {text: tokenizer.strips(text) for text in special}
        named = {"bos_token": tokenizer.bos_token, "eos_token": tokenizer.eos_token, "pad_token": tokenizer.pad_token}
        self._variables: dict[str, Any] = {name: text for name, text in named.items() if text is not None}
        self._tools: Sequence[Mapping[str, Any]] = ()
        self._shapes: dict[tuple[tuple[Role, ...], bool], tuple[_Step, ...] | None] = {}

    def with_tools(self, tools: Sequence[Mapping[str, Any]]) -> "ChatFormat":
        """This format for conversations whose assistant may call these tools, as chat APIs describe them.

        Conversations with calls and results are rendered with or without. ValueError, where the template knows tools,
        for one whose description contains a special token.
        """
        knows = self._known_form is not None
        bound = copy(self)
        bound._tools, bound._shapes = tuple(tools), {}
        if tools and knows:
            self._refuse_special("a tool", json.dumps(bound._tools, ensure_ascii=False))
            bound._variables = {**self._variables, "tools": list(tools)}
        return bound

    @property
    def call_form(self) -> CallForm:
        """How calls of tools are written in an answer."""
        return self._known_form or HERMES

    @cached_property
    def _known_form(self) -> CallForm | None:
        """The form of a template that knows tools."""

        def render(messages: Conversation, tools: Sequence[Mapping[str, Any]]) -> str:
            variables = {**self._variables, "tools": list(tools)}
            ask = messages[-1].role != "assistant"
            return self.template.render(messages, add_generation_prompt=ask, variables=variables)

        return form_of(render, self.tokenizer.token(self.end_of_turn), list(self._special))

    def render(self, conversation: Conversation, *, train_on: TrainOn = "all") -> Rendered:
        """Return the tokens of the whole conversation and its loss mask.

        The mask is 1 on each assistant reply and the end-of-turn token after it (not on a line end after that), with
        `train_on="last"` on the last reply alone. Raises ValueError where the template cannot be trained on.
        """
        return self.render_many([conversation], train_on=train_on)[0]

    def render_many(self, conversations: Sequence[Conversation], *, train_on: TrainOn = "all") -> list[Rendered]:
        """Return `[render(c) for c in conversations]`, with all texts encoded in one batch."""
        if train_on not in ("all", "last"):
            raise ValueError(f'train_on is {train_on!r}; it must be "all" or "last"')
        conversations = [self._as_written(conversation) for conversation in conversations]
        pieces = [self._pieces(conversation, add_generation_prompt=False) for conversation in conversations]
        encode = self._encoder(pieces)
        rendered = []
        for conversation, its_pieces in zip(conversations, pieces):
            replies = [index for index, message in enumerate(conversation) if message.role == "assistant"]
            trained = set(replies if train_on == "all" else replies[-1:])
            result = Rendered([], [])
            for content, reply in its_pieces:
                tokens = encode(content)
                result.tokens.extend(tokens)
                result.loss_mask.extend([int(reply in trained)] * len(tokens))
            rendered.append(result)
        return rendered

    def prompt(self, conversation: Conversation) -> list[int]:
        """Return the tokens that ask for the next reply: the conversation and the opening of the assistant's turn."""
        return self.prompt_many([conversation])[0]

    def prompt_many(self, conversations: Sequence[Conversation]) -> list[list[int]]:
        """Return `[prompt(c) for c in conversations]`, with all texts encoded in one batch."""
        for conversation in conversations:
            if not conversation or conversation[-1].role == "assistant":
                last = "is empty" if not conversation else "ends with the assistant's own turn"
                raise ValueError(f"the conversation {last}; a prompt ends with what the user said")
        conversations = [self._as_written(conversation) for conversation in conversations]
        pieces = [self._pieces(conversation, add_generation_prompt=True) for conversation in conversations]
        encode = self._encoder(pieces)
        return [[token for content, _ in its_pieces for token in encode(content)] for its_pieces in pieces]

    @cached_property
    def end_of_turn(self) -> int:
        """The special token that the template puts after a reply. ValueError where it puts none."""
        text = self._text((Message("user", _placeholder(0)), Message("assistant", _placeholder(1))))
        _, found, after = text.rpartition(_placeholder(1))
        if not found:
            raise ValueError("the chat template does not show what the assistant says")
        match = self._special_pattern.search(after)
        if match is None:
            raise ValueError(
                "the chat template closes a reply with no special token"
                f"{f', only with {after!r}' if after else ''}, so a model could never learn to stop; end each "
                f"assistant turn with one of the tokenizer's: {', '.join(self._special) or '(it has none)'}"
            )
        return self._special[match.group()]

    @cached_property
    def stop_tokens(self) -> tuple[int, ...]:
        """The tokens that end a reply: the template's end of turn first, then the end of text."""
        eos = self.tokenizer.eos_token
        tokens = [self.end_of_turn, *([self.tokenizer.eos] if eos is not None else [])]
        return tuple(dict.fromkeys(tokens))

    def check(self) -> list[str]:
        """Return what is wrong with this tokenizer and template together, one sentence each; empty when sound.

        It renders small conversations: that a reply and its end are in the loss, that the end is a stop, that a
        prompt is a prefix of what is trained, and that no token of the template is spelled out letter by letter.
        """
        turns = (
            Message("user", "One?"),
            Message("assistant", "Two."),
            Message("user", "Three?"),
            Message("assistant", "Four."),
        )
        problems = []
        for end in (2, 4):
            try:
                problems += self._check_training(turns[:end])
            except ValueError as error:
                problems.append(f"a conversation of {end} turns cannot be rendered: {error}")
        spelled = self._special_pattern.sub("", self.template.source)
        for text in dict.fromkeys(re.findall(r"<\|\w+\|>", spelled)):
            num_tokens = len(self.tokenizer.encode(text, allow_special=True))
            problems.append(
                f"the template writes {text}, which is no special token of this tokenizer; "
                f"it is spelled out as {num_tokens} tokens, as if a user had typed it"
            )
        return list(dict.fromkeys(problems))

    def describe(self, rendered: Rendered) -> str:
        """Return one line a token, for people: a `+` where the loss counts it, its number, and its text."""
        lines = []
        for token, counted in zip(rendered.tokens, rendered.loss_mask):
            lines.append(f"{'+' if counted else ' '} {token:>6} {self.tokenizer.token(token)!r}\n")
        return "".join(lines)

    def _check_training(self, turns: Conversation) -> list[str]:
        """Return the problems of one conversation that ends with a reply."""
        problems = []
        rendered = self.render(turns)
        counted = [token for token, mask in zip(rendered.tokens, rendered.loss_mask) if mask]
        end = self.tokenizer.token(self.end_of_turn)
        num_replies = sum(message.role == "assistant" for message in turns)
        if counted.count(self.end_of_turn) != num_replies:
            problems.append(
                f"the end of turn {end} is in the loss {counted.count(self.end_of_turn)} times for {num_replies} "
                "replies; the model would not learn to stop"
            )
        if self.end_of_turn not in self.stop_tokens:
            problems.append(f"the end of turn {end} is trained but does not stop generation")
        prompt = self.prompt(turns[:-1])
        reply = [*self.tokenizer.encode(turns[-1].content), self.end_of_turn]
        if rendered.tokens[: len(prompt) + len(reply)] != prompt + reply:
            problems.append(
                f"what is served (prompt, reply, {end}) is not what is trained: "
                f"{self.tokenizer.decode(prompt + reply, skip_special=False)!r} against "
                f"{self.tokenizer.decode(rendered.tokens, skip_special=False)!r}"
            )
        return problems

    def _encoder(self, pieces: Sequence[Sequence[_Piece]]) -> Callable[[int | str], Sequence[int]]:
        """Encode every distinct text of the pieces in one batch; return the look-up."""
        texts = list({content: None for row in pieces for content, _ in row if isinstance(content, str)})
        if len(texts) < 64:  # below, waking the threads costs more than they save
            encoded = dict(zip(texts, map(self.tokenizer.encode, texts)))
        else:
            encoded = dict(zip(texts, self.tokenizer.encode_batch(texts)))
        return lambda content: encoded[content] if isinstance(content, str) else (content,)

    def _as_written(self, messages: Conversation) -> Conversation:
        """The messages that the template is given: tools are text in them where it does not know any."""
        if not self._tools and not any(message.tool_calls or message.role == "tool" for message in messages):
            return messages
        if self._known_form is None:
            return written(messages, self._tools)
        for index, message in enumerate(messages):
            for call in message.tool_calls:
                self._refuse_special(f"message {index}", json.dumps(call.values, ensure_ascii=False))
        return messages

    def _refuse_special(self, what: str, content: str) -> None:
        if found := self._special_pattern.search(content):
            raise ValueError(
                f"{what} contains the special token {found.group()}, and this chat template edits or "
                "inspects what it is given, so the two cannot be told apart; take it out"
            )

    def _pieces(self, messages: Conversation, *, add_generation_prompt: bool) -> list[_Piece]:
        """Return the tokens and texts that make up a conversation."""
        steps, contents = self._fit(messages, add_generation_prompt=add_generation_prompt)
        pieces: list[_Piece] = []
        for step in steps:
            if isinstance(step, _Special):
                pieces.append((step.token, step.reply))
            elif text := step.encoded_text(contents):
                pieces.append((text, step.reply))
        return pieces

    def _fit(self, messages: Conversation, *, add_generation_prompt: bool) -> tuple[tuple[_Step, ...], Sequence[str]]:
        """Return steps and the contents to fill in that give exactly the text which the template gives."""
        text = self._text(messages, add_generation_prompt=add_generation_prompt)
        steps = self._shape(messages, add_generation_prompt)
        contents = [message.content for message in messages]
        if steps is not None:
            for candidate in (contents, [content.strip() for content in contents]):
                filled = (step.text if isinstance(step, _Special) else step.text(candidate) for step in steps)
                if "".join(filled) == text:
                    return steps, candidate
        for index, content in enumerate(contents):
            self._refuse_special(f"message {index}", content)
        return self._steps(text, messages, markers=self._special_pattern), ()

    def _shape(self, messages: Conversation, add_generation_prompt: bool) -> tuple[_Step, ...] | None:
        """Return the steps for conversations like this one; None where the template mishandles placeholders."""
        key = (tuple(message.role for message in messages), add_generation_prompt)
        with_calls = any(message.tool_calls for message in messages)
        if with_calls or key not in self._shapes:
            marked = tuple(
                # Templates ask whether a message that calls tools says something as well.
                replace(message, content="" if message.tool_calls and not message.content else _placeholder(index))
                for index, message in enumerate(messages)
            )
            text = self._text(marked, add_generation_prompt=add_generation_prompt)
            expected = [index for index, message in enumerate(marked) if message.content]
            steps: tuple[_Step, ...] | None = None
            if sorted(int(number) for number in _PLACEHOLDER.findall(text)) == expected:
                steps = self._steps(text, marked, markers=self._marker_pattern)
            if with_calls:
                return steps
            self._shapes[key] = steps
        return self._shapes[key]

    def _steps(self, text: str, messages: Conversation, *, markers: re.Pattern[str]) -> tuple[_Step, ...]:
        """Split the rendering of messages at markers and at the beginning and end of each reply."""
        steps: list[_Step] = []
        position = 0
        for index, message in enumerate(messages):
            if message.role == "assistant":
                start, end = self._reply_span(messages, index, text)
                steps += self._split(text[position:start], None, markers)
                steps += self._split(text[start:end], index, markers)
                position = end
        steps += self._split(text[position:], None, markers)
        return tuple(steps)

    def _reply_span(self, messages: Conversation, index: int, text: str) -> tuple[int, int]:
        """Return where the reply of message `index` begins in the text, and where its end-of-turn token ends.

        Both are those of the moment when the reply was given, and must stay so in the conversation that goes on.
        """
        before = self._text(messages[:index], add_generation_prompt=True)
        _require_prefix(before, text, f"the prompt for message {index}")
        given = self._text(messages[: index + 1])
        for match in self._special_pattern.finditer(given, len(before)):
            if self._special[match.group()] == self.end_of_turn:
                _require_prefix(given[: match.end()], text, f"the conversation up to the reply in message {index}")
                return len(before), match.end()
        raise ValueError(
            f"the chat template does not close the reply in message {index} with "
            f"{self.tokenizer.token(self.end_of_turn)}, as it does elsewhere"
        )

    def _split(self, text: str, reply: int | None, markers: re.Pattern[str]) -> list[_Step]:
        """Split a stretch of rendered text into special tokens and the runs between them."""
        steps: list[_Step] = []
        parts: list[str | int] = []
        after: str | None = None  # the special token that came last

        def close(before: str | None) -> None:
            strip_left = after is not None and self._strips[after][1]
            strip_right = before is not None and self._strips[before][0]
            if parts:
                steps.append(_Run(tuple(parts), reply, strip_left, strip_right))
                parts.clear()

        position = 0
        for match in markers.finditer(text):
            if match.start() > position:
                parts.append(text[position : match.start()])
            position = match.end()
            if match.group() in self._special:
                close(match.group())
                after = match.group()
                steps.append(_Special(after, self._special[after], reply))
            else:
                parts.append(int(match.group(1)))
        if position < len(text):
            parts.append(text[position:])
        close(None)
        return steps

    def _text(self, messages: Conversation, *, add_generation_prompt: bool = False) -> str:
        return self.template.render(messages, add_generation_prompt=add_generation_prompt, variables=self._variables)


# A placeholder stands for the content of a message while the template's own text is looked at. It is of private-use
# characters around a number: nothing that trimming or changing case would alter.
_PLACEHOLDER = re.compile("\ue0f0(\\d+)\ue0f1")


def _placeholder(index: int) -> str:
    return f"\ue0f0{index}\ue0f1"


def _require_prefix(given: str, text: str, name: str) -> None:
    """Raise ValueError, showing where they part, unless what was given is the beginning of the whole text."""
    if text.startswith(given):
        return
    agreed = next(i for i, (a, b) in enumerate(zip(given + "\0", text + "\1")) if a != b)
    raise ValueError(
        f"with this chat template {name} is not the beginning of the conversation that contains it: after "
        f"{_show(text[:agreed][-30:])} it goes on with {_show(given[agreed:][:30])}, and the whole with "
        f"{_show(text[agreed:][:30])}. A model trained on the one would be served the other; train on conversations "
        "of one reply, or change the template"
    )


def _show(text: str) -> str:
    return repr(_PLACEHOLDER.sub(lambda match: f"[message {match.group(1)}]", text)) if text else "its end"
